//! `patch`: checks everything that can be checked, then writes, then checks the result.

use crate::apply::{WalkError, Walked, walk};
use crate::delta::Delta;
use crate::delta::check::{CheckedOrder, check_order_of};
use crate::device::Device;
use crate::disk::finish;
use crate::error::Error;
use crate::judge::{Progress, judge};
use crate::looking::{Look, Looked, Pending};
use crate::misplaced::suspicion;
use crate::monitor::Monitor;
use crate::opened::{read_all_but_order, refused, unless_stopped};
use crate::outlet::input_name;
use crate::target::{Mismatch, State, Survey, SurveyError, Verify};
use crate::target::{crc_of, reread_all, reread_touched, survey_seen};
use crate::undo::Undo;
use crate::units::{BLOCK, human};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub(crate) use crate::opened::open_delta_telling;
pub use crate::opened::{Opened, open_delta};

/// How to patch.
#[derive(Clone, Debug)]
pub struct PatchOptions {
    /// How much is checked.
    pub verify: Verify,
    /// Only check, and say what would be written.
    pub dry_run: bool,
    /// Bytes of memory that the delta may announce.
    pub memory_limit: u64,
    /// Where to keep a delta that takes the target back to what it holds before the first write.
    pub undo: Option<PathBuf>,
}

/// The memory that a delta may announce, unless the user says otherwise.
pub const DEFAULT_MEMORY_LIMIT: u64 = 1 << 30;

impl Default for PatchOptions {
    fn default() -> Self {
        Self { verify: Verify::Full, dry_run: false, memory_limit: DEFAULT_MEMORY_LIMIT, undo: None }
    }
}

/// What `patch` did.
#[derive(Clone, Debug)]
pub struct PatchReport {
    /// What the target held before.
    pub before: State,
    /// Whether the target was written (otherwise it was up to date, or this was a dry run).
    pub patched: bool,
    /// What was written.
    pub walked: Walked,
    /// Blocks that the order writes, scratch included.
    pub planned_blocks: u64,
    /// Time taken.
    pub elapsed: Duration,
}

/// Turns the old image on a target into the new one, in place.
///
/// # Errors
/// [`Error`]; its exit code tells whether the target is untouched.
pub fn patch(
    delta_path: &Path,
    target: &Path,
    options: &PatchOptions,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<PatchReport, Error> {
    let delta = read_all_but_order(delta_path, options.memory_limit, stop, monitor);
    let delta = delta.map_err(|e| unless_stopped(e, stop))?;
    let touched = delta.table.touched();
    let over = AtomicBool::new(false);
    let (looked, order) = std::thread::scope(|scope| {
        let order = Pending::start(scope, &over, || check_order_of(&delta, &touched));
        // Nobody is asked about a delta that will be refused.
        let order = if monitor.asks() { order.settled() } else { order };
        let look = Look { delta: &delta, delta_path, touched: &touched, options, stop, over: &over, monitor };
        (look.first(target), order.wait())
    });
    // Whatever the target is, a delta that breaks the rules is refused for that.
    let order = order.map_err(|e| unless_stopped(refused(delta_path, e), stop))?;
    let (device, looked) = looked?;
    let opened = Opened { delta, order: CheckedOrder { touched, ..order } };
    let report = patch_looked(&opened, input_name(delta_path), &*device, looked, options, stop, monitor)?;
    if !options.dry_run {
        finish(&*device, report.patched, monitor);
    }
    Ok(report)
}

/// As [`patch`], on a device that is open; `delta_path` is for messages.
///
/// # Errors
/// As [`patch`].
pub fn patch_device(
    opened: &Opened,
    delta_path: &Path,
    device: &dyn Device,
    options: &PatchOptions,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<PatchReport, Error> {
    let Opened { delta, order } = opened;
    let over = &AtomicBool::new(false);
    let looked = Look { delta, delta_path, touched: &order.touched, options, stop, over, monitor }.at(device)?;
    patch_looked(opened, delta_path, device, looked, options, stop, monitor)
}

fn patch_looked(
    opened: &Opened,
    delta_path: &Path,
    device: &dyn Device,
    Looked { start, len, seen }: Looked,
    options: &PatchOptions,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<PatchReport, Error> {
    let Opened { delta, order } = opened;
    let survey = survey_seen(device, delta, order, options.verify, seen, stop, monitor);
    let survey = survey.map_err(|e| e.untouched(delta_path))?;
    let counts = &delta.route.counts;
    let mut report = PatchReport {
        before: survey.state.clone(),
        patched: false,
        walked: Walked::default(),
        planned_blocks: counts.final_blocks + counts.scratch_blocks,
        elapsed: Duration::ZERO,
    };
    if let State::Neither(mismatch) = &survey.state {
        return Err(refusal(device, delta, mismatch));
    }
    if let State::Convertible { done } = survey.state {
        // Checking only what is touched cannot tell the old image from one that differs elsewhere; and which image was the
        // old one, a delta from a bare signature does not know.
        if done > 0 || options.verify != Verify::Touched && delta.route.old.is_some() {
            monitor.note(&convertible_note(device, delta, done, &survey.redo));
        }
    }
    if let Some(file) = &options.undo {
        let working = working_len(device, delta, &survey.state);
        Undo { opened, delta_path, device, survey: &survey, working, options, file, stop, monitor }.prepare()?;
    }
    if !options.dry_run {
        if device.len() != len {
            let why = format!("its length changed from {len} to {} bytes while it was checked", device.len());
            return Err(Error::Unreliable { name: device.name(), why });
        }
        write_all(opened, device, survey, options, stop, monitor, &mut report)?;
    }
    report.elapsed = start.elapsed();
    Ok(report)
}

fn convertible_note(device: &dyn Device, delta: &Delta, done: u64, redo: &[bool]) -> String {
    let name = device.name();
    if done == 0 {
        return format!(
            "{name} differs from the old image only where the new one overwrites it: patching gives the new image"
        );
    }
    let all = delta.table.batches().len();
    let first = (1u64..).zip(delta.table.batches()).zip(redo).find(|(_, redo)| **redo);
    let from = first.map_or("from the check of the result".into(), |((number, batch), _)| {
        let offset = delta.table.extents(batch).first().map_or(0, |extent| extent.start * BLOCK);
        format!("from batch {number}, which writes at offset {offset}")
    });
    format!(
        "{name} is between the old and the new image: resuming an interrupted run {from} ({done} of {all} batches are \
         done). Only this same delta file can finish it: one made anew from the same images may differ"
    )
}

/// The target must hold both images; one that can grow must hold the shorter.
pub(crate) fn check_size(device: &dyn Device, delta: &Delta) -> Result<(), Error> {
    let new = delta.header.new.len;
    let old = delta.route.old.map(|old| old.len);
    // A file of which nothing is known may have any length.
    let needed = if device.resizable() { new.min(old.unwrap_or(0)) } else { new.max(old.unwrap_or(new)) };
    if device.len() >= needed {
        return Ok(());
    }
    Err(Error::TooSmall { name: device.name(), needed, actual: device.len() })
}

/// The length a resizable target must get while it is patched; `None` where nothing changes: a file that is longer
/// than both images is treated as a device, and keeps its length.
fn working_len(device: &dyn Device, delta: &Delta, state: &State) -> Option<u64> {
    let longest = delta.header.new.len.max(delta.route.old.map_or(0, |old| old.len));
    // A file that is patched is cut from just this length: what stands behind the new image otherwise is its user's.
    let may_set = if *state == State::New { device.len() == longest } else { device.len() <= longest };
    (device.resizable() && may_set).then_some(longest)
}

fn write_all(
    opened: &Opened,
    device: &dyn Device,
    survey: Survey,
    options: &PatchOptions,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
    report: &mut PatchReport,
) -> Result<(), Error> {
    let Opened { delta, order } = opened;
    let new_len = delta.header.new.len;
    let working = working_len(device, delta, &survey.state);
    if survey.state != State::New {
        for extent in order.touched.extents() {
            let bytes = extent.bytes(new_len);
            device.reserve(bytes.start, bytes.end - bytes.start).inspect_err(|_| device.unreserve())?;
        }
        monitor.writing();
        let grown = working.is_some_and(|len| len != device.len());
        if let Some(len) = working.filter(|_| grown) {
            device.set_len(len)?;
        }
        let len = device.len();
        report.patched = true;
        report.walked.began = grown;
        monitor.phase("writing", (delta.route.counts.final_blocks + delta.route.counts.scratch_blocks) * BLOCK);
        let walked = &mut report.walked;
        walk(device, delta, order, &survey.redo, stop, monitor, walked).map_err(|e| stopped(device, walked, e))?;
        // What is gone from untouched parts, no reading back of touched ones would tell.
        if device.len() < len {
            let why = format!("its length changed from {len} to {} bytes while it was patched", device.len());
            return Err(Error::stopped(device.name(), walked.written, &why));
        }
        check_result(opened, device, survey.tree, options.verify, monitor, report.walked.written)?;
    }
    if working.is_some() && device.len() != new_len {
        report.patched = true;
        let cut = device.set_len(new_len).and_then(|()| device.sync());
        cut.map_err(|e| Error::stopped(device.name(), report.walked.written, &e))?;
    }
    Ok(())
}

fn stopped(device: &dyn Device, walked: &Walked, e: WalkError) -> Error {
    let name = device.name();
    match e {
        WalkError::Stop if !walked.began => Error::Interrupted,
        WalkError::Device(e) if !walked.began => Error::Device(e),
        _ if !walked.began => Error::Unreliable { name, why: e.to_string() },
        // Also where a batch came out wrong: whether what it is made from is lost for good, the next run tells.
        _ => Error::stopped(name, walked.written, &e),
    }
}

/// Reads back what was written, past the cache, and compares the whole image's digests.
fn check_result(
    opened: &Opened,
    device: &dyn Device,
    tree: Option<crate::digest::TreeDigest>,
    verify: Verify,
    monitor: &dyn Monitor,
    written: u64,
) -> Result<(), Error> {
    let Opened { delta, order } = opened;
    let new = delta.header.new;
    let failed = |e: crate::device::DeviceError| Error::stopped(device.name(), written, &e);
    let unread = |e: SurveyError| Error::stopped(device.name(), written, &e);
    device.forget_cache().map_err(failed)?;
    monitor.phase("checking the result", if verify == Verify::All { new.len } else { order.touched.len() * BLOCK });
    let wrong = |found, expected| wrong_result(opened, device, written, found, expected, monitor);
    let result = match (verify, tree) {
        (Verify::Full, Some(mut tree)) => {
            reread_touched(device, order, &mut tree, new.len, monitor).map_err(unread)?;
            tree.finish()
        }
        (Verify::All, _) => reread_all(device, new.len, monitor).map_err(unread)?.finish(),
        (Verify::Touched | Verify::Full, _) => {
            return match wrong_batch(opened, device, written)? {
                Some((found, expected)) => Err(wrong(found, expected)),
                None => Ok(()),
            };
        }
    };
    match result {
        Some(id) if id == new => Ok(()),
        found => Err(wrong(found.map_or(0, |id| id.crc), new.crc)),
    }
}

/// What was read back is not what was written: whether another run can mend it, the batches tell.
fn wrong_result(
    opened: &Opened,
    device: &dyn Device,
    written: u64,
    found: u32,
    expected: u32,
    monitor: &dyn Monitor,
) -> Error {
    let why = format!("reading back after writing gives CRC-32 {found:08x} instead of {expected:08x}");
    match judge(device, &opened.delta, &opened.order, &AtomicBool::new(false), monitor) {
        Ok(Survey { state: State::Convertible { .. }, .. }) => {
            let why = format!("{why}; the medium, or one below it that is full, did not keep what was written");
            Error::stopped(device.name(), written, &why)
        }
        _ => Error::Damaged { name: device.name(), why: format!("{why}; the medium may be failing"), written: true },
    }
}

/// CRC-32 found and expected of the first final batch whose content is not there.
fn wrong_batch(opened: &Opened, device: &dyn Device, written: u64) -> Result<Option<(u32, u32)>, Error> {
    let Opened { delta, .. } = opened;
    for batch in delta.table.batches().iter().filter(|b| b.kind != crate::delta::batch::BatchKind::Save) {
        let ranges = delta.table.extents(batch).iter().map(|e| e.bytes(delta.header.new.len));
        let crc = crc_of(device, ranges).map_err(|e| Error::stopped(device.name(), written, &e))?;
        if crc != batch.crc {
            return Ok(Some((crc, batch.crc)));
        }
    }
    Ok(None)
}

/// The refusal of a target that holds something else, as closely as can be said.
pub fn refusal(device: &dyn Device, delta: &Delta, mismatch: &Mismatch) -> Error {
    let name = device.name();
    let (place, hint) = describe(mismatch);
    match mismatch {
        // All content that the delta leaves alone is right, and what it writes is there as an interruption leaves it.
        Mismatch::Source { progress: Progress::Begun { done, all }, .. } => {
            let why = format!(
                "{done} of {all} batches of this delta are done, as an interrupted run leaves it, and something has \
                 changed it since: {place}. (A file system on it was mounted read-write? Another delta applied? A \
                 failing medium?) This run has written nothing. If another delta, or an undo delta, was being \
                 applied when it stopped, run that one again first: it can finish"
            );
            Error::Damaged { name, why, written: false }
        }
        _ => Error::Neither {
            name,
            place,
            hint: suspicion(device, delta).map_or(hint.clone(), |more| format!("{hint}. {more}")),
        },
    }
}

/// What differs, and what the user may do.
#[must_use]
pub fn describe(mismatch: &Mismatch) -> (String, String) {
    let mounted = "The likely cause: a file system on it was mounted read-write since the image was written. \
                   Write the full new image with 'blkpatch sync', or restore the old one first";
    let (place, progress) = match mismatch {
        Mismatch::Untouched { within: Some(range), regions: Some((wrong, all)), progress } if wrong * 2 < *all => (
            format!(
                "{} of its {all} regions differ, the first difference lies between bytes {} and {} (at {})",
                wrong,
                range.start,
                range.end,
                human(range.start)
            ),
            progress,
        ),
        Mismatch::Untouched { progress, .. } => {
            ("its content differs in parts that the delta does not change".into(), progress)
        }
        Mismatch::Source { within, progress } => (
            format!("data that the delta builds on differs, between bytes {} and {}", within.start, within.end),
            progress,
        ),
    };
    let hint = match (progress, mismatch) {
        (Progress::All, _) => {
            "All that the delta writes is there already: it was probably patched before, and then a file system on it \
             was mounted read-write. If so, it needs no patching; to have exactly the new image, write that in full"
        }
        (Progress::Some | Progress::Begun { .. }, _) => {
            "Some of what the delta writes is there already. Either it holds another release: that needs another delta \
             ('blkpatch info' shows which image this one starts from). Or a run was interrupted, and something has \
             written to it since, such as a read-write mount: then only the full new image helps ('blkpatch sync'). If another \
             delta, or an undo delta, was being applied, finish that one first: run it again"
        }
        (_, Mismatch::Source { .. }) => mounted,
        (_, Mismatch::Untouched { regions: Some((wrong, all)), .. }) if wrong * 2 < *all => mounted,
        _ => {
            "Check that this is the right device and the right delta ('blkpatch info' shows the old image's digests). If \
             it is, a file system on it was probably mounted read-write: write the full new image with 'blkpatch sync', or \
             restore the old one"
        }
    };
    (place, hint.into())
}
