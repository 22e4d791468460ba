//! The range coder of LZMA: bits by their probabilities, both ways through one interface.

/// Bits of a probability.
const PROBABILITY_BITS: u32 = 11;
/// A probability of one half, which all have at first.
pub(super) const HALF: u16 = 1 << (PROBABILITY_BITS - 1);
/// How fast probabilities follow what happens.
const MOVE: u32 = 5;
/// Below this the range is too small for a bit, and grows by a byte.
const TOP: u32 = 1 << 24;

/// Reads bits, or writes them: so that the model is one for both ways.
pub(super) trait Coder {
    /// A bit of this probability of being 0: writes `bit`, or reads one in its place.
    fn bit(&mut self, probability: &mut u16, bit: u32) -> Option<u32>;
    /// So many bits, at most 26, of which none is likelier than the other.
    fn even(&mut self, value: u32, bits: u32) -> Option<u32>;
}

/// Reads.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    range: u32,
    code: u32,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let ([0, code @ ..], rest) = bytes.split_first_chunk::<5>()? else { return None };
        Some(Self { bytes: rest, range: u32::MAX, code: u32::from_be_bytes(*code) })
    }

    /// Whether all is read.
    pub fn is_done(&self) -> bool {
        self.bytes.is_empty() && self.code == 0
    }

    #[inline(always)]
    fn grow(&mut self) -> Option<()> {
        if self.range < TOP {
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(*self.bytes.split_off_first()?);
        }
        Some(())
    }
}

impl Coder for Reader<'_> {
    #[inline(always)]
    fn bit(&mut self, probability: &mut u16, _: u32) -> Option<u32> {
        let bound = (self.range >> PROBABILITY_BITS) * u32::from(*probability);
        let bit = if self.code < bound {
            self.range = bound;
            *probability += ((1 << PROBABILITY_BITS) - *probability) >> MOVE;
            0
        } else {
            self.range -= bound;
            self.code -= bound;
            *probability -= *probability >> MOVE;
            1
        };
        self.grow().map(|()| bit)
    }

    fn even(&mut self, _: u32, bits: u32) -> Option<u32> {
        let mut value = 0;
        for _ in 0..bits {
            self.range >>= 1;
            let bit = u32::from(self.code >= self.range);
            if bit == 1 {
                self.code -= self.range;
            }
            value = value << 1 | bit;
            self.grow()?;
        }
        Some(value)
    }
}

/// Writes.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Bytes that there may be, at the most.
    end: usize,
    low: u64,
    range: u32,
    /// The byte that a carry may still change, and how many of 255 stand behind it.
    cache: u8,
    waiting: usize,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut Vec<u8>, end: usize) -> Self {
        Self { out, end, low: 0, range: u32::MAX, cache: 0, waiting: 0 }
    }

    /// Moves a byte out of `low`.
    #[inline(always)]
    fn shift(&mut self) -> Option<()> {
        let carry = (self.low >> 32) as u8;
        if carry > 0 || (self.low as u32) < 0xff << 24 {
            if self.out.len() + self.waiting >= self.end {
                return None;
            }
            self.out.push(self.cache.wrapping_add(carry));
            for _ in 0..std::mem::take(&mut self.waiting) {
                self.out.push(carry.wrapping_sub(1));
            }
            self.cache = (self.low >> 24) as u8;
        } else {
            self.waiting += 1;
        }
        self.low = (self.low & 0x00ff_ffff) << 8;
        Some(())
    }

    #[inline(always)]
    fn grow(&mut self) -> Option<()> {
        if self.range < TOP {
            self.range <<= 8;
            self.shift()?;
        }
        Some(())
    }

    /// Writes what is left.
    pub fn finish(mut self) -> Option<()> {
        (0..5).try_for_each(|_| self.shift())
    }
}

impl Coder for Writer<'_> {
    #[inline(always)]
    fn bit(&mut self, probability: &mut u16, bit: u32) -> Option<u32> {
        let bound = (self.range >> PROBABILITY_BITS) * u32::from(*probability);
        if bit == 0 {
            self.range = bound;
            *probability += ((1 << PROBABILITY_BITS) - *probability) >> MOVE;
        } else {
            self.low += u64::from(bound);
            self.range -= bound;
            *probability -= *probability >> MOVE;
        }
        self.grow().map(|()| bit)
    }

    fn even(&mut self, value: u32, bits: u32) -> Option<u32> {
        for i in (0..bits).rev() {
            self.range >>= 1;
            if value >> i & 1 == 1 {
                self.low += u64::from(self.range);
            }
            self.grow()?;
        }
        Some(value)
    }
}
