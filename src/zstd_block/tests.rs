use super::*;
use crate::compressible::{CONTENT, Damage, damaged};
use proptest::prelude::*;

/// The compressed blocks of frames that follow each other: those side by side in a frame together.
fn together(mut frames: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] = *frames {
        let single = descriptor >> 5 & 1;
        let size = match descriptor >> 6 {
            0 => usize::from(single),
            log => 1 << log,
        };
        frames = &frames[5 + usize::from(1 - single) + size + [0, 1, 2, 4][usize::from(descriptor & 3)]..];
        loop {
            let (mut len, mut last) = (0, false);
            while let Some((end, 2, is_last)) = (!last).then(|| block(&frames[len..])) {
                (len, last) = (len + end, is_last);
            }
            if len > 0 {
                found.push(&frames[..len]);
            }
            frames = &frames[len..];
            if !last {
                let (end, _, is_last) = block(frames);
                (frames, last) = (&frames[end..], is_last);
            }
            if last {
                break;
            }
        }
        frames = &frames[4 * usize::from(descriptor >> 2 & 1)..];
    }
    found
}

/// Bytes of the first block, its kind, and whether it is the last of its frame.
fn block(frame: &[u8]) -> (usize, u32, bool) {
    let header = u32::from_le_bytes([frame[0], frame[1], frame[2], 0]);
    let (kind, size) = (header >> 1 & 3, (header >> 3) as usize);
    (HEADER + if kind == 1 { 1 } else { size }, kind, header & 1 == 1)
}

fn text_of(blocks: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut text = Vec::new();
    unpack(blocks, usize::MAX, &mut text).map(|()| text)
}

fn blocks_of(text: &[u8], most: usize) -> Result<Vec<u8>, Malformed> {
    let mut blocks = Vec::new();
    let done = pack(text, most, &mut blocks).map(|()| blocks.clone());
    assert!(blocks.len() <= most + BEYOND);
    done
}

/// Of all levels, of frames of one block and of many, which use the codes of those before; with what need be the same in them
/// as before a change.
#[test]
fn blocks_of_all_levels_come_back_bit_for_bit() {
    let (mut packed, mut failed, mut kinds) = (0, 0, [0; 4]);
    for (part, level) in [(128 << 10, 22), (128 << 10, 3), (1 << 20, -5), (1 << 20, 1), (1 << 20, 6), (3 << 20, 19)] {
        for content in CONTENT.chunks(part).take(4) {
            let frame = zstd::bulk::compress(content, level).unwrap();
            for blocks in together(&frame) {
                let Ok(text) = text_of(blocks) else {
                    failed += blocks.len();
                    continue;
                };
                assert!(blocks_of(&text, blocks.len()).is_ok_and(|made| made == blocks), "level {level}");
                assert!(blocks_of(&text, blocks.len() - 1).is_err());
                let mut more = Vec::new();
                assert!(unpack(blocks, text.len() - 1, &mut more).is_err() && more.len() < text.len() + TEXT_BEYOND);
                packed += blocks.len();
                kinds[usize::from(text[0] & 3)] += 1;
            }
        }
    }
    assert!(packed > 100 * failed, "{packed} bytes came back, {failed} have no text");
    assert!(kinds[usize::from(RAW)] > 0 && kinds[usize::from(CODED)] > 0, "{kinds:?}");
}

fn compressed(last: bool, content: &[u8]) -> Vec<u8> {
    let header = (u32::from(last) | COMPRESSED << 1 | (content.len() as u32) << 3).to_le_bytes();
    [&header[..HEADER], content].concat()
}

/// Literals that are not coded, or all the same, in all forms of their header.
#[test]
fn plain_literals_come_back() {
    let noise = [7; 3000].iter().scan(1u8, |last, add| {
        *last = last.wrapping_mul(5).wrapping_add(*add);
        Some(*last)
    });
    let noise: Vec<u8> = noise.collect();
    let head = |kind: u32, format: u32, size: u32, bits: u32, len: usize| {
        (kind | format << 2 | size << bits).to_le_bytes()[..len].to_vec()
    };
    let cases = [
        [head(0, 0, 0, 3, 1), vec![0]],
        [head(0, 0, 31, 3, 1), noise[..31].to_vec()],
        [head(0, 1, 5, 4, 2), noise[..5].to_vec()],
        [head(0, 3, 3000, 4, 3), noise.clone()],
        [head(1, 0, 5, 3, 1), b"x".to_vec()],
        [head(1, 2, 30, 3, 1), b"x".to_vec()],
        [head(1, 1, 4000, 4, 2), b"x".to_vec()],
        [head(1, 3, 128 << 10, 4, 3), b"x".to_vec()],
    ];
    for (i, [head, literals]) in cases.into_iter().enumerate() {
        let none: &[u8] = if i == 0 { &[] } else { &[0] };
        for last in [false, true] {
            let block = compressed(last, &[&head, &literals, none].concat());
            let text = text_of(&block).unwrap_or_else(|_| panic!("case {i} has no text"));
            assert_eq!((text[0] & LAST > 0, blocks_of(&text, block.len())), (last, Ok(block)), "case {i}");
        }
    }
    // Too many; none of a kind; not all; a number of sequences in more bytes than it needs.
    let wrong = [
        [head(1, 3, (128 << 10) + 1, 4, 3), b"x".to_vec(), vec![0]],
        [head(1, 0, 0, 3, 1), b"x".to_vec(), vec![0]],
        [head(0, 0, 9, 3, 1), b"x".to_vec(), vec![0]],
        [head(0, 0, 1, 3, 1), b"x".to_vec(), vec![0, 0]],
    ];
    for (i, parts) in wrong.into_iter().enumerate() {
        assert_eq!(text_of(&compressed(true, &parts.concat())), Err(Malformed), "wrong case {i}");
    }
    assert_eq!(text_of(&compressed(true, &[])), Err(Malformed));
    assert_eq!(text_of(&[1, 0, 0]), Err(Malformed), "a block that is not compressed");
}

/// What need not be as a text would have it: blocks that say the same in another way.
#[test]
fn another_way_to_write_a_block_is_told_from_its_text() {
    let shortest = compressed(true, &[41, b'x', 0]);
    let longer = compressed(true, &[41, b'x', 128, 0]);
    let texts = [&shortest, &longer].map(|block| text_of(block).unwrap());
    assert_eq!(texts[0], texts[1]);
    assert_eq!(blocks_of(&texts[1], 100), Ok(shortest));
}

/// A block of which a part says what stands in one before it has no text by itself.
#[test]
fn codes_of_blocks_before_must_be_in_the_same_text() {
    let frame = zstd::bulk::compress(&CONTENT[1 << 20..4 << 20], 3).unwrap();
    let (mut alone, mut not) = (0, 0);
    for mut blocks in together(&frame) {
        assert!(text_of(blocks).is_ok());
        while !blocks.is_empty() {
            let (one, others) = blocks.split_at(block(blocks).0);
            match text_of(one) {
                Ok(text) => (alone, _) = (alone + 1, assert_eq!(blocks_of(&text, one.len()).as_deref(), Ok(one))),
                Err(Malformed) => not += 1,
            }
            blocks = others;
        }
    }
    assert!(alone > 0 && not > 0, "{alone} alone, {not} not");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Whatever stands there: no panic, no more than is allowed; and what makes blocks is their only text.
    #[test]
    fn damage_is_refused_or_means_something(
        from in 0..64usize, len in 300..20_000usize, level in 1..20, damage in any::<Damage>(), close in any::<Damage>(),
    ) {
        let frame = zstd::bulk::compress(&CONTENT[from << 14..][..len], level).unwrap();
        for blocks in together(&frame) {
            let text = text_of(blocks).unwrap();
            let wrong = damaged(blocks, &damage);
            let mut found = Vec::new();
            let done = unpack(&wrong, 60_000, &mut found);
            prop_assert!(found.len() <= 60_000 + TEXT_BEYOND);
            if done.is_ok() {
                let _ = blocks_of(&found, 100_000);
            }
            // Near its start a text has the codes.
            let mut wrong = text.clone();
            let head = damaged(&text[..text.len().min(150)], &close);
            wrong[..head.len()].copy_from_slice(&head);
            for wrong in [damaged(&text, &damage), wrong] {
                if let Ok(made) = blocks_of(&wrong, 100_000) {
                    prop_assert_eq!(text_of(&made), Ok(wrong));
                }
            }
        }
    }

    #[test]
    fn anything_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 0..300u32) {
        let _ = blocks_of(&bytes, 10_000);
        let header = (2 << 1 | size << 3).to_le_bytes();
        let _ = text_of(&[&header[..HEADER], &bytes[..]].concat());
    }
}
