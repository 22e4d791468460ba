//! `--json`: what every verb prints is what spec/cli.schema.json describes, and nothing else goes to standard output.

mod common;

use common::schema::{assert_described, cli_schema};
use common::*;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;

/// Runs with `--json`; what it prints, which the schema describes.
#[track_caller]
fn json(args: &[&dyn AsRef<OsStr>], code: i32) -> Value {
    let args = [args, &[&"--json"]].concat();
    let said = run(&args).code(code);
    printed(&said)
}

#[track_caller]
fn printed(said: &Out) -> Value {
    let value: Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}:\n{}", said.out));
    assert_described(&value, "");
    assert_eq!(value["exit_code"], said.code, "the exit code");
    value
}

#[track_caller]
fn failed(value: &Value, code: &str, written: bool) {
    assert_eq!(
        (&value["error"]["code"], &value["error"]["target_written"]),
        (&code.into(), &written.into()),
        "{value:#}"
    );
}

#[test]
fn every_verb_says_what_it_did() {
    let scene = chain_scene();
    let path = |name| scene.path(name);
    let (old, new, target, delta) = (path("old"), path("new"), path("target"), path("delta"));
    let len = scene.read("old").len();

    let said = json(&[&"diff", &old, &new, &"-o", &delta], 0);
    assert_eq!(said["delta_bytes"], fs::metadata(&delta).unwrap().len());
    assert_eq!((&said["old"]["bytes"], &said["changed_blocks"]), (&len.into(), &24.into()));
    let said = json(&[&"sign", &old, &"-o", &path("signature")], 0);
    assert_eq!(said["signature_bytes"], fs::metadata(path("signature")).unwrap().len());
    let said = json(&[&"diff", &"--signature", &path("signature"), &new, &"-o", &path("other")], 0);
    assert_eq!(said["old"]["bytes"], len);
    let said = json(&[&"info", &delta], 0);
    assert_eq!((&said["batches"], &said["new"]["bytes"]), (&3.into(), &len.into()));

    assert_eq!(json(&[&"verify", &delta, &target], 10)["state"], "old");
    let said = json(&[&"patch", &"--dry-run", &delta, &target], 0);
    assert_eq!((&said["target_written"], &said["planned_blocks"]), (&false.into(), &24.into()));
    let said = json(&[&"patch", &delta, &target], 0);
    assert_eq!((&said["state_before"], &said["target_written"]), (&"old".into(), &true.into()));
    assert_eq!(said["written_bytes"], 24 * BLOCK);
    let said = json(&[&"patch", &delta, &target], 0);
    assert_eq!((&said["state_before"], &said["target_written"]), (&"new".into(), &false.into()));
    assert_eq!(json(&[&"verify", &delta, &target], 0)["state"], "new");

    for outcome in ["possible", "built", "up-to-date"] {
        let option = if outcome == "possible" { "--dry-run" } else { "--yes" };
        let said = json(&[&"patch", &option, &delta, &"--old", &old, &path("slot")], 0);
        assert_eq!((&said["outcome"], &said["target_written"]), (&outcome.into(), &(outcome == "built").into()));
    }

    let said = json(&[&"export", &delta, &"--old", &old, &"-o", &path("overlay.qcow2")], 0);
    assert_eq!(said["overlay_bytes"], fs::metadata(path("overlay.qcow2")).unwrap().len());

    let said = json(&[&"sync", &"--dry-run", &old, &target], 0);
    assert_eq!((&said["differing_bytes"], &said["written_bytes"]), (&(24 * BLOCK).into(), &0.into()));
    let said = json(&[&"sync", &old, &target], 0);
    assert_eq!((&said["written_bytes"], &said["target_written"]), (&(24 * BLOCK).into(), &true.into()));
    assert_eq!(said["target"], target.display().to_string());

    let mut between = scene.read("old");
    between[part(9)].copy_from_slice(&scene.read("new")[part(9)]);
    scene.write("target", &between);
    let said = json(&[&"verify", &delta, &target], 11);
    assert_eq!((&said["state"], &said["batches_done"]), (&"convertible".into(), &1.into()));
    let said = json(&[&"patch", &delta, &target], 0);
    assert!(said["notes"][0].as_str().unwrap().contains("resuming an interrupted run"), "{said:#}");
    scene.write("target", &random(1, len));
    let said = json(&[&"verify", &delta, &target], 12);
    assert!(said["place"].is_string() && said["hint"].is_string(), "{said:#}");
}

#[test]
fn failures_have_codes_and_say_whether_the_target_was_written() {
    let scene = chain_scene();
    let path = |name| scene.path(name);
    let (old, new, target, delta) = (path("old"), path("new"), path("target"), path("delta"));
    let patch = |target: &dyn AsRef<OsStr>, code| json(&[&"patch", &delta, target], code);
    failed(&patch(&path("nowhere"), 1), "target-missing", false);
    failed(&patch(&scene.folder(), 1), "target-wrong-kind", false);
    failed(&patch(&scene.write("short", &scene.read("old")[..BLOCK]), 1), "target-too-small", false);
    failed(&patch(&scene.write("noise", &random(2, scene.read("old").len())), 1), "target-other-content", false);
    let holder = fs::File::open(&target).unwrap();
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    failed(&patch(&target, 1), "target-busy", false);
    drop(holder);
    failed(&json(&[&"patch", &new, &target], 1), "delta-damaged", false);
    failed(&json(&[&"patch", &path("nowhere"), &target], 1), "file", false);
    failed(&json(&[&"patch", &"--memory-limit", &"1", &delta, &target], 1), "delta-memory", false);
    let said = json(&[&"diff", &"--signature", &old, &new, &"-o", &path("x")], 1);
    failed(&said, "signature-unusable", false);
}

#[test]
fn a_run_that_stops_after_writing_says_so() {
    let scene = chain_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    // What an interruption leaves, and then something wrote to it: data is lost that is needed.
    let mut lost = scene.read("old");
    lost[part(9)].copy_from_slice(&scene.read("new")[part(9)]);
    lost[part(5)].copy_from_slice(&scene.read("new")[part(5)]);
    lost[part(7)][..9].copy_from_slice(b"something");
    scene.write("target", &lost);
    let said = json(&[&"patch", &delta, &target], 0);
    assert_eq!(said["state_before"], "convertible");
    let mut lost = scene.read("old");
    lost[part(9)].copy_from_slice(&scene.read("new")[part(9)]);
    lost[part(7)][..9].copy_from_slice(b"something");
    scene.write("target", &lost);
    failed(&json(&[&"patch", &delta, &target], 4), "target-damaged", false);
    // A stream that ends too soon, when blocks have been written.
    scene.write("long", &random(3, 3 * MIB));
    tool("gzip", &[&"-1", &scene.path("long")]);
    let packed = scene.read("long.gz");
    scene.write("cut.gz", &packed[..packed.len() - 5]);
    let said = json(&[&"sync", &scene.path("cut.gz"), &target], 3);
    failed(&said, "stopped", true);
    failed(&json(&[&"sync", &"--dry-run", &scene.path("cut.gz"), &target], 1), "image-unusable", false);
}

#[test]
fn nothing_but_data_on_standard_output() {
    let scene = chain_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    // In words: standard output is empty, or verify's one word.
    assert_eq!(run(&[&"verify", &delta, &target]).code(10).out, "old\n");
    assert_eq!(run(&[&"patch", &delta, &target]).code(0).out, "");
    assert_eq!(run(&[&"sync", &scene.path("new"), &target]).code(0).out, "");
    assert_eq!(run(&[&"patch", &delta, &scene.path("nowhere")]).code(1).out, "");
    run(&[&"diff", &"--json", &scene.path("old"), &scene.path("new"), &"-o", &"-"]).code(2).says("standard output");
    // With JSON, nothing is said twice, and errors are said to people, too.
    assert_eq!(run(&[&"patch", &"--json", &delta, &target]).code(0).err, "");
    run(&[&"patch", &"--json", &delta, &scene.path("nowhere")]).code(1).says("does not exist");
}

#[test]
fn notes_and_errors_as_lines() {
    let scene = chain_scene();
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    let mut between = scene.read("old");
    between[part(9)].copy_from_slice(&scene.read("new")[part(9)]);
    scene.write("target", &between);
    let lines = |said: &Out| -> Vec<Value> {
        let lines: Vec<Value> = said.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter().for_each(|line| assert_described(line, "line"));
        lines
    };
    let said = run(&[&"patch", &"--progress", &"json", &delta, &target]).code(0);
    assert!(lines(&said).iter().any(|line| line["type"] == "note"), "{}", said.err);
    let said = run(&[&"patch", &"--progress", &"json", &"--json", &delta, &scene.path("nowhere")]).code(1);
    let last = lines(&said).pop().unwrap();
    assert_eq!((&last["type"], &last["code"]), (&"error".into(), &"target-missing".into()));
    failed(&printed(&said), "target-missing", false);
}

#[test]
fn the_codes_are_those_of_schema_and_table() {
    let schema = cli_schema();
    let codes = Value::from(blkpatch::codes::CODES.to_vec());
    assert_eq!(schema["$defs"]["error"]["properties"]["code"]["enum"], codes);
    assert_eq!(schema["$defs"]["error-line"]["properties"]["code"]["enum"], codes);
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/spec/cli.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(Value::from(rows.collect::<Vec<_>>()), codes);
}
