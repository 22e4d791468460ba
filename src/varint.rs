//! Variable-length integers of the delta's columns: LEB128, and zigzag for signed values (spec, chapter 2).

use std::io::{self, Read};

/// Bytes that the longest canonical varint takes.
pub const MAX_VARINT: usize = 10;

/// Appends `value` as LEB128: seven bits a byte, least significant first, the top bit set on all but the last.
#[inline]
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value: zigzag (0, -1, 1, -2, … become 0, 1, 2, 3, …), then LEB128.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Why a varint could not be read.
#[derive(Debug)]
pub enum VarintError {
    /// The stream failed or ended inside the number.
    Io(io::Error),
    /// The number does not fit 64 bits, or is not in its shortest form.
    Malformed,
}

/// Reads a LEB128 number. A form that is longer than needed is refused: every value has one encoding.
pub fn get(input: &mut impl Read) -> Result<u64, VarintError> {
    let mut number = Number::default();
    loop {
        let mut byte = [0u8];
        input.read_exact(&mut byte).map_err(VarintError::Io)?;
        if let Some(value) = number.push(byte[0])? {
            return Ok(value);
        }
    }
}

/// The number at the start of `bytes`, and how many of them it takes; `None` if it is not there as a whole.
pub fn get_from(bytes: &[u8]) -> Result<Option<(u64, usize)>, VarintError> {
    let mut number = Number::default();
    for (i, byte) in bytes.iter().enumerate() {
        if let Some(value) = number.push(*byte)? {
            return Ok(Some((value, i + 1)));
        }
    }
    Ok(None)
}

/// Takes the number at the start of `bytes`; `None`, and nothing is taken, where there is none.
#[inline(always)]
pub fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (value, others) = match *bytes {
        [small @ 0..128, others @ ..] => (u64::from(*small), others),
        [low, high @ 1..128, others @ ..] => (u64::from(low & 127) | u64::from(*high) << 7, others),
        [low, middle @ 128..=255, high @ 1..128, others @ ..] => {
            (u64::from(low & 127) | u64::from(middle & 127) << 7 | u64::from(*high) << 14, others)
        }
        _ => return take_large(bytes),
    };
    *bytes = others;
    Some(value)
}

#[cold]
fn take_large(bytes: &mut &[u8]) -> Option<u64> {
    let (value, len) = get_from(bytes).ok().flatten()?;
    bytes.split_off(..len).map(|_| value)
}

/// A number of which some bytes are read.
#[derive(Default)]
struct Number {
    value: u64,
    len: usize,
}

impl Number {
    /// Adds a byte; the value if it is the last one.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, VarintError> {
        let bits = u64::from(byte & 0x7f);
        let last = self.len == MAX_VARINT - 1;
        if last && (bits > 1 || byte & 0x80 != 0) || byte == 0 && self.len > 0 {
            return Err(VarintError::Malformed);
        }
        self.value |= bits << (7 * self.len);
        self.len += 1;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

/// The signed value of a zigzag number.
#[must_use]
pub fn unzigzag(raw: u64) -> i64 {
    ((raw >> 1) as i64) ^ -((raw & 1) as i64)
}

/// Reads a zigzag number.
pub fn get_signed(input: &mut impl Read) -> Result<i64, VarintError> {
    get(input).map(unzigzag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            put_signed(&mut bytes, signed);
            let mut input = &bytes[..];
            prop_assert_eq!(get(&mut input).unwrap(), value);
            prop_assert_eq!(get_signed(&mut input).unwrap(), signed);
            prop_assert!(input.is_empty());
        }

        /// Also those that are not in their shortest form, or not whole.
        #[test]
        fn is_taken_as_it_is_read(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0x80), Just(1), any::<u8>()], 0..6)) {
            let value = get_from(&bytes).ok().flatten();
            let mut rest = &bytes[..];
            prop_assert_eq!(take(&mut rest), value.map(|(value, _)| value));
            let used = bytes.len() - rest.len();
            prop_assert_eq!(used, value.map_or(0, |(_, len)| len));
        }
    }

    #[test]
    fn refuses_long_forms_overflow_and_truncation() {
        for bytes in [&[0x80, 0x00][..], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]] {
            assert!(matches!(get(&mut &bytes[..]), Err(VarintError::Malformed)), "{bytes:x?}");
        }
        assert!(matches!(get(&mut &[0x80u8][..]), Err(VarintError::Io(_))));
    }
}
