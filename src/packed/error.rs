//! Why a compressed image is refused.

use super::Packing;
use crate::units::human;
use std::io;

/// A compressed image that does not unpack. Offsets are those of the compressed file.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// The system's.
    #[error("reading it failed behind its byte {at}: {source}")]
    Io {
        /// Bytes of it that were unpacked.
        at: u64,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It ends within a part.
    #[error("it ends too soon, with its byte {at}: it was cut short, or is not completely there yet. Copy it again")]
    CutShort {
        /// Its length.
        at: u64,
    },
    /// It contradicts itself.
    #[error("it is damaged near its byte {at} ({why}). Copy it again, and check it with '{packing} -t'")]
    Damaged {
        /// How it is compressed.
        packing: Packing,
        /// Where that shows; the damage is there or before.
        at: u64,
        /// In the words of the decoder.
        why: String,
    },
    /// Something follows that is none of its parts.
    #[error("behind its end, at its byte {at}, something follows that is not {packing}. Copy it again")]
    Garbage {
        /// How it is compressed.
        packing: Packing,
        /// Where that begins.
        at: u64,
    },
    /// It needs too much memory.
    #[error(
        "unpacking it takes {}, and at most {} are allowed (half of this machine's memory, up to 2 GiB, and for zstd a power of two). Unpack it on a \
         larger machine, or compress it with a smaller window",
        .needed.map_or_else(|| "too much memory".to_owned(), |bytes| format!("{} of memory", human(bytes))), human(*.limit)
    )]
    Memory {
        /// Bytes, where they are known.
        needed: Option<u64>,
        /// Bytes allowed.
        limit: u64,
    },
}
