//! From a block to its text.

use super::bits::BackReader;
use super::fse::Cell;
use super::numbers::NUMBERS;
use super::{
    CODED, CODED_AS_BEFORE, COMPRESSED, CONTENT_MOST, Codes, HEADER, LAST, Malformed, RAW, REPEATED, format_of,
    plain_format_of, stream_len,
};
use crate::varint;

/// Bytes that a text may have, at the most, before it shows that there are too many: descriptions of codes, and some numbers.
pub const TEXT_BEYOND: usize = 512;

/// Literals that are copied in one go.
const FEW: usize = 16;

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
        let mut literals = Vec::with_capacity(count);
        if streams > 1 {
            let each = stream_len(count, streams);
            for jump in take(&mut coded, 6)?.chunks_exact(2) {
                code.read(take(&mut coded, number(jump) as usize)?, each, &mut literals)?;
            }
        }
        code.read(coded, count.checked_sub(literals.len())?, &mut literals)?;
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
        let mut bits = BackReader::new(rest)?;
        let mut states = [0u16; 3];
        for (state, table) in states.iter_mut().zip(&tables) {
            *state = bits.take(table.log)? as u16;
        }
        for left in (0..count).rev() {
            let mut cells = [Cell::default(); 3];
            for ((cell, state), table) in cells.iter_mut().zip(states).zip(&tables) {
                *cell = *table.cells.get(usize::from(state))?;
            }
            let [literal, offset, matched] = numbers_of(&cells, &mut bits)?;
            put_number(literal, text);
            take_literals(literals, literal as usize, most, text)?;
            put_number(matched - 3, text);
            put_number(offset, text);
            if left > 0 {
                let each = [cells[0].bits, cells[2].bits, cells[1].bits].map(u32::from);
                let [literal, matched, offset] = take_three(&mut bits, each)?;
                states = [literal, offset, matched].map(|value| value as u16);
                states.iter_mut().zip(&cells).for_each(|(state, cell)| *state += cell.base);
            }
        }
        if bits.left() > 0 {
            return None;
        }
        for (table, state) in tables.iter().zip(states) {
            varint::put(text, table.rank(state)?.into());
        }
        Some(())
    }
}

/// The numbers of a sequence whose codes these cells stand for.
#[inline(always)]
fn numbers_of(cells: &[Cell; 3], bits: &mut BackReader<'_>) -> Option<[u32; 3]> {
    let mut found = [(0, 0); 3];
    for ((place, cell), number) in found.iter_mut().zip(cells).zip(&NUMBERS) {
        *place = *number.codes.get(usize::from(cell.symbol))?;
    }
    let [literals, offsets, matches] = found;
    let each = [offsets.1, matches.1, literals.1].map(u32::from);
    let [offset, matched, literal] = take_three(bits, each)?;
    Some([literals.0 + literal as u32, offsets.0 + offset as u32, matches.0 + matched as u32])
}

/// Three values of so many bits, of which most together have at most 56.
#[inline(always)]
fn take_three(bits: &mut BackReader<'_>, each: [u32; 3]) -> Option<[u64; 3]> {
    let [first, second, third] = each;
    let all = first + second + third;
    if all > 56 {
        return Some([bits.take(first)?, bits.take(second)?, bits.take(third)?]);
    }
    let taken = bits.take(all)?;
    let mask = |count: u32| (1u64 << count) - 1;
    Some([taken >> (second + third), taken >> third & mask(second), taken & mask(third)])
}

/// Appends a number as a varint.
#[inline(always)]
fn put_number(number: u32, text: &mut Vec<u8>) {
    if number < 128 { text.push(number as u8) } else { varint::put(text, number.into()) }
}

/// Takes literals and appends them, unless the text has more than `most` bytes then.
#[inline(always)]
fn take_literals(literals: &mut &[u8], count: usize, most: usize, text: &mut Vec<u8>) -> Option<()> {
    let end = text.len().checked_add(count).filter(|end| *end <= most)?;
    // Most are few, and copied faster together with others.
    if let Some(some) = literals.first_chunk::<FEW>().filter(|_| count <= FEW) {
        text.extend_from_slice(some);
        text.truncate(end);
        *literals = &literals[count..];
        return Some(());
    }
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
