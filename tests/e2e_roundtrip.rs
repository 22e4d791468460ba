//! Round trips of adversarial pairs through the built binary, on files and on loop devices.

mod common;

use common::*;
use rustix::fs::SeekFrom;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Everything that must hold of a pair, on a file and on a loop device that is larger than the image.
#[track_caller]
fn round_trip(test: &str, old: &[u8], new: &[u8]) {
    round_trip_with(test, old, new, loops(test));
}

#[track_caller]
fn round_trip_with(test: &str, old: &[u8], new: &[u8], on_loop: bool) {
    let scene = Scene::with_delta(old, new);
    scene.holds_only(&["old", "new", "delta"]);
    assert_same(&scene.read("old"), old, "diff changed OLD");
    assert_same(&scene.read("new"), new, "diff changed NEW");
    let planned = planned_bytes(&scene, old, new);
    on_file(&scene, old, new, planned);
    if on_loop {
        let longest = old.len().max(new.len());
        // Exactly the image, as far as a device can be; then with room behind it.
        for size in [longest.next_multiple_of(512).max(512), longest.next_multiple_of(4096) + 5 * 4096 + 512] {
            on_device(&scene, old, new, planned, size, &[]);
        }
        // Sectors of 4096 bytes: nothing smaller can be read or written.
        on_device(&scene, old, new, planned, longest.next_multiple_of(4096) + 4096, &["--sector-size", "4096"]);
    }
    eprintln!("{test}: delta {} bytes, {planned} bytes to write", scene.read("delta").len());
}

/// What `info` announces, held against what the images need: the changed blocks and the scratch, nothing else.
#[track_caller]
fn planned_bytes(scene: &Scene, old: &[u8], new: &[u8]) -> u64 {
    let info = info(&scene.path("delta"));
    let (changed, scratch) = (info_number(&info, "changed_blocks"), info_number(&info, "scratch_blocks"));
    let (least, most) = (changed_blocks(old, new), changed_blocks(old, new) + zero_blocks(old, new).min(scratch));
    assert!((least..=most).contains(&changed), "{changed} blocks get their final content, {least} to {most} change");
    let written = info_number(&info, "written_bytes");
    // Whole blocks, but for the image's last one.
    let short = (BLOCK - 1) as u64 - (new.len() as u64 + BLOCK as u64 - 1) % BLOCK as u64;
    let blocks = (changed + scratch) * BLOCK as u64;
    assert!(written == blocks || written + short == blocks, "{written} bytes announced for {blocks}, {short} short");
    written
}

/// Where nothing of the old image lies behind the start of the new one, its device holds both.
fn state_before(old: &[u8], new: &[u8]) -> &'static str {
    if old.starts_with(new) { "new" } else { "old" }
}

#[track_caller]
fn on_file(scene: &Scene, old: &[u8], new: &[u8], planned: u64) {
    let (delta, target) = (scene.path("delta"), scene.write("target", old));
    let before = Unwritten::look(&target);
    // A file whose tail is to be cut off holds the old image, not the new: `files_to_be_cut_are_not_called_new`.
    if old == new || !old.starts_with(new) {
        assert_state(&delta, &target, state_before(old, new));
    }
    let dry = run(&[&"patch", &"--dry-run", &delta, &target]).code(0);
    before.still(&target);
    scene.holds_only(&["old", "new", "delta", "target"]);

    let done = run(&[&"patch", &delta, &target]).code(0);
    assert_same(&fs::read(&target).unwrap(), new, "the patched file");
    if state_before(old, new) == "old" {
        assert!(dry.err.contains("would be written"), "{}", dry.err);
        assert_eq!(done.written().0, planned, "bytes written to the file");
    }
    let patched = Unwritten::look(&target);
    assert_state(&delta, &target, "new");
    run(&[&"patch", &delta, &target]).code(0).says("already holds the new image").says("nothing was written");
    patched.still(&target);
    scene.holds_only(&["old", "new", "delta", "target"]);
    assert_same(&scene.read("old"), old, "OLD");
}

#[track_caller]
fn on_device(scene: &Scene, old: &[u8], new: &[u8], planned: u64, size: usize, options: &[&str]) {
    // Behind the old image lies anything.
    let mut bytes = random(0xDE1, size);
    bytes[..old.len()].copy_from_slice(old);
    let backing = scene.write("backing", &bytes);
    let device = Loop::attach_with(&backing, options);
    let (delta, target) = (scene.path("delta"), device.path());
    assert_state(&delta, target, state_before(old, new));
    run(&[&"patch", &"--dry-run", &delta, &target]).code(0);
    assert_eq!(device.bytes_written(), 0, "a dry run wrote to the device");

    let done = run(&[&"patch", &delta, &target]).code(0);
    let counted = device.bytes_written();
    let seen = device.read();
    assert_same(&seen[..new.len()], new, "the patched device");
    assert_same(&seen[new.len()..], &bytes[new.len()..], "the device behind the new image");
    if state_before(old, new) == "old" {
        assert_eq!(done.written().0, planned, "bytes written, as patch says");
        // The image's last sector is written whole.
        assert!(
            (planned..planned + 4096).contains(&counted),
            "the kernel counts {counted} bytes, announced: {planned}"
        );
    }
    assert_state(&delta, target, "new");
    run(&[&"patch", &delta, &target]).code(0).says("already holds the new image").says("nothing was written");
    assert_eq!(device.bytes_written(), counted, "the second run wrote to the device");
    drop(device);
    assert_same(&fs::read(&backing).unwrap(), &seen, "the file behind the device");
    fs::remove_file(&backing).unwrap();
    scene.holds_only(&["old", "new", "delta", "target"]);
}

// ------------------------------------------------------------------------------------------------ moved data

#[test]
fn a_random_permutation_of_blocks() {
    let blocks = scaled(600, 32_000);
    let old = random(1, blocks * BLOCK);
    let new = reorder(&old, &Rng::new(2).permutation(blocks));
    round_trip("a random permutation", &old, &new);
}

#[test]
fn everything_shifted_by_a_byte_a_sector_and_a_mebibyte_either_way() {
    let len = scaled(3 * MIB / 2, 64 * MIB);
    let old = random(3, len);
    for by in [1, 512, MIB] {
        let (mut later, mut earlier) = (random(4, by), old[by..].to_vec());
        later.extend_from_slice(&old[..len - by]);
        earlier.extend(random(5, by));
        round_trip(&format!("shifted by {by} towards the end"), &old, &later);
        round_trip(&format!("shifted by {by} towards the start"), &old, &earlier);
    }
}

#[test]
fn bytes_inserted_at_the_start_or_removed_there() {
    let old = random(6, 700_000);
    for by in [1, 4095, 4096, 5000] {
        let mut longer = random(7, by);
        longer.extend_from_slice(&old);
        round_trip(&format!("{by} bytes inserted"), &old, &longer);
        round_trip(&format!("{by} bytes removed"), &longer, &old);
    }
}

#[test]
fn two_halves_swapped() {
    let len = scaled(MIB, 256 * MIB);
    let old = random(8, len);
    round_trip("two halves swapped", &old, &[&old[len / 2..], &old[..len / 2]].concat());
    // Halves that are not whole blocks.
    let cut = len / 2 + 777;
    round_trip("two parts swapped", &old, &[&old[cut..], &old[..cut]].concat());
}

#[test]
fn all_blocks_rotated_by_one() {
    let blocks = scaled(300, 32_000);
    let old = random(9, blocks * BLOCK);
    let last = (blocks - 1) * BLOCK;
    round_trip("rotated by one", &old, &[&old[last..], &old[..last]].concat());
    round_trip("rotated back by one", &old, &[&old[BLOCK..], &old[..BLOCK]].concat());
}

#[test]
fn blocks_in_reverse_order() {
    let old = random(10, 257 * BLOCK);
    let order: Vec<usize> = (0..257).rev().collect();
    round_trip("reversed", &old, &reorder(&old, &order));
}

#[test]
fn every_block_slightly_changed_in_place_and_moved() {
    // Copies with a difference: each block is built on itself, or on its neighbour.
    let old = random(11, 200 * BLOCK);
    let mut new = old.clone();
    new.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(3));
    round_trip("slightly changed in place", &old, &new);
    new.rotate_right(3 * BLOCK + 100);
    round_trip("slightly changed and moved", &old, &new);
}

#[test]
fn one_block_repeated_everywhere_and_everything_repeating_one_block() {
    let old = random(12, 100 * BLOCK);
    let same = old[block(50)].repeat(100);
    round_trip("one block everywhere", &old, &same);
    round_trip("from one block everywhere", &same, &old);
}

// ------------------------------------------------------------------------------------------ lengths and zeros

#[test]
fn identical_images() {
    let old = random(13, 50 * BLOCK + 17);
    round_trip("identical", &old, &old);
    round_trip("identical, one byte", b"x", b"x");
    round_trip("both empty", b"", b"");
}

#[test]
fn from_and_to_the_empty_image() {
    for new in [vec![1], vec![0; 5000], random(14, 5000), vec![0; 3 * MIB + 5]] {
        round_trip(&format!("empty to {} bytes", new.len()), b"", &new);
        round_trip(&format!("{} bytes to empty", new.len()), &new, b"");
    }
}

#[test]
fn from_the_empty_image_by_a_large_delta() {
    // A delta large enough to carry the region table.
    round_trip("empty to 300,000 random bytes", b"", &random(15, 300_000));
}

#[test]
fn lengths_that_are_no_multiples_of_a_block_or_a_sector() {
    let data = random(16, 2 * MIB + 5000);
    for (old, new) in [
        (1, 2),
        (2, 1),
        (511, 513),
        (4095, 4097),
        (4097, 4095),
        (4096, 4097),
        (12_345, 12_345),
        (MIB - 1, MIB + 1),
        (MIB + 1, MIB - 1),
        (2 * MIB + 777, 2 * MIB + 777),
    ] {
        // The new image starts elsewhere in the same data: all of it moves, by a number of bytes that is odd.
        round_trip(&format!("{old} to {new} bytes"), &data[..old], &data[333..333 + new]);
    }
}

#[test]
fn a_new_image_that_is_longer_or_shorter() {
    let data = random(17, MIB);
    let short = &data[..600_000];
    let moved = [&data[300_000..], &data[..300_000]].concat();
    round_trip("longer, the start kept", short, &data);
    round_trip("longer, moved", short, &moved);
    round_trip("shorter, moved", &moved, short);
    // What lies behind the new end is needed until the last.
    round_trip("shorter, only the tail kept", &data, &data[700_001..]);
    round_trip("longer, zeros at the end", short, &[short, &[0; 300_000]].concat());
    round_trip("longer, zeros and an end", short, &[short, &[0; 300_000], b"end"].concat());
}

#[test]
fn all_zeros_to_random_and_back() {
    let (zeros, noise) = (vec![0; MIB + 77], random(18, MIB + 77));
    round_trip("zeros to random", &zeros, &noise);
    round_trip("random to zeros", &noise, &zeros);
    let mut spots = zeros.clone();
    spots[500_000..500_010].fill(7);
    round_trip("zeros to a few bytes", &zeros, &spots);
    round_trip("a few bytes to zeros", &spots, &zeros);
}

#[test]
fn cycles_with_no_scratch_but_zeros() {
    // Everything else is unchanged: scratch is to be found among zeros, which are zeros again at the end.
    let mut old = random(19, 64 * BLOCK);
    old[block(20).start..block(29).end].fill(0);
    let mut new = old.clone();
    new[block(3)].copy_from_slice(&old[block(60)]);
    new[block(60)].copy_from_slice(&old[block(3)]);
    new[block(40)].copy_from_slice(&old[block(41)]);
    new[block(41)].copy_from_slice(&old[block(40)]);
    round_trip("two swaps beside zeros", &old, &new);
    // And where there are none.
    old[block(20).start..block(29).end].copy_from_slice(&random(20, 10 * BLOCK));
    new[block(20).start..block(29).end].copy_from_slice(&random(20, 10 * BLOCK));
    round_trip("two swaps without scratch", &old, &new);
}

#[test]
fn files_to_be_cut_are_not_called_new() {
    // The new image is the start of the old one. A device holds both at once; a file has a length, and is yet to be cut.
    let old = random(21, 10 * BLOCK);
    let scene = Scene::with_delta(&old, &old[..25_000]);
    let target = scene.write("target", &old);
    let said = run(&[&"verify", &scene.path("delta"), &target]);
    run(&[&"patch", &scene.path("delta"), &target]).code(0);
    assert_same(&scene.read("target"), &old[..25_000], "the cut file");
    assert_eq!(said.out.trim(), "old", "what verify said of the file before it was cut");
}

// --------------------------------------------------------------------------------------------- sparse and real

#[test]
fn a_huge_sparse_file_with_a_few_changes() {
    // Offsets beyond 32 bits. At full size the 64 GiB of the issue.
    let len = scaled((4 << 30) + 3 * MIB + 5, 64 << 30) as u64;
    let scene = Scene::new();
    let (old, new, delta, target) = (scene.path("old"), scene.path("new"), scene.path("delta"), scene.path("target"));
    let old_data = [(0, random(22, 10_000)), (len / 2 + 123, random(23, 20_000)), (len - 9_000, random(24, 9_000))];
    let moved = old_data[1].1.clone();
    let new_data = [(0, random(25, 5_000)), (len / 3, moved), (len - 5_000, random(26, 4_000))];
    let make = |path: &Path, parts: &[&[(u64, Vec<u8>)]]| {
        let file = File::create(path).unwrap();
        file.set_len(len).unwrap();
        parts.iter().copied().flatten().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
    };
    make(&old, &[&old_data]);
    make(&target, &[&old_data]);
    make(&new, &[&old_data, &new_data]);
    run(&[&"diff", &old, &new, &"-o", &delta]).code(0);
    assert!(fs::metadata(&delta).unwrap().len() < 12_000, "what moved is found, and holes cost nothing");
    // Reading all of the target is for the full size.
    let modes: &[&str] = if long() { &["full", "all", "touched"] } else { &["touched"] };
    for mode in modes {
        make(&target, &[&old_data]);
        run(&[&"patch", &"--verify", mode, &delta, &target]).code(0);
        assert_sparse_same(&target, &new);
        run(&[&"patch", &"--verify", mode, &delta, &target]).code(0).says("already holds the new image");
    }
    scene.holds_only(&["old", "new", "delta", "target"]);
    let on_disk = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&target).unwrap()) * 512;
    assert!(on_disk < 400_000, "the target takes {on_disk} bytes: it was not kept sparse");
}

#[test]
fn a_sparse_file_read_whole() {
    let len = scaled(40 * MIB, 4 << 30) as u64;
    let scene = Scene::new();
    for name in ["old", "new", "target"] {
        let file = File::create(scene.path(name)).unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(&random(27, 8192), len / 2).unwrap();
        if name == "new" {
            file.write_all_at(&random(28, 8192), len / 3).unwrap();
        }
    }
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &delta]).code(0);
    assert_state(&delta, &target, "old");
    run(&[&"patch", &"--verify", &"all", &delta, &target]).code(0);
    assert_sparse_same(&target, &scene.path("new"));
    assert_state(&delta, &target, "new");
}

/// Compares two sparse files without reading what is a hole in both.
#[track_caller]
fn assert_sparse_same(found: &Path, expected: &Path) {
    let files = [found, expected].map(|path| OpenOptions::new().read(true).open(path).unwrap());
    let len = files[0].metadata().unwrap().len();
    assert_eq!(len, files[1].metadata().unwrap().len(), "lengths");
    for file in &files {
        let mut at = 0;
        while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
            let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
            assert!(end - start < 1 << 28, "not sparse");
            let mut bytes = [vec![0; (end - start) as usize], vec![0; (end - start) as usize]];
            files.iter().zip(&mut bytes).for_each(|(file, bytes)| file.read_exact_at(bytes, start).unwrap());
            assert_same(&bytes[0], &bytes[1], &format!("the data from {start}"));
            at = end;
        }
    }
}

#[test]
fn ext4_images_before_and_after_an_update() {
    if !ext4("ext4 images") {
        return;
    }
    let scene = Scene::new();
    let tree = scene.path("tree");
    fs::create_dir_all(tree.join("usr/lib/deep/er")).unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    for i in 0..40u64 {
        fs::write(tree.join(format!("usr/lib/module{i}.so")), random(100 + i, 3_000 + 2_011 * i as usize)).unwrap();
        fs::write(tree.join(format!("etc/{i}.conf")), format!("setting = {i}\n").repeat(20 + i as usize)).unwrap();
    }
    fs::write(tree.join("usr/lib/deep/er/big"), random(200, MIB)).unwrap();
    let make = |name: &str| {
        let image = scene.path(name);
        let fixed = "hash_seed=7b2a3c41-55ee-4b0f-9d64-0c5f3a9c1f11,lazy_itable_init=0,lazy_journal_init=0";
        let uuid = "7b2a3c41-55ee-4b0f-9d64-0c5f3a9c1f10";
        tool(
            "mke2fs",
            &[&"-q", &"-t", &"ext4", &"-b", &"4096", &"-U", &uuid, &"-E", &fixed, &"-d", &tree, &image, &"12M"],
        );
        fs::read(&image).unwrap()
    };
    let old = make("before");
    // An update: a file grows (what follows moves), one is edited, one goes, one comes, one is renamed.
    let grown = [random(201, 50_000), fs::read(tree.join("usr/lib/module3.so")).unwrap()].concat();
    fs::write(tree.join("usr/lib/module3.so"), grown).unwrap();
    fs::write(tree.join("etc/7.conf"), "setting = seven\n").unwrap();
    fs::remove_file(tree.join("usr/lib/module20.so")).unwrap();
    fs::write(tree.join("usr/lib/new.so"), random(202, 120_000)).unwrap();
    fs::rename(tree.join("usr/lib/deep/er/big"), tree.join("usr/lib/deep/large")).unwrap();
    let new = make("after");
    assert!(old != new && changed_blocks(&old, &new) > 100, "the update moves data");
    round_trip("ext4 images", &old, &new);
    let scene = Scene::with_delta(&old, &new);
    let delta = scene.read("delta").len();
    assert!(delta < 220_000, "what moved is found: the delta takes {delta} bytes for 170,000 of new data");
    let target = scene.write("target", &old);
    run(&[&"patch", &scene.path("delta"), &target]).code(0);
    tool("e2fsck", &[&"-fn", &target]);
}
