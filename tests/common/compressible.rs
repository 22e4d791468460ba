//! For tests of compressed data: what can be compressed, and damage to it.

use std::sync::LazyLock;

/// What is compressed: lines of text, and records as in a program's data, in turn.
pub(crate) static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut content = Vec::new();
    for i in 0u32.. {
        let number = i.wrapping_mul(2_654_435_761);
        match i / 3000 % 3 {
            0 => content.extend(format!("entry {} of the table: value {}\n", number >> 22, number >> 15).bytes()),
            1 => {
                content.extend([(number >> 24) as u8 & 31, 0, 0, (number >> 16) as u8, i as u8, (i >> 8) as u8, 0, 72])
            }
            _ => content.extend((number >> 12).to_le_bytes()),
        }
        if content.len() > 4 << 20 {
            break;
        }
    }
    content
});

/// Changed bytes, (place, by).
pub(crate) type Damage = Vec<(u16, u8)>;

pub(crate) fn damaged(bytes: &[u8], damage: &Damage) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, by) in damage {
        let at = (usize::from(*at) * bytes.len()) >> 16;
        bytes[at] ^= by;
    }
    bytes
}
