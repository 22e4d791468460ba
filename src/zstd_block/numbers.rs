//! The numbers of sequences: which codes they have (RFC 8878, 3.1.1.3.2.1), and the tables that everybody knows.

use super::fse::Table;

/// One of the three numbers of a sequence.
#[derive(Debug)]
pub(super) struct Number {
    /// The smallest number of each code, and its extra bits.
    pub codes: &'static [(u32, u8)],
    /// Most bits of a state in its tables.
    pub log: u32,
    counts: &'static [i16],
    default_log: u32,
}

impl Number {
    /// The code of a number: the last that begins at it, or below.
    #[inline]
    pub fn code(&self, number: u32) -> Option<u8> {
        let code = self.codes.partition_point(|(least, _)| *least <= number).checked_sub(1)?;
        let (least, extra) = *self.codes.get(code)?;
        (u64::from(number - least) < 1 << extra).then_some(code as u8)
    }

    /// The table that needs no description.
    pub fn predefined(&self) -> Option<Table> {
        Table::new(self.counts, self.default_log)
    }
}

/// Literal lengths, offsets as they are coded, and match lengths: in the order in which their tables stand in a block.
pub(super) static NUMBERS: [Number; 3] = [
    Number { codes: &LITERAL_LENGTHS, log: 9, counts: &LITERAL_COUNTS, default_log: 6 },
    Number { codes: &OFFSETS, log: 8, counts: &OFFSET_COUNTS, default_log: 5 },
    Number { codes: &MATCH_LENGTHS, log: 9, counts: &MATCH_COUNTS, default_log: 6 },
];

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

const LITERAL_COUNTS: [i16; 36] = [
    4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1,
];
const OFFSET_COUNTS: [i16; 29] =
    [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];
const MATCH_COUNTS: [i16; 53] = [
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];
