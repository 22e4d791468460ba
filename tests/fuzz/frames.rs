//! Compressed sections as nobody should write them.

use crate::common::Rng;
use crate::model::Section;
use crate::mutate::extreme;
use std::io::Write;

/// One frame, of a random level, with or without its content's size and checksum.
pub fn pack(raw: &[u8], window_log: u8, rng: &mut Rng) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), [1, 3, 9][rng.below(3)]).expect("an encoder");
    encoder.window_log(window_log.into()).expect("a window");
    encoder.include_contentsize(rng.below(2) == 0).expect("a switch");
    encoder.include_checksum(rng.below(4) == 0).expect("a switch");
    encoder.set_pledged_src_size(Some(raw.len() as u64)).expect("a length");
    encoder.write_all(raw).expect("memory");
    encoder.finish().expect("memory")
}

fn skippable(rng: &mut Rng) -> Vec<u8> {
    let len = rng.below(20);
    let data = rng.bytes(len);
    let len = if rng.below(4) == 0 { extreme(rng, 20) as u32 } else { data.len() as u32 };
    [&(0x184D_2A50 + rng.below(16) as u32).to_le_bytes(), &len.to_le_bytes(), &data[..]].concat()
}

/// Compresses a section's bytes again, in a way that lies, explodes, or is merely odd.
pub fn repack(section: &mut Section, rng: &mut Rng) {
    let Some(mut raw) = section.raw() else { return };
    let window_log = [10, 12, 17, 20, 27][rng.below(5)];
    let mut announced = raw.len() as u64;
    let packed = match rng.below(8) {
        0 => {
            // Several frames, some without content.
            let (a, b) = raw.split_at(rng.below(raw.len() + 1));
            [pack(a, window_log, rng), pack(&[], window_log, rng), pack(b, window_log, rng)].concat()
        }
        1 => [skippable(rng), pack(&raw, window_log, rng)].concat(),
        2 => [pack(&raw, window_log, rng), skippable(rng)].concat(),
        3 | 4 => {
            // A bomb behind the content, announced or not.
            raw.resize(raw.len() + (1 << (10 + rng.below(15))), 0);
            if rng.below(2) == 0 {
                announced = extreme(rng, raw.len() as u64);
            }
            pack(&raw, window_log, rng)
        }
        5 => {
            // The frame's own header: content size, window, dictionary, reserved bits.
            let mut packed = pack(&raw, window_log, rng);
            let at = 4 + rng.below(14.min(packed.len() - 4));
            packed[at] = rng.next() as u8;
            packed
        }
        6 => {
            let mut packed = pack(&raw, window_log, rng);
            packed.truncate(rng.below(packed.len()));
            packed
        }
        _ => {
            // A window larger than the entry says.
            raw.resize(raw.len().max(1 << 18), 7);
            let packed = pack(&raw, 27, rng);
            section.store_packed(packed, announced, 10);
            return;
        }
    };
    section.store_packed(packed, announced, window_log);
}
