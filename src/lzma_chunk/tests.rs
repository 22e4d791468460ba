use super::*;
use crate::compressible::{CONTENT, Damage, damaged};
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use proptest::prelude::*;
use std::io::Write;

/// The chunks of a stream of xz with these properties.
fn chunks(content: &[u8], preset: u32, properties: [u32; 3]) -> Vec<u8> {
    let mut options = LzmaOptions::new_preset(preset).unwrap();
    options.literal_context_bits(properties[0]).literal_position_bits(properties[1]).position_bits(properties[2]);
    let stream = Stream::new_stream_encoder(Filters::new().lzma2(&options), Check::Crc32).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(content).unwrap();
    let xz = encoder.finish().unwrap();
    let start = 12 + (usize::from(xz[12]) + 1) * 4;
    let mut end = start;
    while xz[end] >= COMPRESSED {
        end +=
            HEADER + usize::from(xz[end] & 0x40 > 0) + usize::from(u16::from_be_bytes([xz[end + 3], xz[end + 4]])) + 1;
    }
    assert_eq!(xz[end], 0, "what follows is the end, and not what is not compressed");
    xz[start..end].to_vec()
}

fn text_of(chunks: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut text = Vec::new();
    unpack(chunks, usize::MAX >> 1, &mut text).map(|()| text)
}

fn chunks_of(text: &[u8], most: usize) -> Result<Vec<u8>, Malformed> {
    let mut chunks = Vec::new();
    let done = pack(text, most, &mut chunks).map(|()| chunks.clone());
    assert!(chunks.len() <= most + BEYOND);
    done
}

#[test]
fn chunks_of_all_kinds_come_back_bit_for_bit() {
    let mut several = 0;
    // Half of it is noise, so that it takes more than the 64 KiB of one chunk.
    let noise = (0..65_536u32).flat_map(|i| ((i + 1).wrapping_mul(2_654_435_761).wrapping_pow(3) >> 16).to_le_bytes());
    let noisy: Vec<u8> = noise.collect();
    for (preset, properties) in
        [(0, [3, 0, 2]), (6, [3, 0, 2]), (9, [0, 2, 2]), (6, [4, 0, 0]), (3, [0, 4, 4]), (6, [1, 3, 1])]
    {
        for (from, len) in [(0, 60), (7, 300), (1 << 20, 128 << 10), (500_000, 200_000), (2_000_000, CONTENT_MOST)] {
            let content = if len == CONTENT_MOST { &noisy } else { &CONTENT[from..from + len] };
            let chunks = chunks(content, preset, properties);
            let text = text_of(&chunks).unwrap_or_else(|_| panic!("no text: {properties:?}, {len} bytes"));
            assert!(chunks_of(&text, chunks.len()).is_ok_and(|made| made == chunks), "{properties:?}, {len} bytes");
            assert!(chunks_of(&text, chunks.len() - 1).is_err());
            let mut more = Vec::new();
            assert!(unpack(&chunks, text.len() - 1, &mut more).is_err() && more.len() < text.len() + TEXT_BEYOND);
            // Two streams in one text.
            let twice = [&chunks[..], &chunks[..]].concat();
            assert_eq!(chunks_of(&text.repeat(2), twice.len()).as_ref(), Ok(&twice));
            let first = HEADER + 1 + usize::from(u16::from_be_bytes([chunks[3], chunks[4]])) + 1;
            several += u32::from(first < chunks.len());
            if first < chunks.len() {
                assert_eq!(text_of(&chunks[first..]), Err(Malformed), "a chunk that goes on with another");
            }
        }
    }
    assert!(several > 0, "no stream has several chunks");
}

#[test]
fn what_stands_for_too_much_has_no_text() {
    assert!(text_of(&chunks(&vec![7; CONTENT_MOST], 6, [3, 0, 2])).is_ok());
    assert_eq!(text_of(&chunks(&vec![7; CONTENT_MOST + 1], 6, [3, 0, 2])), Err(Malformed));
}

/// A text of one chunk, and the same changed in ways that nothing but a check would find.
#[test]
fn texts_have_one_form() {
    let chunks = chunks(b"aaaaaaaaaaaaabaaaaaaaaaaaaa", 6, [3, 0, 2]);
    let text = text_of(&chunks).unwrap();
    assert_eq!(chunks_of(&text, 100), Ok(chunks));
    assert_eq!(&text[..3], [RESET_ALL, 0x5d, 26], "all is reset, the properties, 27 bytes");
    let mut other = text.clone();
    for (at, to) in [(0, 4), (0, NEW_PROPERTIES), (1, 225), (2, 200), (3, 100)] {
        let was = std::mem::replace(&mut other[at], to);
        assert_eq!(chunks_of(&other, 100), Err(Malformed), "{to} at {at}");
        other[at] = was;
    }
    assert_eq!(chunks_of(&text[..text.len() - 1], 100), Err(Malformed));
    // One literal and a match of one byte that says it has more; of 274; from before the beginning.
    for wrong in [&[3, 0x5d, 1, 1, b'a', 7][..], &[3, 0x5d, 0x91, 2, 1, b'a', 0xe2, 12], &[3, 0x5d, 2, 1, b'a', 0, 1]] {
        assert_eq!(chunks_of(wrong, 100), Err(Malformed), "{wrong:?}");
    }
    for right in
        [&[3, 0x5d, 1, 1, b'a', 1][..], &[3, 0x5d, 0x91, 2, 1, b'a', 0xda, 12, 0], &[3, 0x5d, 2, 1, b'a', 0, 0]]
    {
        let made = chunks_of(right, 100).unwrap();
        assert_eq!(text_of(&made).as_deref(), Ok(right));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever stands there: no panic, no more than is allowed; and what makes chunks is their only text.
    #[test]
    fn damage_is_refused_or_means_something(
        from in 0..100usize, len in 60..20_000usize, preset in 0..7u32, damage in any::<Damage>(),
    ) {
        let chunks = chunks(&CONTENT[from * 400..][..len], preset, [3, 0, 2]);
        let text = text_of(&chunks).unwrap();
        let mut found = Vec::new();
        let done = unpack(&damaged(&chunks, &damage), 60_000, &mut found);
        prop_assert!(found.len() <= 60_000 + TEXT_BEYOND);
        if done.is_ok() {
            let _ = chunks_of(&found, 100_000);
        }
        let wrong = damaged(&text, &damage);
        if let Ok(made) = chunks_of(&wrong, 100_000) {
            prop_assert_eq!(text_of(&made), Ok(wrong));
        }
    }

    #[test]
    fn anything_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), content in 0..700u16, properties in any::<u8>()) {
        let _ = chunks_of(&bytes, 10_000);
        let _ = chunks_of(&[&[RESET_ALL, 0x5d, 100][..], &bytes].concat(), 10_000);
        let [high, low] = content.to_be_bytes();
        let size = bytes.len().saturating_sub(1) as u16;
        let header = [0xe0, high, low, (size >> 8) as u8, size as u8, properties];
        let _ = text_of(&[&header[..], &bytes].concat());
    }
}
