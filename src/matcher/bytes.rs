//! Comparing byte strings fast: everything hot in the matcher comes down to these few loops.

/// Bytes compared at once while two strings are equal.
const STRIDE: usize = 32;
const WORD: usize = size_of::<u64>();

/// The little-endian word at the start of `bytes`, which holds at least eight bytes (shorter: zero-padded).
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<WORD>().map_or_else(
        || bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        |chunk| u64::from_le_bytes(*chunk),
    )
}

/// How many bytes at the start of `a` and `b` are equal.
pub(super) fn equal_prefix(a: &[u8], b: &[u8]) -> usize {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    let mut at = 0;
    while at + STRIDE <= len && a[at..at + STRIDE] == b[at..at + STRIDE] {
        at += STRIDE;
    }
    while at + WORD <= len {
        let difference = word(&a[at..]) ^ word(&b[at..]);
        if difference != 0 {
            return at + difference.trailing_zeros() as usize / 8;
        }
        at += WORD;
    }
    at + a[at..].iter().zip(&b[at..]).take_while(|(x, y)| x == y).count()
}

/// How many bytes at the end of `a` and `b` are equal.
pub(super) fn equal_suffix(a: &[u8], b: &[u8]) -> usize {
    let len = a.len().min(b.len());
    let (a, b) = (&a[a.len() - len..], &b[b.len() - len..]);
    let mut left = len;
    while left >= STRIDE && a[left - STRIDE..left] == b[left - STRIDE..left] {
        left -= STRIDE;
    }
    while left >= WORD {
        let difference = word(&a[left - WORD..]) ^ word(&b[left - WORD..]);
        if difference != 0 {
            return len - left + difference.leading_zeros() as usize / 8;
        }
        left -= WORD;
    }
    len - left + a[..left].iter().rev().zip(b[..left].iter().rev()).take_while(|(x, y)| x == y).count()
}

/// At how many places `a` and `b`, of one length, differ.
pub(super) fn count_different(a: &[u8], b: &[u8]) -> usize {
    // Counting in bytes, and no more than a byte can count, lets the compiler use whole vectors.
    a.chunks(128)
        .zip(b.chunks(128))
        .map(|(a, b)| usize::from(a.iter().zip(b).fold(0u8, |count, (x, y)| count + u8::from(x != y))))
        .sum()
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, &byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_and_suffix_at_every_length() {
        for len in 0..100 {
            let a: Vec<u8> = (0..len).map(|i| i as u8).collect();
            assert_eq!((equal_prefix(&a, &a), equal_suffix(&a, &a)), (len, len));
            for at in 0..len {
                let mut b = a.clone();
                b[at] ^= 0x80;
                assert_eq!(equal_prefix(&a, &b), at);
                assert_eq!(equal_suffix(&a, &b), len - at - 1);
                assert_eq!(count_different(&a, &b), 1);
            }
        }
    }

    #[test]
    fn lengths_may_differ() {
        assert_eq!(equal_prefix(b"abcdef", b"abc"), 3);
        assert_eq!(equal_suffix(b"abcdef", b"def"), 3);
    }

    #[test]
    fn counts_beyond_a_byte() {
        assert_eq!(count_different(&[0; 1000], &[1; 1000]), 1000);
    }

    #[test]
    fn zero() {
        assert!(is_zero(&[]));
        assert!(is_zero(&[0; 4096]));
        let mut block = [0; 4096];
        block[4095] = 1;
        assert!(!is_zero(&block));
    }
}
