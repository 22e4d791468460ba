//! Blocks of zstd and chunks of LZMA2 in an image: found by the frames that they are in, and unpacked.

use super::container::{self, Unpacker};
use super::texts::Limits;
use crate::delta::coding::Whole;
use crate::image::Image;
use crate::parallel;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

/// Bytes that one thread looks through in one go.
const PIECE: u64 = 4 << 20;
/// Bytes that are looked at together: where none of them begins a frame, as nearly everywhere, that is told at once.
const STRIDE: usize = 64;
/// Compressed blocks that are unpacked in one go, and how many such goes there are before their texts are written.
const JOB: usize = 64;
const JOBS: usize = 4;
/// Bytes of the text of blocks that are put together.
const TOGETHER: usize = 32 << 10;

/// Compressed blocks side by side, of which the first needs no codes of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Where they are in the image.
    pub bytes: Range<u64>,
    /// Where their text is.
    pub text: Range<u64>,
}

/// The units of an image, ascending, and their texts, one behind the other.
#[derive(Default)]
pub(super) struct Units {
    pub text: Image,
    pub list: Vec<Unit>,
}

/// How blocks become units.
#[derive(Clone, Copy)]
pub(super) struct Grouping<'a> {
    /// What is looked for.
    pub coding: Whole,
    /// Bytes of a unit's text, at the most.
    pub most: usize,
    /// Which blocks are wanted: these are put together, but for large ones, and no units are made of others alone.
    pub wanted: &'a (dyn Fn(&Range<u64>) -> bool + Sync),
    /// Whether those that need no others are put together, and it is made sure that their texts stand for them.
    pub new: bool,
}

impl Units {
    /// Finds the frames that begin in `ranges` (ascending, disjoint), and unpacks their blocks. Texts are kept in a file
    /// without a name in `folder`.
    pub fn find(
        image: &[u8],
        ranges: &[Range<u64>],
        grouping: Grouping<'_>,
        limits: Limits,
        folder: &Path,
    ) -> io::Result<Self> {
        let coding = grouping.coding;
        let jobs = jobs(&blocks(image, coding, &starts(image, coding, ranges, limits.threads)));
        let mut units = Self::default();
        if jobs.is_empty() {
            return Ok(units);
        }
        let mut file = BufWriter::new(tempfile::tempfile_in(folder)?);
        let mut len = 0;
        for some in jobs.chunks(JOBS) {
            let done = parallel::map(some.len(), limits.threads, |i| unpack(image, &some[i], grouping));
            for (bytes, text) in done.into_iter().flatten() {
                // Where a frame is broken off, what stands there is hardly ever taken for a block; yet it may be.
                if units.list.last().is_none_or(|last| last.bytes.end <= bytes.start) {
                    file.write_all(&text)?;
                    units.list.push(Unit { bytes, text: len..len + text.len() as u64 });
                    len += text.len() as u64;
                }
            }
            if len > limits.all {
                break;
            }
        }
        let file: File = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        units.text = Image::of_file(file)?;
        Ok(units)
    }

    /// The number of the unit that has this byte of the texts.
    pub fn of_text(&self, at: u64) -> usize {
        self.list.partition_point(|unit| unit.text.end <= at)
    }

    /// The text of a unit.
    pub fn text_of(&self, unit: &Unit) -> &[u8] {
        self.text.bytes().get(unit.text.start as usize..unit.text.end as usize).unwrap_or_default()
    }
}

/// Where frames begin: ascending.
fn starts(image: &[u8], coding: Whole, ranges: &[Range<u64>], threads: usize) -> Vec<usize> {
    let magic = container::magic(coding);
    let [one, two, ..] = *magic else { return Vec::new() };
    let cut = |range: &Range<u64>| {
        let end = range.end;
        (range.start..end).step_by(PIECE as usize).map(move |start| start..end.min(start + PIECE))
    };
    let pieces: Vec<Range<u64>> = ranges.iter().flat_map(cut).collect();
    let found = parallel::map(pieces.len(), threads, |i| {
        let end = (pieces[i].end as usize).min(image.len());
        let mut starts = Vec::new();
        for at in ((pieces[i].start as usize)..end).step_by(STRIDE) {
            let stop = end.min(at + STRIDE);
            let pairs = image[at..stop].iter().zip(&image[at + 1..]);
            // No short cuts: so the compiler makes it few instructions for many bytes.
            if pairs.fold(false, |any, (first, second)| any | ((*first == one) & (*second == two))) {
                starts.extend((at..stop).filter(|at| image[*at..].starts_with(magic)));
            }
        }
        starts
    });
    found.into_iter().flatten().collect()
}

/// Where the compressed blocks of these frames are, frame by frame.
pub(super) fn blocks(image: &[u8], coding: Whole, starts: &[usize]) -> Vec<Vec<Range<usize>>> {
    let (mut frames, mut behind) = (Vec::new(), 0);
    for start in starts.iter().filter_map(|start| Some(start + container::header(coding, &image[*start..])?)) {
        if start < behind {
            continue;
        }
        let (mut at, mut found) = (start, Vec::new());
        while let Some(block) = image.get(at..).and_then(|rest| container::block(coding, rest)) {
            let end = at + block.len;
            if end > image.len() {
                break;
            }
            if block.compressed {
                found.push(at..end);
            }
            // What is broken off may hide another frame behind the start of the last block that makes sense; yet several
            // magics may lead to the same block, which is looked at once.
            behind = at + 1;
            at = end;
            if block.last {
                behind = end;
                break;
            }
        }
        if !found.is_empty() {
            frames.push(found);
        }
    }
    frames
}

/// Blocks side by side or not, that are looked at by one thread.
fn jobs(frames: &[Vec<Range<usize>>]) -> Vec<Vec<Range<usize>>> {
    let mut jobs: Vec<Vec<Range<usize>>> = Vec::new();
    for blocks in frames.iter().flat_map(|frame| frame.chunks(JOB)) {
        match jobs.last_mut() {
            Some(last) if last.len() + blocks.len() <= JOB => last.extend_from_slice(blocks),
            _ => jobs.push(blocks.to_vec()),
        }
    }
    jobs
}

/// What becomes of some blocks, with their texts.
fn unpack(image: &[u8], blocks: &[Range<usize>], grouping: Grouping<'_>) -> Vec<(Range<u64>, Vec<u8>)> {
    let mut units: Vec<(Range<u64>, Vec<u8>)> = Vec::new();
    // The codes of the last unit, unless a block that could use them was left out.
    let mut codes: Option<Unpacker> = None;
    for block in blocks {
        let bytes = block.start as u64..block.end as u64;
        let wanted = (grouping.wanted)(&bytes);
        let follows = units.last().is_some_and(|(last, _)| last.end == bytes.start);
        let content = &image[block.clone()];
        let (mut alone, mut text) = (Unpacker::new(grouping.coding), Vec::new());
        let apart = alone.next(content, grouping.most, &mut text);
        if let (Some(known), Some((last, before)), true) = (codes.as_mut(), units.last_mut(), follows) {
            let len = before.len();
            let small = grouping.new && wanted && len + text.len() <= TOGETHER;
            if !apart || small {
                let most = grouping.most.saturating_sub(len);
                if known.next(content, most, before) {
                    last.end = bytes.end;
                    continue;
                }
                before.truncate(len);
            }
        }
        codes = apart.then_some(alone);
        if apart {
            units.push((bytes, text));
        }
    }
    if grouping.new {
        units.retain(|(bytes, text)| (grouping.wanted)(bytes) && is_right(image, grouping.coding, bytes, text));
    }
    units
}

/// Whether a text stands for these bytes: there are ways to write a block that it cannot tell.
fn is_right(image: &[u8], coding: Whole, bytes: &Range<u64>, text: &[u8]) -> bool {
    let there = &image[bytes.start as usize..bytes.end as usize];
    let mut packed = Vec::with_capacity(there.len());
    coding.pack(text, there.len(), &mut packed) && packed == there
}
