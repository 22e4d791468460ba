//! Where in the old image a window of 32 bytes occurs.
//!
//! Windows start at every `grid` bytes of the old data, and more densely in the old content of what changed: a journal,
//! for one, holds copies of such blocks. An entry is 32 bits: the number of the window and, above it,
//! as many bits of the window's hash as are left, which spare nearly all vain looks at the old image (each a cache
//! miss). Entries lie in buckets of eight, half a cache line. A filter, 64 bits for each bucket, is asked first: it answers
//! nine of ten vain lookups, and is small enough to stay near the processor, which the table is not.
//! A window that repeats is kept a few times; later ones are dropped, as is what finds its bucket full.

use std::ops::Range;
use std::thread;

use super::images::Images;
use crate::parallel::start_or_do;

/// Bytes that are looked up at once.
pub(super) const WINDOW: usize = 32;
/// Windows looked up in one go, so that the cache misses overlap.
pub(super) const BATCH: usize = 32;
/// Entries with the same tag in one bucket: nearly always the same content.
const REPEATS: usize = 4;
/// Windows gathered before they are put into the table: bounds the temporary memory.
const ROUND: usize = 1 << 20;
/// Parts of the table that are filled one at a time, so that a part stays in the cache meanwhile.
const PARTS: usize = 256;

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Bucket([u32; 8]);

/// Slots for two windows: 2 % of the windows find their bucket full.
const SLOTS_FOR_TWO: usize = 3;

pub(super) struct Index {
    buckets: Vec<Bucket>,
    /// For each bucket, a bit for each of its entries, chosen by six bits of the hash.
    filter: Vec<u32>,
    windows: Windows,
    id_bits: u32,
}

/// The numbering of windows: data ranges one after another, each from a fresh number.
struct Windows {
    grid: usize,
    /// The first byte of each data range, with the bytes from window to window and the numbers of its windows.
    ranges: Vec<(usize, usize, Range<usize>)>,
    count: usize,
}

/// A window's hash; `None` for one that repeats after eight bytes or fewer, such as zeros: it says nothing.
fn hash(window: &[u8; WINDOW]) -> Option<u64> {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(window.chunks_exact(8)) {
        *word = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    }
    let [a, b, c, d] = words;
    if a == b && b == c && c == d {
        return None;
    }
    let left = u128::from(a ^ 0xa076_1d64_78bd_642f) * u128::from(b ^ 0xe703_7ed1_a0b4_28db);
    let right = u128::from(c ^ 0x8ebc_6af0_9c88_c6e3) * u128::from(d ^ 0x5899_65cc_7537_4cc3);
    let fold = |product: u128| (product as u64) ^ (product >> 64) as u64;
    Some((fold(left) ^ fold(right).rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Windows {
    /// Of `data` at every `grid` bytes, and of `dense` at every `fine` bytes.
    fn new(data: &[Range<usize>], grid: usize, dense: &[Range<usize>], fine: usize) -> Self {
        let mut ranges = Vec::with_capacity(data.len());
        let mut count = 0;
        let dense = dense.iter().filter(|_| fine < grid).map(|range| (range, fine));
        let all = dense.chain(data.iter().map(|range| (range, grid)));
        for (range, grid) in all.filter(|(range, _)| range.len() >= WINDOW) {
            let here = (range.len() - WINDOW) / grid + 1;
            ranges.push((range.start, grid, count..count + here));
            count += here;
        }
        Self { grid, ranges, count }
    }

    /// Old offset of window `id`.
    fn offset(&self, id: usize) -> Option<usize> {
        let after = self.ranges.partition_point(|(_, _, ids)| ids.start <= id);
        let (start, grid, ids) = self.ranges.get(after.checked_sub(1)?)?;
        Some(start + (id - ids.start) * grid)
    }

    /// Calls `each` with number and old offset of the windows `ids`.
    fn for_each(&self, ids: Range<usize>, mut each: impl FnMut(usize, usize)) {
        let first = self.ranges.partition_point(|(_, _, range)| range.end <= ids.start);
        for (start, grid, range) in &self.ranges[first..] {
            if range.start >= ids.end {
                break;
            }
            for id in range.start.max(ids.start)..range.end.min(ids.end) {
                each(id, start + (id - range.start) * grid);
            }
        }
    }
}

/// What one thread gathers in one round: for each part of the table, bucket within the part (with the filter's bit above
/// it) and entry.
type Gathered = Vec<Vec<(u32, u32)>>;
/// A part of the table, and of the filter.
type Part<'a> = (&'a mut [Bucket], &'a mut [u32]);
/// A part of 256 has fewer than 2^26 buckets, as there are fewer than 2^31 slots.
const PLACE_BITS: u32 = 26;

impl Index {
    /// Indexes the old data at every `grid` bytes, or more coarsely where `memory` bytes would not do, and the ranges
    /// `dense` of it at every `fine` bytes.
    pub(super) fn build(
        images: &Images,
        grid: usize,
        (dense, fine): (&[Range<usize>], usize),
        memory: u64,
        threads: usize,
    ) -> Self {
        let (mut grid, mut fine) = (grid.max(1), fine.max(1));
        let mut windows = Windows::new(&images.data, grid, dense, fine);
        while windows.count > 1 << 30 || table_bytes(windows.count) > memory {
            if windows.count <= windows.ranges.len() {
                // One window for each data range, and still too many: do without.
                windows = Windows::new(&[], grid, &[], fine);
                break;
            }
            grid += grid.div_ceil(8).next_multiple_of(grid.min(8));
            fine += fine.div_ceil(8).next_multiple_of(fine.min(8));
            windows = Windows::new(&images.data, grid, dense, fine);
        }
        let total = buckets_for(windows.count);
        let (buckets, filter) = (vec![Bucket::default(); total], vec![0; total]);
        let id_bits = usize::BITS - windows.count.leading_zeros();
        let mut index = Self { buckets, filter, windows, id_bits };
        index.fill(images, threads.max(1));
        index
    }

    /// Bytes from one window of the old data to the next.
    pub(super) fn grid(&self) -> usize {
        self.windows.grid
    }

    /// Puts all windows into the table, in their order whatever the number of threads.
    fn fill(&mut self, images: &Images, threads: usize) {
        let mut buckets = std::mem::take(&mut self.buckets);
        let mut filter = std::mem::take(&mut self.filter);
        let total = buckets.len();
        let size = total.div_ceil(PARTS);
        let mut parts: Vec<Part> = buckets.chunks_mut(size).zip(filter.chunks_mut(size)).collect();
        let mut gathered: Vec<Gathered> = (0..threads).map(|_| vec![Vec::new(); parts.len()]).collect();
        for round in (0..self.windows.count).step_by(ROUND) {
            let ids = round..(round + ROUND).min(self.windows.count);
            let share = ids.len().div_ceil(threads);
            thread::scope(|scope| {
                for (thread, gathered) in gathered.iter_mut().enumerate() {
                    let start = (ids.start + thread * share).min(ids.end);
                    let ids = start..(start + share).min(ids.end);
                    let index = &*self;
                    start_or_do(scope, move || index.gather(images, ids, total, size, gathered));
                }
            });
            let share = parts.len().div_ceil(threads);
            thread::scope(|scope| {
                for (group, parts) in parts.chunks_mut(share).enumerate() {
                    let (index, gathered) = (&*self, &gathered);
                    start_or_do(scope, move || {
                        for (number, part) in parts.iter_mut().enumerate() {
                            for entries in gathered.iter().filter_map(|all| all.get(group * share + number)) {
                                index.insert(part, entries);
                            }
                        }
                    });
                }
            });
        }
        (self.buckets, self.filter) = (buckets, filter);
    }

    /// Hashes the windows `ids` and sorts them by part of a table of `total` buckets, `size` in each part.
    fn gather(&self, images: &Images, ids: Range<usize>, total: usize, size: usize, gathered: &mut Gathered) {
        gathered.iter_mut().for_each(Vec::clear);
        self.windows.for_each(ids, |id, offset| {
            let window = images.old.get(offset..).and_then(|bytes| bytes.first_chunk());
            let Some(hash) = window.and_then(hash) else { return };
            let bucket = bucket_of(hash, total);
            let place = (bucket % size) as u32 | filter_bit(hash) << PLACE_BITS;
            gathered[bucket / size].push((place, self.tag(hash) | (id as u32 + 1)));
        });
    }

    fn insert(&self, (buckets, filter): &mut Part, entries: &[(u32, u32)]) {
        for &(place, entry) in entries {
            let bucket = (place & ((1 << PLACE_BITS) - 1)) as usize;
            let slots = &mut buckets[bucket].0;
            let same = slots.iter().filter(|&&slot| slot != 0 && (slot ^ entry) >> self.id_bits == 0).count();
            if same >= REPEATS {
                continue;
            }
            if let Some(free) = slots.iter_mut().find(|slot| **slot == 0) {
                *free = entry;
                filter[bucket] |= 1 << (place >> PLACE_BITS);
            }
        }
    }

    /// The hash's bits that lie above the window number in an entry.
    fn tag(&self, hash: u64) -> u32 {
        (hash as u32) >> self.id_bits << self.id_bits
    }

    /// Looks up the windows of `new` that start in `starts` (at most `BATCH`); adds to `found`, for each that may occur
    /// in the old image, its new offset and an old offset. Hashes collide: the caller must compare.
    pub(super) fn find(&self, new: &[u8], starts: Range<usize>, found: &mut Vec<(usize, usize)>) {
        let mut hashes = [(0, 0, 0); BATCH];
        let mut count = 0;
        for at in starts.take(BATCH) {
            let Some(window) = new.get(at..).and_then(|bytes| bytes.first_chunk()) else { break };
            if let Some(hash) = hash(window) {
                hashes[count] = (at, hash, bucket_of(hash, self.buckets.len()));
                count += 1;
            }
        }
        // Separate passes without branches, for then the processor has many cache misses under way at once.
        let mut words = [0u32; BATCH];
        for (word, &(_, _, bucket)) in words.iter_mut().zip(&hashes[..count]) {
            *word = self.filter[bucket];
        }
        for (word, &(at, hash, bucket)) in words.iter().zip(&hashes[..count]) {
            if word >> filter_bit(hash) & 1 == 0 {
                continue;
            }
            let tag = self.tag(hash);
            for slot in self.buckets[bucket].0.into_iter().filter(|&slot| (slot ^ tag) >> self.id_bits == 0) {
                let id = (slot & ((1 << self.id_bits) - 1)) as usize;
                if let Some(src) = id.checked_sub(1).and_then(|id| self.windows.offset(id)) {
                    found.push((at, src));
                }
            }
        }
    }
}

/// Buckets for `windows`.
fn buckets_for(windows: usize) -> usize {
    (windows * SLOTS_FOR_TWO).div_ceil(16) + 1
}

/// Bytes that the table for `windows` takes, filter included.
fn table_bytes(windows: usize) -> u64 {
    buckets_for(windows) as u64 * (size_of::<Bucket>() + size_of::<u32>()) as u64
}

/// The bit of a bucket's filter word for `hash`: bits that neither bucket nor, mostly, tag come from.
fn filter_bit(hash: u64) -> u32 {
    (hash & 31) as u32
}

/// The bucket for `hash` in a table of `total`: its upper half, scaled.
fn bucket_of(hash: u64, total: usize) -> usize {
    (((hash >> 32) * total as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_indexed_more_densely() {
        let mut state = 1u64;
        let old: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(64 << 10)
        .collect();
        let images = Images::new(&old, &[0..old.len() as u64], &old);
        let dense = [8192..12288, 20480..24576];
        let index = Index::build(&images, 1024, (&dense, 16), 1 << 20, 2);
        let mut known = 0;
        for at in (0..old.len() - WINDOW).step_by(16) {
            let mut found = Vec::new();
            index.find(&old, at..at + 1, &mut found);
            let expected = at % 1024 == 0 || dense.iter().any(|range| range.start <= at && at + WINDOW <= range.end);
            // A bucket may have been full, so not quite all are there.
            assert!(expected || !found.contains(&(at, at)), "{at}");
            known += usize::from(found.contains(&(at, at)));
        }
        assert!(known > 500, "{known}");
    }
}
