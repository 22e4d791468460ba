//! Compressed blocks of zstd (RFC 8878, 3.1.1.3) without their entropy coding: a block as a **text** of what it says, and back,
//! bit for bit.
//!
//! One changed byte changes the codes of a block, and so all of its bits. What it says, literals and copies in turn, changes
//! only near that byte. As with [deflate](crate::deflate), what differs between two blocks is looked for in their texts. No
//! compressor is needed to get a block back, as the codes stand in the text: it does not matter which program, which version
//! of it, or which level made the block.
//!
//! The text is defined in the spec, section 6.7. Pure: bytes in, bytes out.

mod bits;
mod fse;
mod huffman;
mod numbers;
mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use fse::Table;
use huffman::Code;
use numbers::NUMBERS;
use std::sync::Arc;

pub use pack::{BEYOND, pack};
pub use unpack::{TEXT_BEYOND, Unpacker, unpack};

/// Most bytes that a block stands for.
pub const CONTENT_MOST: usize = 128 << 10;

/// Not a block, or one that has no text; not a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Bytes of text that a sequence takes, at least.
pub const SEQUENCE_LEAST: usize = 3;
/// Literals that are copied in one go.
const FEW: usize = 16;
/// Bytes of a block's header.
pub const HEADER: usize = 3;
/// The kind of block that is compressed, in its header.
const COMPRESSED: u32 = 2;
/// In the first byte of a block's text, besides the first bits of its literals: that it is the last of its frame.
const LAST: u8 = 1 << 4;

/// The kinds of literals, their lowest two bits.
const RAW: u8 = 0;
const REPEATED: u8 = 1;
const CODED: u8 = 2;
const CODED_AS_BEFORE: u8 = 3;

/// The kinds of tables.
const PREDEFINED: u8 = 0;
const ONE: u8 = 1;
const DESCRIBED: u8 = 2;

/// The codes of the blocks before, which others may use again.
#[derive(Clone, Debug, Default)]
struct Codes {
    literals: Option<Arc<Code>>,
    tables: [Option<Arc<Table>>; 3],
}

impl Codes {
    /// The code of literals of this kind, which begins at the start of `rest`; and the bytes that describe it.
    fn literals(&mut self, kind: u8, rest: &[u8]) -> Option<(Arc<Code>, usize)> {
        if kind == CODED_AS_BEFORE {
            return Some((Arc::clone(self.literals.as_ref()?), 0));
        }
        let (code, len) = huffman::describe(rest)?;
        Some((Arc::clone(self.literals.insert(Arc::new(code))), len))
    }

    /// The tables of literal lengths, offsets and match lengths, by their kinds; and the bytes that describe them.
    fn tables(&mut self, kinds: u8, rest: &[u8]) -> Option<([Arc<Table>; 3], usize)> {
        let mut used = 0;
        for ((which, number), place) in NUMBERS.iter().enumerate().zip(&mut self.tables) {
            let rest = rest.get(used..)?;
            let (table, len) = match kinds >> (6 - 2 * which) & 3 {
                PREDEFINED => (number.predefined()?, 0),
                ONE => (Arc::new(Table::of_one(*rest.first()?)), 1),
                DESCRIBED => {
                    let (table, len) = fse::describe(rest, number.codes.len(), number.log)?;
                    (Arc::new(table), len)
                }
                _ => continue,
            };
            *place = Some(table);
            used += len;
        }
        let [Some(lengths), Some(offsets), Some(matches)] = &self.tables else { return None };
        Some(([lengths, offsets, matches].map(Arc::clone), used))
    }
}

/// Bits in front of the number of literals that are not coded, by the first byte; and bytes of both.
const fn plain_format_of(head: u8) -> (u32, usize) {
    match head >> 2 & 3 {
        1 => (4, 2),
        3 => (4, 3),
        _ => (3, 1),
    }
}

/// Where the compressed sizes stand in a header of coded literals, by its format: bits of each size, bytes of it, streams.
const fn format_of(head: u8) -> (u32, usize, usize) {
    match head >> 2 & 3 {
        0 => (10, 3, 1),
        1 => (10, 3, 4),
        2 => (14, 4, 4),
        _ => (18, 5, 4),
    }
}

/// The symbols of a stream of literals, the last of which has what is left.
fn stream_len(count: usize, streams: usize) -> usize {
    if streams == 1 { count } else { count.div_ceil(4) }
}
