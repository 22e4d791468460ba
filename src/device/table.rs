//! Partition tables, as far as messages need them: what is on a disk, and where its GPT keeps its backup. Pure.

use crate::units::human;

/// Bytes at the start of a disk that hold its partition table, for sectors of 512 and of 4096 bytes.
pub const TABLE_LEN: usize = 32 << 10;

/// A partition table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Byte offset of the GPT's backup header, as the first header tells it; `None` for a table of the old kind (MBR).
    pub backup: Option<u64>,
    /// Its partitions, in the table's order. Logical partitions of an MBR are not followed.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Where it starts, in bytes.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
    /// Its name in a GPT; for an MBR what its type says. May be empty.
    pub name: String,
}

impl Table {
    /// Reads a table from the first bytes of a disk with sectors of `sector` bytes; fewer than [`TABLE_LEN`] may be there.
    #[must_use]
    pub fn parse(head: &[u8], sector: u64) -> Option<Self> {
        [512, 4096].into_iter().find_map(|sector| gpt(head, sector)).or_else(|| mbr(head, sector))
    }

    /// What it is called.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.backup.is_some() { "GPT" } else { "MBR" }
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.number, human(self.len))?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " {}", self.name) }
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

/// A GUID partition table (UEFI specification, chapter 5) whose header is sound.
fn gpt(head: &[u8], sector: usize) -> Option<Table> {
    let rest = head.get(sector..)?;
    let len = u32_at(rest, 12)? as usize;
    if !rest.starts_with(b"EFI PART") || !(92..=512).contains(&len) {
        return None;
    }
    let mut header = rest.get(..len)?.to_vec();
    header.get_mut(16..20)?.fill(0);
    if crc32fast::hash(&header) != u32_at(rest, 16)? {
        return None;
    }
    let bytes = |sectors: u64| sectors.checked_mul(sector as u64);
    let first = usize::try_from(bytes(u64_at(rest, 72)?)?).ok()?;
    let (count, size) = (u32_at(rest, 80)?.min(128), u32_at(rest, 84)? as usize);
    let partitions = (0..count).filter_map(|i| {
        let entry = head.get(first.checked_add(size.checked_mul(i as usize)?)?..)?.get(..128)?;
        let (start, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
        if entry.get(..16)?.iter().all(|byte| *byte == 0) || last < start {
            return None;
        }
        let units: Vec<u16> =
            entry.get(56..128)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        let name: String = String::from_utf16_lossy(&units).chars().take_while(|c| *c != '\0').collect();
        let (start, len) = (bytes(start)?, bytes((last - start).checked_add(1)?)?);
        Some(Partition { number: i + 1, start, len, name: printable(&name) })
    });
    Some(Table { backup: Some(bytes(u64_at(rest, 32)?)?), partitions: partitions.collect() })
}

/// A table of the old kind. A file system's boot sector has the same last bytes, and is none.
fn mbr(head: &[u8], sector: u64) -> Option<Table> {
    let file_system = [(3, &b"NTFS"[..]), (3, b"EXFAT"), (54, b"FAT"), (82, b"FAT32")];
    if head.get(510..512)? != [0x55, 0xAA] || file_system.iter().any(|(at, name)| head[*at..].starts_with(name)) {
        return None;
    }
    let entries = (0..4).map(|i| &head[446 + 16 * i..462 + 16 * i]);
    if !entries.clone().all(|entry| entry[0] & 0x7F == 0) {
        return None;
    }
    let partitions: Vec<Partition> = (1..)
        .zip(entries)
        .filter_map(|(number, entry)| {
            let (start, len) = (u64::from(u32_at(entry, 8)?), u64::from(u32_at(entry, 12)?));
            let name = match entry[4] {
                0 => return None,
                0x05 | 0x0F | 0x85 => "extended",
                0x07 => "NTFS or exFAT",
                0x01 | 0x04 | 0x06 | 0x0B | 0x0C | 0x0E => "FAT",
                0x82 => "Linux swap",
                0x83 => "Linux",
                0x8E => "Linux LVM",
                0xEE => "GPT",
                0xEF => "EFI system",
                0xFD => "Linux RAID",
                _ => "",
            };
            let (start, len) = (start.checked_mul(sector)?, len.checked_mul(sector)?);
            (start > 0 && len > 0).then(|| Partition { number, start, len, name: name.into() })
        })
        .collect();
    (!partitions.is_empty()).then_some(Table { backup: None, partitions })
}

/// A name that a disk holds, made fit for a terminal.
#[must_use]
pub fn printable(name: &str) -> String {
    name.trim_matches(|c: char| c == '\0' || c.is_whitespace())
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// The label of the file system that begins with these bytes: ext2 to ext4, XFS, FAT.
#[must_use]
pub fn file_system_label(head: &[u8]) -> Option<String> {
    let text = |at: usize, len: usize| head.get(at..at + len).map(|bytes| printable(&String::from_utf8_lossy(bytes)));
    let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    match () {
        () if is(1080, b"\x53\xEF") => text(1144, 16),
        () if is(0, b"XFSB") => text(108, 12),
        () if is(82, b"FAT32") => text(71, 11).filter(|label| label != "NO NAME"),
        () if is(54, b"FAT") => text(43, 11).filter(|label| label != "NO NAME"),
        () => None,
    }
    .filter(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GPT with one partition of 8 sectors, from sector 40, of a disk of 1000 sectors.
    fn disk(sector: usize) -> Vec<u8> {
        let mut head = vec![0; TABLE_LEN];
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[32..40].copy_from_slice(&999u64.to_le_bytes());
        header[72..80].copy_from_slice(&2u64.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        head[sector..sector + 92].copy_from_slice(&header);
        let entry = &mut head[2 * sector + 128..2 * sector + 256];
        entry[..16].fill(7);
        entry[32..40].copy_from_slice(&40u64.to_le_bytes());
        entry[40..48].copy_from_slice(&47u64.to_le_bytes());
        for (i, unit) in "ro\u{1b}ot".encode_utf16().enumerate() {
            entry[56 + 2 * i..58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
        }
        head
    }

    #[test]
    fn a_gpt_is_read_at_either_sector_size() {
        for sector in [512, 4096] {
            let table = Table::parse(&disk(sector), 512).unwrap();
            let s = sector as u64;
            assert_eq!((table.backup, table.kind()), (Some(999 * s), "GPT"));
            let expected = Partition { number: 2, start: 40 * s, len: 8 * s, name: "ro?ot".into() };
            assert_eq!(table.partitions, [expected]);
        }
        let mut damaged = disk(512);
        damaged[512 + 40] ^= 1;
        assert_eq!(Table::parse(&damaged, 512), None);
    }

    #[test]
    fn an_mbr_is_told_from_a_boot_sector() {
        let mut head = vec![0; 512];
        head[510..].copy_from_slice(&[0x55, 0xAA]);
        assert_eq!(Table::parse(&head, 512), None, "no partition");
        head[446 + 16..446 + 32].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0]);
        let partition = Partition { number: 2, start: 2048 * 512, len: 4096 * 512, name: "Linux".into() };
        assert_eq!(Table::parse(&head, 512), Some(Table { backup: None, partitions: vec![partition] }));
        head[82..87].copy_from_slice(b"FAT32");
        assert_eq!(Table::parse(&head, 512), None, "a FAT boot sector");
    }

    #[test]
    fn nothing_and_short_heads_are_no_tables() {
        let whole = disk(4096);
        for len in 0..whole.len() {
            let _ = Table::parse(&whole[..len], 512);
            let _ = file_system_label(&whole[..len]);
        }
        let hostile = vec![0xFF; TABLE_LEN];
        assert_eq!((Table::parse(&hostile, u64::MAX), file_system_label(&hostile)), (None, None));
    }
}
