//! `sync` through the built binary: plain and sparse images, compressed ones, pipes; files and loop devices as targets.

mod common;

use common::*;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Bytes that `sync` says it wrote.
#[track_caller]
fn bytes_written(said: &Out) -> u64 {
    let head = said.err.split(" bytes written").next().unwrap_or_default();
    let digits = head.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("no bytes written in:\n{}", said.err))
}

/// Runs `sync - TARGET` with these bytes on a pipe. That it stops reading is no failure here.
#[track_caller]
fn run_fed(bytes: &[u8], target: &Path) -> Out {
    let mut command = command(&[&"sync", &"-", &target]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(pipe.write_all(bytes)));
        finish(child, "sync -")
    })
}

/// An image of some MiB with an odd end, and what a target holds before: some blocks differ, at chunk borders, too.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let new = random(1, 5 * MIB + 3 * BLOCK + 777);
    let mut old = new.clone();
    for i in [0, 1, 7, 63, 64, 255, 256, 257, 511, 700, 701, 1100, new.len() / BLOCK] {
        old[i * BLOCK + 99] ^= 1;
    }
    (old, new)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::bufread::XzEncoder::new(bytes, 0).read_to_end(&mut packed).unwrap();
    packed
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

fn bz2(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    bzip2::bufread::BzEncoder::new(bytes, bzip2::Compression::fast()).read_to_end(&mut packed).unwrap();
    packed
}

type Pack = fn(&[u8]) -> Vec<u8>;
const PACKS: [(&str, Pack); 4] = [("gz", gzip), ("xz", xz), ("zst", zst), ("bz2", bz2)];

// ---------------------------------------------------------------------------------------------------- what is written

#[test]
fn a_device_gets_exactly_the_blocks_that_differ() {
    if !loops("sync") {
        return;
    }
    let (old, new) = pair();
    let scene = Scene::new();
    let image = scene.write("image", &new);
    // The last sector is written whole.
    let least = (changed_blocks(&old, &new) - 1) * BLOCK as u64 + (new.len() % BLOCK) as u64;
    for (options, room) in [(&[][..], 5 * 4096 + 512), (&[][..], 0), (&["--sector-size", "4096"][..], 4096)] {
        let mut bytes = random(2, new.len().next_multiple_of(4096) + room);
        bytes[..old.len()].copy_from_slice(&old);
        // A file of its own: the last device may be held open a moment longer by who looks at all of them.
        let device = Loop::attach_with(&scene.write(&format!("backing-{room}"), &bytes), options);
        let dry = run(&[&"sync", &"--dry-run", &image, &device.path()]).code(0);
        assert_eq!((bytes_written_dry(&dry), device.bytes_written()), (least, 0));

        let done = run(&[&"sync", &image, &device.path()]).code(0).says("now holds the image");
        let counted = device.bytes_written();
        assert_eq!(bytes_written(&done), least);
        assert!((least..least + 4096).contains(&counted), "the kernel counts {counted} bytes, {least} differ");
        let seen = device.read();
        assert_same(&seen[..new.len()], &new, "the device");
        assert_same(&seen[new.len()..], &bytes[new.len()..], "the device behind the image");

        run(&[&"sync", &image, &device.path()]).code(0).says("already holds the image").says("nothing was written");
        assert_eq!(device.bytes_written(), counted, "the second run wrote");
    }
    scene.holds_only(&["image", "backing-0", "backing-4096", "backing-20992"]);
}

/// Bytes that `sync --dry-run` says it would write.
#[track_caller]
fn bytes_written_dry(said: &Out) -> u64 {
    let text = said.err.replace(" bytes would be written", " bytes written");
    bytes_written(&Out { code: said.code, out: String::new(), err: text })
}

#[test]
fn a_file_gets_exactly_the_image() {
    let (old, new) = pair();
    let scene = Scene::new();
    let image = scene.write("image", &new);
    let target = scene.write("target", &old);
    let before = Unwritten::look(&target);
    run(&[&"sync", &"--dry-run", &image, &target]).code(0).says("would be written");
    before.still(&target);
    let done = run(&[&"sync", &image, &target]).code(0).says("checked by reading it back");
    assert_eq!(bytes_written(&done), (changed_blocks(&old, &new) - 1) * BLOCK as u64 + (new.len() % BLOCK) as u64);
    assert_same(&scene.read("target"), &new, "the target");
    let after = Unwritten::look(&target);
    run(&[&"sync", &image, &target]).code(0).says("nothing was written");
    after.still(&target);
    assert_same(&scene.read("image"), &new, "the image");
    scene.holds_only(&["image", "target"]);
}

#[test]
fn a_file_grows_or_is_cut_to_the_length_of_the_image() {
    let (_, mut new) = pair();
    let end = new.len() - 2 * MIB;
    new[end..].fill(0);
    let scene = Scene::new();
    let image = scene.write("image", &new);
    let packed = scene.write("image.gz", &gzip(&new));
    let longer = [&new[..], &[7; 2 * MIB + 5]].concat();
    for old in [&b""[..], b"x", &new[..end], &new[..new.len() - 1], &longer, &random(3, 8 * MIB)] {
        for image in [&image, &packed] {
            let target = scene.write("target", old);
            let before = Unwritten::look(&target);
            let text = format!("length would be set from {} to {} bytes", old.len(), new.len());
            run(&[&"sync", &"--dry-run", image, &target]).code(0).says(&text);
            before.still(&target);
            let text = format!("length was set from {} to {} bytes", old.len(), new.len());
            run(&[&"sync", image, &target]).code(0).says(&text);
            assert_same(&scene.read("target"), &new, &format!("a file that had {} bytes", old.len()));
        }
    }
}

#[test]
fn a_device_as_the_image() {
    if !loops("sync from a device") {
        return;
    }
    let (old, new) = pair();
    let (old, new) = (&old[..5 * MIB], &new[..5 * MIB]);
    let scene = Scene::new();
    let source = Loop::attach(&scene.write("source", new));
    let target = scene.write("target", old);
    let done = run(&[&"sync", &source.path(), &target]).code(0);
    assert_eq!(bytes_written(&done), changed_blocks(old, new) * BLOCK as u64);
    assert_same(&scene.read("target"), new, "the target");
    assert_eq!(source.bytes_written(), 0);
}

// ------------------------------------------------------------------------------------------------------------- sparse

#[test]
fn holes_of_the_image_are_zeros_on_a_dirty_target() {
    let scene = Scene::new();
    let len = 9 * MIB + 500;
    let image = scene.path("image");
    let file = File::create(&image).unwrap();
    file.set_len(len as u64).unwrap();
    file.write_all_at(&random(4, 50_000), 3 * MIB as u64 + 1234).unwrap();
    let new = fs::read(&image).unwrap();
    let dirt = random(5, len.next_multiple_of(4096));
    let target = scene.write("target", &dirt[..len]);
    run(&[&"sync", &image, &target]).code(0);
    assert_same(&scene.read("target"), &new, "the file");
    if loops("sync of a sparse image") {
        let mut bytes = dirt.clone();
        bytes[MIB..2 * MIB].fill(0); // already right
        let device = Loop::attach(&scene.write("backing", &bytes));
        let done = run(&[&"sync", &image, &device.path()]).code(0);
        assert_eq!(bytes_written(&done) as usize, len - MIB);
        assert_same(&device.read()[..len], &new, "the device");
        assert_same(&device.read()[len..], &dirt[len..], "the device behind the image");
        let counted = device.bytes_written();
        run(&[&"sync", &image, &device.path()]).code(0).says("nothing was written");
        assert_eq!(device.bytes_written(), counted);
    }
}

#[test]
fn huge_holes_on_both_sides_cost_nothing() {
    let len = scaled(64 << 30, 1 << 40) as u64;
    let scene = Scene::new();
    let (image, target) = (scene.path("image"), scene.path("target"));
    let file = File::create(&image).unwrap();
    file.set_len(len).unwrap();
    let data = random(6, 30_000);
    file.write_all_at(&data, len / 2 + 11).unwrap();
    let file = File::create(&target).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&data, 5000).unwrap();
    let begun = Instant::now();
    run(&[&"sync", &image, &target]).code(0);
    assert!(begun.elapsed() < Duration::from_secs(60), "64 GiB of holes were read: {:?}", begun.elapsed());
    let meta = fs::metadata(&target).unwrap();
    assert!(meta.len() == len && meta.blocks() * 512 < 4 << 20, "not sparse: {} sectors", meta.blocks());
    let file = File::open(&target).unwrap();
    let mut seen = vec![0; data.len()];
    file.read_exact_at(&mut seen, len / 2 + 11).unwrap();
    assert_same(&seen, &data, "the data");
    file.read_exact_at(&mut seen, 5000).unwrap();
    assert!(seen.iter().all(|byte| *byte == 0));
}

// ----------------------------------------------------------------------------------------- compressed, and from a pipe

#[test]
fn compressed_images_are_recognised_by_their_content() {
    let (old, new) = pair();
    let scene = Scene::new();
    let expected = (changed_blocks(&old, &new) - 1) * BLOCK as u64 + (new.len() % BLOCK) as u64;
    for (name, pack) in PACKS {
        // Under a name that tells nothing; in two parts, as concatenated files are.
        for packed in [pack(&new), [pack(&new[..2_000_000]), pack(&new[2_000_000..])].concat()] {
            let image = scene.write("image", &packed);
            let target = scene.write("target", &old);
            let done = run(&[&"sync", &image, &target]).code(0);
            assert_eq!(bytes_written(&done), expected, "{name}");
            assert_same(&scene.read("target"), &new, name);
            run(&[&"sync", &image, &target]).code(0).says("nothing was written");
            // On a pipe.
            let target = scene.write("target", &old);
            assert_eq!(bytes_written(&run_fed(&packed, &target).code(0)), expected, "{name} on a pipe");
            assert_same(&scene.read("target"), &new, name);
        }
    }
    let target = scene.write("target", &old);
    run_fed(&new, &target).code(0);
    assert_same(&scene.read("target"), &new, "a plain image on a pipe");
    // A file as standard input.
    let (image, target) = (scene.write("image", &new), scene.write("target", &old));
    let mut command = command(&[&"sync", &"-", &target]);
    command.stdin(File::open(image).unwrap());
    run_command(command).code(0);
    assert_same(&scene.read("target"), &new, "a file as standard input");
}

#[test]
fn a_compressed_image_to_a_device() {
    if !loops("sync of a compressed image") {
        return;
    }
    let (old, new) = pair();
    let scene = Scene::new();
    let mut bytes = random(7, new.len().next_multiple_of(4096) + MIB);
    bytes[..old.len()].copy_from_slice(&old);
    for (name, pack) in PACKS {
        let device = Loop::attach(&scene.write("backing", &bytes));
        let done = run(&[&"sync", &scene.write("image", &pack(&new)), &device.path()]).code(0);
        let (said, counted) = (bytes_written(&done), device.bytes_written());
        assert!((said..said + 512).contains(&counted), "{name}: the kernel counts {counted}, it says {said}");
        assert_same(&device.read()[..new.len()], &new, name);
        assert_same(&device.read()[new.len()..], &bytes[new.len()..], "behind the image");
    }
}

#[test]
fn a_stream_that_is_cut_short_or_damaged_is_told_and_a_good_one_finishes() {
    let (old, new) = pair();
    let scene = Scene::new();
    for (name, pack) in PACKS {
        let packed = pack(&new);
        let target = scene.write("target", &old);
        let image = scene.write("image", &packed[..packed.len() * 3 / 4]);
        let said = run(&[&"sync", &image, &target]).code(3).says("ends too soon");
        said.says("stopped after").says("holds neither").says("Run the command again with a good image");
        let seen = scene.read("target");
        assert_eq!(seen.len(), old.len(), "{name}: its length changed");
        let image = scene.write("image", &packed);
        run(&[&"sync", &image, &target]).code(0);
        assert_same(&scene.read("target"), &new, name);
        // Where all that came is right already, nothing was written.
        let before = Unwritten::look(&target);
        let said = run_fed(&packed[..packed.len() - 5], &target).code(1);
        said.says("standard input cannot be unpacked").says("Nothing was written");
        before.still(&target);
        let target = scene.write("target", &old);
        let before = Unwritten::look(&target);
        let short = scene.write("short", &packed[..20]);
        run(&[&"sync", &"--dry-run", &short, &target]).code(1).says("Nothing was written");
        before.still(&target);
    }
}

// ----------------------------------------------------------------------------------------------------------- refusals

#[test]
fn a_target_that_is_too_small_is_refused_untouched() {
    if !loops("sync to a small device") {
        return;
    }
    let scene = Scene::new();
    let new = random(8, 4 * MIB + 1);
    let image = scene.write("image", &new);
    let device = Loop::attach(&scene.write("backing", &vec![0; 4 * MIB]));
    let said = run(&[&"sync", &image, &device.path()]).code(1);
    said.says("is too small").says("4194304 bytes").says("4194305").says("Nothing was written");
    // Compressed files tell how long they are, but for bzip2's.
    for (name, pack) in PACKS.into_iter().filter(|(name, _)| *name != "bz2") {
        let packed = if name == "zst" { zstd::bulk::compress(&new, 1).unwrap() } else { pack(&new) };
        let said = run(&[&"sync", &scene.write("packed", &packed), &device.path()]).code(1);
        said.says("at least 4194305 bytes").says("4194304").says("Nothing was written");
    }
    assert_eq!(device.bytes_written(), 0);
    // Others tell only at their end.
    let said = run_fed(&gzip(&new), device.path()).code(3);
    said.says("is longer than").says("4194304 bytes").says("holds neither").says("Use a larger target");
    // What it holds now is the start of the image: nothing is written.
    drop(device);
    let device = Loop::attach(&scene.write("backing", &new[..4 * MIB]));
    run_fed(&new, device.path()).code(1).says("is longer than").says("Nothing was written");
    assert_eq!(device.bytes_written(), 0);
}

#[test]
fn an_image_is_not_written_over_itself() {
    let scene = Scene::new();
    let image = scene.write("image", &random(9, MIB));
    fs::hard_link(&image, scene.path("link")).unwrap();
    std::os::unix::fs::symlink(&image, scene.path("symlink")).unwrap();
    let before = Unwritten::look(&image);
    for target in ["image", "link", "symlink"] {
        let said = run(&[&"sync", &image, &scene.path(target)]).code(1);
        said.says("they are the same").says("Nothing was written");
    }
    let mut command = command(&[&"sync", &"-", &image]);
    command.stdin(File::open(&image).unwrap());
    run_command(command).code(1).says("they are the same");
    if loops("sync onto itself") {
        let device = Loop::attach(&image);
        run(&[&"sync", &image, &device.path()]).code(1).says("a loop device that shows");
        run(&[&"sync", &device.path(), &image]).code(1).says("a loop device that shows");
        run(&[&"sync", &device.path(), &device.path()]).code(1).says("they are the same");
        assert_eq!(device.bytes_written(), 0);
    }
    before.still(&image);
}

#[test]
fn what_is_no_image_or_no_target_is_refused() {
    let scene = Scene::new();
    let image = scene.write("image", &random(10, MIB));
    let target = scene.write("target", &random(11, MIB));
    let before = Unwritten::look(&target);
    let refused = |image: &Path, why: &str| {
        run(&[&"sync", &image, &target]).code(1).says(why).says("Nothing was written");
        before.still(&target);
    };
    refused(&scene.write("empty", b""), "it is empty");
    for (name, pack) in PACKS {
        refused(&scene.write(&format!("empty.{name}"), &pack(b"")), "it is empty");
    }
    refused(Path::new("-"), "it is empty"); // from /dev/null
    refused(Path::new("/dev/null"), "neither a file");
    refused(&scene.path("missing"), "No such file");
    refused(scene.folder(), "is a directory");
    refused(&scene.write("bz2", b"BZh91AY&SY"), "ends too soon");
    refused(&scene.write("qcow2", b"QFI\xfb\0\0\0\x03"), "--format qcow2");

    run(&[&"sync", &image, &scene.path("missing")]).code(1).says("does not exist").says("Nothing was written");
    run(&[&"sync", &image, &scene.folder()]).code(1).says("is a directory");
    run(&[&"sync", &image]).code(2);
    run(&[&"sync", &image, &target, &"--undo"]).code(2);
    // In use by another run.
    let held = OpenOptions::new().read(true).open(&target).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    refused(&image, "is in use");
}

// ------------------------------------------------------------------------------------------------------- interruption

/// Half of an image comes through a pipe, and then nothing more for a while.
#[test]
fn a_signal_ends_it_also_while_it_waits_for_the_image() {
    let new = random(12, 8 * MIB);
    let scene = Scene::new();
    for (name, already) in [("INT", false), ("TERM", false), ("INT", true)] {
        // Where all that came is there already, nothing is written.
        let mut old = vec![1; new.len()];
        if already {
            old.copy_from_slice(&new);
        }
        let target = scene.write("target", &old);
        let mut command = command(&[&"sync", &"-", &target]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(&new[..5 * MIB]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !already && scene.read("target")[2 * MIB] == 1 && Instant::now() < deadline {
            sleep(Duration::from_millis(5));
        }
        signal(&mut child, name);
        let said = finish(child, "sync -");
        drop(pipe);
        if already {
            said.code(1).row("stopped-before");
        } else {
            said.code(3).row("sync-stopped").says("stopped after");
        }
        run_fed(&new, &target).code(0);
        assert_same(&scene.read("target"), &new, "the target that was stopped and finished");
    }
}

#[test]
fn stopped_or_killed_at_any_time_it_is_finished_by_the_next_run() {
    if !loops("stopping sync") {
        return;
    }
    let new = random(13, scaled(24 * MIB, 256 * MIB));
    let old = random(14, new.len());
    let scene = Scene::new();
    let image = scene.write("image", &new);
    for (name, share) in [("INT", 1), ("TERM", new.len() / 4), ("KILL", new.len() / 2), ("KILL", new.len() * 9 / 10)] {
        let device = Loop::attach(&scene.write("backing", &old));
        let mut child = start(&[&"sync", &image, &device.path()]);
        while device.bytes_written() < share as u64 && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_micros(200));
        }
        signal(&mut child, name);
        let said = finish(child, "sync");
        assert!([0, 3, -9].contains(&said.code), "SIG{name}: {said:?}");
        if said.code == 3 {
            said.says("stopped after").says("Run the same command again");
        }
        run(&[&"sync", &image, &device.path()]).code(0);
        assert_same(&device.read(), &new, "the device that was stopped and finished");
    }
}

#[test]
fn a_device_on_standard_input_is_never_unpacked() {
    if !loops("a_device_on_standard_input_is_never_unpacked") {
        return;
    }
    let scene = Scene::new();
    let mut bytes = gzip(&random(40, MIB));
    bytes.resize(2 * MIB, 0);
    let device = Loop::attach(&scene.write("backing", &bytes));
    let target = scene.write("target", b"");
    let from_device = |format: &str| {
        let mut command = command(&[&"sync", &"--format", &format, &"-", &target]);
        command.stdin(File::open(device.path()).unwrap());
        run_command(command)
    };
    from_device("gzip").code(1).row("packed-device");
    assert_same(&scene.read("target"), b"", "the refused target");
    from_device("auto").code(0);
    assert_same(&scene.read("target"), &bytes, "the target");
}
