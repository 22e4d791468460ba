//! The numbers of sequences: which codes they have (RFC 8878, 3.1.1.3.2.1), and the tables that everybody knows.

use super::fse::Table;
use std::sync::{Arc, LazyLock};

/// One of the three numbers of a sequence.
#[derive(Debug)]
pub(super) struct Number {
    /// The smallest number of each code, and its extra bits.
    pub codes: &'static [(u32, u8)],
    /// Most bits of a state in its tables.
    pub log: u32,
    /// What numbers are counted from.
    from: u32,
    /// The codes of small numbers.
    small: &'static [u8],
    /// Larger ones have a code for each power of two: that of one is as much above its logarithm.
    above: u32,
    predefined: &'static LazyLock<Option<Arc<Table>>>,
}

impl Number {
    /// The code of a number, and its extra bits: their value, and how many they are.
    #[inline]
    pub fn code(&self, number: u32) -> Option<(u8, u32, u8)> {
        let counted = number.checked_sub(self.from)?;
        let code = match self.small.get(counted as usize) {
            Some(code) => *code,
            None => (counted.checked_ilog2()? + self.above) as u8,
        };
        let (least, extra) = *self.codes.get(usize::from(code))?;
        Some((code, number - least, extra))
    }

    /// The table that needs no description.
    pub fn predefined(&self) -> Option<Arc<Table>> {
        self.predefined.as_ref().map(Arc::clone)
    }
}

/// Literal lengths, offsets as they are coded, and match lengths: in the order in which their tables stand in a block.
pub(super) static NUMBERS: [Number; 3] = [
    Number {
        codes: &LITERAL_LENGTHS,
        log: 9,
        from: 0,
        small: &SMALL_LITERAL_LENGTHS,
        above: 19,
        predefined: &LITERAL_TABLE,
    },
    Number { codes: &OFFSETS, log: 8, from: 0, small: &[], above: 0, predefined: &OFFSET_TABLE },
    Number { codes: &MATCH_LENGTHS, log: 9, from: 3, small: &SMALL_MATCH_LENGTHS, above: 36, predefined: &MATCH_TABLE },
];

static LITERAL_TABLE: LazyLock<Option<Arc<Table>>> = LazyLock::new(|| Table::new(&LITERAL_COUNTS, 6).map(Arc::new));
static OFFSET_TABLE: LazyLock<Option<Arc<Table>>> = LazyLock::new(|| Table::new(&OFFSET_COUNTS, 5).map(Arc::new));
static MATCH_TABLE: LazyLock<Option<Arc<Table>>> = LazyLock::new(|| Table::new(&MATCH_COUNTS, 6).map(Arc::new));

static SMALL_LITERAL_LENGTHS: [u8; 64] = small(&LITERAL_LENGTHS);
static SMALL_MATCH_LENGTHS: [u8; 128] = small(&MATCH_LENGTHS);

/// The codes of the smallest numbers.
const fn small<const N: usize>(codes: &[(u32, u8)]) -> [u8; N] {
    let (mut small, mut i, mut code) = ([0; N], 0, 0);
    while i < N {
        while code + 1 < codes.len() && codes[code + 1].0 - codes[0].0 <= i as u32 {
            code += 1;
        }
        small[i] = code as u8;
        i += 1;
    }
    small
}

const LITERAL_LENGTHS: [(u32, u8); 36] = {
    let extra = [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    numbered(0, 16, &extra)
};

const MATCH_LENGTHS: [(u32, u8); 53] = {
    let extra = [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    numbered(3, 32, &extra)
};

/// Codes with one number each from `first` on, and then with these extra bits.
const fn numbered<const N: usize>(first: u32, plain: usize, extra: &[u8]) -> [(u32, u8); N] {
    let (mut codes, mut next, mut i) = ([(0, 0); N], first, 0);
    while i < N {
        let bits = if i < plain { 0 } else { extra[i - plain] };
        codes[i] = (next, bits);
        next += 1 << bits;
        i += 1;
    }
    codes
}

const OFFSETS: [(u32, u8); 32] = {
    let (mut codes, mut i) = ([(0, 0); 32], 0);
    while i < 32 {
        codes[i] = (1 << i, i as u8);
        i += 1;
    }
    codes
};

const LITERAL_COUNTS: [i16; 36] =
    [4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1];
const OFFSET_COUNTS: [i16; 29] =
    [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];
const MATCH_COUNTS: [i16; 53] = [
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_the_code_whose_range_it_is_in() {
        for number in &NUMBERS {
            let (least, (last, extra)) = (number.codes[0].0, number.codes[number.codes.len() - 1]);
            let most = u64::from(last) + (1 << extra) - 1;
            let ends = number.codes.iter().flat_map(|(first, _)| [first.saturating_sub(1), *first, first + 1]);
            for value in (0..3000).chain(ends).chain([u32::MAX]).filter(|value| *value >= least) {
                let Some((code, above, bits)) = number.code(value) else {
                    assert!(u64::from(value) > most, "{value} has no code");
                    continue;
                };
                assert!(u64::from(above) < 1 << bits && u64::from(value) <= most, "{value}");
                assert_eq!(number.codes[usize::from(code)], (value - above, bits));
            }
            assert!(least == 0 || number.code(least - 1).is_none());
            assert!(number.predefined().is_some());
        }
    }
}
