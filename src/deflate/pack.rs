//! From a text to bits.

use super::bits::BitWriter;
use super::huffman::codes;
use super::{DISTANCES, DYNAMIC, END, FINAL, FIXED, HEADER, LENGTHS, LITERAL, LITERALS, MARK, ORDER, SILENT};
use super::{code_lengths, fixed_lengths};
use std::sync::{Arc, LazyLock};

/// A text that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What is written for a symbol: bits, at most 20, and from bit [`COUNT`] on how many; 0 where there is no code.
type Entry = u32;
const COUNT: u32 = 24;

/// The entries of all symbols of a code with these lengths. `None` where there are more codes than bits allow.
fn entries(lengths: &[u8]) -> Option<Vec<Entry>> {
    let entry =
        |(code, length): (u16, &u8)| if *length == 0 { 0 } else { Entry::from(code) | Entry::from(*length) << COUNT };
    Some(codes(lengths)?.into_iter().zip(lengths).map(entry).collect())
}

/// Codes to write by.
struct Codes {
    /// Of literals, and of the end of a block.
    literals: [Entry; 257],
    /// Of each length less 3, with its extra bits.
    lengths: [Entry; 256],
    /// Of distances, without theirs.
    distances: [Entry; DISTANCES],
}

/// Made once: there are texts of very many headers.
static FIXED_CODES: LazyLock<Option<Arc<Codes>>> = LazyLock::new(|| {
    let (literals, distances) = fixed_lengths();
    Codes::new(&literals, &distances)
});

impl Codes {
    /// From the lengths of the codes; there are more than 256 literals and lengths.
    fn new(literals: &[u8], distances: &[u8]) -> Option<Arc<Self>> {
        let (symbols, distances) = (entries(literals)?, entries(distances)?);
        let mut codes = Self { literals: *symbols.first_chunk()?, lengths: [0; 256], distances: [0; DISTANCES] };
        codes.distances.iter_mut().zip(distances).for_each(|(place, entry)| *place = entry);
        for (length, place) in (3u16..).zip(&mut codes.lengths) {
            let i = LENGTHS.partition_point(|(least, _)| *least <= length).checked_sub(1)?;
            let (least, extra) = LENGTHS[i];
            let entry = symbols.get(257 + i).copied().unwrap_or(0);
            if entry > 0 {
                *place = (entry | Entry::from(length - least) << (entry >> COUNT)) + (Entry::from(extra) << COUNT);
            }
        }
        Some(Arc::new(codes))
    }
}

/// Writes what an entry says.
#[inline]
fn put(entry: Entry, out: &mut BitWriter<'_>) -> Option<()> {
    out.put((entry & ((1 << COUNT) - 1)).into(), entry >> COUNT);
    (entry > 0).then_some(())
}

/// Fills `target` with the bytes that a text stands for, from the bit with number `skip` on; what is missing of the last byte
/// is zeros. Bits beyond are dropped.
///
/// # Errors
/// A text that is malformed, or of too few bits; `target` may hold anything then.
pub fn pack(text: &[u8], skip: u32, target: &mut [u8]) -> Result<(), Malformed> {
    let mut out = BitWriter::new(target, (skip as usize).div_ceil(8));
    out.put(0, skip.wrapping_neg() & 7);
    pack_items(text, &mut out).and_then(|()| out.finish()).ok_or(Malformed)
}

fn pack_items(text: &[u8], out: &mut BitWriter<'_>) -> Option<()> {
    let mut current: Option<Arc<Codes>> = None;
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(codes) = &current {
            rest = symbols(rest, codes, out)?;
        }
        let [MARK, low, kind, others @ ..] = rest else { return rest.is_empty().then_some(()) };
        rest = others;
        match (*low, *kind) {
            (0, HEADER) => current = Some(header(&mut rest, out)?),
            _ => return None,
        }
    }
    Some(())
}

/// Writes everything up to a header or the end, which is returned.
fn symbols<'a>(text: &'a [u8], codes: &Codes, out: &mut BitWriter<'_>) -> Option<&'a [u8]> {
    let mut rest = text;
    while let [byte, others @ ..] = rest {
        if *byte != MARK {
            put(codes.literals[usize::from(*byte)], out)?;
            rest = others;
            continue;
        }
        let [low, kind, others @ ..] = others else { return None };
        rest = match (*low, *kind) {
            (low, high @ 0..0x80) => {
                let [length, others @ ..] = others else { return None };
                put_match(codes, u16::from_le_bytes([low, high]), *length, out)?;
                others
            }
            (0, HEADER) => break,
            (0, LITERAL) => {
                put(codes.literals[usize::from(MARK)], out)?;
                others
            }
            (0, END) => {
                put(codes.literals[256], out)?;
                others
            }
            _ => return None,
        };
    }
    Some(rest)
}

/// Writes a match, `reach` and `length` as they stand in a text.
#[inline]
fn put_match(codes: &Codes, reach: u16, length: u8, out: &mut BitWriter<'_>) -> Option<()> {
    put(codes.lengths[usize::from(length)], out)?;
    // Two symbols for each power of two, as REACHES has them, tell the two highest bits of what stands in a text.
    let (symbol, extra) = match reach {
        0..4 => (reach, 0),
        _ => (2 * reach.ilog2() as u16 + (reach >> (reach.ilog2() - 1) & 1), reach.ilog2() - 1),
    };
    put(*codes.distances.get(usize::from(symbol))?, out)?;
    out.put(u64::from(reach) & ((1 << extra) - 1), extra);
    Some(())
}

/// Reads the header of a block, and writes it unless it is silent.
fn header<'a>(rest: &mut &[u8], out: &mut BitWriter<'a>) -> Option<Arc<Codes>> {
    let head = *rest.split_off_first()?;
    let mut silent = BitWriter::<'a>::new(&mut [], 0);
    let out = if head & SILENT > 0 { &mut silent } else { out };
    out.put(u64::from(head & FINAL), 1);
    match head & !(FINAL | SILENT) {
        FIXED => {
            out.put(1, 2);
            FIXED_CODES.clone()
        }
        DYNAMIC => {
            out.put(2, 2);
            dynamic(rest, out)
        }
        _ => None,
    }
}

fn dynamic(rest: &mut &[u8], out: &mut BitWriter<'_>) -> Option<Arc<Codes>> {
    let ([literals, distances, lengths], others) = rest.split_first_chunk()?;
    *rest = others;
    for (value, bits) in [(*literals, 5), (*distances, 5), (*lengths, 4)] {
        put_number(value, bits, out)?;
    }
    let mut code = [0; ORDER.len()];
    for place in &ORDER[..usize::from(*lengths) + 4] {
        code[*place] = *rest.split_off_first()?;
        put_number(code[*place], 3, out)?;
    }
    let code = entries(&code)?;
    let (literals, distances) = (usize::from(*literals) + 257, usize::from(*distances) + 1);
    if literals > LITERALS || distances > DISTANCES {
        return None;
    }
    let (mut symbols, mut sum) = (Vec::new(), 0);
    while sum < literals + distances {
        let byte = *rest.split_off_first()?;
        let (symbol, extra, bits, times) = match byte {
            0..16 => (byte, 0, 0, 1),
            16..20 => (16, byte - 16, 2, 3),
            20..28 => (17, byte - 20, 3, 3),
            28..156 => (18, byte - 28, 7, 11),
            _ => return None,
        };
        put(*code.get(usize::from(symbol))?, out)?;
        out.put(extra.into(), bits);
        symbols.push((symbol, extra));
        sum += times + usize::from(extra);
    }
    let lengths = code_lengths(symbols.into_iter(), literals + distances)?;
    Codes::new(&lengths[..literals], &lengths[literals..])
}

fn put_number(value: u8, bits: u32, out: &mut BitWriter<'_>) -> Option<()> {
    if u32::from(value) >> bits > 0 {
        return None;
    }
    out.put(value.into(), bits);
    Some(())
}
