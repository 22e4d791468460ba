//! Compressed images wherever a verb takes an image, as the real programs compress them: what comes of them is what comes
//! of the raw images, byte for byte; what is damaged, cut short or followed by something is refused with its place.

mod common;

use common::*;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, with options that matter, and the names of their files.
const PACKERS: [(&str, &[&str], &str); 6] = [
    ("gzip", &["-1"], "gz"),
    ("xz", &["-1", "--block-size=1MiB", "-T2"], "xz"),
    ("xz", &["-0", "--check=none"], "xz"),
    ("zstd", &["-q", "-1", "--no-check"], "zst"),
    ("zstd", &["-q", "-3", "--long=31", "--ultra"], "zst"),
    ("bzip2", &["-1"], "bz2"),
];

fn packers(test: &str) -> bool {
    tools(test, &["gzip", "xz", "zstd", "bzip2"])
}

/// Compresses bytes from a pipe, so that nothing is said of their length.
#[track_caller]
fn pack(program: &str, options: &[&str], bytes: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    fs::write(&input, bytes).unwrap();
    let mut command = Command::new(program);
    command.args(options).arg("-c").stdin(fs::File::open(input).unwrap());
    let out = command.output().unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// An image with data, runs of zeros, a change here and there, content that moved, and an odd end.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let mut old = random(81, 3 * MIB + 5 * BLOCK + 123);
    old[MIB..2 * MIB + 777].fill(0);
    let mut new = old.clone();
    new[5 * BLOCK..6 * BLOCK].copy_from_slice(&random(82, BLOCK));
    new.copy_within(10 * BLOCK..30 * BLOCK, 2 * MIB + 10 * BLOCK + 55);
    new[2 * MIB + 200 * BLOCK..2 * MIB + 230 * BLOCK].fill(0);
    new.truncate(new.len() - 100);
    (old, new)
}

/// The pair, raw, and the delta between them.
fn scene() -> Scene {
    let (old, new) = pair();
    Scene::with_delta(&old, &new)
}

/// Runs with TMPDIR set.
#[track_caller]
fn run_in(folder: &Path, args: &[&dyn AsRef<OsStr>]) -> Out {
    let mut command = command(args);
    command.env("TMPDIR", folder);
    run_command(command)
}

// -------------------------------------------------------------------------------------------------------- every verb

#[test]
fn a_delta_between_compressed_images_is_the_one_between_the_raw_ones() {
    if !packers("compressed images") {
        return;
    }
    let scene = scene();
    let (delta, made) = (scene.read("delta"), scene.path("made"));
    for (i, (program, options, name)) in PACKERS.into_iter().enumerate() {
        // The name does not matter, but a wrong one would be odd.
        let name = if i % 2 == 0 { format!("packed.{name}") } else { format!("packed{i}.img") };
        let old = scene.write(&format!("old-{name}"), &pack(program, options, &scene.read("old")));
        let new = scene.write(&format!("new-{name}"), &pack(program, options, &scene.read("new")));
        for (old, new) in [(&old, &new), (&scene.path("old"), &new), (&old, &scene.path("new"))] {
            let said = run(&[&"diff", old, new, &"-o", &made]).code(0);
            assert_same(&scene.read("made"), &delta, &format!("{program} {options:?}"));
            if *new != scene.path("new") {
                said.says(&format!("compressed by {program}, is unpacked in {}", scene.folder().display()));
            }
        }
    }
    // Of different kinds, said by the user, with one thread.
    let [old, new] = [scene.path("old-packed.gz"), scene.path("new-packed5.img")];
    run(&[&"diff", &"--format", &"gzip,bzip2", &"--threads", &"1", &old, &new, &"-o", &made]).code(0);
    assert_same(&scene.read("made"), &delta, "one thread");
}

#[test]
fn every_verb_that_reads_an_image_reads_compressed_ones() {
    if !packers("compressed images with every verb") {
        return;
    }
    let scene = scene();
    let (delta, old, new) = (scene.path("delta"), scene.read("old"), scene.read("new"));
    run(&[&"sign", &scene.path("old"), &"-o", &scene.path("raw.sig")]).code(0);
    run(&[&"diff", &"--signature", &scene.path("raw.sig"), &scene.path("new"), &"-o", &scene.path("raw.delta")])
        .code(0);
    for (program, options, name) in PACKERS {
        let packed =
            |image: &str, bytes: &[u8]| scene.write(&format!("{image}.{name}"), &pack(program, options, bytes));
        let (old_packed, new_packed) = (packed("old", &old), packed("new", &new));

        run(&[&"sign", &old_packed, &"-o", &scene.path("sig")]).code(0).says("is unpacked in");
        assert_same(&scene.read("sig"), &scene.read("raw.sig"), &format!("sign, {program}"));
        let made = scene.path("made.delta");
        run(&[&"diff", &"--signature", &scene.path("sig"), &new_packed, &"-o", &made]).code(0);
        assert_same(&scene.read("made.delta"), &scene.read("raw.delta"), &format!("diff --signature, {program}"));

        let slot = scene.path("slot");
        let _ = fs::remove_file(&slot);
        run(&[&"patch", &"--dry-run", &delta, &slot, &"--old", &old_packed]).code(0);
        run(&[&"patch", &delta, &slot, &"--old", &old_packed]).code(0).says("is unpacked in");
        assert_same(&scene.read("slot"), &new, &format!("patch --old, {program}"));
        run(&[&"patch", &delta, &slot, &"--old", &old_packed]).code(0).says("already holds the new image");

        let target = scene.write("target", &old);
        run(&[&"sync", &new_packed, &target]).code(0);
        assert_same(&scene.read("target"), &new, &format!("sync, {program}"));
        let target = scene.write("target", &old);
        let mut piped = command(&[&"sync", &"-", &target]);
        piped.stdin(fs::File::open(&new_packed).unwrap());
        run_command(piped).code(0);
        assert_same(&scene.read("target"), &new, &format!("sync from a pipe, {program}"));
    }
}

#[test]
fn a_device_is_built_from_a_compressed_old_image() {
    if !packers("a device from a compressed image") || !loops("a device from a compressed image") {
        return;
    }
    let scene = scene();
    let (old, new) = (scene.write("old.xz", &pack("xz", &["-1"], &scene.read("old"))), scene.read("new"));
    let device = Loop::attach(&scene.write("backing", &vec![7; 4 * MIB]));
    fs::create_dir(scene.path("room")).unwrap();
    let said = run_in(&scene.path("room"), &[&"patch", &scene.path("delta"), &device.path(), &"--old", &old]).code(0);
    said.says(&format!("is unpacked in {}", scene.path("room").display()));
    assert_same(&device.read()[..new.len()], &new, "the device");
    assert!(fs::read_dir(scene.path("room")).unwrap().next().is_none());
}

#[test]
fn an_export_of_a_compressed_old_image_stands_alone() {
    if !packers("export of a compressed image") || !tools("export of a compressed image", &["qemu-img"]) {
        return;
    }
    let scene = scene();
    let old = scene.write("old.zst", &pack("zstd", &["-q"], &scene.read("old")));
    let (overlay, raw) = (scene.path("try.qcow2"), scene.path("raw"));
    let said = run(&[&"--json", &"export", &scene.path("delta"), &"--old", &old, &"-o", &overlay]).code(0);
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert!(json["backing"].is_null(), "{json}");
    schema::assert_described(&json, "export");
    fs::remove_file(old).unwrap();
    tool("qemu-img", &[&"check", &"-q", &overlay]);
    tool("qemu-img", &[&"convert", &"-f", &"qcow2", &"-O", &"raw", &overlay, &raw]);
    let (mut new, shown) = (scene.read("new"), scene.read("raw"));
    new.resize(new.len().next_multiple_of(512), 0);
    assert_same(&shown, &new, "what QEMU reads");
    // Zeros take no room.
    assert!(fs::metadata(&overlay).unwrap().len() < 3 * MIB as u64, "clusters of zeros");
    // It is read here as well, also as OLD.
    let (back, slot) = (scene.path("back"), scene.path("slot"));
    run(&[&"diff", &overlay, &scene.path("old"), &"-o", &back]).code(0);
    run(&[&"patch", &back, &slot, &"--old", &overlay]).code(0);
    assert_same(&scene.read("slot"), &scene.read("old"), "what was built from a qcow2 image");
}

// -------------------------------------------------------------------------------------------------- unusual, but whole

#[test]
fn files_of_several_parts_are_whole() {
    if !packers("several parts") {
        return;
    }
    let scene = scene();
    let new = scene.read("new");
    let (made, delta) = (scene.path("made"), scene.read("delta"));
    for (program, options, name) in PACKERS {
        let mut parts: Vec<Vec<u8>> = new.chunks(MIB + 99).map(|part| pack(program, options, part)).collect();
        parts.insert(1, pack(program, options, b""));
        match program {
            "zstd" => parts.insert(0, b"\x50\x2a\x4d\x18\x05\0\0\0xxxxx".to_vec()), // a frame to be skipped
            "xz" => parts.insert(2, vec![0; 8]),
            _ => {}
        }
        let packed = scene.write(&format!("parts.{name}"), &parts.concat());
        run(&[&"diff", &scene.path("old"), &packed, &"-o", &made]).code(0);
        assert_same(&scene.read("made"), &delta, &format!("{program} {options:?}"));
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

/// That every verb refuses an image as NEW or OLD, and makes nothing.
#[track_caller]
fn refused(scene: &Scene, image: &Path, says: &[&str]) {
    let (good, out, target) = (scene.path("old"), scene.path("out"), scene.path("target"));
    let delta = scene.path("delta");
    let before = Unwritten::look(&target);
    let runs: [&[&dyn AsRef<OsStr>]; 7] = [
        &[&"diff", &good, &image, &"-o", &out],
        &[&"diff", &image, &good, &"-o", &out],
        &[&"diff", &image, &image, &"-o", &out],
        &[&"sign", &image, &"-o", &out],
        &[&"export", &delta, &"--old", &image, &"-o", &out],
        &[&"patch", &delta, &out, &"--old", &image],
        &[&"sync", &"--dry-run", &image, &target],
    ];
    for args in runs {
        let said = run(args).code(1).says(&image.display().to_string());
        says.iter().for_each(|text| assert!(said.err.contains(text), "expected {text:?}:\n{}", said.err));
        assert!(!out.exists(), "{}", said.err);
    }
    before.still(&target);
}

#[test]
fn what_is_cut_short_damaged_or_followed_by_something_is_refused() {
    if !packers("damaged compressed images") {
        return;
    }
    let scene = scene();
    let new = scene.read("new");
    scene.write("target", &random(83, 2 * MIB));
    for (program, options, name) in PACKERS {
        let packed = pack(program, options, &new);
        let name = format!("packed.{name}");
        let cut = packed.len() - 3;
        let file = scene.write(&name, &packed[..cut]);
        refused(&scene, &file, &["ends too soon", "Copy it again"]);
        run(&[&"sign", &file, &"-o", &scene.path("out")]).code(1).row("packed-cut");
        let rest = [&packed[..], b"garbage"].concat();
        let place = format!("at its byte {}, something follows that is not {program}", packed.len());
        refused(&scene, &scene.write(&name, &rest), &[&place]);
        run(&[&"sign", &scene.path(&name), &"-o", &scene.path("out")]).code(1).row("packed-garbage");
        if options.contains(&"--check=none") || options.contains(&"--no-check") {
            continue;
        }
        let mut damaged = packed.clone();
        let at = packed.len() / 2;
        damaged[at..at + 40].iter_mut().for_each(|byte| *byte ^= 0x5a);
        refused(&scene, &scene.write(&name, &damaged), &["is damaged near its byte", &format!("{program} -t")]);
        run(&[&"sign", &scene.path(&name), &"-o", &scene.path("out")]).code(1).row("packed-damaged");
    }
    // What has the name only.
    let said = ["is not compressed, though its name says so", "--format raw"];
    refused(&scene, &scene.write("empty.xz", &new), &said);
    run(&[&"sign", &scene.path("empty.xz"), &"-o", &scene.path("out")]).code(1).row("packed-by-name");
    refused(&scene, &scene.write("image", b"PK\x03\x04whatever"), &["zip archive"]);
    refused(&scene, &scene.write("image", b"\x04\x22\x4d\x18whatever"), &["compressed by lz4"]);
    // More memory than any machine gives.
    let mut wide = b"\x28\xb5\x2f\xfd\x00\xff".to_vec();
    wide.resize(100, 0);
    refused(&scene, &scene.write("wide", &wide), &["3.8 TiB of memory", "are allowed"]);
    run(&[&"sign", &scene.path("wide"), &"-o", &scene.path("out")]).code(1).row("packed-memory");
}

#[test]
fn what_only_looks_compressed_is_raw_where_the_user_says_so_or_on_a_device() {
    if !packers("images that look compressed") {
        return;
    }
    let scene = Scene::new();
    let mut old = random(84, 64 * BLOCK);
    old[..4].copy_from_slice(b"\x1f\x8b\x08\0");
    let mut new = old.clone();
    new[9 * BLOCK] ^= 1;
    let [old_path, new_path] = [scene.write("old", &old), scene.write("new", &new)];
    let (delta, target) = (scene.path("delta"), scene.write("target", &old));
    run(&[&"diff", &old_path, &new_path, &"-o", &delta]).code(1).says("compressed by gzip").says("--format raw");
    run(&[&"diff", &"--format", &"raw", &old_path, &new_path, &"-o", &delta]).code(0);
    run(&[&"patch", &delta, &target]).code(0);
    assert_same(&scene.read("target"), &new, "the target");

    let slot = scene.path("slot");
    run(&[&"patch", &delta, &slot, &"--old", &old_path]).code(1).says("compressed by gzip").says("Nothing was written");
    run(&[&"patch", &delta, &slot, &"--format", &"raw", &"--old", &old_path]).code(0);
    assert_same(&scene.read("slot"), &new, "the slot");
    run(&[&"patch", &delta, &target, &"--format", &"raw"]).code(2);
    run(&[&"export", &delta, &"--format", &"raw", &"--old", &old_path, &"-o", &scene.path("o.qcow2")]).code(0);
    run(&[&"sign", &"--format", &"raw", &old_path, &"-o", &scene.path("sig")]).code(0);
    let synced = scene.write("synced", b"");
    run(&[&"sync", &"--format", &"raw", &old_path, &synced]).code(0);
    assert_same(&scene.read("synced"), &old, "what was synced");
    // A real one, as it is.
    let packed = scene.write("packed.gz", &pack("gzip", &[], &old));
    run(&[&"sync", &"--format", &"raw", &packed, &synced]).code(0);
    assert_same(&scene.read("synced"), &scene.read("packed.gz"), "what was synced");
    run(&[&"diff", &"--format", &"xz,auto", &packed, &new_path, &"-o", &delta]).code(1).row("packed-otherwise");

    if loops("devices that look compressed") {
        let device = Loop::attach(&old_path);
        run(&[&"diff", &device.path(), &device.path(), &"-o", &delta]).code(0);
        assert_eq!(info(&delta)["old"]["blake3"].as_str().unwrap(), blake3::hash(&old).to_hex().as_str());
        let said = run(&[&"sign", &"--format", &"gzip", &device.path(), &"-o", &scene.path("sig")]).code(1);
        said.row("packed-device");
    }
}

#[test]
fn where_the_room_runs_out_it_says_so_and_what_to_do() {
    if !packers("no room to unpack") {
        return;
    }
    if !is_root() {
        return skip("no room to unpack", "mounting a small tmpfs needs root");
    }
    let scene = scene();
    let room = scene.path("room");
    let _tmpfs = Mount::new("tmpfs", Path::new("tmpfs"), &room, "size=1m");
    let large = scene.write("large", &random(85, 3 * MIB));
    tool("xz", &[&"-0", &"-k", &large]);
    let (packed, out) = (scene.path("large.xz"), scene.path("out"));
    let (old, delta) = (scene.path("old"), scene.path("delta"));
    let runs: [&[&dyn AsRef<OsStr>]; 4] = [
        &[&"diff", &old, &packed, &"-o", &out],
        &[&"sign", &packed, &"-o", &out],
        &[&"export", &delta, &"--old", &packed, &"-o", &out],
        &[&"patch", &delta, &out, &"--old", &packed],
    ];
    for args in runs {
        let said = run_in(&room, args).code(1).row("packed-no-room").says("large.xz").says(&room.display().to_string());
        said.says("No space left").says("Set TMPDIR").says("says that it unpacks to 3.0 MiB");
        assert!(!out.exists());
    }
    // What is zero takes no room, however much it is: a bomb goes off in vain. But `sign` reads it through a map, and on a
    // tmpfs that takes room: without the check the system would end the program.
    let zeros = scene.write("zeros.zst", &pack("zstd", &["-q"], &vec![0; scaled(64, 512) * MIB]));
    let said = run_in(&room, &[&"sign", &zeros, &"-o", &out]).code(1);
    said.says(&format!("{} bytes, which take 0 bytes of room", scaled(64, 512) * MIB)).row("packed-tmpfs");
    assert!(fs::read_dir(&room).unwrap().next().is_none(), "nothing is left there");
}

#[test]
fn an_image_that_is_written_meanwhile_is_refused() {
    if !packers("compressed images that change") {
        return;
    }
    let scene = Scene::new();
    let bytes = random(86, scaled(48, 200) * MIB);
    let old = scene.write("old", &bytes[..MIB]);
    let new = scene.write("new.gz", &pack("gzip", &["-1"], &bytes));
    let out: PathBuf = scene.path("out");
    let mut child = start(&[&"diff", &"--level", &"1", &old, &new, &"-o", &out]);
    sleep_until_reading(&mut child);
    // Its times change, and it is still the same image: nobody can know.
    let file = fs::OpenOptions::new().append(true).open(&new).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    finish(child, "diff").code(1).says("new.gz: changed while it was read");
    assert!(!out.exists());
}

/// Until a child has read more than its program.
fn sleep_until_reading(child: &mut std::process::Child) {
    let path = format!("/proc/{}/io", child.id());
    kill_when(child, || {
        let io = fs::read_to_string(&path).unwrap_or_default();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<usize>().ok());
        read.is_some_and(|read| read > 2 * MIB)
    });
}
