//! `sign` and `diff --signature` as a user runs them, beside the real `rdiff`.

mod common;

use common::{BLOCK, Loop, Scene, assert_same, block, loops, random, run, skip, tool};
use std::path::Path;
use std::process::Command;

/// Moved, changed and zero blocks, and one that is shorter.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let mut old = random(1, 300 * BLOCK + 100);
    old[40 * BLOCK..80 * BLOCK].fill(0);
    let mut new = old.clone();
    new.splice(100 * BLOCK..100 * BLOCK, random(2, 5 * BLOCK)); // all behind moves by whole blocks
    new.splice(200 * BLOCK..200 * BLOCK, random(3, 77)); // and the rest by bytes
    new[block(3)].copy_from_slice(&random(4, BLOCK));
    new[block(50)].copy_from_slice(&random(5, BLOCK));
    new[block(20)].fill(0);
    (old, new)
}

fn has_rdiff(test: &str) -> bool {
    let there = Command::new("rdiff").arg("--version").output().is_ok();
    if !there {
        skip(test, "rdiff is not installed");
    }
    there
}

/// Makes a delta from a signature, patches, and compares.
fn patches(scene: &Scene, signature: &Path, old: &[u8], new: &[u8], at_most: u64) {
    let delta = scene.path("delta");
    let _ = std::fs::remove_file(&delta);
    run(&[&"diff", &"--signature", &signature, &scene.write("new", new), &"-o", &delta]).code(0);
    let len = std::fs::metadata(&delta).unwrap().len();
    assert!(len <= at_most, "{len} bytes: moved blocks were not found");
    let target = scene.write("target", old);
    run(&[&"verify", &delta, &target]).code(if signature.ends_with("ours") { 10 } else { 11 });
    run(&[&"patch", &delta, &target]).code(0);
    run(&[&"patch", &delta, &target]).code(0).says("already holds the new image");
    assert_same(&scene.read("target")[..new.len()], new, "the target");
    // What is made from other bytes is refused before the first write.
    let mut other = old.to_vec();
    other[150 * BLOCK] ^= 1;
    let target = scene.write("other", &other);
    run(&[&"patch", &delta, &target]).code(1).says("Nothing was written");
    assert_same(&scene.read("other"), &other, "the refused target");
}

#[test]
fn a_delta_from_our_own_signature_patches() {
    let (old, new) = pair();
    let scene = Scene::new();
    let signature = scene.path("ours");
    run(&[&"sign", &scene.write("old", &old), &"-o", &signature]).code(0);
    patches(&scene, &signature, &old, &new, 40 * BLOCK as u64);
    for options in [["--block", "1000"], ["--block", "8K"], ["--strong", "16"]] {
        let _ = std::fs::remove_file(&signature);
        run(&[&"sign", &scene.path("old"), &"-o", &signature, &options[0], &options[1]]).code(0);
        patches(&scene, &signature, &old, &new, 60 * BLOCK as u64);
    }
}

#[test]
fn a_delta_from_the_signature_of_rdiff_patches() {
    if !has_rdiff("a_delta_from_the_signature_of_rdiff_patches") {
        return;
    }
    let (old, new) = pair();
    let scene = Scene::new();
    let (image, signature) = (scene.write("old", &old), scene.path("bare"));
    for options in [&["-b", "4096"][..], &["-b", "2048", "-S", "16"], &["-b", "5000"], &[]] {
        let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"-f", &"-R", &"rollsum", &"-H", &"md4"];
        args.extend(options.iter().map(|option| option as &dyn AsRef<std::ffi::OsStr>));
        args.extend([&"signature" as &dyn AsRef<std::ffi::OsStr>, &image, &signature]);
        tool("rdiff", &args);
        patches(&scene, &signature, &old, &new, 60 * BLOCK as u64);
    }
}

#[test]
fn rdiff_reads_our_signature() {
    if !has_rdiff("rdiff_reads_our_signature") {
        return;
    }
    let (old, new) = pair();
    let scene = Scene::new();
    let (image, signature) = (scene.write("old", &old), scene.path("ours"));
    run(&[&"sign", &image, &"-o", &signature]).code(0);
    let (new_image, delta, made) = (scene.write("new", &new), scene.path("rdelta"), scene.path("made"));
    tool("rdiff", &[&"delta", &signature, &new_image, &delta]);
    tool("rdiff", &[&"patch", &image, &delta, &made]);
    assert_same(&scene.read("made"), &new, "what rdiff made");
    let len = std::fs::metadata(&delta).unwrap().len();
    assert!(len < 60 * BLOCK as u64, "{len}: rdiff has not found what is there");
}

#[test]
fn signatures_of_other_kinds_and_damaged_ones_are_refused() {
    let (old, new) = pair();
    let scene = Scene::new();
    let (image, new) = (scene.write("old", &old), scene.write("new", &new));
    let (signature, delta) = (scene.path("signature"), scene.path("delta"));
    if has_rdiff("signatures_of_other_kinds_and_damaged_ones_are_refused") {
        tool("rdiff", &[&"-f", &"signature", &image, &signature]);
        let said = run(&[&"diff", &"--signature", &signature, &new, &"-o", &delta]).code(1);
        said.says("rdiff -R rollsum -H md4 signature").says("blkpatch sign");
    }
    let _ = std::fs::remove_file(&signature);
    run(&[&"sign", &image, &"-o", &signature]).code(0);
    let mut bytes = std::fs::read(&signature).unwrap();
    bytes[1000] ^= 4;
    std::fs::write(&signature, bytes).unwrap();
    run(&[&"diff", &"--signature", &signature, &new, &"-o", &delta]).code(1).says("damaged");
    run(&[&"diff", &"--signature", &new, &new, &"-o", &delta]).code(1).row("signature-bad");
    run(&[&"diff", &"--signature", &signature, &image, &new, &"-o", &delta]).code(2);
    run(&[&"diff", &new, &"-o", &delta]).code(2);
    assert!(!delta.exists());
}

#[test]
fn a_device_reports_its_signature_and_is_patched() {
    if !loops("a_device_reports_its_signature_and_is_patched") {
        return;
    }
    let (mut old, mut new) = pair();
    old.truncate(300 * BLOCK);
    new.truncate(300 * BLOCK);
    let scene = Scene::new();
    let device = Loop::attach(&scene.write("device", &old));
    let (signature, delta) = (scene.path("signature"), scene.path("delta"));
    run(&[&"sign", &device.path(), &"-o", &signature]).code(0);
    run(&[&"diff", &"--signature", &signature, &scene.write("new", &new), &"-o", &delta]).code(0);
    run(&[&"patch", &delta, &device.path()]).code(0);
    assert_same(&device.read(), &new, "the device");
}
