//! Where a block begins in the midst of deflated data: told by its header alone, at any bit.
//!
//! A header with codes of its own (RFC 1951, 3.2.7) describes three codes, and compressors write complete ones: few bits
//! that are not a header do that by chance. A place is ruled out step by step, the cheapest first, as in rapidgzip
//! (Knespel and Brunst, 'Rapidgzip', HPDC 2023, 3.4).

use super::{DISTANCES, LITERALS, ORDER};
use std::ops::Range;

/// Bits of a header before the lengths of the code lengths' code.
const HEAD: u32 = 17;
/// Lengths of the code lengths' code that are there, at least: fewer mean that all codes have the same few lengths, which
/// hardly a block of a file has, and random bits often.
const LEAST_LENGTHS: u32 = 12;
/// The sum of 2^(7 - length) over a complete code of at most 7 bits.
const COMPLETE: u16 = 1 << 7;
/// That of 2^(15 - length) over a complete code of at most 15 bits.
const COMPLETE_LONG: u32 = 1 << 15;

/// By four code lengths of 3 bits: the sum of 2^(7 - length) over those that are not 0.
static SHARES: [u16; 1 << 12] = shares();

const fn shares() -> [u16; 1 << 12] {
    let mut table = [0; 1 << 12];
    let mut lengths = 0;
    while lengths < table.len() {
        let mut i = 0;
        while i < 4 {
            let length = lengths >> (3 * i) & 7;
            table[lengths] += if length > 0 { COMPLETE >> length } else { 0 };
            i += 1;
        }
        lengths += 1;
    }
    table
}

/// The first of these bits at which the header of a block with complete codes of its own, of many lengths, stands. Adds to
/// `tried` at how many places that could be ruled out only by reading these codes: that takes as long as some hundred bits.
#[must_use]
pub fn next_header(bytes: &[u8], bits: Range<u64>, tried: &mut u64) -> Option<u64> {
    let first = usize::try_from(bits.start / 8).ok()?;
    let end = usize::try_from(bits.end.div_ceil(8)).unwrap_or(usize::MAX).min(bytes.len());
    (first..end).find_map(|at| {
        let word = word_at(bytes, at) as u64;
        let mut places = places(word);
        while places > 0 {
            let within = places.trailing_zeros();
            let bit = at as u64 * 8 + u64::from(within);
            if first_sum(word >> within) <= COMPLETE
                && bits.contains(&bit)
                && let Some(lengths) = complete_code(bytes, bit)
            {
                *tried += 1;
                if codes_are_complete(bytes, bit, lengths) {
                    return Some(bit);
                }
            }
            places &= places - 1;
        }
        None
    })
}

/// The next 128 bits; zeros behind the end.
#[inline]
fn word_at(bytes: &[u8], at: usize) -> u128 {
    let rest = bytes.get(at..).unwrap_or_default();
    u128::from_le_bytes(match rest.first_chunk::<16>() {
        Some(next) => *next,
        None => std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0)),
    })
}

/// The bits of the first byte at which a header may begin: its kind is right (3.2.3), neither of its numbers of symbols is
/// one of the two that mean nothing, and it has [`LEAST_LENGTHS`] or more.
#[inline]
fn places(word: u64) -> u32 {
    let kind = !(word >> 1) & word >> 2;
    let literals = word >> 4 & word >> 5 & word >> 6 & word >> 7;
    let distances = word >> 9 & word >> 10 & word >> 11 & word >> 12;
    (kind & !literals & !distances & word >> (HEAD - 1) & 0xff) as u32
}

/// The sum of 2^(7 - length) over the first [`LEAST_LENGTHS`] lengths of the code lengths' code.
#[inline]
fn first_sum(header: u64) -> u16 {
    let share = |i: u32| SHARES[(header >> (HEAD + 12 * i)) as usize % SHARES.len()];
    (0..LEAST_LENGTHS / 4).map(share).sum()
}

/// How many lengths of the code lengths' code a header has, and these, 3 bits each.
#[inline]
fn code(header: u128) -> (u32, u64) {
    let count = (header >> (HEAD - 4)) as u32 % 16 + 4;
    (count, (header >> HEAD) as u64 & ((1 << (3 * count)) - 1))
}

/// The code lengths' code of a header that may begin here, if it is complete.
#[inline]
fn complete_code(bytes: &[u8], bit: u64) -> Option<u64> {
    let (_, lengths) = code(word_at(bytes, (bit / 8) as usize) >> (bit % 8));
    let share = |i: u32| SHARES[(lengths >> (12 * i)) as usize % SHARES.len()];
    ((0..5).map(share).sum::<u16>() == COMPLETE).then_some(lengths)
}

/// Whether a header goes on with complete codes.
fn codes_are_complete(bytes: &[u8], bit: u64, lengths: u64) -> bool {
    let header = word_at(bytes, (bit / 8) as usize) >> (bit % 8);
    let (count, _) = code(header);
    let symbols = ((header >> 3) as usize % 32 + 257, (header >> 8) as usize % 32 + 1);
    let table = table(lengths);
    let mut unfolded = [0u8; LITERALS + DISTANCES];
    let Some(unfolded) = unfolded.get_mut(..symbols.0 + symbols.1) else { return false };
    unfold(bytes, bit + u64::from(HEAD + 3 * count), &table, unfolded).is_some() && {
        let (literals, distances) = unfolded.split_at(symbols.0);
        // A code of a single distance, or of none, has a bit to spare.
        let spare = distances.iter().filter(|length| **length > 0).count() <= 1;
        sum_of(literals) == COMPLETE_LONG && literals[256] > 0 && (spare || sum_of(distances) == COMPLETE_LONG)
    }
}

fn sum_of(lengths: &[u8]) -> u32 {
    lengths.iter().map(|length| if *length > 0 { COMPLETE_LONG >> length } else { 0 }).sum()
}

/// By the next 7 bits: symbol of the code lengths' code, and length.
fn table(lengths: u64) -> [(u8, u8); 1 << 7] {
    let mut table = [(0, 0); 1 << 7];
    let mut code = 0usize;
    let mut symbols = [0u8; ORDER.len()];
    ORDER.iter().enumerate().for_each(|(i, symbol)| symbols[*symbol] = (lengths >> (3 * i)) as u8 & 7);
    for length in 1..8u8 {
        for symbol in (0u8..).zip(symbols).filter(|(_, l)| *l == length).map(|(symbol, _)| symbol) {
            let first = code.reverse_bits() >> (usize::BITS - u32::from(length));
            table.iter_mut().skip(first).step_by(1 << length).for_each(|place| *place = (symbol, length));
            code += 1;
        }
        code <<= 1;
    }
    table
}

/// Reads run lengths of code lengths into all of `lengths`; `None` where they do not come out even, or the code of literals
/// has more codes than bits allow.
fn unfold(bytes: &[u8], mut bit: u64, table: &[(u8, u8); 1 << 7], lengths: &mut [u8]) -> Option<()> {
    let (mut filled, mut sum) = (0, 0);
    while filled < lengths.len() {
        let word = word_at(bytes, (bit / 8) as usize) >> (bit % 8);
        let (symbol, taken) = table[word as usize % (1 << 7)];
        let extra = (word >> taken) as usize;
        let (length, times, more) = match symbol {
            0..16 => (symbol, 1, 0),
            16 => (*lengths.get(filled.checked_sub(1)?)?, 3 + extra % 4, 2),
            17 => (0, 3 + extra % 8, 3),
            _ => (0, 11 + extra % 128, 7),
        };
        bit += u64::from(taken) + more;
        lengths.get_mut(filled..filled + times)?.fill(length);
        filled += times;
        // Both codes together take twice as much: most of what is no header has more before half of it is read.
        sum += if length > 0 { (COMPLETE_LONG >> length) * times as u32 } else { 0 };
        if sum > 2 * COMPLETE_LONG {
            return None;
        }
    }
    (bit <= bytes.len() as u64 * 8).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deflate::{Item, Unpacker};
    use flate2::Compression;
    use flate2::write::DeflateEncoder;
    use std::io::Write;

    fn noise(count: usize) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(12345u32), |x| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
            .take(count)
    }

    fn deflated() -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(6));
        for (i, x) in (0..).zip(noise(60_000)) {
            write!(encoder, "{} of {i}, ", x >> (8 + i % 19)).unwrap();
        }
        encoder.finish().unwrap()
    }

    /// All headers of blocks, and nothing else, in deflated data that lie anywhere.
    #[test]
    fn headers_of_blocks_are_found_at_any_bit() {
        let data = deflated();
        let (mut unpacker, mut at, mut headers) = (Unpacker::new(), 0, Vec::new());
        while let Ok((item, end)) = unpacker.next(&data, at, &mut Vec::new()) {
            if item == Item::Header {
                headers.push(at);
            }
            at = end;
        }
        assert!(headers.len() > 5 && headers.iter().any(|bit| bit % 8 > 0), "{headers:?}");
        for start in [0, 1, 77] {
            let image = [vec![0; start], data.clone(), vec![0xff; 40]].concat();
            let (mut found, mut bits) = (Vec::new(), 0..image.len() as u64 * 8);
            while let Some(bit) = next_header(&image, bits.clone(), &mut 0) {
                found.push(bit - start as u64 * 8);
                bits.start = bit + 1;
            }
            assert_eq!(found, headers);
        }
        assert_eq!(next_header(&data, headers[0] + 1..headers[1], &mut 0), None);
        assert_eq!(next_header(&data, headers[0] + 1..headers[1] + 1, &mut 0), Some(headers[1]));
    }

    #[test]
    fn where_bytes_end_or_say_nothing_there_is_no_header() {
        let data = deflated();
        let (_, end) = Unpacker::new().next(&data, 0, &mut Vec::new()).unwrap();
        let whole = end.div_ceil(8) as usize;
        for len in 0..whole {
            assert_eq!(next_header(&data[..len], 0..u64::MAX, &mut 0), None, "{len}");
        }
        assert_eq!(next_header(&data[..whole], 0..u64::MAX, &mut 0), Some(0));
        let bytes: Vec<u8> = noise(1 << 18).map(|x| (x >> 24) as u8).collect();
        for image in [vec![0; 1 << 16], vec![0xff; 1 << 16], b"plain text ".repeat(10_000), bytes] {
            assert_eq!(next_header(&image, 0..image.len() as u64 * 8, &mut 0), None);
        }
    }
}
