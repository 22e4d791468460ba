//! Compressed data that steps can unpack and make: which there are, and their texts (spec, sections 6.6 to 6.8).

use super::header::{DEFLATE, LZMA, ZSTD};
use crate::{lzma_chunk, zstd_block};

/// Compressed data that have texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1951.
    Deflate,
    /// What begins and ends at bytes.
    Whole(Whole),
}

/// Compressed data whose blocks (of zstd) or chunks (of LZMA2) begin and end at bytes: steps know them by these alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// RFC 8878.
    Zstd,
    /// LZMA2, as in xz.
    Lzma,
}

impl Coding {
    /// The incompatible feature of deltas that have steps of it.
    #[must_use]
    pub fn feature(self) -> u64 {
        match self {
            Self::Deflate => DEFLATE,
            Self::Whole(Whole::Zstd) => ZSTD,
            Self::Whole(Whole::Lzma) => LZMA,
        }
    }
}

/// Bytes that [`Whole::unpack`] may append beyond its bound.
pub const TEXT_BEYOND: usize = larger(zstd_block::TEXT_BEYOND, lzma_chunk::TEXT_BEYOND);
/// Bytes that [`Whole::pack`] may append beyond its bound.
pub const BEYOND: usize = larger(zstd_block::BEYOND, lzma_chunk::BEYOND);

const fn larger(one: usize, other: usize) -> usize {
    if one > other { one } else { other }
}

impl Whole {
    /// Appends the text, of at most `most` bytes, of blocks or chunks side by side; says whether they have one.
    /// [`TEXT_BEYOND`] bytes more may be appended where not.
    #[must_use]
    pub fn unpack(self, bytes: &[u8], most: usize, text: &mut Vec<u8>) -> bool {
        match self {
            Self::Zstd => zstd_block::unpack(bytes, most, text).is_ok(),
            Self::Lzma => lzma_chunk::unpack(bytes, most, text).is_ok(),
        }
    }

    /// Appends the blocks or chunks, of at most `most` bytes, that a text stands for; says whether it stands for any.
    /// [`BEYOND`] bytes more may be appended where not.
    #[must_use]
    pub fn pack(self, text: &[u8], most: usize, packed: &mut Vec<u8>) -> bool {
        match self {
            Self::Zstd => zstd_block::pack(text, most, packed).is_ok(),
            Self::Lzma => lzma_chunk::pack(text, most, packed).is_ok(),
        }
    }
}
