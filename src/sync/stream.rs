//! An image that comes as a stream: compressed, or through a pipe. Whoever needs the next chunk unpacks it, one at a
//! time, while others compare and write what they took before.

use super::image::{Piece, Source};
use super::length::promised;
use super::trouble::Trouble;
use super::work::End;
use crate::device::AlignedBuffer;
use crate::device::table::TABLE_LEN;
use crate::patient::{Over, Patient};
use crate::sweep::CHUNK;
use std::fs::File;
use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::sync::{Mutex, PoisonError};

/// Bytes that tell what a stream is, and of a zstd frame how long its content is.
const HEAD: u64 = 18;
/// Bytes that are read of a compressed stream at once.
const INPUT: usize = 256 << 10;
/// Memory that unpacking xz may take: enough for every preset; a hostile file could ask for 4 GiB.
const XZ_MEMORY: u64 = 256 << 20;

/// How an image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Not at all.
    Plain,
    Gzip,
    Xz,
    Zstd,
}

/// What a file is, by its first bytes; the error names what certainly is no image and cannot be unpacked here.
pub(super) fn recognise(head: &[u8]) -> Result<Format, &'static str> {
    const KNOWN: [(&[u8], Format); 3] =
        [(b"\x1f\x8b\x08", Format::Gzip), (b"\xfd7zXZ\0", Format::Xz), (b"\x28\xb5\x2f\xfd", Format::Zstd)];
    // Written as they are they would destroy a disk's content for nothing.
    const OTHERS: [(&[u8], &str); 6] = [
        (b"BZh", "is compressed by bzip2: unpack it to standard input, with 'bzcat FILE | blkpatch sync - TARGET'"),
        (
            b"\x04\x22\x4d\x18",
            "is compressed by lz4: unpack it to standard input, with 'lz4cat FILE | blkpatch sync - TARGET'",
        ),
        (b"PK\x03\x04", "is a zip archive: unpack it to standard input, with 'unzip -p FILE | blkpatch sync - TARGET'"),
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
    // A frame to be skipped, as pzstd writes one at the start.
    if head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == *b"\x2a\x4d\x18" {
        return Ok(Format::Zstd);
    }
    Ok(KNOWN.iter().find(|(magic, _)| head.starts_with(magic)).map_or(Format::Plain, |(_, format)| *format))
}

/// Fills a buffer as far as the stream goes.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match reader.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// The start of a stream: enough to know what it is.
pub(super) struct Head<'a> {
    bytes: Vec<u8>,
    rest: Patient<Box<dyn Fn() -> bool + Send + 'a>>,
}

impl<'a> Head<'a> {
    /// Reads the start of a stream.
    pub fn read(file: File, end: &'a End<'a>) -> io::Result<Self> {
        let mut rest = Patient { file, is_over: Box::new(|| end.is_over()) as Box<dyn Fn() -> bool + Send> };
        let mut bytes = vec![0; HEAD as usize];
        let len = fill(&mut rest, &mut bytes)?;
        bytes.truncate(len);
        Ok(Self { bytes, rest })
    }

    /// How it is packed.
    pub fn format(&self) -> Result<Format, &'static str> {
        recognise(&self.bytes)
    }

    /// The least length that it says it has.
    pub fn promised(&self, format: Format) -> Option<u64> {
        promised(format, &self.bytes, &self.rest.file)
    }

    /// Unpacks it from its start.
    pub fn unpack(self, name: String, format: Format) -> io::Result<Stream<'a>> {
        let input = BufReader::with_capacity(INPUT, Cursor::new(self.bytes).chain(self.rest));
        // All of them read on where one member, frame or stream follows another.
        let reader: Box<dyn Read + Send + 'a> = match format {
            Format::Plain => Box::new(input),
            Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Format::Xz => {
                let flags = liblzma::stream::CONCATENATED;
                let decoder = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, decoder))
            }
            Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        };
        Ok(Stream { name, state: Mutex::new(State { reader: Some(reader), offset: 0 }) })
    }
}

/// An image that is read once, from its start to its end.
pub(super) struct Stream<'a> {
    name: String,
    state: Mutex<State<'a>>,
}

struct State<'a> {
    /// `None` behind the end.
    reader: Option<Box<dyn Read + Send + 'a>>,
    /// Bytes that were taken.
    offset: u64,
}

/// A stream that failed, and fails again for whoever reads it next.
struct Failed(Option<io::Error>);

impl Read for Failed {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(self.0.take().unwrap_or_else(|| ErrorKind::Other.into()))
    }
}

impl Source for Stream<'_> {
    fn head(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reader = state.reader.take()?;
        let mut head = vec![0; TABLE_LEN];
        match fill(&mut reader, &mut head) {
            Ok(len) => {
                head.truncate(len);
                state.reader = Some(Box::new(Cursor::new(head.clone()).chain(reader)));
                Some(head)
            }
            Err(e) => {
                state.reader = Some(Box::new(Failed(Some(e))));
                None
            }
        }
    }

    fn next(&self, buffer: &mut AlignedBuffer) -> Result<Option<Piece>, Trouble> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut reader) = state.reader.take() else { return Ok(None) };
        buffer.resize(CHUNK as usize);
        let offset = state.offset;
        let len = fill(&mut reader, buffer).map_err(|e| self.trouble(offset, &e))?;
        state.offset += len as u64;
        if len == buffer.len() {
            state.reader = Some(reader);
        }
        buffer.resize(len);
        Ok((len > 0).then_some(Piece { offset, len, hole: false }))
    }

    fn taken(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).offset
    }
}

impl Stream<'_> {
    fn trouble(&self, offset: u64, e: &io::Error) -> Trouble {
        let name = self.name.clone();
        match e.raw_os_error() {
            _ if e.get_ref().is_some_and(|e| e.is::<Over>()) => Trouble::Stop,
            // Only the system's own errors have a number: the others come from unpacking.
            Some(_) => Trouble::Image(format!("reading {name} failed behind byte {offset} of the image: {e}")),
            None => Trouble::Corrupt { name, offset, why: e.to_string() },
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        assert_eq!(recognise(b"\x1f\x8b\x08\x00"), Ok(Format::Gzip));
        assert_eq!(recognise(b"\xfd7zXZ\0\0\x04"), Ok(Format::Xz));
        assert_eq!(recognise(b"\x28\xb5\x2f\xfd\x04"), Ok(Format::Zstd));
        assert_eq!(recognise(b"\x50\x2a\x4d\x18\x04"), Ok(Format::Zstd));
        for plain in [b"".as_slice(), b"\x1f\x8b", b"\xfd7zX", &[0; 16], b"\xeb\x63\x90"] {
            assert_eq!(recognise(plain), Ok(Format::Plain));
        }
        assert!(recognise(b"BZh91AY").is_err_and(|why| why.contains("bzcat")));
        assert!(recognise(b"QFI\xfb\0\0\0\x03").is_err());
    }

    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    pub fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        liblzma::bufread::XzEncoder::new(bytes, 0).read_to_end(&mut packed).unwrap();
        packed
    }

    pub fn zst(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 1).unwrap()
    }

    /// All that a stream of these bytes yields.
    fn unpacked(packed: &[u8]) -> Result<Vec<u8>, Trouble> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(packed).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let stop = AtomicBool::new(false);
        let end = End::new(&stop);
        let head = Head::read(file, &end).unwrap();
        let format = head.format().unwrap();
        let stream = head.unpack("image".into(), format).unwrap();
        let (mut all, mut buffer) = (Vec::new(), AlignedBuffer::default());
        while let Some(piece) = stream.next(&mut buffer)? {
            assert_eq!((piece.offset, piece.len), (all.len() as u64, buffer.len()));
            all.extend_from_slice(&buffer);
        }
        assert_eq!(stream.taken(), all.len() as u64);
        Ok(all)
    }

    #[test]
    fn all_formats_are_unpacked_to_the_end_of_the_last_part() {
        let image: Vec<u8> = (0..CHUNK + 70_000).map(|i| (i % 251) as u8).collect();
        assert_eq!(unpacked(&image).unwrap(), image);
        for pack in [gzip, xz, zst] {
            assert_eq!(unpacked(&pack(&image)).unwrap(), image);
            let two = [pack(&image[..5000]), pack(&image[5000..])].concat();
            assert_eq!(unpacked(&two).unwrap(), image);
            assert_eq!(unpacked(&pack(b"")).unwrap(), b"");
        }
    }

    #[test]
    fn what_is_cut_short_or_damaged_is_noticed() {
        let image: Vec<u8> = (0..2 * CHUNK).map(|i| (i * i % 239) as u8).collect();
        for pack in [gzip, xz, zst] {
            let packed = pack(&image);
            for len in [packed.len() - 1, packed.len() - 9, packed.len() / 2, 30] {
                let found = unpacked(&packed[..len]);
                assert!(matches!(found, Err(Trouble::Corrupt { .. })), "{len} of {} bytes", packed.len());
            }
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0x55;
            // zstd's frames need not have a checksum, but what is unpacked is then another image.
            assert!(unpacked(&damaged).map_or(true, |found| found != image));
        }
    }
}
