//! Huffman codes of literals (RFC 8878, 4.2).

use super::bits::BackReader;
use super::fse;

/// Most bits of a code.
const BITS_MOST: u32 = 11;

/// A code to read and to write by.
#[derive(Clone, Debug)]
pub(super) struct Code {
    /// Bits of the longest code.
    pub bits: u32,
    /// For each value of so many bits: the symbol whose code these begin with, and its bits.
    pub table: Vec<(u8, u8)>,
    /// For each symbol its code, and the bits of that; 0 where there is none.
    pub codes: [(u16, u8); 256],
}

/// Reads the description of a code; returns it, and the bytes that it takes.
pub(super) fn describe(bytes: &[u8]) -> Option<(Code, usize)> {
    let head = usize::from(*bytes.first()?);
    let mut weights = Vec::with_capacity(256);
    let used = if head >= 128 {
        let count = head - 127;
        let packed = bytes.get(1..1 + count.div_ceil(2))?;
        weights.extend(packed.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(count));
        1 + packed.len()
    } else {
        unpack_weights(bytes.get(1..1 + head)?, &mut weights)?;
        1 + head
    };
    Some((code(weights)?, used))
}

/// Weights that are coded by two states of a table in turn.
fn unpack_weights(bytes: &[u8], weights: &mut Vec<u8>) -> Option<()> {
    let (table, used) = fse::describe(bytes, 256, 6)?;
    let mut bits = BackReader::new(bytes.get(used..)?)?;
    let mut states = [bits.take(table.log)? as usize, bits.take(table.log)? as usize];
    let cell = |state: usize| table.cells.get(state);
    for turn in (0..2).cycle() {
        let now = cell(states[turn])?;
        weights.push(now.symbol);
        if weights.len() > 255 {
            return None;
        }
        if (now.bits as usize) > bits.left() {
            weights.push(cell(states[1 - turn])?.symbol);
            break;
        }
        states[turn] = usize::from(now.base) + bits.take(now.bits.into())? as usize;
    }
    (weights.len() <= 255).then_some(())
}

/// The code of symbols with these weights; the last symbol's is what is left.
fn code(mut weights: Vec<u8>) -> Option<Code> {
    let share = |weight: u8| if weight == 0 { 0u32 } else { 1 << (weight - 1) };
    if weights.iter().any(|weight| u32::from(*weight) > BITS_MOST) {
        return None;
    }
    let sum: u32 = weights.iter().map(|weight| share(*weight)).sum();
    let bits = sum.checked_ilog2()? + 1;
    let rest = (1u32 << bits) - sum;
    if bits > BITS_MOST || !rest.is_power_of_two() {
        return None;
    }
    weights.push(rest.ilog2() as u8 + 1);
    let mut code = Code { bits, table: Vec::with_capacity(1 << bits), codes: [(0, 0); 256] };
    for weight in 1..=bits as u8 {
        for (symbol, _) in (0..=u8::MAX).zip(&weights).filter(|(_, other)| **other == weight) {
            let len = (bits + 1) as u8 - weight;
            code.codes[usize::from(symbol)] = ((code.table.len() >> (weight - 1)) as u16, len);
            code.table.resize(code.table.len() + share(weight) as usize, (symbol, len));
        }
    }
    (code.table.len() == 1 << bits).then_some(code)
}

impl Code {
    /// Reads as many symbols as there is room for, which take all of the stream.
    pub fn read(&self, bytes: &[u8], out: &mut [u8]) -> Option<()> {
        let mut stream = Stream { bits: BackReader::new(bytes)?, out, at: 0 };
        stream.finish(self)
    }

    /// The same for four streams, of which all but the last have `each` symbols. That none of them waits for the next symbol
    /// of another makes them faster together.
    pub fn read_four(&self, parts: [&[u8]; 4], each: usize, out: &mut [u8]) -> Option<()> {
        let (first, rest) = out.split_at_mut_checked(each)?;
        let (second, rest) = rest.split_at_mut_checked(each)?;
        let (third, fourth) = rest.split_at_mut_checked(each)?;
        let mut streams = [None, None, None, None];
        for ((stream, part), out) in streams.iter_mut().zip(parts).zip([first, second, third, fourth]) {
            *stream = Some(Stream { bits: BackReader::new(part)?, out, at: 0 });
        }
        let [Some(mut a), Some(mut b), Some(mut c), Some(mut d)] = streams else { return None };
        while a.five(self)? && b.five(self)? && c.five(self)? && d.five(self)? {}
        [a, b, c, d].iter_mut().try_for_each(|stream| stream.finish(self))
    }
}

/// A stream, and where its symbols go.
struct Stream<'a, 'b> {
    bits: BackReader<'a>,
    out: &'b mut [u8],
    /// Those that are there.
    at: usize,
}

impl Stream<'_, '_> {
    /// Reads five symbols, whose codes are in 55 bits and fetched together, if there are so many bits and symbols.
    #[inline(always)]
    fn five(&mut self, code: &Code) -> Option<bool> {
        if self.bits.left() < 56 {
            return Some(false);
        }
        let Some(symbols) = self.out.get_mut(self.at..self.at + 5) else { return Some(false) };
        let (window, mut unread, mask) = (self.bits.peek(55), 55, (1 << code.bits) - 1);
        for place in symbols {
            let (symbol, len) = *code.table.get((window >> (unread - code.bits) & mask) as usize)?;
            *place = symbol;
            unread -= u32::from(len);
        }
        self.bits.skip(55 - unread)?;
        self.at += 5;
        Some(true)
    }

    /// Reads the others.
    fn finish(&mut self, code: &Code) -> Option<()> {
        while self.five(code)? {}
        for place in &mut self.out[self.at..] {
            let (symbol, len) = *code.table.get(self.bits.peek(code.bits) as usize)?;
            self.bits.skip(len.into())?;
            *place = symbol;
        }
        (self.bits.left() == 0).then_some(())
    }
}
