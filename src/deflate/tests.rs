use super::*;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use proptest::prelude::*;
use std::io::Write;

fn deflated(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The text of a whole stream, and where each item begins: (bit, byte of the text).
fn unpacked(bytes: &[u8]) -> (Vec<u8>, Vec<(u64, usize)>, Stop) {
    let (mut unpacker, mut text, mut at, mut places) = (Unpacker::new(), Vec::new(), 0, vec![(0, 0)]);
    loop {
        match unpacker.next(bytes, at, &mut text) {
            Ok((_, next)) => at = next,
            Err(stop) => return (text, places, stop),
        }
        places.push((at, text.len()));
    }
}

/// Words that repeat, so that there are matches, and bytes that do not.
fn some_content(len: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut content = Vec::new();
    while content.len() < len {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
        match state >> 30 {
            0 => content.extend((state >> 8).to_be_bytes()),
            1 => content.extend([MARK; 5]),
            _ => content.extend(format!("word {} and ", (state >> 16) % 500).bytes()),
        }
    }
    content
}

fn packed(text: &[u8], skip: u32, len: usize) -> Result<Vec<u8>, Malformed> {
    let mut bytes = vec![0xa5; len];
    pack(text, skip, &mut bytes).map(|()| bytes)
}

#[test]
fn a_stream_comes_back_bit_for_bit() {
    let content = some_content(200_000);
    for level in 1..=9 {
        let bytes = deflated(&content, level);
        let (text, _, stop) = unpacked(&bytes);
        assert_eq!(stop, Stop::Finished);
        assert_eq!(packed(&text, 0, bytes.len()).unwrap(), bytes, "level {level}");
    }
    let short = deflated(b"fixed codes do here", 6);
    assert_eq!(short[0] & 7, 3, "a last block with fixed codes");
    assert_eq!(packed(&unpacked(&short).0, 0, short.len()).unwrap(), short);
}

#[test]
fn what_is_not_compressed_ends_the_text() {
    assert_eq!(unpacked(&deflated(b"stored", 0)).2, Stop::Stored);
    assert_eq!(unpacked(&[7]).2, Stop::Malformed);
}

/// A part is packed by the header of its block, silently, and the items in it.
#[test]
fn any_part_comes_back_by_itself() {
    let bytes = deflated(&some_content(60_000), 6);
    let (text, places, _) = unpacked(&bytes);
    let mut header = text[..places[1].1].to_vec();
    header[SILENT_AT.0] |= SILENT_AT.1;
    let second = places.iter().position(|(_, at)| text[*at..].starts_with(&[MARK, 0, END])).unwrap();
    for (from, to) in [(1, 50), (17, 5000), (second - 700, second)] {
        let (first_byte, end_byte) = (places[from].0.div_ceil(8) + 1, places[to].0 / 8);
        let skip = (first_byte * 8 - places[from].0) as u32;
        let part = [&header, &text[places[from].1..places[to].1]].concat();
        let made = packed(&part, skip, (end_byte - first_byte) as usize).unwrap();
        assert_eq!(made, bytes[first_byte as usize..end_byte as usize], "{from} {to}");
    }
}

#[test]
fn texts_of_too_few_bits_are_refused() {
    let bytes = deflated(b"fixed codes do here", 6);
    let text = unpacked(&bytes).0;
    assert_eq!(packed(&text, 0, bytes.len() + 1), Err(Malformed));
    assert_eq!(packed(&text, 9, bytes.len()), Err(Malformed));
    assert_eq!(packed(&text[4..], 0, 1), Err(Malformed), "no codes");
}

proptest! {
    #[test]
    fn anything_that_can_be_unpacked_comes_back(content in prop::collection::vec(any::<u8>(), 0..3000), level in 1u32..10) {
        let bytes = deflated(&content, level);
        let (text, places, stop) = unpacked(&bytes);
        let end = places.last().map_or(0, |(bit, _)| *bit as usize);
        prop_assert!(stop != Stop::Malformed);
        let made = packed(&text, 0, end / 8).unwrap();
        prop_assert_eq!(&made[..], &bytes[..end / 8]);
    }

    #[test]
    fn garbage_is_unpacked_and_packed_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let (text, places, _) = unpacked(&bytes);
        let end = places.last().map_or(0, |(bit, _)| *bit as usize);
        let made = packed(&text, 0, end / 8).unwrap();
        prop_assert_eq!(&made[..], &bytes[..end / 8]);
        let _ = packed(&bytes, 3, 10);
        let marked: Vec<u8> = [MARK, 0, HEADER, DYNAMIC].into_iter().chain(bytes).collect();
        let _ = packed(&marked, 0, 0);
    }
}
