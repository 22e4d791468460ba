//! Signatures: a weak and a strong checksum of every block of an old image, in librsync's own format, so that `rdiff`
//! reads them, and its are read here (spec, chapter 12). The format with MD4, of `rdiff -R rollsum -H md4 signature`.
//!
//! What librsync's format lacks, length and digests of the image, stands behind its last entry in the shape of further
//! entries, which `rdiff` takes for blocks that nothing matches.

use crate::compare::View;
use crate::digest::{ImageId, is_zero};
use crate::monitor::{Monitor, Silent};
use crate::parallel;
use fast_rsync::{Signature, SignatureOptions};
use std::io::{self, Write};
use std::ops::Range;

/// librsync's number for rollsum and MD4 (RS_MD4_SIG_MAGIC), most significant byte first.
pub const MAGIC: u32 = 0x7273_0136;
/// Bytes before the first entry: number, block length, bytes of the strong checksum.
pub const HEADER: usize = 12;
/// Bytes of a weak checksum.
pub const WEAK: usize = 4;
/// Most bytes of a strong checksum: all of MD4.
pub const STRONG_MOST: u32 = 16;
/// How the trailer ends.
pub const TRAILER_MAGIC: &[u8; 16] = b"blkpatch-sig-v1\n";
/// Bytes of the trailer without the zeros before it: length, CRC-32, BLAKE3, BLAKE3 of what stands before, magic.
pub const TRAILER: usize = 8 + 4 + 32 + 32 + TRAILER_MAGIC.len();
/// Blocks of a signature by default: those of a delta.
pub const BLOCK_LEN: u32 = 4096;
/// Bytes of strong checksums by default, as librsync has it.
pub const STRONG_LEN: u32 = 8;

/// Bytes of an image whose entries one thread makes in one go, about.
const SEGMENT: u64 = 4 << 20;
/// Segments whose entries are in memory at the same time.
const SEGMENTS: u64 = 64;

/// The two lengths on which signatures must agree to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a block, at least 1; the image's last may be shorter.
    pub block_len: u32,
    /// Bytes of a strong checksum, 1 to 16.
    pub strong_len: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { block_len: BLOCK_LEN, strong_len: STRONG_LEN }
    }
}

impl Shape {
    /// Bytes of an entry.
    #[must_use]
    pub fn entry(self) -> usize {
        WEAK + self.strong_len as usize
    }

    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let fields = [MAGIC, self.block_len, self.strong_len];
        header.chunks_exact_mut(4).zip(fields).for_each(|(to, field)| to.copy_from_slice(&field.to_be_bytes()));
        header
    }

    /// The entries of the blocks of `bytes`.
    fn entries(self, bytes: &[u8]) -> Vec<u8> {
        let options = SignatureOptions { block_size: self.block_len, crypto_hash_size: self.strong_len };
        let mut entries = Signature::calculate(bytes, options).into_serialized();
        entries.drain(..HEADER.min(entries.len()));
        entries
    }
}

/// Why a file is no signature that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A kind of librsync signature that is not supported.
    #[error(
        "it is a librsync signature of another kind ({0}): make it with 'blkpatch sign', or with \
         'rdiff -R rollsum -H md4 signature'"
    )]
    Kind(&'static str),
    /// Something else, or damaged.
    #[error("it is not a sound signature: {0} (copy it again, or make it anew with 'blkpatch sign')")]
    Malformed(&'static str),
}

/// A signature that was read.
#[derive(Clone, Debug)]
pub struct SignatureFile {
    /// Its lengths.
    pub shape: Shape,
    /// Length and digests of the image, where the signature knows them.
    pub image: Option<ImageId>,
    /// Header and entries, without the trailer.
    bytes: Vec<u8>,
}

impl SignatureFile {
    /// Reads a signature, its trailer included.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn parse(mut bytes: Vec<u8>) -> Result<Self, SignatureError> {
        let shape = shape_of(&bytes)?;
        let image = match trailer(&bytes, shape)? {
            Some((image, start)) => {
                bytes.truncate(start);
                Some(image)
            }
            None => None,
        };
        let signature = Self { shape, image, bytes };
        let blocks = signature.blocks();
        if signature.image.is_some_and(|image| image.len.div_ceil(shape.block_len.into()) != blocks) {
            return Err(SignatureError::Malformed("it has more or fewer blocks than its image"));
        }
        Ok(signature)
    }

    /// Blocks of the image.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        (self.entries().len() / self.shape.entry()) as u64
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// As fast_rsync has it.
    ///
    /// # Errors
    /// Not for one that was parsed.
    pub fn to_librsync(&self) -> Result<Signature, SignatureError> {
        Signature::deserialize(self.bytes.clone()).map_err(|_| SignatureError::Malformed("its length does not fit"))
    }
}

fn shape_of(bytes: &[u8]) -> Result<Shape, SignatureError> {
    let field = |i: usize| array(bytes, 4 * i).map(u32::from_be_bytes);
    let (Some(magic), Some(block_len), Some(strong_len)) = (field(0), field(1), field(2)) else {
        return Err(SignatureError::Malformed("it is too short"));
    };
    // librsync.h, rs_magic_number.
    match magic {
        MAGIC => {}
        0x7273_0137 => return Err(SignatureError::Kind("rollsum and BLAKE2")),
        0x7273_0146 => return Err(SignatureError::Kind("Rabin-Karp and MD4")),
        0x7273_0147 => return Err(SignatureError::Kind("Rabin-Karp and BLAKE2")),
        _ => return Err(SignatureError::Malformed("it does not begin as one")),
    }
    if block_len == 0 || strong_len == 0 || strong_len > STRONG_MOST {
        return Err(SignatureError::Malformed("its block length or the length of its strong checksums cannot be"));
    }
    let shape = Shape { block_len, strong_len };
    if !(bytes.len() - HEADER).is_multiple_of(shape.entry()) {
        return Err(SignatureError::Malformed("its length does not fit; was it copied in full?"));
    }
    Ok(shape)
}

/// Bytes of the trailer with the zeros before it, which make whole entries of it.
#[must_use]
pub fn trailer_len(shape: Shape) -> usize {
    TRAILER.next_multiple_of(shape.entry())
}

/// What the trailer says, and where it starts.
fn trailer(bytes: &[u8], shape: Shape) -> Result<Option<(ImageId, usize)>, SignatureError> {
    if !bytes.ends_with(TRAILER_MAGIC) {
        return Ok(None);
    }
    let damaged = SignatureError::Malformed("its end is damaged");
    let Some(start) = bytes.len().checked_sub(trailer_len(shape)).filter(|start| *start >= HEADER) else {
        return Err(damaged);
    };
    let (before, fields) = bytes.split_at(bytes.len() - TRAILER);
    let (Some(len), Some(crc), Some(blake3), Some(own)) =
        (array(fields, 0), array(fields, 8), array(fields, 12), array::<32>(fields, 44))
    else {
        return Err(damaged);
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(&fields[..44]);
    if hasher.finalize() != own {
        return Err(SignatureError::Malformed("it is damaged: its own digest is not right"));
    }
    let image = ImageId { len: u64::from_le_bytes(len), crc: u32::from_le_bytes(crc), blake3 };
    Ok(Some((image, start)))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Writes the signature of an image.
///
/// # Errors
/// A failure to write.
pub fn write(view: View<'_>, image: &ImageId, shape: Shape, threads: usize, out: &mut impl Write) -> io::Result<()> {
    write_telling(view, image, shape, threads, out, &Silent)
}

/// The same; `monitor` is told how far it is.
///
/// # Errors
/// A failure to write.
pub fn write_telling(
    view: View<'_>,
    image: &ImageId,
    shape: Shape,
    threads: usize,
    out: &mut impl Write,
    monitor: &dyn Monitor,
) -> io::Result<()> {
    let mut own = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        own.update(bytes);
        out.write_all(bytes)
    };
    put(&shape.header())?;
    let segments = segments(view.len(), shape);
    let count = segments.len();
    for first in (0..count).step_by(SEGMENTS as usize) {
        let now = &segments[first..count.min(first + SEGMENTS as usize)];
        let entries = parallel::map(now.len(), threads, |i| entries_of(view, now[i].clone(), shape));
        entries.iter().try_for_each(|entries| put(entries))?;
        monitor.advance(now.iter().map(|segment| segment.end - segment.start).sum());
    }
    let mut trailer = vec![0; trailer_len(shape) - TRAILER];
    trailer.extend(image.len.to_le_bytes());
    trailer.extend(image.crc.to_le_bytes());
    trailer.extend(image.blake3);
    put(&trailer)?;
    let own = own.finalize();
    out.write_all(own.as_bytes())?;
    out.write_all(TRAILER_MAGIC)
}

/// Stretches of whole blocks that one thread handles in one go.
#[must_use]
pub fn segments(len: u64, shape: Shape) -> Vec<Range<u64>> {
    let block = u64::from(shape.block_len);
    let step = (SEGMENT / block).max(1) * block;
    (0..len.div_ceil(step)).map(|i| i * step..len.min((i + 1) * step)).collect()
}

/// The entries of a segment's blocks. Zeros, which most of an image may be, are hashed once a segment.
#[must_use]
pub fn entries_of(view: View<'_>, segment: Range<u64>, shape: Shape) -> Vec<u8> {
    let block = u64::from(shape.block_len);
    let bytes = &view.bytes[segment.start as usize..segment.end as usize];
    let whole = bytes.len() / block as usize * block as usize;
    if whole == bytes.len() && (view.is_hole(&segment) || is_zero(bytes)) {
        let zero = shape.entries(&vec![0; block as usize]);
        return zero.repeat(whole / block as usize);
    }
    shape.entries(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::identify;

    fn signature_of(bytes: &[u8], shape: Shape) -> Vec<u8> {
        let data = [0..bytes.len() as u64];
        let view = View { bytes, data: &data };
        let mut out = Vec::new();
        write(view, &identify(view, 1), shape, 2, &mut out).unwrap();
        out
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (len, shape) in [
            (0, Shape::default()),
            (1, Shape::default()),
            (3 * 4096 + 5, Shape { block_len: 1000, strong_len: 16 }),
            (9 << 20, Shape { block_len: 4096, strong_len: 1 }),
        ] {
            let bytes: Vec<u8> = (0..len).map(|i: u32| if i < 5 << 20 { (i / 7) as u8 } else { 0 }).collect();
            let signature = SignatureFile::parse(signature_of(&bytes, shape)).unwrap();
            assert_eq!((signature.shape, signature.image.map(|id| id.len)), (shape, Some(bytes.len() as u64)));
            assert_eq!(signature.entries(), shape.entries(&bytes), "as fast_rsync makes them");
            assert_eq!(signature.blocks(), (bytes.len() as u64).div_ceil(shape.block_len.into()));
        }
    }

    #[test]
    fn every_damage_of_ours_and_other_kinds_are_refused() {
        let good = signature_of(&[7; 10_000], Shape::default());
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            // Where the end is no longer ours, what is left is a bare signature.
            let bare = i >= good.len() - TRAILER_MAGIC.len();
            assert_eq!(SignatureFile::parse(bad).is_ok_and(|bad| bad.image.is_none()), bare, "byte {i}");
        }
        assert!(SignatureFile::parse(good[..good.len() - 1].to_vec()).is_err());
        assert!(matches!(
            SignatureFile::parse(b"rs\x01\x47\0\0\x10\0\0\0\0\x08".to_vec()),
            Err(SignatureError::Kind(_))
        ));
    }
}
