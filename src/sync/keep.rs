//! `sync --undo` and `sync --save-delta`: deltas of literals between what the target held and the image.
//!
//! What is to be undone must be durable before the first write: so the image is read twice, once to compare and keep, once
//! to write. A delta for the next device is put together while this one is written, from a stream, too.

use super::image::Image;
use super::record::{Complete, Recorder, Saved, Way};
use super::work::End;
use super::{Pass, SyncOptions, SyncReport};
use crate::blockset::BlockSet;
use crate::delta::batch::BatchKind;
use crate::delta::literal::LiteralWriter;
use crate::delta::step::StepKind;
use crate::device::{AlignedBuffer, Device};
use crate::digest::is_zero;
use crate::error::Error;
use crate::monitor::Monitor;
use crate::patch::{DEFAULT_MEMORY_LIMIT, Opened, open_delta};
use crate::save::{DeltaFile, threads};
use crate::sweep::read_padded;
use crate::target::SurveyError;
use crate::units::{BLOCK, Extent, blocks_in, human};
use std::ops::Range;
use std::path::Path;

const OTHER: &str = "exists, and is not the undo delta of this run on this target: give another name, or, to finish an \
                     interrupted run, leave out '--undo'";

/// As `sync` without, and keeps the deltas that the options ask for.
pub(super) fn sync_and_keep(
    image: &Image<'_>,
    device: &dyn Device,
    options: &SyncOptions,
    end: &End<'_>,
    monitor: &dyn Monitor,
) -> Result<SyncReport, Error> {
    let target_len = device.resizable().then(|| device.len());
    let save = options.save_delta.as_deref().map(new_file).transpose()?;
    let existing = options.undo.as_deref().map(existing).transpose()?.flatten();
    let make_undo = existing.is_none() && !options.dry_run;
    let undo = options.undo.as_deref().filter(|_| make_undo).map(DeltaFile::create).transpose()?;
    let nothing = BlockSet::new();
    let mut saved = Vec::new();
    if let Some(path) = &options.save_delta {
        saved.push(Saved::new(Way::Forth, save.as_ref().map(|file| writer(&nothing, file)), path));
    }
    if let Some(path) = &options.undo {
        saved.push(Saved::new(Way::Back, undo.as_ref().map(|file| writer(&nothing, file)), path));
    }
    let recorder = Recorder::new(target_len, saved);
    if !options.dry_run {
        device.sync()?; // what others wrote may still be on its way
    }
    let dry_run = options.dry_run || options.undo.is_some();
    let pass = Pass { image, device, dry_run, only: None, grow: None, end, monitor };
    let (report, complete) = pass.run(Some(&recorder))?;
    let mut complete = complete.into_iter();
    if let (Some(file), Some(path)) = (save, &options.save_delta) {
        let kept = complete.next().map_or(Ok(()), |delta| save_delta(file, path, delta, monitor));
        kept.map_err(|e| if dry_run { e } else { Error::Unsaved { name: device.name(), source: Box::new(e) } })?;
    }
    let (Some(path), Some(back)) = (&options.undo, complete.next()) else { return Ok(report) };
    if report.differing == 0 && report.resized_from.is_none() {
        monitor.note(&format!("nothing is overwritten: {} is not needed, and not written", path.display()));
        return Ok(report);
    }
    let mut only = back.blocks.clone();
    if let Some(existing) = existing {
        let kept = is_undo(&existing, &back, device).map_err(|e| e.untouched(path))?;
        if !kept {
            return Err(Error::Unusable { path: path.clone(), why: OTHER });
        }
        monitor.note(&format!("{} is kept: it is the undo delta of this run", path.display()));
    } else if let Some(file) = undo {
        keep_undo(file, path, back, device, monitor)?;
    }
    if options.dry_run {
        return Ok(report);
    }
    let before = blocks_in(target_len.unwrap_or(report.compared));
    only.insert(Extent { start: before, count: blocks_in(report.compared).saturating_sub(before) });
    let again = image.again(options.format, end)?;
    image.unchanged().map_err(|trouble| trouble.into_error(device.name(), None))?;
    // As `patch` does it, so that the undo delta finds a file of just this length wherever this run is interrupted.
    let grow = target_len.filter(|len| *len < report.compared).map(|_| report.compared);
    let (done, _) = Pass { image: &again, device, dry_run: false, only: Some(&only), grow, end, monitor }.run(None)?;
    Ok(SyncReport { resized_from: report.resized_from, ..done })
}

fn writer<'a>(nothing: &'a BlockSet, file: &DeltaFile<'a>) -> LiteralWriter<'a> {
    LiteralWriter::new(nothing, file.folder(), threads())
}

/// A file that is not there yet.
fn new_file(path: &Path) -> Result<DeltaFile<'_>, Error> {
    if std::fs::symlink_metadata(path).is_ok() {
        return Err(Error::Unusable {
            path: path.to_owned(),
            why: "exists: if an interrupted run of this command made it, it is complete, and '--save-delta' can be left out; \
                  else give the delta another name, or move that away",
        });
    }
    DeltaFile::create(path)
}

/// The delta that is there already, if there is something.
fn existing(path: &Path) -> Result<Option<Opened>, Error> {
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    let opened = open_delta(path, DEFAULT_MEMORY_LIMIT);
    opened.map(Some).map_err(|_| Error::Unusable { path: path.to_owned(), why: OTHER })
}

fn save_delta(file: DeltaFile<'_>, path: &Path, delta: Complete<'_>, monitor: &dyn Monitor) -> Result<(), Error> {
    let (path, blocks) = (path.display(), delta.blocks.len());
    let Some(writer) = delta.writer else { return Ok(()) };
    let len = human(file.finish(writer, delta.old, delta.new, delta.rest)?);
    monitor.note(&match blocks {
        0 => format!("{path} ({len}): a delta that writes no block, as none differs"),
        _ => format!("{path} ({len}): a delta that does the same to the next device with what this one held"),
    });
    Ok(())
}

fn keep_undo(
    file: DeltaFile<'_>,
    path: &Path,
    delta: Complete<'_>,
    device: &dyn Device,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let Some(writer) = delta.writer else { return Ok(()) };
    let len = human(file.finish(writer, delta.old, delta.new, delta.rest)?);
    let (path, target) = (path.display(), device.name());
    monitor.note(&format!("{path} ({len}) keeps what is overwritten: 'blkpatch patch {path} {target}' goes back"));
    Ok(())
}

/// Whether `undo` goes back from the image, and holds whatever this run would overwrite, as it is now. What an interrupted
/// run has written already does not differ any more, nor does the beginning of the block in which a file is still to be cut;
/// a block that was torn makes the answer `false`.
fn is_undo(undo: &Opened, fresh: &Complete<'_>, device: &dyn Device) -> Result<bool, SurveyError> {
    let Opened { delta, order } = undo;
    let reads = order.source_blocks > 0 || delta.route.counts.scratch_blocks > 0 || delta.header.features > 0;
    if delta.route.old != Some(fresh.old) || reads {
        return Ok(false);
    }
    let len = delta.header.new.len;
    if delta.header.new == fresh.new {
        return Ok(true);
    }
    let end = blocks_in(len);
    for (run, kept) in fresh.blocks.extents().flat_map(|extent| order.touched.runs_in(extent)) {
        // What an interrupted run made longer is zeros.
        let grown = Extent { start: run.start.max(end), count: run.end().saturating_sub(run.start.max(end)) };
        if !kept && run.start < end || !holds(device, grown.bytes(fresh.new.len), None)? {
            return Ok(false);
        }
    }
    let written = if fresh.right_end { fresh.old.len / BLOCK * BLOCK..fresh.old.len } else { 0..0 };
    let (mut steps, mut literals, mut list) = (delta.steps()?, delta.literals()?, Vec::new());
    let mut bytes = Vec::new();
    for batch in delta.table.batches() {
        let extents = delta.table.extents(batch);
        if batch.kind == BatchKind::Data {
            steps.read_batch(extents, &mut list)?;
            bytes.resize(list.iter().map(|step| step.len).sum::<u64>() as usize, 0);
            let mut rest = &mut bytes[..];
            for step in &list {
                let (now, later) = rest.split_at_mut(step.len as usize);
                if step.kind == StepKind::Zero {
                    now.fill(0)
                } else {
                    literals.fill(now)?
                }
                rest = later;
            }
        }
        let mut at = 0;
        for extent in extents {
            let range = extent.bytes(len);
            for (run, _) in fresh.blocks.runs_in(*extent).filter(|(_, differs)| *differs) {
                for part in without(run.bytes(len), &written) {
                    let skip = (at + part.start - range.start) as usize;
                    let expected = (batch.kind == BatchKind::Data).then(|| bytes.get(skip..).unwrap_or_default());
                    if !holds(device, part, expected)? {
                        return Ok(false);
                    }
                }
            }
            at += range.end - range.start;
        }
    }
    Ok(true)
}

/// A range without another one: what is before, and what is behind.
fn without(range: Range<u64>, other: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let before = range.start..range.end.min(other.start);
    let behind = range.start.max(other.end)..range.end;
    [before, behind].into_iter().filter(|part| part.start < part.end)
}

/// Whether a range holds the first of these bytes; `None` are zeros. Blocks are read as a whole.
fn holds(device: &dyn Device, range: Range<u64>, expected: Option<&[u8]>) -> Result<bool, SurveyError> {
    const MOST: u64 = 1 << 20;
    let (mut at, mut buffer) = (range.start / BLOCK * BLOCK, AlignedBuffer::default());
    while at < range.end {
        buffer.resize((range.end - at).min(MOST) as usize);
        read_padded(device, at, &mut buffer)?;
        let inside = &buffer[range.start.saturating_sub(at) as usize..];
        let same = match expected {
            None => is_zero(inside),
            Some(bytes) => {
                let done = at.max(range.start) - range.start;
                bytes.get(done as usize..).is_some_and(|rest| rest.starts_with(inside))
            }
        };
        if !same {
            return Ok(false);
        }
        at += buffer.len() as u64;
    }
    Ok(true)
}
