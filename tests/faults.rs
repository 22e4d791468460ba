//! Every single operation on a target fails once, in turn: what is said of it is true, and the same command finishes.
//! And targets that change while they are being patched.

use blkpatch::device::{Device, DeviceError, FileTarget, MemoryDevice};
use blkpatch::diff::{DiffOptions, diff};
use blkpatch::error::exit;
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, PatchReport, open_delta, patch_device};
use blkpatch::target::Verify;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

const BLOCK: usize = 4096;

type Patched = Result<PatchReport, blkpatch::error::Error>;

/// How much of what was to be written is there after a failure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Landed {
    Nothing,
    /// Sectors by turns.
    Some,
    All,
}

#[derive(Default)]
struct State {
    /// Operations so far.
    operations: usize,
    /// What stood where something was written since the last sync, by sector.
    unsynced: BTreeMap<u64, Vec<u8>>,
    /// The operation that failed.
    failed: Option<&'static str>,
    /// Operations that changed the device since it failed.
    changed_since: usize,
}

/// A device of which one operation fails. A sync that fails loses what it was to make durable, as disks do.
struct Flaky<'a> {
    inner: &'a MemoryDevice,
    fails: usize,
    landed: Landed,
    state: Mutex<State>,
}

impl<'a> Flaky<'a> {
    fn new(inner: &'a MemoryDevice, fails: usize, landed: Landed) -> Self {
        Self { inner, fails, landed, state: Mutex::default() }
    }

    fn failed(&self) -> Option<&'static str> {
        self.state.lock().unwrap().failed
    }

    /// Counts an operation; an error if it is the one.
    fn operation(&self, operation: &'static str, offset: u64, len: u64) -> Result<(), DeviceError> {
        let mut state = self.state.lock().unwrap();
        state.operations += 1;
        let changes = !matches!(operation, "reading" | "dropping the cache of" | "syncing");
        state.changed_since += usize::from(state.failed.is_some() && changes);
        if state.operations != self.fails {
            return Ok(());
        }
        state.failed = Some(operation);
        let source = io::Error::from_raw_os_error(5);
        Err(DeviceError { operation, name: self.name(), offset, len, source })
    }

    /// Puts back what was not durable.
    fn lose(&self) {
        let unsynced = std::mem::take(&mut self.state.lock().unwrap().unsynced);
        for (i, (offset, sector)) in unsynced.into_iter().enumerate() {
            let lost = self.landed == Landed::Nothing || self.landed == Landed::Some && i % 2 == 0;
            if lost && offset + sector.len() as u64 <= self.inner.len() {
                self.inner.write(offset, &sector).unwrap();
            }
        }
    }
}

impl Device for Flaky<'_> {
    fn name(&self) -> String {
        "/dev/flaky".into()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn resizable(&self) -> bool {
        self.inner.resizable()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.operation("resizing", len, 0)?;
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.operation("reading", offset, buffer.len() as u64)?;
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let result = self.operation("writing", offset, data.len() as u64);
        for (i, sector) in data.chunks(512).enumerate() {
            let at = offset + i as u64 * 512;
            if result.is_ok() || self.landed == Landed::All || self.landed == Landed::Some && i % 2 == 1 {
                let mut before = vec![0; sector.len()];
                self.inner.read(at, &mut before)?;
                self.state.lock().unwrap().unsynced.entry(at).or_insert(before);
                self.inner.write(at, sector)?;
            }
        }
        result
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.write(offset, &vec![0; len as usize])
    }
    fn reserve(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.operation("reserving space in", offset, len)
    }
    fn sync(&self) -> Result<(), DeviceError> {
        match self.operation("syncing", 0, 0) {
            Ok(()) => self.state.lock().unwrap().unsynced.clear(),
            Err(e) => {
                self.lose();
                return Err(e);
            }
        }
        Ok(())
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        self.operation("dropping the cache of", 0, 0)
    }
}

fn patch(opened: &Opened, device: &dyn Device, verify: Verify) -> Patched {
    let options = PatchOptions { verify, ..PatchOptions::default() };
    patch_device(opened, Path::new("the.delta"), device, &options, &AtomicBool::new(false), &Silent)
}

/// Bytes that do not compress.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Swaps, so that there are saves; edits, zeros, and `more` bytes at the end.
fn pair(more: usize) -> (Vec<u8>, Vec<u8>) {
    let old = noise(1, 40 * BLOCK);
    let mut new = old.clone();
    for (a, b) in [(3, 20), (4, 21), (12, 30)] {
        new[a * BLOCK..(a + 1) * BLOCK].copy_from_slice(&old[b * BLOCK..(b + 1) * BLOCK]);
        new[b * BLOCK..(b + 1) * BLOCK].copy_from_slice(&old[a * BLOCK..(a + 1) * BLOCK]);
    }
    new[7 * BLOCK..9 * BLOCK].fill(0);
    new[33 * BLOCK + 5] ^= 1;
    new.extend(noise(2, more));
    (old, new)
}

fn delta_of(old: &[u8], new: &[u8]) -> (tempfile::TempDir, Opened) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("old"), old).expect("old");
    std::fs::write(path("new"), new).expect("new");
    diff(&path("old"), &path("new"), &path("delta"), &DiffOptions::default(), &Silent).expect("a delta");
    let opened = open_delta(&path("delta"), 1 << 30).expect("a good delta");
    (folder, opened)
}

/// Lets each operation of a run fail in turn; returns what failed how often.
fn every_operation_fails(
    old: &[u8],
    new: &[u8],
    resizable: bool,
    verify: Verify,
    landed: Landed,
) -> BTreeMap<&'static str, usize> {
    let (_folder, opened) = delta_of(old, new);
    let counts = &opened.delta.route.counts;
    assert!(counts.scratch_blocks > 0 && counts.barriers > 1, "this pair is to be hard: {counts:?}");
    let mut seen = BTreeMap::new();
    for fails in 1.. {
        let mut content = old.to_vec();
        content.resize(if resizable { old.len() } else { old.len().max(new.len()) }, 7);
        let inner = MemoryDevice::new(content.clone(), resizable);
        let device = Flaky::new(&inner, fails, landed);
        let result = patch(&opened, &device, verify);
        let Some(operation) = device.failed() else {
            result.expect("nothing failed");
            return seen;
        };
        *seen.entry(operation).or_insert(0) += 1;
        let said = format!("operation {fails} ({operation}), {verify:?}, {landed:?}");
        let e = result.expect_err(&said);
        let text = e.to_string();
        assert!(
            text.contains("/dev/flaky") && text.contains(operation) && text.contains("os error 5"),
            "{said}: {text}"
        );
        assert!(text.contains("the same command"), "{said}: {text}");
        assert_eq!(device.state.lock().unwrap().changed_since, 0, "{said}: changed after the failure");
        assert_eq!(text.contains("Nothing was written"), e.exit_code() == exit::REFUSED, "{said}: {text}");
        match e.exit_code() {
            exit::REFUSED => assert!(inner.contents() == content, "{said}: {text}, and yet it was written"),
            code => assert_eq!(code, exit::STOPPED, "{said}: {text}"),
        }
        patch(&opened, &inner, verify).unwrap_or_else(|e| panic!("{said}: run again: {e}"));
        assert!(inner.contents()[..new.len()] == *new, "{said}: another image");
        assert_eq!(inner.contents().len(), if resizable { new.len() } else { content.len() }, "{said}");
    }
    seen
}

#[test]
fn every_operation_fails_once() {
    let (short, long) = pair(3 * BLOCK + 77);
    let (same_old, same_new) = pair(0);
    for landed in [Landed::Nothing, Landed::Some, Landed::All] {
        for verify in [Verify::Full, Verify::All, Verify::Touched] {
            let seen = every_operation_fails(&same_old, &same_new, false, verify, landed);
            for operation in ["reading", "writing", "syncing", "dropping the cache of"] {
                assert!(seen.get(operation).is_some_and(|n| *n >= 2), "{operation}: {seen:?}");
            }
            every_operation_fails(&short, &long, false, verify, landed);
            let seen = every_operation_fails(&short, &long, true, verify, landed);
            assert!(seen["resizing"] == 1 && seen.contains_key("reserving space in"), "{seen:?}");
            let seen = every_operation_fails(&long, &short, true, verify, landed);
            assert_eq!(seen["resizing"], 1, "{seen:?}");
        }
    }
}

// ----------------------------------------------------------------------------- targets that change under the run

/// A file that another program cuts at one of the syncs, or writes into.
struct Meddled<'a> {
    inner: FileTarget,
    syncs: Mutex<usize>,
    at_sync: usize,
    meddle: &'a (dyn Fn() + Sync),
}

impl Device for Meddled<'_> {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn resizable(&self) -> bool {
        self.inner.resizable()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        // Once the survey has read the last block.
        let end = offset + buffer.len() as u64 == self.inner.len();
        let result = self.inner.read(offset, buffer);
        if end && self.at_sync == 0 && std::mem::replace(&mut *self.syncs.lock().unwrap(), 100) < 100 {
            (self.meddle)();
        }
        result
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(offset, data)
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.write_zeros(offset, len)
    }
    fn reserve(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.reserve(offset, len)
    }
    fn sync(&self) -> Result<(), DeviceError> {
        let mut syncs = self.syncs.lock().unwrap();
        *syncs += 1;
        if *syncs == self.at_sync {
            (self.meddle)();
        }
        self.inner.sync()
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        self.inner.forget_cache()
    }
}

/// Patches a file that is changed by `meddle` at a sync; 0: behind the survey.
fn meddled(at_sync: usize, more: usize, meddle: impl Fn(&std::fs::File) + Sync) -> (Patched, Patched, bool) {
    let (old, new) = pair(more);
    let (folder, opened) = delta_of(&old, &new);
    let path = folder.path().join("target");
    std::fs::write(&path, &old).expect("target");
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("target");
    let inner = FileTarget::new(open(), &path);
    let meddle = || meddle(&open());
    let device = Meddled { inner, syncs: Mutex::new(0), at_sync, meddle: &meddle };
    let first = patch(&opened, &device, Verify::Full);
    let is_new = std::fs::read(&path).expect("target") == new;
    (first, patch(&opened, &FileTarget::new(open(), &path), Verify::Full), is_new)
}

#[test]
fn a_file_that_is_cut_between_survey_and_walk() {
    for more in [0, 5000] {
        // Block 38 is neither read nor written.
        let (first, second, _) = meddled(0, more, |file| file.set_len(38 * BLOCK as u64).unwrap());
        let e = first.expect_err("a file that was cut");
        assert_eq!(e.exit_code(), exit::REFUSED, "{e}");
        assert!(e.to_string().contains("its length changed from 163840 to 155648"), "{e}");
        assert!(e.to_string().contains("Nothing was written"), "{e}");
        // What was cut off is lost, and no run takes the rest for an old image.
        let e = second.expect_err("what is left of it");
        assert_eq!(e.exit_code(), exit::REFUSED, "{e}");
    }
}

#[test]
fn a_file_that_is_cut_during_the_walk() {
    for at_sync in 2..8 {
        let (first, second, is_new) = meddled(at_sync, 0, |file| file.set_len(38 * BLOCK as u64).unwrap());
        match first {
            // There are not as many syncs.
            Ok(_) => assert!(is_new && at_sync > 4, "cut at sync {at_sync}, and yet a success"),
            Err(e) => {
                assert_eq!(e.exit_code(), exit::STOPPED, "sync {at_sync}: {e}");
                assert!(e.to_string().contains("its length changed from 163840 to 155648"), "{e}");
                let e = second.expect_err("what is left of it");
                assert!([exit::REFUSED, exit::DAMAGED].contains(&e.exit_code()), "{e}");
                assert!(!is_new);
            }
        }
    }
}

#[test]
fn a_file_that_another_program_writes_into_is_never_called_new() {
    use std::os::unix::fs::FileExt;
    for at_sync in 2..8 {
        // In blocks that are read, written, and read back.
        for block in [3, 20, 33] {
            let at = (block * BLOCK + 100) as u64;
            let (first, second, is_new) = meddled(at_sync, 0, |file| file.write_all_at(b"meddled", at).unwrap());
            assert_eq!(first.is_ok(), is_new, "block {block}, sync {at_sync}: {first:?}");
            if let Err(e) = second {
                assert!([exit::DAMAGED, exit::REFUSED].contains(&e.exit_code()), "{e}");
            }
        }
    }
}
