//! From a text to bits.

use super::bits::BitWriter;
use super::huffman::codes;
use super::{DISTANCES, DYNAMIC, END, FINAL, FIXED, HEADER, LENGTHS, LITERAL, LITERALS, MARK, ORDER, REACHES, SILENT};
use super::{code_lengths, fixed_lengths};
use std::sync::{Arc, LazyLock};

/// A text that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A code to write symbols by: (bits, how many) of each.
struct Writing(Vec<(u16, u8)>);

impl Writing {
    fn new(lengths: &[u8]) -> Option<Self> {
        Some(Self(codes(lengths)?.into_iter().zip(lengths.iter().copied()).collect()))
    }

    #[inline]
    fn put(&self, symbol: usize, out: &mut BitWriter) -> Option<()> {
        let (code, bits) = *self.0.get(symbol)?;
        if bits == 0 {
            return None;
        }
        out.put(code.into(), bits.into());
        Some(())
    }
}

#[derive(Clone)]
struct Codes {
    literals: Arc<Writing>,
    distances: Arc<Writing>,
}

/// Made once: there are texts of very many headers.
static FIXED_CODES: LazyLock<Option<Codes>> = LazyLock::new(|| {
    let (literals, distances) = fixed_lengths();
    Codes::new(&literals, &distances)
});

impl Codes {
    fn new(literals: &[u8], distances: &[u8]) -> Option<Self> {
        Some(Self { literals: Writing::new(literals)?.into(), distances: Writing::new(distances)?.into() })
    }
}

/// The bytes that a text stands for, from the bit with number `skip` on, `len` of them; what is missing of the last byte is
/// zeros. Bits beyond are dropped.
///
/// # Errors
/// A text that is malformed, or of too few bits.
pub fn pack(text: &[u8], skip: u32, len: usize) -> Result<Vec<u8>, Malformed> {
    // A byte of a text makes at most 15 bits.
    let mut out = BitWriter::with_capacity(text.len() * 2 + 2);
    out.put(0, skip.wrapping_neg() & 7);
    pack_items(text, &mut out).ok_or(Malformed)?;
    let mut bytes = out.finish();
    let before = (skip as usize).div_ceil(8);
    let end = before.checked_add(len).ok_or(Malformed)?;
    if bytes.len() < end {
        return Err(Malformed);
    }
    bytes.truncate(end);
    bytes.drain(..before);
    Ok(bytes)
}

fn pack_items(text: &[u8], out: &mut BitWriter) -> Option<()> {
    let mut current: Option<Codes> = None;
    let mut rest = text;
    while let [byte, others @ ..] = rest {
        rest = others;
        if *byte != MARK {
            current.as_ref()?.literals.put(usize::from(*byte), out)?;
            continue;
        }
        let ([low, kind], others) = rest.split_first_chunk()?;
        rest = others;
        match *kind {
            0..0x80 => {
                let length = *rest.split_off_first()?;
                put_match(current.as_ref()?, u16::from_le_bytes([*low, *kind]), length, out)?;
            }
            HEADER if *low == 0 => current = Some(header(&mut rest, out)?),
            LITERAL if *low == 0 => current.as_ref()?.literals.put(usize::from(MARK), out)?,
            END if *low == 0 => current.as_ref()?.literals.put(256, out)?,
            _ => return None,
        }
    }
    Some(())
}

#[inline]
fn put_match(codes: &Codes, reach: u16, length: u8, out: &mut BitWriter) -> Option<()> {
    put_parted(&LENGTHS, u16::from(length) + 3, 257, &codes.literals, out)?;
    put_parted(&REACHES, reach + 1, 0, &codes.distances, out)
}

/// A number as a symbol, counted from `first` on, and extra bits.
#[inline]
fn put_parted(parts: &[(u16, u8)], value: u16, first: usize, code: &Writing, out: &mut BitWriter) -> Option<()> {
    let i = parts.partition_point(|(least, _)| *least <= value).checked_sub(1)?;
    let (least, extra) = parts[i];
    code.put(first + i, out)?;
    out.put((value - least).into(), extra.into());
    Some(())
}

/// Reads the header of a block, and writes it unless it is silent.
fn header(rest: &mut &[u8], out: &mut BitWriter) -> Option<Codes> {
    let head = *rest.split_off_first()?;
    let mut silent = BitWriter::default();
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

fn dynamic(rest: &mut &[u8], out: &mut BitWriter) -> Option<Codes> {
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
    let code = Writing::new(&code)?;
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
        code.put(usize::from(symbol), out)?;
        out.put(extra.into(), bits);
        symbols.push((symbol, extra));
        sum += times + usize::from(extra);
    }
    let lengths = code_lengths(symbols.into_iter(), literals + distances)?;
    Codes::new(&lengths[..literals], &lengths[literals..])
}

fn put_number(value: u8, bits: u32, out: &mut BitWriter) -> Option<()> {
    if u32::from(value) >> bits > 0 {
        return None;
    }
    out.put(value.into(), bits);
    Some(())
}
