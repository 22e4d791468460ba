//! Bits, the least significant first, as deflate has them.

/// Reads bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    /// The number of the next bit.
    at: u64,
    /// The bits from there on, as many as `there`; behind them may be more of the same.
    word: u64,
    there: u32,
    /// The byte behind the last one of which bits are `there`.
    behind: usize,
}

impl<'a> BitReader<'a> {
    /// From bit `at` on.
    pub fn new(bytes: &'a [u8], at: u64) -> Self {
        let behind = usize::try_from(at >> 3).unwrap_or(usize::MAX);
        let mut reader = Self { bytes, at, word: 0, there: 0, behind };
        let within = (at & 7) as u32;
        let word = reader.peek();
        (reader.word, reader.there) = (word >> within, reader.there - within);
        reader
    }

    /// The number of the next bit.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// At least the next 56 bits; zeros behind the end.
    #[inline]
    pub fn peek(&mut self) -> u64 {
        let rest = self.bytes.get(self.behind..).unwrap_or_default();
        let next = match rest.first_chunk::<8>() {
            Some(next) => *next,
            None => std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0)),
        };
        // As many whole bytes as there is room for, always (Giesen, 'Reading bits in far too many ways', 2018, variant 4).
        self.word |= u64::from_le_bytes(next) << self.there;
        self.behind = self.behind.saturating_add(((63 - self.there) >> 3) as usize);
        self.there |= 56;
        self.word
    }

    /// Passes over bits, at most as many as were looked at; `None` where there are not so many.
    #[inline]
    pub fn skip(&mut self, bits: u32) -> Option<()> {
        let at = self.at + u64::from(bits);
        if at > self.bytes.len() as u64 * 8 {
            return None;
        }
        (self.at, self.word, self.there) = (at, self.word >> bits, self.there - bits);
        Some(())
    }

    /// The next `bits`, at most 32, as a number.
    pub fn take(&mut self, bits: u32) -> Option<u32> {
        let value = self.peek() & ((1 << bits) - 1);
        self.skip(bits)?;
        Some(value as u32)
    }
}

/// Writes bits to a buffer; those beyond its end are only counted.
#[derive(Debug)]
pub(super) struct BitWriter {
    /// With room behind its end for a whole word.
    bytes: Vec<u8>,
    /// Bytes that are complete.
    whole: usize,
    word: u64,
    /// Bits in `word`: below 8 between calls.
    used: u32,
}

impl BitWriter {
    /// For so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes.saturating_add(size_of::<u64>())], whole: 0, word: 0, used: 0 }
    }

    /// Appends the lowest `bits`, at most 56, of `value`, whose other bits are zero.
    #[inline]
    pub fn put(&mut self, value: u64, bits: u32) {
        self.word |= value << self.used;
        self.used += bits;
        // Always a whole word, as then nothing depends on how many of its bytes are complete.
        if let Some(room) = self.bytes.get_mut(self.whole..).and_then(|rest| rest.first_chunk_mut()) {
            *room = self.word.to_le_bytes();
        }
        self.whole += (self.used / 8) as usize;
        self.word >>= self.used & !7;
        self.used %= 8;
    }

    /// The first `len` bytes, the last one filled up with zeros; `None` where there are not so many, or no room was for them.
    pub fn finish(mut self, len: usize) -> Option<Vec<u8>> {
        let there = self.whole + usize::from(self.used > 0);
        if len > there || len > self.bytes.len() - size_of::<u64>() {
            return None;
        }
        self.bytes.truncate(len);
        Some(self.bytes)
    }
}
