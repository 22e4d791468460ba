//! Bits, the least significant first, as deflate has them.

/// Bits that one look gives, at least.
pub(super) const LOOK: u32 = 56;

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
        self.there |= LOOK;
        self.word
    }

    /// Whether the last look went beyond the end.
    #[inline]
    pub fn saw_the_end(&self) -> bool {
        self.behind > self.bytes.len()
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

/// Writes bits to a buffer, which lacks the first bytes of what is written; those beyond its end are only counted.
#[derive(Debug)]
pub(super) struct BitWriter<'a> {
    bytes: &'a mut [u8],
    /// Bytes that it lacks.
    before: usize,
    /// Bytes that are complete, these included.
    whole: usize,
    word: u64,
    /// Bits in `word`: below 8 between calls.
    used: u32,
}

impl<'a> BitWriter<'a> {
    /// To `bytes`, from the byte with number `before` on.
    pub fn new(bytes: &'a mut [u8], before: usize) -> Self {
        Self { bytes, before, whole: 0, word: 0, used: 0 }
    }

    /// Appends the lowest `bits`, at most 56, of `value`, whose other bits are zero.
    #[inline]
    pub fn put(&mut self, value: u64, bits: u32) {
        self.word |= value << self.used;
        self.used += bits;
        // A whole word where there is room, as then nothing depends on how many of its bytes are complete.
        match self.bytes.get_mut(self.whole.wrapping_sub(self.before)..).and_then(|rest| rest.first_chunk_mut()) {
            Some(room) => *room = self.word.to_le_bytes(),
            None => self.put_bytes(self.used / 8),
        }
        self.whole += (self.used / 8) as usize;
        self.word >>= self.used & !7;
        self.used %= 8;
    }

    /// Writes the first bytes of the word, where there is room for them.
    #[cold]
    fn put_bytes(&mut self, count: u32) {
        for (at, byte) in (self.whole..).zip(&self.word.to_le_bytes()[..count as usize]) {
            if let Some(place) = at.checked_sub(self.before).and_then(|at| self.bytes.get_mut(at)) {
                *place = *byte;
            }
        }
    }

    /// Fills the last byte up with zeros; `None` where the buffer is not full then.
    pub fn finish(mut self) -> Option<()> {
        self.put_bytes(1);
        let there = self.whole + usize::from(self.used > 0);
        (there >= self.before + self.bytes.len()).then_some(())
    }
}
