//! The header of a qcow2 image: read, checked, and written (docs/interop/qcow2 of QEMU).

use super::{MAGIC, Qcow2Error};
use crate::reading::read_up_to;
use std::os::unix::fs::FileExt;

/// Bytes of a header of version 2.
const V2_LEN: usize = 72;
/// Bytes of a header of version 3 at the least.
const V3_LEN: usize = 104;
/// Bytes that are read of a file: header, extensions and the name of the backing file lie in the first cluster, and what
/// is of interest among them never is far behind.
const HEAD: usize = 64 << 10;
/// Bytes that the table of the first level may have: as QEMU.
const MOST_L1: u64 = 32 << 20;
/// Bytes that the name of a backing file may have.
pub const MOST_NAME: usize = 1023;
/// The extension that says what format the backing file has.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate, without zlib's header.
    Deflate,
    /// zstd.
    Zstd,
}

/// A header whose numbers are in range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the bytes of a cluster: 9 to 21.
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Entries of the table of the first level.
    pub l1_entries: u64,
    /// Where that stands in the file.
    pub l1_offset: u64,
    /// Entries of the second level have 16 bytes, and tell of 32 parts of each cluster.
    pub extended: bool,
    /// How clusters are compressed.
    pub compression: Compression,
    /// The backing file, as it is named.
    pub backing: Option<Vec<u8>>,
    /// What format that has.
    pub backing_format: Option<Vec<u8>>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |number| u32::from_be_bytes(*number))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |number| u64::from_be_bytes(*number))
}

fn field(name: &'static str, value: u64, allowed: impl Into<String>) -> Qcow2Error {
    Qcow2Error::Field { name, value, allowed: allowed.into() }
}

impl Header {
    /// Reads the header of an image.
    ///
    /// # Errors
    /// [`Qcow2Error`]: unreadable, damaged, or beyond what can be read here.
    pub fn read(file: &impl FileExt) -> Result<Self, Qcow2Error> {
        let mut head = vec![0; HEAD];
        let len = read_up_to(file, 0, &mut head).map_err(|e| Qcow2Error::Io("read", e))?;
        Self::parse(&head[..len])
    }

    /// Reads a header; `head` is the beginning of the file, up to 64 KiB.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn parse(head: &[u8]) -> Result<Self, Qcow2Error> {
        if !head.starts_with(&MAGIC) || head.len() < V2_LEN {
            return Err(Qcow2Error::NotQcow2);
        }
        let version = u32_at(head, 4);
        let header_len = match version {
            2 => V2_LEN,
            3 if head.len() >= V3_LEN => u32_at(head, 100) as usize,
            3 => return Err(Qcow2Error::NotQcow2),
            other => return Err(Qcow2Error::Version(other)),
        };
        let (cluster_bits, size) = (u32_at(head, 20), u64_at(head, 24));
        if !(9..=21).contains(&cluster_bits) {
            return Err(field("cluster_bits", cluster_bits.into(), "9 to 21"));
        }
        let cluster = 1usize << cluster_bits;
        if version == 3 && !(V3_LEN..=cluster.min(head.len())).contains(&header_len) {
            return Err(field("header_length", header_len as u64, format!("{V3_LEN} to {}", cluster.min(head.len()))));
        }
        match u32_at(head, 32) {
            0 => {}
            1 | 2 => return Err(Qcow2Error::Unsupported("is encrypted; decrypt it first, with 'qemu-img convert'")),
            other => return Err(field("crypt_method", other.into(), "0 to 2")),
        }
        let (extended, compression) = features(head, version, header_len, cluster_bits)?;
        let mut header = Self {
            version,
            cluster_bits,
            size,
            l1_entries: u32_at(head, 36).into(),
            l1_offset: u64_at(head, 40),
            extended,
            compression,
            backing: None,
            backing_format: None,
        };
        header.check_l1()?;
        header.read_names(&head[..head.len().min(cluster)], header_len)?;
        Ok(header)
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// log2 of the bytes of an entry of the second level.
    #[must_use]
    pub fn entry_log(&self) -> u32 {
        if self.extended { 4 } else { 3 }
    }

    /// log2 of the bytes of the disk that a table of the second level tells of: at most 39.
    #[must_use]
    pub fn span_log(&self) -> u32 {
        2 * self.cluster_bits - self.entry_log()
    }

    fn check_l1(&self) -> Result<(), Qcow2Error> {
        // Offsets are signed in most programs, and rounding up must not overflow.
        if self.size > 1 << 62 {
            return Err(field("size", self.size, format!("at most {}", 1u64 << 62)));
        }
        let needed = self.size.div_ceil(1 << self.span_log());
        if self.l1_entries < needed || needed > MOST_L1 / 8 || self.l1_entries > MOST_L1 / 8 {
            return Err(field("l1_size", self.l1_entries, format!("{needed} to {}", MOST_L1 / 8)));
        }
        if !self.l1_offset.is_multiple_of(self.cluster()) || self.l1_offset > 1 << 62 {
            return Err(field("l1_table_offset", self.l1_offset, "a multiple of the cluster size"));
        }
        Ok(())
    }

    /// Name and format of the backing file; `first` is the first cluster, as far as there is one.
    fn read_names(&mut self, first: &[u8], header_len: usize) -> Result<(), Qcow2Error> {
        let (offset, len) = (u64_at(first, 8), u32_at(first, 16) as usize);
        let mut extensions_end = first.len();
        if offset != 0 {
            if len > MOST_NAME {
                return Err(field("backing_file_size", len as u64, format!("at most {MOST_NAME}")));
            }
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let name = start.checked_add(len).and_then(|end| first.get(start..end));
            let name = name.ok_or_else(|| field("backing_file_offset", offset, "within the first cluster"))?;
            self.backing = (!name.is_empty()).then(|| name.to_vec());
            extensions_end = extensions_end.min(start);
        }
        let mut at = header_len;
        while at.checked_add(8).is_some_and(|end| end <= extensions_end) {
            let (kind, len) = (u32_at(first, at), u32_at(first, at + 4) as usize);
            if kind == 0 {
                break;
            }
            let data = (at + 8).checked_add(len).and_then(|end| first.get(at + 8..end));
            let data = data.ok_or_else(|| field("header extension length", len as u64, "within the first cluster"))?;
            if kind == BACKING_FORMAT {
                self.backing_format = Some(data.to_vec());
            }
            at = (at + 8).saturating_add(len.next_multiple_of(8));
        }
        Ok(())
    }
}

/// What the feature bits of a header of version 3 say.
fn features(
    head: &[u8],
    version: u32,
    header_len: usize,
    cluster_bits: u32,
) -> Result<(bool, Compression), Qcow2Error> {
    const DIRTY: u64 = 1;
    const CORRUPT: u64 = 2;
    const EXTERNAL: u64 = 4;
    const COMPRESSION: u64 = 8;
    const EXTENDED: u64 = 16;
    if version == 2 {
        return Ok((false, Compression::Deflate));
    }
    let bits = u64_at(head, 72);
    let unsupported = |why| Err(Qcow2Error::Unsupported(why));
    if bits & CORRUPT != 0 {
        return unsupported("is marked as corrupt; repair it first, with 'qemu-img check -r all'");
    }
    if bits & DIRTY != 0 {
        return unsupported(
            "was not closed properly, or a virtual machine uses it; stop that, or repair it with 'qemu-img check -r all'",
        );
    }
    if bits & EXTERNAL != 0 {
        return unsupported("keeps its data in another file; convert it first, with 'qemu-img convert -O raw'");
    }
    let unknown = bits & !(DIRTY | CORRUPT | EXTERNAL | COMPRESSION | EXTENDED);
    if unknown != 0 {
        return Err(Qcow2Error::Features(unknown));
    }
    let kind = if header_len > V3_LEN { head.get(V3_LEN).copied().unwrap_or(0) } else { 0 };
    let compression = match (kind, bits & COMPRESSION != 0) {
        (0, false) => Compression::Deflate,
        (1, true) => Compression::Zstd,
        (kind, _) => {
            return Err(field("compression_type", kind.into(), "0 (deflate) or 1 (zstd), as the features say"));
        }
    };
    let extended = bits & EXTENDED != 0;
    if extended && cluster_bits < 14 {
        return Err(field("cluster_bits", cluster_bits.into(), "14 or more, with extended entries"));
    }
    Ok((extended, compression))
}

/// Where things lie in an image that is written; clusters have 64 KiB, reference counts 16 bits.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes of the disk.
    pub size: u64,
    /// Entries of the table of the first level, and where it lies.
    pub l1: (u32, u64),
    /// Clusters of the table of reference counts, and where it lies.
    pub refcounts: (u32, u64),
}

/// Writes a header of version 3; an overlay's has the name of its backing file, and what format that has.
#[must_use]
pub fn encode(layout: &Layout, cluster_bits: u32, backing: Option<(&[u8], &[u8])>) -> Vec<u8> {
    let extension = |(_, format): (&[u8], &[u8])| 8 + format.len().next_multiple_of(8);
    let name_at = V3_LEN + backing.map_or(0, extension) + 8;
    let name = backing.map_or(&[][..], |(name, _)| name);
    let mut out = Vec::with_capacity(name_at + name.len());
    out.extend(MAGIC);
    out.extend(3u32.to_be_bytes());
    out.extend(backing.map_or(0, |_| name_at as u64).to_be_bytes());
    out.extend((name.len() as u32).to_be_bytes());
    out.extend(cluster_bits.to_be_bytes());
    out.extend(layout.size.to_be_bytes());
    out.extend(0u32.to_be_bytes()); // not encrypted
    out.extend(layout.l1.0.to_be_bytes());
    out.extend(layout.l1.1.to_be_bytes());
    out.extend(layout.refcounts.1.to_be_bytes());
    out.extend(layout.refcounts.0.to_be_bytes());
    out.extend([0; 12]); // no snapshots
    out.extend([0; 24]); // no features
    out.extend(4u32.to_be_bytes()); // 2^4 bits
    out.extend((V3_LEN as u32).to_be_bytes());
    if let Some((_, format)) = backing {
        out.extend(BACKING_FORMAT.to_be_bytes());
        out.extend((format.len() as u32).to_be_bytes());
        out.extend(format);
    }
    out.resize(name_at, 0); // and the end of the extensions
    out.extend(name);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Vec<u8> {
        let layout = Layout { size: 5 << 30, l1: (10, 0x30000), refcounts: (1, 0x10000) };
        encode(&layout, 16, Some((b"old image.img", b"raw")))
    }

    fn with(at: usize, bytes: &[u8]) -> Result<Header, Qcow2Error> {
        let mut head = example();
        head[at..at + bytes.len()].copy_from_slice(bytes);
        Header::parse(&head)
    }

    #[test]
    fn what_is_written_is_read() {
        let header = Header::parse(&example()).unwrap();
        assert_eq!((header.version, header.cluster_bits, header.size), (3, 16, 5 << 30));
        assert_eq!((header.l1_entries, header.l1_offset, header.extended), (10, 0x30000, false));
        assert_eq!(header.backing.as_deref(), Some(&b"old image.img"[..]));
        assert_eq!(header.backing_format.as_deref(), Some(&b"raw"[..]));
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_reason() {
        for (at, bytes, expected) in [
            (0, &b"QFI\0"[..], "not a qcow2"),
            (4, &1u32.to_be_bytes(), "version 1"),
            (20, &8u32.to_be_bytes(), "cluster_bits"),
            (20, &22u32.to_be_bytes(), "cluster_bits"),
            (20, &u32::MAX.to_be_bytes(), "cluster_bits"),
            (24, &u64::MAX.to_be_bytes(), "size"),
            (32, &2u32.to_be_bytes(), "encrypted"),
            (36, &9u32.to_be_bytes(), "l1_size is 9"),
            (36, &u32::MAX.to_be_bytes(), "l1_size"),
            (40, &77u64.to_be_bytes(), "l1_table_offset"),
            (72, &1u64.to_be_bytes(), "not closed properly"),
            (72, &2u64.to_be_bytes(), "corrupt"),
            (72, &4u64.to_be_bytes(), "another file"),
            (72, &8u64.to_be_bytes(), "compression_type"),
            (72, &(1u64 << 40).to_be_bytes(), "features that are not known"),
            (100, &72u32.to_be_bytes(), "header_length"),
            (100, &u32::MAX.to_be_bytes(), "header_length"),
            (108, &u32::MAX.to_be_bytes(), "extension"),
            (8, &u64::MAX.to_be_bytes(), "backing_file_offset"),
            (16, &2000u32.to_be_bytes(), "backing_file_size"),
        ] {
            let why = with(at, bytes).expect_err(expected).to_string();
            assert!(why.contains(expected), "{why:?} does not say {expected:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(mut head in prop::collection::vec(any::<u8>(), 0..300), damage in prop::collection::vec((0usize..150, any::<u8>()), 0..6), own in any::<bool>()) {
            if own {
                head = example();
                for (at, byte) in damage {
                    if let Some(place) = head.get_mut(at) { *place = byte; }
                }
            } else {
                head.splice(0..0, MAGIC);
            }
            if let Ok(header) = Header::parse(&head) {
                prop_assert!(header.span_log() <= 39 && header.l1_entries <= MOST_L1 / 8);
            }
        }
    }
}
