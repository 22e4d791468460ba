//! Finding where the new image's bytes come from. Pure: bytes in, runs out.
//!
//! The way: [`index`] the old data by windows; cut what changed into segments, which are worked on independently
//! of each other and so on any number of cores with the same result; within a segment set zero blocks aside, [`scan`]
//! the rest for the old places it comes from, and [`settle`] byte by byte where one source ends and the next begins.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

mod bytes;
mod images;
mod index;
mod near;
mod scan;
mod settle;
#[cfg(test)]
mod tests;

use crate::parallel::start_or_do;
use images::{Images, normalise};
use index::Index;
use settle::Span;

/// What produces a run of bytes of the new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The bytes themselves, in the delta.
    Literal,
    /// Zeros.
    Zero,
    /// The old image's bytes from offset `src` on.
    Copy {
        /// First source byte, in the old image.
        src: u64,
    },
    /// The old image's bytes from offset `src` on, each plus a difference (wrapping).
    Add {
        /// First source byte, in the old image.
        src: u64,
    },
    /// Compressed data (deflated, or zstd's blocks), made of a changed text. The matcher does not find these: see `recode`.
    Recoded,
}

/// One run: `len` bytes of the new image from offset `dst` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte, in the new image.
    pub dst: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Where they come from.
    pub source: Source,
}

impl Run {
    /// The part from byte `skip` of the run on, `len` bytes long.
    #[must_use]
    pub fn part(&self, skip: u64, len: u64) -> Self {
        let source = match self.source {
            Source::Copy { src } => Source::Copy { src: src + skip },
            Source::Add { src } => Source::Add { src: src + skip },
            other => other,
        };
        Self { dst: self.dst + skip, len, source }
    }

    /// Whether the next run goes on where this one ends, in what it makes and in what it reads.
    #[must_use]
    pub fn goes_on(&self, next: &Self) -> bool {
        *next == self.part(self.len, next.len)
    }
}

/// What finding runs may cost.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes that the index may take; it gets coarser to fit.
    pub memory: u64,
    /// Threads to work with, at least 1. The result does not depend on it.
    pub threads: usize,
    /// 1, fast, to 9, thorough.
    pub level: u32,
    /// Whether to decide anew what an old place hardly equals. Not for texts of deflated data: as literals they cost more
    /// than the estimate says, and it would gain nothing (`release`: 0.02 %).
    pub revise: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: 640 << 20, threads: 1, level: 6, revise: true }
    }
}

/// Zero blocks of this many bytes, at multiples of it, are set aside.
const BLOCK: usize = 4096;
/// Changed bytes in a segment, the unit of parallel work.
const SEGMENT: usize = 4 << 20;
/// Bytes of a segment that may be decided anew, where an old place hardly equals them. This bound and [`Options::revise`] for
/// texts together make `release` 0.03 % larger, and what was made to be slow takes a third of the time.
const REVISED: usize = SEGMENT / 4;

/// Says for all of `changed` where it comes from.
///
/// `old_data`: the ranges of `old` that are not holes. `changed`: the ranges of `new` to produce. Both are byte ranges,
/// ascending and disjoint; nothing outside them is looked at. The runs tile `changed`, in order, and none goes beyond
/// the end of a changed range.
#[must_use]
pub fn find_runs(
    old: &[u8],
    old_data: &[Range<u64>],
    new: &[u8],
    changed: &[Range<u64>],
    options: &Options,
) -> Vec<Run> {
    find_runs_telling(old, old_data, new, changed, options, &|_| ())
}

/// The same; `done` is told, by several threads, how many more bytes of `changed` were searched.
pub fn find_runs_telling(
    old: &[u8],
    old_data: &[Range<u64>],
    new: &[u8],
    changed: &[Range<u64>],
    options: &Options,
    done: &(dyn Fn(u64) + Sync),
) -> Vec<Run> {
    let changed = normalise(changed, new.len());
    if changed.is_empty() {
        return Vec::new();
    }
    let images = Images::new(old, old_data, new);
    let effort = Effort::of(options.level);
    let replaced = images.data_in(&changed);
    let grid = effort.grid(&images, &changed);
    let index = Index::build(&images, grid, (&replaced, effort.grid), options.memory, options.threads);
    let segments = segments(&changed);
    let work = |segment: &Vec<Range<usize>>| {
        let budget = if options.revise { REVISED } else { 0 };
        let runs = segment_runs(&images, &index, segment, effort.finer, budget);
        done(segment.iter().map(|range| range.len() as u64).sum());
        runs
    };
    let mut runs: Vec<Run> = Vec::new();
    for part in in_parallel(&segments, options.threads, work) {
        for run in part {
            push(&mut runs, run);
        }
    }
    runs
}

/// What a level stands for.
#[derive(Clone, Copy)]
struct Effort {
    /// Bytes from one indexed window of the old data to the next.
    grid: usize,
    /// Whether gaps are searched once more, finely.
    finer: bool,
}

impl Effort {
    fn of(level: u32) -> Self {
        let (grid, finer) = match level {
            0 | 1 => (128, false),
            2 => (64, false),
            3 => (32, false),
            4 => (48, true),
            5 => (32, true),
            6 => (16, true),
            7 => (12, true),
            _ => (8, true),
        };
        Self { grid, finer }
    }

    /// The grid for these images: coarser where little changed, for the index must not cost more than it can bring.
    fn grid(self, images: &Images, changed: &[Range<usize>]) -> usize {
        let sum = |ranges: &[Range<usize>]| ranges.iter().map(Range::len).sum::<usize>();
        let windows = sum(changed).saturating_mul(2).saturating_add(1 << 20);
        self.grid.max(sum(&images.data) / windows).next_multiple_of(4)
    }
}

/// Cuts `changed` after every `SEGMENT` bytes.
fn segments(changed: &[Range<usize>]) -> Vec<Vec<Range<usize>>> {
    let mut segments = vec![Vec::new()];
    let mut room = SEGMENT;
    for range in changed {
        let mut start = range.start;
        while start < range.end {
            // Within a range a cut is at a block's end, so that zero blocks are found whole.
            let cut = (start + room).next_multiple_of(BLOCK).min(range.end);
            if let Some(last) = segments.last_mut() {
                last.push(start..cut);
            }
            room = room.saturating_sub(cut - start);
            if room == 0 {
                segments.push(Vec::new());
                room = SEGMENT;
            }
            start = cut;
        }
    }
    segments
}

/// `work` on each of `items`, by `threads` threads; the results in the order of the items.
fn in_parallel<I: Sync, R: Send>(items: &[I], threads: usize, work: impl Fn(&I) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            start_or_do(scope, || {
                while let Some((number, item)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|number| items.get(number).map(|item| (number, item)))
                {
                    let result = work(item);
                    if let Ok(mut results) = results.lock() {
                        results.push((number, result));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_unstable_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

fn segment_runs(images: &Images, index: &Index, segment: &[Range<usize>], finer: bool, mut budget: usize) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut carried = 0;
    for range in segment {
        for (piece, zero) in pieces(images.new, range) {
            if zero {
                runs.push(run(piece, Source::Zero));
                continue;
            }
            let anchors = scan::scan(images, index, piece.clone(), &[carried, 0]);
            carried = anchors.last().map_or(carried, |last| last.line.shift);
            for span in settle::settle(images, piece, &anchors, finer, &mut budget) {
                span_runs(images, &span, &mut runs);
            }
        }
    }
    runs
}

/// Cuts `range` into stretches of zero blocks (`true`) and of others. The last block of the image may be short.
fn pieces(new: &[u8], range: &Range<usize>) -> Vec<(Range<usize>, bool)> {
    let mut pieces: Vec<(Range<usize>, bool)> = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let end = (start + BLOCK - start % BLOCK).min(range.end);
        let whole = start.is_multiple_of(BLOCK) && (end.is_multiple_of(BLOCK) || end == new.len());
        let zero = whole && bytes::is_zero(&new[start..end]);
        match pieces.last_mut() {
            Some((piece, same)) if *same == zero => piece.end = end,
            _ => pieces.push((start..end, zero)),
        }
        start = end;
    }
    pieces
}

fn run(range: Range<usize>, source: Source) -> Run {
    Run { dst: range.start as u64, len: range.len() as u64, source }
}

/// The runs for `span`: a copy if all of it is equal, literal if most of it differs.
fn span_runs(images: &Images, span: &Span, runs: &mut Vec<Run>) {
    let range = span.start..span.end;
    let source = match span.line {
        Some(line) if !range.is_empty() => {
            let different = range.len() - images.equal_in(&line, range.clone());
            let src = range.start.wrapping_add(line.shift) as u64;
            match different {
                0 => Source::Copy { src },
                _ if different * 2 > range.len() => Source::Literal,
                _ => Source::Add { src },
            }
        }
        _ => Source::Literal,
    };
    push(runs, run(range, source));
}

/// Adds a run, or lengthens the last one where that does as well.
fn push(runs: &mut Vec<Run>, run: Run) {
    if run.len == 0 {
        return;
    }
    if let Some(last) = runs.last_mut().filter(|last| last.dst + last.len == run.dst) {
        let joined = match (last.source, run.source) {
            (Source::Literal, Source::Literal) => Some(Source::Literal),
            (Source::Zero, Source::Zero) => Some(Source::Zero),
            (Source::Copy { src }, Source::Copy { src: next }) if src + last.len == next => Some(Source::Copy { src }),
            (Source::Copy { src } | Source::Add { src }, Source::Copy { src: next } | Source::Add { src: next })
                if src + last.len == next =>
            {
                Some(Source::Add { src })
            }
            _ => None,
        };
        if let Some(source) = joined {
            last.source = source;
            last.len += run.len;
            return;
        }
    }
    runs.push(run);
}
