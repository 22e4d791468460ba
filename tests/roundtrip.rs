//! Properties of `diff` and `patch` through the library, on devices in memory: any pair of images round-trips, whatever
//! the number of threads; a device that fails is reported, and resumed; and what each way to verify finds.

mod common;

use blkpatch::device::{Device, DeviceError, MemoryDevice};
use blkpatch::diff::{DiffOptions, diff};
use blkpatch::error::Error;
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, PatchReport, open_delta, patch_device};
use blkpatch::slot::{Outcome, SlotOptions, patch_slot_device};
use blkpatch::target::{State, Verify};
use common::{BLOCK, Rng, Scene, assert_same, changed_blocks, long, random};
use proptest::prelude::*;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

// ------------------------------------------------------------------------------------------------- generating

/// A change of an image; places and lengths are shares of 65,536.
#[derive(Clone, Debug)]
enum Edit {
    /// New bytes over old ones.
    Overwrite { at: u16, len: usize, seed: u64 },
    /// Every so many bytes changed a little, as addresses in a program.
    Adjust { at: u16, len: usize, every: usize, by: u8 },
    /// Bytes copied elsewhere, at any offset.
    Copy { from: u16, to: u16, len: usize },
    /// Two blocks exchanged.
    Swap { a: u16, b: u16 },
    /// Two runs of eight blocks exchanged.
    SwapRuns { a: u16, b: u16 },
    /// Everything behind moves towards the end.
    Insert { at: u16, len: usize, seed: u64 },
    /// Everything behind moves towards the start.
    Remove { at: u16, len: usize },
    /// All blocks in another order.
    Shuffle { seed: u64 },
    /// Zeros.
    Zero { at: u16, len: usize },
    /// Another length: cut, or grown by zeros or by data.
    Resize { to: usize, seed: Option<u64> },
    /// Everything moves round.
    Rotate { by: u16 },
}

fn edits() -> impl Strategy<Value = Edit> {
    // Lengths around what matters: bytes, sectors, blocks, batches.
    let len = || prop_oneof![1..600usize, 3000..9000usize, Just(BLOCK), Just(8 * BLOCK), 1..80_000usize];
    let at = any::<u16>;
    prop_oneof![
        3 => (at(), len(), any::<u64>()).prop_map(|(at, len, seed)| Edit::Overwrite { at, len, seed }),
        2 => (at(), len(), 3..300usize, any::<u8>()).prop_map(|(at, len, every, by)| Edit::Adjust { at, len, every, by }),
        3 => (at(), at(), len()).prop_map(|(from, to, len)| Edit::Copy { from, to, len }),
        2 => (at(), at()).prop_map(|(a, b)| Edit::Swap { a, b }),
        3 => (at(), at()).prop_map(|(a, b)| Edit::SwapRuns { a, b }),
        3 => (at(), len(), any::<u64>()).prop_map(|(at, len, seed)| Edit::Insert { at, len, seed }),
        3 => (at(), len()).prop_map(|(at, len)| Edit::Remove { at, len }),
        1 => any::<u64>().prop_map(|seed| Edit::Shuffle { seed }),
        2 => (at(), len()).prop_map(|(at, len)| Edit::Zero { at, len }),
        1 => (0..300_000usize, any::<Option<u64>>()).prop_map(|(to, seed)| Edit::Resize { to, seed }),
        2 => at().prop_map(|by| Edit::Rotate { by }),
    ]
}

/// A share of a length.
fn place(share: u16, len: usize) -> usize {
    share as usize * len / 65_536
}

fn apply(image: &mut Vec<u8>, edit: &Edit) {
    let size = image.len();
    let range = |at: u16, len: usize| place(at, size)..(place(at, size) + len).min(size);
    match *edit {
        Edit::Overwrite { at, len, seed } => {
            let range = range(at, len);
            let len = range.len();
            image[range].copy_from_slice(&random(seed, len));
        }
        Edit::Adjust { at, len, every, by } => {
            image[range(at, len)].iter_mut().step_by(every).for_each(|byte| *byte = byte.wrapping_add(by));
        }
        Edit::Copy { from, to, len } => {
            let (from, to) = (place(from, size), place(to, size));
            let len = len.min(size - from).min(size - to);
            image.copy_within(from..from + len, to);
        }
        Edit::Swap { a, b } => swap(image, a, b, 1),
        Edit::SwapRuns { a, b } => swap(image, a, b, 8),
        Edit::Insert { at, len, seed } => {
            let at = place(at, size);
            image.splice(at..at, random(seed, len));
        }
        Edit::Remove { at, len } => drop(image.drain(range(at, len))),
        Edit::Shuffle { seed } => {
            let whole = size / BLOCK;
            let shuffled = common::reorder(image, &Rng::new(seed).permutation(whole));
            image[..whole * BLOCK].copy_from_slice(&shuffled);
        }
        Edit::Zero { at, len } => image[range(at, len)].fill(0),
        Edit::Resize { to, seed } => {
            let new = random(seed.unwrap_or(0), to.saturating_sub(size));
            image.truncate(to);
            image.extend(new.iter().map(|byte| if seed.is_some() { *byte } else { 0 }));
        }
        Edit::Rotate { by } => image.rotate_left(place(by, size)),
    }
}

fn swap(image: &mut [u8], a: u16, b: u16, blocks: usize) {
    let runs = image.len() / (BLOCK * blocks);
    let (a, b) = (place(a, runs) * blocks * BLOCK, place(b, runs) * blocks * BLOCK);
    if a != b {
        let (low, high) = (a.min(b), a.max(b));
        let (head, tail) = image.split_at_mut(high);
        head[low..low + blocks * BLOCK].swap_with_slice(&mut tail[..blocks * BLOCK]);
    }
}

/// A pair of images: small enough to be printed when a case fails.
#[derive(Clone, Debug)]
struct Pair {
    /// Zeros, text or random data: kind, blocks, seed.
    extents: Vec<(u8, usize, u64)>,
    /// Bytes behind the last whole block.
    tail: usize,
    /// From the old image to the new.
    edits: Vec<Edit>,
}

impl Pair {
    fn images(&self) -> (Vec<u8>, Vec<u8>) {
        let mut old = Vec::new();
        for (kind, blocks, seed) in &self.extents {
            let len = blocks * BLOCK;
            match kind {
                0 => old.resize(old.len() + len, 0),
                1 => old.extend((0..len).map(|i| b"configuration = value\n"[(i + *seed as usize % 22) % 22])),
                _ => old.extend(random(*seed, len)),
            }
        }
        old.truncate(64 * BLOCK);
        old.extend(random(7, self.tail));
        let mut new = old.clone();
        self.edits.iter().for_each(|edit| apply(&mut new, edit));
        new.truncate(100 * BLOCK + 5);
        (old, new)
    }
}

/// Up to 64 blocks, of any length.
fn pairs() -> impl Strategy<Value = Pair> {
    let extents = proptest::collection::vec((0..4u8, 1..16usize, any::<u64>()), 0..8);
    let tail = prop_oneof![2 => Just(0usize), 1 => 1..BLOCK, 1 => Just(512)];
    let edits = proptest::collection::vec(edits(), 0..8);
    (extents, tail, edits).prop_map(|(extents, tail, edits)| Pair { extents, tail, edits })
}

// --------------------------------------------------------------------------------------------------- patching

fn delta_of(scene: &Scene, old: &[u8], new: &[u8], options: &DiffOptions) -> Opened {
    let (old, new, delta) = (scene.write("old", old), scene.write("new", new), scene.path("delta"));
    diff(&old, &new, &delta, options, &Silent).unwrap_or_else(|e| panic!("diff fails: {e}"));
    open_delta(&delta, 64 << 20).unwrap_or_else(|e| panic!("the delta is refused: {e}"))
}

fn options(threads: usize) -> DiffOptions {
    DiffOptions { threads, level: 1, ..DiffOptions::default() }
}

fn patch(opened: &Opened, device: &dyn Device, verify: Verify) -> Result<PatchReport, Error> {
    let options = PatchOptions { verify, ..PatchOptions::default() };
    patch_device(opened, Path::new("delta"), device, &options, &AtomicBool::new(false), &Silent)
}

/// A device of fixed size that holds an image and, behind it, anything.
fn fixed(image: &[u8], other: &[u8], room: usize) -> Vec<u8> {
    let mut bytes = random(99, image.len().max(other.len()).next_multiple_of(BLOCK) + room);
    bytes[..image.len()].copy_from_slice(image);
    bytes
}

fn cases(ordinary: u32) -> ProptestConfig {
    // Failures are printed with their input; nothing is written beside the sources.
    ProptestConfig {
        cases: if long() { 20 * ordinary } else { ordinary },
        failure_persistence: None,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn any_pair_round_trips(pair in pairs(), room in 0..3usize, verify in 0..3usize) {
        let (old, new) = pair.images();
        let scene = Scene::new();
        let opened = delta_of(&scene, &old, &new, &options(2));
        let verify = [Verify::Full, Verify::All, Verify::Touched][verify];
        let counts = opened.delta.route.counts;
        prop_assert!(counts.final_blocks >= changed_blocks(&old, &new));

        // As a file: exactly the new image is left.
        let file = MemoryDevice::new(old.clone(), true);
        let done = patch(&opened, &file, verify).unwrap_or_else(|e| panic!("on a file: {e}"));
        assert_same(&file.contents(), &new, "the file");
        prop_assert_eq!(done.planned_blocks, counts.final_blocks + counts.scratch_blocks);
        let most = done.planned_blocks * BLOCK as u64;
        prop_assert!(done.walked.written <= most && done.walked.scratch <= counts.scratch_blocks * BLOCK as u64);
        if done.before == State::Old {
            prop_assert!(done.walked.written + BLOCK as u64 > most, "{} of {} bytes written", done.walked.written, most);
            prop_assert_eq!(done.walked.scratch, counts.scratch_blocks * BLOCK as u64);
        }
        let again = patch(&opened, &file, verify).unwrap_or_else(|e| panic!("again: {e}"));
        prop_assert_eq!((again.before, again.patched), (State::New, false));

        // As a device: what lies behind the new image is as it was.
        let before = fixed(&old, &new, room * BLOCK + 512);
        let device = MemoryDevice::new(before.clone(), false);
        patch(&opened, &device, verify).unwrap_or_else(|e| panic!("on a device: {e}"));
        let found = device.contents();
        assert_same(&found[..new.len()], &new, "the device");
        assert_same(&found[new.len()..], &before[new.len()..], "behind the new image");

        // In another slot, whatever that holds; and again, where nothing is left to be written.
        let before = random(98, new.len() + room * BLOCK);
        let slot = MemoryDevice::new(before.clone(), false);
        let source = MemoryDevice::new(fixed(&old, &[], room * BLOCK), false);
        let build = || {
            let (stop, options) = (AtomicBool::new(false), SlotOptions::default());
            let done = patch_slot_device(&opened, Path::new("delta"), (&source, &slot), &options, &stop, &Silent);
            done.unwrap_or_else(|e| panic!("in another slot: {e}")).outcome
        };
        build();
        prop_assert_eq!(build(), Outcome::UpToDate);
        assert_same(&slot.contents(), &[&new[..], &before[new.len()..]].concat(), "the slot");
    }

    #[test]
    fn any_patch_can_be_undone_from_any_state(pair in pairs(), resizable: bool, between in any::<u64>()) {
        let (old, new) = pair.images();
        let scene = Scene::new();
        let opened = delta_of(&scene, &old, &new, &options(2));
        let before = if resizable { old.clone() } else { fixed(&old, &new, 512) };
        let device = MemoryDevice::new(before.clone(), resizable);
        let options = PatchOptions { undo: Some(scene.path("undo")), ..PatchOptions::default() };
        let stop = AtomicBool::new(false);
        let done = patch_device(&opened, Path::new("delta"), &device, &options, &stop, &Silent);
        prop_assert!(done.is_ok(), "{done:?}");
        prop_assert_eq!(scene.path("undo").exists(), done.unwrap().patched);
        prop_assume!(scene.path("undo").exists());
        let undo = open_delta(&scene.path("undo"), 64 << 20).unwrap();
        prop_assert!(undo.delta.route.counts.scratch_blocks == 0 && undo.order.source_blocks == 0);
        prop_assert_eq!(undo.delta.route.old, Some(opened.delta.header.new));
        let back = undo.delta.header.new;
        prop_assert!(back.blake3 == *blake3::hash(&before[..back.len as usize]).as_bytes());
        prop_assert_eq!(back.crc, crc32fast::hash(&before[..back.len as usize]));
        let after = device.contents();
        patch(&undo, &device, Verify::Full).unwrap_or_else(|e| panic!("back: {e}"));
        assert_same(&device.contents(), &before, "back");

        // What the patch writes may be in any state; a file has the longer length then. One that held nothing cannot be told.
        let mut rng = Rng::new(between);
        let len = before.len().max(after.len());
        let mut state = before.clone();
        state.resize(len, 0);
        for block in opened.order.touched.extents().flat_map(|extent| extent.start..extent.end()) {
            let bytes = block as usize * BLOCK..(new.len()).min((block as usize + 1) * BLOCK);
            match rng.next() % 4 {
                0 => state[bytes.clone()].copy_from_slice(&new[bytes]),
                1 => state[bytes].fill(between as u8),
                _ => {}
            }
        }
        prop_assume!(!before.is_empty());
        let device = MemoryDevice::new(state, resizable);
        patch(&undo, &device, Verify::Full).unwrap_or_else(|e| panic!("from between: {e}"));
        assert_same(&device.contents(), &before, "back from between");
    }

    #[test]
    fn the_delta_does_not_depend_on_the_threads(pair in pairs(), level in 1..8u32) {
        let (old, new) = pair.images();
        let scene = Scene::new();
        let mut first = None;
        for threads in [1, 2, 3] {
            delta_of(&scene, &old, &new, &DiffOptions { level, threads, ..DiffOptions::default() });
            let delta = scene.read("delta");
            assert_same(first.get_or_insert(delta.clone()), &delta, &format!("the delta by {threads} threads"));
        }
    }

    #[test]
    fn a_device_that_fails_is_left_so_that_the_next_run_finishes(pair in pairs(), share in any::<u16>()) {
        let (old, new) = pair.images();
        let scene = Scene::new();
        let opened = delta_of(&scene, &old, &new, &options(2));
        let count = Faulty::new(fixed(&old, &new, 512), Fault::None);
        patch(&opened, &count, Verify::Full).unwrap();
        let writes = count.writes.load(Ordering::Relaxed);
        prop_assume!(writes > 0);
        // Fails at some write, half of which lands; then at each one that follows.
        let mut bytes = fixed(&old, &new, 512);
        let tail = bytes[new.len()..].to_vec();
        for fail_at in [place(share, writes as usize) as u64, 0, 1] {
            let device = Faulty::new(bytes, Fault::Fail { at: fail_at });
            match patch(&opened, &device, Verify::Full) {
                Ok(_) => {}
                Err(e @ Error::Stopped { .. }) => prop_assert_eq!(e.exit_code(), 3),
                Err(e) => prop_assert!(false, "exit code {}: {e}", e.exit_code()),
            }
            bytes = device.inner.contents();
        }
        let device = MemoryDevice::new(bytes, false);
        patch(&opened, &device, Verify::Full).unwrap_or_else(|e| panic!("the last run: {e}"));
        let found = device.contents();
        assert_same(&found[..new.len()], &new, "the device that failed and was patched again");
        assert_same(&found[new.len()..], &tail, "behind the new image");
    }

    #[test]
    fn one_wrong_bit_is_never_patched_into_a_wrong_image(pair in pairs(), at in any::<u16>(), bit in 0..8u8) {
        let (old, new) = pair.images();
        let scene = Scene::new();
        let opened = delta_of(&scene, &old, &new, &options(2));
        let mut before = fixed(&old, &new, 512);
        let at = place(at, before.len());
        before[at] ^= 1 << bit;
        let device = MemoryDevice::new(before.clone(), false);
        let found = patch(&opened, &device, Verify::Full);
        let after = device.contents();
        match found {
            Ok(_) => assert_same(&after[..new.len()], &new, "patched"),
            Err(e) => {
                prop_assert_eq!(e.exit_code(), 1, "{}", e);
                assert_same(&after, &before, "refused");
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------- bad devices

/// What a device does wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// A write, counted from 0, and all that follow fail; the first half of the first one lands.
    Fail {
        at: u64,
    },
    /// A write is lost, and nobody told.
    Lose {
        at: u64,
    },
    /// A write also lands elsewhere.
    Misdirect {
        at: u64,
        to: u64,
    },
}

/// A device in memory that has a fault.
struct Faulty {
    inner: MemoryDevice,
    fault: Fault,
    writes: AtomicU64,
}

impl Faulty {
    fn new(bytes: Vec<u8>, fault: Fault) -> Self {
        Self { inner: MemoryDevice::new(bytes, false), fault, writes: AtomicU64::new(0) }
    }
}

impl Device for Faulty {
    fn name(&self) -> String {
        "a bad device".into()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Fault::Fail { at } if number >= at => {
                if number == at {
                    self.inner.write(offset, &data[..data.len() / 2])?;
                }
                let (name, len) = (self.name(), data.len() as u64);
                Err(DeviceError { operation: "writing", name, offset, len, source: std::io::Error::other("worn out") })
            }
            Fault::Lose { at } if number == at => Ok(()),
            Fault::Misdirect { at, to } if number == at => {
                self.inner.write(to, &data[..BLOCK])?;
                self.inner.write(offset, data)
            }
            _ => self.inner.write(offset, data),
        }
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.write(offset, &vec![0; len as usize])
    }
    fn sync(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[test]
fn a_lost_write_is_found_by_every_way_to_verify() {
    let (old, new) = common::chain();
    let scene = Scene::new();
    let opened = delta_of(&scene, &old, &new, &options(1));
    for verify in [Verify::Full, Verify::All, Verify::Touched] {
        for at in 0..3 {
            let device = Faulty::new(old.clone(), Fault::Lose { at });
            let mended = match patch(&opened, &device, verify) {
                Err(e @ Error::Damaged { .. }) => (e.exit_code() == 4).then_some(false),
                // The sources of that batch are still there.
                Err(e @ Error::Stopped { .. }) => (e.exit_code() == 3).then_some(true),
                other => panic!("write {at} was lost, {verify:?}: {other:?}"),
            };
            let again = patch(&opened, &device, verify);
            assert_eq!(Some(again.is_ok()), mended, "write {at} was lost, {verify:?}, run again: {again:?}");
        }
    }
}

#[test]
fn a_misdirected_write_is_found_by_reading_everything_again() {
    // More than a part of 1 MiB, so that there are parts that `full` does not read again.
    let old = random(98, 3 << 20);
    let mut new = old.clone();
    new[..2 * BLOCK].copy_from_slice(&random(97, 2 * BLOCK));
    let scene = Scene::new();
    let opened = delta_of(&scene, &old, &new, &options(1));
    let near = Fault::Misdirect { at: 0, to: 10 * BLOCK as u64 };
    let far = Fault::Misdirect { at: 0, to: 2 << 20 };
    for (verify, fault, found) in [
        (Verify::All, near, true),
        (Verify::All, far, true),
        (Verify::Full, near, true),
        // Documented: these read back what was written, and no more.
        (Verify::Full, far, false),
        (Verify::Touched, near, false),
    ] {
        let device = Faulty::new(old.clone(), fault);
        let result = patch(&opened, &device, verify);
        assert_eq!(matches!(result, Err(Error::Damaged { .. })), found, "{verify:?}, {fault:?}: {result:?}");
    }
}

#[test]
fn a_failure_before_the_first_write_is_a_refusal() {
    let (old, new) = common::chain();
    let scene = Scene::new();
    let opened = delta_of(&scene, &old, &new, &options(1));
    // Too small for the new image, as a device; and for the shorter of both, as a file.
    for (len, resizable) in [(old.len() - 1, false), (old.len() - 1, true), (0, true)] {
        let device = MemoryDevice::new(old[..len].to_vec(), resizable);
        let e = patch(&opened, &device, Verify::Full).expect_err("too small");
        assert!(matches!(e, Error::TooSmall { .. }) && e.exit_code() == 1, "{e}");
        assert_same(&device.contents(), &old[..len], "too small");
    }
}
