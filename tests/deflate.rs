//! Deflated data through `diff` and `patch`: what changes in them costs about what the change in their content costs, and
//! every byte comes back, whatever made them, wherever they lie.

mod common;

use blkpatch::delta::step::StepKind;
use blkpatch::info::Info;
use common::recoded::{bytes_of, made, round_trip, round_trip_of_members};
use common::{BLOCK, Rng, Scene, assert_same, gzip, lines, random};
use flate2::Compression;
use proptest::prelude::*;
use std::io::Write;

fn deflates(told: &Info) -> u64 {
    bytes_of(told, StepKind::Deflate)
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::new(9));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A zip archive of one file, up to where that ends.
fn zip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(content).unwrap();
    let mut archive = b"PK\x03\x04\x14\0\0\0\x08\0".to_vec();
    archive.extend([0; 16]);
    archive.extend([3, 0, 2, 0]);
    archive.extend(b"a.b\0\0");
    archive.extend(encoder.finish().unwrap());
    archive
}

/// Room for scratch, without which small images become literals.
fn with_room(image: Vec<u8>) -> Vec<u8> {
    let mut image = image;
    image.resize((1 << 20) + (1 << 19), 0);
    image
}

type Pack = fn(&[u8]) -> Vec<u8>;

#[test]
fn a_change_in_compressed_data_costs_what_changed_in_their_content() {
    let packs: [(&str, Pack); 5] = [
        ("gzip -1", |content| gzip(content, 1)),
        ("gzip -6", |content| gzip(content, 6)),
        ("gzip -9", |content| gzip(content, 9)),
        ("zlib", zlib),
        ("zip", zip),
    ];
    for (name, pack) in packs {
        let image =
            |seed, edition| with_room([random(seed, 3000), pack(&lines(1, 20_000, edition)), random(9, 5000)].concat());
        let told = round_trip(&image(2, 0), &image(3, 1));
        let packed = pack(&lines(1, 20_000, 1)).len() as u64;
        assert!(deflates(&told) > packed * 9 / 10, "{name}: {} of {packed} bytes", deflates(&told));
        assert!(told.delta_bytes < packed / 4, "{name}: {} for {packed} bytes", told.delta_bytes);
    }
}

/// Where it would not be shorter, nothing is unpacked.
#[test]
fn unrelated_compressed_data_stay_as_they_are() {
    let told = round_trip(&gzip(&lines(1, 9000, 0), 6), &gzip(&random(5, 200_000), 6));
    assert_eq!(deflates(&told), 0);
}

/// Blocks that are not compressed stand among others; a stream of one block with fixed codes; an end without padding.
#[test]
fn all_kinds_of_blocks_may_occur() {
    let image = |edition| {
        // Each flush leaves an empty block behind that is not compressed.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::new(6));
        for content in [lines(1, 6000, edition), random(4, 150_000), lines(2, 6000, edition)] {
            encoder.write_all(&content).unwrap();
            encoder.flush().unwrap();
        }
        with_room(
            [encoder.finish().unwrap(), gzip(&lines(3, 30, edition), 6), gzip(&lines(1, 3000, edition), 1)].concat(),
        )
    };
    // Also what stands behind the blocks that are not compressed.
    let parts = [lines(1, 6000, 7), lines(2, 6000, 7), lines(1, 3000, 7)].map(|part| gzip(&part, 6).len() as u64);
    let (found, all) = (deflates(&round_trip(&image(0), &image(7))), parts.iter().sum::<u64>());
    assert!(found > all * 4 / 5, "{found} of {all}");
}

/// One file over the other, moved by less than a block: what is made overlaps what it is made of.
#[test]
fn compressed_data_are_changed_in_their_own_place() {
    let image = |before: usize, edition| with_room([random(8, before), gzip(&lines(1, 60_000, edition), 6)].concat());
    for (old, new) in [(0, 0), (100, 5000), (5000, 100)] {
        let told = round_trip(&image(old, 0), &image(new, 3));
        assert!(deflates(&told) > 100_000, "from {old} to {new}: {}", deflates(&told));
    }
}

#[test]
fn a_file_in_pieces_is_changed_as_far_as_its_beginning_reaches() {
    let fragments = |packed: &[u8], between: u64| {
        let (head, tail) = packed.split_at(20 * BLOCK);
        [head, &random(between, BLOCK), tail].concat()
    };
    let [old, new] = [0, 1].map(|edition| gzip(&lines(1, 30_000, edition), 6));
    let told = round_trip(&fragments(&old, 5), &fragments(&new, 6));
    assert!(deflates(&told) > 10 * BLOCK as u64);
}

/// The file system's extents need not be side by side: what begins behind a piece is found all the same.
#[test]
fn files_in_pieces_among_each_other_are_changed_as_far_as_their_beginnings_reach() {
    let (mut sizes, mut rng) = (0, Rng::new(3));
    let cuts: Vec<(usize, usize)> = (0..30).map(|_| (1 + rng.below(4), rng.below(1000))).collect();
    let mut image = |edition| {
        sizes = 0;
        let mut pieces: Vec<(usize, Vec<u8>)> = Vec::new();
        for (i, (blocks, order)) in cuts.iter().enumerate() {
            let mut file = gzip(&lines(i as u64, 4000, edition), 6);
            file.resize(file.len().next_multiple_of(BLOCK), 0);
            let tail = file.split_off(blocks * BLOCK);
            sizes += file.len() as u64;
            pieces.extend([(*order, file), (1000 + *order * 7 % 1000, tail)]);
        }
        pieces.sort_by_key(|(order, _)| *order);
        with_room(pieces.into_iter().flat_map(|(_, bytes)| bytes).collect())
    };
    let found = deflates(&round_trip(&image(0), &image(1)));
    assert!(found > sizes * 9 / 10, "{found} of {sizes}");
}

/// Streams that begin with what is not compressed, and those that are flushed before a trial of their beginning is over.
#[test]
fn streams_that_begin_uncompressed_or_are_flushed_often_are_found() {
    let image = |edition| {
        let stored = gzip(&[random(4, 90_000), lines(1, 20_000, edition)].concat(), 6);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::new(6));
        for part in lines(2, 20_000, edition).chunks(12_000) {
            encoder.write_all(part).unwrap();
            encoder.flush().unwrap();
        }
        with_room([random(7, 5000), stored, encoder.finish().unwrap()].concat())
    };
    let all: u64 = [1, 2].map(|seed| gzip(&lines(seed, 20_000, 1), 6).len() as u64).iter().sum();
    let found = deflates(&round_trip(&image(0), &image(1)));
    assert!(found > all * 3 / 4, "{found} of {all}");
}

/// What is not compressed ends as if another stream began behind it, as happens by chance.
#[test]
fn streams_that_seem_to_begin_again_come_back() {
    let image = |edition| {
        let mut stored = random(4, 5000);
        stored.extend([0x78, 0x9c]);
        let len = (stored.len() as u16).to_le_bytes();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::new(6));
        encoder.write_all(&lines(1, 9000, edition)).unwrap();
        let header = [0x1fu8, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0];
        let parts = [&header[..], &len, &len.map(|byte| !byte), &stored, &encoder.finish().unwrap()];
        with_room([random(7, 3000), parts.concat()].concat())
    };
    let told = round_trip(&image(0), &image(1));
    assert!(deflates(&told) > 30_000, "{}", deflates(&told));
}

#[test]
fn the_delta_is_the_same_for_any_number_of_threads() {
    let image = |edition| (0..20).flat_map(|i| gzip(&lines(i, 2000, edition), 6)).collect::<Vec<u8>>();
    let scene = Scene::new();
    let deltas = [1, 2, 5].map(|threads| {
        made(&scene, &image(0), &image(1), threads);
        std::fs::read(scene.path("delta")).unwrap()
    });
    assert!(deltas[0] == deltas[1] && deltas[0] == deltas[2]);
}

#[test]
fn the_program_patches_compressed_data() {
    let scene = Scene::new();
    let image = |edition| [random(1, 70_000), gzip(&lines(1, 40_000, edition), 6)].concat();
    made(&scene, &image(0), &image(1), 2);
    let target = scene.write("target", &image(0));
    common::run(&[&"patch", &"--yes", &scene.path("delta"), &target]).code(0);
    assert_same(&std::fs::read(&target).unwrap(), &image(1), "the patched file");
}

/// Members of an archive: (seed, lines, level, kind, bytes before).
type Member = (u64, usize, u32, u8, usize);

fn archive(members: &[Member], edition: u64) -> Vec<u8> {
    let mut image = Vec::new();
    for (seed, count, level, kind, before) in members {
        image.extend(random(*seed, *before));
        let content = lines(*seed, *count, edition);
        match kind {
            0 => image.extend(zlib(&content)),
            1 => image.extend(zip(&content)),
            _ => image.extend(gzip(&content, *level)),
        }
    }
    image
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if common::long() { 2000 } else { 40 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_archive_round_trips(
        members in prop::collection::vec((0..5u64, 1..4000usize, 0..10u32, 0..5u8, 0..9000usize), 1..6),
        swaps in any::<u64>(),
        damage in prop::collection::vec(any::<(u16, u8)>(), 0..4),
    ) {
        round_trip_of_members(members, archive, swaps, &damage);
    }
}
