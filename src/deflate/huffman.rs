//! Canonical Huffman codes (RFC 1951, 3.2.2): to read and to write.

/// Longest code, in bits.
const LONGEST: usize = 15;
/// Codes up to this length are found by one look into a table.
const DIRECT: u32 = 11;

/// A code to read symbols by.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// By the next [`DIRECT`] bits: symbol * 16 + length; 0 where the code is longer, or none.
    direct: Box<[u16; 1 << DIRECT]>,
    /// Codes of each length.
    counts: [u16; LONGEST + 1],
    /// The symbols, by code.
    symbols: Vec<u16>,
}

impl Reading {
    /// From the length of each symbol's code; 0 is none. `None` where there are more codes than bits allow.
    pub fn new(lengths: &[u8]) -> Option<Self> {
        let codes = codes(lengths)?;
        let mut counts = [0; LONGEST + 1];
        lengths.iter().for_each(|length| counts[usize::from(*length)] += 1);
        counts[0] = 0;
        let mut symbols: Vec<u16> = (0..lengths.len() as u16).filter(|s| lengths[usize::from(*s)] > 0).collect();
        symbols.sort_by_key(|symbol| lengths[usize::from(*symbol)]);
        let mut direct = Box::new([0; 1 << DIRECT]);
        for symbol in &symbols {
            let length = u32::from(lengths[usize::from(*symbol)]);
            if length <= DIRECT {
                let first = usize::from(codes[usize::from(*symbol)]);
                let entry = symbol * 16 + length as u16;
                direct.iter_mut().skip(first).step_by(1 << length).for_each(|place| *place = entry);
            }
        }
        Some(Self { direct, counts, symbols })
    }

    /// The symbol that `bits` begin with, the least significant first, and how many of them it takes; `None` where there is
    /// none.
    #[inline]
    pub fn symbol(&self, bits: u64) -> Option<(u16, u32)> {
        let entry = self.direct[(bits & ((1 << DIRECT) - 1)) as usize];
        if entry > 0 { Some((entry >> 4, u32::from(entry & 15))) } else { self.long_symbol(bits) }
    }

    #[cold]
    fn long_symbol(&self, bits: u64) -> Option<(u16, u32)> {
        let (mut code, mut first, mut before) = (0u32, 0u32, 0u32);
        for length in 1..=LONGEST {
            code |= (bits >> (length - 1)) as u32 & 1;
            let count = u32::from(self.counts[length]);
            if code.wrapping_sub(first) < count {
                let symbol = self.symbols.get((before + code - first) as usize).copied();
                return symbol.map(|symbol| (symbol, length as u32));
            }
            before += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// The code of each symbol, its first bit the least significant, from the lengths. `None` where there are more codes
/// than bits allow.
pub(super) fn codes(lengths: &[u8]) -> Option<Vec<u16>> {
    let mut next = [0u32; LONGEST + 2];
    let mut counts = [0u32; LONGEST + 1];
    for length in lengths {
        *counts.get_mut(usize::from(*length))? += 1;
    }
    counts[0] = 0;
    for length in 1..=LONGEST {
        if next[length] + counts[length] > 1 << length {
            return None;
        }
        next[length + 1] = (next[length] + counts[length]) << 1;
    }
    let mut code = |length: u8| {
        if length == 0 {
            return 0;
        }
        let code = next[usize::from(length)];
        next[usize::from(length)] += 1;
        (code as u16).reverse_bits() >> (16 - length)
    };
    Some(lengths.iter().map(|length| code(*length)).collect())
}
