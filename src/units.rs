//! The units that everything else counts in: 4 KiB blocks, block extents and byte ranges.
//!
//! Offsets and lengths of images are `u64` everywhere, also on 32-bit machines.

use std::ops::Range;

/// Bytes in a block, the granularity of writes and of the rules R1 to R4. Normative (spec, chapter 2).
pub const BLOCK: u64 = 4096;

/// Bytes in a part, the unit of the combinable digests. A power of two and a multiple of [`BLOCK`].
pub const PART: u64 = 1 << 20;

/// The block that holds byte `offset`.
#[must_use]
pub fn block_of(offset: u64) -> u64 {
    offset / BLOCK
}

/// How many blocks an image of `len` bytes has; the last one may be short.
#[must_use]
pub fn blocks_in(len: u64) -> u64 {
    len.div_ceil(BLOCK)
}

/// The blocks touched by a byte range; empty for an empty range.
#[must_use]
pub fn blocks_touched(bytes: &Range<u64>) -> Extent {
    if bytes.start >= bytes.end {
        return Extent { start: block_of(bytes.start), count: 0 };
    }
    let start = block_of(bytes.start);
    Extent { start, count: block_of(bytes.end - 1) - start + 1 }
}

/// A run of whole blocks: `count` blocks from block number `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// First block number.
    pub start: u64,
    /// Number of blocks.
    pub count: u64,
}

impl Extent {
    /// One past the last block.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.count
    }

    /// The bytes of this extent in an image of `len` bytes (the image's last block may be short).
    #[must_use]
    pub fn bytes(&self, len: u64) -> Range<u64> {
        let end = self.end().saturating_mul(BLOCK).min(len);
        (self.start.saturating_mul(BLOCK)).min(end)..end
    }

    /// The blocks common to both.
    #[must_use]
    pub fn intersect(&self, other: &Extent) -> Extent {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        Extent { start, count: end.saturating_sub(start) }
    }
}

/// Sorts extents and merges those that touch or overlap: the canonical form.
pub fn merge_extents(extents: &mut Vec<Extent>) {
    extents.retain(|e| e.count > 0);
    extents.sort_unstable();
    let mut kept = 0;
    for i in 1..extents.len() {
        let next = extents[i];
        if next.start <= extents[kept].end() {
            let end = next.end().max(extents[kept].end());
            extents[kept].count = end - extents[kept].start;
        } else {
            kept += 1;
            extents[kept] = next;
        }
    }
    extents.truncate((kept + 1).min(extents.len()));
}

/// Sorts byte ranges and merges those that touch or overlap.
pub fn merge_ranges(ranges: &mut Vec<Range<u64>>) {
    ranges.retain(|r| r.start < r.end);
    ranges.sort_unstable_by_key(|r| (r.start, r.end));
    let mut kept = 0;
    for i in 1..ranges.len() {
        let next = ranges[i].clone();
        if next.start <= ranges[kept].end {
            ranges[kept].end = ranges[kept].end.max(next.end);
        } else {
            kept += 1;
            ranges[kept] = next;
        }
    }
    ranges.truncate((kept + 1).min(ranges.len()));
}

/// The number of blocks in a list of extents.
#[must_use]
pub fn count_blocks(extents: &[Extent]) -> u64 {
    extents.iter().map(|e| e.count).sum()
}

/// A byte count for people: `1.5 MiB`, exact below 10 KiB.
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 10 * 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_joins_touching_and_keeps_gaps() {
        let mut list = vec![
            Extent { start: 9, count: 1 },
            Extent { start: 0, count: 2 },
            Extent { start: 2, count: 3 },
            Extent { start: 4, count: 2 },
            Extent { start: 7, count: 0 },
        ];
        merge_extents(&mut list);
        assert_eq!(list, [Extent { start: 0, count: 6 }, Extent { start: 9, count: 1 }]);
        let mut ranges = vec![5..7, 0..0, 7..9, 1..2];
        merge_ranges(&mut ranges);
        assert_eq!(ranges, [1..2, 5..9]);
    }

    #[test]
    fn an_extent_ends_with_the_image() {
        let e = Extent { start: 1, count: 2 };
        assert_eq!(e.bytes(3 * BLOCK), BLOCK..3 * BLOCK);
        assert_eq!(e.bytes(BLOCK + 5), BLOCK..BLOCK + 5);
        assert_eq!(e.bytes(5), 5..5);
        assert_eq!(blocks_touched(&(4095..4097)), Extent { start: 0, count: 2 });
    }
}
