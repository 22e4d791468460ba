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

/// Writes bits.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    pub bytes: Vec<u8>,
    word: u64,
    /// Bits in `word`: below 8 between calls.
    used: u32,
}

impl BitWriter {
    /// Has room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// Appends the lowest `bits`, at most 48, of `value`, whose other bits are zero.
    #[inline]
    pub fn put(&mut self, value: u64, bits: u32) {
        self.word |= value << self.used;
        self.used += bits;
        let whole = (self.used / 8) as usize;
        self.bytes.extend_from_slice(&self.word.to_le_bytes()[..whole]);
        self.word >>= whole * 8;
        self.used %= 8;
    }

    /// The bytes, the last one filled up with zeros.
    pub fn finish(mut self) -> Vec<u8> {
        if self.used > 0 {
            self.bytes.push(self.word as u8);
        }
        self.bytes
    }
}
