//! Deflate (RFC 1951) without its Huffman codes: compressed data as a **text** of symbols, and back, bit for bit.
//!
//! One changed byte changes the Huffman codes of its block, and so every bit of the block and of what stands behind it.
//! The symbols change only near that byte. So what differs between two compressed files is looked for in, and described
//! as a change of, their texts. No compressor is needed to get the compressed bytes back, only the codes, which stand in
//! the text: it does not matter which program made the data. Chromium's puffin does the same for whole files.
//!
//! [`bits`] reads and writes bits, [`huffman`] has codes, [`unpack`] makes a text of bits and [`pack`] bits of a text;
//! [`search`] finds blocks in the midst of a stream.
//! The text is defined in the spec, section 6.6. Pure: bytes in, bytes out.

mod bits;
mod huffman;
mod pack;
mod search;
#[cfg(test)]
mod tests;
mod unpack;

pub use pack::{Malformed, pack};
pub use search::next_header;
pub use unpack::{Item, Stop, Unpacker};

/// Marks everything in a text that is not a plain literal. Any byte would do: this one is rare in programs and in texts.
///
/// A match is the mark, its distance less 1 (least significant byte first, so that a difference adds to it) and its length
/// less 3. As distances are at most 32,768, the second byte behind the mark is below 0x80 there.
pub(crate) const MARK: u8 = 0xd6;
/// Two bytes behind [`MARK`], 0 between: a literal that equals the mark.
pub(crate) const LITERAL: u8 = 0xff;
/// The same: the header of a block; more bytes follow.
pub(crate) const HEADER: u8 = 0xfe;
/// The same: the end of a block.
pub(crate) const END: u8 = 0xfd;
/// Bit of a header's head byte: the block is the last of its stream.
const FINAL: u8 = 1;
/// Bits of a header's head byte: fixed codes, codes of its own.
const FIXED: u8 = 1 << 1;
const DYNAMIC: u8 = 2 << 1;
/// Bit of a header's head byte: it only says what codes are in use, and makes no bits.
const SILENT: u8 = 8;
/// Where that bit stands: the byte of the header's text, and the bit.
pub(crate) const SILENT_AT: (usize, u8) = (3, SILENT);
/// Most symbols that literals and lengths, and distances, may have (the format's, not what RFC 1951 gives a meaning).
const LITERALS: usize = 288;
const DISTANCES: usize = 32;
/// In which order the lengths of the code lengths' code stand (RFC 1951, 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// Length symbols from 257 on: the shortest match of each, and its extra bits (RFC 1951, 3.2.5).
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// Distance symbols: the shortest distance of each, and its extra bits.
const REACHES: [(u16, u8); 30] = [
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 1),
    (7, 1),
    (9, 2),
    (13, 2),
    (17, 3),
    (25, 3),
    (33, 4),
    (49, 4),
    (65, 5),
    (97, 5),
    (129, 6),
    (193, 6),
    (257, 7),
    (385, 7),
    (513, 8),
    (769, 8),
    (1025, 9),
    (1537, 9),
    (2049, 10),
    (3073, 10),
    (4097, 11),
    (6145, 11),
    (8193, 12),
    (12289, 12),
    (16385, 13),
    (24577, 13),
];

/// The code lengths of fixed codes (RFC 1951, 3.2.6): of literals and lengths, and of distances.
fn fixed_lengths() -> ([u8; LITERALS], [u8; DISTANCES]) {
    let literals = std::array::from_fn(|symbol| match symbol {
        144..256 => 9,
        256..280 => 7,
        _ => 8,
    });
    (literals, [5; DISTANCES])
}

/// Unfolds the run lengths of code lengths: `symbols` are (symbol of the code lengths' code, value of its extra bits).
/// `None` where they are more or fewer than `count`, or repeat what is not there.
fn code_lengths(symbols: impl Iterator<Item = (u8, u8)>, count: usize) -> Option<Vec<u8>> {
    let mut lengths = Vec::with_capacity(count);
    for (symbol, extra) in symbols {
        let (length, times) = match symbol {
            0..16 => (symbol, 1),
            16 => (*lengths.last()?, 3 + usize::from(extra)),
            17 => (0, 3 + usize::from(extra)),
            _ => (0, 11 + usize::from(extra)),
        };
        if lengths.len() + times > count {
            return None;
        }
        lengths.resize(lengths.len() + times, length);
    }
    (lengths.len() == count).then_some(lengths)
}
