//! A set of block numbers: a bitmap in pages that exist only where something is set, so that its memory follows what a
//! delta touches and not the size of the device (32 KiB per touched GiB at the most).

use crate::units::Extent;
use std::collections::BTreeMap;

/// Blocks in a page of the bitmap: 2^15 blocks are 128 MiB of image in 4 KiB of memory.
pub const PAGE_BLOCKS: u64 = 1 << 15;
const WORDS: usize = (PAGE_BLOCKS / 64) as usize;

/// A set of block numbers.
#[derive(Clone, Debug, Default)]
pub struct BlockSet {
    pages: BTreeMap<u64, Box<[u64; WORDS]>>,
}

/// The words of a page that `[from, to)` (block numbers within the page) covers, each with its mask.
fn masks(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    (from / 64..to.div_ceil(64)).map(move |word| {
        let first = word * 64;
        let low = from.saturating_sub(first).min(63);
        let high = (to - first).min(64);
        let mask = (u64::MAX >> (64 - (high - low))) << low;
        (word as usize, mask)
    })
}

/// Cuts an extent at page borders: (page number, first block in the page, one past the last).
fn pages_of(extent: Extent) -> impl Iterator<Item = (u64, u64, u64)> {
    let end = extent.end();
    let first = extent.start / PAGE_BLOCKS;
    let last = if extent.count == 0 { first } else { (end - 1) / PAGE_BLOCKS + 1 };
    (first..last).map(move |page| {
        let base = page * PAGE_BLOCKS;
        (page, extent.start.saturating_sub(base), (end - base).min(PAGE_BLOCKS))
    })
}

impl BlockSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds all blocks of the extent.
    pub fn insert(&mut self, extent: Extent) {
        for (page, from, to) in pages_of(extent) {
            let words = self.pages.entry(page).or_insert_with(|| Box::new([0; WORDS]));
            for (word, mask) in masks(from, to) {
                words[word] |= mask;
            }
        }
    }

    /// Whether any block of the extent is in the set.
    #[must_use]
    pub fn any(&self, extent: Extent) -> bool {
        pages_of(extent).any(|(page, from, to)| {
            self.pages.get(&page).is_some_and(|words| masks(from, to).any(|(word, mask)| words[word] & mask != 0))
        })
    }

    /// Whether the block is in the set.
    #[must_use]
    pub fn contains(&self, block: u64) -> bool {
        self.any(Extent { start: block, count: 1 })
    }

    /// The first block of the extent that is in the set.
    #[must_use]
    pub fn first_in(&self, extent: Extent) -> Option<u64> {
        self.runs_in(extent).find(|(_, set)| *set).map(|(run, _)| run.start)
    }

    /// The extent cut into runs of blocks that are all in the set (`true`) or all outside (`false`), ascending.
    pub fn runs_in(&self, extent: Extent) -> impl Iterator<Item = (Extent, bool)> + '_ {
        let mut at = extent.start;
        let end = extent.end();
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let set = self.contains(at);
            let start = at;
            while at < end {
                at = self.run_end(at, set).min(end);
                if at < end && self.contains(at) != set {
                    break;
                }
            }
            Some((Extent { start, count: at - start }, set))
        })
    }

    /// Where the run of equal membership that `at` lies in ends, looking no further than its page, or the gap it is in.
    fn run_end(&self, at: u64, set: bool) -> u64 {
        let page = at / PAGE_BLOCKS;
        let page_end = (page + 1) * PAGE_BLOCKS;
        let Some(words) = self.pages.get(&page) else {
            // Nothing is set up to the next page that exists.
            return self.pages.range(page..).next().map_or(u64::MAX, |(next, _)| next * PAGE_BLOCKS);
        };
        let mut pos = at % PAGE_BLOCKS;
        while pos < PAGE_BLOCKS {
            let word = if set { !words[(pos / 64) as usize] } else { words[(pos / 64) as usize] };
            let rest = word >> (pos % 64);
            if rest != 0 {
                return page * PAGE_BLOCKS + pos + u64::from(rest.trailing_zeros());
            }
            pos = (pos / 64 + 1) * 64;
        }
        page_end
    }

    /// All blocks as merged extents, ascending.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let end = self.pages.keys().next_back().map_or(0, |page| (page + 1) * PAGE_BLOCKS);
        let start = self.pages.keys().next().map_or(0, |page| page * PAGE_BLOCKS);
        self.runs_in(Extent { start, count: end - start }).filter(|(_, set)| *set).map(|(run, _)| run)
    }

    /// How many blocks are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.pages.values().flat_map(|words| words.iter()).map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether the set has no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages of the bitmap: each takes about 4,200 bytes.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Removes all blocks.
    pub fn clear(&mut self) {
        self.pages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(adds in prop::collection::vec((0u64..70_000, 0u64..700), 0..20), probe in (0u64..70_000, 0u64..40_000)) {
            let mut set = BlockSet::new();
            let mut plain = BTreeSet::new();
            for (start, count) in adds {
                set.insert(Extent { start, count });
                plain.extend(start..start + count);
            }
            let probe = Extent { start: probe.0, count: probe.1 };
            prop_assert_eq!(set.len(), plain.len() as u64);
            prop_assert_eq!(set.first_in(probe), plain.range(probe.start..probe.end()).next().copied());
            prop_assert_eq!(set.any(probe), plain.range(probe.start..probe.end()).next().is_some());
            let mut at = probe.start;
            let mut before = None;
            for (run, inside) in set.runs_in(probe) {
                prop_assert_eq!(run.start, at);
                prop_assert!(run.count > 0 && before != Some(inside));
                for block in run.start..run.end() {
                    prop_assert_eq!(plain.contains(&block), inside);
                }
                at = run.end();
                before = Some(inside);
            }
            prop_assert_eq!(at, probe.end());
            let listed: u64 = set.extents().map(|e| e.count).sum();
            prop_assert_eq!(listed, set.len());
        }
    }
}
