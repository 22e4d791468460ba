//! Blocks that change when a file system is merely mounted and unmounted: superblocks. A delta should not read them,
//! so that the most common accident of all does not end in a refusal.

use crate::units::{BLOCK, Extent, merge_extents};

/// A mark that tells a volatile block: magic bytes at an offset within a 512-byte sector-aligned structure.
struct Mark {
    /// Offset of the magic from the start of the structure.
    at: usize,
    magic: &'static [u8],
    /// Further conditions on the bytes from the start of the structure.
    plausible: fn(&[u8]) -> bool,
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Mount time, mount count and state change in the ext superblock; jbd2's changes with the journal's head; btrfs and
/// f2fs count generations; XFS counts free space; FAT keeps a dirty flag in its boot sector and counts in FSInfo.
const MARKS: [Mark; 7] = [
    Mark {
        at: 56,
        magic: &[0x53, 0xEF],
        // Kernel's fs/ext4/ext4.h: s_log_block_size, s_state, s_rev_level, s_blocks_count_lo.
        plausible: |s| le32(s, 24) <= 6 && le16(s, 58) <= 7 && le32(s, 76) <= 1 && le32(s, 4) != 0 && le32(s, 0) != 0,
    },
    // Kernel's include/linux/jbd2.h: superblock versions 1 and 2, big endian.
    Mark { at: 0, magic: &[0xC0, 0x3B, 0x39, 0x98], plausible: |s| matches!(s.get(4..8), Some([0, 0, 0, 3 | 4])) },
    Mark { at: 64, magic: b"_BHRfS_M", plausible: |_| true },
    Mark { at: 0, magic: b"XFSB", plausible: |s| s.get(4..6) == Some(&[0, 0]) },
    Mark { at: 0, magic: &[0x10, 0x20, 0xF5, 0xF2], plausible: |_| true },
    Mark { at: 484, magic: b"rrAa", plausible: |s| s.get(0..4) == Some(b"RRaA") },
    Mark {
        at: 510,
        magic: &[0x55, 0xAA],
        plausible: |s| s.get(82..87) == Some(b"FAT32") || s.get(54..57) == Some(b"FAT"),
    },
];

fn is_volatile(block: &[u8]) -> bool {
    (0..block.len()).step_by(512).any(|start| {
        let structure = &block[start..];
        MARKS.iter().any(|m| structure.get(m.at..m.at + m.magic.len()) == Some(m.magic) && (m.plausible)(structure))
    })
}

/// The blocks among `candidates` (old blocks that a recipe reads) that a mere mount may change: ascending, merged.
#[must_use]
pub fn volatile_blocks(old: &[u8], candidates: &[Extent]) -> Vec<Extent> {
    let mut found = Vec::new();
    for block in candidates.iter().flat_map(|e| e.start..e.end()) {
        let start = usize::try_from(block * BLOCK).unwrap_or(usize::MAX);
        let content = old.get(start..).unwrap_or_default();
        if is_volatile(&content[..content.len().min(BLOCK as usize)]) {
            found.push(Extent { start: block, count: 1 });
        }
    }
    merge_extents(&mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ext_superblock_is_volatile_and_chance_bytes_are_not() {
        let mut image = vec![0u8; 3 * 4096];
        let superblock = 4096 + 1024;
        image[superblock + 56..superblock + 58].copy_from_slice(&[0x53, 0xEF]);
        let all = [Extent { start: 0, count: 3 }];
        assert_eq!(volatile_blocks(&image, &all), [], "no inodes, no blocks: not a superblock");
        image[superblock] = 1;
        image[superblock + 4] = 1;
        assert_eq!(volatile_blocks(&image, &all), [Extent { start: 1, count: 1 }]);
    }
}
