//! What the end-to-end tests share: running the built binary, scenes of files, loop devices, images.
//!
//! `BLKPATCH_LONG=1` runs everything at full size. `BLKPATCH_NO_SKIP=1` makes tests that need root, `losetup` or
//! `mke2fs` fail where they would be skipped.
#![allow(dead_code)] // each test binary uses its own part

mod deflated;
pub mod errors;
mod pty;
pub mod recoded;
mod rng;
pub mod schema;

#[allow(unused_imports)] // as above
pub use deflated::{gzip, lines, xz, zstd};
#[allow(unused_imports)] // as above
pub use pty::AtTerminal;
pub use rng::Rng;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Bytes in a block.
pub const BLOCK: usize = 4096;
/// Bytes in a MiB.
pub const MIB: usize = 1 << 20;

/// Whether everything runs at full size.
pub fn long() -> bool {
    std::env::var_os("BLKPATCH_LONG").is_some_and(|v| v == "1")
}

/// `ordinary`, or `full` where everything runs at full size.
pub fn scaled(ordinary: usize, full: usize) -> usize {
    if long() { full } else { ordinary }
}

// ---------------------------------------------------------------------------------------------------- running

/// What the program said and how it ended.
#[derive(Debug)]
pub struct Out {
    /// Exit code; minus the signal's number where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Out {
    /// Asserts the exit code; that of a failure must have said something that spec/errors.md explains.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, expected, "exit code; it said:\n{}{}", self.out, self.err);
        if (1..=4).contains(&expected) {
            errors::assert_documented(&self.err, expected);
        }
        self
    }

    /// Asserts that it failed as a row of spec/errors.md says: message, exit code, and the code of `--json`, if that was
    /// given.
    #[track_caller]
    pub fn row(self, name: &str) -> Self {
        let row = errors::assert_row(&self.err, name);
        let codes: Vec<&str> = row.codes.iter().filter(|(exit, _)| *exit == self.code).map(|(_, c)| &c[..]).collect();
        assert!(!codes.is_empty(), "exit code {}, {name} has {:?}; it said:\n{}", self.code, row.codes, self.err);
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(&self.out) {
            let code = json["error"]["code"].as_str();
            assert!(code.is_some_and(|code| codes.contains(&code)), "error.code is {code:?}, {name} has {codes:?}");
        }
        self
    }

    /// Asserts that standard error holds `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "expected {text:?} on standard error, which is:\n{}", self.err);
        self
    }

    /// The bytes written and those of them that went to scratch, as `patch` reports them.
    #[track_caller]
    pub fn written(&self) -> (u64, u64) {
        let number_before = |word: &str| -> u64 {
            let head = self.err.split(word).next().unwrap_or_default();
            let digits = head.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            digits.parse().unwrap_or_else(|_| panic!("no number before {word:?} in:\n{}", self.err))
        };
        (number_before(" bytes written"), number_before(" to scratch"))
    }
}

/// A command of the built binary.
pub fn command(args: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blkpatch"));
    command.args(args.iter().map(|arg| arg.as_ref()));
    command.stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
    command
}

/// Runs the built binary to its end.
#[track_caller]
pub fn run(args: &[&dyn AsRef<OsStr>]) -> Out {
    run_command(command(args))
}

/// Runs a command to its end; one that hangs is killed, and the test fails.
#[track_caller]
pub fn run_command(mut command: Command) -> Out {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let deadline = Instant::now() + Duration::from_secs(10);
    let child = loop {
        match command.spawn() {
            Ok(child) => break child,
            // A program just copied: another test's child, not yet replaced by its program, still holds it open.
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                sleep(Duration::from_millis(5));
            }
            Err(e) => panic!("cannot run {command:?}: {e}"),
        }
    };
    finish(child, &format!("{command:?}"))
}

/// Starts the built binary, its output collected by [`finish`].
pub fn start(args: &[&dyn AsRef<OsStr>]) -> Child {
    command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starting blkpatch")
}

/// Waits for a child, at most ten minutes.
#[track_caller]
pub fn finish(mut child: Child, what: &str) -> Out {
    fn collect(source: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut source) = source {
                let _ = source.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let deadline = Instant::now() + Duration::from_secs(600);
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} hangs");
        }
        sleep(Duration::from_micros(500));
    };
    let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or(999));
    let said = Out { code, out: out.join().expect("stdout"), err: err.join().expect("stderr") };
    assert!(!said.err.contains("panicked at"), "{what} panicked:\n{}", said.err);
    assert_ne!(said.code, 101, "{what} panicked:\n{}", said.err);
    said
}

/// Reads what a child says on standard error up to a line with `text` in it; returns whether there was one. [`finish`]
/// collects the rest.
pub fn wait_for_line(child: &mut Child, text: &str) -> bool {
    let source = child.stderr.as_mut().expect("standard error is a pipe");
    let (mut line, mut byte) = (Vec::new(), [0]);
    while source.read_exact(&mut byte).is_ok() {
        line.push(byte[0]);
        if byte == *b"\n" {
            if String::from_utf8_lossy(&line).contains(text) {
                return true;
            }
            line.clear();
        }
    }
    false
}

/// Runs a tool of the system; its failure fails the test.
#[track_caller]
pub fn tool(program: &str, args: &[&dyn AsRef<OsStr>]) -> String {
    let out = Command::new(program)
        .args(args.iter().map(|arg| arg.as_ref()))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} failed: {}\n{said}", out.status);
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Sends a signal to a child, if it still runs.
pub fn signal(child: &mut Child, name: &str) {
    // Until it has been waited for, its number belongs to nobody else.
    if child.try_wait().expect("looking at a child").is_none() {
        tool("kill", &[&format!("-{name}"), &child.id().to_string()]);
    }
}

/// What a run does as it is watched, so that it can be killed at a chosen moment rather than after a chosen time.
pub fn kill_when(child: &mut Child, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() && !reached() && Instant::now() < deadline {
        std::thread::yield_now();
    }
}

// ----------------------------------------------------------------------------------------------------- scenes

/// A folder with the files of one test.
#[derive(Debug)]
pub struct Scene(tempfile::TempDir);

impl Scene {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("blkpatch-e2e-").tempdir().expect("a temporary folder"))
    }

    /// One with the files `old`, `new` and the `delta` between them.
    #[track_caller]
    pub fn with_delta(old: &[u8], new: &[u8]) -> Self {
        let scene = Self::new();
        scene.write("old", old);
        scene.write("new", new);
        run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &scene.path("delta")]).code(0);
        scene
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("writing a file of the scene");
        path
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("reading a file of the scene")
    }

    /// All names in it, hidden ones too.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder()).expect("listing the scene");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Asserts that nothing but these files is there.
    #[track_caller]
    pub fn holds_only(&self, names: &[&str]) {
        let mut names = names.to_vec();
        names.sort_unstable();
        assert_eq!(self.names(), names, "files beside the delta and the images");
    }
}

/// A file's bytes and when it was last written: equal only if nobody wrote it.
#[derive(Debug, PartialEq, Eq)]
pub struct Unwritten {
    bytes: Vec<u8>,
    changed: (i64, i64),
    len: u64,
}

impl Unwritten {
    /// As the file is now.
    pub fn look(path: &Path) -> Self {
        let bytes = fs::read(path).expect("reading a target");
        let meta = fs::metadata(path).expect("looking at a target");
        Self { bytes, changed: (meta.mtime(), meta.mtime_nsec()), len: meta.len() }
    }

    /// Asserts that the file was not written since.
    #[track_caller]
    pub fn still(&self, path: &Path) {
        let now = Self::look(path);
        assert_eq!(self.len, now.len, "{}: its length changed", path.display());
        assert!(self.bytes == now.bytes, "{}: its bytes changed", path.display());
        assert_eq!(self.changed, now.changed, "{}: it was written", path.display());
    }
}

/// Asserts that two images are equal, and says where they are not.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if found == expected {
        return;
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    panic!("{what}: {} bytes instead of {}, first difference at {at:?}", found.len(), expected.len());
}

// ----------------------------------------------------------------------------------------------- loop devices

/// A loop device over a file; detached when dropped, also by a test that fails.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
    /// The kernel counts since the device was made, not since it was attached.
    written_before: u64,
}

impl Loop {
    /// Attaches a file, whose length should be a multiple of 512.
    #[track_caller]
    pub fn attach(backing: &Path) -> Self {
        Self::attach_with(backing, &[])
    }

    /// The same with more options for `losetup`.
    #[track_caller]
    pub fn attach_with(backing: &Path, options: &[&str]) -> Self {
        let mut said = String::new();
        // Two processes may be offered the same free device: try again.
        for _ in 0..20 {
            let out = Command::new("losetup").args(["-f", "--show"]).args(options).arg(backing).output();
            let out = out.expect("running losetup");
            if out.status.success() {
                let path = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
                let mut device = Self { path, written_before: 0 };
                device.written_before = device.bytes_written();
                return device;
            }
            said = String::from_utf8_lossy(&out.stderr).into_owned();
            sleep(Duration::from_millis(50));
        }
        panic!("losetup cannot attach {}: {said}", backing.display());
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of its bytes.
    pub fn read(&self) -> Vec<u8> {
        let file = File::open(&self.path).expect("opening a loop device");
        // What another process wrote past this cache shows.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).expect("reading a loop device");
        bytes
    }

    /// Overwrites bytes.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.path).expect("opening a loop device");
        file.write_all_at(bytes, offset).expect("writing a loop device");
        file.sync_all().expect("syncing a loop device");
    }

    /// Bytes written to it since it was attached, as the kernel counts them, zeroing included.
    pub fn bytes_written(&self) -> u64 {
        let name = self.path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("the kernel's counts");
        let sectors = text.split_ascii_whitespace().nth(6).and_then(|n| n.parse::<u64>().ok());
        sectors.expect("sectors written") * 512 - self.written_before
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        for _ in 0..50 {
            let out = Command::new("losetup").arg("-d").arg(&self.path).output();
            if out.is_ok_and(|out| out.status.success()) {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        shout(&format!("could not detach {}; run: losetup -d {0}", self.path.display()));
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts `what` (a device, or `tmpfs`) at the folder `at`, which is made.
    #[track_caller]
    pub fn new(kind: &str, what: &Path, at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).expect("a folder to mount at");
        tool("mount", &[&"-t", &kind, &"-o", &options, &what, &at]);
        Self { at: at.to_owned() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..50 {
            let out = Command::new("umount").arg(&self.at).output();
            if out.is_ok_and(|out| out.status.success()) {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        shout(&format!("could not unmount {}", self.at.display()));
    }
}

/// Says something past the test runner's capture.
pub fn shout(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** {text} ***");
}

/// Says loudly that a test, or a part of it, is skipped; fails it where nothing may be skipped.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("BLKPATCH_NO_SKIP").is_none_or(|v| v != "1"), "{test} would be skipped: {why}");
    shout(&format!("SKIPPED {test}: {why}"));
}

/// Whether this process is root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Whether loop devices can be used; says loudly where they cannot.
pub fn loops(test: &str) -> bool {
    let why = if !is_root() {
        "loop devices need root"
    } else if !has("losetup") || !Path::new("/dev/loop-control").exists() {
        "there are no loop devices here (losetup, /dev/loop-control)"
    } else {
        return true;
    };
    skip(&format!("{test} on loop devices"), why);
    false
}

/// Whether ext4 images can be made; says loudly where they cannot.
pub fn ext4(test: &str) -> bool {
    let there = has("mke2fs");
    if !there {
        skip(test, "mke2fs is missing (e2fsprogs)");
    }
    there
}

/// Whether some programs are installed; says loudly which is not.
pub fn tools(test: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| !has(program));
    if let Some(missing) = missing {
        skip(test, &format!("{missing} is missing"));
    }
    missing.is_none()
}

/// Whether devices with injected faults can be made; says loudly where they cannot.
pub fn faulty_devices(test: &str) -> bool {
    let why = if !loops(test) {
        return false;
    } else if !has("qemu-storage-daemon") {
        "qemu-storage-daemon is missing (Debian: qemu-utils)"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no FUSE here (/dev/fuse)"
    } else {
        return true;
    };
    skip(test, why);
    false
}

/// Whether a program of the system is there.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]).any(|dir| dir.join(program).is_file())
}

// ----------------------------------------------------------------------------------------------------- images

/// `len` bytes that do not compress.
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    Rng::new(seed).bytes(len)
}

/// An image's blocks in another order.
pub fn reorder(image: &[u8], order: &[usize]) -> Vec<u8> {
    order.iter().flat_map(|i| &image[i * BLOCK..(i + 1) * BLOCK]).copied().collect()
}

/// The range of block `i`.
pub fn block(i: usize) -> std::ops::Range<usize> {
    i * BLOCK..(i + 1) * BLOCK
}

/// Bytes of a part of [`chain`].
pub const PART: usize = 8 * BLOCK;

/// The range of part `i` of [`chain`].
pub fn part(i: usize) -> std::ops::Range<usize> {
    i * PART..(i + 1) * PART
}

/// Sixteen parts of eight blocks: 9 gets what 5 held, 5 gets what 7 held, 7 gets new data. So the delta writes 9, then 5,
/// then 7; it reads 5 and 7 before it overwrites them; nobody reads 9, and all others stay.
pub fn chain() -> (Vec<u8>, Vec<u8>) {
    let old = random(51, 16 * PART);
    let mut new = old.clone();
    new[part(9)].copy_from_slice(&old[part(5)]);
    new[part(5)].copy_from_slice(&old[part(7)]);
    new[part(7)].copy_from_slice(&random(53, PART));
    (old, new)
}

/// A scene of [`chain`], with a target that holds the old image.
#[track_caller]
pub fn chain_scene() -> Scene {
    let (old, new) = chain();
    let scene = Scene::with_delta(&old, &new);
    scene.write("target", &old);
    let info = info(&scene.path("delta"));
    assert_eq!((info_number(&info, "batches"), info_number(&info, "saves")), (3, 0), "the chain's order");
    scene
}

/// Several MiB of moves, swaps, shifts and edits, so that batches depend on each other, with saves and zeros.
pub fn busy_pair(len: usize) -> (Vec<u8>, Vec<u8>) {
    let blocks = len / BLOCK;
    let old = random(71, len);
    let (a, b) = (blocks / 4 * BLOCK, blocks / 2 * BLOCK);
    // Swapped quarters, a part shifted by 100 bytes, shuffled runs of 16 blocks, edits, zeros.
    let mut new = [&old[a..b], &old[..a]].concat();
    new.extend(random(72, 100));
    new.extend_from_slice(&old[b..b + a - 100]);
    let tail = new.len();
    let runs = (len - tail) / (16 * BLOCK);
    for i in Rng::new(73).permutation(runs) {
        new.extend_from_slice(&old[tail + i * 16 * BLOCK..tail + (i + 1) * 16 * BLOCK]);
    }
    new.extend_from_slice(&old[new.len()..]);
    new.iter_mut().skip(5 * BLOCK).step_by(9 * BLOCK).for_each(|byte| *byte ^= 0xA5);
    new[b..b + 20 * BLOCK].fill(0);
    (old, new)
}

/// Blocks of `new` that differ from `old` at the same place, or are not wholly within it.
pub fn changed_blocks(old: &[u8], new: &[u8]) -> u64 {
    let differs = |(i, bytes): (usize, &[u8])| old.get(i * BLOCK..i * BLOCK + bytes.len()) != Some(bytes);
    new.chunks(BLOCK).enumerate().filter(|part| differs(*part)).count() as u64
}

/// Unchanged blocks that are zero: `diff` may use them as scratch and zero them again.
pub fn zero_blocks(old: &[u8], new: &[u8]) -> u64 {
    let zero = |bytes: &&[u8]| bytes.iter().all(|byte| *byte == 0);
    old.chunks(BLOCK).zip(new.chunks(BLOCK)).filter(|(a, b)| zero(a) && zero(b)).count() as u64
}

/// What `info --json` says.
#[track_caller]
pub fn info(delta: &Path) -> serde_json::Value {
    let said = run(&[&"info", &"--json", &delta]).code(0);
    serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("info --json is not JSON: {e}\n{}", said.out))
}

/// A number that `info --json` says.
#[track_caller]
pub fn info_number(info: &serde_json::Value, field: &str) -> u64 {
    info[field].as_u64().unwrap_or_else(|| panic!("info --json has no number {field}: {info}"))
}

/// Asserts what `verify` says.
#[track_caller]
pub fn assert_state(delta: &Path, target: &Path, state: &str) {
    assert_state_by(delta, target, "full", state);
}

/// Asserts what `verify --verify MODE` says.
#[track_caller]
pub fn assert_state_by(delta: &Path, target: &Path, mode: &str, state: &str) {
    let code = match state {
        "new" => 0,
        "old" => 10,
        "convertible" => 11,
        "neither" => 12,
        _ => panic!("there is no state {state}"),
    };
    let said = run(&[&"verify", &"--verify", &mode, &delta, &target]).code(code);
    assert_eq!(said.out.trim(), state, "verify's one word on standard output");
}
