//! Bits, the least significant first, as deflate has them.

/// Reads bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: u64,
}

impl<'a> BitReader<'a> {
    /// From bit `at` on.
    pub fn new(bytes: &'a [u8], at: u64) -> Self {
        Self { bytes, at }
    }

    /// The number of the next bit.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// At least the next 56 bits; zeros behind the end.
    #[inline]
    pub fn peek(&self) -> u64 {
        let start = usize::try_from(self.at >> 3).unwrap_or(usize::MAX);
        let word = match self.bytes.get(start..).and_then(|rest| rest.first_chunk::<8>()) {
            Some(word) => *word,
            None => {
                let rest = self.bytes.get(start..).unwrap_or_default();
                std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0))
            }
        };
        u64::from_le_bytes(word) >> (self.at & 7)
    }

    /// Passes over bits; `None` where there are not so many.
    #[inline]
    pub fn skip(&mut self, bits: u32) -> Option<()> {
        let at = self.at + u64::from(bits);
        if at > self.bytes.len() as u64 * 8 {
            return None;
        }
        self.at = at;
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
