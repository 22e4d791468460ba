//! From bits to a text.

use super::bits::BitReader;
use super::huffman::Reading;
use super::{DISTANCES, DYNAMIC, END, FINAL, FIXED, HEADER, LENGTHS, LITERAL, LITERALS, MARK, ORDER, REACHES};
use super::{code_lengths, fixed_lengths};
use std::sync::{Arc, LazyLock};

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The header of a block.
    Header,
    /// A literal or a match.
    Symbol,
    /// The end of a block; whether it was the last of the stream.
    End {
        /// Whether the stream ends, too.
        last: bool,
    },
}

/// Why nothing more can be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The stream has ended.
    Finished,
    /// A block that is not compressed.
    Stored,
    /// This is not deflate, its bytes end early, or it is written in a way that its text could not tell.
    Malformed,
}

/// Codes of literals and lengths, and of distances.
type Readings = Arc<(Reading, Reading)>;

/// Made once: there are streams of very many short blocks with fixed codes.
static FIXED_CODES: LazyLock<Option<Readings>> = LazyLock::new(|| {
    let (literals, distances) = fixed_lengths();
    Some(Arc::new((Reading::new(&literals)?, Reading::new(&distances)?)))
});

/// The codes of a block.
#[derive(Debug)]
struct Codes {
    readings: Readings,
    last: bool,
}

/// An item that is no header.
struct Symbol {
    item: Item,
    /// What it is in a text, and how many of these bytes.
    text: [u8; 4],
    len: usize,
}

impl Symbol {
    fn append_to(&self, text: &mut Vec<u8>) -> Item {
        text.extend_from_slice(&self.text[..self.len]);
        self.item
    }
}

impl Codes {
    /// The next literal, match or end of a block; `None` where there is none.
    #[inline(always)]
    fn symbol(&self, reader: &mut BitReader<'_>) -> Option<Symbol> {
        // A match takes 48 bits at most, and one look at the bytes gives 56.
        let bits = reader.peek();
        let (symbol, len) = self.readings.0.symbol(bits)?;
        if symbol < 256 {
            reader.skip(len)?;
            let literal = symbol as u8;
            let len = if literal == MARK { 3 } else { 1 };
            return Some(Symbol { item: Item::Symbol, text: [literal, 0, LITERAL, 0], len });
        }
        if symbol == 256 {
            reader.skip(len)?;
            return Some(Symbol { item: Item::End { last: self.last }, text: [MARK, 0, END, 0], len: 3 });
        }
        let (length, reach, taken) = a_match(symbol, &self.readings.1, bits >> len)?;
        reader.skip(len + taken)?;
        let [low, high] = (reach - 1).to_le_bytes();
        Some(Symbol { item: Item::Symbol, text: [MARK, low, high, (length - 3) as u8], len: 4 })
    }

    /// Appends symbols, as [`Unpacker::run`] does.
    fn symbols(&self, reader: &mut BitReader<'_>, (until, len): (u64, usize), text: &mut Vec<u8>) -> Item {
        // What is made goes through a buffer of constant size: growing a text byte by byte takes longer than decoding it.
        let mut buffer = [0; 256];
        let mut item = Item::Symbol;
        while item == Item::Symbol && reader.at() < until && text.len() < len {
            let most = (len - text.len()).min(buffer.len() - 4);
            let mut filled = 0;
            while item == Item::Symbol && reader.at() < until && filled < most {
                let Some(symbol) = self.symbol(reader) else {
                    text.extend_from_slice(&buffer[..filled]);
                    return Item::Symbol;
                };
                if let Some(room) = buffer.get_mut(filled..filled + 4) {
                    room.copy_from_slice(&symbol.text);
                }
                (item, filled) = (symbol.item, filled + symbol.len);
            }
            text.extend_from_slice(&buffer[..filled]);
        }
        item
    }
}

/// Unpacks item by item.
#[derive(Debug, Default)]
pub struct Unpacker {
    /// Those of the last header.
    codes: Option<Codes>,
    /// Whether the next item is a header.
    between: bool,
}

impl Unpacker {
    /// Before the header of a block.
    #[must_use]
    pub fn new() -> Self {
        Self { codes: None, between: true }
    }

    /// Moves to the header of a block elsewhere; or, `inside`, to a symbol of a block that has the codes of the last header.
    pub fn jump(&mut self, inside: bool) {
        self.between = !inside;
        if let Some(codes) = self.codes.as_mut().filter(|_| !inside) {
            codes.last = false; // that was another stream
        }
    }

    /// Appends the item that begins at bit `at` of `bytes` to `text`, and returns where it ends.
    ///
    /// # Errors
    /// [`Stop`]; `text` is as it was.
    pub fn next(&mut self, bytes: &[u8], at: u64, text: &mut Vec<u8>) -> Result<(Item, u64), Stop> {
        let mut reader = BitReader::new(bytes, at);
        let len = text.len();
        let item = match &self.codes {
            _ if self.between => self.header(&mut reader, text),
            None => Err(Stop::Malformed),
            Some(codes) => codes.symbol(&mut reader).map(|symbol| symbol.append_to(text)).ok_or(Stop::Malformed),
        };
        match item {
            Ok(item) => {
                self.between = matches!(item, Item::End { .. });
                Ok((item, reader.at()))
            }
            Err(stop) => {
                text.truncate(len);
                Err(stop)
            }
        }
    }

    /// Appends items from bit `at` on, up to the first that ends at bit `until` or behind, makes `text` as long as `len`, or
    /// is no symbol; returns that, and where it ends.
    ///
    /// # Errors
    /// [`Stop`] at the first item; where it comes later, what could be unpacked is returned.
    pub fn run(
        &mut self,
        bytes: &[u8],
        at: u64,
        (until, len): (u64, usize),
        text: &mut Vec<u8>,
    ) -> Result<(Item, u64), Stop> {
        let (item, at) = self.next(bytes, at, text)?;
        let (Item::Symbol, Some(codes)) = (item, &self.codes) else { return Ok((item, at)) };
        let mut reader = BitReader::new(bytes, at);
        let item = codes.symbols(&mut reader, (until, len), text);
        self.between = matches!(item, Item::End { .. });
        Ok((item, reader.at()))
    }

    fn header(&mut self, reader: &mut BitReader<'_>, text: &mut Vec<u8>) -> Result<Item, Stop> {
        if self.codes.as_ref().is_some_and(|codes| codes.last) {
            return Err(Stop::Finished);
        }
        let last = reader.take(1).ok_or(Stop::Malformed)? == 1;
        let kind = reader.take(2).ok_or(Stop::Malformed)?;
        let head = if last { FINAL } else { 0 };
        let readings = match kind {
            0 => return Err(Stop::Stored),
            1 => {
                text.extend([MARK, 0, HEADER, head | FIXED]);
                FIXED_CODES.clone()
            }
            2 => {
                text.extend([MARK, 0, HEADER, head | DYNAMIC]);
                dynamic(reader, text)
            }
            _ => None,
        };
        let readings = readings.ok_or(Stop::Malformed)?;
        self.codes = Some(Codes { readings, last });
        Ok(Item::Header)
    }
}

/// Takes the extra bits of a length or distance off `bits`, and counts them.
#[inline]
fn extra_bits(bits: &mut u64, count: u8, taken: &mut u32) -> u16 {
    let extra = *bits & ((1 << count) - 1);
    *bits >>= count;
    *taken += u32::from(count);
    extra as u16
}

/// Length and distance of a match whose length symbol was read, and how many of the `bits` behind it are theirs.
#[inline]
fn a_match(symbol: u16, distances: &Reading, mut bits: u64) -> Option<(u16, u16, u32)> {
    let (shortest, extra) = *LENGTHS.get(usize::from(symbol - 257))?;
    let mut taken = 0;
    let length = shortest + extra_bits(&mut bits, extra, &mut taken);
    if length == 258 && extra > 0 {
        return None; // 258 has a symbol of its own; a text has no way to say that another was taken
    }
    let (symbol, len) = distances.symbol(bits)?;
    let (nearest, extra) = *REACHES.get(usize::from(symbol))?;
    (bits, taken) = (bits >> len, taken + len);
    let reach = nearest + extra_bits(&mut bits, extra, &mut taken);
    Some((length, reach, taken))
}

/// Codes of a block's own.
fn dynamic(reader: &mut BitReader<'_>, text: &mut Vec<u8>) -> Option<Readings> {
    let literals = reader.take(5)?;
    let distances = reader.take(5)?;
    let lengths = reader.take(4)?;
    text.extend([literals as u8, distances as u8, lengths as u8]);
    let mut code = [0; ORDER.len()];
    for place in &ORDER[..lengths as usize + 4] {
        code[*place] = reader.take(3)? as u8;
        text.push(code[*place]);
    }
    let code = Reading::new(&code)?;
    let (literals, distances) = (literals as usize + 257, distances as usize + 1);
    if literals > LITERALS || distances > DISTANCES {
        return None;
    }
    let (mut symbols, mut sum) = (Vec::new(), 0);
    while sum < literals + distances {
        let (symbol, len) = code.symbol(reader.peek())?;
        reader.skip(len)?;
        // One byte tells the symbol and its extra bits: 0 to 15, 16 to 19, 20 to 27, 28 to 155.
        let symbol = symbol as u8;
        let (extra, first, times) = match symbol {
            0..16 => (0, symbol, 1),
            16 => (2, 16, 3),
            17 => (3, 20, 3),
            _ => (7, 28, 11),
        };
        let extra = reader.take(extra)? as u8;
        text.push(first + extra);
        symbols.push((symbol, extra));
        sum += if times == 1 { 1 } else { times + usize::from(extra) };
    }
    let lengths = code_lengths(symbols.into_iter(), literals + distances)?;
    Some(Arc::new((Reading::new(&lengths[..literals])?, Reading::new(&lengths[literals..])?)))
}
