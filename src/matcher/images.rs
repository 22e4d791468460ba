//! The two images, and the lines along which new bytes can be compared with old ones.

use std::ops::Range;

use super::bytes;

/// The old image, restricted to its data: what lies outside (holes) is never looked at.
pub(super) struct Images<'a> {
    pub old: &'a [u8],
    /// Byte ranges of `old` that hold data: ascending, disjoint, not adjacent, within `old`.
    pub data: Vec<Range<usize>>,
    pub new: &'a [u8],
}

/// A displacement: the new byte at `x` is compared with the old byte at `x + shift` (wrapping, so a shift may be negative).
/// It holds for new offsets `lo..hi`, where the old byte exists, is no hole, and the data range is one and the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub shift: usize,
    pub lo: usize,
    pub hi: usize,
}

impl Line {
    pub(super) fn covers(&self, at: usize) -> bool {
        (self.lo..self.hi).contains(&at)
    }

    /// How far two displacements are apart, in bytes.
    pub(super) fn distance(&self, other: &Self) -> usize {
        let forth = self.shift.wrapping_sub(other.shift);
        forth.min(forth.wrapping_neg())
    }
}

impl<'a> Images<'a> {
    pub(super) fn new(old: &'a [u8], old_data: &[Range<u64>], new: &'a [u8]) -> Self {
        Self { old, data: normalise(old_data, old.len()), new }
    }

    /// The old data within `ranges`: ascending.
    pub(super) fn data_in(&self, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
        let within = |range: &Range<usize>| {
            let first = self.data.partition_point(|data| data.end <= range.start);
            let data = self.data[first..].iter().take_while(|data| data.start < range.end);
            data.map(|data| data.start.max(range.start)..data.end.min(range.end)).collect::<Vec<_>>()
        };
        ranges.iter().flat_map(within).collect()
    }

    /// The line that takes the new byte at `dst` from the old byte at `src`, unless that is a hole.
    pub(super) fn line(&self, dst: usize, src: usize) -> Option<Line> {
        let after = self.data.partition_point(|range| range.start <= src);
        let range = self.data.get(after.checked_sub(1)?)?;
        if src >= range.end {
            return None;
        }
        Some(Line {
            shift: src.wrapping_sub(dst),
            lo: dst.saturating_sub(src - range.start),
            hi: dst.saturating_add(range.end - src).min(self.new.len()),
        })
    }

    /// The old bytes that `line` gives for the new range `at`, which it covers.
    pub(super) fn old_of(&self, line: &Line, at: Range<usize>) -> &'a [u8] {
        &self.old[at.start.wrapping_add(line.shift)..][..at.len()]
    }

    /// How many bytes from `at` on are equal along `line`, looking no further than `end`.
    pub(super) fn equal_from(&self, line: &Line, at: usize, end: usize) -> usize {
        let end = end.min(line.hi);
        if at < line.lo || at >= end {
            return 0;
        }
        bytes::equal_prefix(&self.new[at..end], self.old_of(line, at..end))
    }

    /// How many bytes before `at` are equal along `line`, looking no further back than `start`.
    pub(super) fn equal_before(&self, line: &Line, at: usize, start: usize) -> usize {
        let start = start.max(line.lo);
        if at <= start || at > line.hi {
            return 0;
        }
        bytes::equal_suffix(&self.new[start..at], self.old_of(line, start..at))
    }

    /// How many bytes in `range` are equal along `line`; those it does not cover count as different.
    pub(super) fn equal_in(&self, line: &Line, range: Range<usize>) -> usize {
        let (start, end) = (range.start.max(line.lo), range.end.min(line.hi));
        if start >= end {
            return 0;
        }
        end - start - bytes::count_different(&self.new[start..end], self.old_of(line, start..end))
    }
}

/// `ranges` in the machine's word size, cut at `len`, in order, without overlap, adjacent ones joined.
pub(super) fn normalise(ranges: &[Range<u64>], len: usize) -> Vec<Range<usize>> {
    let clip = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    let mut clean: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        let (mut start, end) = (clip(range.start), clip(range.end));
        if let Some(last) = clean.last_mut() {
            start = start.max(last.end);
            if start == last.end && end > start {
                last.end = end;
                continue;
            }
        }
        if start < end {
            clean.push(start..end);
        }
    }
    clean
}
