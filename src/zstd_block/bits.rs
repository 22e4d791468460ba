//! Bits as zstd has them: least significant first; what is entropy-coded is read from its last bit to its first.

/// Reads numbers from the end of a stream, whose last byte ends with a bit that is 1 and marks the end (RFC 8878, 4.1).
#[derive(Clone, Copy, Debug)]
pub(super) struct BackReader<'a> {
    bytes: &'a [u8],
    /// Bits that are left.
    left: usize,
}

impl<'a> BackReader<'a> {
    /// `None` where the mark is missing.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let last = *bytes.last()?;
        let mark = last.checked_ilog2()?;
        Some(Self { bytes, left: (bytes.len() - 1) * 8 + mark as usize })
    }

    /// The next bits, at most 56, without taking them; those that are missing are zeros.
    #[inline(always)]
    pub fn peek(&self, bits: u32) -> u64 {
        let bits = bits as usize;
        if bits > self.left {
            return (self.window(0) % (1 << self.left)) << (bits - self.left);
        }
        let from = self.left - bits;
        self.window(from / 8) >> (from % 8) & ((1 << bits) - 1)
    }

    /// The eight bytes from one on; zeros behind the end.
    #[inline]
    fn window(&self, at: usize) -> u64 {
        match self.bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
            Some(whole) => u64::from_le_bytes(*whole),
            None => self.last_window(at),
        }
    }

    #[cold]
    fn last_window(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| self.bytes.get(at + i).copied().unwrap_or(0)))
    }

    /// Takes bits; `None` where there are not so many.
    #[inline(always)]
    pub fn skip(&mut self, bits: u32) -> Option<()> {
        self.left = self.left.checked_sub(bits as usize)?;
        Some(())
    }

    /// The next bits, at most 56, as a number.
    #[inline(always)]
    pub fn take(&mut self, bits: u32) -> Option<u64> {
        let value = self.peek(bits);
        self.skip(bits)?;
        Some(value)
    }

    /// Bits that are left.
    pub fn left(&self) -> usize {
        self.left
    }
}

/// Appends bits to bytes: what is appended last is read first.
#[derive(Debug)]
pub(super) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    word: u64,
    used: u32,
}

impl<'a> BitWriter<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, word: 0, used: 0 }
    }

    /// Adds the lowest `bits` of `value`, whose other bits are zero: at most 57 until they are [put](Self::put).
    #[inline(always)]
    pub fn add(&mut self, value: u64, bits: u32) {
        self.word |= value << self.used;
        self.used += bits;
    }

    /// Appends what was added, as far as it fills bytes.
    #[inline(always)]
    pub fn put(&mut self) {
        // All eight at once, which is faster than as many as are needed.
        let whole = (self.used / 8) as usize;
        let end = self.out.len() + whole;
        self.out.extend_from_slice(&self.word.to_le_bytes());
        self.out.truncate(end);
        self.word = self.word.checked_shr(8 * whole as u32).unwrap_or(0);
        self.used %= 8;
    }

    /// Whole bytes that are written, and what stood before them.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Marks the end.
    pub fn finish(mut self) {
        self.add(1, 1);
        let bytes = self.used.div_ceil(8) as usize;
        self.out.extend_from_slice(&self.word.to_le_bytes()[..bytes]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_last_is_read_first() {
        let numbers: Vec<(u64, u32)> =
            (0..500u64).map(|i| (i * 2_654_435_761 % (1 << (i % 32)), (i % 32) as u32)).collect();
        let mut bytes = vec![9, 9];
        let mut writer = BitWriter::new(&mut bytes);
        for (value, bits) in &numbers {
            writer.add(*value, *bits);
            writer.put();
        }
        writer.finish();
        let mut reader = BackReader::new(&bytes[2..]).unwrap();
        for (value, bits) in numbers.iter().rev() {
            assert_eq!(reader.take(*bits), Some(*value));
        }
        assert_eq!((reader.left(), reader.peek(3), reader.take(1)), (0, 0, None));
        assert!(BackReader::new(&[]).is_none() && BackReader::new(&[1, 0]).is_none());
    }
}
