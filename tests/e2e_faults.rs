//! Devices that fail: reads, writes and syncs that end in EIO at every stage of a run, devices that vanish or shrink.
//! Each time the message says what happened and whether anything was written, and the same command finishes when the
//! fault is gone.
//!
//! The device is a loop device over a file that QEMU's storage daemon exports by FUSE, with faults by its blkdebug
//! driver. It counts the syncs that reach it with something to sync: before the first its state is 1, and so on.

mod common;

use common::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A loop device over `backing` in the scene, with faults.
struct Flaky {
    device: Option<Loop>,
    daemon: Child,
    mounted_at: PathBuf,
}

impl Flaky {
    /// `rule` is blkdebug's inject-error without its name; empty: no fault.
    #[track_caller]
    fn start(scene: &Scene, rule: &str) -> Self {
        let mounted_at = scene.write("exported", b"");
        let mut faults = String::new();
        if !rule.is_empty() {
            let rule = rule.split(',').map(|part| format!(",inject-error.0.{part}"));
            faults.extend(rule.chain([",inject-error.0.errno=5".into()]));
        }
        for k in 0..4 {
            let of = format!("set-state.{k}");
            faults += &format!(",{of}.event=flush_to_disk,{of}.state={},{of}.new_state={}", k + 1, k + 2);
        }
        let mut command = Command::new("qemu-storage-daemon");
        command.stdin(Stdio::null()).arg("--blockdev");
        command.arg(format!("driver=file,node-name=file,filename={}", scene.path("backing").display()));
        command.args(["--blockdev", &format!("driver=blkdebug,node-name=faults,image=file{faults}")]);
        command.args(["--blockdev", "driver=raw,node-name=device,file=faults", "--export"]);
        let export = "type=fuse,id=export,node-name=device,writable=on,growable=off,allow-other=off";
        command.arg(format!("{export},mountpoint={}", mounted_at.display()));
        let mut daemon = command.spawn().expect("starting qemu-storage-daemon");
        let deadline = Instant::now() + Duration::from_secs(20);
        let len = fs::metadata(scene.path("backing")).unwrap().len();
        while fs::metadata(&mounted_at).map_or(0, |meta| meta.len()) != len {
            let ended = daemon.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "qemu-storage-daemon does not export: {ended:?}");
            sleep(Duration::from_millis(5));
        }
        one_at_a_time(&mounted_at);
        let mut flaky = Self { device: None, daemon, mounted_at };
        // Without a second cache between: every read and write reaches the daemon.
        flaky.device = Some(Loop::attach_with(&flaky.mounted_at, &["--direct-io=on"]));
        flaky
    }

    fn device(&self) -> &Loop {
        self.device.as_ref().unwrap()
    }

    fn name(&self) -> String {
        self.device().path().display().to_string()
    }
}

impl Drop for Flaky {
    fn drop(&mut self) {
        drop(self.device.take());
        let alive = |daemon: &mut Child| daemon.try_wait().is_ok_and(|status| status.is_none());
        if alive(&mut self.daemon) {
            let _ = Command::new("kill").arg(self.daemon.id().to_string()).output();
        }
        for _ in 0..400 {
            if !alive(&mut self.daemon) {
                break;
            }
            sleep(Duration::from_millis(5));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.mounted_at).output(); // if it was killed
    }
}

/// Lets a FUSE file system have one request at a time. QEMU before 10.1 loses what is written through its FUSE export
/// when a request comes in while another is under way: both use one buffer ("fuse: Copy write buffer content before
/// polling"). Two threads that write to different blocks are enough.
fn one_at_a_time(mounted_at: &Path) {
    let control = Path::new("/sys/fs/fuse/connections");
    let connection = rustix::fs::minor(fs::metadata(mounted_at).unwrap().dev());
    let limit = control.join(connection.to_string()).join("max_background");
    if !limit.exists() {
        tool("mount", &[&"-t", &"fusectl", &"fusectl", &control]);
    }
    fs::write(&limit, "1").unwrap_or_else(|e| panic!("{}: {e}", limit.display()));
}

/// A fault, and what `patch` says to it.
struct Fault {
    /// blkdebug's rule.
    rule: String,
    /// `--verify`.
    verify: &'static str,
    /// Exit code.
    code: i32,
    /// What the message holds, beside the device's name.
    says: Vec<String>,
}

impl Fault {
    fn new(rule: &str, code: i32, says: &str) -> Self {
        Self { rule: rule.into(), verify: "full", code, says: vec![says.into(), "Input/output error".into()] }
    }

    fn verify(self, verify: &'static str) -> Self {
        Self { verify, ..self }
    }

    fn patch(&self, scene: &Scene, flaky: &Flaky) -> Out {
        run(&[&"patch", &"--verify", &self.verify, &scene.path("delta"), &flaky.device().path()])
    }

    /// Patches a device that fails once, and again when the fault has gone; then one that fails until it is replaced.
    fn run(&self, scene: &Scene) {
        let (old, new) = (scene.read("old"), scene.read("new"));
        for once in [true, false] {
            scene.write("backing", &old);
            let rule = format!("{},once={}", self.rule, if once { "on" } else { "off" });
            let mut flaky = Flaky::start(scene, &rule);
            let mut said = self.patch(scene, &flaky).code(self.code).says(&flaky.name());
            for text in &self.says {
                said = said.says(text);
            }
            if self.code == 1 {
                said = said.row("target-read-failed");
                assert_same(&scene.read("backing"), &old, "a device of which it is said that nothing was written");
            } else {
                said = said.row("stopped-failed");
            }
            said.says("the same command");
            if !once {
                let code = self.patch(scene, &flaky).code;
                assert!([0, 1, 3].contains(&code), "{rule}: exit code {code} while the fault stays");
                drop(flaky);
                flaky = Flaky::start(scene, "");
            }
            self.patch(scene, &flaky).code(0);
            drop(flaky);
            assert_same(&scene.read("backing"), &new, &format!("after {rule}"));
        }
    }
}

/// The first sector of a part of [`chain`].
fn sector(i: usize) -> usize {
    part(i).start / 512
}

#[test]
fn reads_that_fail() {
    if !faulty_devices("reads that fail") {
        return;
    }
    let scene = chain_scene();
    let read = |state: usize, i: usize| format!("event=read_aio,iotype=read,state={state},sector={}", sector(i) + 3);
    let at = |i: usize| format!("at offset {} ({PART} bytes)", part(i).start);
    // The first full read, also of a part that the delta has nothing to do with.
    let whole = format!("at offset 0 ({} bytes)", 16 * PART);
    for i in [3, 10] {
        Fault::new(&read(1, i), 1, &whole).run(&scene);
        Fault::new(&read(1, i), 1, &whole).verify("all").run(&scene);
    }
    // Before that, what tells a partition from a disk.
    Fault::new(&read(1, 7), 1, &at(7)).run(&scene);
    Fault::new(&read(1, 7), 1, &at(7)).verify("touched").run(&scene);
    // As soon as something is written: the walk's reads, or where those came before, reading back.
    for i in [5, 7] {
        let rule = format!("event=write_aio,iotype=read,sector={}", sector(i) + 3);
        Fault::new(&rule, 3, "reading").run(&scene);
        Fault::new(&rule, 3, "reading").verify("touched").run(&scene);
    }
    // Reading back.
    Fault::new(&read(4, 7), 3, &whole).run(&scene);
    Fault::new(&read(4, 3), 3, &whole).verify("all").run(&scene);
    Fault::new(&read(4, 7), 3, &at(7)).verify("touched").run(&scene);
}

#[test]
fn writes_that_fail() {
    if !faulty_devices("writes that fail") {
        return;
    }
    let scene = chain_scene();
    for (state, i, before) in [(1, 9, "as writing began"), (2, 5, "after 32.0 KiB"), (3, 7, "after 64.0 KiB")] {
        let rule = format!("event=write_aio,iotype=write,state={state},sector={}", sector(i) + 63);
        let at = format!("at offset {} ({PART} bytes)", part(i).start);
        let mut fault = Fault::new(&rule, 3, &at);
        fault.says.push(before.into());
        fault.run(&scene);
    }
}

#[test]
fn syncing_an_image_to_a_device_that_fails() {
    if !faulty_devices("syncing to a device that fails") {
        return;
    }
    let scene = chain_scene();
    let (old, new) = (scene.read("old"), scene.read("new"));
    let sync = |flaky: &Flaky| run(&[&"sync", &scene.path("new"), &flaky.device().path()]);
    let io = |kind: &str, state: usize, i: usize| {
        format!("event={kind}_aio,iotype={kind},state={state},sector={}", sector(i) + 3)
    };
    let flush = "event=flush_to_disk,iotype=flush,state=1".to_owned();
    // The second read is for the check of what was written.
    for (rule, code, what) in [
        (io("read", 1, 3), 1, "reading"),
        (io("write", 1, 7), 3, "writing"),
        (flush, 3, "syncing"),
        (io("read", 2, 7), 3, "reading"),
    ] {
        scene.write("backing", &old);
        let flaky = Flaky::start(&scene, &format!("{rule},once=off"));
        let said = sync(&flaky).code(code).says(what).says("Input/output error").says(&flaky.name());
        said.row(if code == 1 { "target-read-failed" } else { "sync-failed" });
        drop(flaky);
        if code == 1 {
            assert_same(&scene.read("backing"), &old, "a device of which it is said that nothing was written");
        }
        let flaky = Flaky::start(&scene, "");
        sync(&flaky).code(0);
        drop(flaky);
        assert_same(&scene.read("backing"), &new, &format!("after {rule}"));
    }
}

#[test]
fn syncing_from_a_device_that_fails() {
    if !faulty_devices("syncing from a device that fails") {
        return;
    }
    let scene = chain_scene();
    scene.write("backing", &scene.read("new"));
    let read = format!("event=read_aio,iotype=read,state=1,sector={},once=off", sector(12) + 3);
    let flaky = Flaky::start(&scene, &read);
    let said = run(&[&"sync", &flaky.device().path(), &scene.path("target"), &"--json"]).code(1);
    said.row("sync-unreadable").says("Input/output error").says("Nothing was written");
    drop(flaky);
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

#[test]
fn zeroing_that_fails_is_replaced_by_writing_zeros() {
    if !faulty_devices("zeroing that fails") {
        return;
    }
    let (old, mut new) = chain();
    new[part(3)].fill(0);
    let scene = Scene::with_delta(&old, &new);
    scene.write("backing", &old);
    let flaky = Flaky::start(&scene, "event=none,iotype=write-zeroes");
    run(&[&"patch", &scene.path("delta"), &flaky.device().path()]).code(0);
    drop(flaky);
    assert_same(&scene.read("backing"), &new, "without write-zeroes");
}

#[test]
fn syncs_that_fail() {
    if !faulty_devices("syncs that fail") {
        return;
    }
    let scene = chain_scene();
    for (state, before) in [(1, "after 32.0 KiB"), (2, "after 64.0 KiB"), (3, "after 96.0 KiB")] {
        let mut fault = Fault::new(&format!("event=flush_to_disk,iotype=flush,state={state}"), 3, "syncing");
        fault.says.push(before.into());
        fault.run(&scene);
    }
}

#[test]
fn a_sync_that_fails_before_anything_was_written() {
    if !faulty_devices("a first sync that fails") {
        return;
    }
    let scene = chain_scene();
    let (old, new) = (scene.read("old"), scene.read("new"));
    scene.write("backing", &old);
    let flaky = Flaky::start(&scene, "event=flush_to_disk,iotype=flush,state=1,once=on");
    let (delta, device) = (scene.path("delta"), flaky.device().path());
    // The old image is still on its way to the medium.
    let to = format!("of={}", flaky.name());
    let from = format!("if={}", scene.path("old").display());
    tool("dd", &[&from, &to, &"bs=64K", &"count=1", &"oflag=direct", &"conv=notrunc", &"status=none"]);
    let said = run(&[&"patch", &delta, &device]).code(1).says(&flaky.name());
    said.says("syncing").says("Input/output error").says("Nothing was written").says("the same command");
    assert_same(&scene.read("backing"), &old, "after the first sync failed");
    run(&[&"patch", &delta, &device]).code(0);
    drop(flaky);
    assert_same(&scene.read("backing"), &new, "after the first sync failed");
}

/// A device that fails a sync may have lost what it was to make durable; a later sync will not bring it back, and
/// succeeds.
#[test]
fn a_sync_that_fails_is_not_taken_for_one_that_succeeds_later() {
    if !faulty_devices("a sync that fails and loses what was written") {
        return;
    }
    let scene = chain_scene();
    let (old, new, delta) = (scene.read("old"), scene.read("new"), scene.path("delta"));
    for kept in [0, 1, PART - 512] {
        scene.write("backing", &old);
        let flaky = Flaky::start(&scene, "event=flush_to_disk,iotype=flush,state=1,once=on");
        run(&[&"patch", &delta, &flaky.device().path()]).code(3).says("syncing");
        let mut medium = scene.read("backing");
        assert_same(&medium[part(9)], &new[part(9)], "the batch before the barrier");
        assert_same(&medium[part(5)], &old[part(5)], "the batch behind the barrier whose sync failed");
        medium[part(9)][kept..].copy_from_slice(&old[part(9)][kept..]);
        write_over(&scene, part(9).start, &medium[part(9)]);
        let (written, _) = run(&[&"patch", &delta, &flaky.device().path()]).code(0).written();
        assert_eq!(written, 3 * PART as u64, "the batch that was lost is done again");
        drop(flaky);
        assert_same(&scene.read("backing"), &new, "after a sync failed");
    }
}

/// Changes the medium under the daemon.
fn write_over(scene: &Scene, offset: usize, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(scene.path("backing")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset as u64).unwrap();
}

// --------------------------------------------------------------------------------- devices that vanish or shrink

/// Images so different that patching takes a moment.
fn long_scene() -> Scene {
    let blocks = scaled(16 * MIB, 128 * MIB) / BLOCK;
    let old = random(91, blocks * BLOCK);
    let new = reorder(&old, &Rng::new(92).permutation(blocks));
    Scene::with_delta(&old, &new)
}

/// Waits until `patch` has written something; false if it ended before.
fn wait_for_writes(child: &mut Child, device: &Loop, bytes: u64) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while device.bytes_written() < bytes && Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn a_device_that_vanishes() {
    if !faulty_devices("a device that vanishes") {
        return;
    }
    let scene = long_scene();
    scene.write("backing", &scene.read("old"));
    let delta = scene.path("delta");
    let mut vanished = 0;
    for share in [1, 2 * MIB, 4 * MIB] {
        let mut flaky = Flaky::start(&scene, "");
        let mut child = start(&[&"patch", &delta, &flaky.device().path()]);
        let running = wait_for_writes(&mut child, flaky.device(), share as u64);
        let _ = flaky.daemon.kill();
        let said = finish(child, "patch");
        if running && said.code != 0 {
            vanished += 1;
            said.code(3).says(&flaky.name()).says("failed").says("the same command");
        }
    }
    assert!(vanished > 0, "no run was interrupted");
    let flaky = Flaky::start(&scene, "");
    run(&[&"patch", &delta, &flaky.device().path()]).code(0);
    drop(flaky);
    assert_same(&scene.read("backing"), &scene.read("new"), "the device that came back");
}

#[test]
fn a_device_that_shrinks() {
    if !loops("a device that shrinks") {
        return;
    }
    let scene = long_scene();
    let (delta, new) = (scene.path("delta"), scene.read("new"));
    let backing = scene.write("backing", &scene.read("old"));
    let device = Loop::attach(&backing);
    let mut child = start(&[&"patch", &delta, &device.path()]);
    assert!(wait_for_writes(&mut child, &device, 1), "patch ended before it wrote anything");
    signal(&mut child, "STOP");
    sleep(Duration::from_millis(50)); // what is under way ends
    let whole = scene.read("backing");
    let set_len = |len: u64| {
        fs::OpenOptions::new().write(true).open(&backing).unwrap().set_len(len).unwrap();
        tool("losetup", &[&"-c", &device.path()]);
    };
    set_len(4096);
    signal(&mut child, "CONT");
    let name = device.path().display().to_string();
    finish(child, "patch").code(3).says(&name).says("stopped").says("the same command");
    // Nor is the rest of the device touched by another run.
    run(&[&"patch", &delta, &device.path()]).code(1).says("too small").says("Nothing was written");
    write_over(&scene, 4096, &whole[4096..]);
    set_len(whole.len() as u64);
    run(&[&"patch", &delta, &device.path()]).code(0);
    drop(device);
    assert_same(&scene.read("backing"), &new, "the device that is whole again");
}
