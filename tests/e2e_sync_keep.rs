//! `sync --undo` and `sync --save-delta`: what is overwritten, and what is written, is kept as deltas.

mod common;

use common::*;
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// Images to write, and what targets hold before: edits, zeros, another length, ends within a block or a part.
fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
    let before = random(31, 2 * MIB + 3 * BLOCK + 700);
    let mut image = before.clone();
    for i in [0, 5, 6, 200, 255, 256, 400, 514] {
        image[i * BLOCK + 9] ^= 1;
    }
    image[300 * BLOCK..350 * BLOCK].fill(0);
    image[MIB + 7 * BLOCK..MIB + 9 * BLOCK].fill(0);
    let cut = |len: usize| image[..len].to_vec();
    let mut longer = image.clone();
    longer.resize(4 * MIB + 5, 0);
    longer[3 * MIB + 77] = 1;
    let mut pairs = vec![(before.clone(), before.clone()), (before.clone(), image.clone())];
    for other in [cut(MIB), cut(2 * MIB), cut(MIB + 5), cut(700), cut(2 * MIB + 2 * BLOCK + 1), longer] {
        pairs.push((before.clone(), other.clone()));
        pairs.push((other, before.clone()));
    }
    pairs.push((cut(700), cut(500)));
    pairs.push((cut(500), cut(700)));
    pairs.push((cut(MIB), vec![0; MIB]));
    // Chunks of zeros in both, several in a row.
    let sparse = |last: u8| [cut(5), vec![0; 5 * MIB], vec![last; BLOCK], vec![0; 3 * MIB]].concat();
    pairs.push((sparse(1), sparse(2)));
    pairs
}

/// Asserts what a delta goes from and to.
#[track_caller]
fn assert_ids(delta: &Path, old: &[u8], new: &[u8]) {
    let info = info(delta);
    for (image, bytes) in [("old", old), ("new", new)] {
        assert_eq!(info[image]["bytes"], bytes.len() as u64, "{image}");
        assert_eq!(info[image]["crc32"], format!("{:08x}", crc32fast::hash(bytes)), "{image}");
        assert_eq!(info[image]["blake3"], blake3::hash(bytes).to_hex().as_str(), "{image}");
    }
    assert_eq!(info_number(&info, "source_bytes"), 0);
}

#[test]
fn files_go_back_and_others_follow() {
    for (i, (before, image)) in pairs().into_iter().enumerate() {
        let scene = Scene::new();
        let (path, target) = (scene.write("image", &image), scene.write("target", &before));
        let (undo, delta) = (scene.path("undo"), scene.path("delta"));
        run(&[&"sync", &"--undo", &undo, &"--save-delta", &delta, &path, &target]).code(0);
        assert_same(&scene.read("target"), &image, &format!("pair {i}"));
        assert_ids(&delta, &before, &image);
        let other = scene.write("other", &before);
        run(&[&"patch", &delta, &other]).code(0);
        assert_same(&scene.read("other"), &image, &format!("pair {i}, another target"));
        if before == image {
            assert!(!undo.exists());
            continue;
        }
        assert_ids(&undo, &image, &before);
        run(&[&"patch", &undo, &target]).code(0);
        assert_same(&scene.read("target"), &before, &format!("pair {i}, and back"));
        // The file is there, and right: it is kept.
        run(&[&"sync", &"--undo", &undo, &path, &target]).code(0).says("is kept");
        assert_same(&scene.read("target"), &image, &format!("pair {i}, again"));
    }
}

#[test]
fn streams_and_dry_runs_yield_the_same_delta() {
    for (before, image) in pairs() {
        let scene = Scene::new();
        let (path, target) = (scene.write("image", &image), scene.write("target", &before));
        let packed = zstd::stream::encode_all(&image[..], 1).unwrap();
        let packed = scene.write("image.zst", &packed);
        let untouched = Unwritten::look(&target);
        let name = |name: &str| scene.path(name);
        run(&[&"sync", &"--dry-run", &"--save-delta", &name("dry"), &path, &target]).code(0);
        run(&[&"sync", &"--dry-run", &"--save-delta", &name("packed"), &packed, &target]).code(0);
        untouched.still(&target);
        let other = scene.write("other", &before);
        let mut command = command(&[&"sync", &"--save-delta", &name("piped"), &"-", &other]);
        command.stdin(Stdio::from(fs::File::open(&packed).unwrap()));
        run_command(command).code(0);
        assert_same(&scene.read("other"), &image, "synced from standard input");
        run(&[&"sync", &"--save-delta", &name("wet"), &path, &target]).code(0);
        for other in ["packed", "piped", "wet"] {
            assert!(scene.read(other) == scene.read("dry"), "{other} is another delta than that of a dry run");
        }
        assert_ids(&name("dry"), &before, &image);
    }
}

#[test]
fn devices_go_back_and_keep_what_lies_behind() {
    if !loops("sync --undo") {
        return;
    }
    for (i, (before, image)) in pairs().into_iter().enumerate() {
        let scene = Scene::new();
        let mut all = before.clone();
        all.resize((before.len().max(image.len()) + 5 * BLOCK).next_multiple_of(512), 7);
        let (path, undo, delta) = (scene.write("image", &image), scene.path("undo"), scene.path("delta"));
        let device = Loop::attach(&scene.write("backing", &all));
        run(&[&"sync", &"--undo", &undo, &"--save-delta", &delta, &path, &device.path()]).code(0);
        assert_same(&device.read(), &[&image[..], &all[image.len()..]].concat(), &format!("pair {i}"));
        assert_ids(&delta, &all[..image.len()], &image);
        if !undo.exists() {
            assert_eq!(all[..image.len()], image);
            continue;
        }
        assert_ids(&undo, &image, &all[..image.len()]);
        run(&[&"patch", &undo, &device.path()]).code(0);
        assert_same(&device.read(), &all, &format!("pair {i}, and back"));
        run(&[&"patch", &delta, &device.path()]).code(0);
        assert_same(&device.read()[..image.len()], &image, &format!("pair {i}, by the delta"));
    }
}

#[test]
fn killed_at_any_moment_it_goes_back() {
    if !loops("undo of an interrupted sync") {
        return;
    }
    let (before, image) = busy_pair(4 * MIB);
    let scene = Scene::new();
    let (path, undo) = (scene.write("image", &image), scene.path("undo"));
    let device = Loop::attach(&scene.write("backing", &before));
    let mut rng = Rng::new(33);
    let mut between = 0;
    for round in 0..scaled(10, 100) {
        let _ = fs::remove_file(&undo);
        let (start_at, share) = (device.bytes_written(), rng.next() % (3 * MIB as u64));
        let mut child = start(&[&"sync", &"--undo", &undo, &path, &device.path()]);
        kill_when(&mut child, || device.bytes_written() >= start_at + share.max(1));
        let _ = child.kill();
        finish(child, "sync --undo");
        assert!(undo.exists(), "something was written, and there is no undo delta");
        let now = device.read();
        between += usize::from(now != before && now != image);
        if round % 2 == 0 && now != image {
            run(&[&"sync", &"--undo", &undo, &path, &device.path()]).code(0).says("is kept");
            assert_same(&device.read(), &image, "taken up");
        }
        run(&[&"patch", &undo, &device.path()]).code(0);
        assert_same(&device.read(), &before, "back");
    }
    assert!(between > 0, "no kill left the device between");
}

#[test]
fn a_file_that_only_grows_is_cut_again_from_every_state() {
    let image = random(35, MIB + 40 * BLOCK + 9);
    for len in [MIB, MIB + 3 * BLOCK, 5 * BLOCK + 100, 700, MIB + 1] {
        let scene = Scene::new();
        let (path, target) = (scene.write("image", &image), scene.write("target", &image[..len]));
        run(&[&"sync", &"--undo", &scene.path("undo"), &path, &target]).code(0);
        // An interrupted run leaves the longer length, and some of the content.
        for there in [len, len + 1, len + 7 * BLOCK, image.len()] {
            let mut between = image[..there].to_vec();
            between.resize(image.len(), 0);
            scene.write("target", &between);
            run(&[&"patch", &scene.path("undo"), &target]).code(0);
            assert_same(&scene.read("target"), &image[..len], &format!("{len} bytes, {there} of the image"));
        }
    }
}

#[test]
fn a_file_that_only_has_to_be_cut_is_finished() {
    let before = random(37, 2 * MIB + 3 * BLOCK + 700);
    let image = random(38, before.len() - BLOCK);
    for len in [image.len(), MIB + 5, MIB + 7 * BLOCK + 1, MIB, 700] {
        let (scene, image) = (Scene::new(), &image[..len]);
        let (path, target) = (scene.write("image", image), scene.write("target", &before));
        let undo = scene.path("undo");
        run(&[&"sync", &"--undo", &undo, &path, &target]).code(0);
        // Interrupted at the end: everything is written, and what is to be cut is still there.
        let between = [image, &before[len..]].concat();
        scene.write("target", &between);
        run(&[&"sync", &"--undo", &undo, &path, &target]).code(0).says("is kept");
        assert_same(&scene.read("target"), image, &format!("cut to {len} bytes"));
        // Before the last block was written.
        let end = len / BLOCK * BLOCK;
        scene.write("target", &[&image[..end], &before[end..]].concat());
        run(&[&"sync", &"--undo", &undo, &path, &target]).code(0).says("is kept");
        assert_same(&scene.read("target"), image, &format!("{end} bytes were written"));
        run(&[&"patch", &undo, &target]).code(0);
        assert_same(&scene.read("target"), &before, &format!("back from {len} bytes"));
        // The tail of another file must not be cut, as nothing would bring it back.
        let mut other = between;
        other[len] ^= 1;
        scene.write("target", &other);
        let look = Unwritten::look(&target);
        run(&[&"sync", &"--undo", &undo, &path, &target]).code(1).says("exists, and is not the undo delta");
        look.still(&target);
    }
}

#[test]
fn keeping_takes_little_memory() {
    const MOST: u64 = 96 << 20;
    let scene = Scene::new();
    let (path, target) = (scene.write("image", &random(51, 64 * MIB)), scene.write("target", &random(52, 64 * MIB)));
    let (undo, delta) = (scene.path("undo"), scene.path("delta"));
    let mut child = start(&[&"sync", &"--undo", &undo, &"--save-delta", &delta, &path, &target]);
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let anonymous =
            status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok());
        peak = peak.max(anonymous.unwrap_or(0u64) << 10);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    finish(child, "sync --undo --save-delta").code(0);
    assert!(peak > 0 && peak <= MOST, "{peak} bytes of memory");
}

#[test]
fn refusals_leave_the_target_and_the_files_as_they_are() {
    let scene = Scene::new();
    let (before, image) = (random(41, 40 * BLOCK), random(42, 40 * BLOCK));
    let (path, target) = (scene.write("image", &image), scene.write("target", &before));
    let look = Unwritten::look(&target);
    let precious = scene.write("precious", b"precious");
    for (option, file, text) in [
        ("--undo", &precious, "exists, and is not the undo delta"),
        ("--undo", &target, "lies on the target itself"),
        ("--save-delta", &target, "lies on the target itself"),
        ("--save-delta", &precious, "exists"),
        ("--save-delta", &scene.path("no").join("where"), "No such file"),
        ("--undo", &scene.path("no").join("where"), "No such file"),
    ] {
        run(&[&"sync", &option, &file, &path, &target]).code(1).says(text).says("Nothing was written");
        look.still(&target);
    }
    run(&[&"sync", &"--undo", &scene.path("undo"), &"-", &target]).code(1).says("can be read only once");
    run(&[&"sync", &"--dry-run", &"--undo", &scene.path("undo"), &path, &target]).code(0).says("would be written");
    look.still(&target);
    assert_eq!(scene.read("precious"), b"precious");
    scene.holds_only(&["image", "precious", "target"]);
    // The undo delta of one target is not that of another.
    run(&[&"sync", &"--undo", &scene.path("undo"), &path, &target]).code(0);
    let mut second = before.clone();
    second[5 * BLOCK] ^= 1;
    scene.write("target", &second);
    let look = Unwritten::look(&target);
    run(&[&"sync", &"--undo", &scene.path("undo"), &path, &target]).code(1).says("exists, and is not the undo delta");
    look.still(&target);
    // But of one that an interrupted run has begun with, it is.
    scene.write("target", &[&image[..7 * BLOCK], &before[7 * BLOCK..]].concat());
    run(&[&"sync", &"--undo", &scene.path("undo"), &path, &target]).code(0).says("is kept");
    assert_same(&scene.read("target"), &image, "taken up");
}
