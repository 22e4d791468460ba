//! What a comparison yields beside the writes: deltas of literals between what the target held and the image, in either
//! direction, with all their digests. Chunks come from several threads in any order and are put in order here.

use super::trouble::Trouble;
use super::work::End;
use crate::blockset::BlockSet;
use crate::compare::zero_touched;
use crate::delta::literal::LiteralWriter;
use crate::delta::writer::WriteError;
use crate::device::{AlignedBuffer, Device};
use crate::digest::{ImageId, PartDigest, TreeDigest, is_zero};
use crate::monitor::Monitor;
use crate::save::{Rest, RestDigest, SaveError, keep};
use crate::sweep::{CHUNK, Chunks, read_padded, sweep};
use crate::target::SurveyError;
use crate::units::{BLOCK, Extent, PART, blocks_in};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

// A chunk is a part of the digests.
const _: () = assert!(CHUNK == PART);

/// How many chunks a thread may be ahead of the slowest one: bounds what waits for its turn.
const AHEAD: u64 = 4;

/// A part of an image, hashed as far as it can be.
#[derive(Clone, Debug)]
enum Part {
    /// [`PART`] zeros.
    Zeros,
    Hashed(PartDigest),
    /// The first part is hashed in another way where it is the only one; and the last may not be complete.
    Bytes(Vec<u8>),
}

impl Part {
    fn of(offset: u64, bytes: &[u8], complete: bool) -> Self {
        match () {
            () if !complete => Self::Bytes(bytes.to_vec()),
            () if bytes.len() as u64 == PART && is_zero(bytes) => Self::Zeros,
            () if offset == 0 => Self::Bytes(bytes.to_vec()),
            () => Self::Hashed(PartDigest::new(offset, bytes, u64::MAX)),
        }
    }

    /// The digest in an image of `total` bytes; `None` for zeros.
    fn digest(&self, offset: u64, total: u64) -> Option<PartDigest> {
        match self {
            Self::Zeros => None,
            Self::Hashed(digest) => Some(*digest),
            Self::Bytes(bytes) => Some(PartDigest::new(offset, bytes, total)),
        }
    }
}

/// Which way a delta goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From what the target held to the image.
    Forth,
    /// From the image to what the target held.
    Back,
}

/// A delta on the way.
pub(super) struct Saved<'a> {
    way: Way,
    writer: Option<LiteralWriter<'a>>,
    /// For messages.
    file: PathBuf,
    /// The blocks that it writes.
    pub blocks: BlockSet,
}

impl<'a> Saved<'a> {
    /// `writer`: where its content goes; without one, only the blocks and the digests are wanted.
    pub fn new(way: Way, writer: Option<LiteralWriter<'a>>, file: &Path) -> Self {
        Self { way, writer, file: file.to_owned(), blocks: BlockSet::new() }
    }

    fn add(&mut self, extent: Extent, bytes: &[u8]) -> Result<(), Trouble> {
        self.blocks.insert(extent);
        match &mut self.writer {
            Some(writer) => writer.add(extent, bytes).map_err(|e| Trouble::unsaved(&self.file, &e)),
            None => Ok(()),
        }
    }
}

/// A chunk that was compared.
struct Seen {
    image: Part,
    /// `None` where nothing differs, and the target is as long.
    other: Option<Box<Other>>,
}

impl Seen {
    fn is_zero(&self) -> bool {
        self.other.is_none() && matches!(self.image, Part::Zeros)
    }
}

/// What differs from the image's part.
struct Other {
    /// `None` behind the target's end.
    target: Option<Part>,
    /// What is left of the target's part, of each delta.
    rests: Vec<Option<Part>>,
    /// Content for each delta.
    content: Vec<Vec<(Extent, Vec<u8>)>>,
}

/// A delta that has all its content.
pub(super) struct Complete<'a> {
    pub writer: Option<LiteralWriter<'a>>,
    pub old: ImageId,
    pub new: ImageId,
    pub rest: Rest,
    pub blocks: BlockSet,
    /// See [`Recorder`].
    pub right_end: bool,
}

#[derive(Default)]
struct State<'a> {
    waiting: BTreeMap<u64, Seen>,
    /// In order, with how many there are: zeros in both take no memory, however many.
    seen: Vec<(Seen, usize)>,
    /// How many there are of all.
    taken: u64,
    saved: Vec<Saved<'a>>,
}

/// Records a comparison.
pub(super) struct Recorder<'a> {
    /// Length of the target before, if that is not the image's by definition.
    target_len: Option<u64>,
    ways: Vec<Way>,
    /// Whether the image ends within a block in which the target goes on, and has there what the image has.
    right_end: AtomicBool,
    due: AtomicU64,
    state: Mutex<State<'a>>,
}

impl<'a> Recorder<'a> {
    /// `target_len`: of a file.
    pub fn new(target_len: Option<u64>, saved: Vec<Saved<'a>>) -> Self {
        let ways = saved.iter().map(|saved| saved.way).collect();
        let state = Mutex::new(State { saved, ..State::default() });
        Self { target_len, ways, right_end: AtomicBool::new(false), due: AtomicU64::new(0), state }
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a chunk of the image, and as many bytes of the target, zeros behind its end.
    pub fn chunk(&self, offset: u64, image: &[u8], target: &[u8], end: &End<'_>) -> Result<(), Trouble> {
        let number = offset / CHUNK;
        let seen = self.look(offset, image, target);
        while number > self.due.load(Ordering::Relaxed) + AHEAD && !end.is_over() {
            std::thread::sleep(Duration::from_millis(1)); // another thread waits for a slow sector
        }
        let mut state = self.state();
        state.waiting.insert(number, seen);
        while let Some(mut seen) = {
            let due = state.taken;
            state.waiting.remove(&due)
        } {
            if let Some(other) = &mut seen.other {
                for (saved, content) in state.saved.iter_mut().zip(std::mem::take(&mut other.content)) {
                    content.iter().try_for_each(|(extent, bytes)| saved.add(*extent, bytes))?;
                }
            }
            match state.seen.last_mut() {
                Some((last, count)) if last.is_zero() && seen.is_zero() => *count += 1,
                _ => state.seen.push((seen, 1)),
            }
            state.taken += 1;
            self.due.store(state.taken, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Hashes a chunk, and copies what differs.
    fn look(&self, offset: u64, image: &[u8], target: &[u8]) -> Seen {
        let image_part = Part::of(offset, image, true);
        let there = self.target_len.unwrap_or(u64::MAX).saturating_sub(offset);
        let inside = usize::try_from(there).unwrap_or(usize::MAX).min(target.len());
        // The last chunk is the one that is shorter; the target's part may go on behind it.
        let goes_on = self.target_len.is_some() && there > image.len() as u64 && (image.len() as u64) < CHUNK;
        if image == target && inside == target.len() && !goes_on {
            return Seen { image: image_part, other: None };
        }
        let chunk = Extent { start: offset / BLOCK, count: (image.len() as u64).div_ceil(BLOCK) };
        let before = &target[..inside];
        let (mut rests, mut content) = (Vec::new(), Vec::new());
        for way in &self.ways {
            let mut touched = differing(offset, image, target);
            if inside < target.len() {
                // Behind the target's end everything is written, and nothing needs to be brought back.
                let start = match way {
                    Way::Forth => (offset + inside as u64) / BLOCK,
                    Way::Back => (offset + inside as u64).div_ceil(BLOCK),
                };
                let end = Extent { start, count: chunk.end() - start };
                touched = match way {
                    Way::Forth => with(touched, end),
                    Way::Back => without(&touched, chunk, end),
                };
            }
            let mut wanted = touched.clone();
            if *way == Way::Back && goes_on && !(image.len() as u64).is_multiple_of(BLOCK) {
                // The image's last block is cut: all of it is brought back with what follows.
                let last = Extent { start: chunk.end() - 1, count: 1 };
                self.right_end.store(!touched.any(last), Ordering::Relaxed);
                wanted = without(&touched, chunk, last);
                touched = with(touched, last);
            }
            let source = if *way == Way::Forth { image } else { before };
            let copied = wanted.extents().map(|extent| {
                let (from, to) = ((extent.start - chunk.start) * BLOCK, (extent.end() - chunk.start) * BLOCK);
                (extent, source[from as usize..source.len().min(to as usize)].to_vec())
            });
            content.push(copied.collect());
            let mut rest = before.to_vec();
            zero_touched(&mut rest, chunk, &touched);
            rests.push((!rest.is_empty()).then(|| Part::of(offset, &rest, true)));
        }
        let target = (inside > 0).then(|| Part::of(offset, before, !goes_on));
        Seen { image: image_part, other: Some(Box::new(Other { target, rests, content })) }
    }

    /// Puts the digests together when the whole image was compared, and adds what lies behind it of a target that is cut.
    pub fn finish(
        &self,
        device: &dyn Device,
        image_len: u64,
        stop: &AtomicBool,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Complete<'a>>, Trouble> {
        let state = std::mem::take(&mut *self.state());
        let target_len = self.target_len.unwrap_or(image_len);
        let (mut image, mut target) = (TreeDigest::new(image_len), TreeDigest::new(target_len));
        let mut rests: Vec<RestDigest> = self.ways.iter().map(|_| RestDigest::new(image_len.min(target_len))).collect();
        let ones: Vec<Option<u64>> = state.saved.iter().map(|saved| saved.one(image_len, target_len)).collect();
        let all = state.seen.iter().flat_map(|(seen, count)| std::iter::repeat_n(seen, *count));
        for (offset, seen) in (0u64..).step_by(PART as usize).zip(all) {
            push(&mut image, seen.image.digest(offset, image_len));
            let target_part = seen.other.as_ref().map_or(Some(&seen.image), |other| other.target.as_ref());
            match target_part {
                Some(Part::Bytes(bytes)) if offset + bytes.len() as u64 == image_len && image_len < target_len => {
                    let whole = continued(device, offset, bytes, target_len)?;
                    push(&mut target, Some(PartDigest::new(offset, &whole, target_len)));
                }
                Some(part) => push(&mut target, part.digest(offset, target_len)),
                None => {}
            }
            for (i, rest) in rests.iter_mut().enumerate() {
                let part = match &seen.other {
                    None => Some(&seen.image),
                    Some(other) => other.rests.get(i).and_then(Option::as_ref),
                };
                let one = ones.get(i).copied().flatten().filter(|block| block * BLOCK / PART * PART == offset);
                match (part, one) {
                    (None, _) => {}
                    (Some(part), None) => rest.push(part.digest(offset, image_len.min(target_len))),
                    (Some(_), Some(block)) => rest.push(Some(part_without(device, offset, block, target_len)?)),
                }
            }
        }
        target.settle();
        behind(device, image_len, target_len, &mut target, stop)?;
        image.settle();
        target.settle();
        let mut complete = Vec::new();
        for ((mut saved, rest), one) in state.saved.into_iter().zip(rests).zip(ones) {
            let start = one.unwrap_or(image_len / BLOCK);
            if saved.way == Way::Back && (target_len > image_len || one.is_some()) {
                saved.keep_tail(device, start, target_len, stop, monitor)?;
            }
            let (Some(image), Some(target), Some(rest)) = (image.finish(), target.finish(), rest.finish()) else {
                return Err(Trouble::Image("internal error: parts of the image were not compared".into()));
            };
            let (old, new) = if saved.way == Way::Forth { (target, image) } else { (image, target) };
            let right_end = self.right_end.load(Ordering::Relaxed);
            complete.push(Complete { writer: saved.writer, old, new, rest, blocks: saved.blocks, right_end });
        }
        Ok(complete)
    }
}

impl Saved<'_> {
    /// A block that goes back although it does not change: where a file only grows, nothing else would tell that it did.
    fn one(&self, image_len: u64, target_len: u64) -> Option<u64> {
        let needed = self.way == Way::Back && self.blocks.is_empty() && target_len < image_len;
        blocks_in(target_len).checked_sub(1).filter(|_| needed)
    }

    /// Adds all of the target from a block on: that in which the image ends.
    fn keep_tail(
        &mut self,
        device: &dyn Device,
        start: u64,
        target_len: u64,
        stop: &AtomicBool,
        monitor: &dyn Monitor,
    ) -> Result<(), Trouble> {
        let mut tail = BlockSet::new();
        tail.insert(Extent { start, count: blocks_in(target_len) - start });
        tail.extents().for_each(|extent| self.blocks.insert(extent));
        let Some(writer) = &mut self.writer else { return Ok(()) };
        keep(device, &tail, target_len, writer, stop, monitor).map_err(|e| match e {
            SaveError::Survey(e) => from_survey(e),
            SaveError::Write(e) => Trouble::unsaved(&self.file, &e),
        })
    }
}

fn from_survey(e: SurveyError) -> Trouble {
    match e {
        SurveyError::Device(e) => Trouble::Target(e),
        SurveyError::Stop | SurveyError::Delta(_) => Trouble::Stop,
    }
}

fn push(tree: &mut TreeDigest, part: Option<PartDigest>) {
    match part {
        Some(part) => tree.push(part, false),
        None => tree.push_zeros(),
    }
}

/// The target's part that holds the image's end, whole: `bytes`, and what follows.
fn continued(device: &dyn Device, offset: u64, bytes: &[u8], target_len: u64) -> Result<Vec<u8>, Trouble> {
    let end = target_len.min(offset + PART);
    let mut rest = AlignedBuffer::new((end - offset) as usize - bytes.len());
    read_padded(device, offset + bytes.len() as u64, &mut rest)?;
    Ok([bytes, &rest].concat())
}

/// The digest of the target's part at `offset` with a block left out.
fn part_without(device: &dyn Device, offset: u64, block: u64, target_len: u64) -> Result<PartDigest, Trouble> {
    let mut part = continued(device, offset, &[], target_len)?;
    part[(block * BLOCK - offset) as usize..].fill(0); // it is the last one
    Ok(PartDigest::new(offset, &part, target_len))
}

/// Adds the target's parts behind the one in which the image ends.
fn behind(
    device: &dyn Device,
    image_len: u64,
    target_len: u64,
    tree: &mut TreeDigest,
    stop: &AtomicBool,
) -> Result<(), Trouble> {
    let start = image_len.next_multiple_of(PART);
    let count = target_len.saturating_sub(start).div_ceil(PART);
    let chunks = Chunks { count, chunk: |i: u64| start + i * PART..target_len.min(start + (i + 1) * PART) };
    let hash = |offset: u64, part: &mut [u8]| PartDigest::new(offset, part, target_len);
    sweep(device, &chunks, stop, hash, |part| tree.push(part, false)).map_err(from_survey)
}

/// The blocks of a chunk that differ.
fn differing(offset: u64, image: &[u8], target: &[u8]) -> BlockSet {
    let mut set = BlockSet::new();
    let blocks = image.chunks(BLOCK as usize).zip(target.chunks(BLOCK as usize));
    for (start, _) in (offset / BLOCK..).zip(blocks).filter(|(_, (a, b))| a != b) {
        set.insert(Extent { start, count: 1 });
    }
    set
}

fn with(mut set: BlockSet, extent: Extent) -> BlockSet {
    set.insert(extent);
    set
}

/// The blocks of `set`, all of which lie in `chunk`, that are not in `extent`.
fn without(set: &BlockSet, chunk: Extent, extent: Extent) -> BlockSet {
    let mut left = BlockSet::new();
    let head = Extent { start: chunk.start, count: extent.start.saturating_sub(chunk.start) };
    let tail = Extent { start: extent.end(), count: chunk.end().saturating_sub(extent.end()) };
    for part in [head, tail] {
        set.extents().map(|run| run.intersect(&part)).for_each(|run| left.insert(run));
    }
    left
}

impl Trouble {
    /// The delta that is to be kept cannot be written.
    fn unsaved(file: &Path, e: &WriteError) -> Self {
        Self::Unsaved(format!("cannot write {}: {e}", file.display()))
    }
}
