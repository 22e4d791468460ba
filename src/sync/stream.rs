//! An image that comes as a stream: compressed, or through a pipe. Whoever needs the next chunk unpacks it, one at a
//! time, while others compare and write what they took before.

use super::image::{Piece, Source};
use super::trouble::Trouble;
use super::work::End;
use crate::device::AlignedBuffer;
use crate::device::table::TABLE_LEN;
use crate::packed::{HEAD, PackedError, Packing, Unpacker, promised};
use crate::patient::{Over, Patient};
use crate::reading::fill;
use crate::sweep::CHUNK;
use std::fs::File;
use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::sync::{Mutex, PoisonError};

/// Bytes that are read of a stream at once.
const INPUT: usize = 256 << 10;

/// The start of a stream: enough to know what it is.
pub(super) struct Head<'a> {
    bytes: Vec<u8>,
    rest: Patient<Box<dyn Fn() -> bool + Send + 'a>>,
}

impl<'a> Head<'a> {
    /// Reads the start of a stream.
    pub fn read(file: File, end: &'a End<'a>) -> io::Result<Self> {
        let mut rest = Patient { file, is_over: Box::new(|| end.is_over()) as Box<dyn Fn() -> bool + Send> };
        let mut bytes = vec![0; HEAD];
        let len = fill(&mut rest, &mut bytes)?;
        bytes.truncate(len);
        Ok(Self { bytes, rest })
    }

    /// Its first bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The least length that it says it has.
    pub fn promised(&self, packing: Packing) -> Option<u64> {
        promised(packing, &self.bytes, &self.rest.file)
    }

    /// Reads it from its start, unpacked.
    pub fn unpack(self, name: String, packing: Option<Packing>) -> Stream<'a> {
        let input = Cursor::new(self.bytes).chain(self.rest);
        let reader: Box<dyn Read + Send + 'a> = match packing {
            None => Box::new(BufReader::with_capacity(INPUT, input)),
            Some(packing) => Box::new(Unpacker::new(input, packing)),
        };
        Stream { name, state: Mutex::new(State { reader: Some(reader), offset: 0 }) }
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
        match e.get_ref() {
            Some(inner) if inner.is::<Over>() => Trouble::Stop,
            Some(inner) if inner.is::<PackedError>() => Trouble::Corrupt { name, offset, why: e.to_string() },
            _ => Trouble::Image(format!("reading {name} failed behind byte {offset} of the image: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::tests::{PACKS, gzip};
    use std::io::Write;
    use std::sync::atomic::AtomicBool;

    /// All that a stream of these bytes yields.
    fn unpacked(packed: &[u8], packing: Option<Packing>) -> Result<Vec<u8>, Trouble> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(packed).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let stop = AtomicBool::new(false);
        let end = End::new(&stop);
        let stream = Head::read(file, &end).unwrap().unpack("image".into(), packing);
        let (mut all, mut buffer) = (Vec::new(), AlignedBuffer::default());
        while let Some(piece) = stream.next(&mut buffer)? {
            assert_eq!((piece.offset, piece.len), (all.len() as u64, buffer.len()));
            all.extend_from_slice(&buffer);
        }
        assert_eq!(stream.taken(), all.len() as u64);
        Ok(all)
    }

    #[test]
    fn streams_are_taken_in_chunks_to_their_end() {
        let image: Vec<u8> = (0..CHUNK + 70_000).map(|i| (i % 251) as u8).collect();
        assert_eq!(unpacked(&image, None).unwrap(), image);
        for (packing, pack) in PACKS {
            assert_eq!(unpacked(&pack(&image), Some(packing)).unwrap(), image);
        }
    }

    #[test]
    fn what_is_cut_short_is_told_with_its_place_in_file_and_image() {
        let image: Vec<u8> = (0..2 * CHUNK).map(|i| (i * i % 239) as u8).collect();
        let packed = gzip(&image);
        let Err(Trouble::Corrupt { name, why, .. }) = unpacked(&packed[..packed.len() - 1], Some(Packing::Gzip)) else {
            panic!("a stream that was cut short");
        };
        assert!(name == "image" && why.contains(&format!("with its byte {}", packed.len() - 1)), "{name}: {why}");
    }
}
