//! What a target holds, `--verify`, `--dry-run` and `info`: through the built binary.

mod common;

use common::*;
use std::fs;
use std::path::Path;

#[track_caller]
fn patched(scene: &Scene, options: &[&str]) -> Out {
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let mut command = command(&[&"patch", &delta, &target]);
    command.args(options);
    let said = run_command(command).code(0);
    assert_same(&scene.read("target"), &scene.read("new"), "the patched target");
    said
}

// -------------------------------------------------------------------------------------------------- convertible

#[test]
fn a_change_that_is_overwritten_anyway_is_patched_and_said() {
    for byte in [0, 1, PART - 1] {
        let scene = chain_scene();
        let mut target = scene.read("old");
        target[part(9)][byte] ^= 0x10;
        scene.write("target", &target);
        assert_state(&scene.path("delta"), &scene.path("target"), "convertible");
        patched(&scene, &[]).says("differs from the old image only where the new one overwrites it");
    }
}

#[test]
fn an_interrupted_run_is_resumed_and_said() {
    let scene = chain_scene();
    let (old, new) = (scene.read("old"), scene.read("new"));
    let mut target = old.clone();
    // As a run leaves it that did its first batch; and with it, half of the second, in sectors; and two.
    for torn in [0, 512, 3 * 512, PART - 512, PART] {
        target[part(9)].copy_from_slice(&new[part(9)]);
        target[part(5)].copy_from_slice(&old[part(5)]);
        target[part(5)][..torn].copy_from_slice(&new[part(5)][..torn]);
        scene.write("target", &target);
        assert_state(&scene.path("delta"), &scene.path("target"), "convertible");
        let said = patched(&scene, &[]).says("resuming an interrupted run from batch").says("same delta file");
        assert_eq!(
            said.written().0 as usize,
            if torn == PART { PART } else { 2 * PART },
            "what was done is not done again"
        );
    }
    // Half of the first: nothing is done.
    target = old;
    target[part(9)][..1536].copy_from_slice(&new[part(9)][..1536]);
    scene.write("target", &target);
    assert_state(&scene.path("delta"), &scene.path("target"), "convertible");
    patched(&scene, &[]);
}

#[test]
fn a_change_elsewhere_is_refused() {
    for number in [0, 4, 6, 15] {
        let scene = chain_scene();
        let mut target = scene.read("old");
        target[part(number)][100] ^= 1;
        let path = scene.write("target", &target);
        assert_state(&scene.path("delta"), &path, "neither");
        let before = Unwritten::look(&path);
        run(&[&"patch", &scene.path("delta"), &path]).code(1).says("parts that the delta does not change");
        before.still(&path);
    }
}

#[test]
fn a_lost_source_is_refused_and_after_the_first_write_called_damage() {
    let scene = chain_scene();
    let mut target = scene.read("old");
    target[part(7)][7] ^= 1;
    let path = scene.write("target", &target);
    assert_state(&scene.path("delta"), &path, "neither");
    let before = Unwritten::look(&path);
    let place = format!("between bytes {} and {}", 7 * PART, 8 * PART);
    run(&[&"patch", &scene.path("delta"), &path]).code(1).says(&place).says("Nothing was written");
    before.still(&path);
    // A run was interrupted after its first batch; what the next one needs is lost.
    target[part(9)].copy_from_slice(&scene.read("new")[part(9)]);
    scene.write("target", &target);
    assert_state(&scene.path("delta"), &path, "neither");
    let before = Unwritten::look(&path);
    run(&[&"patch", &scene.path("delta"), &path]).code(4).says("damaged").says("write the full new image");
    before.still(&path);
}

#[test]
fn a_change_elsewhere_is_told_apart_by_what_was_patched_before() {
    let scene = chain_scene();
    let (old, new) = (scene.read("old"), scene.read("new"));
    let refused = |target: &[u8], code: i32, text: &str| {
        let path = scene.write("target", target);
        assert_state(&scene.path("delta"), &path, "neither");
        let before = Unwritten::look(&path);
        run(&[&"patch", &scene.path("delta"), &path]).code(code).says(text);
        before.still(&path);
    };
    let changed = |image: &[u8], patched: &[usize]| {
        let mut target = image.to_vec();
        for number in patched {
            target[part(*number)].copy_from_slice(&new[part(*number)]);
        }
        target[part(12)][77] ^= 8; // no batch writes this
        target
    };
    refused(&changed(&old, &[]), 1, "probably mounted read-write");
    refused(&changed(&new, &[]), 1, "probably patched before");
    // Part 9 is written first, 7 last.
    refused(&changed(&old, &[9]), 1, "a run was interrupted");
    refused(&changed(&old, &[7]), 1, "another release");
}

#[test]
fn what_a_user_appended_to_a_patched_file_is_not_cut_off() {
    let scene = chain_scene();
    let (old, new) = (scene.read("old"), scene.read("new"));
    scene.write("new", &new[..new.len() - 10_000]);
    run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &scene.path("delta")]).code(0);
    let new = scene.read("new");
    // As an interrupted run leaves it before it cuts the file.
    let mut target = new.clone();
    target.resize(old.len(), 7);
    let path = scene.write("target", &target);
    run(&[&"patch", &scene.path("delta"), &path]).code(0).says("only its length was put right");
    assert_same(&scene.read("target"), &new, "a file that only had to be cut");
    target.truncate(new.len() + 4096);
    scene.write("target", &target);
    let before = Unwritten::look(&path);
    run(&[&"patch", &scene.path("delta"), &path]).code(0).says("already holds the new image");
    before.still(&path);
}

#[test]
fn a_new_image_with_one_wrong_bit_is_never_called_new() {
    let scene = chain_scene();
    for number in [0, 5, 7, 9, 15] {
        let mut target = scene.read("new");
        target[part(number)][2000] ^= 2;
        let path = scene.write("target", &target);
        // Part 7 can be written again from the delta alone; the sources of 5 and 9 are gone.
        assert_state(&scene.path("delta"), &path, if number == 7 { "convertible" } else { "neither" });
    }
}

#[test]
fn a_file_system_that_was_mounted_and_unmounted_is_still_patched() {
    let test = "patching after a mount";
    if !loops(test) || !ext4(test) {
        return;
    }
    let scene = Scene::new();
    let tree = scene.path("tree");
    fs::create_dir(&tree).unwrap();
    for i in 0..20 {
        fs::write(tree.join(format!("file{i}")), random(60 + i, 20_000)).unwrap();
    }
    let (old, new, target) = (scene.path("old"), scene.path("new"), scene.path("target"));
    tool("mke2fs", &[&"-q", &"-t", &"ext4", &"-b", &"4096", &"-E", &"lazy_itable_init=0", &"-d", &tree, &old, &"8M"]);
    fs::copy(&old, &new).unwrap();
    fs::copy(&old, &target).unwrap();
    let at = scene.path("mounted");
    {
        let device = Loop::attach(&new);
        let mount = Mount::new("ext4", device.path(), &at, "rw");
        fs::write(at.join("file3"), random(90, 25_000)).unwrap();
        fs::write(at.join("added"), random(91, 100)).unwrap();
        drop(mount);
    }
    fs::remove_dir(&at).unwrap();
    let delta = scene.path("delta");
    run(&[&"diff", &old, &new, &"-o", &delta]).code(0);
    {
        let device = Loop::attach(&target);
        let mount = Mount::new("ext4", device.path(), &at, "rw");
        // Merely mounted: reading a file would update its access time.
        drop(mount);
        assert!(device.read() != fs::read(&old).unwrap(), "mounting changed nothing: this test shows nothing");
        assert_state(&delta, device.path(), "convertible");
        run(&[&"patch", &delta, &device.path()]).code(0).says("only where the new one overwrites it");
        assert_state(&delta, device.path(), "new");
        assert_same(&device.read(), &fs::read(&new).unwrap(), "the patched file system");
    }
    tool("e2fsck", &[&"-fn", &target]);
}

// ------------------------------------------------------------------------------------------------------- modes

#[test]
fn every_way_to_verify_patches_and_resumes() {
    for mode in ["all", "full", "touched"] {
        let scene = chain_scene();
        let (delta, target) = (scene.path("delta"), scene.path("target"));
        patched(&scene, &["--verify", mode]);
        assert_state_by(&delta, &target, mode, "new");
        let before = Unwritten::look(&target);
        patched(&scene, &["--verify", mode]).says("already holds the new image");
        before.still(&target);
        let mut between = scene.read("old");
        between[part(9)].copy_from_slice(&scene.read("new")[part(9)]);
        scene.write("target", &between);
        assert_state_by(&delta, &target, mode, "convertible");
        patched(&scene, &["--verify", mode]);
    }
}

#[test]
fn every_way_to_verify_finds_what_it_should() {
    let scene = chain_scene();
    let delta = scene.path("delta");
    let with = |image: &str, number: usize| {
        let mut bytes = scene.read(image);
        bytes[part(number)][1234] ^= 0x20;
        scene.write("target", &bytes)
    };
    for mode in ["all", "full", "touched"] {
        // A source.
        assert_state_by(&delta, &with("old", 5), mode, "neither");
        assert_state_by(&delta, &with("old", 7), mode, "neither");
        // A block that was written, and can be written again, or not.
        assert_state_by(&delta, &with("new", 7), mode, "convertible");
        assert_state_by(&delta, &with("new", 9), mode, "neither");
    }
    // A block that the delta neither reads nor writes: `touched` does not look at it, as its help says.
    for mode in ["all", "full"] {
        assert_state_by(&delta, &with("old", 12), mode, "neither");
        assert_state_by(&delta, &with("new", 12), mode, "neither");
    }
    assert_state_by(&delta, &with("new", 12), "touched", "new");
    assert_ne!(run(&[&"verify", &"--verify", &"touched", &delta, &with("old", 12)]).code, 12);
    let target = with("old", 12);
    run(&[&"patch", &"--verify", &"touched", &delta, &target]).code(0);
    let mut expected = scene.read("new");
    expected[part(12)][1234] ^= 0x20;
    assert_same(&fs::read(&target).unwrap(), &expected, "patched with --verify touched");
}

#[test]
fn a_dry_run_checks_everything_and_writes_nothing() {
    let scene = chain_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let info = info(&delta);
    let planned = info_number(&info, "changed_blocks") + info_number(&info, "scratch_blocks");
    for mode in ["all", "full", "touched"] {
        let dry = |state: &str, code| {
            let before = Unwritten::look(&target);
            let said = run(&[&"patch", &"--dry-run", &"--verify", &mode, &delta, &target]);
            before.still(&target);
            assert_eq!(said.code, code, "{state}: {}", said.err);
            said
        };
        scene.write("target", &scene.read("old"));
        dry("old", 0).says(&format!("{planned} blocks")).says("would be written");
        scene.write("target", &scene.read("new"));
        dry("new", 0).says("nothing would be written");
        let mut other = scene.read("old");
        other[part(9)].fill(9);
        scene.write("target", &other);
        dry("convertible", 0).says("would be written");
        other[part(5)].fill(9);
        scene.write("target", &other);
        dry("neither", 1).says("does not hold the image");
        scene.write("target", &scene.read("old")[..5000]);
        dry("too small", 1).says("too small");
    }
    scene.holds_only(&["old", "new", "delta", "target"]);
}

#[test]
fn quiet_says_nothing_but_errors_and_what_was_asked_for() {
    let scene = chain_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let said = run(&[&"verify", &"-q", &delta, &target]).code(10);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("old\n", ""));
    let said = run(&[&"patch", &"--quiet", &delta, &target]).code(0);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));
    let said = run(&[&"-q", &"diff", &scene.path("old"), &scene.path("new"), &"-o", &delta]).code(0);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));
    run(&[&"patch", &"-q", &delta, &scene.path("nowhere")]).code(1).says("does not exist");
}

// -------------------------------------------------------------------------------------------------------- info

/// An image's entry holds what the public tools say of it.
#[track_caller]
fn assert_identity(entry: &serde_json::Value, path: &Path) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(entry["bytes"], bytes.len() as u64);
    assert_eq!(entry["crc32"], format!("{:08x}", crc32fast::hash(&bytes)));
    assert_eq!(entry["blake3"], blake3::hash(&bytes).to_hex().as_str());
    // zlib's CRC-32, from a gzip file's last eight bytes, to hold crc32fast against something else.
    let gzip = std::process::Command::new("gzip").args(["-c", "-1"]).arg(path).output();
    if let Ok(gzip) = gzip {
        let at = gzip.stdout.len() - 8;
        let crc = u32::from_le_bytes(gzip.stdout[at..at + 4].try_into().unwrap());
        assert_eq!(entry["crc32"], format!("{crc:08x}"), "as gzip computes it");
    }
    if let Ok(b3sum) = std::process::Command::new("b3sum").arg("--no-names").arg(path).output() {
        assert_eq!(entry["blake3"], String::from_utf8_lossy(&b3sum.stdout).trim(), "as b3sum computes it");
    }
}

#[test]
fn info_tells_digests_that_public_tools_confirm() {
    let data = random(54, 3 * MIB + 100);
    for (old, new) in [
        (&data[..0], &data[..1]),
        (&data[..5000], &data[1..7000]),
        (&data[..MIB], &data[9..MIB + 9]),
        (&data[..MIB + 1], &data[5..MIB]),
        (&data[..], &data[4096..]),
    ] {
        let scene = Scene::with_delta(old, new);
        let info = info(&scene.path("delta"));
        assert_identity(&info["old"], &scene.path("old"));
        assert_identity(&info["new"], &scene.path("new"));
        let text = run(&[&"info", &scene.path("delta")]).code(0).out;
        for image in ["old", "new"] {
            for field in ["crc32", "blake3"] {
                assert!(text.contains(info[image][field].as_str().unwrap()), "{image} {field} in:\n{text}");
            }
        }
    }
}

#[test]
fn info_is_consistent_and_tells_what_patch_then_does() {
    let old = random(55, 300 * BLOCK);
    let mut new = [&old[5000..], &old[..5000]].concat();
    new[100 * BLOCK..140 * BLOCK].fill(0);
    let scene = Scene::with_delta(&old, &new);
    let target = scene.write("target", &old);
    let info = info(&scene.path("delta"));
    let number = |field: &str| info_number(&info, field);
    assert_eq!(number("format_version"), 1);
    assert_eq!(number("delta_bytes"), scene.read("delta").len() as u64);
    assert_eq!(number("changed_blocks"), changed_blocks(&old, &new));
    assert_eq!(number("written_bytes"), (number("changed_blocks") + number("scratch_blocks")) * BLOCK as u64);
    assert!(number("scratch_blocks") > 0 && number("saves") > 0, "this pair needs scratch");
    assert!(number("saves") < number("batches") && number("barriers") < number("batches"));
    assert!(number("memory_bytes") < 64 << 20);
    let sum = |list: &str, field: &str| -> u64 {
        info[list].as_array().unwrap().iter().map(|entry| entry[field].as_u64().unwrap()).sum()
    };
    assert!(sum("sections", "stored_bytes") < number("delta_bytes"));
    // The steps make what is written, but for whole batches of zeros.
    let made = sum("steps", "bytes");
    assert!((number("changed_blocks") - 40) * BLOCK as u64 <= made && made <= number("changed_blocks") * BLOCK as u64);
    let said = run(&[&"patch", &scene.path("delta"), &target]).code(0);
    assert_eq!(said.written(), (number("written_bytes"), number("scratch_blocks") * BLOCK as u64));
    let batches = format!("{} batches", number("batches"));
    said.says(&batches);
}

#[test]
fn a_label_travels_with_the_delta() {
    let old = random(56, 20 * BLOCK);
    let new = random(57, 20 * BLOCK);
    let scene = Scene::with_delta(&old, &new);
    let (delta, target) = (scene.path("labelled"), scene.write("target", &old));
    let label = "Kühlschrank 1.2 → 1.3";
    run(&[&"diff", &"--label", &label, &scene.path("old"), &scene.path("new"), &"-o", &delta]).code(0);
    assert_eq!(info(&delta)["label"].as_str(), Some(label));
    assert!(info(&scene.path("delta"))["label"].is_null());
    assert!(run(&[&"info", &delta]).code(0).out.contains(label));
    run(&[&"patch", &delta, &target]).code(0).says(label);
    assert_same(&scene.read("target"), &new, "patched");
    let refused = scene.path("refused");
    run(&[&"diff", &"--label", &"a\nb", &scene.path("old"), &scene.path("new"), &"-o", &refused])
        .code(2)
        .says("--label");
    assert!(!refused.exists());
}

#[test]
fn info_into_a_pipe_that_closes_early_does_not_panic() {
    use std::io::Read;
    let scene = chain_scene();
    let mut child = start(&[&"info", &"--json", &scene.path("delta")]);
    // As `| head -c0`: the reader leaves before anything is printed, or the text is larger than it takes.
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(!said.contains("panicked"), "{said}");
    assert_ne!(status.code(), Some(101));
}

#[test]
fn patch_with_nobody_reading_its_messages_still_patches() {
    let scene = chain_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let mut child = start(&[&"patch", &delta, &target]);
    drop((child.stdout.take(), child.stderr.take()));
    let status = child.wait().unwrap();
    assert_same(&scene.read("target"), &scene.read("new"), "the target");
    assert_eq!(status.code(), Some(0), "the exit code of a patch that went well: {status}");
    // A script reads verify's exit code, not always its words.
    for (image, code) in [("old", 10), ("new", 0)] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = command(&[&"verify", &delta, &scene.path(image)]);
        let status = command.stdout(full).stderr(std::process::Stdio::null()).status().unwrap();
        assert!([Some(code), Some(1)].contains(&status.code()), "verify, its output on a full device: {status}");
    }
}

#[test]
fn writes_are_the_changed_blocks_and_nothing_else() {
    // 15 blocks changed here and there, all of them by new data.
    let old = random(56, 500 * BLOCK);
    let mut new = old.clone();
    for i in 0..15 {
        new[block(i * 33)].copy_from_slice(&random(57 + i as u64, BLOCK));
    }
    let scene = Scene::with_delta(&old, &new);
    let target = scene.write("target", &old);
    let said = run(&[&"patch", &scene.path("delta"), &target]).code(0);
    assert_eq!(said.written(), (15 * BLOCK as u64, 0));
    if loops("counting writes") {
        let device = Loop::attach(&scene.write("backing", &old));
        run(&[&"patch", &scene.path("delta"), &device.path()]).code(0);
        assert_eq!(device.bytes_written(), 15 * BLOCK as u64, "as the kernel counts");
    }
}
