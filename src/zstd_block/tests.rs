use super::*;

/// The compressed blocks of frames that follow each other.
pub(crate) fn blocks(mut frames: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] = *frames {
        let single = descriptor >> 5 & 1;
        let size = match descriptor >> 6 {
            0 => usize::from(single),
            log => 1 << log,
        };
        frames = &frames[5 + usize::from(1 - single) + size + [0, 1, 2, 4][usize::from(descriptor & 3)]..];
        loop {
            let header = u32::from_le_bytes([frames[0], frames[1], frames[2], 0]);
            let (last, kind, size) = (header & 1, header >> 1 & 3, (header >> 3) as usize);
            let size = if kind == 1 { 1 } else { size };
            if kind == 2 {
                found.push(&frames[..3 + size]);
            }
            frames = &frames[3 + size..];
            if last == 1 {
                break;
            }
        }
        frames = &frames[4 * usize::from(descriptor >> 2 & 1)..];
    }
    found
}

#[test]
fn blocks_of_all_levels_come_back_bit_for_bit() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let (mut packed, mut failed) = (0, 0);
    for level in [-5, 1, 3, 6, 9, 12, 15, 19, 22] {
        for part in program[..4 << 20].chunks(128 << 10).step_by(5) {
            let frame = zstd::bulk::compress(part, level).unwrap();
            for block in blocks(&frame) {
                let mut text = Vec::new();
                if unpack(block, 1 << 20, &mut text).is_err() {
                    failed += 1;
                    continue;
                }
                let mut back = Vec::new();
                assert_eq!(pack(&text, block.len(), &mut back), Ok(()));
                assert!(back == block);
                packed += 1;
            }
        }
    }
    println!("{packed} came back, {failed} have no text");
    assert!(packed > 10 * failed);
}
