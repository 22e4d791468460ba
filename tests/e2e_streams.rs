//! Deltas that arrive on standard input, and outputs that go to standard output.

mod common;

use common::*;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// Runs the program with bytes on a pipe.
#[track_caller]
fn piped(args: &[&dyn AsRef<OsStr>], input: &[u8]) -> Out {
    let mut command = command(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // In pieces that fit nothing; a program that has seen enough closes the pipe.
        let _ = input.chunks(997).try_for_each(|piece| pipe.write_all(piece));
    });
    let said = finish(child, "a pipe");
    writer.join().unwrap();
    said
}

fn scene() -> Scene {
    let old = random(71, 400 * BLOCK);
    Scene::with_delta(&old, &reorder(&old, &Rng::new(72).permutation(400)))
}

#[test]
fn a_delta_from_a_pipe_is_as_good_as_one_in_a_file() {
    let scene = scene();
    let (delta, target) = (scene.read("delta"), scene.write("target", &scene.read("old")));
    let kept = std::env::temp_dir().display().to_string();
    assert_eq!(piped(&[&"verify", &"-", &target], &delta).code(10).out, "old\n");
    let dry = piped(&[&"patch", &"--dry-run", &"-", &target], &delta).code(0);
    dry.says(&kept).says(&format!("{} bytes", delta.len()));
    piped(&[&"patch", &"-", &target], &delta).code(0);
    assert_same(&scene.read("target"), &scene.read("new"), "patched from a pipe");
    piped(&[&"patch", &"-", &target], &delta).code(0).says("already holds the new image");
    assert_eq!(piped(&[&"info", &"-"], &delta).code(0).out, run(&[&"info", &scene.path("delta")]).code(0).out);
    let slot = scene.path("slot");
    piped(&[&"patch", &"-", &slot, &"--old", &scene.path("old")], &delta).code(0);
    assert_same(&scene.read("slot"), &scene.read("new"), "built from a pipe");
}

#[test]
fn what_is_no_delta_is_refused_as_soon_as_it_shows() {
    let scene = scene();
    let (delta, old) = (scene.read("delta"), scene.read("old"));
    let target = scene.write("target", &old);
    let mut damaged = delta.clone();
    damaged[delta.len() / 2] ^= 1;
    let longer = [&delta[..], b"x"].concat();
    for (input, says) in [
        (&delta[..delta.len() - 1], "cut short"),
        (&longer, "something was appended"),
        (&damaged, "does not match its digest"),
        (b"", "not a blkpatch delta"),
        (&old, "not a blkpatch delta"),
    ] {
        piped(&[&"patch", &"-", &target], input).code(1).says("standard input").says(says);
        assert_same(&scene.read("target"), &old, says);
    }
    // An endless stream, too.
    let mut endless = command(&[&"patch", &"-", &target]);
    endless.stdin(File::open("/dev/zero").unwrap());
    run_command(endless).code(1).says("not a blkpatch delta");
}

#[test]
fn without_room_for_the_delta_nothing_happens() {
    let scene = scene();
    let target = scene.write("target", &scene.read("old"));
    let mut command = command(&[&"patch", &"-", &target]);
    command.stdin(File::open(scene.path("delta")).unwrap()).env("TMPDIR", scene.path("there-is-none"));
    run_command(command).code(1).says("there-is-none").says("Nothing was written");
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

#[test]
fn a_delta_that_cannot_fit_is_refused_before_it_fills_the_folder() {
    use blkpatch::delta::header::Header;
    let scene = scene();
    let (delta, target) = (scene.read("delta"), scene.write("target", &scene.read("old")));
    let len = u32::from_le_bytes(delta[8..12].try_into().unwrap()) as usize;
    let mut header = Header::decode(&delta[..len]).unwrap();
    header.sections.last_mut().unwrap().stored_len += 1 << 60;
    header.sections.last_mut().unwrap().raw_len += 1 << 60;
    let huge = [&header.encode(), &delta[len..], &[0; 3 * MIB]].concat();
    for args in [[&"patch" as &dyn AsRef<OsStr>, &"-", &target], [&"verify", &"-", &target]] {
        // Whoever does not look at what is announced takes all that comes, and then complains of the end.
        let said = piped(&args, &huge).code(1).row("file-spool-full").says("1024.0 PiB").says("TMPDIR");
        assert!(said.err.contains("Nothing was written") || args[0].as_ref() == "verify", "{}", said.err);
    }
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

#[test]
fn a_pipe_from_which_nothing_comes_can_be_left() {
    let scene = scene();
    let target = scene.write("target", &scene.read("old"));
    for given in [0, 200] {
        let mut command = command(&[&"--progress", &"json", &"patch", &"-", &target]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(&scene.read("delta")[..given]).unwrap();
        assert!(wait_for_line(&mut child, "reading the delta"));
        signal(&mut child, "INT");
        finish(child, "patch").code(1).says("interrupted").says("Nothing was written");
        drop(pipe);
    }
    assert_same(&scene.read("target"), &scene.read("old"), "the target");
}

#[test]
fn outputs_can_go_to_a_pipe() {
    let scene = scene();
    let to = |args: &[&dyn AsRef<OsStr>], name: &str| {
        let mut child = command(args).stdout(File::create(scene.path(name)).unwrap()).spawn().unwrap();
        child.wait().unwrap().code()
    };
    let (old, new) = (scene.path("old"), scene.path("new"));
    assert_eq!(to(&[&"-q", &"diff", &old, &new, &"-o", &"-"], "piped"), Some(0));
    assert_same(&scene.read("piped"), &scene.read("delta"), "the delta");
    assert_eq!(to(&[&"-q", &"sign", &old, &"-o", &"-"], "piped-signature"), Some(0));
    run(&[&"sign", &old, &"-o", &scene.path("signature")]).code(0);
    assert_same(&scene.read("piped-signature"), &scene.read("signature"), "the signature");
    assert!(!Path::new("-").exists());
}

#[test]
fn a_pipe_gets_nothing_where_something_fails_and_its_failure_is_told() {
    let scene = scene();
    let (old, new) = (scene.path("old"), scene.path("new"));
    let missing = run(&[&"diff", &old, &scene.path("missing"), &"-o", &"-"]).code(1);
    assert!(missing.out.is_empty());
    let mut full = command(&[&"diff", &old, &new, &"-o", &"-"]);
    full.stdout(File::options().write(true).open("/dev/full").unwrap()).stderr(Stdio::piped());
    finish(full.spawn().unwrap(), "/dev/full").code(1).says("standard output").says("No space left");
}
