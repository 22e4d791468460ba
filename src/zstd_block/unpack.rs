//! From a block to its text.

use super::bits::BackReader;
use super::fse::Table;
use super::numbers::{NUMBERS, Number};
use super::{
    CODED, CODED_AS_BEFORE, COMPRESSED, CONTENT_MOST, Codes, FEW, HEADER, LAST, Malformed, RAW, REPEATED, format_of,
    plain_format_of, stream_len,
};
use crate::varint;
use std::sync::Arc;

/// Bytes that a text may have, at the most, before it shows that there are too many: descriptions of codes, and some numbers.
pub const TEXT_BEYOND: usize = 512;

/// Appends the text of compressed blocks that follow each other to `text`. The first needs no codes of others.
///
/// # Errors
/// [`Malformed`], or what takes more than `most` bytes of text; `text` may have up to [`TEXT_BEYOND`] more then.
pub fn unpack(blocks: &[u8], most: usize, text: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut unpacker, mut rest) = (Unpacker::default(), blocks);
    let end = text.len().saturating_add(most);
    while !rest.is_empty() {
        let used = unpacker.next(rest, end.saturating_sub(text.len()), text)?;
        rest = rest.get(used..).ok_or(Malformed)?;
    }
    Ok(())
}

/// Unpacks block after block.
#[derive(Clone, Debug, Default)]
pub struct Unpacker {
    codes: Codes,
    /// Of these tables of numbers.
    steps: [Vec<Step>; 3],
    tables: [Option<Arc<Table>>; 3],
}

impl Unpacker {
    /// Appends the text of the block whose header these bytes begin with, and returns how many it has.
    ///
    /// # Errors
    /// As [`unpack`]: the text may have up to [`TEXT_BEYOND`] bytes more then, and the unpacker is of no use.
    pub fn next(&mut self, bytes: &[u8], most: usize, text: &mut Vec<u8>) -> Result<usize, Malformed> {
        let header = number(bytes.get(..HEADER).ok_or(Malformed)?) as u32;
        let len = (header >> 3) as usize;
        let block = bytes.get(HEADER..HEADER + len).filter(|_| header >> 1 & 3 == COMPRESSED).ok_or(Malformed)?;
        let start = text.len();
        self.block(block, most, text).ok_or(Malformed)?;
        if header & 1 == 1 {
            text[start] |= LAST;
        }
        Ok(HEADER + len)
    }

    fn block(&mut self, block: &[u8], most: usize, text: &mut Vec<u8>) -> Option<()> {
        let most = text.len().checked_add(most)?;
        let mut rest = block;
        let literals = self.literals(&mut rest, text)?;
        let count = sequence_count(&mut rest)?;
        varint::put(text, count.into());
        let mut literals = &literals[..];
        if count > 0 {
            self.sequences(rest, count, &mut literals, most, text)?;
        } else if !rest.is_empty() {
            return None;
        }
        let rest = literals.len();
        take_literals(&mut literals, rest, most, text)
    }

    /// Takes the literals of a block.
    fn literals(&mut self, rest: &mut &[u8], text: &mut Vec<u8>) -> Option<Vec<u8>> {
        let head = *rest.first()?;
        let kind = head & 3;
        if kind == CODED || kind == CODED_AS_BEFORE {
            return self.coded_literals(rest, text);
        }
        let (bits, len) = plain_format_of(head);
        let count = (number(take(rest, len)?) >> bits) as usize;
        if count > CONTENT_MOST {
            return None;
        }
        text.push(head & ((1 << bits) - 1));
        varint::put(text, count as u64);
        match kind {
            RAW => Some(take(rest, count)?.to_vec()),
            REPEATED => Some(vec![*take(rest, 1)?.first()?; count]).filter(|literals| !literals.is_empty()),
            _ => None,
        }
    }

    fn coded_literals(&mut self, rest: &mut &[u8], text: &mut Vec<u8>) -> Option<Vec<u8>> {
        let head = *rest.first()?;
        let (bits, len, streams) = format_of(head);
        let sizes = number(take(rest, len)?) >> 4;
        let count = (sizes & ((1 << bits) - 1)) as usize;
        let mut coded = take(rest, (sizes >> bits) as usize)?;
        if count > CONTENT_MOST {
            return None;
        }
        text.push(head & 15);
        varint::put(text, count as u64);
        let (code, used) = self.codes.literals(head & 3, coded)?;
        text.extend_from_slice(take(&mut coded, used)?);
        let mut literals = vec![0; count];
        if streams == 1 {
            code.read(coded, &mut literals)?;
            return Some(literals);
        }
        let each = stream_len(count, streams);
        let mut parts = [&[][..]; 4];
        let jumps = take(&mut coded, 6)?;
        for (part, jump) in parts.iter_mut().zip(jumps.chunks_exact(2)) {
            *part = take(&mut coded, number(jump) as usize)?;
        }
        parts[3] = coded;
        code.read_four(parts, each, &mut literals)?;
        Some(literals)
    }

    fn sequences(
        &mut self,
        mut rest: &[u8],
        count: u32,
        literals: &mut &[u8],
        most: usize,
        text: &mut Vec<u8>,
    ) -> Option<()> {
        let kinds = *take(&mut rest, 1)?.first()?;
        text.push(kinds);
        if kinds & 3 > 0 {
            return None;
        }
        let (tables, used) = self.codes.tables(kinds, rest)?;
        text.extend_from_slice(take(&mut rest, used)?);
        let known = self.steps.iter_mut().zip(&mut self.tables);
        for ((steps, of), (table, number)) in known.zip(tables.iter().zip(&NUMBERS)) {
            // A block may have the tables of the one before.
            if !of.as_ref().is_some_and(|of| Arc::ptr_eq(of, table)) {
                *of = None;
                steps_of(table, number, steps)?;
                *of = Some(Arc::clone(table));
            }
        }
        let mut bits = BackReader::new(rest)?;
        let mut states = [0usize; 3];
        for (state, table) in states.iter_mut().zip(&tables) {
            *state = bits.take(table.log)? as usize;
        }
        let [lengths, offsets, matches] = &self.steps;
        let mut out = Out::new(text, literals.len(), count, most);
        for left in (0..count).rev() {
            let (length, offset) = (lengths.get(states[0])?, offsets.get(states[1])?);
            let matched = matches.get(states[2])?;
            let extra = [offset.extra, matched.extra, length.extra].map(u32::from);
            // The last sequence is followed by nothing.
            let next = [length.bits, matched.bits, offset.bits].map(|bits| if left > 0 { u32::from(bits) } else { 0 });
            let (extra, next) = take_six(&mut bits, extra, next)?;
            out.put(length.number + extra[2], matched.number + extra[1] - 3, offset.number + extra[0], literals)?;
            if left > 0 {
                let [length_state, match_state, offset_state] = next;
                states = [
                    usize::from(length.base) + length_state as usize,
                    usize::from(offset.base) + offset_state as usize,
                    usize::from(matched.base) + match_state as usize,
                ];
            }
        }
        let end = out.end;
        text.truncate(end);
        if bits.left() > 0 {
            return None;
        }
        for (table, state) in tables.iter().zip(states) {
            varint::put(text, table.rank(state as u16)?.into());
        }
        Some(())
    }
}

/// A state of a table of numbers: the smallest number that it stands for, and the bits that are added to that; and what
/// bits make the next state.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    number: u32,
    base: u16,
    extra: u8,
    bits: u8,
}

/// The states of a table.
fn steps_of(table: &Table, number: &Number, steps: &mut Vec<Step>) -> Option<()> {
    steps.clear();
    for cell in &table.cells {
        let (least, extra) = *number.codes.get(usize::from(cell.symbol))?;
        steps.push(Step { number: least, base: cell.base, extra, bits: cell.bits });
    }
    Some(())
}

/// Six values of so many bits. The last three have at most 27 together, the others at most 63.
#[inline(always)]
fn take_six(bits: &mut BackReader<'_>, first: [u32; 3], last: [u32; 3]) -> Option<([u32; 3], [u32; 3])> {
    let [a, b, c] = first;
    let [d, e, f] = last;
    let all = a + b + c + d + e + f;
    if all > 56 {
        return take_six_apart(bits, [a, b, c, d, e, f]);
    }
    let taken = bits.take(all)?;
    let part = |above: u32, count: u32| (taken >> above & ((1 << count) - 1)) as u32;
    let first = [part(all - a, a), part(all - a - b, b), part(d + e + f, c)];
    Some((first, [part(e + f, d), part(f, e), part(0, f)]))
}

#[cold]
fn take_six_apart(bits: &mut BackReader<'_>, each: [u32; 6]) -> Option<([u32; 3], [u32; 3])> {
    let mut values = [0; 6];
    for (value, count) in values.iter_mut().zip(each) {
        *value = bits.take(count)? as u32;
    }
    let [a, b, c, d, e, f] = values;
    Some(([a, b, c], [d, e, f]))
}

/// What a sequence takes at most besides its literals, and what is written at once.
const SEQUENCE_MOST: usize = 3 * 5 + FEW;

/// The sequences of a text: room that they fill from the front.
struct Out<'a> {
    room: &'a mut [u8],
    end: usize,
    most: usize,
}

impl<'a> Out<'a> {
    /// For sequences with these literals, behind a text that may have up to `most` bytes.
    fn new(text: &'a mut Vec<u8>, literals: usize, count: u32, most: usize) -> Self {
        let end = text.len();
        let all = end + literals + (count as usize + 1) * SEQUENCE_MOST;
        text.resize(all.min(most.saturating_add(2 * SEQUENCE_MOST)), 0);
        Self { room: text, end, most }
    }

    /// `None` where there are fewer literals, or the text has too many bytes then.
    #[inline(always)]
    fn put(&mut self, length: u32, matched: u32, offset: u32, literals: &mut &[u8]) -> Option<()> {
        self.number(length)?;
        let count = length as usize;
        let end = self.end + count;
        // Most are few, and copied faster together with others.
        if count <= FEW
            && let Some(some) = literals.first_chunk::<FEW>()
        {
            *self.chunk()? = *some;
        } else {
            self.room.get_mut(self.end..end)?.copy_from_slice(literals.get(..count)?);
        }
        *literals = literals.get(count..)?;
        self.end = end;
        self.number(matched)?;
        self.number(offset)?;
        (self.end <= self.most).then_some(())
    }

    fn chunk<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.room.get_mut(self.end..)?.first_chunk_mut()
    }

    /// Appends a number as a varint.
    #[inline(always)]
    fn number(&mut self, number: u32) -> Option<()> {
        if number < 1 << 7 {
            *self.room.get_mut(self.end)? = number as u8;
            self.end += 1;
            return Some(());
        }
        if number < 1 << 21 {
            let long = number >= 1 << 14;
            let bytes = number & 0x7f | (number << 1 & 0x7f00) | (number << 2 & 0x7f_0000) | 0x80;
            *self.chunk()? = (bytes | u32::from(long) << 15).to_le_bytes();
            self.end += 2 + usize::from(long);
            return Some(());
        }
        let mut bytes = Vec::new();
        varint::put(&mut bytes, number.into());
        self.room.get_mut(self.end..self.end + bytes.len())?.copy_from_slice(&bytes);
        self.end += bytes.len();
        Some(())
    }
}

/// Takes literals and appends them, unless the text has more than `most` bytes then.
fn take_literals(literals: &mut &[u8], count: usize, most: usize, text: &mut Vec<u8>) -> Option<()> {
    text.len().checked_add(count).filter(|end| *end <= most)?;
    text.extend_from_slice(take(literals, count)?);
    Some(())
}

/// Takes the number of sequences.
fn sequence_count(rest: &mut &[u8]) -> Option<u32> {
    let head = *take(rest, 1)?.first()?;
    Some(match head {
        0..128 => head.into(),
        128..255 => u32::from(head - 128) << 8 | u32::from(*take(rest, 1)?.first()?),
        255 => number(take(rest, 2)?) as u32 + 0x7f00,
    })
}

/// Takes the first bytes.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, others) = rest.split_at_checked(count)?;
    *rest = others;
    Some(taken)
}

/// Up to eight bytes as a number, the least significant first.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
