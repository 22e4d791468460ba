//! Blocks of zstd and chunks of LZMA2 through `diff` and `patch`: what changes in them costs about what the change in their content costs, and
//! every byte comes back, whatever made them, wherever they lie.

mod common;

use blkpatch::delta::step::StepKind;
use blkpatch::info::Info;
use common::recoded::{bytes_of, made, round_trip, round_trip_of_members};
use common::{BLOCK, MIB, Scene, assert_same, gzip, lines, random, xz, zstd};
use proptest::prelude::*;

fn packs(told: &Info) -> u64 {
    bytes_of(told, StepKind::PackZstd)
}

/// Room for scratch, without which small images become literals.
fn with_room(mut image: Vec<u8>) -> Vec<u8> {
    image.resize(image.len() + MIB / 2, 0);
    image
}

/// As file systems have them: pieces of the content, each a frame of its own.
fn in_frames(content: &[u8], piece: usize, level: i32) -> Vec<u8> {
    content.chunks(piece).flat_map(|piece| zstd(piece, level)).collect()
}

#[test]
fn a_change_in_compressed_data_costs_what_changed_in_their_content() {
    for (piece, level) in [(128 << 10, 3), (128 << 10, 15), (64 << 10, 1), (32 << 10, 19), (4 * MIB, 3), (4 * MIB, 19)]
    {
        let packed = |edition| in_frames(&lines(1, 40_000, edition), piece, level);
        let image = |seed, edition| with_room([random(seed, 3000), packed(edition), random(9, 5000)].concat());
        let told = round_trip(&image(2, 0), &image(3, 1));
        let all = packed(1).len() as u64;
        assert!(packs(&told) > all * 3 / 4, "level {level}, {piece}: {} of {all} bytes", packs(&told));
        assert!(told.delta_bytes < all / 2, "level {level}, {piece}: {} for {all} bytes", told.delta_bytes);
    }
}

/// As squashfs has them: pieces of the content, each a stream of its own.
fn in_streams(content: &[u8], piece: usize, preset: u32) -> Vec<u8> {
    content.chunks(piece).flat_map(|piece| xz(piece, preset)).collect()
}

/// Less than with others: how xz divides its content into matches depends on much of what was before.
#[test]
fn a_change_in_xz_costs_less_than_what_it_changes() {
    for (piece, preset) in [(128 << 10, 6), (128 << 10, 9), (64 << 10, 0), (256 << 10, 6)] {
        let packed = |edition| in_streams(&lines(1, 20_000, edition), piece, preset);
        let image = |seed, edition| with_room([random(seed, 3000), packed(edition), random(9, 5000)].concat());
        let told = round_trip(&image(2, 0), &image(3, 1));
        let (all, found) = (packed(1).len() as u64, bytes_of(&told, StepKind::PackLzma));
        assert!(found > all * 3 / 4, "preset {preset}, {piece}: {found} of {all} bytes");
        assert!(told.delta_bytes < all * 4 / 5, "preset {preset}, {piece}: {} for {all} bytes", told.delta_bytes);
    }
}

/// One whose content is larger than texts may stand for stays as it is, as do chunks that are not compressed.
#[test]
fn xz_of_other_kinds_stays_as_it_is() {
    let image = |edition| {
        let content = [random(3, 90_000), lines(1, 3000, edition)].concat();
        with_room([xz(&lines(1, 30_000, edition), 6), xz(&content, 6), xz(&[], 6), xz(&random(5, 9000), 6)].concat())
    };
    let told = round_trip(&image(0), &image(1));
    assert_eq!(bytes_of(&told, StepKind::PackLzma), 0);
}

/// The first blocks of a frame stay what and where they are, those that use their codes change; among others that do.
#[test]
fn what_changes_only_from_some_block_on_is_made_whole() {
    for level in [1, 3, 6, 15, 19] {
        let image = |edition| {
            let mut image = Vec::new();
            for part in 0..6 {
                let content = [lines(part, 9000, 0), lines(part + 9, 9000, edition), lines(part, 4000, 0)].concat();
                image.extend(zstd(&content, level));
                image.resize(image.len().next_multiple_of(BLOCK) + BLOCK, 0);
            }
            with_room(image)
        };
        round_trip(&image(0), &image(1));
    }
}

/// Where it would not be shorter, nothing is unpacked.
#[test]
fn unrelated_compressed_data_stay_as_they_are() {
    let told = round_trip(&zstd(&lines(1, 9000, 0), 6), &zstd(&random(5, 200_000), 6));
    assert_eq!(packs(&told), 0);
}

/// In one image: each is found as what it is, also side by side.
#[test]
fn compressed_data_of_all_kinds_may_lie_side_by_side() {
    let image = |edition| {
        let parts = (0..6).flat_map(|i| {
            let packed = [gzip(&lines(i, 3000, edition), 6), zstd(&lines(i + 9, 3000, edition), 9)];
            [&packed[..], &[xz(&lines(i + 20, 3000, edition), 6)]].concat()
        });
        with_room(parts.flatten().collect())
    };
    let told = round_trip(&image(0), &image(1));
    for kind in [StepKind::Deflate, StepKind::PackZstd, StepKind::PackLzma] {
        assert!(bytes_of(&told, kind) > 50_000, "{}: {}", kind.name(), bytes_of(&told, kind));
    }
}

/// One file over the other, moved by less than a block: what is made overlaps what it is made of.
#[test]
fn compressed_data_are_changed_in_their_own_place() {
    let image = |before: usize, edition| {
        with_room([random(8, before), in_frames(&lines(1, 60_000, edition), 128 << 10, 6)].concat())
    };
    for (old, new) in [(0, 0), (100, 5000), (5000, 100)] {
        let told = round_trip(&image(old, 0), &image(new, 3));
        assert!(packs(&told) > 100_000, "from {old} to {new}: {}", packs(&told));
    }
}

/// Blocks that are not compressed, or stand for one byte again and again, among others; a frame that is broken off, and one
/// that begins behind its last whole block.
#[test]
fn what_has_no_text_stays_as_it_is() {
    let image = |edition| {
        let content = [lines(1, 9000, edition), random(4, 300_000), vec![7; 400_000], lines(2, 9000, edition)].concat();
        let (whole, broken) = (zstd(&content, 6), zstd(&lines(3, 20_000, edition), 6));
        let broken = &broken[..broken.len() * 4 / 5];
        with_room([&whole, broken, &zstd(&lines(5, 9000, edition), 6)[..]].concat())
    };
    let all = zstd(&lines(1, 9000, 7), 6).len() as u64 * 3;
    let found = packs(&round_trip(&image(0), &image(7)));
    assert!(found > all * 3 / 4, "{found} of {all}");
}

#[test]
fn the_delta_is_the_same_for_any_number_of_threads() {
    let image = |edition| (0..20).flat_map(|i| zstd(&lines(i, 2000, edition), 6)).collect::<Vec<u8>>();
    let scene = Scene::new();
    let deltas = [1, 2, 5].map(|threads| {
        assert!(packs(&made(&scene, &image(0), &image(1), threads)) > 0);
        std::fs::read(scene.path("delta")).unwrap()
    });
    assert!(deltas[0] == deltas[1] && deltas[0] == deltas[2]);
}

#[test]
fn the_program_patches_compressed_data() {
    let scene = Scene::new();
    let image = |edition| [random(1, 70_000), zstd(&lines(1, 40_000, edition), 6)].concat();
    assert!(packs(&made(&scene, &image(0), &image(1), 2)) > 0);
    let target = scene.write("target", &image(0));
    common::run(&[&"patch", &"--yes", &scene.path("delta"), &target]).code(0);
    assert_same(&std::fs::read(&target).unwrap(), &image(1), "the patched file");
}

/// Members of an archive: (seed, lines, level, or less than -10 for xz, bytes of a frame's content in blocks, bytes before).
type Member = (u64, usize, i32, usize, usize);

fn archive(members: &[Member], edition: u64) -> Vec<u8> {
    let mut image = Vec::new();
    for (seed, count, level, piece, before) in members {
        image.extend(random(*seed, *before));
        let content = lines(*seed, *count, edition);
        match u32::try_from(-11 - level) {
            Ok(preset) => image.extend(in_streams(&content, piece * BLOCK, preset)),
            Err(_) => image.extend(in_frames(&content, piece * BLOCK, *level)),
        }
    }
    image
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if common::long() { 2000 } else { 40 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_archive_round_trips(
        members in prop::collection::vec((0..5u64, 1..9000usize, prop_oneof![-3..20i32, -20..-10i32], 1..200usize, 0..9000usize), 1..6),
        swaps in any::<u64>(),
        damage in prop::collection::vec(any::<(u16, u8)>(), 0..4),
    ) {
        round_trip_of_members(members, archive, swaps, &damage);
    }
}
