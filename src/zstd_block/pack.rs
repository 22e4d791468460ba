//! From a text to blocks.

use super::bits::BitWriter;
use super::fse::Table;
use super::huffman::Code;
use super::numbers::NUMBERS;
use super::{
    CODED, CODED_AS_BEFORE, COMPRESSED, CONTENT_MOST, Codes, FEW, HEADER, LAST, Malformed, RAW, REPEATED,
    SEQUENCE_LEAST, format_of, plain_format_of, stream_len,
};
use crate::varint;
use std::sync::Arc;

/// Bytes that may be made, at the most, before it shows that there are too many: literals of 11 bits, and some more.
pub const BEYOND: usize = CONTENT_MOST / 8 * 11 + (1 << 10);

/// Appends the blocks that a text stands for, up to `most` bytes, to `out`.
///
/// # Errors
/// [`Malformed`], or what takes more bytes; `out` may have up to [`BEYOND`] more then.
pub fn pack(text: &[u8], most: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut codes, mut rest) = (Codes::default(), text);
    let end = out.len().saturating_add(most);
    while !rest.is_empty() {
        pack_block(&mut rest, &mut codes, end, out).filter(|()| out.len() <= end).ok_or(Malformed)?;
    }
    Ok(())
}

/// What a block says.
struct Parts<'a> {
    /// The first bits of its literals, as they stand in a block.
    head: u8,
    /// Of the literals, if they are coded, and its description.
    code: Option<(Arc<Code>, &'a [u8])>,
    literals: Vec<u8>,
    sequences: Vec<[u32; 3]>,
    /// How the tables of sequences are given: as a byte of the block, and as bytes behind that.
    kinds: u8,
    tables: Option<[Arc<Table>; 3]>,
    described: &'a [u8],
    /// Which of the states of its symbols the last sequence has.
    ranks: [u64; 3],
}

fn pack_block(rest: &mut &[u8], codes: &mut Codes, end: usize, out: &mut Vec<u8>) -> Option<()> {
    let head = byte(rest)?;
    let parts = Parts::of(head & !LAST, rest, codes)?;
    let start = out.len();
    out.resize(start + HEADER, 0);
    parts.put_literals(out)?;
    put_count(parts.sequences.len(), out)?;
    if let Some(tables) = &parts.tables {
        out.push(parts.kinds);
        out.extend_from_slice(parts.described);
        parts.put_sequences(tables, end, out)?;
    }
    let size = u32::try_from(out.len() - start - HEADER).ok().filter(|size| size >> 21 == 0)?;
    let header = u32::from(head & LAST > 0) | COMPRESSED << 1 | size << 3;
    out.get_mut(start..start + HEADER)?.copy_from_slice(&header.to_le_bytes()[..HEADER]);
    Some(())
}

impl<'a> Parts<'a> {
    fn of(head: u8, rest: &mut &'a [u8], codes: &mut Codes) -> Option<Self> {
        let count = usize::try_from(varint::take(rest)?).ok().filter(|count| *count <= CONTENT_MOST)?;
        let code = match head & 3 {
            RAW | REPEATED => None,
            kind => {
                let (code, used) = codes.literals(kind, rest)?;
                Some((code, take(rest, used)?))
            }
        };
        let literals = Vec::with_capacity(count + FEW);
        let (sequences, described, ranks) = (Vec::new(), &[][..], [0; 3]);
        let mut parts = Parts { head, code, literals, sequences, kinds: 0, tables: None, described, ranks };
        let sequences = varint::take(rest)?;
        if sequences > 0 {
            parts.read_sequences(sequences, count, rest, codes)?;
        }
        let left = count.checked_sub(parts.literals.len())?;
        parts.literals.extend_from_slice(take(rest, left)?);
        Some(parts)
    }

    fn read_sequences(&mut self, count: u64, literals: usize, rest: &mut &'a [u8], codes: &mut Codes) -> Option<()> {
        self.kinds = byte(rest).filter(|kinds| kinds & 3 == 0)?;
        let (tables, used) = codes.tables(self.kinds, rest)?;
        self.tables = Some(tables);
        self.described = take(rest, used)?;
        let count = usize::try_from(count).ok().filter(|count| *count <= rest.len() / SEQUENCE_LEAST)?;
        self.sequences.reserve_exact(count);
        for _ in 0..count {
            let literal = u32::try_from(varint::take(rest)?).ok()?;
            if literal as usize > literals - self.literals.len() {
                return None;
            }
            self.take_literals(literal as usize, rest)?;
            let matched = u32::try_from(varint::take(rest)?).ok()?.checked_add(3)?;
            let offset = u32::try_from(varint::take(rest)?).ok()?;
            self.sequences.push([literal, offset, matched]);
        }
        for rank in &mut self.ranks {
            *rank = varint::take(rest)?;
        }
        Some(())
    }

    /// Takes literals that stand before a match.
    #[inline(always)]
    fn take_literals(&mut self, count: usize, rest: &mut &'a [u8]) -> Option<()> {
        // Most are few, and copied faster together with others.
        if count <= FEW
            && let Some(some) = rest.first_chunk::<FEW>()
        {
            let end = self.literals.len() + count;
            self.literals.extend_from_slice(some);
            self.literals.truncate(end);
            *rest = &rest[count..];
            return Some(());
        }
        self.literals.extend_from_slice(take(rest, count)?);
        Some(())
    }

    fn put_literals(&self, out: &mut Vec<u8>) -> Option<()> {
        let count = self.literals.len() as u64;
        match (&self.code, self.head & 3) {
            (Some((code, described)), CODED | CODED_AS_BEFORE) => return self.put_coded(code, described, out),
            (None, RAW | REPEATED) => {}
            _ => return None,
        }
        let (bits, len) = plain_format_of(self.head);
        let header = u64::from(self.head) | count << bits;
        if u32::from(self.head) >> bits > 0 || header >> (8 * len) > 0 {
            return None;
        }
        out.extend_from_slice(&header.to_le_bytes()[..len]);
        let first = self.literals.first();
        match self.head & 3 {
            RAW => out.extend_from_slice(&self.literals),
            _ if self.literals.iter().all(|literal| Some(literal) == first) => out.push(*first?),
            _ => return None,
        }
        Some(())
    }

    fn put_coded(&self, code: &Code, described: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let (bits, len, streams) = format_of(self.head);
        let start = out.len();
        out.resize(start + len, 0);
        out.extend_from_slice(described);
        let mut rest = &self.literals[..];
        if streams > 1 {
            let each = stream_len(rest.len(), streams);
            let jumps = out.len();
            out.resize(jumps + 6, 0);
            for jump in 0..3 {
                let from = out.len();
                code.write(take(&mut rest, each)?, out)?;
                let size = u16::try_from(out.len() - from).ok()?;
                out.get_mut(jumps + 2 * jump..jumps + 2 * jump + 2)?.copy_from_slice(&size.to_le_bytes());
            }
        }
        code.write(rest, out)?;
        let (count, size) = (self.literals.len() as u64, (out.len() - start - len) as u64);
        if self.head > 15 || count >> bits > 0 || size >> bits > 0 {
            return None;
        }
        let header = u64::from(self.head) | count << 4 | size << (4 + bits);
        out.get_mut(start..start + len)?.copy_from_slice(&header.to_le_bytes()[..len]);
        Some(())
    }

    /// Gives up where `out` has become longer than `end`.
    fn put_sequences(&self, tables: &[Arc<Table>; 3], end: usize, out: &mut Vec<u8>) -> Option<()> {
        let tables = tables.each_ref().map(|table| &**table);
        let mut bits = BitWriter::new(out);
        let mut states: Option<[u16; 3]> = None;
        for sequence in self.sequences.iter().rev() {
            if bits.len() > end {
                return None;
            }
            let [literals, offsets, matches] = sequence;
            let (literals, offsets) = (NUMBERS[0].code(*literals)?, NUMBERS[1].code(*offsets)?);
            let matches = NUMBERS[2].code(*matches)?;
            states = Some(match states {
                None => [
                    tables[0].state(literals.0, self.ranks[0])?,
                    tables[1].state(offsets.0, self.ranks[1])?,
                    tables[2].state(matches.0, self.ranks[2])?,
                ],
                Some(next) => {
                    let (offset, low, low_bits) = tables[1].before(offsets.0, next[1])?;
                    let (matched, middle, middle_bits) = tables[2].before(matches.0, next[2])?;
                    let (literal, high, high_bits) = tables[0].before(literals.0, next[0])?;
                    // Together at most 27 bits.
                    let all = low | middle << low_bits | high << (low_bits + middle_bits);
                    bits.add(all, low_bits + middle_bits + high_bits);
                    [literal, offset, matched]
                }
            });
            // At most 16 bits, 16 and 31.
            bits.add(literals.1.into(), literals.2.into());
            bits.put();
            bits.add(matches.1.into(), matches.2.into());
            bits.add(offsets.1.into(), offsets.2.into());
            bits.put();
        }
        for which in [2, 1, 0] {
            bits.add(states?[which].into(), tables[which].log);
        }
        bits.put();
        bits.finish();
        Some(())
    }
}

impl Code {
    /// Writes symbols, from the last to the first.
    fn write(&self, symbols: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let mut bits = BitWriter::new(out);
        let mut all = true;
        // Four have at most 44 bits.
        for some in symbols.rchunks(4) {
            for symbol in some.iter().rev() {
                let (code, len) = self.codes[usize::from(*symbol)];
                all &= len > 0;
                bits.add(code.into(), len.into());
            }
            bits.put();
        }
        bits.finish();
        all.then_some(())
    }
}

/// Writes the number of sequences, in its shortest form.
fn put_count(count: usize, out: &mut Vec<u8>) -> Option<()> {
    match count {
        0..128 => out.push(count as u8),
        128..0x7f00 => out.extend([(count >> 8) as u8 + 128, count as u8]),
        _ => {
            out.push(255);
            out.extend_from_slice(&u16::try_from(count - 0x7f00).ok()?.to_le_bytes());
        }
    }
    Some(())
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    rest.split_off_first().copied()
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    rest.split_off(..count)
}
