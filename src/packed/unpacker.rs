//! Unpacks a compressed file, part after part.

use super::codec::{Codec, zstd_window};
use super::input::Input;
use super::{HEAD, PackedError, Packing, memory_limit};
use std::io::{self, Read};

/// Reads what a compressed file unpacks to. Its errors hold a [`PackedError`], which [`Unpacker::fault`] takes out.
pub struct Unpacker<R> {
    input: Input<R>,
    packing: Packing,
    limit: u64,
    /// `None` before the first part.
    codec: Option<Codec>,
    /// Whether a part has begun and is not complete.
    within: bool,
}

impl<R: Read> Unpacker<R> {
    /// Unpacks from the start of a file.
    pub fn new(reader: R, packing: Packing) -> Self {
        Self::with_limit(reader, packing, memory_limit())
    }

    /// As [`Unpacker::new`], in at most `limit` bytes of memory.
    pub(super) fn with_limit(reader: R, packing: Packing, limit: u64) -> Self {
        // zstd can be told powers of two only, and says of a larger window no more than that it fails.
        let limit = if packing == Packing::Zstd { 1 << limit.max(1).ilog2() } else { limit };
        Self { input: Input::new(reader), packing, limit, codec: None, within: false }
    }

    /// Bytes of the compressed file that are unpacked.
    pub fn taken(&self) -> u64 {
        self.input.taken()
    }

    /// What went wrong, as a read told it.
    pub fn fault(&self, e: io::Error) -> PackedError {
        e.downcast::<PackedError>().unwrap_or_else(|source| PackedError::Io { at: self.taken(), source })
    }

    /// Unpacks some bytes, none only at the end.
    fn unpack(&mut self, output: &mut [u8]) -> Result<usize, Failed> {
        loop {
            if !self.within && !self.begin_part()? {
                return Ok(0);
            }
            let Some(codec) = &mut self.codec else { return Ok(0) };
            let at = self.input.taken();
            let input = self.input.look(1)?;
            let ends = input.is_empty();
            let step = codec.step(input, output).map_err(|fault| fault.at(at, self.packing, self.limit))?;
            self.input.take(step.used);
            self.within = !step.complete;
            if step.made > 0 {
                return Ok(step.made);
            }
            if self.within && step.used == 0 {
                let why = || "it makes no sense".to_owned();
                let packing = self.packing;
                let fault =
                    if ends { PackedError::CutShort { at } } else { PackedError::Damaged { packing, at, why: why() } };
                return Err(fault.into());
            }
        }
    }

    /// Begins the next part; `false` where there is none.
    fn begin_part(&mut self) -> Result<bool, Failed> {
        let (packing, limit) = (self.packing, self.limit);
        if packing == Packing::Xz && self.codec.is_some() {
            self.skip_padding()?;
        }
        let at = self.input.taken();
        let head = self.input.look(HEAD)?;
        if head.is_empty() && self.codec.is_some() {
            return Ok(false);
        }
        if !packing.begins(head) {
            return Err(PackedError::Garbage { packing, at }.into());
        }
        let window = zstd_window(head).filter(|_| packing == Packing::Zstd);
        if window.is_some_and(|window| window > limit) {
            return Err(PackedError::Memory { needed: window, limit }.into());
        }
        let begun = match &mut self.codec {
            Some(codec) => codec.restart(packing, limit),
            none => Codec::new(packing, limit).map(|codec| *none = Some(codec)),
        };
        begun.map_err(|fault| fault.at(at, packing, limit))?;
        self.within = true;
        Ok(true)
    }

    /// Takes the zeros that may follow an xz stream: a multiple of four.
    fn skip_padding(&mut self) -> Result<(), Failed> {
        while self.input.look(4)?.starts_with(&[0; 4]) {
            self.input.take(4);
        }
        Ok(())
    }
}

/// Not [`io::Error`] at once, as `?` then makes the right one of either.
struct Failed(io::Error);

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Self(e)
    }
}

impl From<PackedError> for Failed {
    fn from(e: PackedError) -> Self {
        Self(io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl<R: Read> Read for Unpacker<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if output.is_empty() { Ok(0) } else { self.unpack(output).map_err(|failed| failed.0) }
    }
}
