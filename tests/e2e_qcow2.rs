//! qcow2 images as a user has them, beside the real `qemu-img`: read by `diff`, `sync` and `sign`, refused where they must
//! be, and written by `export`.

mod common;

use common::*;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn qemu(test: &str) -> bool {
    let there = |tool| Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok();
    if ["qemu-img", "qemu-io"].into_iter().all(there) {
        return true;
    }
    skip(test, "qemu-img or qemu-io is missing (Debian: qemu-utils)");
    false
}

/// Makes an overlay, or with an empty `backing` an image that stands alone.
#[track_caller]
fn create(path: &Path, options: &str, backing: Option<(&str, &str)>, size: usize) -> PathBuf {
    let size = size.to_string();
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"create", &"-q", &"-f", &"qcow2"];
    if !options.is_empty() {
        args.extend([&"-o" as &dyn AsRef<OsStr>, &options]);
    }
    if let Some((name, format)) = &backing {
        args.extend([&"-b" as &dyn AsRef<OsStr>, name, &"-F", format]);
    }
    args.push(&path);
    args.push(&size);
    tool("qemu-img", &args);
    path.to_owned()
}

/// Lets QEMU's own code write to an image.
#[track_caller]
fn guest(image: &Path, commands: &[String]) {
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"-f", &"qcow2"];
    for command in commands {
        args.extend([&"-c" as &dyn AsRef<OsStr>, command]);
    }
    args.push(&image);
    let said = tool("qemu-io", &args);
    assert!(!said.contains("rror") && !said.contains("failed"), "{said}");
}

/// What QEMU reads.
#[track_caller]
fn truth(scene: &Scene, image: &Path) -> Vec<u8> {
    let raw = scene.path("truth");
    tool("qemu-img", &[&"convert", &"-f", &"qcow2", &"-O", &"raw", &image, &raw]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

/// Asserts that `sync`, `diff` and `sign` read what QEMU reads. `old` is a raw image in the scene.
#[track_caller]
fn reads_like_qemu(scene: &Scene, old: &str, image: &Path) {
    let expected = truth(scene, image);
    let what = image.display().to_string();
    let (target, delta) = (scene.path("target"), scene.path("delta"));
    fs::copy(scene.path(old), &target).unwrap();
    run(&[&"sync", &image, &target]).code(0);
    assert_same(&scene.read("target"), &expected, &format!("sync of {what}"));

    run(&[&"diff", &scene.path(old), &image, &"-o", &delta, &"--level", &"1"]).code(0);
    let info = info(&delta);
    assert_eq!(info["new"]["blake3"].as_str().unwrap(), blake3::hash(&expected).to_hex().as_str(), "diff of {what}");
    fs::copy(scene.path(old), &target).unwrap();
    run(&[&"patch", &delta, &target]).code(0);
    assert_same(&scene.read("target"), &expected, &format!("diff and patch of {what}"));
    fs::remove_file(delta).unwrap();
}

/// A raw image with data, zeros and an end within a cluster.
fn base() -> Vec<u8> {
    let mut bytes = random(7, 5 * MIB + 3 * 512);
    bytes[MIB..2 * MIB + 12345].fill(0);
    bytes
}

// ------------------------------------------------------------------------------------------------------- reading

#[test]
fn overlays_read_like_qemu_reads_them() {
    if !qemu("overlays") {
        return;
    }
    let scene = Scene::new();
    scene.write("old", &base());
    scene.write("noise", &random(8, 300_000));
    for (i, options) in [
        "cluster_size=512",
        "cluster_size=4k",
        "",
        "compat=0.10",
        "cluster_size=2M",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "lazy_refcounts=on",
        "refcount_bits=1",
    ]
    .into_iter()
    .enumerate()
    {
        // Larger than its base, on it, and again on that: smaller than its base.
        let first = create(&scene.path("first.qcow2"), options, Some(("old", "raw")), 7 * MIB);
        let noise = scene.path("noise").display().to_string();
        let zeros = |at: usize, len: usize| match options {
            "compat=0.10" => format!("write -P 0 {at} {len}"),
            _ => format!("write -z -u {at} {len}"),
        };
        guest(
            &first,
            &[
                format!("write -s {noise} {} 300000", 3 * MIB + 512 * (i + 1) - 512),
                format!("write -P 7 {} 4096", 2 * MIB),
                format!("write -P 9 {} 65536", 6 * MIB - 1024),
                zeros(4 * MIB, 256 << 10),
                zeros(4 * MIB + (512 << 10) + 2048, 4096),
            ],
        );
        let second = create(&scene.path("second.QCOW2"), options, Some(("first.qcow2", "qcow2")), 6 * MIB - 512);
        guest(&second, &[format!("write -P 3 {} 512", 3 * MIB + 100 * 512), zeros(0, 70 << 10)]);
        reads_like_qemu(&scene, "old", &first);
        reads_like_qemu(&scene, "old", &second);
        let said = run(&[&"sync", &"--dry-run", &second, &scene.write("target", &[])]).code(0);
        said.says("second.QCOW2 is an overlay").says("first.qcow2, on ");
    }
}

#[test]
fn images_that_stand_alone_read_like_qemu_reads_them() {
    if !qemu("whole images") {
        return;
    }
    let scene = Scene::new();
    let mut bytes = base();
    bytes[3 * MIB..4 * MIB].copy_from_slice(&b"compressible ".repeat(MIB / 13 + 1)[..MIB]);
    scene.write("old", &bytes);
    for options in [
        &["-o", "cluster_size=4k"][..],
        &["-c"],
        &["-c", "-o", "cluster_size=512"],
        &["-c", "-o", "cluster_size=2M"],
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "compression_type=zstd,cluster_size=4k"],
        &["-c", "-o", "extended_l2=on"],
        &["-c", "-o", "compat=0.10"],
        &["-o", "preallocation=metadata"],
    ] {
        let image = scene.path("whole.qcow2");
        let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"convert", &"-f", &"raw", &"-O", &"qcow2"];
        args.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
        let old = scene.path("old");
        args.extend([&old as &dyn AsRef<OsStr>, &image]);
        tool("qemu-img", &args);
        reads_like_qemu(&scene, "old", &image);
    }
    // Empty, and of nothing but a hole.
    let hole = create(&scene.path("hole.qcow2"), "", None, 3 * MIB);
    reads_like_qemu(&scene, "old", &hole);
    let empty = create(&scene.path("empty.qcow2"), "", None, 0);
    run(&[&"sync", &empty, &scene.path("old")]).code(1).says("holds no image");
}

#[test]
fn between_two_overlays_of_one_base_and_from_qcow2_to_raw() {
    if !qemu("two overlays") {
        return;
    }
    let scene = Scene::new();
    scene.write("base", &base());
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| create(&scene.path(name), "", Some(("base", "raw")), 6 * MIB));
    guest(&a, &[format!("write -P 1 {} 200k", 2 * MIB)]);
    guest(&b, &[format!("write -P 2 {} 100k", 2 * MIB + 999 * 512), "write -P 5 0 512".into()]);
    let (old, new) = (truth(&scene, &a), truth(&scene, &b));
    run(&[&"diff", &a, &b, &"-o", &scene.path("delta")]).code(0);
    let target = scene.write("target", &old);
    run(&[&"patch", &scene.path("delta"), &target]).code(0);
    assert_same(&scene.read("target"), &new, "the target");
    run(&[&"diff", &a, &scene.path("base"), &"-o", &scene.path("delta")]).code(0);
    fs::write(&target, &old).unwrap();
    run(&[&"patch", &scene.path("delta"), &target]).code(0);
    assert_same(&scene.read("target"), &base(), "the target");
    // From a signature, too.
    run(&[&"sign", &scene.write("a", &old), &"-o", &scene.path("raw.sig")]).code(0);
    run(&[&"sign", &a, &"-o", &scene.path("sig")]).code(0);
    assert_same(&scene.read("sig"), &scene.read("raw.sig"), "the signature");
    run(&[&"diff", &"--signature", &scene.path("sig"), &b, &"-o", &scene.path("delta")]).code(0);
    fs::write(&target, &old).unwrap();
    run(&[&"patch", &scene.path("delta"), &target]).code(0);
    assert_same(&scene.read("target"), &new, "the target");
}

#[test]
fn an_overlay_on_a_device_goes_to_another_device() {
    if !qemu("devices") || !loops("qcow2") {
        return;
    }
    let scene = Scene::new();
    let mut old = base();
    old.resize(6 * MIB, 0);
    let base = Loop::attach(&scene.write("base", &old));
    let name = base.path().display().to_string();
    let overlay = create(&scene.path("a.qcow2"), "", Some((&name, "host_device")), 6 * MIB);
    guest(&overlay, &[format!("write -P 1 {} 200k", 2 * MIB)]);
    let new = truth(&scene, &overlay);
    let target = Loop::attach(&scene.write("target", &random(1, 6 * MIB)));
    run(&[&"sync", &overlay, &target.path()]).code(0);
    assert_same(&target.read(), &new, "the target");
    // Not onto what it lies on.
    run(&[&"sync", &overlay, &base.path()]).code(1).says("they are the same").says("Nothing was written");
    run(&[&"sync", &overlay, &scene.path("base")]).code(1).says("loop device").says("Nothing was written");
    assert_same(&base.read(), &old, "the base");
    // diff from the device that is the base.
    run(&[&"diff", &base.path(), &overlay, &"-o", &scene.path("delta")]).code(0);
    assert_state(&scene.path("delta"), target.path(), "new");
    assert_state(&scene.path("delta"), base.path(), "old");
}

// ---------------------------------------------------------------------------------------------------- the format

#[test]
fn a_raw_image_with_a_qcow2_header_is_not_misread() {
    if !qemu("a guest's header") {
        return;
    }
    let scene = Scene::new();
    scene.write("secret", &random(66, MIB));
    // What a guest writes to the first sectors of its disk.
    let header = create(&scene.path("header.qcow2"), "", Some(("secret", "raw")), MIB);
    let mut raw = random(5, 2 * MIB);
    let header = fs::read(header).unwrap();
    raw[..header.len()].copy_from_slice(&header);
    let (disk, old) = (scene.write("disk.img", &raw), scene.write("old", &random(5, 2 * MIB)));
    let (delta, target) = (scene.path("delta"), scene.write("target", &random(5, 2 * MIB)));

    let unwritten = Unwritten::look(&target);
    run(&[&"sync", &disk, &target]).code(1).says("--format raw").says("Nothing was written");
    run(&[&"diff", &old, &disk, &"-o", &delta]).code(1).says("--format raw");
    run(&[&"sign", &disk, &"-o", &delta]).code(1).says("--format raw");
    run(&[&"diff", &"--format", &"qcow2", &old, &disk, &"-o", &delta]).code(1).says("is not a qcow2 image");
    unwritten.still(&target);
    assert!(!delta.exists());

    run(&[&"diff", &"--format", &"raw", &old, &disk, &"-o", &delta]).code(0);
    run(&[&"patch", &delta, &target]).code(0);
    assert_same(&scene.read("target"), &raw, "diff of the raw image");
    fs::copy(&old, &target).unwrap();
    run(&[&"sync", &"--format", &"raw", &disk, &target]).code(0);
    assert_same(&scene.read("target"), &raw, "sync of the raw image");

    // The same bytes on a device, or through a pipe, never are qcow2, whatever is said.
    fs::copy(&disk, scene.path("link.qcow2")).unwrap();
    if loops("qcow2") {
        let device = Loop::attach(&scene.path("link.qcow2"));
        fs::copy(&old, &target).unwrap();
        run(&[&"sync", &device.path(), &target]).code(0);
        assert_same(&scene.read("target"), &raw, "sync of the device");
        run(&[&"sync", &"--format", &"qcow2", &device.path(), &target]).code(1).says("always raw");
        run(&[&"diff", &old, &device.path(), &"-o", &delta]).code(0);
        assert_state(&delta, &target, "new");
    }
    let piped = |format: &str| {
        let mut command = command(&[&"sync", &"--format", &format, &"-", &target]);
        command.stdin(fs::File::open(&disk).unwrap());
        run_command(command)
    };
    fs::copy(&old, &target).unwrap();
    let unwritten = Unwritten::look(&target);
    piped("auto").code(1).says("--format raw");
    piped("qcow2").code(1).says("always raw");
    unwritten.still(&target);
    piped("raw").code(0);
    assert_same(&scene.read("target"), &raw, "sync from the pipe");
}

#[test]
fn name_and_content_must_agree_or_the_user_decide() {
    if !qemu("the format") {
        return;
    }
    let scene = Scene::new();
    let (old, target) = (scene.write("old", &base()), scene.write("target", &[]));
    let image = create(&scene.path("disk.img"), "", Some(("old", "raw")), 5 * MIB);
    guest(&image, &["write -P 1 0 4096".into()]);
    let expected = truth(&scene, &image);
    run(&[&"sync", &image, &target]).code(1).says("--format qcow2");
    run(&[&"sync", &"--format", &"qcow2", &image, &target]).code(0);
    assert_same(&scene.read("target"), &expected, "the target");
    let delta = scene.path("delta");
    run(&[&"diff", &old, &image, &"-o", &delta]).code(1).says("--format qcow2");
    run(&[&"diff", &"--format", &"raw,qcow2", &old, &image, &"-o", &delta]).code(0);
    assert_state(&delta, &target, "new");
    run(&[&"diff", &"--format", &"raw,qcow2,raw", &old, &image, &"-o", &delta]).code(2);
    run(&[&"diff", &"--format", &"qcow", &old, &image, &"-o", &delta]).code(2);
    // A raw image under a name that says otherwise.
    let raw = scene.write("raw.qcow2", &expected);
    run(&[&"sync", &raw, &target]).code(1).says("--format raw");
    run(&[&"sync", &"--format", &"raw", &raw, &target]).code(0).says("nothing was written");
    // With --format raw, nothing is unpacked either.
    let packed = zstd::stream::encode_all(&expected[..MIB], 1).unwrap();
    run(&[&"sync", &"--format", &"raw", &scene.write("packed", &packed), &target]).code(0);
    assert_same(&scene.read("target"), &packed, "the target");
}

#[test]
fn the_format_of_a_backing_file_is_never_guessed() {
    if !qemu("backing formats") {
        return;
    }
    let scene = Scene::new();
    let old = scene.write("old", &base());
    let below = create(&scene.path("below.qcow2"), "", Some(("old", "raw")), 5 * MIB);
    let image = create(&scene.path("a.qcow2"), "", Some(("below.qcow2", "qcow2")), 5 * MIB);
    reads_like_qemu(&scene, "old", &image);
    // As programs of old left it: the extension that says the format is made one that nobody knows.
    let forget = |image: &Path| {
        let bytes = fs::read(image).unwrap();
        let at = bytes.windows(4).position(|bytes| bytes == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
        let file = OpenOptions::new().write(true).open(image).unwrap();
        file.write_all_at(&[0x12, 0x34, 0x56, 0x78], at as u64).unwrap();
    };
    forget(&image);
    run(&[&"sync", &image, &old]).code(1).row("qcow2-backing-unsaid").says("Nothing was written");
    // One that is not qcow2 is raw.
    forget(&below);
    run(&[&"sync", &"--dry-run", &below, &scene.write("target", &[])]).code(0);
    // Said to be raw it is raw, whatever it begins with.
    let image = create(&scene.path("b.qcow2"), "", None, 64 << 10);
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"below.qcow2", &"-F", &"raw", &image]);
    let target = scene.write("target", &[]);
    run(&[&"sync", &image, &target]).code(0);
    assert_same(&scene.read("target"), &scene.read("below.qcow2")[..64 << 10], "the target");
    let image = create(&scene.path("c.qcow2"), "", None, 64 << 10);
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"below.qcow2", &"-F", &"vmdk", &image]);
    run(&[&"sync", &image, &old]).code(1).row("qcow2-backing-format").says("'vmdk'");
    for name in ["nbd://localhost/x", "json:{\"driver\":\"raw\"}"] {
        tool("qemu-img", &[&"rebase", &"-u", &"-b", &name, &"-F", &"raw", &image]);
        run(&[&"sync", &image, &old]).code(1).row("qcow2-backing-name");
    }
}

// ----------------------------------------------------------------------------------------------------- refusals

#[test]
fn what_cannot_be_read_is_refused_untouched() {
    if !qemu("refusals") {
        return;
    }
    let scene = Scene::new();
    let old = scene.write("old", &base());
    let good = create(&scene.path("good.qcow2"), "", Some(("old", "raw")), 5 * MIB);
    let noise = scene.write("noise", &random(8, MIB)).display().to_string();
    guest(&good, &[format!("write -s {noise} 1M 1M")]);
    let target = scene.write("target", &random(9, 5 * MIB));
    let unwritten = Unwritten::look(&target);
    let refused = |image: &Path, why: &str, row: &str| {
        let mut said = [
            run(&[&"sync", &image, &target]).code(1).says(why).says("Nothing was written"),
            run(&[&"diff", &old, &image, &"-o", &scene.path("delta")]).code(1).says(why),
        ];
        if !row.is_empty() {
            said = said.map(|said| said.row(row));
        }
        drop(said);
        unwritten.still(&target);
        assert!(!scene.path("delta").exists());
    };
    let bad = scene.path("bad.qcow2");
    let bytes = fs::read(&good).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let l1 = number(40);
    let l2 = number(l1) & 0x00ff_ffff_ffff_fe00;
    let damage = |at: usize, with: &[u8], why: &str, row: &str| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        fs::write(&bad, bytes).unwrap();
        refused(&bad, why, row);
    };
    damage(32, &2u32.to_be_bytes(), "", "qcow2-encrypted");
    damage(72, &1u64.to_be_bytes(), "", "qcow2-dirty");
    damage(72, &2u64.to_be_bytes(), "", "qcow2-corrupt");
    damage(72, &4u64.to_be_bytes(), "", "qcow2-external");
    damage(72, &(1u64 << 20).to_be_bytes(), "", "qcow2-features");
    damage(20, &30u32.to_be_bytes(), "cluster_bits", "qcow2-field");
    damage(24, &(1u64 << 50).to_be_bytes(), "l1_size", "qcow2-field");
    damage(4, &9u32.to_be_bytes(), "", "qcow2-version");
    damage(l1, &(1u64 << 40 | 1 << 63).to_be_bytes(), "behind the end", "qcow2-entry");
    damage(l1, &0x10200u64.to_be_bytes(), "middle of a cluster", "qcow2-entry");
    damage(l2 + 17 * 8, &(1u64 << 40 | 1 << 63).to_be_bytes(), "behind the end", "qcow2-entry");
    damage(l2 + 17 * 8, &0x51234u64.to_be_bytes(), "reserved bits", "qcow2-entry");
    damage(l2 + 70 * 8, &u64::MAX.to_be_bytes(), "for offset 4587520 of the disk", "qcow2-entry");
    damage(l2, &bytes[l2 + 17 * 8..l2 + 18 * 8].repeat(80), "", "qcow2-overlap");
    // Cut short, anywhere.
    for len in [0, 3, 50, 103, 200, l1 - 1, l2 + 8, bytes.len() - 100, bytes.len() - (64 << 10)] {
        fs::write(&bad, &bytes[..len]).unwrap();
        refused(&bad, "", "");
    }
    // Compressed data that is none.
    tool("qemu-img", &[&"convert", &"-c", &"-f", &"raw", &"-O", &"qcow2", &old, &bad]);
    let mut bytes = fs::read(&bad).unwrap();
    let l2 = u64::from_be_bytes(bytes[0x30000..0x30008].try_into().unwrap()) as usize & 0x00ff_ffff_ffff_fe00;
    let entry = u64::from_be_bytes(bytes[l2 + 16 * 8..][..8].try_into().unwrap()) as usize;
    if entry >> 62 & 1 == 1 {
        let at = entry & ((1 << 54) - 1);
        bytes[at] = 0xff;
        fs::write(&bad, bytes).unwrap();
        run(&[&"diff", &old, &bad, &"-o", &scene.path("delta")]).code(1).row("qcow2-compressed");
        run(&[&"sync", &"--dry-run", &bad, &target]).code(1).row("qcow2-compressed");
    }
}

#[test]
fn zeros_that_do_not_fit_into_a_tmpfs_are_refused_before_they_are_read() {
    if !qemu("qcow2 on a tmpfs") {
        return;
    }
    if !is_root() {
        return skip("qcow2 on a tmpfs", "mounting a small tmpfs needs root");
    }
    let scene = Scene::new();
    let room = scene.path("room");
    let _tmpfs = Mount::new("tmpfs", Path::new("tmpfs"), &room, "size=3m");
    let run_there = |args: &[&dyn AsRef<OsStr>]| {
        let mut command = command(args);
        command.env("TMPDIR", &room);
        run_command(command)
    };
    // Read through a map they take room there; without the check the system would end the program.
    let empty = create(&scene.path("empty.qcow2"), "", None, 64 * MIB);
    run_there(&[&"sign", &empty, &"-o", &scene.path("out")]).code(1).row("packed-tmpfs").says("empty.qcow2");
    assert!(!scene.path("out").exists());
    // One fits, two do not.
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| create(&scene.path(name), "", None, 2 * MIB));
    run_there(&[&"sign", &a, &"-o", &scene.path("out")]).code(0);
    run_there(&[&"diff", &a, &b, &"-o", &scene.path("delta")]).code(1).row("packed-tmpfs");
    // What the base shows takes none.
    scene.write("base", &random(41, 64 * MIB));
    let overlay = create(&scene.path("overlay.qcow2"), "", Some(("base", "raw")), 64 * MIB);
    run_there(&[&"sign", &overlay, &"-o", &scene.path("signature")]).code(0);
}

#[test]
fn chains_that_do_not_end_well_are_refused() {
    if !qemu("chains") {
        return;
    }
    let scene = Scene::new();
    let old = scene.write("old", &base());
    let refused = |image: &Path, why: &str| run(&[&"sync", &image, &old]).code(1).says(why).says("Nothing was written");
    let missing = create(&scene.path("missing.qcow2"), "", Some(("old", "raw")), 5 * MIB);
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"gone", &"-F", &"raw", &missing]);
    refused(&missing, "its backing file").row("qcow2-io");
    run(&[&"diff", &old, &missing, &"-o", &scene.path("no-folder/delta")]).code(1);
    let alone = create(&scene.path("alone.qcow2"), "", None, 5 * MIB);
    run(&[&"diff", &old, &alone, &"-o", &scene.path("no-folder/delta")]).code(1).row("file-temporary");
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"old", &"-F", &"qcow2", &missing]);
    refused(&missing, "").row("qcow2-none");
    // On itself, and two on each other.
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| create(&scene.path(name), "", None, 5 * MIB));
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"a.qcow2", &"-F", &"qcow2", &a]);
    refused(&a, "leads back");
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"b.qcow2", &"-F", &"qcow2", &a]);
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"a.qcow2", &"-F", &"qcow2", &b]);
    refused(&a, "leads back");
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"b.qcow2", &"-F", &"raw", &b]);
    refused(&b, "").row("qcow2-loop");
    // Onto its own backing file.
    let c = create(&scene.path("c.qcow2"), "", Some(("old", "raw")), 5 * MIB);
    refused(&c, "they are the same");
    run(&[&"diff", &old, &c, &"-o", &old]).code(1).says("would overwrite an input");
    let d = create(&scene.path("d.qcow2"), "", Some(("c.qcow2", "qcow2")), 5 * MIB);
    run(&[&"diff", &old, &d, &"-o", &c]).code(1).says("would overwrite an input");
    run(&[&"sign", &d, &"-o", &c]).code(1).says("would overwrite an input");
    // A pipe is no image, and nobody waits for it.
    tool("mkfifo", &[&scene.path("pipe")]);
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"pipe", &"-F", &"raw", &a]);
    refused(&a, "").row("qcow2-backing-kind");
    // A folder, and a chain that is longer than anybody makes.
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &".", &"-F", &"qcow2", &a]);
    refused(&a, "").row("qcow2-backing-no-file");
    tool("qemu-img", &[&"rebase", &"-u", &"-b", &"01.qcow2", &"-F", &"qcow2", &a]);
    let link = fs::read(&a).unwrap();
    let at = link.windows(8).position(|name| name == b"01.qcow2").unwrap();
    for i in 0..70 {
        let mut link = link.clone();
        link[at..at + 8].copy_from_slice(format!("{:02}.qcow2", i + 1).as_bytes());
        scene.write(&format!("{i:02}.qcow2"), &link);
    }
    refused(&scene.path("00.qcow2"), "longer than 64").row("qcow2-deep");
}

// ------------------------------------------------------------------------------------------------------- export

/// Exports, and asserts that QEMU finds the overlay sound and equal to the new image. Returns the overlay's length.
#[track_caller]
fn exports(scene: &Scene, old: &Path, new: &Path, delta: &Path) -> u64 {
    let overlay = scene.path("try.qcow2");
    let _ = fs::remove_file(&overlay);
    let before = Unwritten::look(old);
    run(&[&"export", &delta, &"--old", &old, &"-o", &overlay]).code(0).says("shows the new image");
    before.still(old);
    let said = tool("qemu-img", &[&"check", &"-f", &"qcow2", &overlay]);
    assert!(said.contains("No errors were found"), "{said}");
    equal(scene, &overlay, new);
    fs::metadata(&overlay).unwrap().len()
}

/// Asserts that QEMU finds an overlay to be equal to a raw image, in whole sectors, as it counts.
#[track_caller]
fn equal(scene: &Scene, overlay: &Path, image: &Path) {
    let mut bytes = fs::read(image).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let said = tool("qemu-img", &[&"info", &"--output=json", &"-f", &"qcow2", &overlay]);
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(info["virtual-size"].as_u64(), Some(bytes.len() as u64));
    let padded = scene.write("padded", &bytes);
    tool("qemu-img", &[&"compare", &"-f", &"qcow2", &"-F", &"raw", &overlay, &padded]);
}

#[track_caller]
fn round_trip(old: &[u8], new: &[u8]) -> u64 {
    let scene = Scene::with_delta(old, new);
    let len = exports(&scene, &scene.path("old"), &scene.path("new"), &scene.path("delta"));
    // It is an image like any other.
    let image = scene.path("try.qcow2");
    let target = scene.write("target", &[]);
    if !new.is_empty() {
        run(&[&"sync", &image, &target]).code(0);
        let mut expected = new.to_vec();
        expected.resize(new.len().next_multiple_of(512), 0);
        assert_same(&scene.read("target"), &expected, "sync of the overlay");
    }
    len
}

#[test]
fn exported_overlays_are_sound_and_show_the_new_image() {
    if !qemu("export") {
        return;
    }
    let (old, new) = chain();
    assert!(round_trip(&old, &new) < 10 * (64 << 10));
    // Data that moved, and was changed a little: saves, sources in both images.
    let moved = |old: &[u8], by: usize| {
        let mut new = random(40, by);
        new.extend_from_slice(old);
        new.iter_mut().step_by(50_001).for_each(|byte| *byte ^= 1);
        new
    };
    let old = base();
    for new in [
        moved(&old, 12345),
        moved(&old, 64 << 10)[..5 * MIB].to_vec(),
        reorder(&old[..4 * MIB], &Rng::new(3).permutation(4 * MIB / BLOCK)),
        [&old[..], &random(5, MIB + 77)].concat(),
        [&old[..], &vec![0; 3 * MIB]].concat(),
        old[..3 * MIB].to_vec(),
        old[..3 * MIB + 5000].to_vec(),
        old[..4096 + 100].to_vec(),
        old.clone(),
        vec![0; 5 * MIB],
    ] {
        round_trip(&old, &new);
    }
    // Nothing but zeros takes no clusters for data.
    assert!(round_trip(&random(1, 4 * MIB), &vec![0; 4 * MIB]) <= 6 * (64 << 10));
    // From nothing.
    round_trip(&[], &old);
    round_trip(&[], &random(6, 100));
}

#[test]
fn random_pairs_are_exported_right() {
    if !qemu("export of random pairs") {
        return;
    }
    for seed in 0..scaled(12, 200) as u64 {
        let mut rng = Rng::new(1000 + seed);
        let old_len = rng.below(60) * BLOCK + rng.below(2) * rng.below(BLOCK);
        let new_len = rng.below(60) * BLOCK + rng.below(2) * rng.below(BLOCK) + 1;
        let old = rng.bytes(old_len);
        let mut new = old.clone();
        new.resize(new_len, 0);
        for _ in 0..rng.below(12) {
            let (at, len) = (rng.below(new_len), rng.below(40_000));
            let end = new_len.min(at + len);
            match rng.below(3) {
                0 => new[at..end].fill(0),
                1 if old_len > end - at => {
                    let from = rng.below(old_len - (end - at));
                    new[at..end].copy_from_slice(&old[from..from + end - at]);
                }
                _ => new[at..end].copy_from_slice(&rng.bytes(end - at)),
            }
        }
        round_trip(&old, &new);
    }
}

#[test]
fn an_overlay_finds_its_base_from_anywhere_and_may_lie_on_qcow2_or_a_device() {
    if !qemu("backing names") {
        return;
    }
    let (old, new) = chain();
    let scene = Scene::with_delta(&old, &new);
    let new_file = scene.path("new");
    let compare = |overlay: &Path| equal(&scene, overlay, &new_file);
    // Beside its base it names that barely: both can be moved.
    let overlay = scene.path("o.qcow2");
    run(&[&"export", &scene.path("delta"), &"--old", &scene.path("old"), &"-o", &overlay]).code(0);
    fs::create_dir(scene.path("moved")).unwrap();
    for name in ["old", "o.qcow2"] {
        fs::copy(scene.path(name), scene.path("moved").join(name)).unwrap();
    }
    compare(&scene.path("moved/o.qcow2"));
    // Elsewhere, and from another working folder.
    let mut command = command(&[&"export", &"../delta", &"--old", &"../old", &"-o", &"far.qcow2"]);
    command.current_dir(scene.path("moved"));
    run_command(command).code(0);
    fs::remove_file(scene.path("moved/old")).unwrap();
    compare(&scene.path("moved/far.qcow2"));
    // On a qcow2 image.
    let whole = scene.path("whole.qcow2");
    tool("qemu-img", &[&"convert", &"-f", &"raw", &"-O", &"qcow2", &scene.path("old"), &whole]);
    run(&[&"export", &scene.path("delta"), &"--old", &whole, &"-o", &overlay]).code(0);
    compare(&overlay);
    let said = tool("qemu-img", &[&"info", &"--backing-chain", &overlay]);
    assert!(said.contains("backing file format: qcow2"), "{said}");
    // On a device that is longer than the image.
    if loops("export") {
        let device = Loop::attach(&scene.write("disk", &[&old[..], &random(1, MIB)].concat()));
        run(&[&"export", &scene.path("delta"), &"--old", &device.path(), &"-o", &overlay]).code(0);
        compare(&overlay);
    }
}

#[test]
fn export_refuses_what_it_cannot_vouch_for() {
    if !qemu("export's refusals") {
        return;
    }
    let (old, new) = chain();
    let scene = Scene::with_delta(&old, &new);
    let (delta, overlay) = (scene.path("delta"), scene.path("o.qcow2"));
    let refused = |old: &Path, output: &Path, why: &str| {
        let before = Unwritten::look(old);
        run(&[&"export", &delta, &"--old", &old, &"-o", &output]).code(1).says(why);
        before.still(old);
    };
    let mut other = old.clone();
    *other.last_mut().unwrap() ^= 1;
    refused(&scene.write("other", &other), &overlay, "does not hold the image");
    refused(&scene.path("new"), &overlay, "holds the new image");
    refused(&scene.write("short", &old[..BLOCK]), &overlay, "too small");
    refused(&scene.path("old"), &scene.path("old"), "would overwrite an input");
    refused(&scene.path("old"), &delta, "would overwrite an input");
    refused(&scene.path("old"), &scene.path("no/o.qcow2"), "No such file");
    refused(&scene.path("old"), Path::new("-"), "must be a file");
    // A delta from a bare signature does not say what its old image is.
    if Command::new("rdiff").arg("--version").output().is_ok() {
        let signature = scene.path("sig");
        tool("rdiff", &[&"-R", &"rollsum", &"-H", &"md4", &"signature", &scene.path("old"), &signature]);
        let bare = scene.path("bare");
        run(&[&"diff", &"--signature", &signature, &scene.path("new"), &"-o", &bare]).code(0);
        run(&[&"export", &bare, &"--old", &scene.path("old"), &"-o", &overlay])
            .code(1)
            .says("does not say what its old");
    }
    assert!(!overlay.exists());
}
