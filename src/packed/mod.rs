//! Compressed images: recognised by their first bytes, unpacked as a stream ([`Unpacker`]), or to a temporary file where
//! all bytes must be at hand ([`file`]).
//!
//! What other programs make is read as a whole: gzip files of several members, xz files of several streams, zstd files of
//! several frames, also those that are to be skipped, and bzip2 files that were appended to each other. Whatever follows
//! else, or is missing, is an error: an image that is only nearly right is wrong. Memory does not depend on what a file
//! says, beyond [`memory_limit`].

mod codec;
mod error;
pub(crate) mod file;
mod input;
mod length;
#[cfg(test)]
pub(crate) mod tests;
mod unpacker;

pub use error::PackedError;
pub(crate) use length::promised;
pub use unpacker::Unpacker;

use std::fmt;

/// First bytes of a file that tell what it is, and of a zstd frame how long its content is.
pub const HEAD: usize = 18;

/// How an image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip, RFC 1952.
    Gzip,
    /// The .xz format.
    Xz,
    /// zstd, RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

impl Packing {
    const ALL: [Self; 4] = [Self::Gzip, Self::Xz, Self::Zstd, Self::Bzip2];

    /// Whether a member, stream or frame begins so; `head` may be short only where the file ends.
    fn begins(self, head: &[u8]) -> bool {
        // How long a bzip2 block may be, and then either the first block or the end of an empty stream.
        const BZIP2: [&[u8]; 2] = [b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"];
        match self {
            Self::Gzip => head.starts_with(b"\x1f\x8b\x08"),
            Self::Xz => head.starts_with(b"\xfd7zXZ\0"),
            // Or a frame to be skipped, as pzstd writes one at the start.
            Self::Zstd => {
                head.starts_with(b"\x28\xb5\x2f\xfd")
                    || head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == *b"\x2a\x4d\x18"
            }
            Self::Bzip2 => {
                let block = head.get(4..head.len().min(10)).unwrap_or_default();
                head.starts_with(b"BZh")
                    && head.get(3).is_some_and(|size| (b'1'..=b'9').contains(size))
                    && BZIP2.iter().any(|magic| magic.starts_with(block))
            }
        }
    }
}

/// How a file is compressed, by its first [`HEAD`] bytes; the error names what certainly is no image and cannot be read.
///
/// # Errors
/// What it is instead, and what to do.
pub fn recognise(head: &[u8]) -> Result<Option<Packing>, &'static str> {
    // Taken as they are they would destroy a disk's content, or make a large delta, for nothing.
    const OTHERS: [(&[u8], &str); 6] = [
        (
            b"\x04\x22\x4d\x18",
            "is compressed by lz4, which cannot be read here: unpack it first, with 'lz4 -d FILE IMAGE'; 'sync' also takes \
             'lz4 -dc FILE' from a pipe",
        ),
        (b"LZIP", "is compressed by lzip, which cannot be read here: unpack it first, with 'lzip -dk FILE'"),
        (
            b"PK\x03\x04",
            "is a zip archive: unpack it first, with 'unzip FILE'; 'sync' also takes 'unzip -p FILE' from a pipe",
        ),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
        (
            b"QFI\xfb",
            "begins like a qcow2 image, which can be read from a regular file only. If it is a raw image, say '--format raw'",
        ),
        (b"\x3a\xff\x26\xed", "is an Android sparse image: convert it first, with 'simg2img FILE IMAGE'"),
    ];
    if let Some((_, why)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(why);
    }
    Ok(Packing::ALL.into_iter().find(|packing| packing.begins(head)))
}

/// Bytes of memory that unpacking one image may take: half of what the machine has, but at least what every preset of the
/// common programs needs, and at most what `zstd --long=31` does.
#[must_use]
pub fn memory_limit() -> u64 {
    let (least, most) = (256 << 20, if usize::BITS > 32 { 2 << 30 } else { 1 << 30 });
    let system = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion)] // 32 bits on 32-bit machines
    let memory = u64::try_from(system.totalram).unwrap_or(u64::MAX).saturating_mul(u64::from(system.mem_unit));
    (memory / 2).clamp(least, most)
}
