//! How long a compressed image says it is, before it is unpacked: so that one that cannot fit is refused untouched.
//!
//! Of files in several parts only one part is asked: what is said is the least length.

use super::Packing;
use crate::varint;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of an xz file's footer.
const FOOTER: u64 = 12;
/// Bytes that an index of an xz file may have here: some 100,000 blocks.
const MOST_INDEX: u64 = 1 << 20;

/// How many times its own size something may be that deflate has made.
const MOST_DEFLATED: u64 = 1032;

/// The least length that a compressed file says it unpacks to; `head` are its first bytes. `None` where it does not tell.
pub(crate) fn promised(packing: Packing, head: &[u8], file: &File) -> Option<u64> {
    let size = || file.metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len());
    match packing {
        Packing::Bzip2 => None,
        Packing::Zstd => zstd::zstd_safe::get_frame_content_size(head).ok()?,
        Packing::Gzip => gzip(file, size()?),
        Packing::Xz => xz(file, size()?),
    }
}

/// The end of a gzip file: the length of its last member, modulo 2^32. Of a file that was cut short these are any bytes:
/// what cannot be is not believed, so that unpacking tells what is wrong.
fn gzip(file: &File, size: u64) -> Option<u64> {
    let mut len = [0; 4];
    file.read_exact_at(&mut len, size.checked_sub(4)?).ok()?;
    Some(u64::from(u32::from_le_bytes(len))).filter(|len| *len <= size.saturating_mul(MOST_DEFLATED))
}

/// The index at the end of an xz file: the lengths of all blocks of its last stream.
fn xz(file: &File, size: u64) -> Option<u64> {
    let at = size.checked_sub(FOOTER)?;
    let mut footer = [0; FOOTER as usize];
    file.read_exact_at(&mut footer, at).ok()?;
    let [c0, c1, c2, c3, b0, b1, b2, b3, _, _, b'Y', b'Z'] = footer else { return None };
    if crc32fast::hash(&footer[4..10]) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return None;
    }
    let index_len = (u64::from(u32::from_le_bytes([b0, b1, b2, b3])) + 1) * 4;
    if index_len > MOST_INDEX {
        return None;
    }
    let mut index = vec![0; index_len as usize];
    file.read_exact_at(&mut index, at.checked_sub(index_len)?).ok()?;
    let (index, crc) = index.split_last_chunk::<4>()?;
    if crc32fast::hash(index) != u32::from_le_bytes(*crc) {
        return None;
    }
    sum_of_blocks(index.strip_prefix(&[0])?)
}

/// Number of records; of each the packed and the unpacked size.
fn sum_of_blocks(mut records: &[u8]) -> Option<u64> {
    let mut next = || -> Option<u64> {
        let (value, len) = varint::get_from(records).ok()??;
        records = records.get(len..)?;
        Some(value)
    };
    let count = next()?;
    let mut sum = 0u64;
    for _ in 0..count {
        next()?;
        sum = sum.checked_add(next()?)?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::tests::{bz2, gzip, xz, zst};
    use std::io::Write;

    fn promise(packing: Packing, packed: &[u8]) -> Option<u64> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(packed).unwrap();
        promised(packing, &packed[..packed.len().min(18)], &file)
    }

    #[test]
    fn compressed_files_tell_their_length() {
        let image = vec![7; 3_000_001];
        assert_eq!(promise(Packing::Gzip, &gzip(&image)), Some(3_000_001));
        assert_eq!(promise(Packing::Xz, &xz(&image)), Some(3_000_001));
        assert_eq!(promise(Packing::Xz, &xz(b"")), Some(0));
        let packed = zstd::bulk::compress(&image, 1).unwrap();
        assert_eq!(promise(Packing::Zstd, &packed), Some(3_000_001));
        // A frame that was made from a stream need not tell.
        assert!(matches!(promise(Packing::Zstd, &zst(&image)), None | Some(3_000_001)));
        assert_eq!(promise(Packing::Bzip2, &bz2(&image)), None);
    }

    #[test]
    fn what_is_cut_short_or_damaged_tells_nothing_wrong() {
        let packed = xz(&[7; 100_000]);
        for len in 0..packed.len() {
            assert_eq!(promise(Packing::Xz, &packed[..len]), None, "{len} bytes");
        }
        for at in packed.len() - 24..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x41;
            assert!(matches!(promise(Packing::Xz, &damaged), None | Some(100_000)), "byte {at}");
        }
        assert_eq!(promise(Packing::Gzip, b"\x1f\x8b"), None);
        let end = |len: u32| [&[0x1f; 996][..], &len.to_le_bytes()].concat();
        assert_eq!(promise(Packing::Gzip, &end(1_032_000)), Some(1_032_000));
        assert_eq!(promise(Packing::Gzip, &end(1_032_001)), None);
        assert_eq!(promise(Packing::Zstd, b"\x28\xb5\x2f\xfd"), None);
    }
}
