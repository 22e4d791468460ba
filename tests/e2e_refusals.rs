//! Every refusal leaves the target byte-identical, ends with the right exit code, and names its cause.

mod common;

use common::*;
use rustix::fs::FlockOperation;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// Refused with exit code 1, the target as it was, and `text` in the message.
#[track_caller]
fn refused(delta: &dyn AsRef<OsStr>, target: &Path, text: &str) -> Out {
    refused_with(&[], delta, target, text)
}

#[track_caller]
fn refused_with(options: &[&str], delta: &dyn AsRef<OsStr>, target: &Path, text: &str) -> Out {
    let before = Unwritten::look(target);
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"patch"];
    options.iter().for_each(|option| args.push(option));
    args.extend([delta, &target as &dyn AsRef<OsStr>]);
    let said = run(&args).code(1).says(text);
    before.still(target);
    said
}

/// A pair with a tiny delta: a block edited, another copied over a third, a byte changed in a fourth.
fn small_pair() -> (Vec<u8>, Vec<u8>) {
    let old = random(31, 12 * BLOCK);
    let mut new = old.clone();
    new[block(2)][..40].copy_from_slice(&random(32, 40));
    new[block(5)].copy_from_slice(&old[block(9)]);
    new[7 * BLOCK + 99] ^= 0x55;
    (old, new)
}

fn small_scene() -> Scene {
    let (old, new) = small_pair();
    let scene = Scene::with_delta(&old, &new);
    scene.write("target", &old);
    scene
}

/// The header's digest made anew after a change of the header.
fn reseal(delta: &mut [u8]) {
    let len = u32::from_le_bytes(delta[8..12].try_into().unwrap()) as usize;
    let digest = blake3::hash(&delta[..len - 32]);
    delta[len - 32..len].copy_from_slice(digest.as_bytes());
}

// ---------------------------------------------------------------------------------------------------- deltas

#[test]
fn a_delta_cut_short_anywhere() {
    let scene = small_scene();
    let (delta, target) = (scene.read("delta"), scene.path("target"));
    let step = if long() { 1 } else { 13 };
    for len in (0..delta.len()).step_by(step).chain([1, 7, 8, 11, 12, 95, 96, delta.len() - 1]) {
        let cut = scene.write("cut", &delta[..len]);
        let text = if len < 12 { "not a blkpatch delta" } else { "cut short" };
        refused(&cut, &target, text).says("Nothing was written");
    }
    // The whole one is fine.
    run(&[&"patch", &scene.path("delta"), &target]).code(0);
}

#[test]
fn a_delta_with_something_appended() {
    let scene = small_scene();
    let longer = scene.write("longer", &[&scene.read("delta")[..], b"\n"].concat());
    refused(&longer, &scene.path("target"), "something was appended");
}

#[test]
fn a_delta_with_any_bit_flipped() {
    let scene = small_scene();
    let (delta, target) = (scene.read("delta"), scene.path("target"));
    let before = Unwritten::look(&target);
    let step = if long() || delta.len() < 1200 { 1 } else { 5 };
    for at in (0..delta.len()).step_by(step) {
        let mut flipped = delta.clone();
        flipped[at] ^= 1 << (at % 8);
        let flipped = scene.write("flipped", &flipped);
        let said = run(&[&"patch", &flipped, &target]);
        assert_eq!(said.code, 1, "a bit flipped in byte {at}: {}", said.err);
        assert!(said.err.contains("cannot use the delta"), "a bit flipped in byte {at}: {}", said.err);
    }
    before.still(&target);
    // Every bit of every byte, by the library: nothing but a digest can be trusted to find all.
    for bit in 0..delta.len() * 8 {
        let mut flipped = delta.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let opened = blkpatch::delta::Delta::open(std::sync::Arc::new(flipped), u64::MAX);
        assert!(opened.is_err(), "bit {bit} flipped, and the delta was opened");
    }
}

#[test]
fn damage_is_named_as_damage() {
    let scene = small_scene();
    let target = scene.path("target");
    let mut delta = scene.read("delta");
    let last = delta.len() - 1;
    delta[last] ^= 1;
    refused(&scene.write("bad", &delta), &target, "damaged").says("copy it again");
    let mut delta = scene.read("delta");
    delta[40] ^= 1;
    refused(&scene.write("bad", &delta), &target, "the header does not match its digest");
}

#[test]
fn a_delta_mangled_by_a_text_mode_transfer() {
    let scene = small_scene();
    let (delta, target) = (scene.read("delta"), scene.path("target"));
    let text = "text-mode transfer";
    let replaced = |from: &[u8], to: &[u8]| {
        let mut out = Vec::new();
        let mut rest = &delta[..];
        while let Some(byte) = rest.first() {
            if rest.starts_with(from) {
                out.extend_from_slice(to);
                rest = &rest[from.len()..];
            } else {
                out.push(*byte);
                rest = &rest[1..];
            }
        }
        out
    };
    refused(&scene.write("dos2unix", &replaced(b"\r\n", b"\n")), &target, text);
    refused(&scene.write("unix2dos", &replaced(b"\n", b"\r\n")), &target, text);
    refused(&scene.write("mac", &replaced(b"\r", b"\n")), &target, text);
    let seven: Vec<u8> = delta.iter().map(|byte| byte & 0x7F).collect();
    refused(&scene.write("seven-bit", &seven), &target, text);
    let stripped: Vec<u8> = delta.iter().copied().filter(|byte| *byte < 0x80).collect();
    refused(&scene.write("ascii-only", &stripped), &target, text);
}

#[test]
fn something_that_is_no_delta() {
    let scene = small_scene();
    let target = scene.path("target");
    let text = "not a blkpatch delta";
    refused(&scene.write("empty", b""), &target, text);
    refused(&scene.write("zeros", &[0; 5000]), &target, text);
    refused(&scene.write("noise", &random(33, 5000)), &target, text);
    refused(&scene.write("text", "just text, nothing else\n".repeat(30).as_bytes()), &target, text);
    refused(&target.clone(), &target, text);
    refused(&"/dev/zero", &target, "neither a file nor a block device");
    // The magic, and nothing that makes sense behind it.
    let mut magic = scene.read("delta")[..8].to_vec();
    magic.extend(random(34, 5000));
    refused(&scene.write("magic", &magic), &target, "header_len");
    magic[8..12].copy_from_slice(&2000u32.to_le_bytes());
    refused(&scene.write("magic", &magic), &target, "the header does not match its digest");
}

#[test]
fn a_delta_of_a_newer_format() {
    let scene = small_scene();
    let (delta, target) = (scene.read("delta"), scene.path("target"));
    for bit in [3, 4, 31, 63] {
        let mut newer = delta.clone();
        newer[16 + bit / 8] |= 1 << (bit % 8);
        // Without a new digest it is damage, not a newer format.
        refused(&scene.write("newer", &newer), &target, "damaged");
        reseal(&mut newer);
        refused(&scene.write("newer", &newer), &target, "newer blkpatch").says("incompatible feature bits");
    }
    let mut newer = delta.clone();
    newer[12] = 2;
    reseal(&mut newer);
    refused(&scene.write("newer", &newer), &target, "newer blkpatch").says("format version 2");
    for verb in ["verify", "info"] {
        let mut args: Vec<&dyn AsRef<OsStr>> = vec![&verb];
        let newer = scene.path("newer");
        args.push(&newer);
        if verb == "verify" {
            args.push(&target);
        }
        run(&args).code(1).says("newer blkpatch");
    }
    // A section of an unknown kind that must be understood; the same where it may be skipped is fine.
    let section = 96;
    let mut newer = delta.clone();
    newer[section..section + 2].copy_from_slice(&999u16.to_le_bytes());
    reseal(&mut newer);
    refused(&scene.write("newer", &newer), &target, "newer blkpatch").says("section kind 999");
    // A compatible feature bit that this version does not know is ignored.
    let mut compatible = delta;
    compatible[24 + 7] |= 0x80;
    reseal(&mut compatible);
    run(&[&"patch", &scene.write("compatible", &compatible), &target]).code(0);
    assert_same(&scene.read("target"), &scene.read("new"), "patched by a delta with a compatible feature");
}

#[test]
fn a_delta_that_cannot_be_read() {
    let scene = small_scene();
    let target = scene.path("target");
    refused(&scene.path("nowhere"), &target, "No such file").says("nowhere");
    refused(&scene.folder(), &target, "directory");
    refused(&target.join("file-as-folder"), &target, "Not a directory");
    fs::set_permissions(scene.path("delta"), fs::Permissions::from_mode(0o000)).unwrap();
    let before = Unwritten::look(&target);
    let said = as_nobody(&scene, &["patch", "delta", "target"]);
    said.code(1).says("Permission denied").says("delta");
    before.still(&target);
}

#[test]
fn a_memory_limit_that_is_too_low() {
    let scene = small_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let needs = info_number(&info(&delta), "memory_bytes");
    assert!(needs <= 64 << 20, "{needs} bytes of memory for a tiny delta");
    let text = format!("needs {needs} bytes of memory");
    refused_with(&["--memory-limit", "1M"], &delta, &target, &text).says("--memory-limit");
    refused_with(&["--memory-limit", &(needs - 1).to_string()], &delta, &target, &text);
    refused_with(&["--memory-limit", "0"], &delta, &target, &text);
    run(&[&"verify", &"--memory-limit", &"1M", &delta, &target]).code(1).says(&text);
    run(&[&"patch", &"--memory-limit", &needs.to_string(), &delta, &target]).code(0);
}

// ---------------------------------------------------------------------------------------------------- targets

#[test]
fn a_target_that_holds_something_else() {
    let scene = chain_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let old = scene.read("old");
    for options in [&[][..], &["--dry-run"], &["--verify", "all"], &["--verify", "touched"]] {
        scene.write("target", &random(35, old.len()));
        refused_with(options, &delta, &target, "does not hold the image").says("Nothing was written");
        scene.write("target", &vec![0; old.len()]);
        refused_with(options, &delta, &target, "does not hold the image");
    }
    // One bit in a block that stays.
    let mut other = old.clone();
    other[part(11)][4095] ^= 0x80;
    scene.write("target", &other);
    refused(&delta, &target, "does not hold the image").says("mounted read-write").says("Nothing was written");
    assert_state(&delta, &target, "neither");
    // One bit in a block that moves and is overwritten.
    let mut other = old;
    other[part(5)][0] ^= 1;
    scene.write("target", &other);
    refused(&delta, &target, "does not hold the image").says("Nothing was written");
    assert_state(&delta, &target, "neither");
}

#[test]
fn the_place_that_differs_is_named() {
    // A delta large enough for the table of regions.
    let mut old = random(36, 5 * MIB);
    let mut new = old.clone();
    new[..200_000].copy_from_slice(&random(37, 200_000));
    let scene = Scene::with_delta(&old, &new);
    old[3 * MIB + 4321] ^= 4;
    let target = scene.write("target", &old);
    refused(&scene.path("delta"), &target, &format!("between bytes {} and {}", 3 * MIB, 4 * MIB))
        .says("1 of its 5 regions")
        .row("other-regions");
}

#[test]
fn a_target_that_is_too_small() {
    let scene = small_scene();
    let (delta, old) = (scene.path("delta"), scene.read("old"));
    for len in [0, 1, 4096, old.len() - 1] {
        let target = scene.write("target", &old[..len]);
        refused(&delta, &target, "too small").says(&format!("{len} bytes")).says(&old.len().to_string());
        run(&[&"verify", &delta, &target]).code(1).says("too small");
    }
    if loops("a device that is too small") {
        let backing = scene.write("backing", &old[..old.len() - 512]);
        let device = Loop::attach(&backing);
        run(&[&"patch", &delta, &device.path()]).code(1).says("too small").says("Nothing was written");
        run(&[&"verify", &delta, &device.path()]).code(1).says("too small");
        assert_eq!(device.bytes_written(), 0);
        // A device that holds the old image, but has no room for the new one.
        let longer = [&old[..], &random(38, 513)].concat();
        let larger = Scene::with_delta(&old, &longer);
        for size in [old.len(), old.len() + 512] {
            let mut bytes = old.clone();
            bytes.resize(size, 0);
            let device = Loop::attach(&larger.write("backing", &bytes));
            run(&[&"patch", &larger.path("delta"), &device.path()]).code(1).says("too small");
            assert_eq!(device.bytes_written(), 0);
            assert_same(&device.read(), &bytes, "the device");
        }
    }
}

#[test]
fn a_target_that_is_missing_or_no_image() {
    let scene = small_scene();
    let delta = scene.path("delta");
    let names = scene.names();
    run(&[&"patch", &delta, &scene.path("nowhere")]).code(1).says("does not exist").says("Nothing was written");
    run(&[&"verify", &delta, &scene.path("nowhere")]).code(1).says("does not exist");
    run(&[&"patch", &delta, &scene.folder()]).code(1).says("a directory");
    run(&[&"patch", &delta, &"/dev/null"]).code(1).says("a character device");
    tool("mkfifo", &[&scene.path("pipe")]);
    run(&[&"patch", &delta, &scene.path("pipe")]).code(1).says("a pipe");
    fs::remove_file(scene.path("pipe")).unwrap();
    assert_eq!(scene.names(), names, "something was created");
    // The delta itself.
    let before = Unwritten::look(&delta);
    run(&[&"patch", &delta, &delta]).code(1);
    before.still(&delta);
}

#[test]
fn a_target_without_permission() {
    let scene = small_scene();
    for mode in [0o000, 0o400, 0o444] {
        fs::set_permissions(scene.path("target"), fs::Permissions::from_mode(mode)).unwrap();
        let before = Unwritten::look(&scene.path("target"));
        as_nobody(&scene, &["patch", "delta", "target"]).code(1).row("no-permission").says("target");
        before.still(&scene.path("target"));
    }
}

#[test]
fn a_target_that_another_process_has_locked() {
    let scene = small_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let holder = File::open(&target).unwrap();
    rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
    refused(&delta, &target, "in use").says("locked").says("Nothing was written");
    run(&[&"verify", &delta, &target]).code(1).says("in use");
    // A reader keeps a writer out, but no reader.
    rustix::fs::flock(&holder, FlockOperation::LockShared).unwrap();
    refused(&delta, &target, "in use");
    assert_state(&delta, &target, "old");
    drop(holder);
    run(&[&"patch", &delta, &target]).code(0);

    if loops("a locked device") {
        let device = Loop::attach(&scene.path("old"));
        let holder = File::open(device.path()).unwrap();
        rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
        run(&[&"patch", &delta, &device.path()]).code(1).says("in use").says("Nothing was written");
        assert_eq!(device.bytes_written(), 0);
        drop(holder);
    }
}

#[test]
fn a_file_behind_a_loop_device_under_any_name() {
    if !loops("a file behind a loop device") {
        return;
    }
    let scene = small_scene();
    let (delta, other) = (scene.path("delta"), scene.path("other"));
    fs::hard_link(scene.path("target"), &other).unwrap();
    let device = Loop::attach(&scene.path("target"));
    for name in [&scene.path("target"), &other] {
        let before = Unwritten::look(name);
        run(&[&"patch", &delta, name]).code(1).row("in-use-file-of-loop").says("Nothing was written");
        before.still(name);
    }
    drop(device);
    run(&[&"patch", &delta, &other]).code(0);
}

#[test]
fn a_partition_of_a_disk_that_another_process_has_locked() {
    if !loops("a partition of a locked disk") {
        return;
    }
    let scene = small_scene();
    let old = scene.read("old");
    let mut disk = vec![0; MIB];
    disk.extend_from_slice(&old);
    disk.resize(disk.len().next_multiple_of(MIB), 0);
    // With -P detaching removes the partition, too.
    let device = Loop::attach_with(&scene.write("disk", &disk), &["-P"]);
    // A kernel need not know any kind of partition table to be told of a partition.
    let (start, count) = ((MIB / 512).to_string(), ((disk.len() - MIB) / 512).to_string());
    tool("addpart", &[&device.path(), &"1", &start, &count]);
    let name = device.path().file_name().unwrap().to_string_lossy().into_owned();
    let number = fs::read_to_string(format!("/sys/block/{name}/{name}p1/dev")).unwrap();
    // Where no udev runs, perhaps nobody makes a node for it.
    let (major, minor) = number.trim().split_once(':').unwrap();
    let partition = scene.path("partition");
    tool("mknod", &[&partition, &"b", &major, &minor]);
    let delta = scene.path("delta");
    let holder = File::open(device.path()).unwrap();
    rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
    let said = run(&[&"patch", &delta, &partition]).code(1);
    said.row("in-use-locked-disk").says("Nothing was written");
    assert_eq!(device.bytes_written(), 0);
    drop(holder);
    run(&[&"patch", &delta, &partition]).code(0);
    assert_same(&device.read()[MIB..MIB + scene.read("new").len()], &scene.read("new"), "the partition");
}

#[test]
fn a_mounted_device() {
    if !loops("a mounted device") || !ext4("a mounted device") {
        return;
    }
    let scene = Scene::new();
    let image = scene.path("image");
    tool("mke2fs", &[&"-q", &"-t", &"ext4", &image, &"4M"]);
    let old = fs::read(&image).unwrap();
    let mut new = old.clone();
    new[3 * MIB..3 * MIB + 100].copy_from_slice(&random(39, 100));
    let scene = Scene::with_delta(&old, &new);
    let device = Loop::attach(&scene.write("target", &old));
    let delta = scene.path("delta");
    for options in ["ro", "rw"] {
        let before = if options == "ro" { Some(device.read()) } else { None };
        let mount = Mount::new("ext4", device.path(), &scene.path("mounted"), options);
        let said = run(&[&"patch", &delta, &device.path()]).code(1);
        said.says("in use").says("mounted").says("unmount").says("Nothing was written");
        drop(mount);
        if let Some(before) = before {
            assert_same(&device.read(), &before, "the device that was mounted read-only");
        }
    }
}

#[test]
fn a_device_that_is_write_protected() {
    if !loops("a write-protected device") {
        return;
    }
    let scene = small_scene();
    let device = Loop::attach_with(&scene.path("target"), &["-r"]);
    assert_state(&scene.path("delta"), device.path(), "old");
    run(&[&"patch", &scene.path("delta"), &device.path()]).code(1).row("write-protected").says("Nothing was written");
    drop(device);
    assert_same(&scene.read("target"), &scene.read("old"), "the write-protected device");
}

#[test]
fn a_file_system_that_is_read_only_or_full() {
    if !loops("file systems without room") {
        return;
    }
    let scene = small_scene();
    let (old, new) = (scene.read("old"), [&scene.read("old")[..], &random(40, 600_000)].concat());
    scene.write("new", &new);
    run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &scene.path("delta")]).code(0);
    let at = scene.path("small");
    let mount = Mount::new("tmpfs", Path::new("tmpfs"), &at, "size=200k");
    let target = at.join("target");
    fs::write(&target, &old).unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&target).unwrap());
    let space = blocks();
    run(&[&"patch", &scene.path("delta"), &target]).code(1).row("target-full").says("No space left");
    assert_same(&fs::read(&target).unwrap(), &old, "the file that had no room to grow");
    assert_eq!(blocks(), space, "512-byte blocks: what was reserved in vain is given back");
    let before = Unwritten::look(&target);
    tool("mount", &[&"-o", &"remount,ro", &at]);
    run(&[&"patch", &scene.path("delta"), &target]).code(1).says("read-only").says("Nothing was written");
    before.still(&target);
    drop(mount);
}

// ----------------------------------------------------------------------------------------------------- images

#[test]
fn images_that_cannot_be_read() {
    let scene = small_scene();
    fs::remove_file(scene.path("delta")).unwrap();
    let (old, delta) = (scene.path("old"), scene.path("delta"));
    let names = scene.names();
    for (path, text) in [
        (scene.path("nowhere"), "No such file"),
        (scene.folder().to_owned(), "directory"),
        ("/dev/zero".into(), "neither a file nor a block device"),
    ] {
        run(&[&"diff", &path, &old, &"-o", &delta]).code(1).says(text).says(&path.display().to_string());
        run(&[&"diff", &old, &path, &"-o", &delta]).code(1).says(text).says(&path.display().to_string());
    }
    assert_eq!(scene.names(), names, "a delta, or a part of one, was left");
    fs::set_permissions(&old, fs::Permissions::from_mode(0o000)).unwrap();
    as_nobody(&scene, &["diff", "old", "new", "-o", "delta"]).code(1).says("Permission denied").says("old");
    as_nobody(&scene, &["diff", "new", "old", "-o", "delta"]).code(1).says("Permission denied").says("old");
    assert!(!delta.exists());
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let scene = small_scene();
    tool("mkfifo", &[&scene.path("pipe")]);
    for args in [&["info", "pipe"][..], &["patch", "pipe", "target"], &["diff", "pipe", "new", "-o", "out"]] {
        let mut command = std::process::Command::new("timeout");
        command.arg("5").arg(env!("CARGO_BIN_EXE_blkpatch")).args(args).current_dir(scene.folder());
        let said = run_command(command);
        assert_ne!(said.code, 124, "{args:?} waits for somebody to write into a pipe");
        said.code(1).says("pipe");
    }
}

#[test]
fn an_output_that_is_an_input_or_no_file() {
    let scene = small_scene();
    let (old, new) = (scene.path("old"), scene.path("new"));
    let (before_old, before_new) = (Unwritten::look(&old), Unwritten::look(&new));
    let names = scene.names();
    for output in [&old, &new, &scene.folder().join("./old")] {
        run(&[&"diff", &old, &new, &"-o", &output]).code(1).says("overwrite an input");
    }
    run(&[&"diff", &old, &new, &"-o", &scene.folder()]).code(1).says("must be a file");
    run(&[&"diff", &old, &new, &"-o", &"/dev/null"]).code(1).says("must be a file");
    run(&[&"diff", &old, &new, &"-o", &scene.path("nowhere/delta")]).code(1).says("nowhere");
    assert_eq!(scene.names(), names);
    std::os::unix::fs::symlink(&old, scene.path("link")).unwrap();
    run(&[&"diff", &old, &new, &"-o", &scene.path("link")]).code(1).says("overwrite an input");
    // Another name of the same file: the output takes the name, the input stays.
    fs::hard_link(&old, scene.path("twin")).unwrap();
    let said = run(&[&"diff", &old, &new, &"-o", &scene.path("twin")]);
    assert!(said.code == 0 || said.code == 1, "{said:?}");
    before_old.still(&old);
    before_new.still(&new);
}

#[test]
fn wrong_usage() {
    let scene = small_scene();
    let (old, new, delta, target) = (scene.path("old"), scene.path("new"), scene.path("delta"), scene.path("target"));
    let before = Unwritten::look(&target);
    run(&[]).code(2).says("Usage");
    run(&[&"frobnicate"]).code(2).says("frobnicate");
    run(&[&"patch"]).code(2).says("<DELTA>");
    run(&[&"patch", &delta]).code(2).says("<TARGET>");
    run(&[&"patch", &delta, &target, &"more"]).code(2).says("more");
    run(&[&"patch", &delta, &target, &"--force"]).code(2).says("--force");
    run(&[&"patch", &"--verify", &"none", &delta, &target]).code(2).says("none");
    run(&[&"patch", &"--memory-limit", &"lots", &delta, &target]).code(2).says("256M");
    run(&[&"diff", &old, &new]).code(2).says("--output");
    run(&[&"diff", &old, &"-o", &delta]).code(2).says("<NEW>");
    run(&[&"diff", &old, &new, &"-o", &delta, &"--level", &"0"]).code(2).says("1..=9");
    run(&[&"diff", &old, &new, &"-o", &delta, &"--threads", &"0"]).code(2).says("threads");
    run(&[&"info"]).code(2).says("<DELTA>");
    before.still(&target);
    // Help and version are not errors, and go to standard output.
    for args in [&["--help"][..], &["--version"], &["help", "patch"], &["diff", "--help"]] {
        let args: Vec<&dyn AsRef<OsStr>> = args.iter().map(|arg| arg as &dyn AsRef<OsStr>).collect();
        let said = run(&args).code(0);
        assert!(said.out.contains("blkpatch") && said.err.is_empty(), "{said:?}");
    }
}

/// Runs the program in a scene as a user who is not root, on the file names given.
fn as_nobody(scene: &Scene, args: &[&str]) -> Out {
    let mut command = if is_root() {
        // Where the program was built, nobody may not be allowed to look.
        let copy = scene.path(".program");
        if !copy.exists() {
            fs::copy(env!("CARGO_BIN_EXE_blkpatch"), &copy).unwrap();
        }
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(scene.folder(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = std::process::Command::new(copy);
        command.uid(65_534).gid(65_534);
        command
    } else {
        std::process::Command::new(env!("CARGO_BIN_EXE_blkpatch"))
    };
    command.args(args).current_dir(scene.folder());
    run_command(command)
}
