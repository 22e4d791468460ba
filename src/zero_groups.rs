//! Digests of long runs of zeros, known in advance: images of file systems are mostly zeros, and the BLAKE3 chaining
//! values of zeros differ by offset.

use crate::digest::{PartDigest, crc_of_zeros};
use crate::units::PART;
use std::ops::Range;
use std::sync::LazyLock;

/// Bytes of an aligned group of parts up to [`FINE_END`]: of the zero parts of an 8 GiB image 97 % lie in such groups.
pub const ZERO_GROUP: u64 = 16 * PART;
/// Bytes of a group beyond: few images are that large and not mostly holes.
const COARSE_GROUP: u64 = 1024 * PART;
/// Where the fine groups end, in bytes.
const FINE_END: u64 = 4096 * ZERO_GROUP;

/// BLAKE3 chaining values of zero groups at the offsets 0, 16 MiB, 32 MiB and so on up to 64 GiB; the test
/// `they_are_tabulated_right` makes and checks them.
static FINE: &[u8; 4096 * blake3::OUT_LEN] = include_bytes!("zero_groups.bin");
/// The same at 64 GiB, 65 GiB and so on up to 1 TiB.
static COARSE: &[u8; 960 * blake3::OUT_LEN] = include_bytes!("zero_groups_coarse.bin");

/// The groups of an image of `len` bytes; the last one may be cut by its end.
#[must_use]
pub fn group_count(len: u64) -> usize {
    (len.min(FINE_END).div_ceil(ZERO_GROUP) + len.saturating_sub(FINE_END).div_ceil(COARSE_GROUP)) as usize
}

/// Where the i-th group lies, in bytes.
#[must_use]
pub fn group_range(i: usize) -> Range<u64> {
    let i = i as u64;
    let fine = FINE_END / ZERO_GROUP;
    if i < fine {
        return i * ZERO_GROUP..(i + 1) * ZERO_GROUP;
    }
    let start = FINE_END.saturating_add((i - fine).saturating_mul(COARSE_GROUP));
    start..start.saturating_add(COARSE_GROUP)
}

/// Whether a part of zeros at this offset may belong to a small group in the table; elsewhere it is better to hash it at
/// once than to wait for the rest of a large one.
pub(crate) fn may_be_tabulated(offset: u64) -> bool {
    offset < FINE_END
}

/// The digest of the group of zeros that starts at byte `offset` (where one does) of an image that is longer; `None`
/// where it is not tabulated.
#[must_use]
pub fn zero_group(offset: u64) -> Option<PartDigest> {
    static CRCS: LazyLock<[u32; 2]> = LazyLock::new(|| [ZERO_GROUP, COARSE_GROUP].map(crc_of_zeros));
    let (table, i, len, crc) = if offset < FINE_END {
        (&FINE[..], offset / ZERO_GROUP, ZERO_GROUP, CRCS[0])
    } else {
        (&COARSE[..], (offset - FINE_END) / COARSE_GROUP, COARSE_GROUP, CRCS[1])
    };
    debug_assert!(offset.is_multiple_of(len));
    let start = usize::try_from(i).ok()?.checked_mul(blake3::OUT_LEN)?;
    let cv = table.get(start..start.checked_add(blake3::OUT_LEN)?)?.try_into().ok()?;
    Some(PartDigest::of_zeros(len, crc, cv))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blake3::hazmat::{ChainingValue, HasherExt};

    fn hashed(range: Range<u64>) -> ChainingValue {
        static ZEROS: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; ZERO_GROUP as usize]);
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(range.start);
        (0..(range.end - range.start) / ZERO_GROUP).for_each(|_| {
            hasher.update(&ZEROS);
        });
        hasher.finalize_non_root()
    }

    /// With `BLKPATCH_BLESS=1` it makes the tables, which takes minutes.
    #[test]
    fn they_are_tabulated_right() {
        let fine = FINE.len() / blake3::OUT_LEN;
        let count = fine + COARSE.len() / blake3::OUT_LEN;
        if std::env::var_os("BLKPATCH_BLESS").is_some() {
            let mut all = crate::parallel::map(count, 2, |i| hashed(group_range(i)));
            let coarse = all.split_off(fine);
            std::fs::write("src/zero_groups.bin", all.concat()).unwrap();
            std::fs::write("src/zero_groups_coarse.bin", coarse.concat()).unwrap();
        }
        // Of the tables as they were made.
        let digests = [&FINE[..], &COARSE[..]].map(|table| blake3::hash(table).to_hex().to_string());
        assert_eq!(
            digests,
            [
                "d095f750ec67c893e350f60e9d8c25c604128f6dcc9df5ba021fdf840fb05228",
                "0278d6261776624be54aac299bdbaeff4852cd66a94187d8198738ace3a5f857"
            ]
        );
        for i in [0, 1, 2, 3, 255, 256, 1000, 2047, 2048, fine - 1, fine, fine + 1, count - 1] {
            let range = group_range(i);
            let len = range.end - range.start;
            let expected = PartDigest::of_zeros(len, crc_of_zeros(len), hashed(range.clone()));
            assert_eq!(zero_group(range.start), Some(expected), "{i}");
        }
        assert_eq!(zero_group(group_range(count).start), None);
    }

    #[test]
    fn groups_follow_each_other_and_cover_the_image() {
        for len in [1, PART, ZERO_GROUP, ZERO_GROUP + 1, FINE_END - 1, FINE_END, FINE_END + 1, 1 << 40, (3 << 40) + 7] {
            let groups: Vec<_> = (0..group_count(len)).map(group_range).collect();
            assert_eq!(groups[0].start, 0);
            assert!(groups.windows(2).all(|pair| pair[0].end == pair[1].start), "{len}");
            assert!(groups.last().is_some_and(|last| last.start < len && len <= last.end), "{len}");
        }
        assert_eq!(group_count(0), 0);
    }
}
