//! The decoders: each unpacks one part of a file (gzip's member, xz's and bzip2's stream, zstd's frame) step by step.

use super::{PackedError, Packing};
use flate2::FlushDecompress;
use std::fmt::Display;
use zstd::stream::raw::{DParameter, Operation};

/// A decoder of one part.
pub(super) enum Codec {
    Gzip(flate2::Decompress),
    Xz(liblzma::stream::Stream),
    Zstd(Box<zstd::stream::raw::Decoder<'static>>),
    Bzip2(bzip2::Decompress),
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Bytes of the input that were used.
    pub used: usize,
    /// Bytes of the output that were made.
    pub made: usize,
    /// Whether the part is complete, and right as far as it can tell.
    pub complete: bool,
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum Fault {
    Memory,
    Damaged(String),
}

impl Fault {
    fn damaged(e: impl Display) -> Self {
        Self::Damaged(e.to_string())
    }

    /// As an error, at a byte of the file.
    pub fn at(self, at: u64, packing: Packing, limit: u64) -> PackedError {
        match self {
            Self::Memory => PackedError::Memory { needed: None, limit },
            Self::Damaged(why) => PackedError::Damaged { packing, at, why },
        }
    }
}

impl Codec {
    /// A decoder that takes at most `memory` bytes.
    pub fn new(packing: Packing, memory: u64) -> Result<Self, Fault> {
        Ok(match packing {
            Packing::Gzip => Self::Gzip(flate2::Decompress::new_gzip(15)),
            Packing::Bzip2 => Self::Bzip2(bzip2::Decompress::new(false)),
            Packing::Xz => Self::Xz(liblzma::stream::Stream::new_stream_decoder(memory, 0).map_err(|_| Fault::Memory)?),
            Packing::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().map_err(Fault::damaged)?;
                decoder.set_parameter(DParameter::WindowLogMax(memory.ilog2())).map_err(Fault::damaged)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// Unpacks some of the input.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Fault> {
        match self {
            Self::Gzip(decoder) => {
                let before = (decoder.total_in(), decoder.total_out());
                let done = decoder.decompress(input, output, FlushDecompress::None).map_err(Fault::damaged)?;
                Ok(Step::between(before, (decoder.total_in(), decoder.total_out()), done == flate2::Status::StreamEnd))
            }
            Self::Bzip2(decoder) => {
                let before = (decoder.total_in(), decoder.total_out());
                let done = decoder.decompress(input, output).map_err(Fault::damaged)?;
                if done == bzip2::Status::MemNeeded {
                    return Err(Fault::Memory);
                }
                Ok(Step::between(before, (decoder.total_in(), decoder.total_out()), done == bzip2::Status::StreamEnd))
            }
            Self::Xz(decoder) => {
                use liblzma::stream::{Action, Error, Status};
                let before = (decoder.total_in(), decoder.total_out());
                let done = decoder.process(input, output, Action::Run).map_err(|e| match e {
                    Error::Mem | Error::MemLimit => Fault::Memory,
                    e => Fault::damaged(e),
                })?;
                Ok(Step::between(before, (decoder.total_in(), decoder.total_out()), done == Status::StreamEnd))
            }
            Self::Zstd(decoder) => {
                let done = decoder.run_on_buffers(input, output).map_err(Fault::damaged)?;
                Ok(Step { used: done.bytes_read, made: done.bytes_written, complete: done.remaining == 0 })
            }
        }
    }

    /// Makes it ready for the next part.
    pub fn restart(&mut self, packing: Packing, memory: u64) -> Result<(), Fault> {
        // zstd's goes on by itself, and keeps its memory.
        if packing != Packing::Zstd {
            *self = Self::new(packing, memory)?;
        }
        Ok(())
    }
}

impl Step {
    /// From the numbers of bytes in and out before and after.
    fn between(before: (u64, u64), after: (u64, u64), complete: bool) -> Self {
        Self { used: (after.0 - before.0) as usize, made: (after.1 - before.1) as usize, complete }
    }
}

/// Bytes of the window that a zstd frame needs, by its first bytes; `None` where they do not tell.
pub(super) fn zstd_window(head: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] = *head else { return None };
    if descriptor & 0x20 != 0 {
        // All of the content is the window.
        return zstd::zstd_safe::get_frame_content_size(head).ok()?;
    }
    let base = 1u64 << (10 + (window >> 3));
    Some(base + base / 8 * u64::from(window & 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_a_frame_is_read() {
        let head = |rest: &[u8]| zstd_window(&[b"\x28\xb5\x2f\xfd", rest].concat());
        assert_eq!(head(&[0x00, 0x00]), Some(1 << 10));
        assert_eq!(head(&[0x04, 0x58]), Some(2 << 20));
        assert_eq!(head(&[0x00, 21 << 3]), Some(2 << 30));
        assert_eq!(head(&[0x00, 0xff]), Some((1 << 41) / 8 * 15));
        // A single segment: the content's size, here in four bytes.
        assert_eq!(head(&[0xa0, 0x00, 0x00, 0x00, 0x40]), Some(1 << 30));
        assert_eq!(zstd_window(b"\x50\x2a\x4d\x18\0\0\0\0"), None);
        assert_eq!(head(&[0]), None);
    }
}
