//! Variable-length integers of the delta's columns: LEB128, and zigzag for signed values (spec, chapter 2).

use std::io::{self, Read};

/// Bytes that the longest canonical varint takes.
pub const MAX_VARINT: usize = 10;

/// Appends `value` as LEB128: seven bits a byte, least significant first, the top bit set on all but the last.
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
    let mut value = 0u64;
    for i in 0..MAX_VARINT {
        let mut byte = [0u8];
        input.read_exact(&mut byte).map_err(VarintError::Io)?;
        let bits = u64::from(byte[0] & 0x7f);
        if i == MAX_VARINT - 1 && bits > 1 {
            return Err(VarintError::Malformed);
        }
        value |= bits << (7 * i);
        if byte[0] & 0x80 == 0 {
            return if byte[0] == 0 && i > 0 { Err(VarintError::Malformed) } else { Ok(value) };
        }
    }
    Err(VarintError::Malformed)
}

/// Reads a zigzag number.
pub fn get_signed(input: &mut impl Read) -> Result<i64, VarintError> {
    let raw = get(input)?;
    Ok(((raw >> 1) as i64) ^ -((raw & 1) as i64))
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
    }

    #[test]
    fn refuses_long_forms_overflow_and_truncation() {
        for bytes in [&[0x80, 0x00][..], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]] {
            assert!(matches!(get(&mut &bytes[..]), Err(VarintError::Malformed)), "{bytes:x?}");
        }
        assert!(matches!(get(&mut &[0x80u8][..]), Err(VarintError::Io(_))));
    }
}
