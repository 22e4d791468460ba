//! How blocks of zstd and chunks of LZMA2 stand in frames and streams: where they begin and end.

use crate::delta::coding::Whole;
use crate::{lzma_chunk, zstd_block};

/// The first bytes of a frame of zstd (RFC 8878, 3.1.1), and of a stream of xz (The .xz File Format, 2.1.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const XZ_MAGIC: [u8; 6] = *b"\xfd7zXZ\0";
/// Bytes of a stream's header.
const XZ_HEADER: usize = 12;
/// Most bytes of a block of zstd.
const ZSTD_BLOCK_MOST: usize = 128 << 10;

/// The bytes that tell where something begins.
pub(super) fn magic(coding: Whole) -> &'static [u8] {
    match coding {
        Whole::Zstd => &ZSTD_MAGIC,
        Whole::Lzma => &XZ_MAGIC,
    }
}

/// How far behind its magic's first byte the first block stands; `None` where nothing begins here.
pub(super) fn header(coding: Whole, bytes: &[u8]) -> Option<usize> {
    match coding {
        Whole::Zstd => zstd_header(bytes),
        // The header of the first of the stream's blocks, which has another meaning there, says its own length; 0 says that
        // there are none.
        Whole::Lzma => bytes.get(XZ_HEADER).filter(|len| **len > 0).map(|len| XZ_HEADER + (usize::from(*len) + 1) * 4),
    }
}

/// RFC 8878, 3.1.1.1.
fn zstd_header(frame: &[u8]) -> Option<usize> {
    let descriptor = *frame.get(ZSTD_MAGIC.len())?;
    if descriptor & 0x18 > 0 {
        return None; // a bit that must be 0, and one that nobody sets
    }
    let single = usize::from(descriptor >> 5 & 1);
    let size = match descriptor >> 6 {
        0 => single,
        log => 1 << log,
    };
    Some(ZSTD_MAGIC.len() + 2 - single + size + [0, 1, 2, 4][usize::from(descriptor & 3)])
}

/// A block or chunk.
pub(super) struct Block {
    /// Bytes, with its header.
    pub len: usize,
    /// Whether it may have a text.
    pub compressed: bool,
    /// Whether it is the last.
    pub last: bool,
}

/// The block that these bytes begin with; `None` where none can be.
pub(super) fn block(coding: Whole, bytes: &[u8]) -> Option<Block> {
    match coding {
        Whole::Zstd => zstd_block(bytes),
        Whole::Lzma => lzma_chunk(bytes),
    }
}

/// RFC 8878, 3.1.1.2.
fn zstd_block(bytes: &[u8]) -> Option<Block> {
    let [a, b, c] = *bytes.first_chunk()?;
    let header = u32::from_le_bytes([a, b, c, 0]);
    let (last, kind, size) = (header & 1 == 1, header >> 1 & 3, (header >> 3) as usize);
    let content = if kind == 1 { 1 } else { size };
    let block = Block { len: zstd_block::HEADER + content, compressed: kind == 2, last };
    // Compressed data have at least the header of their literals and a number of sequences.
    (kind != 3 && size <= ZSTD_BLOCK_MOST && (kind != 2 || size >= 2)).then_some(block)
}

/// The first byte: 0 for the end; 1 or 2 for what is not compressed.
fn lzma_chunk(bytes: &[u8]) -> Option<Block> {
    let number = |at: usize| Some(usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?)) + 1);
    match *bytes.first()? {
        1 | 2 => Some(Block { len: 3 + number(1)?, compressed: false, last: false }),
        control @ lzma_chunk::COMPRESSED.. => {
            let properties = usize::from(control & 0x40 > 0);
            Some(Block { len: lzma_chunk::HEADER + properties + number(3)?, compressed: true, last: false })
        }
        _ => None,
    }
}

/// Unpacks block after block, or chunk after chunk.
pub(super) enum Unpacker {
    Zstd(zstd_block::Unpacker),
    Lzma(lzma_chunk::Unpacker),
}

impl Unpacker {
    pub fn new(coding: Whole) -> Self {
        match coding {
            Whole::Zstd => Self::Zstd(zstd_block::Unpacker::default()),
            Whole::Lzma => Self::Lzma(lzma_chunk::Unpacker::default()),
        }
    }

    /// Appends the text, of at most `most` bytes, of what these bytes are; says whether it has one. If not, the unpacker is of
    /// no use any more.
    pub fn next(&mut self, bytes: &[u8], most: usize, text: &mut Vec<u8>) -> bool {
        match self {
            Self::Zstd(unpacker) => unpacker.next(bytes, most, text).is_ok(),
            Self::Lzma(unpacker) => unpacker.next(bytes, most, text).is_ok(),
        }
    }
}
