//! The two digests of an image, CRC-32 (as zlib's) and BLAKE3 (as `b3sum`'s), put together from parts of 1 MiB.
//!
//! One full read then serves both the check before patching and the check after: only parts that were written are read
//! again and replaced. BLAKE3's own tree makes that possible (`blake3::hazmat`), CRC-32 combines by its linearity.

use crate::units::{BLOCK, PART};
use crate::zero_groups::{ZERO_GROUP, may_be_tabulated, zero_group};
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use std::cell::RefCell;

/// Length, CRC-32 and BLAKE3 of an image, as the public tools `crc32` and `b3sum` print them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageId {
    /// Length in bytes.
    pub len: u64,
    /// CRC-32 (polynomial 0xEDB88320, reflected, as in zlib, gzip and PNG).
    pub crc: u32,
    /// BLAKE3, 32 bytes.
    pub blake3: [u8; 32],
}

/// The digest of one part: up to 1 MiB of an image at a multiple of 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartDigest {
    /// Bytes covered.
    pub len: u64,
    /// CRC-32 of the part alone.
    pub crc: u32,
    /// The chaining value of the part's BLAKE3 subtree; the root hash where the image is no longer than one part.
    cv: ChainingValue,
}

impl PartDigest {
    /// Stands for a part of `len` bytes whose content does not matter, because it will be replaced.
    #[must_use]
    pub fn placeholder(len: u64) -> Self {
        Self { len, crc: 0, cv: [0; 32] }
    }

    /// Hashes the part `data` that lies at byte `offset` (a multiple of [`PART`]) of an image of `total` bytes.
    #[must_use]
    pub fn new(offset: u64, data: &[u8], total: u64) -> Self {
        debug_assert!(offset.is_multiple_of(PART) && !data.is_empty() && data.len() as u64 <= PART);
        let cv = if total <= PART {
            *blake3::hash(data).as_bytes()
        } else {
            blake3::Hasher::new().set_input_offset(offset).update(data).finalize_non_root()
        };
        Self { len: data.len() as u64, crc: crc32fast::hash(data), cv }
    }

    /// Of a zero group.
    pub(crate) fn of_zeros(len: u64, crc: u32, cv: ChainingValue) -> Self {
        Self { len, crc, cv }
    }
}

/// A block of zeros.
pub(crate) static ZERO_BLOCK: [u8; BLOCK as usize] = [0; BLOCK as usize];
/// A part of zeros.
pub(crate) static ZERO_PART: [u8; PART as usize] = [0; PART as usize];

/// Zero parts that are remembered: as many as can be left over where a zero group is not full.
const REMEMBERED: usize = (ZERO_GROUP / PART) as usize;

thread_local! {
    /// Digests of zero parts, with their offsets.
    static ZERO_PARTS: RefCell<[Option<(u64, PartDigest)>; REMEMBERED]> = const { RefCell::new([None; REMEMBERED]) };
}

/// The digest of a part of zeros at `offset` of an image of `total` bytes. Several digests of one image are often made at
/// the same time, and need the same ones.
fn zero_part(offset: u64, total: u64) -> PartDigest {
    if total <= PART {
        return PartDigest::new(offset, &ZERO_PART, total);
    }
    ZERO_PARTS.with_borrow_mut(|known| {
        let place = &mut known[(offset / PART) as usize % REMEMBERED];
        match place {
            Some((at, digest)) if *at == offset => *digest,
            _ => place.insert((offset, PartDigest::new(offset, &ZERO_PART, total))).1,
        }
    })
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    data.chunks(ZERO_BLOCK.len()).all(|block| *block == ZERO_BLOCK[..block.len()])
}

/// A subtree whose digest is known.
#[derive(Clone, Debug)]
struct Node {
    offset: u64,
    len: u64,
    crc: u32,
    cv: ChainingValue,
    /// Stays as it is, so that it can be replaced; others merge with their siblings to keep memory small.
    kept: bool,
}

/// Collects the parts of an image in order and yields its [`ImageId`].
#[derive(Clone, Debug)]
pub struct TreeDigest {
    total: u64,
    filled: u64,
    nodes: Vec<Node>,
    /// Zero parts behind `filled` whose digests are not computed yet: they may become a zero group.
    zero_parts: u64,
}

impl TreeDigest {
    /// For an image of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { total, filled: 0, nodes: Vec::new(), zero_parts: 0 }
    }

    /// The length of the part that starts at `offset`.
    #[must_use]
    pub fn part_len(&self, offset: u64) -> u64 {
        self.total.saturating_sub(offset).min(PART)
    }

    /// The length of the part that [`TreeDigest::push`] expects next; `None` when all are there.
    #[must_use]
    pub fn missing_part(&self) -> Option<u64> {
        debug_assert_eq!(self.zero_parts, 0);
        Some(self.part_len(self.filled)).filter(|len| *len > 0)
    }

    /// Adds the next part, or zero group; `kept` parts can be replaced later.
    pub fn push(&mut self, part: PartDigest, kept: bool) {
        self.settle();
        debug_assert!(part.len == self.part_len(self.filled) || part.len > PART && !kept);
        self.nodes.push(Node { offset: self.filled, len: part.len, crc: part.crc, cv: part.cv, kept });
        self.filled += part.len;
        while self.merge_last() {}
    }

    /// Adds a next part that is [`PART`] zero bytes, and cannot be replaced. It may remain to be hashed: see
    /// [`TreeDigest::settle`].
    pub fn push_zeros(&mut self) {
        self.zero_parts += 1;
        let len = self.zero_parts * PART;
        let end = self.filled + len;
        if end < self.total && !end.is_multiple_of(ZERO_GROUP) {
            return; // more may come
        }
        let group = (len == ZERO_GROUP
            && end.is_multiple_of(ZERO_GROUP)
            && self.total > ZERO_GROUP
            && may_be_tabulated(self.filled))
        .then(|| zero_group(self.filled))
        .flatten();
        match group {
            Some(group) => {
                self.zero_parts = 0;
                self.push(group, false);
            }
            None => self.settle(),
        }
    }

    /// Hashes the zero parts that have not become a group.
    pub fn settle(&mut self) {
        for _ in 0..std::mem::take(&mut self.zero_parts) {
            self.push(zero_part(self.filled, self.total), false);
        }
    }

    /// Subtrees that are kept at the moment.
    #[cfg(test)]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Merges the last two nodes if they are siblings below the root.
    fn merge_last(&mut self) -> bool {
        let [.., left, right] = &self.nodes[..] else { return false };
        let len = left.len + right.len;
        let siblings = left.len == right.len && left.len.is_power_of_two() && left.len >= PART;
        if left.kept || right.kept || !siblings || !left.offset.is_multiple_of(len) || len >= self.total {
            return false;
        }
        let merged = Node {
            offset: left.offset,
            len,
            crc: combine_crc(left.crc, right.crc, right.len),
            cv: merge_subtrees_non_root(&left.cv, &right.cv, Mode::Hash),
            kept: false,
        };
        self.nodes.truncate(self.nodes.len() - 2);
        self.nodes.push(merged);
        true
    }

    /// Replaces a part that was pushed as `kept`. Returns whether there is such a part.
    pub fn replace(&mut self, offset: u64, part: PartDigest) -> bool {
        let Ok(i) = self.nodes.binary_search_by_key(&offset, |node| node.offset) else { return false };
        let node = &mut self.nodes[i];
        if !node.kept || node.len != part.len {
            return false;
        }
        (node.crc, node.cv) = (part.crc, part.cv);
        true
    }

    /// The digests of the whole; `None` while parts are missing, or not settled.
    #[must_use]
    pub fn finish(&self) -> Option<ImageId> {
        if self.filled != self.total || self.zero_parts > 0 {
            return None;
        }
        let crc = self.nodes.iter().fold(0, |crc, node| combine_crc(crc, node.crc, node.len));
        let blake3 = match &self.nodes[..] {
            [] => *blake3::hash(b"").as_bytes(),
            [only] => only.cv,
            nodes => {
                let (left, right) = self.children(0, self.total, nodes)?;
                *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
            }
        };
        Some(ImageId { len: self.total, crc, blake3 })
    }

    fn children(&self, offset: u64, len: u64, nodes: &[Node]) -> Option<(ChainingValue, ChainingValue)> {
        let left = left_subtree_len(len);
        let cut = nodes.partition_point(|node| node.offset < offset + left);
        Some((self.subtree(offset, left, &nodes[..cut])?, self.subtree(offset + left, len - left, &nodes[cut..])?))
    }

    fn subtree(&self, offset: u64, len: u64, nodes: &[Node]) -> Option<ChainingValue> {
        match nodes {
            [] => None,
            [only] => (only.len == len).then_some(only.cv),
            _ => {
                let (left, right) = self.children(offset, len, nodes)?;
                Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
            }
        }
    }
}

/// The CRC-32 of two pieces one after the other, from their CRCs and the second one's length.
#[must_use]
pub fn combine_crc(first: u32, second: u32, second_len: u64) -> u32 {
    let mut whole = crc32fast::Hasher::new_with_initial(first);
    whole.combine(&crc32fast::Hasher::new_with_initial_len(second, second_len));
    whole.finalize()
}

/// The CRC-32 of `len` zero bytes, in O(log² len).
#[must_use]
pub fn crc_of_zeros(len: u64) -> u32 {
    let mut whole = 0;
    let (mut power, mut power_len) = (crc32fast::hash(&[0]), 1u64);
    let mut rest = len;
    while rest > 0 {
        if rest & 1 == 1 {
            whole = combine_crc(whole, power, power_len);
        }
        rest >>= 1;
        if rest > 0 {
            power = combine_crc(power, power, power_len);
            power_len <<= 1;
        }
    }
    whole
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[6]).collect()
    }

    fn plain(data: &[u8]) -> ImageId {
        ImageId { len: data.len() as u64, crc: crc32fast::hash(data), blake3: *blake3::hash(data).as_bytes() }
    }

    #[test]
    fn equals_the_plain_digests_at_every_kind_of_length() {
        let part = PART as usize;
        for len in [0, 1, 4096, part - 1, part, part + 1, 2 * part, 2 * part + 5, 3 * part, 4 * part, 5 * part + 77] {
            let data = bytes(len);
            for keep_every in [0, 1, 2, 3] {
                let mut tree = TreeDigest::new(len as u64);
                for (i, chunk) in data.chunks(part).enumerate() {
                    let digest = PartDigest::new((i * part) as u64, chunk, len as u64);
                    tree.push(digest, keep_every != 0 && i % keep_every == 0);
                }
                assert_eq!(tree.finish(), Some(plain(&data)), "length {len}, keeping every {keep_every}");
            }
        }
    }

    #[test]
    fn a_replaced_part_counts_and_a_missing_one_is_noticed() {
        let part = PART as usize;
        let (old, mut new) = (bytes(6 * part + 9), bytes(6 * part + 9));
        new[5 * part + 3] ^= 1;
        new[6 * part + 8] ^= 1;
        let total = old.len() as u64;
        let mut tree = TreeDigest::new(total);
        for (i, chunk) in old.chunks(part).enumerate() {
            assert_eq!(tree.finish(), None);
            tree.push(PartDigest::new((i * part) as u64, chunk, total), i >= 5);
        }
        assert_eq!(tree.finish(), Some(plain(&old)));
        for i in [5, 6] {
            let chunk = new.chunks(part).nth(i).unwrap();
            assert!(tree.replace((i * part) as u64, PartDigest::new((i * part) as u64, chunk, total)));
        }
        assert_eq!(tree.finish(), Some(plain(&new)));
        assert!(!tree.replace(0, PartDigest::new(0, &new[..part], total)));
    }

    #[test]
    fn zeros_by_arithmetic_equal_zeros_by_hashing() {
        for len in [0u64, 1, 7, 4096, 1_000_003] {
            assert_eq!(crc_of_zeros(len), crc32fast::hash(&vec![0; len as usize]), "{len}");
        }
    }

    #[test]
    fn zeros_count_as_zeros_wherever_they_lie() {
        let parts = |total: u64| total.div_ceil(PART);
        for (total, data_at) in [(40 * PART, 20), (40 * PART, 0), (32 * PART, 99), (16 * PART, 99), (35 * PART + 5, 31)]
        {
            let mut image = vec![0; total as usize];
            if data_at < parts(total) {
                image[(data_at * PART) as usize + 7] = 1;
            }
            let mut tree = TreeDigest::new(total);
            for i in 0..parts(total) {
                let part = &image[(i * PART) as usize..((i + 1) * PART).min(total) as usize];
                if part.len() as u64 == PART && is_zero(part) && i != 3 {
                    tree.push_zeros();
                } else {
                    tree.push(PartDigest::new(i * PART, part, total), i == 3);
                }
            }
            tree.settle();
            assert_eq!(tree.finish(), Some(plain(&image)), "{total} bytes, data in part {data_at}");
        }
    }

    #[test]
    fn a_large_zero_group_counts_as_its_parts() {
        let at = 4096 * ZERO_GROUP;
        let total = at + 1024 * PART + 5;
        let mut trees = [TreeDigest::new(total), TreeDigest::new(total)];
        for tree in &mut trees {
            (0..4096).for_each(|i| tree.push(zero_group(i * ZERO_GROUP).unwrap(), false));
        }
        trees[0].push(zero_group(at).unwrap(), false);
        (0..1024).for_each(|_| trees[1].push_zeros());
        for tree in &mut trees {
            tree.settle();
            tree.push(PartDigest::new(total - 5, b"12345", total), false);
        }
        assert!(trees[0].finish().is_some());
        assert_eq!(trees[0].finish(), trees[1].finish());
    }
}
