//! What state a target is in: reads it once, past the cache, and compares it with what a delta knows (spec, chapter 8).

use crate::compare::{add_region, zero_touched};
use crate::delta::Delta;
use crate::delta::batch::BatchKind;
use crate::delta::check::CheckedOrder;
use crate::delta::placement::Sources;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::digest::{ImageId, PartDigest, TreeDigest};
use crate::error::Error;
use crate::monitor::Monitor;
use crate::resume;
use crate::units::{BLOCK, Extent, PART};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// How much is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// The whole image before; afterwards the parts that were touched, combined with the rest.
    #[default]
    Full,
    /// The whole image before and after.
    All,
    /// Only what the delta reads, and what it wrote.
    Touched,
}

/// What a target holds, with regard to a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The new image.
    New,
    /// The old image.
    Old,
    /// Neither, but patching gives the new image: an interrupted run, or changes only where the delta writes anyway.
    Convertible {
        /// Batches that need not be done again.
        done: u64,
    },
    /// Anything else.
    Neither(Mismatch),
}

/// Why a target is in state [`State::Neither`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// Something differs that no batch writes.
    Untouched {
        /// The first bytes among which it does, where the delta can tell.
        within: Option<Range<u64>>,
        /// Regions that differ, and regions in all.
        regions: Option<(u64, u64)>,
    },
    /// Something differs that a batch reads.
    Source {
        /// The bytes that the batch reads there.
        within: Range<u64>,
        /// Whether earlier batches are done: a run was interrupted, and a source was lost since.
        begun: bool,
    },
}

/// A target that was looked at.
#[derive(Debug)]
pub struct Survey {
    /// What it holds.
    pub state: State,
    /// Batches to do, by number.
    pub redo: Vec<bool>,
    /// The digests of what it holds now, over the new image's length, touched parts replaceable; not for
    /// [`Verify::Touched`].
    pub tree: Option<TreeDigest>,
}

/// Bytes that are read at once when a whole image is read.
const CHUNK: usize = 2 << 20;

/// Reads a target and says what it holds.
///
/// # Errors
/// Where the target or the delta cannot be read.
pub fn survey(
    device: &dyn Device,
    delta: &Delta,
    order: &CheckedOrder,
    verify: Verify,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Survey, SurveyError> {
    device.forget_cache()?;
    let batches = delta.table.batches().len();
    // A delta that reads nothing would be applied to anything, and a file that is only cut would be cut unseen.
    let is_cut = device.resizable() && device.len() > delta.header.new.len;
    if verify == Verify::Touched && order.source_blocks > 0 && !is_cut {
        let mut judged = judge(device, delta, order, stop, monitor)?;
        if let State::Neither(Mismatch::Source { begun, .. }) = &mut judged.state {
            *begun = false; // without the untouched digest this may be any other image
        }
        return Ok(judged);
    }
    let seen = read_whole(device, delta, order, stop, monitor)?;
    let tree = Some(seen.new);
    let is_new = tree.as_ref().and_then(TreeDigest::finish) == Some(delta.header.new);
    if is_new && may_be_new(device, delta, order) {
        return Ok(Survey { state: State::New, redo: vec![false; batches], tree });
    }
    // Every file begins with the empty image.
    let empty_old = device.resizable() && delta.route.old.is_some_and(|old| old.len == 0);
    if seen.old.is_some() && seen.old == delta.route.old && (!empty_old || device.is_empty()) {
        return Ok(Survey { state: State::Old, redo: vec![true; batches], tree });
    }
    if seen.untouched != delta.route.untouched {
        let (within, regions) = nearest(delta, &seen.regions);
        let state = State::Neither(Mismatch::Untouched { within, regions });
        return Ok(Survey { state, redo: Vec::new(), tree });
    }
    let judged = judge(device, delta, order, stop, monitor)?;
    // Nothing tells that such a file was patched, or held the old image.
    let no_evidence = is_new && order.touched.is_empty() || empty_old && !judged.redo.contains(&false);
    if no_evidence && device.resizable() {
        let state = State::Neither(Mismatch::Untouched { within: None, regions: None });
        return Ok(Survey { state, tree, ..judged });
    }
    // The digests say it is not the new image; if every batch seems done all the same, the check at the end will tell.
    let state = match judged.state {
        State::New => State::Convertible { done: batches as u64 },
        other => other,
    };
    Ok(Survey { state, tree, ..judged })
}

/// Whether a target that begins with the new image holds it. A file that must be cut after that must have been
/// patched: where the new image is just the beginning of the old one, any file that begins so would be cut.
fn may_be_new(device: &dyn Device, delta: &Delta, order: &CheckedOrder) -> bool {
    let (len, new_len) = (device.len(), delta.header.new.len);
    let longest = new_len.max(delta.route.old.map_or(0, |old| old.len));
    len == new_len || (len > new_len && (!device.resizable() || len > longest || !order.touched.is_empty()))
}

/// Why a survey failed.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The target cannot be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The delta cannot be read any more.
    #[error(transparent)]
    Delta(#[from] crate::delta::DeltaError),
    /// The user asked to stop.
    #[error("asked to stop")]
    Stop,
}

impl SurveyError {
    /// As a failure that left the target untouched.
    pub(crate) fn untouched(self, delta: &std::path::Path) -> Error {
        match self {
            Self::Device(e) => Error::Device(e),
            Self::Delta(source) => Error::Delta { path: delta.to_owned(), source },
            Self::Stop => Error::Interrupted,
        }
    }
}

/// The first region that differs, and how many do.
fn nearest(delta: &Delta, seen: &[u32]) -> (Option<Range<u64>>, Option<(u64, u64)>) {
    let expected = &delta.route.regions;
    if expected.is_empty() {
        return (None, None);
    }
    let wrong: Vec<u64> =
        (0u64..).zip(expected.iter().zip(seen)).filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
    let log = delta.route.region_log;
    let within = wrong.first().map(|i| (i << log)..((i + 1) << log).min(delta.route.untouched_len));
    (within, Some((wrong.len() as u64, expected.len() as u64)))
}

/// What one full read yields.
struct Seen {
    old: Option<ImageId>,
    new: TreeDigest,
    untouched: [u8; 32],
    regions: Vec<u32>,
}

/// Reads `[0, len)` in order by a second thread and calls `each` with every part. Behind the end of a target that can
/// grow, zeros follow: that is what growing it yields.
fn read_parts(
    device: &dyn Device,
    len: u64,
    stop: &AtomicBool,
    mut each: impl FnMut(u64, &mut [u8]),
) -> Result<(), SurveyError> {
    type Filled = Result<(u64, usize, AlignedBuffer), DeviceError>;
    let (to_fill, empty): (SyncSender<AlignedBuffer>, Receiver<AlignedBuffer>) = sync_channel(2);
    let (filled, to_use): (SyncSender<Filled>, Receiver<Filled>) = sync_channel(2);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut at = 0;
            while at < len {
                let Ok(mut buffer) = empty.recv() else { return };
                let want = (len - at).min(CHUNK as u64) as usize;
                buffer.resize(want);
                let result = read_padded(device, at, &mut buffer).map(|()| (at, want, buffer));
                let failed = result.is_err();
                if filled.send(result).is_err() || failed {
                    return;
                }
                at += want as u64;
            }
        });
        for _ in 0..2 {
            // Fails only if there is nothing to read.
            let _ = to_fill.send(AlignedBuffer::new((CHUNK as u64).min(len) as usize));
        }
        let mut result = Ok(());
        for chunk in &to_use {
            if stop.load(Ordering::Relaxed) {
                result = Err(SurveyError::Stop);
                break;
            }
            match chunk {
                Ok((at, want, mut buffer)) => {
                    let parts = buffer[..want].chunks_mut(PART as usize);
                    (0u64..).zip(parts).for_each(|(i, part)| each(at + i * PART, part));
                    let _ = to_fill.send(buffer); // the reader may have finished
                }
                Err(e) => {
                    result = Err(e.into());
                    break;
                }
            }
        }
        // The reader notices that nobody listens, and ends.
        drop((to_fill, to_use));
        result
    })
}

fn read_padded(device: &dyn Device, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
    let there = if device.resizable() { device.len().saturating_sub(offset) } else { u64::MAX };
    let (head, tail) = buffer.split_at_mut(buffer.len().min(usize::try_from(there).unwrap_or(usize::MAX)));
    tail.fill(0);
    if head.is_empty() { Ok(()) } else { device.read(offset, head) }
}

/// One read of the target, three digests: as old, as new, and untouched.
fn read_whole(
    device: &dyn Device,
    delta: &Delta,
    order: &CheckedOrder,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Seen, SurveyError> {
    let (old_len, new_len) = (delta.route.old.map_or(0, |old| old.len), delta.header.new.len);
    let untouched_len = delta.route.untouched_len;
    // A target that can grow is read as far as it goes; what lies behind is written in any case, and the length that a
    // delta claims costs nothing.
    let there = if device.resizable() { device.len() } else { u64::MAX };
    let old_len = if old_len <= there { old_len } else { 0 };
    let known = there.max(untouched_len).checked_next_multiple_of(PART).unwrap_or(u64::MAX);
    let len = old_len.max(new_len.min(known)).max(untouched_len);
    monitor.phase("reading the target", len);
    let mut old = TreeDigest::new(old_len);
    let mut new = TreeDigest::new(new_len);
    let mut untouched = TreeDigest::new(untouched_len);
    let mut regions = Vec::new();
    read_parts(device, len, stop, |offset, part| {
        let blocks = Extent { start: offset / BLOCK, count: (part.len() as u64).div_ceil(BLOCK) };
        let touched = order.touched.any(blocks);
        let mut last: Option<(u64, bool, PartDigest)> = None;
        // Parts of the same length hash alike, unless one image is so short that the part is its root.
        let mut digest = |part: &[u8], total: u64| {
            let len = total.saturating_sub(offset).min(part.len() as u64);
            let key = (len, total <= PART);
            match last {
                Some((l, root, digest)) if (l, root) == key => digest,
                _ => {
                    let digest = PartDigest::new(offset, &part[..len as usize], total);
                    last = Some((key.0, key.1, digest));
                    digest
                }
            }
        };
        if offset < old_len {
            old.push(digest(part, old_len), false);
        }
        if offset < new_len {
            new.push(digest(part, new_len), touched);
        }
        if offset < untouched_len {
            let digest = if touched {
                zero_touched(part, blocks, &order.touched);
                let len = (untouched_len - offset).min(part.len() as u64);
                PartDigest::new(offset, &part[..len as usize], untouched_len)
            } else {
                digest(part, untouched_len)
            };
            untouched.push(digest, false);
            add_region(&mut regions, offset, &digest, delta.route.region_log);
        }
        monitor.advance(part.len() as u64);
    })?;
    while let Some(len) = new.missing_part() {
        new.push(PartDigest::placeholder(len), true);
    }
    let untouched = untouched.finish().map_or([0; 32], |id| id.blake3);
    let old = old.finish().filter(|old| delta.route.old.is_some_and(|expected| expected.len == old.len));
    Ok(Seen { old, new, untouched, regions })
}

/// Judges every batch at rest: which are done, which must be done, and whether they can be.
fn judge(
    device: &dyn Device,
    delta: &Delta,
    order: &CheckedOrder,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Survey, SurveyError> {
    let new_len = delta.header.new.len;
    monitor.phase("judging the batches", delta.route.counts.final_blocks * BLOCK);
    let mut intact = Vec::with_capacity(delta.table.batches().len());
    let mut begun = false;
    for batch in delta.table.batches() {
        if stop.load(Ordering::Relaxed) {
            return Err(SurveyError::Stop);
        }
        let extents = delta.table.extents(batch);
        let crc = crc_of(device, extents.iter().map(|e| e.bytes(new_len)))?;
        intact.push(crc == batch.crc);
        begun |= crc == batch.crc && batch.kind == BatchKind::Data;
        monitor.advance(delta.table.written_bytes(batch, new_len));
    }
    let redo = resume::to_redo(&delta.table, order, &intact);
    if !redo.contains(&true) && device.len() >= new_len {
        return Ok(Survey { state: State::New, redo, tree: None });
    }
    let lost = first_lost_source(device, delta, order, &redo)?;
    let state = match lost {
        Some(within) => State::Neither(Mismatch::Source { within, begun }),
        None => State::Convertible { done: redo.iter().filter(|redo| !**redo).count() as u64 },
    };
    Ok(Survey { state, redo, tree: None })
}

/// Compares the sources of all batches that must be done with their CRCs.
fn first_lost_source(
    device: &dyn Device,
    delta: &Delta,
    order: &CheckedOrder,
    redo: &[bool],
) -> Result<Option<Range<u64>>, SurveyError> {
    let mut placement = order.placement();
    let mut reader = delta.steps()?;
    let mut steps = Vec::new();
    for ((index, batch), redo) in (0u64..).zip(delta.table.batches()).zip(redo) {
        let missing = |block| crate::delta::DeltaError::Rule { rule: "source", batch: index, block };
        let sources = match batch.kind {
            BatchKind::Zero => Sources::default(),
            BatchKind::Save => placement.save_sources(delta.table.saved(batch)).map_err(missing)?,
            BatchKind::Data => {
                reader.read_batch(delta.table.extents(batch), &mut steps)?;
                placement.sources(&steps).map_err(missing)?
            }
        };
        placement.advance(index, &delta.table, batch, &sources)?;
        if *redo && let (Some(first), Some(last)) = (sources.home.first(), sources.home.last()) {
            let within = first.start..last.end;
            if crc_of(device, sources.home.into_iter())? != batch.source_crc {
                return Ok(Some(within));
            }
        }
    }
    Ok(None)
}

/// CRC-32 of what the device holds in some ranges; zeros behind the end of a target that can grow.
pub(crate) fn crc_of(device: &dyn Device, ranges: impl Iterator<Item = Range<u64>>) -> Result<u32, DeviceError> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = AlignedBuffer::default();
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            buffer.resize((range.end - at).min(PART) as usize);
            read_padded(device, at, &mut buffer)?;
            hasher.update(&buffer);
            at += buffer.len() as u64;
        }
    }
    Ok(hasher.finalize())
}

/// Reads the parts that were touched again and puts them into the digests.
pub(crate) fn reread_touched(
    device: &dyn Device,
    order: &CheckedOrder,
    tree: &mut TreeDigest,
    new_len: u64,
    monitor: &dyn Monitor,
) -> Result<(), DeviceError> {
    let mut buffer = AlignedBuffer::default();
    let mut next = 0;
    for extent in order.touched.extents() {
        let (first, last) = (extent.start * BLOCK / PART, (extent.end() * BLOCK).div_ceil(PART));
        for part in first.max(next)..last {
            let offset = part * PART;
            buffer.resize(tree.part_len(offset) as usize);
            device.read(offset, &mut buffer)?;
            tree.replace(offset, PartDigest::new(offset, &buffer, new_len));
            monitor.advance(buffer.len() as u64);
            next = part + 1;
        }
    }
    Ok(())
}

/// Reads everything again.
pub(crate) fn reread_all(device: &dyn Device, new_len: u64, monitor: &dyn Monitor) -> Result<TreeDigest, SurveyError> {
    let mut tree = TreeDigest::new(new_len);
    // Everything is written: a wish to stop changes nothing any more.
    read_parts(device, new_len, &AtomicBool::new(false), |offset, part| {
        tree.push(PartDigest::new(offset, part, new_len), false);
        monitor.advance(part.len() as u64);
    })?;
    Ok(tree)
}
