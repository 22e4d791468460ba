//! Entries of the tables of a qcow2 image: numbers in, meaning out. Pure.

use super::header::Header;

/// Bits of an entry that hold an offset: 9 to 55.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros.
const ZERO: u64 = 1;
/// Bits of either that say nothing here: that just one table refers to it.
const COPIED: u64 = 1 << 63;
/// Parts of a cluster of which an extended entry tells.
const PARTS: u64 = 32;

/// Where some bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the backing file.
    Below,
    /// Nowhere: they are zeros.
    Zero,
    /// At this byte of the file.
    Data(u64),
    /// In `len` bytes of the file from byte `host`, at most, compressed; they are those of the cluster from `skip` on.
    Compressed {
        /// First byte.
        host: u64,
        /// Bytes, of which the last ones may belong to something else.
        len: u64,
        /// Bytes of the cluster before those that were asked for.
        skip: u64,
    },
}

impl Place {
    /// Whether `next`, of the bytes behind `len` bytes that are here, goes on where this ends.
    pub fn continues(self, len: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Below, Self::Below) | (Self::Zero, Self::Zero) => true,
            (Self::Data(here), Self::Data(there)) => here + len == there,
            _ => false,
        }
    }
}

/// The offset in an entry of the first level; `None` where there is no table.
///
/// # Errors
/// What is wrong with it.
pub(super) fn l2_offset(entry: u64, header: &Header, file_len: u64) -> Result<Option<u64>, &'static str> {
    if entry & !(OFFSET | COPIED) != 0 {
        return Err("has reserved bits set");
    }
    match entry & OFFSET {
        0 => Ok(None),
        offset if !offset.is_multiple_of(header.cluster()) => Err("points into the middle of a cluster"),
        offset if offset + header.cluster() > file_len => Err("points to a table behind the end of the file"),
        offset => Ok(Some(offset)),
    }
}

/// Where the bytes from byte `within` of a cluster on are, and how many of the cluster's are there in one place. `bitmap`
/// is the second half of an extended entry.
///
/// # Errors
/// What is wrong with it.
pub(super) fn place(
    entry: u64,
    bitmap: u64,
    within: u64,
    header: &Header,
    file_len: u64,
) -> Result<(Place, u64), &'static str> {
    let cluster = header.cluster();
    if entry & COMPRESSED != 0 {
        if bitmap != 0 {
            return Err("is of a compressed cluster that has parts");
        }
        let (host, len) = compressed(entry, header.cluster_bits, file_len)?;
        return Ok((Place::Compressed { host, len, skip: within }, cluster - within));
    }
    let zero = entry & ZERO != 0;
    if entry & !(OFFSET | COPIED | ZERO) != 0 || zero && (header.version < 3 || header.extended) {
        return Err("has reserved bits set");
    }
    let host = entry & OFFSET;
    if !host.is_multiple_of(cluster) {
        return Err("points into the middle of a cluster");
    }
    // The last cluster of a file may be short: what is missing is zeros, as a whole number of sectors.
    if host != 0 && (host >= file_len || !file_len.is_multiple_of(512) && host + cluster > file_len) {
        return Err("points behind the end of the file");
    }
    if header.extended {
        return extended(host, bitmap, within, cluster / PARTS);
    }
    let place = match host {
        _ if zero => Place::Zero,
        0 => Place::Below,
        host => Place::Data(host + within),
    };
    Ok((place, cluster - within))
}

/// Where compressed data is, and how long at most.
fn compressed(entry: u64, cluster_bits: u32, file_len: u64) -> Result<(u64, u64), &'static str> {
    let offset_bits = 62 - (cluster_bits - 8);
    let host = entry & ((1 << offset_bits) - 1);
    let sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
    let len = (sectors + 1) * 512 - host % 512;
    if host == 0 || host >= file_len {
        return Err("points to compressed data behind the end of the file");
    }
    // It is rounded up to whole sectors, and so may end behind the file.
    let len = len.min(file_len - host);
    Ok((host, len))
}

/// The place of a part of a cluster, with as many of its neighbours as are in the same state.
fn extended(host: u64, bitmap: u64, within: u64, part_len: u64) -> Result<(Place, u64), &'static str> {
    let state = |part: u64| (bitmap >> part & 1 != 0, bitmap >> (PARTS + part) & 1 != 0);
    if bitmap & (bitmap >> PARTS) & 0xffff_ffff != 0 {
        return Err("says of a part that it is both data and zeros");
    }
    if host == 0 && bitmap & 0xffff_ffff != 0 {
        return Err("says that there is data, but not where");
    }
    let first = within / part_len;
    let same = (first..PARTS).take_while(|part| state(*part) == state(first)).count() as u64;
    let place = match state(first) {
        (true, _) => Place::Data(host + within),
        (false, true) => Place::Zero,
        (false, false) => Place::Below,
    };
    Ok((place, (first + same) * part_len - within))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::header::Compression;
    use proptest::prelude::*;

    fn header(cluster_bits: u32, extended: bool, version: u32) -> Header {
        Header {
            version,
            cluster_bits,
            size: 1 << 30,
            l1_entries: 1,
            l1_offset: 0,
            extended,
            compression: Compression::Deflate,
            backing: None,
            backing_format: None,
        }
    }

    const LEN: u64 = 1 << 24;

    #[test]
    fn plain_entries() {
        let h = header(16, false, 3);
        let ask = |entry, within| place(entry, 0, within, &h, LEN);
        assert_eq!(ask(0, 0), Ok((Place::Below, 65536)));
        assert_eq!(ask(1, 512), Ok((Place::Zero, 65024)));
        assert_eq!(ask(COPIED | 0x50001, 0), Ok((Place::Zero, 65536)));
        assert_eq!(ask(COPIED | 0x50000, 4096), Ok((Place::Data(0x51000), 61440)));
        assert_eq!(ask(0x50000, 65535), Ok((Place::Data(0x5ffff), 1)));
        for damaged in [0x50200, 0x50002, LEN, OFFSET, 1 << 56, 1 << 61] {
            assert!(ask(damaged, 0).is_err(), "{damaged:#x}");
        }
        assert!(place(1, 0, 0, &header(16, false, 2), LEN).is_err(), "version 2 knows no zeros");
        // The end of the file may lie within the last cluster, at a sector.
        assert!(place(0x50000, 0, 0, &h, 0x50200).is_ok() && place(0x50000, 0, 0, &h, 0x501ff).is_err());
    }

    #[test]
    fn compressed_entries() {
        let h = header(16, false, 3);
        // 54 bits of offset, 8 of sectors.
        let entry = COMPRESSED | 3 << 54 | 0x50123;
        assert_eq!(
            place(entry, 0, 7, &h, LEN),
            Ok((Place::Compressed { host: 0x50123, len: 4 * 512 - 0x123, skip: 7 }, 65529))
        );
        assert_eq!(
            place(entry, 0, 0, &h, 0x50200),
            Ok((Place::Compressed { host: 0x50123, len: 0xdd, skip: 0 }, 65536))
        );
        assert!(place(entry, 0, 0, &h, 0x50123).is_err());
        assert!(place(COMPRESSED, 0, 0, &h, LEN).is_err());
    }

    #[test]
    fn extended_entries() {
        let h = header(16, true, 3);
        let ask = |entry, bitmap, within| place(entry, bitmap, within, &h, LEN);
        // Parts of 2 KiB: data, data, zeros, and the rest below.
        let bitmap = 0b11 | 0b100 << 32;
        assert_eq!(ask(0x50000, bitmap, 0), Ok((Place::Data(0x50000), 4096)));
        assert_eq!(ask(0x50000, bitmap, 3000), Ok((Place::Data(0x50000 + 3000), 1096)));
        assert_eq!(ask(0x50000, bitmap, 4096), Ok((Place::Zero, 2048)));
        assert_eq!(ask(0x50000, bitmap, 6144), Ok((Place::Below, 65536 - 6144)));
        assert_eq!(ask(0, 0, 0), Ok((Place::Below, 65536)));
        assert_eq!(ask(0, u64::MAX << 32, 2), Ok((Place::Zero, 65534)));
        assert!(ask(0, 1, 0).is_err() && ask(0x50000, 1 | 1 << 32, 0).is_err() && ask(0x50001, 1, 0).is_err());
    }

    #[test]
    fn tables_lie_in_the_file() {
        let h = header(16, false, 3);
        assert_eq!(l2_offset(COPIED | 0x50000, &h, LEN), Ok(Some(0x50000)));
        assert_eq!(l2_offset(0, &h, LEN), Ok(None));
        for damaged in [0x50200, LEN, LEN - 0x8000, 1, COMPRESSED, OFFSET] {
            assert!(l2_offset(damaged, &h, LEN).is_err(), "{damaged:#x}");
        }
    }

    proptest! {
        #[test]
        fn whatever_it_says_it_stays_in_the_cluster_and_the_file(
            entry: u64, small in 0u64..64, shift in 0u32..64, bitmap: u64, bits in 9u32..22, ext: bool, at: u64, len in 1u64..1 << 40,
        ) {
            let h = header(bits, ext && bits >= 14, 3);
            let bitmap = if h.extended { bitmap } else { 0 };
            let within = at % h.cluster();
            for entry in [entry, small << shift, ((small << 9) % len.next_power_of_two()) | COPIED, (entry & OFFSET) % len] {
                let Ok((place, count)) = place(entry, bitmap, within, &h, len) else { continue };
                prop_assert!(count > 0 && within + count <= h.cluster());
                match place {
                    Place::Data(host) => prop_assert!(host - within < len),
                    Place::Compressed { host, len: there, .. } => {
                        prop_assert!(there > 0 && host + there <= len && there <= 2 * h.cluster());
                    }
                    Place::Below | Place::Zero => {}
                }
            }
        }
    }
}
