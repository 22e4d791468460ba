//! From bits to a text.

use super::bits::{BitReader, LOOK};
use super::huffman::{Code, LENGTH};
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

/// Codes up to 11 bits are found by one look into a table.
const DIRECT: usize = 1 << 11;
/// An entry of a table: the length of a code, and what it stands for. A literal, or the end of a block, is a symbol, and
/// [`PLAIN`] if it stands in a text as it is; lengths and distances are numbers, with extra bits.
type Entry = u32;
/// Bits of an entry.
const PLAIN: Entry = 1 << LENGTH;
const SYMBOL: Entry = 2 << LENGTH;
const NUMBER: Entry = 4 << LENGTH;
/// Where an entry has the number of extra bits, and where the symbol, the shortest length, or the nearest distance less 1.
const EXTRA: u32 = 8;
const VALUE: u32 = 16;

/// The bits that an entry's code takes.
#[inline]
fn code_bits(entry: Entry) -> u32 {
    entry & ((1 << LENGTH) - 1)
}

/// The extra bits behind it.
#[inline]
fn extra_bits(entry: Entry) -> u32 {
    entry >> EXTRA & 15
}

/// What a literal or length symbol stands for; 0 where it means nothing.
fn literal_or_length(symbol: u16) -> Entry {
    let value = Entry::from(symbol) << VALUE;
    match symbol {
        0..256 if symbol != u16::from(MARK) => value | PLAIN,
        0..257 => value | SYMBOL,
        _ => LENGTHS.get(usize::from(symbol - 257)).map_or(0, |(least, extra)| number(*least, *extra)),
    }
}

/// What a distance symbol stands for; 0 where it means nothing.
fn distance(symbol: u16) -> Entry {
    REACHES.get(usize::from(symbol)).map_or(0, |(nearest, extra)| number(nearest - 1, *extra))
}

fn number(least: u16, extra: u8) -> Entry {
    Entry::from(least) << VALUE | Entry::from(extra) << EXTRA | NUMBER
}

/// A code to read by.
#[derive(Debug)]
struct Reading {
    direct: Box<[Entry; DIRECT]>,
    code: Code,
    entry: fn(u16) -> Entry,
}

impl Reading {
    fn new(lengths: &[u8], entry: fn(u16) -> Entry) -> Option<Self> {
        let code = Code::new(lengths)?;
        Some(Self { direct: code.table(entry), code, entry })
    }

    /// The entry of the symbol that `bits` begin with; `None` where there is none, or it means nothing.
    #[inline(always)]
    fn entry(&self, bits: u64) -> Option<Entry> {
        let entry = self.direct[bits as usize % DIRECT];
        if entry > 0 { Some(entry) } else { self.long(bits) }
    }

    #[cold]
    fn long(&self, bits: u64) -> Option<Entry> {
        let (symbol, len) = self.code.symbol(bits)?;
        Some((self.entry)(symbol)).filter(|entry| *entry > 0).map(|entry| entry | len)
    }
}

/// Codes of literals and lengths, and of distances.
type Readings = Arc<(Reading, Reading)>;

fn readings(literals: &[u8], distances: &[u8]) -> Option<Readings> {
    Some(Arc::new((Reading::new(literals, literal_or_length)?, Reading::new(distances, distance)?)))
}

/// Made once: there are streams of very many short blocks with fixed codes.
static FIXED_CODES: LazyLock<Option<Readings>> = LazyLock::new(|| {
    let (literals, distances) = fixed_lengths();
    readings(&literals, &distances)
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

/// Bits that are being taken.
struct Bits {
    rest: u64,
    taken: u32,
}

impl Bits {
    #[inline(always)]
    fn take(&mut self, bits: u32) {
        (self.rest, self.taken) = (self.rest >> bits, self.taken + bits);
    }

    /// Takes a code and its extra bits, which make a number.
    #[inline(always)]
    fn number(&mut self, entry: Entry) -> u16 {
        self.take(code_bits(entry));
        let extra = self.rest & ((1 << extra_bits(entry)) - 1);
        self.take(extra_bits(entry));
        (entry >> VALUE) as u16 + extra as u16
    }
}

impl Codes {
    /// The next literal, match or end of a block; `None` where there is none.
    #[inline(always)]
    fn symbol(&self, reader: &mut BitReader<'_>) -> Option<Symbol> {
        // A match takes 48 bits at most, and one look at the bytes gives 56.
        let mut bits = Bits { rest: reader.peek(), taken: 0 };
        let entry = self.readings.0.entry(bits.rest)?;
        if entry & NUMBER == 0 {
            reader.skip(code_bits(entry))?;
            let symbol = entry >> VALUE;
            return Some(match symbol {
                256 => Symbol { item: Item::End { last: self.last }, text: [MARK, 0, END, 0], len: 3 },
                _ => Symbol {
                    item: Item::Symbol,
                    text: [symbol as u8, 0, LITERAL, 0],
                    len: if entry & PLAIN > 0 { 1 } else { 3 },
                },
            });
        }
        let length = bits.number(entry);
        if length == 258 && extra_bits(entry) > 0 {
            return None; // 258 has a symbol of its own; a text has no way to say that another was taken
        }
        let reach = bits.number(self.readings.1.entry(bits.rest)?);
        reader.skip(bits.taken)?;
        let [low, high] = reach.to_le_bytes();
        Some(Symbol { item: Item::Symbol, text: [MARK, low, high, (length - 3) as u8], len: 4 })
    }

    /// Takes plain literals that end before bit `until`, as many as one look at the bytes tells; returns how many.
    #[inline(always)]
    fn literals(&self, reader: &mut BitReader<'_>, until: u64, room: &mut [u8]) -> usize {
        let mut bits = Bits { rest: reader.peek(), taken: 0 };
        if reader.saw_the_end() {
            return 0; // behind it are no literals
        }
        let (mut count, most) = (0, until.saturating_sub(reader.at()).min(u64::from(LOOK - DIRECT.ilog2())) as u32);
        for place in room {
            let entry = self.readings.0.direct[bits.rest as usize % DIRECT];
            if entry & PLAIN == 0 || bits.taken >= most {
                break;
            }
            *place = (entry >> VALUE) as u8;
            bits.take(code_bits(entry));
            count += 1;
        }
        reader.skip(bits.taken).map_or(0, |()| count)
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
                let count = self.literals(reader, until, &mut buffer[filled..most]);
                if count > 0 {
                    filled += count;
                    continue;
                }
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
    let code = Code::new(&code)?;
    // The longest of these codes has 7 bits.
    let direct = code.table::<128>(|symbol| Entry::from(symbol) << VALUE | SYMBOL);
    let (literals, distances) = (literals as usize + 257, distances as usize + 1);
    if literals > LITERALS || distances > DISTANCES {
        return None;
    }
    let (mut symbols, mut sum) = (Vec::new(), 0);
    while sum < literals + distances {
        let entry = direct[reader.peek() as usize % direct.len()];
        if entry == 0 {
            return None;
        }
        reader.skip(code_bits(entry))?;
        // One byte tells the symbol and its extra bits: 0 to 15, 16 to 19, 20 to 27, 28 to 155.
        let symbol = (entry >> VALUE) as u8;
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
    readings(&lengths[..literals], &lengths[literals..])
}
