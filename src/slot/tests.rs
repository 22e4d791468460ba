//! Building side by side, on devices in memory: steps that `diff` does not write yet, and devices that fail.

use super::build::{Holder, each_source};
use super::*;
use crate::blockset::BlockSet;
use crate::compare::{View, compare};
use crate::delta::check::check_order;
use crate::delta::step::{Step, StepKind};
use crate::delta::stream::Compression;
use crate::delta::writer::{DeltaWriter, Identity, NewBatch};
use crate::device::{DeviceError, MemoryDevice};
use crate::message_rows::assert_row;
use crate::monitor::Silent;
use crate::units::{BLOCK, Extent};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const B: usize = BLOCK as usize;

/// Bytes that differ from block to block and do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; len];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn delta_of(old: &[u8], new: &[u8], batches: &[NewBatch]) -> Opened {
    let (old_data, new_data) = ([0..old.len() as u64], [0..new.len() as u64]);
    let (old_view, new_view) = (View { bytes: old, data: &old_data }, View { bytes: new, data: &new_data });
    let comparison = compare(old_view, new_view, 1, &Silent);
    let mut touched = BlockSet::new();
    batches.iter().flat_map(|batch| &batch.extents).for_each(|extent| touched.insert(*extent));
    let (untouched, _) = comparison.untouched(old_view, &touched, 0, 1);
    let folder = tempfile::tempdir().unwrap();
    let compression = |_| Compression { level: 3, window_log: 18, threads: 1 };
    let mut writer = DeltaWriter::new(old, new, &touched, folder.path(), compression);
    batches.iter().for_each(|batch| writer.add(batch).unwrap());
    let (old, new) = (comparison.old, comparison.new);
    let mut bytes = Vec::new();
    writer
        .finish(&Identity { old: Some(old), new, untouched, region_log: 0, regions: Vec::new() }, 3, &mut bytes)
        .unwrap();
    let delta = Delta::open(Arc::new(bytes), u64::MAX).unwrap();
    let order = check_order(&delta).unwrap();
    Opened { delta, order }
}

fn data(start: u64, count: u64, steps: &[(StepKind, u64, u64)]) -> NewBatch {
    let mut dst = start * BLOCK;
    let step = |(kind, len, src): &(StepKind, u64, u64)| {
        dst += len;
        Step { kind: *kind, dst: dst - len, len: *len, src: *src }
    };
    NewBatch { extents: vec![Extent { start, count }], steps: steps.iter().map(step).collect(), ..NewBatch::default() }
}

/// Two blocks rewritten at the end of three parts, and a literal one in the middle.
fn pair() -> (Vec<u8>, Vec<u8>, Opened) {
    let old = noise(1, (3 * crate::units::PART) as usize);
    let mut new = old.clone();
    new[300 * B..301 * B].copy_from_slice(&noise(2, B));
    new[766 * B..].fill(0);
    let zeros = NewBatch { zero: true, extents: vec![Extent { start: 766, count: 2 }], ..NewBatch::default() };
    let opened = delta_of(&old, &new, &[data(300, 1, &[(StepKind::Literal, BLOCK, 0)]), zeros]);
    (old, new, opened)
}

fn onto(opened: &Opened, old: &dyn Device, target: &dyn Device, stop: &AtomicBool) -> Result<Outcome, Error> {
    let options = SlotOptions::default();
    let done = patch_slot_device(opened, Path::new("delta"), (old, target), &options, stop, &Silent);
    done.map(|report| report.outcome)
}

fn go_on() -> AtomicBool {
    AtomicBool::new(false)
}

#[test]
fn sources_in_the_new_image_are_read_where_it_is_built_or_where_it_is_old() {
    let old = noise(3, 6 * B);
    let mut new = old.clone();
    new[..B].copy_from_slice(&noise(4, B));
    // Across the border between a block that is made and one that stays.
    let copied = new[100..100 + B].to_vec();
    new[2 * B..3 * B].copy_from_slice(&copied);
    let mut added = new[3000..3000 + B].to_vec();
    added[50] ^= 0x3C;
    new[3 * B..4 * B].copy_from_slice(&added);
    let made = [(StepKind::CopyNew, BLOCK, 100), (StepKind::AddNew, BLOCK, 3000)];
    let opened = delta_of(&old, &new, &[data(0, 1, &[(StepKind::Literal, BLOCK, 0)]), data(2, 2, &made)]);
    let target = MemoryDevice::new(noise(5, 7 * B), false);
    let source = MemoryDevice::new(old, false);
    assert_eq!(onto(&opened, &source, &target, &go_on()).unwrap(), Outcome::Built { written: 6 * BLOCK });
    assert_eq!(target.contents()[..6 * B], new);
    assert_eq!(target.contents()[6 * B..], noise(5, 7 * B)[6 * B..]);
    assert_eq!(onto(&opened, &source, &target, &go_on()).unwrap(), Outcome::UpToDate);
}

#[test]
fn who_holds_a_source_is_told_block_by_block() {
    let mut touched = BlockSet::new();
    touched.insert(Extent { start: 1, count: 2 });
    let cut = |kind, src, len| {
        let mut found = Vec::new();
        let step = Step { kind, dst: 9 * BLOCK, len, src };
        let noted = each_source(&step, &touched, |bytes, holder| {
            found.push((bytes, holder));
            Ok(())
        });
        noted.unwrap();
        found
    };
    assert!(cut(StepKind::Literal, 0, 9000).is_empty() && cut(StepKind::Zero, 0, 9000).is_empty());
    assert_eq!(cut(StepKind::Add, 10, 9000), [(10..9010, Holder::Old)]);
    let (first, last) = ((10..BLOCK, Holder::Old), (3 * BLOCK..3 * BLOCK + 5, Holder::Old));
    let whole = cut(StepKind::CopyNew, 10, 3 * BLOCK - 5);
    assert_eq!(whole, [first, (BLOCK..3 * BLOCK, Holder::New), last]);
    assert_eq!(cut(StepKind::AddNew, BLOCK + 7, 9), [(BLOCK + 7..BLOCK + 16, Holder::New)]);
}

/// A device on which something happens at the first write.
struct Troubled<'a> {
    inner: &'a MemoryDevice,
    trouble: Trouble<'a>,
}

enum Trouble<'a> {
    /// The user asks to stop.
    Stop(&'a AtomicBool),
    /// Nothing can be written.
    Fail,
    /// It only seems to be written.
    Lose,
}

impl Device for Troubled<'_> {
    fn name(&self) -> String {
        "slot".into()
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
        match self.trouble {
            Trouble::Stop(stop) => {
                stop.store(true, Ordering::SeqCst);
                self.inner.write(offset, data)
            }
            Trouble::Lose => Ok(()),
            Trouble::Fail => {
                let (len, source) = (data.len() as u64, io::Error::from_raw_os_error(5));
                Err(DeviceError { operation: "writing", name: self.name(), offset, len, source })
            }
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
fn what_was_stopped_or_failed_says_so_and_is_finished_by_the_next_run() {
    let (old, new, opened) = pair();
    let source = MemoryDevice::new(old, false);
    let stop = go_on();
    for (trouble, why) in [
        (Trouble::Stop(&stop), "asked to stop"),
        (Trouble::Fail, "writing slot failed"),
        (Trouble::Lose, "reading back after writing"),
    ] {
        let inner = MemoryDevice::new(noise(6, new.len()), false);
        stop.store(false, Ordering::SeqCst);
        let error = onto(&opened, &source, &Troubled { inner: &inner, trouble }, &stop).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        let text = error.to_string();
        assert!(text.contains(why) && text.contains("OLD is as it was"), "{text}");
        assert_row(&text, if why.starts_with("reading") { "slot-unreliable" } else { "slot-stopped" });
        assert!(matches!(onto(&opened, &source, &inner, &go_on()), Ok(Outcome::Built { .. })));
        assert_eq!(inner.contents(), new);
    }
}

#[test]
fn nothing_is_written_before_old_has_been_checked() {
    let (mut old, new, opened) = pair();
    let inner = MemoryDevice::new(noise(7, new.len()), false);
    let target = Troubled { inner: &inner, trouble: Trouble::Fail };
    let asked = onto(&opened, &MemoryDevice::new(old.clone(), false), &target, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(asked, Error::Interrupted), "{asked}");
    let short = onto(&opened, &MemoryDevice::new(old[1..].to_vec(), true), &target, &go_on()).unwrap_err();
    assert!(matches!(short, Error::TooSmall { .. }), "{short}");
    let swapped = onto(&opened, &MemoryDevice::new(new, false), &target, &go_on()).unwrap_err();
    assert!(swapped.exit_code() == 1 && swapped.to_string().contains("mixed up"), "{swapped}");
    // Also where no batch reads it.
    old[766 * B] ^= 1;
    let wrong = onto(&opened, &MemoryDevice::new(old, false), &target, &go_on()).unwrap_err();
    assert!(wrong.exit_code() == 1 && wrong.to_string().contains("instead of"), "{wrong}");
}
