//! The compressed columns: a section read as a stream of bytes, and written as one (spec, chapter 6).

use super::DeltaError;
use super::header::{Codec, Section};
use crate::parallel;
use crate::varint::{self, VarintError};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// Where the bytes of a delta come from: a file, or memory.
pub trait ReadAt: Send + Sync {
    /// Reads up to `buffer.len()` bytes at `offset`; 0 only at the end.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Bytes in all.
    ///
    /// # Errors
    /// The system's.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }
    fn size(&self) -> io::Result<u64> {
        let mut file = self;
        file.seek(SeekFrom::End(0)) // also right for a delta that lies on a block device
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// A stretch of a delta, read in order.
pub(crate) struct Stretch {
    pub source: Arc<dyn ReadAt>,
    pub offset: u64,
    pub left: u64,
}

impl Read for Stretch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.source.read_at(&mut buffer[..want], self.offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Bytes of buffer before and behind a decompressor.
const READ_BUFFER: usize = 64 << 10;

/// A section's bytes after decompression, read in order. Never yields more than the section announces.
pub struct StreamReader {
    name: &'static str,
    inner: BufReader<Box<dyn Read + Send>>,
    left: u64,
}

impl StreamReader {
    /// Opens the stream of a section; a section that is absent is an empty stream.
    ///
    /// # Errors
    /// Where the decompressor cannot be set up.
    pub fn open(source: &Arc<dyn ReadAt>, section: Option<&Section>, name: &'static str) -> Result<Self, DeltaError> {
        let Some(section) = section else {
            return Ok(Self { name, inner: BufReader::new(Box::new(io::empty())), left: 0 });
        };
        let stretch = Stretch { source: Arc::clone(source), offset: section.offset, left: section.stored_len };
        let inner: Box<dyn Read + Send> = match section.codec {
            Codec::Stored => Box::new(stretch),
            Codec::Zstd { window_log } => {
                let input = BufReader::with_capacity(READ_BUFFER, stretch);
                let mut decoder = zstd::Decoder::with_buffer(input).map_err(|e| Self::failed(name, &e))?;
                decoder.window_log_max(window_log.into()).map_err(|e| Self::failed(name, &e))?;
                Box::new(decoder)
            }
        };
        Ok(Self { name, inner: BufReader::with_capacity(READ_BUFFER, inner), left: section.raw_len })
    }

    fn failed(stream: &'static str, e: &io::Error) -> DeltaError {
        DeltaError::Stream { stream, why: e.to_string() }
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// Where the stream ends early or cannot be decompressed.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<(), DeltaError> {
        self.read_exact(buffer).map_err(|e| Self::failed(self.name, &e))
    }

    /// The next varint.
    ///
    /// # Errors
    /// Where the stream ends early or the number is malformed.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, DeltaError> {
        // Most are one byte.
        if let ([byte @ 0..0x80, ..], true) = (self.inner.buffer(), self.left > 0) {
            let value = u64::from(*byte);
            self.inner.consume(1);
            self.left -= 1;
            return Ok(value);
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, DeltaError> {
        // What is in the buffer need not go through it byte by byte.
        let there = self.inner.buffer();
        let there = &there[..there.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))];
        match varint::get_from(there) {
            Ok(Some((value, len))) => {
                self.inner.consume(len);
                self.left -= len as u64;
                Ok(value)
            }
            Ok(None) => varint::get(self).map_err(|e| varint_error(self.name, e)),
            Err(e) => Err(varint_error(self.name, e)),
        }
    }

    /// The next signed varint.
    ///
    /// # Errors
    /// As [`StreamReader::varint`].
    pub fn signed(&mut self) -> Result<i64, DeltaError> {
        self.varint().map(varint::unzigzag)
    }

    /// Passes over `len` bytes.
    ///
    /// # Errors
    /// Where the stream ends early or cannot be decompressed.
    pub fn skip(&mut self, len: u64) -> Result<(), DeltaError> {
        let skipped = io::copy(&mut self.take(len), &mut io::sink()).map_err(|e| Self::failed(self.name, &e))?;
        if skipped == len { Ok(()) } else { Err(Self::failed(self.name, &io::ErrorKind::UnexpectedEof.into())) }
    }

    /// Checks that the stream has been read to its end and that nothing stands behind it.
    ///
    /// # Errors
    /// Left-over bytes, before or behind the announced end.
    pub fn finish(mut self) -> Result<(), DeltaError> {
        let why = if self.left > 0 {
            format!("{} bytes are left over", self.left)
        } else {
            match self.inner.read(&mut [0]) {
                Ok(0) => return Ok(()),
                Ok(_) => "it is longer than announced".into(),
                Err(e) => e.to_string(),
            }
        };
        Err(DeltaError::Stream { stream: self.name, why })
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// A malformed or truncated varint in the named stream.
pub(crate) fn varint_error(stream: &'static str, e: VarintError) -> DeltaError {
    let why = match e {
        VarintError::Io(e) => e.to_string(),
        VarintError::Malformed => "a number is too long".into(),
    };
    DeltaError::Stream { stream, why }
}

/// How a stream is compressed.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    /// zstd's level, 1 to 22.
    pub level: i32,
    /// log2 of the largest window in bytes; what the target needs in memory to decompress.
    pub window_log: u8,
    /// Threads for long streams, at least 1. The bytes do not depend on it.
    pub threads: u32,
    /// Bytes of a long stream that one thread compresses in one go: [`JOB`], or less where memory matters more, at least
    /// 512 KiB. zstd keeps about 2 * `threads` + 5 times as much, beside its tables.
    pub job: u32,
}

/// Bytes of a job by default: enough to find nearly all that a whole stream would.
pub const JOB: u32 = 8 << 20;
/// Of the window, a job looks at this half of what stands before it (zstd's overlapLog). All of it would cost a tenth more
/// time, and gain 0.1 %.
const OVERLAP: u32 = 8;

/// Below this many bytes a stream is kept in memory and compressed at once, with a window as small as it is.
const SHORT: usize = 1 << 20;

/// Takes a stream's bytes and compresses them into an unnamed temporary file beside the delta.
pub struct StreamWriter {
    compression: Compression,
    short: Vec<u8>,
    long: Option<zstd::Encoder<'static, File>>,
    raw_len: u64,
}

/// A finished stream.
pub struct Finished {
    /// How it is stored.
    pub codec: Codec,
    /// Bytes after decompression.
    pub raw_len: u64,
    /// The bytes to store.
    pub stored: Stored,
}

/// The stored bytes of a finished stream.
pub enum Stored {
    /// In memory.
    Memory(Vec<u8>),
    /// In a temporary file, from its start.
    Spool(File),
}

impl StreamWriter {
    /// An empty stream.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self { compression, short: Vec::new(), long: None, raw_len: 0 }
    }

    /// Bytes put so far.
    #[must_use]
    pub fn raw_len(&self) -> u64 {
        self.raw_len
    }

    /// The bytes of a stream that has not grown long.
    #[must_use]
    pub fn into_short(self) -> Vec<u8> {
        self.short
    }

    /// Appends bytes; a stream that grows long is spooled to an unnamed file in `spool_dir`.
    ///
    /// # Errors
    /// The system's, for example no space left.
    pub fn put(&mut self, bytes: &[u8], spool_dir: &Path) -> io::Result<()> {
        self.raw_len += bytes.len() as u64;
        if let Some(encoder) = &mut self.long {
            return encoder.write_all(bytes);
        }
        self.short.extend_from_slice(bytes);
        if self.short.len() > SHORT {
            let mut encoder = zstd::Encoder::new(tempfile::tempfile_in(spool_dir)?, self.compression.level)?;
            encoder.window_log(self.compression.window_log.into())?;
            encoder.include_contentsize(false)?;
            encoder.multithread(self.compression.threads.max(1))?;
            encoder.set_parameter(zstd::zstd_safe::CParameter::JobSize(self.compression.job))?;
            encoder.set_parameter(zstd::zstd_safe::CParameter::OverlapSizeLog(OVERLAP))?;
            encoder.write_all(&self.short)?;
            self.short = Vec::new();
            self.long = Some(encoder);
        }
        Ok(())
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(self) -> io::Result<Finished> {
        let raw_len = self.raw_len;
        if let Some(encoder) = self.long {
            let codec = Codec::Zstd { window_log: self.compression.window_log };
            return Ok(Finished { codec, raw_len, stored: Stored::Spool(encoder.finish()?) });
        }
        let packed = frame(&self.short, &[], self.compression.level)?;
        Ok(shorter(self.short, packed))
    }
}

fn window_log(bytes: &[u8]) -> u8 {
    (usize::BITS - bytes.len().leading_zeros()).clamp(10, 27) as u8
}

/// One zstd frame of `bytes`, in which a block ends at each of the `cuts`.
fn frame(bytes: &[u8], cuts: &[usize], level: i32) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level)?;
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    encoder.include_contentsize(false)?;
    encoder.include_checksum(false)?;
    encoder.window_log(window_log(bytes).into())?;
    let mut done = 0;
    for cut in cuts {
        encoder.write_all(&bytes[done..*cut])?;
        encoder.flush()?;
        done = *cut;
    }
    encoder.write_all(&bytes[done..])?;
    encoder.finish()
}

fn shorter(raw: Vec<u8>, packed: Vec<u8>) -> Finished {
    let raw_len = raw.len() as u64;
    if packed.len() < raw.len() {
        let codec = Codec::Zstd { window_log: window_log(&raw) };
        return Finished { codec, raw_len, stored: Stored::Memory(packed) };
    }
    Finished { codec: Codec::Stored, raw_len, stored: Stored::Memory(raw) }
}

/// Compresses a few unlike things that stand one behind the other, such as a pack. zstd codes all of a block with the
/// same tables, and hardly sees where in so few bytes another table would do better: the cuts are found by trying. The
/// bytes do not depend on the threads.
///
/// # Errors
/// Where zstd fails.
pub fn compress_mixture(bytes: Vec<u8>, level: i32, threads: usize) -> io::Result<Finished> {
    /// Where cuts are tried, in bytes.
    const GRID: usize = 1024;
    const MOST_CUTS: usize = 4;
    /// Bytes that a cut must gain.
    const WORTH: usize = 4;
    let mut cuts: Vec<usize> = Vec::new();
    let mut best = frame(&bytes, &cuts, level)?;
    while cuts.len() < MOST_CUTS {
        let most = best.len().saturating_sub(WORTH);
        let tries: Vec<(usize, usize)> =
            (GRID..bytes.len()).step_by(GRID).filter_map(|cut| Some((cuts.binary_search(&cut).err()?, cut))).collect();
        let packed = parallel::map(tries.len(), threads, |i| {
            let mut more = cuts.clone();
            more.insert(tries[i].0, tries[i].1);
            frame(&bytes, &more, level).map(|packed| (packed, more))
        });
        let mut better: Option<Vec<usize>> = None;
        for packed in packed {
            let (packed, more) = packed?;
            if packed.len() <= most && packed.len() < best.len() {
                (best, better) = (packed, Some(more));
            }
        }
        let Some(more) = better else { break };
        cuts = more;
    }
    Ok(shorter(bytes, best))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_is_cut_where_that_helps_and_stays_one_frame() {
        let mut state = 1u32;
        let mut next = |limit: u32| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
            (state >> 16) % limit
        };
        let mut bytes: Vec<u8> = (0..5000).map(|_| next(16) as u8).collect();
        bytes.extend((0..5000).map(|_| b'0' + next(64) as u8));
        let plain = frame(&bytes, &[], 19).unwrap();
        let Finished { stored: Stored::Memory(packed), raw_len, .. } = compress_mixture(bytes.clone(), 19, 2).unwrap()
        else {
            panic!("it stays in memory")
        };
        assert!(packed.len() < plain.len(), "{} is not below {}", packed.len(), plain.len());
        assert_eq!(raw_len, bytes.len() as u64);
        assert_eq!(zstd::decode_all(packed.as_slice()).unwrap(), bytes);
    }
}
