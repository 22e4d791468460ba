//! Compares two images block by block at equal offsets, hashing both on the way: equal parts once, holes unread.

use crate::blockset::BlockSet;
use crate::digest::{ImageId, PartDigest, TreeDigest, ZERO_BLOCK, ZERO_PART, combine_crc, crc_of_zeros, is_zero};
use crate::image::Image;
use crate::monitor::{Monitor, Silent};
use crate::parallel;
use crate::units::{BLOCK, Extent, PART, merge_extents};
use crate::zero_groups::{group_count, group_range, zero_group};
use std::ops::Range;
use std::sync::LazyLock;

/// An image as the comparison sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// All bytes.
    pub bytes: &'a [u8],
    /// Ranges that are not holes.
    pub data: &'a [Range<u64>],
}

impl<'a> View<'a> {
    /// Of an image.
    #[must_use]
    pub fn of(image: &'a Image) -> Self {
        Self { bytes: image.bytes(), data: image.data() }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether nothing but holes lies in the range.
    #[must_use]
    pub fn is_hole(&self, range: &Range<u64>) -> bool {
        let next = self.data.partition_point(|data| data.end <= range.start);
        self.data.get(next).is_none_or(|data| data.start >= range.end)
    }

    /// The bytes of a range, cut at the end. A hole is answered from a static page of zeros, without touching the map.
    fn part(&self, offset: u64) -> &'a [u8] {
        let end = (offset + PART).min(self.len());
        let start = offset.min(end);
        if self.is_hole(&(start..end)) {
            return &ZERO_PART[..(end - start) as usize];
        }
        &self.bytes[start as usize..end as usize]
    }
}

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The old image's length and digests.
    pub old: ImageId,
    /// The new image's length and digests.
    pub new: ImageId,
    /// Blocks of the new image that differ, or that lie behind the old one's end: ascending, merged.
    pub changed: Vec<Extent>,
    /// Blocks of the old image that are not zero: ascending, merged. Unlike its holes, they depend on nothing else.
    pub old_data: Vec<Extent>,
    /// `None` for parts of zero groups.
    old_parts: Vec<Option<PartDigest>>,
}

/// Of one part: digest of the old and of the new part, changed blocks, and old blocks that are not zero.
type PartResult = (Option<PartDigest>, Option<PartDigest>, Vec<Extent>, Vec<Extent>);

/// The digest of the i-th group, if it is zero in all views, below the root of trees of all these lengths.
fn group_of_zeros(group: usize, views: &[View<'_>], totals: &[u64]) -> Option<PartDigest> {
    let range = group_range(group);
    let inside = totals.iter().all(|total| *total >= range.end && *total > range.end - range.start);
    let digest = zero_group(range.start).filter(|_| inside)?;
    let zero = |view: &View<'_>| view.is_hole(&range) || parts_of(&range).all(|offset| is_zero(view.part(offset)));
    views.iter().all(zero).then_some(digest)
}

/// The offsets of the parts in a range.
fn parts_of(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    (range.start..range.end).step_by(PART as usize)
}

/// The i-th group of an image of `len` bytes.
fn group_within(group: usize, len: u64) -> Range<u64> {
    let range = group_range(group);
    range.start..range.end.min(len)
}

/// Compares two images.
#[must_use]
pub fn compare(old: View<'_>, new: View<'_>, threads: usize, monitor: &dyn Monitor) -> Comparison {
    compare_sharing(old, new, &[], threads, monitor)
}

/// Compares two images of which it is known that they are the same in some ranges (ascending): there, the new one is not
/// looked at, as far as whole parts go.
#[must_use]
pub fn compare_sharing(
    old: View<'_>,
    new: View<'_>,
    shared: &[Range<u64>],
    threads: usize,
    monitor: &dyn Monitor,
) -> Comparison {
    let len = old.len().max(new.len());
    monitor.phase("comparing", len);
    let results = parallel::map(group_count(len), threads, |group| {
        let range = group_within(group, len);
        monitor.advance(range.end - range.start);
        match group_of_zeros(group, &[old, new], &[old.len(), new.len()]) {
            Some(digest) => GroupResult::Zero(digest),
            None => GroupResult::Parts(parts_of(&range).map(|offset| compare_part(old, new, shared, offset)).collect()),
        }
    });
    let (mut old_tree, mut new_tree) = (TreeDigest::new(old.len()), TreeDigest::new(new.len()));
    let mut changed = Vec::new();
    let mut old_parts = Vec::new();
    let mut old_data = Vec::new();
    for group in results {
        let parts = match group {
            GroupResult::Zero(digest) => {
                old_tree.push(digest, false);
                new_tree.push(digest, false);
                old_parts.extend((0..digest.len / PART).map(|_| None));
                continue;
            }
            GroupResult::Parts(parts) => parts,
        };
        for (old_part, new_part, extents, data) in parts {
            if let Some(part) = old_part {
                old_tree.push(part, false);
                old_parts.push(Some(part));
            }
            if let Some(part) = new_part {
                new_tree.push(part, false);
            }
            changed.extend(extents);
            old_data.extend(data);
        }
    }
    merge_extents(&mut changed);
    merge_extents(&mut old_data);
    let unknown = ImageId { len: 0, crc: 0, blake3: [0; 32] }; // both trees are complete: never used
    let (old, new) = (old_tree.finish().unwrap_or(unknown), new_tree.finish().unwrap_or(unknown));
    Comparison { old, new, changed, old_data, old_parts }
}

/// Of the parts of a group.
enum GroupResult {
    /// They are zero in both images.
    Zero(PartDigest),
    Parts(Vec<PartResult>),
}

/// Length and digests of an image.
#[must_use]
pub fn identify(image: View<'_>, threads: usize) -> ImageId {
    identify_telling(image, threads, &Silent)
}

/// The same; `monitor` is told how far it is.
#[must_use]
pub fn identify_telling(image: View<'_>, threads: usize, monitor: &dyn Monitor) -> ImageId {
    let digests = parallel::map(group_count(image.len()), threads, |group| {
        let range = group_within(group, image.len());
        monitor.advance(range.end - range.start);
        if let Some(digest) = group_of_zeros(group, &[image], &[image.len()]) {
            return vec![digest];
        }
        let parts = parts_of(&group_within(group, image.len()));
        parts.map(|offset| PartDigest::new(offset, image.part(offset), image.len())).collect()
    });
    let mut tree = TreeDigest::new(image.len());
    digests.into_iter().flatten().for_each(|part| tree.push(part, false));
    tree.finish().unwrap_or(ImageId { len: image.len(), crc: 0, blake3: [0; 32] }) // it is complete
}

/// Whether all of a range lies in one of some ranges, which are ascending.
fn lies_in(range: &Range<u64>, ranges: &[Range<u64>]) -> bool {
    let first = ranges.partition_point(|other| other.end < range.end);
    ranges.get(first).is_some_and(|other| other.start <= range.start)
}

fn compare_part(old: View<'_>, new: View<'_>, shared: &[Range<u64>], offset: u64) -> PartResult {
    let a = old.part(offset);
    let range = offset..new.len().min(offset + PART);
    let same = range.end == offset + a.len() as u64 && lies_in(&range, shared);
    let b = if same { a } else { new.part(offset) };
    let same_class = same_class(old.len(), new.len());
    let data = if std::ptr::eq(a.as_ptr(), ZERO_PART.as_ptr()) {
        Vec::new()
    } else {
        blocks_where(a, offset, |_, block| block != &ZERO_BLOCK[..block.len()])
    };
    let hash = |view: &View<'_>, part: &[u8]| (!part.is_empty()).then(|| PartDigest::new(offset, part, view.len()));
    if same_class && a.len() == b.len() && (std::ptr::eq(a, b) || a == b) {
        let digest = hash(&old, a);
        return (digest, digest, Vec::new(), data);
    }
    // A short last block is compared as far as the new image goes; where the old one ends earlier, it is changed.
    let changed = blocks_where(b, offset, |start, block| a.get(start..start + block.len()) != Some(block));
    (hash(&old, a), hash(&new, b), changed, data)
}

/// The blocks of a part for which a condition on (position in the part, content) holds.
fn blocks_where(part: &[u8], offset: u64, holds: impl Fn(usize, &[u8]) -> bool) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    for (i, block) in part.chunks(BLOCK as usize).enumerate() {
        if holds(i * BLOCK as usize, block) {
            let number = offset / BLOCK + i as u64;
            match found.last_mut() {
                Some(last) if last.end() == number => last.count += 1,
                _ => found.push(Extent { start: number, count: 1 }),
            }
        }
    }
    found
}

impl Comparison {
    /// Where what changed is known otherwise, and nothing of the old image's content.
    #[must_use]
    pub fn of_old_unknown(old: ImageId, new: ImageId, changed: Vec<Extent>) -> Self {
        Self { old, new, changed, old_data: Vec::new(), old_parts: Vec::new() }
    }

    /// Digest and region CRCs of the untouched prefix: [0, min(old, new)) with the touched blocks taken as zero.
    #[must_use]
    pub fn untouched(&self, old: View<'_>, touched: &BlockSet, region_log: u8, threads: usize) -> ([u8; 32], Vec<u32>) {
        let total = self.old.len.min(self.new.len);
        let groups = parallel::map(group_count(total), threads, |group| {
            let range = group_within(group, total);
            let blocks = Extent { start: range.start / BLOCK, count: (range.end - range.start).div_ceil(BLOCK) };
            let known = self.old_parts.get((range.start / PART) as usize..(range.end / PART) as usize);
            // Where all are missing, they are zero.
            let zero = known.is_some_and(|parts| parts.iter().all(Option::is_none)) && !touched.any(blocks);
            if zero && let Some(digest) = group_of_zeros(group, &[], &[total]) {
                return vec![digest];
            }
            parts_of(&range).map(|offset| self.untouched_part(old, touched, offset, total)).collect()
        });
        let mut tree = TreeDigest::new(total);
        let mut regions: Vec<u32> = Vec::new();
        for (offset, part) in with_offsets(groups.into_iter().flatten()) {
            tree.push(part, false);
            add_region(&mut regions, offset, &part, region_log);
        }
        (tree.finish().map_or([0; 32], |id| id.blake3), regions)
    }

    fn untouched_part(&self, old: View<'_>, touched: &BlockSet, offset: u64, total: u64) -> PartDigest {
        let len = (total - offset).min(PART);
        let blocks = Extent { start: offset / BLOCK, count: len.div_ceil(BLOCK) };
        match self.old_parts.get((offset / PART) as usize) {
            Some(Some(part)) if part.len == len && !touched.any(blocks) && same_class(self.old.len, total) => *part,
            _ => {
                let mut bytes = old.part(offset)[..len as usize].to_vec();
                zero_touched(&mut bytes, blocks, touched);
                PartDigest::new(offset, &bytes, total)
            }
        }
    }
}

/// Digests that follow each other, with where they begin.
fn with_offsets(parts: impl Iterator<Item = PartDigest>) -> impl Iterator<Item = (u64, PartDigest)> {
    parts.scan(0, |offset, part| {
        let start = *offset;
        *offset += part.len;
        Some((start, part))
    })
}

/// Whether parts of images of these lengths are hashed alike.
fn same_class(a: u64, b: u64) -> bool {
    (a <= PART) == (b <= PART)
}

/// Zeroes the touched blocks in `bytes`, which hold the blocks of `extent`.
pub(crate) fn zero_touched(bytes: &mut [u8], extent: Extent, touched: &BlockSet) {
    for (run, _) in touched.runs_in(extent).filter(|(_, set)| *set) {
        let start = ((run.start - extent.start) * BLOCK) as usize;
        let end = (((run.end() - extent.start) * BLOCK) as usize).min(bytes.len());
        bytes[start..end].fill(0);
    }
}

/// Adds a part, or a zero group, to the CRCs of its regions; 0 is no region table.
pub(crate) fn add_region(regions: &mut Vec<u32>, offset: u64, part: &PartDigest, region_log: u8) {
    if region_log == 0 {
        return;
    }
    if part.len > PART {
        let parts = (offset..offset + part.len).step_by(PART as usize);
        return parts.for_each(|offset| add_zeros_to_region(regions, offset, region_log));
    }
    add_crc(regions, offset >> region_log, part.crc, part.len);
}

/// Adds a part of zeros.
pub(crate) fn add_zeros_to_region(regions: &mut Vec<u32>, offset: u64, region_log: u8) {
    static CRC: LazyLock<u32> = LazyLock::new(|| crc_of_zeros(PART));
    if region_log != 0 {
        add_crc(regions, offset >> region_log, *CRC, PART);
    }
}

fn add_crc(regions: &mut Vec<u32>, region: u64, crc: u32, len: u64) {
    match regions.get_mut(region as usize) {
        Some(whole) => *whole = combine_crc(*whole, crc, len),
        None => regions.push(crc),
    }
}
