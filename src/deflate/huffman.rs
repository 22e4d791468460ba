//! Canonical Huffman codes (RFC 1951, 3.2.2): to read and to write.

/// Longest code, in bits.
const LONGEST: usize = 15;
/// Bits of a table's entry that hold the length of a code.
pub(super) const LENGTH: u32 = 4;
/// A code to read symbols by, bit by bit; [`Code::table`] makes what reads common ones at once.
#[derive(Clone, Debug)]
pub(super) struct Code {
    /// Codes of each length.
    counts: [u16; LONGEST + 1],
    /// The symbols, by code.
    symbols: Vec<u16>,
}

impl Code {
    /// From the length of each symbol's code; 0 is none. `None` where there are more codes than bits allow.
    pub fn new(lengths: &[u8]) -> Option<Self> {
        let (counts, _) = firsts(lengths)?;
        let mut next = [0usize; LONGEST + 2];
        for length in 1..=LONGEST {
            next[length + 1] = next[length] + usize::from(counts[length]);
        }
        let mut symbols = vec![0; next[LONGEST + 1]];
        for (symbol, length) in (0u16..).zip(lengths).filter(|(_, length)| **length > 0) {
            let place = &mut next[usize::from(*length)];
            symbols[*place] = symbol;
            *place += 1;
        }
        Some(Self { counts, symbols })
    }

    /// For each value of the next `N.ilog2()` bits what `entry` says of the symbol whose code they begin with, and its
    /// length, which `entry` leaves room for in the lowest [`LENGTH`] bits; 0 where the code is longer, there is none, or
    /// `entry` is 0.
    pub fn table<const N: usize>(&self, entry: impl Fn(u16) -> u32) -> Box<[u32; N]> {
        let mut table = Box::new([0; N]);
        let (mut symbols, mut code) = (self.symbols.iter(), 0u32);
        for length in 1..=N.ilog2() {
            for symbol in symbols.by_ref().take(self.counts[length as usize].into()) {
                let entry = entry(*symbol);
                if entry > 0 {
                    let first = (code.reverse_bits() >> (32 - length)) as usize;
                    table[first..].iter_mut().step_by(1 << length).for_each(|place| *place = entry | length);
                }
                code += 1;
            }
            code <<= 1;
        }
        table
    }

    /// The symbol that `bits` begin with, the least significant first, and how many of them it takes; `None` where there is
    /// none.
    pub fn symbol(&self, bits: u64) -> Option<(u16, u32)> {
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

/// How many codes of each length there are, and the first code of each. `None` where there are more than bits allow.
fn firsts(lengths: &[u8]) -> Option<([u16; LONGEST + 1], [u32; LONGEST + 2])> {
    let (mut counts, mut first) = ([0u16; LONGEST + 1], [0u32; LONGEST + 2]);
    for length in lengths {
        *counts.get_mut(usize::from(*length))? += 1;
    }
    counts[0] = 0;
    for length in 1..=LONGEST {
        let end = first[length] + u32::from(counts[length]);
        if end > 1 << length {
            return None;
        }
        first[length + 1] = end << 1;
    }
    Some((counts, first))
}

/// The code of each symbol, its first bit the least significant, from the lengths. `None` where there are more codes
/// than bits allow.
pub(super) fn codes(lengths: &[u8]) -> Option<Vec<u16>> {
    let (_, mut next) = firsts(lengths)?;
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
