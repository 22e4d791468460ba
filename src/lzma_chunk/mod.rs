//! Chunks of LZMA2, as xz has them, without their range coding: a chunk as a **text** of what it says, and back, bit for bit.
//!
//! One changed byte changes the probabilities of all that follows, and so all of its bits. What is said, literals and matches in
//! turn, changes only near that byte. As with [deflate](crate::deflate) and [zstd](crate::zstd_block), what differs between two
//! streams is looked for in their texts. No compressor is needed to get a chunk back: which matches it has stands in the text,
//! and the range coder and its probabilities follow from these.
//!
//! The text is defined in the spec, section 6.8. LZMA has no specification but programs; this follows xz's LZMA decoder and
//! encoder (liblzma/lzma/lzma_decoder.c, lzma_encoder.c, rangecoder/) and "LZMA specification" by Igor Pavlov (LZMA SDK,
//! DOC/lzma-specification.txt). Pure: bytes in, bytes out.

mod model;
mod pack;
mod range;
#[cfg(test)]
mod tests;
mod unpack;

use model::{Model, Properties};

pub use pack::{BEYOND, pack};
pub use unpack::{TEXT_BEYOND, Unpacker, unpack};

/// Most bytes that the chunks from one reset of the dictionary to the next stand for.
pub const CONTENT_MOST: usize = 256 << 10;

/// Not a chunk, or one that has no text; not a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The first byte of a chunk that is compressed is at least this; the two bits behind it say what is reset.
pub const COMPRESSED: u8 = 0x80;
/// What is reset, besides less: nothing; the state; the properties; the dictionary.
const RESET_STATE: u8 = 1;
const NEW_PROPERTIES: u8 = 2;
const RESET_ALL: u8 = 3;
/// Bytes of a chunk's header, without properties.
pub const HEADER: usize = 5;
/// Most bytes of a match.
const MATCH_MOST: u32 = 273;
/// The kinds of matches.
const KINDS: u32 = model::KINDS;

/// Gets the model ready for a chunk; `None` where what it goes on with is not there.
fn begin(model: &mut Option<Box<Model>>, reset: u8, properties: Option<u8>) -> Option<&mut Model> {
    if reset == RESET_ALL {
        model.get_or_insert_with(|| Box::new(Model::new())).content.clear();
    }
    let model = model.as_mut()?;
    match properties {
        Some(byte) => model.reset(Properties::of(byte)?),
        None if reset == RESET_STATE => model.reset_state(),
        None => {}
    }
    Some(model)
}
