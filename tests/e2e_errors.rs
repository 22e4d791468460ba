//! What is refused, row by row of spec/errors.md: message, exit code and the code of `--json`, from the built binary. Rows
//! that need more than a few files are read where their subject is tested (e2e_devices.rs, e2e_faults.rs …).

mod common;

use common::*;
use rustix::fs::FlockOperation;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

type Arg<'a> = &'a dyn AsRef<OsStr>;

/// Runs it with `--json`, and compares all it says with a row.
#[track_caller]
fn refused(row: &str, args: &[Arg<'_>]) -> Out {
    run(&[args, &[&"--json"]].concat()).row(row)
}

/// The chain, its target, a folder and a file that do no good.
fn scene() -> Scene {
    let scene = chain_scene();
    fs::create_dir(scene.path("folder")).unwrap();
    scene.write("empty", b"");
    scene
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Runs it in the scene's folder as a user who may have no second thread.
#[track_caller]
fn alone(scene: &Scene, args: &[&str]) -> Out {
    let program = scene.path(".program");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_blkpatch"), &program).unwrap();
    }
    fs::set_permissions(scene.folder(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("setpriv");
    // A user whom nobody else is.
    command.args(["--reuid=61743", "--clear-groups", "prlimit", "--nproc=1"]).arg(&program).args(args);
    command.current_dir(scene.folder());
    run_command(command)
}

#[test]
fn a_system_that_starts_no_more_threads() {
    if !is_root() || !tools("no threads", &["setpriv", "prlimit"]) {
        return skip("no threads", "not root, or no setpriv or prlimit");
    }
    let scene = scene();
    fs::set_permissions(scene.path("target"), fs::Permissions::from_mode(0o666)).unwrap();
    alone(&scene, &["patch", "delta", "target"]).code(1).row("target-no-thread");
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
    // On the build machine it merely takes longer.
    alone(&scene, &["diff", "old", "new", "-o", "again"]).code(0);
    alone(&scene, &["sign", "old", "-o", "signature"]).code(0);
    alone(&scene, &["sync", "new", "target"]).code(0);
    run(&[&"patch", &scene.path("again"), &scene.write("copy", &scene.read("old"))]).code(0);
}

// ----------------------------------------------------------------------------------------------------- target

#[test]
fn targets_that_cannot_be_used() {
    let scene = scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let patch = |row: &str, target: Arg<'_>| refused(row, &[&"patch", &delta, target]).says("Nothing was written");
    patch("no-such-target", &scene.path("nowhere"));
    patch("wrong-kind", &scene.path("folder"));
    patch("wrong-kind", &"/dev/null");
    let knot = scene.path("knot");
    std::os::unix::fs::symlink(&knot, &knot).unwrap();
    patch("not-opened", &knot);
    patch("too-small", &scene.write("short", &scene.read("old")[..BLOCK]));
    let held = OpenOptions::new().read(true).write(true).open(&target).unwrap();
    rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
    patch("in-use-locked", &target);
    rustix::fs::flock(&held, FlockOperation::Unlock).unwrap();
    // As QEMU does it.
    rustix::fs::fcntl_lock(&held, FlockOperation::LockExclusive).unwrap();
    patch("in-use-locked-by-vm", &target);
    drop(held);
    // A program that runs, as the kernel sees it; a swap file is refused in the same way.
    let program = scene.path("program");
    fs::copy("/bin/sleep", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut running = loop {
        match Command::new(&program).arg("1000").spawn() {
            Ok(running) => break running,
            // Another test's child, not yet replaced by its program, still holds the copy open.
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ExecutableFileBusy, "{e}"),
        }
    };
    let busy = std::panic::catch_unwind(|| patch("in-use-running", &program));
    let _ = running.kill();
    let _ = running.wait();
    busy.unwrap();
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

#[test]
fn targets_that_may_not_be_opened() {
    if !loops("permissions") || !ext4("permissions") || !tools("permissions", &["chattr", "setpriv"]) {
        return;
    }
    let scene = scene();
    let delta = scene.path("delta");
    // Attributes need a file system that knows them.
    let disk = scene.write("disk", &vec![0; 8 * MIB]);
    tool("mke2fs", &[&"-q", &"-t", &"ext4", &disk]);
    let device = Loop::attach(&disk);
    let mount = Mount::new("ext4", device.path(), &scene.path("mounted"), "rw");
    let target = scene.path("mounted").join("target");
    for (flag, mark) in [("i", "immutable"), ("a", "append-only")] {
        fs::write(&target, scene.read("old")).unwrap();
        tool("chattr", &[&format!("+{flag}"), &target]);
        let said = refused("marked-immutable", &[&"patch", &delta, &target]);
        said.says(mark).says(&format!("chattr -{flag}")).says("Nothing was written");
        tool("chattr", &[&format!("-{flag}"), &target]);
        run(&[&"patch", &delta, &target]).code(0);
    }
    drop(mount);
    // Root without the right to pass by permissions, as in a container.
    let target = scene.path("target");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_blkpatch"), "patch"]);
    run_command({
        command.args([&delta, &target]);
        command
    })
    .code(1)
    .row("denied-to-root")
    .says("Nothing was written");
}

#[test]
fn a_device_that_is_held_by_nobody_knows_whom() {
    if !loops("a device that is held") {
        return;
    }
    let scene = scene();
    let device = Loop::attach(&scene.path("target"));
    let excl = i32::from_ne_bytes(rustix::fs::OFlags::EXCL.bits().to_ne_bytes());
    let held = OpenOptions::new().read(true).custom_flags(excl).open(device.path()).unwrap();
    refused("in-use-unknown", &[&"patch", &scene.path("delta"), &device.path()]).says("Nothing was written");
    drop(held);
    run(&[&"patch", &scene.path("delta"), &device.path()]).code(0);
}

#[test]
fn a_target_that_holds_something_else() {
    let scene = scene();
    let (delta, old, new) = (scene.path("delta"), scene.read("old"), scene.read("new"));
    let with = |image: &[u8], changed: &[(usize, &[u8])]| {
        let mut image = image.to_vec();
        changed.iter().for_each(|(i, bytes)| image[part(*i)][..bytes.len()].copy_from_slice(bytes));
        scene.write("other", &image)
    };
    let other = with(&old, &[(4, b"other")]);
    refused("hint-other", &[&"patch", &delta, &other]).row("other-untouched");
    let other = with(&old, &[(7, b"other")]);
    refused("hint-mounted", &[&"patch", &delta, &other]).row("other-source");
    let other = with(&new, &[(4, b"other")]);
    refused("hint-patched", &[&"patch", &delta, &other]).row("other-untouched");
    // Some of it is there, but not as an interruption leaves it.
    let other = with(&old, &[(7, &new[part(7)]), (4, b"other")]);
    refused("hint-some", &[&"patch", &delta, &other]);
    // As an interruption leaves it, and then changed.
    let other = with(&old, &[(9, &new[part(9)]), (7, b"other")]);
    refused("damaged-since", &[&"patch", &delta, &other]).says("This run has written nothing");

    let slot = scene.path("slot");
    let from = |row: &str, old: Arg<'_>| refused(row, &[&"patch", &delta, &slot, &"--old", old]);
    from("old-is-new", &scene.path("new"));
    from("old-is-other", &scene.path("other"));
    from("too-small", &scene.write("short", &old[..BLOCK]));
    let overlay = scene.path("overlay");
    let on = |row: &str, old: Arg<'_>| refused(row, &[&"export", &delta, &"--old", old, &"-o", &overlay]);
    on("export-old-is-new", &scene.path("new"));
    on("export-old-is-other", &scene.path("other"));
    assert!(!slot.exists() && !overlay.exists());
}

#[test]
fn an_undo_that_was_interrupted_is_named_as_a_cause() {
    let scene = scene();
    let (delta, undo, target) = (scene.path("delta"), scene.path("undo"), scene.path("target"));
    run(&[&"patch", &"--undo", &undo, &delta, &target]).code(0);
    // Part 5 is back, part 7 is not, or only in part: what part 5 is made from on the way forward is gone.
    let (old, mut between) = (scene.read("old"), scene.read("new"));
    between[part(5)].copy_from_slice(&old[part(5)]);
    scene.write("target", &between);
    refused("hint-some", &[&"patch", &delta, &target]).code(1).says("undo delta");
    between[part(7)][..PART / 2].copy_from_slice(&old[part(7)][..PART / 2]);
    scene.write("target", &between);
    refused("damaged-since", &[&"patch", &delta, &target]).code(4).says("undo delta");
    assert_same(&scene.read("target"), &between, "the target");
    run(&[&"patch", &undo, &target]).code(0);
    assert_same(&scene.read("target"), &scene.read("old"), "what was undone in the end");
}

// ------------------------------------------------------------------------------------------------------ deltas

#[test]
fn deltas_that_cannot_be_used() {
    let scene = scene();
    let (target, missing) = (scene.path("target"), scene.path("missing"));
    for (file, row) in [
        ("bad-magic", "delta-none"),
        ("bad-text-mode", "delta-text"),
        ("bad-truncated", "delta-cut"),
        ("bad-appended", "delta-appended"),
        ("bad-header-bit", "delta-bits"),
        ("bad-section-bit", "delta-bits"),
        ("unsupported-version", "delta-too-new"),
        ("unsupported-feature", "delta-too-new"),
        ("unsupported-section", "delta-too-new"),
        ("unsupported-codec", "delta-too-new"),
        ("bad-counts", "delta-field"),
        ("bad-pack-lengths", "delta-malformed"),
        ("bad-outside", "delta-outside"),
        ("bad-rule-r1", "delta-unsafe"),
        ("bad-left-over", "delta-stream"),
    ] {
        let delta = testdata(&format!("{file}.delta"));
        for args in [&[&"info" as Arg<'_>, &delta][..], &[&"patch", &delta, &target], &[&"verify", &delta, &target]] {
            refused(row, args).code(1).says("Nothing was written");
        }
        // Also where something else is wrong besides.
        refused(row, &[&"patch", &delta, &missing]).code(1).says("Nothing was written");
    }
    refused("delta-hungry", &[&"patch", &"--memory-limit", &"1", &scene.path("delta"), &target]);
    // A file that cannot be read as one, as on a stick that fails.
    refused("delta-unreadable", &[&"info", &"/proc/self/mem"]);
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

#[test]
fn a_delta_that_does_not_know_its_old_image() {
    if !tools("a bare signature", &["rdiff"]) {
        return;
    }
    let scene = scene();
    let (old, signature, bare) = (scene.path("old"), scene.path("signature"), scene.path("bare"));
    tool("rdiff", &[&"-R", &"rollsum", &"-H", &"md4", &"signature", &old, &signature]);
    run(&[&"diff", &"--signature", &signature, &scene.path("new"), &"-o", &bare]).code(0);
    refused("delta-old-unknown", &[&"patch", &bare, &scene.path("slot"), &"--old", &old]);
    refused("delta-old-unknown-export", &[&"export", &bare, &"--old", &old, &"-o", &scene.path("overlay")]);
    tool("rdiff", &[&"-R", &"rabinkarp", &"-H", &"blake2", &"--force", &"signature", &old, &signature]);
    refused("signature-kind", &[&"diff", &"--signature", &signature, &old, &"-o", &scene.path("x")]);
}

// ------------------------------------------------------------------------------------------------------- files

#[test]
fn files_that_cannot_be_used() {
    let scene = scene();
    let path = |name: &str| scene.path(name);
    let (old, new, delta, target, out) = (path("old"), path("new"), path("delta"), path("target"), path("out"));
    let names = scene.names();
    let diff = |row: &str, old: Arg<'_>, output: Arg<'_>| refused(row, &[&"diff", old, &new, &"-o", output]).code(1);
    diff("file-failed", &path("nowhere"), &out);
    diff("file-new", &old, &path("no-folder/out"));
    diff("image-directory", &path("folder"), &out);
    diff("image-other", &"/dev/null", &out);
    diff("output-no-file", &old, &path("folder"));
    diff("output-no-file", &old, &"/dev/null");
    diff("output-is-input", &old, &new);
    tool("mkfifo", &[&path("pipe")]);
    diff("image-pipe", &path("pipe"), &out);
    refused("image-pipe", &[&"patch", &path("pipe"), &target]).says("Nothing was written");
    fs::remove_file(path("pipe")).unwrap();
    std::os::unix::fs::symlink("nothing", path("link")).unwrap();
    diff("file-link", &old, &path("link"));
    fs::remove_file(path("link")).unwrap();
    refused("file-folder", &[&"patch", &delta, &path("no-folder/slot"), &"--old", &old]);
    refused("signature-bad", &[&"diff", &"--signature", &new, &new, &"-o", &out]);
    refused("export-standard", &[&"export", &delta, &"--old", &old, &"-o", &"-"]);
    refused("slot-same", &[&"patch", &delta, &old, &"--old", &old]).says("Nothing was written");
    refused("slot-on-delta", &[&"patch", &delta, &delta, &"--old", &old]).says("Nothing was written");
    // A name that qcow2 has no room for.
    let mut deep = scene.folder().to_owned();
    for _ in 0..5 {
        deep.push("x".repeat(250));
        fs::create_dir(&deep).unwrap();
    }
    fs::copy(&old, deep.join("old")).unwrap();
    let said = refused("export-long-name", &[&"export", &delta, &"--old", &deep.join("old"), &"-o", &out]);
    said.row("file-not-made");
    fs::remove_dir_all(scene.path(&"x".repeat(250))).unwrap();
    // A delta from a pipe that cannot be kept.
    let mut command = command(&[&"patch", &"-", &target]);
    command.stdin(File::open(&delta).unwrap()).env("TMPDIR", path("no-folder"));
    run_command(command).code(1).row("file-spool").says("Nothing was written");
    assert_eq!(scene.names(), names, "something was left");
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

/// Runs it with standard output at a file; the result's `out` is empty.
#[track_caller]
fn into(file: File, args: &[Arg<'_>]) -> Out {
    let mut command = command(args);
    let child = command.stdout(file).stderr(Stdio::piped()).spawn().unwrap();
    finish(child, "into a file")
}

#[test]
fn a_standard_output_that_takes_nothing() {
    let scene = scene();
    let (old, new, delta, target) = (scene.path("old"), scene.path("new"), scene.path("delta"), scene.path("target"));
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in [
        &[&"info" as Arg<'_>, &delta][..],
        &[&"info", &delta, &"--json"],
        &[&"verify", &delta, &target],
        &[&"verify", &delta, &target, &"--json"],
        &[&"patch", &"--dry-run", &delta, &target, &"--json"],
        &[&"sync", &"--dry-run", &new, &target, &"--json"],
        &[&"sync", &old, &target, &"--json"],
        &[&"diff", &old, &new, &"-o", &scene.path("again"), &"--json"],
        &[&"sign", &old, &"-o", &scene.path("signature"), &"--json"],
        &[&"export", &delta, &"--old", &old, &"-o", &scene.path("overlay"), &"--json"],
        &[&"--help"],
        &[&"patch", &"--help"],
        &[&"--version"],
    ] {
        into(full(), args).code(1).row("output-full").says("No space left");
    }
    for name in ["again", "signature", "overlay"] {
        assert!(scene.path(name).exists(), "{name} is complete, as was said");
    }
    assert_same(&scene.read("target"), &old_of(&scene), "the target");
    into(full(), &[&"diff", &old, &new, &"-o", &"-"]).code(1).row("file-stdout");
    // What is done is done; the next run says so.
    into(full(), &[&"patch", &delta, &target, &"--json"]).code(3).row("output-full-after");
    assert_same(&scene.read("target"), &scene.read("new"), "the target");
    run(&[&"patch", &delta, &target, &"--json"]).code(0);
    into(full(), &[&"sync", &old, &target, &"--json"]).code(3).row("output-full-after");
    assert_same(&scene.read("target"), &old_of(&scene), "the target");
    // What was refused anyway has its own exit code.
    into(full(), &[&"patch", &delta, &scene.path("nowhere"), &"--json"]).code(1).row("no-such-target");
    // Nobody who reads is no failure.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    into(OwnedFd::from(writer).into(), &[&"info", &delta]).code(0);
    // Names of standard output are no files, though they lead to one.
    let file = File::create(scene.path("file")).unwrap();
    into(file, &[&"diff", &old, &new, &"-o", &"/dev/stdout"]).code(1).row("output-link");
}

fn old_of(scene: &Scene) -> Vec<u8> {
    scene.read("old")
}

#[test]
fn standard_input_and_output_at_a_terminal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let scene = scene();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let end = || OpenOptions::new().read(true).write(true).open(&name).unwrap();
    let said = into(end(), &[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &"-"]);
    said.code(1).row("output-terminal");
    let mut command = command(&[&"sync", &"-", &scene.path("target")]);
    command.stdin(end());
    run_command(command).code(1).row("sync-terminal").says("Nothing was written");
}

#[test]
fn images_that_are_written_while_they_are_read() {
    let scene = Scene::new();
    let (old, new) = (scene.write("old", &random(1, 24 * MIB)), scene.write("new", &random(2, 24 * MIB)));
    let out = scene.path("out");
    for (row, args) in [
        ("changed-diff", &[&"diff" as Arg<'_>, &old, &new, &"-o", &out][..]),
        ("changed-sign", &[&"sign", &new, &"-o", &out]),
    ] {
        let mut child = start(args);
        let maps = format!("/proc/{}/maps", child.id());
        let name = new.display().to_string();
        kill_when(&mut child, || fs::read_to_string(&maps).is_ok_and(|maps| maps.contains(&name)));
        signal(&mut child, "STOP");
        OpenOptions::new().write(true).open(&new).unwrap().write_all_at(b"meanwhile", 5).unwrap();
        signal(&mut child, "CONT");
        finish(child, row).code(1).row(row);
        scene.holds_only(&["new", "old"]);
    }
}

// ------------------------------------------------------------------------------------------------------- qcow2

#[test]
fn qcow2_that_is_not_told() {
    let scene = scene();
    let (old, target, out) = (scene.path("old"), scene.path("target"), scene.path("out"));
    let head = [b"QFI\xfb\0\0\0\x03" as &[u8], &[0; 5000]].concat();
    let (unnamed, named) = (scene.write("disk", &head), scene.write("raw.qcow2", &random(3, 5000)));
    refused("qcow2-unnamed", &[&"diff", &old, &unnamed, &"-o", &out]);
    refused("qcow2-not-inside", &[&"diff", &old, &named, &"-o", &out]);
    refused("qcow2-not-one", &[&"diff", &"--format", &"qcow2", &old, &named, &"-o", &out]);
    let piped = |format: &str| {
        let mut command = command(&[&"sync", &"--format", &format, &"-", &target]);
        command.stdin(File::open(&unnamed).unwrap());
        run_command(command).code(1).says("Nothing was written")
    };
    piped("auto").row("qcow2-stream");
    piped("qcow2").row("qcow2-device");
}

#[test]
fn overlays_that_are_too_large_for_qemu() {
    use blkpatch::device::MemoryDevice;
    use blkpatch::qcow2::overlay::{Named, Overlay};
    let scene = Scene::new();
    let (path, none) = (scene.write("overlay", b""), MemoryDevice::new(Vec::new(), false));
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let failed = Overlay::new(&file, &path, &none, 3 << 50).finish(Some(Named { name: b"old", format: b"raw" }));
    errors::assert_row(&failed.unwrap_err().to_string(), "export-too-large");
}

// -------------------------------------------------------------------------------------------------------- sync

#[test]
fn images_that_sync_cannot_use() {
    let scene = scene();
    let target = scene.path("target");
    let sync = |row: &str, image: Arg<'_>| refused(row, &[&"sync", image, &target]).code(1).says("Nothing was written");
    for (row, magic) in [
        ("sync-lz4", &b"\x04\x22\x4d\x18"[..]),
        ("sync-lzip", b"LZIP"),
        ("sync-zip", b"PK\x03\x04"),
        ("sync-7z", b"7z\xbc\xaf\x27\x1c"),
        ("sync-sparse", b"\x3a\xff\x26\xed"),
    ] {
        sync(row, &scene.write("packed", &[magic, &[0; 600]].concat()));
    }
    sync("sync-directory", &scene.path("folder"));
    sync("sync-kind", &"/dev/zero");
    sync("sync-empty", &scene.path("empty"));
    sync("sync-itself", &target);
    sync("file-failed", &scene.path("nowhere"));
    refused("sync-once", &[&"sync", &"--undo", &scene.path("undo"), &"-", &target]);
    refused("undo-standard", &[&"sync", &"--undo", &"-", &scene.path("new"), &target]);
    refused("undo-standard", &[&"patch", &"--undo", &"-", &scene.path("delta"), &target]);
    refused("undo-no-file", &[&"patch", &"--undo", &scene.path("folder"), &scene.path("delta"), &target]);
    refused("undo-on-target", &[&"patch", &"--undo", &target, &scene.path("delta"), &target]);
    refused("undo-sync-other", &[&"sync", &"--undo", &scene.path("old"), &scene.path("new"), &target]);
    refused("undo-other", &[&"patch", &"--undo", &scene.path("old"), &scene.path("delta"), &target]);
    refused("save-exists", &[&"sync", &"--save-delta", &scene.path("old"), &scene.path("new"), &target]);
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

#[test]
fn packed_images_that_do_not_fit_or_are_damaged() {
    let scene = Scene::new();
    let image = random(4, 3 * MIB);
    scene.write("image", &image);
    tool("gzip", &[&"-1", &scene.path("image")]);
    let packed = scene.read("image.gz");
    let cut = scene.write("cut.gz", &packed[..packed.len() - 9]);
    let target = scene.write("target", &random(5, 3 * MIB));
    refused("sync-corrupt", &[&"sync", &"--dry-run", &cut, &target]).code(1);
    refused("sync-corrupt", &[&"sync", &cut, &target]).code(3).says("holds neither");
    if loops("a device that is too small") {
        let device = Loop::attach(&scene.write("backing", &image[..2 * MIB]));
        refused("sync-promise", &[&"sync", &scene.path("image.gz"), &device.path()]).says("Nothing was written");
        refused("too-small", &[&"sync", &scene.write("raw", &image), &device.path()]).says("Nothing was written");
        let feed = |image: &str| {
            let mut command = command(&[&"sync", &"-", &device.path(), &"--json"]);
            command.stdin(
                Command::new("cat").arg(scene.path(image)).stdout(Stdio::piped()).spawn().unwrap().stdout.unwrap(),
            );
            run_command(command).row("sync-too-long")
        };
        feed("raw").code(1).says("Nothing was written");
        device.write(0, &[7; BLOCK]);
        feed("raw").code(3).says("holds neither");
    }
}

#[test]
fn disks_that_are_full() {
    if !loops("full disks") {
        return;
    }
    let scene = scene();
    let (new, delta, target) = (scene.path("new"), scene.path("delta"), scene.path("target"));
    // Nearly all that is written is noise, so every delta of it needs its room.
    let at = scene.path("small");
    let mount = Mount::new("tmpfs", Path::new("tmpfs"), &at, "size=8k");
    let file = at.join("kept");
    let look = Unwritten::look(&target);
    run(&[&"patch", &"--undo", &file, &delta, &target, &"--json"]).code(1).row("undo-unwritten").says("No space left");
    run(&[&"sync", &"--undo", &file, &new, &target, &"--json"])
        .code(1)
        .says("No space left")
        .says("Nothing was written");
    run(&[&"sync", &"--dry-run", &"--save-delta", &file, &new, &target]).code(1).says("No space left");
    look.still(&target);
    let copy = scene.write("copy", &scene.read("old"));
    let said = refused("save-failed-after", &[&"sync", &"--save-delta", &file, &new, &copy]).code(3);
    said.says("No space left");
    assert_same(&scene.read("copy"), &scene.read("new"), "the target, which is right");
    // So much that it is written while the target is.
    let (large, copy) = (scene.write("large", &random(6, 24 * MIB)), scene.write("copy", &random(7, 24 * MIB)));
    refused("save-failed-before", &[&"sync", &"--undo", &file, &large, &copy]).code(1);
    refused("save-failed-before", &[&"sync", &"--dry-run", &"--save-delta", &file, &large, &copy]).code(1);
    assert_same(&scene.read("copy"), &random(7, 24 * MIB), "the target");
    refused("save-failed", &[&"sync", &"--save-delta", &file, &large, &copy]).code(3).says("No space left");
    assert!(!file.exists());
    drop(mount);
    let mount = Mount::new("tmpfs", Path::new("tmpfs"), &at, "size=256k");
    let small = at.join("target");
    fs::write(&small, &scene.read("old")[..PART]).unwrap();
    let said = refused("sync-failed-full", &[&"sync", &scene.path("new"), &small]).code(3);
    said.says("No space left");
    drop(mount);
    let mount = Mount::new("tmpfs", Path::new("tmpfs"), &at, "size=256k");
    let slot = at.join("slot");
    refused("file-not-made", &[&"patch", &delta, &slot, &"--old", &scene.path("old")]).says("No space left");
    assert!(!slot.exists());
    drop(mount);
}

// ------------------------------------------------------------------------------------------------------- usage

#[test]
fn wrong_usage_is_told() {
    let two = [&"diff" as Arg<'_>, &"old", &"new"];
    let with = |row: &str, more: &[Arg<'_>]| run(&[&two[..], more].concat()).code(2).row(row);
    run(&[]).code(2).row("usage-nothing");
    with("usage-other", &[]);
    with("usage-other", &[&"-o", &"x", &"--frobnicate"]);
    with("usage-size", &[&"-o", &"x", &"--memory", &"lots"]);
    with("usage-huge", &[&"-o", &"x", &"--memory", &"99999999T"]);
    run(&[&"sign", &"old", &"-o", &"x", &"--block", &"1"]).code(2).row("usage-block");
    with("usage-label-length", &[&"-o", &"x", &"--label", &"long ".repeat(1000)]);
    with("usage-label-text", &[&"-o", &"x", &"--label", &"two\nlines"]);
    with("usage-formats", &[&"-o", &"x", &"--format", &"raw,raw,raw"]);
    run(&[&"diff", &"old", &"-o", &"x"]).code(2).row("usage-images");
    with("usage-signature", &[&"-o", &"x", &"--signature", &"s"]);
    with("usage-json", &[&"-o", &"-", &"--json"]);
}

// -------------------------------------------------------------------------------------------------------- bugs

/// Nothing brings them about: so only their words are compared.
#[test]
fn bugs_would_be_told_as_the_tables_say() {
    use blkpatch::error::Error;
    let bug = |written| Error::Bug { what: "x (panicked at y)".into(), written };
    let order = Error::Write(blkpatch::delta::writer::WriteError::Plan(blkpatch::delta::DeltaError::NotADelta));
    for (error, row, code) in [(bug(false), "bug-before", 1), (bug(true), "bug-writing", 3), (order, "bug-order", 1)] {
        let row = errors::assert_row(&error.to_string(), row);
        assert_eq!(row.codes, [(code, error.code().to_owned())]);
        assert_eq!(i32::from(error.exit_code()), code);
    }
}
