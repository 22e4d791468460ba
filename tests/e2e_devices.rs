//! Disks with partition tables, what is mounted or held on them, and the question before they are written.

mod common;

use common::*;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the partitions of [`disk`] lie, in MiB: start and end.
const PARTS: [(usize, usize); 2] = [(1, 5), (6, 10)];
/// Length of the disk, in MiB.
const DISK: usize = 12;

/// An image of a disk with a GPT and two partitions, the first of random bytes, the second with an ext4 file system.
fn disk(scene: &Scene, seed: u64) -> Vec<u8> {
    let path = scene.path("disk-image");
    let _ = fs::remove_file(&path);
    fs::File::create(&path).unwrap().set_len((DISK * MIB) as u64).unwrap();
    let table = scene.write(
        "table",
        b"label: gpt\nlabel-id: 01234567-89AB-CDEF-0123-456789ABCDEF\n\
          start=2048, size=8192, name=boot, uuid=11234567-89AB-CDEF-0123-456789ABCDEF\n\
          start=12288, size=8192, name=root, uuid=21234567-89AB-CDEF-0123-456789ABCDEF\n",
    );
    tool("sh", &[&"-c", &"sfdisk -q \"$1\" < \"$2\"", &"sh", &path, &table]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[PARTS[0].0 * MIB..PARTS[0].1 * MIB].copy_from_slice(&random(seed, 4 * MIB));
    let system = scene.path("system");
    let _ = fs::remove_file(&system);
    tool("mke2fs", &[&"-q", &"-t", &"ext4", &"-L", &"the-root", &system, &"4M"]);
    bytes[PARTS[1].0 * MIB..PARTS[1].1 * MIB].copy_from_slice(&fs::read(&system).unwrap());
    bytes
}

/// A disk whose first partition holds something else, in part moved.
fn next_release(old: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    let start = PARTS[0].0 * MIB;
    new[start + 40 * BLOCK..start + 60 * BLOCK].copy_from_slice(&old[start + 200 * BLOCK..start + 220 * BLOCK]);
    new[start + 300 * BLOCK..start + 301 * BLOCK].copy_from_slice(&random(5, BLOCK));
    new
}

fn first_part(disk: &[u8]) -> &[u8] {
    &disk[PARTS[0].0 * MIB..PARTS[0].1 * MIB]
}

/// A scene with a disk, its next release, deltas of the disk (`delta`) and of its first partition (`part-delta`).
struct Disks {
    scene: Scene,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Disks {
    /// `None` where the machine has not what is needed.
    fn new(test: &str) -> Option<Self> {
        if !loops(test) || !ext4(test) || !tools(test, &["sfdisk", "partx"]) {
            return None;
        }
        let scene = Scene::new();
        let old = disk(&scene, 71);
        let new = next_release(&old);
        for (name, bytes) in
            [("old", &old[..]), ("new", &new), ("p-old", first_part(&old)), ("p-new", first_part(&new))]
        {
            scene.write(name, bytes);
        }
        let path = |name| scene.path(name);
        run(&[&"diff", &path("old"), &path("new"), &"-o", &path("delta")]).code(0);
        run(&[&"diff", &path("p-old"), &path("p-new"), &"-o", &path("part-delta")]).code(0);
        Some(Self { scene, old, new })
    }

    fn delta(&self) -> PathBuf {
        self.scene.path("delta")
    }

    fn part_delta(&self) -> PathBuf {
        self.scene.path("part-delta")
    }

    /// A disk that holds some bytes; the kernel knows its partitions.
    fn plugged_in(&self, bytes: &[u8]) -> Disk {
        let device = Loop::attach_with(&self.scene.write("backing", bytes), &["-P"]);
        // Not every kernel knows this kind of table.
        tool("partx", &[&"-u", &device.path()]);
        Disk { parts: [1, 2].map(|number| node(&self.scene, device.path(), number)), device }
    }
}

struct Disk {
    parts: [PathBuf; 2],
    device: Loop,
}

/// The node of a partition; made where nobody makes it.
fn node(scene: &Scene, device: &Path, number: u32) -> PathBuf {
    let name = device.file_name().unwrap().to_string_lossy().into_owned();
    let path = PathBuf::from(format!("{}p{number}", device.display()));
    if path.exists() {
        return path;
    }
    let numbers = fs::read_to_string(format!("/sys/block/{name}/{name}p{number}/dev")).unwrap();
    let (major, minor) = numbers.trim().split_once(':').unwrap();
    let path = scene.path(&format!("{name}p{number}"));
    tool("mknod", &[&path, &"b", &major, &minor]);
    path
}

/// Both verbs that write, with and without `--dry-run`, are refused; nothing is written.
#[track_caller]
fn refused_to_all(disks: &Disks, row: &str, target: &Path, device: &Loop, texts: &[&str]) {
    let (delta, image) = (disks.delta(), disks.scene.path("new"));
    let written = device.bytes_written();
    for args in [
        &[&"patch" as &dyn AsRef<OsStr>, &delta, &target][..],
        &[&"patch", &"--dry-run", &"--yes", &delta, &target],
        &[&"sync", &"--yes", &image, &target],
    ] {
        let mut said = run(args).code(1).row(row).says("Nothing was written");
        for text in texts {
            said = said.says(text);
        }
    }
    assert_eq!(device.bytes_written(), written, "bytes written to a device that was refused");
}

// ------------------------------------------------------------------------------------------------------ users

#[test]
fn a_disk_of_which_a_partition_is_mounted() {
    let Some(disks) = Disks::new("a mounted partition") else { return };
    let disk = disks.plugged_in(&disks.old);
    let at = disks.scene.path("mounted here");
    let mount = Mount::new("ext4", &disk.parts[1], &at, "ro,noload");
    let where_ = format!("mounted at {}", at.display());
    refused_to_all(&disks, "in-use-partition", disk.device.path(), &disk.device, &["in use: its partition", &where_]);
    refused_to_all(&disks, "in-use-mounted", &disk.parts[1], &disk.device, &["in use: it is", &where_]);
    // Its neighbour is free, and looking is allowed.
    run(&[&"patch", &"--dry-run", &disks.part_delta(), &disk.parts[0]]).code(0);
    assert_state(&disks.delta(), disk.device.path(), "old");
    drop(mount);
    run(&[&"patch", &disks.delta(), &disk.device.path()]).code(0);
    assert_same(&disk.device.read(), &disks.new, "the disk");
}

#[test]
fn a_disk_that_is_swap() {
    let Some(disks) = Disks::new("swap") else { return };
    if !tools("swap", &["mkswap", "swapon", "swapoff"]) {
        return;
    }
    let disk = disks.plugged_in(&disks.old);
    tool("mkswap", &[&disk.parts[0]]);
    tool("swapon", &[&disk.parts[0]]);
    let checked = std::panic::catch_unwind(|| {
        refused_to_all(
            &disks,
            "in-use-partition",
            disk.device.path(),
            &disk.device,
            &["in use: its partition", "used as swap"],
        );
        refused_to_all(&disks, "in-use-swap", &disk.parts[0], &disk.device, &["in use: it is used as swap", "swapoff"]);
    });
    tool("swapoff", &[&disk.parts[0]]);
    checked.unwrap();
}

#[test]
fn a_disk_that_a_logical_volume_lies_on() {
    let Some(disks) = Disks::new("the device mapper") else { return };
    let disk = disks.plugged_in(&disks.old);
    let name = format!("blkpatch-test-{}", std::process::id());
    let table = format!("0 8192 linear {} 0", disk.parts[0].display());
    let made = std::process::Command::new("dmsetup").args(["create", &name, "--table", &table]).output();
    if !made.is_ok_and(|made| made.status.success()) {
        // What is said then is also tested without, in src/device/users.rs.
        shout("SKIPPED a disk that a logical volume lies on: no device mapper in this kernel, or no dmsetup");
        return;
    }
    let checked = std::panic::catch_unwind(|| {
        refused_to_all(&disks, "in-use-partition", disk.device.path(), &disk.device, &["in use: its partition", &name]);
        refused_to_all(
            &disks,
            "in-use-held",
            &disk.parts[0],
            &disk.device,
            &["held by the device mapper volume", &name],
        );
    });
    tool("dmsetup", &[&"remove", &"--retry", &name]);
    checked.unwrap();
}

#[test]
fn a_device_that_a_loop_device_shows() {
    let Some(disks) = Disks::new("a loop device over a device") else { return };
    let disk = disks.plugged_in(&disks.old);
    let shown = Loop::attach(&disk.parts[0]);
    let text = format!("shown by the loop device {}", shown.path().display());
    refused_to_all(&disks, "in-use-partition", disk.device.path(), &disk.device, &["in use: its partition", &text]);
    refused_to_all(&disks, "in-use-loop", &disk.parts[0], &disk.device, &[&text]);
    drop(shown);
    let shown = Loop::attach(disk.device.path());
    refused_to_all(&disks, "in-use-disk", &disk.parts[0], &disk.device, &["that it is a partition of is shown by"]);
    drop(shown);
}

#[test]
fn a_file_that_two_loop_devices_show() {
    if !loops("two loop devices over one file") {
        return;
    }
    let scene = chain_scene();
    let (delta, image, target) = (scene.path("delta"), scene.path("new"), scene.write("target", &scene.read("old")));
    let pair = [(); 2].map(|()| Loop::attach(&target));
    let refused = |one: &Loop, other: &Loop| {
        let text = format!("the loop device {} shows the same bytes", other.path().display());
        for args in [[&"patch" as &dyn AsRef<OsStr>, &delta, &one.path()], [&"sync", &image, &one.path()]] {
            run(&args).code(1).row("in-use-twin").says(&text).says("Nothing was written");
        }
    };
    refused(&pair[0], &pair[1]);
    // The name is gone, and then leads elsewhere.
    fs::remove_file(&target).unwrap();
    refused(&pair[1], &pair[0]);
    scene.write("target", &scene.read("old"));
    run(&[&"patch", &delta, &target]).code(0);
    let [first, second] = pair;
    drop(second);
    run(&[&"patch", &delta, &first.path()]).code(0);
    assert_same(&first.read(), &scene.read("new"), "the file without a name");
}

#[test]
fn a_loop_device_over_what_is_mounted() {
    let Some(disks) = Disks::new("a loop device over a mounted device") else { return };
    let disk = disks.plugged_in(&disks.old);
    let at = disks.scene.path("mounted here");
    let mount = Mount::new("ext4", &disk.parts[1], &at, "ro,noload");
    let (start, len) = ((PARTS[0].0 * MIB).to_string(), (4 * MIB).to_string());
    let text = format!("the device {} below it is mounted at {}", disk.parts[1].display(), at.display());
    let refused = |shown: &Loop| refused_to_all(&disks, "in-use-below", shown.path(), &disk.device, &[&text]);
    // The partition, the disk around it, and the disk by way of one more loop device.
    refused(&Loop::attach(&disk.parts[1]));
    let whole = Loop::attach(disk.device.path());
    refused(&whole);
    let further = Loop::attach(whole.path());
    refused(&further);
    drop(further);
    drop(whole);
    // Looking is allowed, and writing where the mounted partition does not lie: each partition for itself, or a stretch.
    let first = Loop::attach(&disk.parts[0]);
    assert_state(&disks.part_delta(), first.path(), "old");
    run(&[&"patch", &"--dry-run", &disks.part_delta(), &first.path()]).code(0);
    drop(first);
    let stretch = Loop::attach_with(disk.device.path(), &["-o", &start, "--sizelimit", &len]);
    run(&[&"sync", &"--yes", &disks.scene.path("p-new"), &stretch.path()]).code(0);
    drop(stretch);
    drop(mount);
    let whole = Loop::attach(disk.device.path());
    run(&[&"patch", &disks.delta(), &whole.path()]).code(0);
    assert_same(&disk.device.read(), &disks.new, "the disk");
}

#[test]
fn a_disk_is_locked_until_after_the_last_check() {
    let Some(disks) = Disks::new("locks") else { return };
    let disk = disks.plugged_in(&disks.old);
    // Whoever honours locks waits for the whole run: here it is as long as a pipe stays open.
    let mut command = command(&[&"sync", &"-", &disk.parts[0]]);
    command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let image = first_part(&disks.new);
    use std::io::Write;
    child.stdin.as_mut().unwrap().write_all(&image[..2 * MIB]).unwrap();
    for device in [disk.device.path(), &disk.parts[0]] {
        let file = fs::File::open(device).unwrap();
        let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared);
        assert_eq!(locked, Err(rustix::io::Errno::WOULDBLOCK), "{} is not locked", device.display());
    }
    child.stdin.take().unwrap().write_all(&image[2 * MIB..]).unwrap();
    finish(child, "sync").code(0);
    let file = fs::File::open(disk.device.path()).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).expect("the lock is gone");
}

#[test]
fn a_file_where_a_device_was_meant() {
    let scene = chain_scene();
    let (delta, image) = (scene.path("delta"), scene.path("new"));
    for name in ["/dev/sdxyz", "/dev/disk/by-id/nowhere"] {
        run(&[&"patch", &delta, &name]).code(1).says("does not exist").says("lsblk").says("Nothing was written");
        run(&[&"sync", &image, &name]).code(1).says("does not exist").says("Nothing was written");
        assert!(!Path::new(name).exists(), "{name} was made");
    }
    let name = format!("/dev/blkpatch-test-{}", std::process::id());
    let target = Path::new(&name);
    if !is_root() || fs::write(target, scene.read("old")).is_err() {
        return skip("a regular file in /dev", "nothing can be made in /dev");
    }
    let before = Unwritten::look(target);
    let checked = std::panic::catch_unwind(|| {
        for args in [[&"patch" as &dyn AsRef<OsStr>, &delta, &target], [&"sync", &image, &target]] {
            run(&args).code(1).row("file-in-dev").says("Nothing was written");
        }
        before.still(target);
    });
    fs::remove_file(target).unwrap();
    checked.unwrap();
    // Memory that is used as a disk is not in /dev, though under it.
    if Path::new("/dev/shm").is_dir() {
        let folder = tempfile::Builder::new().prefix("blkpatch-").tempdir_in("/dev/shm").unwrap();
        fs::write(folder.path().join("target"), scene.read("old")).unwrap();
        run(&[&"patch", &delta, &folder.path().join("target")]).code(0);
    }
}

// -------------------------------------------------------------------------------------- the disk or a partition

#[test]
fn the_delta_of_a_partition_and_the_whole_disk() {
    let Some(disks) = Disks::new("a partition's delta") else { return };
    let disk = disks.plugged_in(&disks.old);
    let [first, second] = disk.parts.each_ref().map(|part| part.display().to_string());
    let whole = disk.device.path().display().to_string();
    let made_for = |row: &str, delta: PathBuf, target: &dyn AsRef<OsStr>, text: &str| {
        for option in ["--yes", "--dry-run"] {
            let said = run(&[&"patch", &option, &delta, target]).code(1).row(row);
            said.says(text).says("Nothing was written");
        }
    };
    made_for("lies-elsewhere", disks.part_delta(), &whole, &format!("lies on {first}"));
    made_for("lies-elsewhere", disks.part_delta(), &second, &format!("lies on {first}"));
    made_for("lies-elsewhere", disks.delta(), &first, &format!("lies on the whole disk {whole}"));
    // Looking says so, too.
    run(&[&"verify", &disks.part_delta(), &whole]).code(12).says(&format!("lies on {first}"));
    // What only the size tells: the partition is too small, its disk is not, and holds something else.
    disk.device.write(0, &random(8, BLOCK));
    disk.device.write((PARTS[0].0 * MIB) as u64, &random(9, 4 * MIB));
    made_for("disk-has-room", disks.delta(), &first, "only the whole disk has room");
    // Nothing but the length fits: refused with a word about that, after it was read.
    let said = run(&[&"patch", &disks.part_delta(), &whole]).code(1).says("does not hold the image");
    said.row("hint-partition").says(&first);
    assert_eq!(disk.device.bytes_written(), (4 * MIB + BLOCK) as u64, "only the test has written");
}

#[test]
fn a_disk_whose_partitions_the_kernel_does_not_know() {
    let Some(disks) = Disks::new("an unknown partition") else { return };
    let device = Loop::attach(&disks.scene.write("backing", &disks.old));
    let said = run(&[&"patch", &disks.part_delta(), &device.path()]).code(1).says("not what this delta was made for");
    said.says("its partition 1 (at byte 1048576)");
    run(&[&"patch", &disks.delta(), &device.path()]).code(0);
}

#[test]
fn a_partition_is_patched_at_any_state() {
    let Some(disks) = Disks::new("a partition") else { return };
    for bytes in [&disks.old, &disks.new] {
        let disk = disks.plugged_in(bytes);
        run(&[&"patch", &disks.part_delta(), &disk.parts[0]]).code(0);
        assert_same(&disk.device.read(), &disks.new, "the disk");
    }
}

#[test]
fn sync_tells_of_an_odd_pair() {
    let Some(disks) = Disks::new("odd pairs") else { return };
    let disk = disks.plugged_in(&disks.old);
    let (part, whole) = (disks.scene.path("p-new"), disks.scene.path("new"));
    tool("gzip", &[&"-k", &part]);
    for image in [part.clone(), disks.scene.path("p-new.gz")] {
        let said = run(&[&"sync", &"--dry-run", &image, &disk.device.path()]).code(0);
        said.says("begins with no partition table")
            .says("has one (GPT) with 2 partitions")
            .says("was a partition meant?");
    }
    let said = run(&[&"sync", &"--dry-run", &part, &disk.parts[0]]).code(0);
    assert!(!said.err.contains("note:"), "{}", said.err);
    run(&[&"sync", &whole, &disk.parts[0]]).code(1).says("only the whole disk has room").says("Nothing was written");
    let head = disks.scene.write("head", &disks.new[..3 * MIB]);
    let said = run(&[&"sync", &"--dry-run", &head, &disk.parts[0]]).code(0);
    said.says("begins with a partition table").says("only partition 1");
}

// --------------------------------------------------------------------------------------------------- afterwards

#[test]
fn the_kernel_reads_a_new_partition_table() {
    let Some(disks) = Disks::new("reading a partition table again") else { return };
    for verb in ["patch", "sync"] {
        let disk = disks.plugged_in(&disks.old);
        let name = disk.device.path().file_name().unwrap().to_string_lossy().into_owned();
        // A partition that no table has: only who reads the table again forgets it.
        tool("addpart", &[&disk.device.path(), &"9", &"21504", &"1024"]);
        let stale = PathBuf::from(format!("/sys/block/{name}/{name}p9"));
        assert!(stale.exists(), "the kernel knows the partition that was made by hand");
        let what = if verb == "patch" { disks.delta() } else { disks.scene.path("new") };
        run(&[&verb, &"--dry-run", &what, &disk.device.path()]).code(0);
        assert!(stale.exists(), "a dry run changes nothing");
        let said = run(&[&verb, &what, &disk.device.path()]).code(0);
        assert!(!said.err.contains("note:"), "{}", said.err);
        assert!(!stale.exists(), "{verb}: the kernel has not read the partition table again");
        assert_same(&disk.device.read(), &disks.new, "the disk");
    }
}

#[test]
fn a_table_made_for_a_smaller_disk_is_told() {
    let Some(disks) = Disks::new("a GPT on a larger disk") else { return };
    let mut larger = disks.old.clone();
    larger.resize((DISK + 3) * MIB, 0);
    let disk = disks.plugged_in(&larger);
    let last = (DISK + 3) * MIB - 512;
    for _ in ["patched", "up to date"] {
        let said = run(&[&"patch", &disks.delta(), &disk.device.path()]).code(0);
        said.says("has its backup at byte 12582400").says(&last.to_string()).says("sgdisk -e");
    }
    run(&[&"sync", &disks.scene.path("new"), &disk.device.path()]).code(0).says("sgdisk -e");
    if tools("mending a GPT", &["sgdisk"]) {
        tool("sgdisk", &[&"-e", &disk.device.path()]);
        let said = run(&[&"patch", &disks.delta(), &disk.device.path()]).code(1);
        said.says("All that the delta writes is there already"); // as the message said
    }
}

// ------------------------------------------------------------------------------------------------- the question

#[test]
fn at_a_terminal_it_asks() {
    let Some(disks) = Disks::new("the question") else { return };
    let disk = disks.plugged_in(&disks.old);
    let (delta, image) = (disks.delta(), disks.scene.path("new"));
    let device = disk.device.path();
    let question = format!("Write to {}? [y/N]", device.display());
    for (verb, what) in [("patch", &delta), ("sync", &image)] {
        for answer in ["n\n", "\n", "yeah\n", "\x04"] {
            let mut run = AtTerminal::start(&[&verb, what, &device], &[]);
            run.wait_for(&question);
            run.type_in(answer);
            run.finish().code(1).row("asked-no");
        }
    }
    let mut stopped = AtTerminal::start(&[&"patch", &delta, &device], &[]);
    stopped.wait_for(&question);
    signal(stopped.child(), "INT");
    stopped.finish().code(1).row("stopped-before");
    assert_eq!(disk.device.bytes_written(), 0, "nobody said yes");
    let mut run = AtTerminal::start(&[&"patch", &delta, &device], &[]);
    run.wait_for(&question);
    let seen = run.seen();
    for text in
        ["loop device over", "12.0 MiB", "1: 4.0 MiB boot", "2: 4.0 MiB root 'the-root'", "CRC-32", "up to 21 blocks"]
    {
        assert!(seen.contains(text), "{text:?} is missing in:\n{seen}");
    }
    assert!(seen.lines().count() <= 24 && seen.lines().all(|line| line.chars().count() <= 100), "one screen:\n{seen}");
    run.type_in("y\n");
    run.finish().code(0).says("now holds the new image");
    assert_same(&disk.device.read(), &disks.new, "the disk");
    // Nobody is asked who has said so, or where nothing is written.
    for option in ["--yes", "-y", "--dry-run"] {
        let mut run = AtTerminal::start(&[&"patch", &option, &delta, &device], &[]);
        run.wait_for("already holds the new image");
        assert!(!run.finish().code(0).err.contains("[y/N]"), "asked with {option}");
    }
}

#[test]
fn what_is_refused_anyway_is_not_asked_about() {
    let Some(disks) = Disks::new("no question") else { return };
    let disk = disks.plugged_in(&disks.old);
    for (delta, target) in [(disks.part_delta(), disk.device.path()), (disks.delta(), &disk.parts[0])] {
        let said = AtTerminal::start(&[&"patch", &delta, &target], &[]).finish().code(1);
        assert!(!said.err.contains("[y/N]"), "{}", said.err);
    }
    let unsafe_delta = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/bad-rule-r1.delta");
    let said = AtTerminal::start(&[&"patch", &unsafe_delta, &disk.device.path()], &[]).finish().code(1);
    let said = said.says("breaks rule R1");
    assert!(!said.err.contains("[y/N]"), "{}", said.err);
    // Files are not asked about.
    let target = disks.scene.write("target", &disks.old);
    AtTerminal::start(&[&"patch", &disks.delta(), &target], &[]).finish().code(0).says("now holds the new image");
}
