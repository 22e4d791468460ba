//! `patch --old`: the new image built in another slot, or as a file, while the old image is only read.

mod common;

use common::*;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// `patch DELTA TARGET --old OLD`, with more options.
#[track_caller]
fn build(options: &[&str], delta: &Path, old: &Path, target: &Path) -> Out {
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"patch", &delta, &target, &"--old", &old];
    options.iter().for_each(|option| args.push(option));
    run(&args)
}

/// The bytes written, as the program says.
#[track_caller]
fn bytes_said(said: &Out) -> u64 {
    let head = said.err.split(" bytes written").next().unwrap_or_default();
    head.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no number in: {}", said.err))
}

/// Several MiB with moves, swaps, edits and zeros, so that patching in place would need saves.
fn mixed_pair(len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut old = random(91, len);
    let blocks = len / BLOCK;
    old[blocks / 3 * BLOCK..blocks / 2 * BLOCK].fill(0);
    let mut new = old.clone();
    let quarter = blocks / 4 * BLOCK;
    new[..BLOCK * 40].copy_from_slice(&old[quarter..quarter + BLOCK * 40]);
    new[quarter..quarter + BLOCK * 40].copy_from_slice(&old[..BLOCK * 40]);
    new[BLOCK * 50 + 100..quarter].copy_from_slice(&old[BLOCK * 50..quarter - 100]);
    let tail = blocks * 3 / 4 * BLOCK;
    new[tail..tail + 20 * BLOCK].fill(0);
    new[tail + 40 * BLOCK..].iter_mut().step_by(9 * BLOCK).for_each(|byte| *byte ^= 0xA5);
    (old, new)
}

/// Images that try each part of it: what stays, batches, saves, zeros, other lengths.
fn pairs() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let (old, new) = mixed_pair(3 * MIB);
    let (chain_old, chain_new) = chain();
    let longer = [&new[..], &random(92, 100_001)].concat();
    vec![
        ("moves and zeros", old.clone(), new.clone()),
        ("a chain", chain_old, chain_new),
        ("longer", old.clone(), longer.clone()),
        ("shorter", longer, old[..old.len() - 77_777].to_vec()),
        ("the same", old.clone(), old.clone()),
        ("from nothing", Vec::new(), old[..50_000].to_vec()),
        ("to nothing", old[..50_000].to_vec(), Vec::new()),
        ("all zero", old[..MIB].to_vec(), vec![0; MIB + 5]),
    ]
}

// ----------------------------------------------------------------------------------------------------- files

#[test]
fn a_file_is_made_from_the_old_file_and_the_delta() {
    for (name, old, new) in pairs() {
        let scene = Scene::with_delta(&old, &new);
        let (delta, source, target) = (scene.path("delta"), scene.path("old"), scene.path("target"));
        let before = Unwritten::look(&source);
        build(&[], &delta, &source, &target).code(0).says("now holds the new image, checked by reading it back");
        assert_same(&scene.read("target"), &new, name);
        let made = Unwritten::look(&target);
        build(&[], &delta, &source, &target).code(0).says("already holds the new image").says("nothing was written");
        made.still(&target);
        before.still(&source);
        scene.holds_only(&["old", "new", "delta", "target"]);
    }
}

#[test]
fn a_file_that_is_there_is_replaced_and_keeps_its_mode() {
    for (name, old, new) in pairs() {
        let scene = Scene::with_delta(&old, &new);
        let (delta, source) = (scene.path("delta"), scene.path("old"));
        for garbage in [random(93, new.len()), random(94, 10), Vec::new()] {
            let target = scene.write("target", &garbage);
            fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
            // Under the name of a link to it, which stays.
            let _ = fs::remove_file(scene.path("link"));
            std::os::unix::fs::symlink("target", scene.path("link")).unwrap();
            build(&[], &delta, &source, &scene.path("link")).code(0);
            assert_same(&scene.read("target"), &new, name);
            assert!(fs::symlink_metadata(scene.path("link")).unwrap().is_symlink(), "the link was replaced");
            let kept = garbage == new || fs::metadata(&target).unwrap().permissions().mode() & 0o777 == 0o640;
            assert!(kept, "the mode changed");
        }
        scene.holds_only(&["old", "new", "delta", "target", "link"]);
    }
}

#[test]
fn a_file_stays_sparse_where_the_image_is_zero() {
    let len = scaled(200 * MIB, 8 << 30) as u64;
    let scene = Scene::new();
    let data = [(0, random(95, 20_000)), (len / 2 + 123, random(96, 50_000)), (len - 9_000, random(97, 9_000))];
    for (name, edit) in [("old", None), ("new", Some((len / 3, random(98, 5_000))))] {
        let file = OpenOptions::new().write(true).create_new(true).open(scene.path(name)).unwrap();
        file.set_len(len).unwrap();
        data.iter().chain(&edit).for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
    }
    let (old, delta, target) = (scene.path("old"), scene.path("delta"), scene.path("target"));
    run(&[&"diff", &old, &scene.path("new"), &"-o", &delta]).code(0);
    let said = build(&[], &delta, &old, &target).code(0);
    tool("cmp", &[&target, &scene.path("new")]);
    let on_disk = fs::metadata(&target).unwrap().blocks() * 512;
    assert!(on_disk < 400_000, "the file takes {on_disk} bytes of {len}: it is not sparse");
    assert!(bytes_said(&said) < 130_000, "{}", said.err);
    // Zeros that stand in the old file as data are not written either.
    let full = scene.path("full");
    tool("dd", &[&"if=/dev/zero", &format!("of={}", full.display()), &"bs=1M", &"count=20", &"status=none"]);
    fs::write(scene.path("new"), [&vec![0; 20 * MIB][..], &[7; 5000]].concat()).unwrap();
    run(&[&"diff", &full, &scene.path("new"), &"-o", &delta]).code(0);
    build(&[], &delta, &full, &target).code(0);
    tool("cmp", &[&target, &scene.path("new")]);
    assert!(fs::metadata(&target).unwrap().blocks() * 512 < 100_000, "zeros were written");
}

#[test]
fn a_file_appears_only_when_it_is_complete() {
    let (old, new) = mixed_pair(scaled(8 * MIB, 64 * MIB));
    let scene = Scene::with_delta(&old, &new);
    let (delta, source, target) = (scene.path("delta"), scene.path("old"), scene.path("target"));
    let begun = Instant::now();
    build(&[], &delta, &source, &target).code(0);
    let whole = begun.elapsed().as_micros().max(1) as u64;
    let mut rng = Rng::new(99);
    for round in 0..scaled(20, 200) {
        // Where nothing was, or over a file that must stay until then.
        let there = round % 2 == 1;
        match there {
            true => drop(scene.write("target", b"precious")),
            false => drop(fs::remove_file(&target)), // it may not be there
        }
        let mut child = start(&[&"patch", &delta, &target, &"--old", &source]);
        sleep(Duration::from_micros(rng.next() % whole));
        if round % 4 < 2 {
            let _ = child.kill();
        } else {
            signal(&mut child, "INT");
        }
        let said = finish(child, "patch --old");
        assert!([0, 1, -9, -2].contains(&said.code), "{said:?}");
        match fs::read(&target) {
            Ok(found) if found == b"precious" && there => {}
            Ok(found) => assert_same(&found, &new, "a file that appeared"),
            Err(_) => assert!(!there && said.code != 0, "{said:?}"),
        }
        if said.code == 1 {
            drop(said.says("interrupted").says("Nothing was written"));
        }
    }
    build(&[], &delta, &source, &target).code(0);
    assert_same(&scene.read("target"), &new, "the file in the end");
    assert_same(&scene.read("old"), &old, "OLD");
}

#[test]
fn a_file_without_room_is_not_made() {
    if !loops("building without room (tmpfs needs the same)") {
        return;
    }
    let (old, new) = mixed_pair(3 * MIB);
    let scene = Scene::with_delta(&old, &new);
    let at = scene.path("small");
    let mount = Mount::new("tmpfs", Path::new("tmpfs"), &at, "size=300k");
    let (delta, source, target) = (scene.path("delta"), scene.path("old"), at.join("target"));
    build(&[], &delta, &source, &target).code(1).says("No space left").says("No such file was made");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "a part of it was left");
    fs::write(&target, b"precious").unwrap();
    build(&[], &delta, &source, &target).code(1).says("No space left");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 1, "a part of it was left");
    drop(mount);
}

// --------------------------------------------------------------------------------------------------- devices

/// A loop device that begins with `image`, followed by `room` bytes of anything and what fills the last sector.
fn slot(scene: &Scene, name: &str, image: &[u8], room: usize) -> (Loop, Vec<u8>) {
    let mut bytes = [image, &random(101, room)].concat();
    bytes.resize(bytes.len().next_multiple_of(512).max(512), 0xEE);
    (Loop::attach(&scene.write(name, &bytes)), bytes)
}

#[test]
fn a_device_becomes_the_new_image_whatever_it_held() {
    if !loops("building on devices") {
        return;
    }
    for (name, old, new) in pairs() {
        let scene = Scene::with_delta(&old, &new);
        let delta = scene.path("delta");
        for room in [0, 5 * BLOCK + 100] {
            let (source, source_bytes) = slot(&scene, "a", &old, room);
            let (target, target_bytes) = slot(&scene, "b", &random(102, new.len()), room);
            let said = build(&[], &delta, source.path(), target.path()).code(0);
            assert!(new.is_empty() || said.err.contains("now holds the new image"), "{name}: {}", said.err);
            let found = target.read();
            assert_same(&found[..new.len()], &new, name);
            assert_same(&found[new.len()..], &target_bytes[new.len()..], "what lies behind the image");
            let written = target.bytes_written();
            build(&[], &delta, source.path(), target.path()).code(0).says("already holds the new image");
            assert_eq!(target.bytes_written(), written, "the second run wrote");
            assert_eq!(source.bytes_written(), 0, "OLD was written");
            assert_same(&source.read(), &source_bytes, "OLD");
        }
    }
}

#[test]
fn blocks_that_the_device_holds_already_are_not_written() {
    if !loops("writing only what differs") {
        return;
    }
    let (old, new) = mixed_pair(3 * MIB);
    let scene = Scene::with_delta(&old, &new);
    // The other slot holds the old image, too, as after an earlier update; then the new one with a few bits changed.
    let mut nearly = new.clone();
    [0, 100 * BLOCK + 7, 101 * BLOCK, new.len() - 1].into_iter().for_each(|at| nearly[at] ^= 1);
    for (held, changed) in [(&old, changed_blocks(&old, &new)), (&nearly, 4)] {
        let (target, _) = slot(&scene, "b", held, 0);
        let said = build(&[], &scene.path("delta"), &scene.path("old"), target.path()).code(0);
        assert_eq!(bytes_said(&said), changed * BLOCK as u64);
        assert_eq!(target.bytes_written(), changed * BLOCK as u64, "as the kernel counts");
        assert_same(&target.read(), &new, "the slot");
    }
    // From a device into a file.
    let (source, _) = slot(&scene, "a", &old, 3 * BLOCK);
    build(&[], &scene.path("delta"), source.path(), &scene.path("target")).code(0);
    assert_same(&scene.read("target"), &new, "the file");
}

/// Waits for something to happen in a run, or for its end.
fn wait_until(child: &mut Child, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() && !reached() && Instant::now() < deadline {
        std::thread::yield_now();
    }
}

#[test]
fn stopped_or_killed_it_is_finished_by_the_next_run() {
    if !loops("stopping patch --old") {
        return;
    }
    // So large that a signal comes in time; most of it stays.
    let old = random(90, scaled(48 * MIB, 256 * MIB));
    let mut new = old.clone();
    new[7 * BLOCK..90 * BLOCK].copy_from_slice(&old[MIB + 5..MIB + 5 + 83 * BLOCK]);
    new[30 * MIB..30 * MIB + 9999].fill(0);
    let scene = Scene::with_delta(&old, &new);
    let (delta, source) = (scene.path("delta"), scene.path("old"));
    let mut stopped = 0;
    for (name, share) in [("INT", 1), ("TERM", 3), ("KILL", 2), ("INT", 8), ("KILL", 15)] {
        let (target, _) = slot(&scene, "b", &random(103, new.len()), 0);
        let mut child = start(&[&"patch", &delta, &target.path(), &"--old", &source]);
        wait_until(&mut child, || target.bytes_written() >= share * new.len() as u64 / 16);
        signal(&mut child, name);
        let said = finish(child, "patch --old");
        assert!([0, 3, -9].contains(&said.code), "SIG{name}: {said:?}");
        if said.code == 3 {
            stopped += 1;
            let said = said
                .row("slot-stopped")
                .says("asked to stop")
                .says("OLD is as it was")
                .says("Run the same command again");
            assert!(said.err.contains(&target.path().display().to_string()), "{}", said.err);
        }
        let before = target.bytes_written();
        build(&[], &delta, &source, target.path()).code(0);
        // What had been written needs not be written again, but for what was under way.
        assert!(target.bytes_written() <= new.len() as u64 + 4 * MIB as u64, "{} before", before);
        assert_same(&target.read(), &new, "the device in the end");
    }
    assert!(stopped > 0, "no run was stopped before its end");
    assert_same(&scene.read("old"), &old, "OLD");
}

#[test]
fn from_a_slot_that_is_mounted_into_another_partition_of_the_same_disk() {
    let test = "building from a mounted slot";
    if !loops(test) || !ext4(test) {
        return;
    }
    let scene = Scene::new();
    tool("mke2fs", &[&"-q", &"-t", &"ext4", &"-b", &"4096", &scene.path("old"), &"4M"]);
    let old = scene.read("old");
    let mut new = old.clone();
    new[3 * MIB..3 * MIB + 9000].copy_from_slice(&random(104, 9000));
    scene.write("new", &new);
    let delta = scene.path("delta");
    run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &delta]).code(0);
    let disk = [&random(105, MIB)[..], &old, &random(106, 4 * MIB), &random(107, MIB)].concat();
    let device = Loop::attach_with(&scene.write("disk", &disk), &["-P"]);
    let (a, b) = (partition(&scene, &device, 1, MIB), partition(&scene, &device, 2, 5 * MIB));
    let mount = Mount::new("ext4", &a, &scene.path("mounted"), "ro");
    build(&[], &delta, &a, &b).code(0).says("now holds the new image");
    build(&[], &delta, &a, &b).code(0).says("already holds the new image");
    drop(mount);
    let expected = [&disk[..5 * MIB], &new, &disk[9 * MIB..]].concat();
    assert_same(&device.read(), &expected, "the disk");
    // And not over the slot itself, by any name.
    for (old, target) in [(&a, &a), (&a, &device.path().to_owned()), (&device.path().to_owned(), &b)] {
        build(&[], &delta, old, target).code(1).says("share bytes").says("Nothing was written");
    }
    assert_same(&device.read(), &expected, "the disk after refusals");
}

/// A node for a partition of 4 MiB.
fn partition(scene: &Scene, disk: &Loop, number: usize, start: usize) -> PathBuf {
    let (start, count) = ((start / 512).to_string(), (4 * MIB / 512).to_string());
    tool("addpart", &[&disk.path(), &number.to_string(), &start, &count]);
    let name = disk.path().file_name().unwrap().to_string_lossy().into_owned();
    let device = fs::read_to_string(format!("/sys/block/{name}/{name}p{number}/dev")).unwrap();
    // Where no udev runs, perhaps nobody makes a node for it.
    let (major, minor) = device.trim().split_once(':').unwrap();
    let node = scene.path(&format!("partition{number}"));
    tool("mknod", &[&node, &"b", &major, &minor]);
    node
}

// -------------------------------------------------------------------------------------------------- refusals

#[test]
fn an_old_that_is_not_the_old_image_is_refused() {
    let (old, new) = mixed_pair(3 * MIB);
    let scene = Scene::with_delta(&old, &new);
    let (delta, target) = (scene.path("delta"), scene.write("target", b"precious"));
    let before = Unwritten::look(&target);
    // Also where no batch reads or writes.
    for at in [0, 45 * BLOCK, old.len() / 2 + 5, old.len() - 1] {
        let mut wrong = old.clone();
        wrong[at] ^= 0x20;
        let wrong = scene.write("wrong", &wrong);
        let said = build(&[], &delta, &wrong, &target).code(1).says("wrong does not hold the image");
        said.says("instead of").says("Nothing was written");
        build(&[], &delta, &wrong, &scene.path("none")).code(1).says("wrong does not hold the image");
    }
    build(&[], &delta, &scene.path("new"), &target).code(1).says("It holds the new image");
    let short = scene.write("short", &old[..old.len() - 1]);
    build(&[], &delta, &short, &target).code(1).says("short is too small");
    build(&[], &delta, &scene.path("nowhere"), &target).code(1).says("nowhere does not exist");
    build(&[], &delta, scene.folder(), &target).code(1).says("a directory");
    before.still(&target);
    scene.holds_only(&["old", "new", "delta", "target", "wrong", "short"]);
    if loops("a device and a wrong OLD") {
        let (target, _) = slot(&scene, "b", &random(108, new.len()), 0);
        build(&[], &delta, &scene.path("wrong"), target.path()).code(1).says("Nothing was written");
        assert_eq!(target.bytes_written(), 0);
    }
    // A longer one is read as far as the image goes.
    let longer = scene.write("longer", &[&old[..], b"more"].concat());
    build(&[], &delta, &longer, &target).code(0);
    assert_same(&scene.read("target"), &new, "from a longer file");
}

#[test]
fn a_target_that_is_old_or_the_delta_is_refused() {
    let scene = chain_scene();
    let (delta, old) = (scene.path("delta"), scene.path("old"));
    fs::hard_link(&old, scene.path("twin")).unwrap();
    std::os::unix::fs::symlink("old", scene.path("link")).unwrap();
    let (before, delta_before) = (Unwritten::look(&old), Unwritten::look(&delta));
    for name in ["old", "twin", "link", "./old"] {
        build(&[], &delta, &old, &scene.path(name)).code(1).says("share bytes").says("Nothing was written");
    }
    build(&[], &delta, &old, &delta).code(1).says("the target is the delta");
    before.still(&old);
    delta_before.still(&delta);
    if !loops("OLD as a loop device") {
        return;
    }
    let device = Loop::attach(&old);
    build(&[], &delta, &old, device.path()).code(1).says("share bytes");
    build(&[], &delta, device.path(), &old).code(1).says("share bytes");
    let second = Loop::attach(&scene.path("twin"));
    build(&[], &delta, device.path(), second.path()).code(1).says("share bytes");
    assert_eq!(device.bytes_written() + second.bytes_written(), 0);
    before.still(&old);
    // A file that has no name any more is one file still.
    let nameless = scene.write("nameless", &scene.read("old"));
    let pair = [(); 2].map(|()| Loop::attach(&nameless));
    fs::remove_file(&nameless).unwrap();
    build(&[], &delta, pair[0].path(), pair[1].path()).code(1).says("share bytes");
    drop(pair);
    // Two slots in one file share none.
    let bytes = [&scene.read("old")[..], &random(109, 16 * PART)].concat();
    let both = scene.write("both", &bytes);
    let half = (16 * PART).to_string();
    let first = Loop::attach_with(&both, &["--sizelimit", &half]);
    let second = Loop::attach_with(&both, &["--offset", &half]);
    let overlapping = Loop::attach_with(&both, &["--offset", "65536"]);
    build(&[], &delta, first.path(), overlapping.path()).code(1).says("share bytes");
    drop(overlapping);
    build(&[], &delta, first.path(), second.path()).code(0);
    assert_same(&second.read(), &scene.read("new"), "the second slot");
    assert_same(&first.read(), &scene.read("old"), "the first slot");
}

#[test]
fn a_file_on_the_file_system_that_old_holds_is_refused() {
    let test = "a file within OLD";
    if !loops(test) || !ext4(test) {
        return;
    }
    let scene = chain_scene();
    tool("mke2fs", &[&"-q", &"-t", &"ext4", &scene.path("fs"), &"4M"]);
    let device = Loop::attach(&scene.path("fs"));
    let mount = Mount::new("ext4", device.path(), &scene.path("mounted"), "rw");
    let (delta, within) = (scene.path("delta"), scene.path("mounted/target"));
    build(&[], &delta, device.path(), &within).code(1).says("share bytes").says("Nothing was written");
    // Beside one another they may lie.
    fs::copy(scene.path("old"), scene.path("mounted/old")).unwrap();
    build(&[], &delta, &scene.path("mounted/old"), &within).code(0);
    assert_same(&fs::read(&within).unwrap(), &scene.read("new"), "the file");
    drop(mount);
}

#[test]
fn a_target_that_cannot_hold_the_image_is_refused() {
    let (old, new) = chain();
    let scene = Scene::with_delta(&old, &new);
    let (delta, source) = (scene.path("delta"), scene.path("old"));
    build(&[], &delta, &source, scene.folder()).code(1).says("a directory").says("Nothing was written");
    build(&[], &delta, &source, Path::new("/dev/null")).code(1).says("a character device");
    build(&[], &delta, &source, &scene.path("nowhere/target")).code(1).says("nowhere").says("Nothing was written");
    // The name of a device that is not there is no name for a file.
    build(&[], &delta, &source, Path::new("/dev/blkpatch-no-such")).code(1).says("does not exist");
    std::os::unix::fs::symlink("nothing", scene.path("dangling")).unwrap();
    build(&[], &delta, &source, &scene.path("dangling")).code(1).says("does not exist");
    build(&["--verify", "all"], &delta, &source, &scene.path("target")).code(2).says("--verify");
    scene.holds_only(&["old", "new", "delta", "dangling"]);
    if loops("a slot that is too small") {
        let (target, bytes) = slot(&scene, "b", &new[..new.len() - 512], 0);
        build(&[], &delta, &source, target.path()).code(1).says("too small").says("Nothing was written");
        assert_same(&target.read(), &bytes, "the slot that is too small");
    }
}

#[test]
fn a_dry_run_checks_and_writes_nothing() {
    let (old, new) = mixed_pair(3 * MIB);
    let scene = Scene::with_delta(&old, &new);
    let (delta, source, target) = (scene.path("delta"), scene.path("old"), scene.path("target"));
    let dry = ["--dry-run"];
    build(&dry, &delta, &source, &target).code(0).says("up to 768 blocks (3.0 MiB) would be written");
    scene.holds_only(&["old", "new", "delta"]);
    scene.write("target", b"precious");
    let before = Unwritten::look(&target);
    build(&dry, &delta, &source, &target).code(0).says("would be written");
    build(&dry, &delta, &scene.path("new"), &target).code(1).says("does not hold the image");
    before.still(&target);
    if loops("a dry run on a device") {
        let (target, _) = slot(&scene, "b", &random(110, new.len()), 0);
        build(&dry, &delta, &source, target.path()).code(0).says("up to 768 blocks (3.0 MiB) would be written");
        assert_eq!(target.bytes_written(), 0);
    }
}
