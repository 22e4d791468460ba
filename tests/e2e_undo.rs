//! `--undo`: what is overwritten is kept first, as a delta that goes back, from wherever the target is.

mod common;

use common::*;
use std::fs;
use std::path::Path;

/// The arguments of `patch --undo`.
fn patch_keeping(scene: &Scene, target: &Path) -> Out {
    run(&[&"patch", &"--undo", &scene.path("undo"), &scene.path("delta"), &target])
}

/// Asserts that `undo` is a delta from `new` to `old` that reads nothing.
#[track_caller]
fn assert_undo(scene: &Scene, old: &[u8], new: &[u8]) {
    let info = info(&scene.path("undo"));
    for (image, bytes) in [("old", new), ("new", old)] {
        assert_eq!(info[image]["bytes"], bytes.len() as u64, "{image}");
        assert_eq!(info[image]["crc32"], format!("{:08x}", crc32fast::hash(bytes)), "{image}");
        assert_eq!(info[image]["blake3"], blake3::hash(bytes).to_hex().as_str(), "{image}");
    }
    for field in ["source_bytes", "saves", "scratch_blocks", "barriers"] {
        assert_eq!(info_number(&info, field), 0, "{field}");
    }
}

/// Pairs of every kind: moved data with scratch; growing and shrinking, at block borders and elsewhere; only growing.
fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
    let (old, new) = busy_pair(MIB + MIB / 2);
    let longer = [&new[..], &random(5, 100_001)].concat();
    let much_longer = [&old[..], &random(6, MIB)].concat();
    let zeros = [&old[..], &vec![0; MIB / 2]].concat();
    let small = random(7, 3 * BLOCK + 17);
    let mut cleared = old.clone();
    cleared[MIB / 2..MIB].fill(0);
    let mut pairs = Vec::new();
    for (a, b) in [
        (&old, &new),
        (&old, &longer),
        (&old, &much_longer),
        (&old, &zeros),
        (&old, &cleared),
        (&longer, &zeros),
        (&small, &old),
        (&small, &small[..2 * BLOCK + 5].to_vec()),
    ] {
        pairs.push((a.clone(), b.clone()));
        pairs.push((b.clone(), a.clone()));
    }
    pairs
}

#[test]
fn there_and_back_on_a_file() {
    for (i, (old, new)) in pairs().into_iter().enumerate() {
        let scene = Scene::with_delta(&old, &new);
        let target = scene.write("target", &old);
        patch_keeping(&scene, &target).code(0).says("goes back");
        assert_same(&scene.read("target"), &new, &format!("pair {i}, patched"));
        assert_undo(&scene, &old, &new);
        // Where the file only grew, it begins with the image before, and only remains to be cut.
        let state = if new.starts_with(&old) { "new" } else { "old" };
        assert_state(&scene.path("undo"), &target, state);
        run(&[&"patch", &scene.path("undo"), &target]).code(0);
        assert_same(&scene.read("target"), &old, &format!("pair {i}, and back"));
        assert_state(&scene.path("undo"), &target, "new");
        // And there again: the file is still the undo delta of just this.
        patch_keeping(&scene, &target).code(0).says("undo is kept");
        assert_same(&scene.read("target"), &new, &format!("pair {i}, patched again"));
        patch_keeping(&scene, &target).code(0).says("nothing is overwritten");
        scene.holds_only(&["old", "new", "delta", "undo", "target"]);
    }
}

#[test]
fn there_and_back_on_a_device_that_is_longer() {
    if !loops("undo") {
        return;
    }
    for (i, (old, new)) in pairs().into_iter().enumerate() {
        let scene = Scene::with_delta(&old, &new);
        let len = (old.len().max(new.len()) + 9 * BLOCK).next_multiple_of(512);
        let before = [&old[..], &random(8, len - old.len())].concat();
        let device = Loop::attach(&scene.write("backing", &before));
        let said = patch_keeping(&scene, device.path()).code(0);
        assert_same(&device.read()[..new.len()], &new, &format!("pair {i}, patched"));
        if old.starts_with(&new) {
            said.says("nothing is overwritten");
            continue;
        }
        let longest = old.len().max(new.len());
        assert_undo(&scene, &before[..longest], &new);
        run(&[&"patch", &scene.path("undo"), &device.path()]).code(0);
        // Also what lay behind the old image, and was no part of it.
        assert_same(&device.read(), &before, &format!("pair {i}, and back"));
    }
}

#[test]
fn killed_at_any_moment_it_goes_straight_back() {
    if !loops("undo of an interrupted run") {
        return;
    }
    let (old, new) = busy_pair(4 * MIB);
    let scene = Scene::with_delta(&old, &new);
    let info = info(&scene.path("delta"));
    assert!(info_number(&info, "saves") > 0, "this pair needs scratch");
    let planned = info_number(&info, "written_bytes");
    let (undo, delta) = (scene.path("undo"), scene.path("delta"));
    let device = Loop::attach(&scene.write("backing", &old));
    let mut rng = Rng::new(91);
    let mut between = 0;
    for round in 0..scaled(12, 100) {
        let _ = fs::remove_file(&undo);
        let (start_at, share) = (device.bytes_written(), rng.next() % planned);
        let mut child = start(&[&"patch", &"--undo", &undo, &delta, &device.path()]);
        kill_when(&mut child, || device.bytes_written() >= start_at + share.max(1));
        let _ = child.kill();
        let said = finish(child, "patch --undo");
        let state = run(&[&"verify", &delta, &device.path()]).code;
        between += usize::from(state == 11);
        assert!(undo.exists(), "something was written, and there is no undo delta: {said:?}");
        if round % 3 == 2 {
            // Or on to the new image, which keeps the undo delta.
            patch_keeping(&scene, device.path()).code(0);
            assert_same(&device.read(), &new, "taken up with --undo");
        }
        // Which may be interrupted, too.
        let (start_at, share) = (device.bytes_written(), rng.next() % planned);
        let mut child = start(&[&"patch", &undo, &device.path()]);
        kill_when(&mut child, || device.bytes_written() >= start_at + share.max(1));
        let _ = child.kill();
        finish(child, "patch with the undo delta");
        run(&[&"patch", &undo, &device.path()]).code(0);
        assert_same(&device.read(), &old, "straight back");
        assert_state(&delta, device.path(), "old");
    }
    assert!(between > 0, "no kill left the device between the images");
}

#[test]
fn files_of_any_length_go_back_from_between() {
    for (old, new) in pairs() {
        let scene = Scene::with_delta(&old, &new);
        let target = scene.write("target", &old);
        patch_keeping(&scene, &target).code(0);
        // As interrupted runs leave it: the longer length, and some blocks of either image.
        let longest = old.len().max(new.len());
        for share in [0, 1, 3] {
            let mut between = old.clone();
            between.resize(longest, 0);
            let changed: Vec<usize> = (0..new.len().div_ceil(BLOCK))
                .filter(|i| {
                    let bytes = i * BLOCK..new.len().min((i + 1) * BLOCK);
                    old.get(bytes.clone()) != Some(&new[bytes])
                })
                .collect();
            for i in changed.iter().take(changed.len() * share / 3) {
                let bytes = i * BLOCK..new.len().min((i + 1) * BLOCK);
                between[bytes.clone()].copy_from_slice(&new[bytes]);
            }
            scene.write("target", &between);
            run(&[&"patch", &scene.path("undo"), &target]).code(0);
            assert_same(&scene.read("target"), &old, "back");
        }
    }
}

#[test]
fn a_run_that_is_taken_up_needs_the_undo_delta_of_the_first() {
    let scene = chain_scene();
    let (old, new) = (scene.read("old"), scene.read("new"));
    let target = scene.path("target");
    let mut between = old.clone();
    between[part(9)].copy_from_slice(&new[part(9)]);
    scene.write("target", &between);
    let before = Unwritten::look(&target);
    patch_keeping(&scene, &target).code(1).row("undo-too-late").says("Nothing was written");
    before.still(&target);
    scene.holds_only(&["old", "new", "delta", "target"]);
    // Another delta, the forward one, garbage, a truncated one: kept as they are, and refused.
    scene.write("target", &old);
    patch_keeping(&scene, &target).code(0);
    let undo = scene.read("undo");
    for wrong in [&scene.read("delta")[..], b"precious", b"", &undo[..undo.len() - 1]] {
        scene.write("undo", wrong);
        for content in [&old, &between] {
            scene.write("target", content);
            let before = Unwritten::look(&target);
            patch_keeping(&scene, &target)
                .code(1)
                .says("exists, and is not the undo delta")
                .says("Nothing was written");
            before.still(&target);
            assert_eq!(scene.read("undo"), wrong);
        }
    }
    // The right one.
    scene.write("undo", &undo);
    scene.write("target", &between);
    let kept = Unwritten::look(&scene.path("undo"));
    patch_keeping(&scene, &target).code(0).says("resuming").says("undo is kept");
    kept.still(&scene.path("undo"));
    assert_same(&scene.read("target"), &new, "taken up");
    run(&[&"patch", &scene.path("undo"), &target]).code(0);
    assert_same(&scene.read("target"), &old, "and back");
}

#[test]
fn what_was_there_is_restored_where_it_was_not_the_old_image() {
    let scene = chain_scene();
    let (mut before, new) = (scene.read("old"), scene.read("new"));
    // Part 9 is overwritten, and nobody reads it.
    before[part(9)][100..300].fill(0x5a);
    let target = scene.write("target", &before);
    patch_keeping(&scene, &target).code(0).says("only where the new one").says("not exactly the old image");
    assert_same(&scene.read("target"), &new, "patched");
    assert_undo(&scene, &before, &new);
    run(&[&"patch", &scene.path("undo"), &target]).code(0);
    assert_same(&scene.read("target"), &before, "and back to what was there");
    // Another device with the true old image: this file would not go back to that.
    let path = scene.path("target");
    scene.write("target", &scene.read("old"));
    let untouched = Unwritten::look(&path);
    patch_keeping(&scene, &target).code(1).says("would bring back something else");
    untouched.still(&path);
    // And one that differs from both in what is overwritten.
    let mut third = scene.read("old");
    third[part(9)][500..900].fill(0xa5);
    scene.write("target", &third);
    let untouched = Unwritten::look(&path);
    patch_keeping(&scene, &target).code(1).row("undo-not-this");
    untouched.still(&path);
}

#[test]
fn what_a_power_cut_tore_is_not_taken_for_what_was_there() {
    let old = random(81, 40 * BLOCK);
    let new = random(82, 40 * BLOCK);
    let scene = Scene::with_delta(&old, &new);
    let target = scene.write("target", &old);
    patch_keeping(&scene, &target).code(0);
    // The only batch, half written by a run with '--undo': its file is good.
    let torn =
        [&new[..BLOCK], &old[BLOCK..2 * BLOCK], &new[2 * BLOCK..7 * BLOCK + 512], &old[7 * BLOCK + 512..]].concat();
    scene.write("target", &torn);
    patch_keeping(&scene, &target).code(0).says("is kept");
    assert_same(&scene.read("target"), &new, "taken up");
    run(&[&"patch", &scene.path("undo"), &target]).code(0);
    assert_same(&scene.read("target"), &old, "and back");
    // By a run without: what it overwrote is gone.
    std::fs::remove_file(scene.path("undo")).unwrap();
    scene.write("target", &torn);
    patch_keeping(&scene, &target).code(1).row("undo-too-late").says("Nothing was written");
    assert_same(&scene.read("target"), &torn, "refused");
    run(&[&"patch", &scene.path("delta"), &target]).code(0);
}

#[test]
fn every_way_to_verify_can_be_undone() {
    for mode in ["all", "full", "touched"] {
        let scene = chain_scene();
        let (target, undo) = (scene.path("target"), scene.path("undo"));
        run(&[&"patch", &"--verify", &mode, &"--undo", &undo, &scene.path("delta"), &target]).code(0);
        assert_undo(&scene, &scene.read("old"), &scene.read("new"));
        run(&[&"patch", &"--verify", &mode, &undo, &target]).code(0);
        assert_same(&scene.read("target"), &scene.read("old"), mode);
    }
}

#[test]
fn a_dry_run_writes_no_undo_delta_and_tells_what_would_be_refused() {
    let scene = chain_scene();
    let (target, undo) = (scene.path("target"), scene.path("undo"));
    let dry = || run(&[&"patch", &"--dry-run", &"--undo", &undo, &scene.path("delta"), &target]);
    let before = Unwritten::look(&target);
    dry().code(0).says("would be written");
    scene.holds_only(&["old", "new", "delta", "target"]);
    scene.write("undo", b"precious");
    dry().code(1).says("exists, and is not the undo delta");
    before.still(&target);
}

#[test]
fn a_file_of_a_length_between_has_nothing_to_go_back_to() {
    let old = random(83, 40 * BLOCK);
    let mut new = old[..20 * BLOCK].to_vec();
    new[3 * BLOCK..5 * BLOCK].copy_from_slice(&random(84, 2 * BLOCK));
    let scene = Scene::with_delta(&old, &new);
    let target = scene.write("target", &old[..30 * BLOCK]);
    let before = Unwritten::look(&target);
    patch_keeping(&scene, &target).code(1).row("undo-length").says("Nothing was written");
    before.still(&target);
}

#[test]
fn an_undo_delta_that_cannot_be_written_ends_it_before_the_first_write() {
    let scene = chain_scene();
    let target = scene.path("target");
    let before = Unwritten::look(&target);
    let refused = |undo: &Path, text: &str| {
        let said =
            run(&[&"patch", &"--undo", &undo, &scene.path("delta"), &target]).code(1).says("Nothing was written");
        before.still(&target);
        said.says(text)
    };
    refused(&target, "lies on the target itself");
    refused(&scene.path("delta"), "exists, and is not the undo delta");
    refused(Path::new("/dev/full"), "is not a file");
    refused(scene.folder(), "is not a file");
    refused(&scene.path("nowhere").join("undo"), "No such file");
    refused(Path::new("-"), "standard output");
    scene.holds_only(&["old", "new", "delta", "target"]);
    if !loops("undo on a full disk") || !ext4("undo on a full disk") {
        return;
    }
    // Two parts and a half of random bytes do not fit what is left.
    let small = scene.path("small");
    tool("mke2fs", &[&"-q", &"-t", &"ext2", &"-b", &"1024", &small, &"256K"]);
    let device = Loop::attach(&small);
    let at = scene.path("mounted");
    let mount = Mount::new("ext2", device.path(), &at, "rw");
    fs::write(at.join("filler"), random(9, 180_000)).unwrap();
    refused(&at.join("undo"), "No space left");
    let names: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "lost+found and the filler: {names:?}");
    drop(mount);
}
