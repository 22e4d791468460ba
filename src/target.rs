//! What state a target is in: reads it once, past the cache, and compares it with what a delta knows (spec, chapter 8).

use crate::blockset::BlockSet;
use crate::delta::Delta;
use crate::delta::check::CheckedOrder;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::digest::{ImageId, PartDigest, TreeDigest, is_zero};
use crate::error::Error;
use crate::judge::{Progress, intact, judge, progress};
use crate::monitor::Monitor;
use crate::sweep::{Chunks, read_padded, sweep, whole};
use crate::units::{BLOCK, Extent, PART};
use crate::untouched::Untouched;
use crate::zero_groups::may_be_tabulated;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

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
        /// How much of what the delta writes is there.
        progress: Progress,
    },
    /// Something differs that a batch reads.
    Source {
        /// The bytes that the batch reads there.
        within: Range<u64>,
        /// How much of what the delta writes is there: if anything, a source was lost after a run had begun.
        progress: Progress,
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
    survey_seen(device, delta, order, verify, None, stop, monitor)
}

/// The same for a target that was read before, unless only the order tells whether it needs be.
pub(crate) fn survey_seen(
    device: &dyn Device,
    delta: &Delta,
    order: &CheckedOrder,
    verify: Verify,
    seen: Option<Seen>,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Survey, SurveyError> {
    let batches = delta.table.batches().len();
    // A delta that reads nothing would be applied to anything, and a file that is only cut would be cut unseen.
    let is_cut = device.resizable() && device.len() > delta.header.new.len;
    if verify == Verify::Touched && order.source_blocks > 0 && !is_cut {
        device.forget_cache()?;
        let mut judged = judge(device, delta, order, stop, monitor)?;
        if let State::Neither(Mismatch::Source { progress, .. }) = &mut judged.state {
            *progress = Progress::Nothing; // without the untouched digest this may be any other image
        }
        return Ok(judged);
    }
    let seen = match seen {
        Some(seen) => seen,
        None => read_whole(device, delta, &order.touched, stop, &AtomicBool::new(false), monitor)?,
    };
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
    let (untouched, regions) = seen.untouched.complete(device, delta, order, stop, monitor)?;
    if untouched != delta.route.untouched {
        let (within, regions) = nearest(delta, &regions);
        let progress = progress(&delta.table, &intact(device, delta, stop, monitor)?);
        let state = State::Neither(Mismatch::Untouched { within, regions, progress });
        return Ok(Survey { state, redo: Vec::new(), tree });
    }
    let judged = judge(device, delta, order, stop, monitor)?;
    // Nothing tells that such a file was patched, or held the old image.
    let no_evidence = is_new && order.touched.is_empty() || empty_old && !judged.redo.contains(&false);
    if no_evidence && device.resizable() {
        let progress = Progress::Nothing;
        let state = State::Neither(Mismatch::Untouched { within: None, regions: None, progress });
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
pub(crate) struct Seen {
    old: Option<ImageId>,
    new: TreeDigest,
    untouched: Untouched,
}

/// The digests of one part.
struct PartSeen {
    offset: u64,
    len: u64,
    touched: bool,
    /// Whether it is a whole part of zeros, for all digests: hashed only if its neighbours are not.
    zero: bool,
    old: Option<PartDigest>,
    new: Option<PartDigest>,
    /// A placeholder for a part that is touched.
    untouched: Option<PartDigest>,
}

/// The lengths that the three digests cover.
#[derive(Clone, Copy)]
struct Lengths {
    old: u64,
    new: u64,
    untouched: u64,
}

fn look_at_part(offset: u64, part: &[u8], lengths: Lengths, touched: &BlockSet) -> PartSeen {
    let blocks = Extent { start: offset / BLOCK, count: (part.len() as u64).div_ceil(BLOCK) };
    let len = part.len() as u64;
    let mut last: Option<((u64, bool), PartDigest)> = None;
    // Parts of the same length hash alike, unless one image is so short that the part is its root.
    let mut digest = |part: &[u8], total: u64| {
        let len = total.saturating_sub(offset).min(part.len() as u64);
        let key = (len, total <= PART);
        match last {
            Some((k, digest)) if k == key => digest,
            _ => last.insert((key, PartDigest::new(offset, &part[..len as usize], total))).1,
        }
    };
    let is_touched = touched.any(blocks);
    let whole = |total: u64| total <= offset || total > PART && total - offset >= PART;
    let zero = !is_touched && len == PART && [lengths.old, lengths.new, lengths.untouched].into_iter().all(whole);
    if zero && may_be_tabulated(offset) && is_zero(part) {
        return PartSeen { offset, len, touched: false, zero: true, old: None, new: None, untouched: None };
    }
    let old = (offset < lengths.old).then(|| digest(part, lengths.old));
    let new = (offset < lengths.new).then(|| digest(part, lengths.new));
    let untouched = (offset < lengths.untouched).then(|| {
        if !is_touched {
            return digest(part, lengths.untouched);
        }
        PartDigest::placeholder((lengths.untouched - offset).min(part.len() as u64))
    });
    PartSeen { offset, len, touched: is_touched, zero: false, old, new, untouched }
}

/// One read of the target, three digests: as old, as new, and what is known of the untouched one. `touched` are all
/// blocks that the delta writes. Ends early when the user wants to `stop`, or it is `over` for another reason.
pub(crate) fn read_whole(
    device: &dyn Device,
    delta: &Delta,
    touched: &BlockSet,
    stop: &AtomicBool,
    over: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Seen, SurveyError> {
    device.forget_cache()?;
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
    let mut untouched = Untouched::new(untouched_len, delta.route.region_log);
    let lengths = Lengths { old: old_len, new: new_len, untouched: untouched_len };
    let work = |offset: u64, chunk: &mut [u8]| -> Vec<PartSeen> {
        let parts = (0u64..).zip(chunk.chunks(PART as usize));
        parts.map(|(i, part)| look_at_part(offset + i * PART, part, lengths, touched)).collect()
    };
    let heed = || over.fetch_or(stop.load(Ordering::Relaxed), Ordering::Relaxed);
    heed();
    sweep(device, &whole(len), over, work, |parts| {
        heed();
        for part in parts {
            monitor.advance(part.len);
            if part.zero {
                for (tree, total) in [(&mut old, old_len), (&mut new, new_len)] {
                    if part.offset < total {
                        tree.push_zeros();
                    }
                }
                if part.offset < untouched_len {
                    untouched.push_zeros(part.offset);
                }
                continue;
            }
            part.old.into_iter().for_each(|digest| old.push(digest, false));
            part.new.into_iter().for_each(|digest| new.push(digest, part.touched));
            if let Some(digest) = part.untouched {
                untouched.push(part.offset, digest, part.touched);
            }
        }
    })?;
    [&mut old, &mut new].into_iter().for_each(TreeDigest::settle);
    while let Some(len) = new.missing_part() {
        new.push(PartDigest::placeholder(len), true);
    }
    let old = old.finish().filter(|old| delta.route.old.is_some_and(|expected| expected.len == old.len));
    Ok(Seen { old, new, untouched })
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
) -> Result<(), SurveyError> {
    let parts = touched_parts(order);
    let lens: Vec<u64> = parts.iter().map(|part| tree.part_len(part * PART)).collect();
    let chunk = |i: u64| parts[i as usize] * PART..parts[i as usize] * PART + lens[i as usize];
    let chunks = Chunks { count: parts.len() as u64, chunk };
    let work = |offset, part: &mut [u8]| (offset, PartDigest::new(offset, part, new_len));
    // Everything is written: a wish to stop changes nothing any more.
    sweep(device, &chunks, &AtomicBool::new(false), work, |(offset, digest)| {
        tree.replace(offset, digest);
        monitor.advance(digest.len);
    })
}

/// The parts that hold touched blocks, by number.
pub(crate) fn touched_parts(order: &CheckedOrder) -> Vec<u64> {
    let mut parts: Vec<u64> = Vec::new();
    for extent in order.touched.extents() {
        let (first, last) = (extent.start * BLOCK / PART, (extent.end() * BLOCK).div_ceil(PART));
        let first = parts.last().map_or(first, |last| first.max(last + 1));
        parts.extend(first..last);
    }
    parts
}

/// Reads everything again.
pub(crate) fn reread_all(device: &dyn Device, new_len: u64, monitor: &dyn Monitor) -> Result<TreeDigest, SurveyError> {
    // Everything is written: a wish to stop changes nothing any more.
    read_digest(device, new_len, &AtomicBool::new(false), monitor)
}

/// The digest of the first `len` bytes of a device.
pub(crate) fn read_digest(
    device: &dyn Device,
    len: u64,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<TreeDigest, SurveyError> {
    let mut tree = TreeDigest::new(len);
    // `None` is a whole part of zeros, which is hashed only if its neighbours are not zero.
    let zero = |at: u64, part: &[u8]| len > PART && part.len() as u64 == PART && may_be_tabulated(at) && is_zero(part);
    let work = |offset: u64, chunk: &mut [u8]| -> Vec<(u64, Option<PartDigest>)> {
        let parts = (0u64..).zip(chunk.chunks(PART as usize));
        let digest = |(i, part): (u64, &[u8])| {
            let at = offset + i * PART;
            let digest = (!zero(at, part)).then(|| PartDigest::new(at, part, len));
            (part.len() as u64, digest)
        };
        parts.map(digest).collect()
    };
    sweep(device, &whole(len), stop, work, |parts| {
        for (len, part) in parts {
            monitor.advance(len);
            match part {
                Some(part) => tree.push(part, false),
                None => tree.push_zeros(),
            }
        }
    })?;
    tree.settle();
    Ok(tree)
}
