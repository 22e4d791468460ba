//! Progress: the bar at a terminal, that it garbles nothing, who gets none, and lines of JSON.

mod common;

use common::*;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// What a terminal shows in the end of what was sent to it: lines that are not empty, without trailing spaces.
fn shown(sent: &str) -> Vec<String> {
    let (mut lines, mut row, mut column) = (vec![Vec::<char>::new()], 0usize, 0usize);
    let mut rest = sent.chars();
    while let Some(c) = rest.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => {
                assert_eq!(rest.next(), Some('['), "an unknown escape sequence");
                let mut number = String::new();
                let letter = rest.by_ref().find(|c| c.is_ascii_alphabetic() || !(number.push(*c), true).1);
                let count = number.parse().unwrap_or(1);
                match letter {
                    Some('A') => row = row.saturating_sub(count),
                    Some('B') => row += count,
                    Some('K') if number == "2" => lines[row].clear(),
                    Some('K' | 'J') => lines[row].truncate(column),
                    _ => {} // colours
                }
            }
            c => {
                let len = lines[row].len().max(column + 1);
                lines[row].resize(len, ' ');
                lines[row][column] = c;
                column += 1;
            }
        }
        if lines.len() <= row {
            lines.resize(row + 1, Vec::new());
        }
    }
    let lines = lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// A run of `sync` at a terminal whose image comes through a pipe, as fast as the test lets it.
fn slow_sync(scene: &Scene, target: &Path, options: &[&str], variables: &[(&str, &str)]) -> (AtTerminal, File) {
    let pipe = scene.path("pipe");
    let _ = std::fs::remove_file(&pipe);
    tool("mkfifo", &[&pipe]);
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"sync"];
    options.iter().for_each(|option| args.push(option));
    args.extend([&pipe as &dyn AsRef<OsStr>, &target]);
    let run = AtTerminal::start(&args, variables);
    let pipe = File::options().write(true).open(&pipe).unwrap();
    (run, pipe)
}

#[test]
fn at_a_terminal_there_is_a_bar_and_it_goes_away() {
    let scene = Scene::new();
    let image = random(3, 6 * MIB);
    let target = scene.write("target", &[]);
    let (mut run, mut pipe) = slow_sync(&scene, &target, &[], &[]);
    pipe.write_all(&image[..3 * MIB]).unwrap();
    run.wait_for("comparing, writing");
    run.wait_for("0:01");
    pipe.write_all(&image[3 * MIB..]).unwrap();
    drop(pipe);
    let said = run.finish().code(0);
    let lines = shown(&said.err);
    assert_eq!(lines.len(), 1, "nothing is left of the bar: {lines:?}");
    assert!(lines[0].starts_with(&target.display().to_string()) && lines[0].contains("now holds"), "{lines:?}");
    assert_same(&scene.read("target"), &image, "the target");
}

#[test]
fn an_error_is_not_garbled_by_the_bar() {
    let scene = Scene::new();
    let target = scene.write("target", &[]);
    let (mut run, mut pipe) = slow_sync(&scene, &target, &[], &[]);
    pipe.write_all(&random(3, 3 * MIB)).unwrap();
    run.wait_for("comparing, writing");
    signal(run.child(), "INT");
    let said = run.finish().code(3);
    let lines = shown(&said.err);
    assert!(lines[0].starts_with("blkpatch: ") && lines.len() == 2, "{lines:?}\n{:?}", said.err);
    drop(pipe);
}

#[test]
fn a_note_is_not_garbled_by_the_bar() {
    if !loops("notes beside the bar") || !tools("notes beside the bar", &["sgdisk"]) {
        return;
    }
    // The note: a partition table that was made for a smaller disk.
    let scene = Scene::new();
    let image = scene.write("image", &random(4, 4 * MIB));
    tool("sgdisk", &[&"--clear", &"--new=1:2048:4095", &image]);
    let image = std::fs::read(&image).unwrap();
    let device = Loop::attach(&scene.write("backing", &vec![0; 6 * MIB]));
    let (mut run, mut pipe) = slow_sync(&scene, device.path(), &["--yes"], &[]);
    pipe.write_all(&image[..3 * MIB]).unwrap();
    run.wait_for("comparing, writing");
    pipe.write_all(&image[3 * MIB..]).unwrap();
    drop(pipe);
    let said = run.finish().code(0);
    let lines = shown(&said.err);
    assert!(lines.len() == 2 && lines[0].starts_with("note: the partition table"), "{lines:?}\n{:?}", said.err);
}

/// Runs `diff` at a terminal, held for a moment, so that it takes long enough for a bar; what was sent to the terminal.
fn held_diff(variables: &[(&str, &str)], options: &[&str]) -> String {
    let scene = Scene::new();
    let (old, new) = (scene.write("old", &random(6, 4 * MIB)), scene.write("new", &random(7, 4 * MIB)));
    let delta = scene.path("delta");
    let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"diff", &old, &new, &"-o", &delta];
    options.iter().for_each(|option| args.push(option));
    let mut run = AtTerminal::start(&args, variables);
    sleep(Duration::from_millis(50));
    signal(run.child(), "STOP");
    sleep(Duration::from_millis(1100));
    signal(run.child(), "CONT");
    run.finish().code(0).err
}

#[test]
fn the_bar_shows_bytes_and_is_coloured_unless_asked_not_to() {
    let sent = held_diff(&[], &[]);
    assert!(sent.contains("% of ") && sent.contains('='), "no bar: {sent:?}");
    assert!(sent.contains("\x1b[36m"), "no colour: {sent:?}");
    let sent = held_diff(&[("NO_COLOR", "1")], &[]);
    assert!(sent.contains("% of ") && !sent.contains("\x1b[36m"), "colour, or no bar: {sent:?}");
    let lines = shown(&sent);
    assert!(lines.len() == 2 && lines[1].contains("blocks change"), "nothing is left of the bar: {lines:?}");
}

#[test]
fn who_wants_no_bar_gets_none() {
    assert_eq!(held_diff(&[], &["--quiet"]), "");
    for (options, variables) in [(&["--progress", "none"][..], &[][..]), (&[], &[("TERM", "dumb")])] {
        let sent = held_diff(variables, options);
        assert!(!sent.contains('\x1b') && sent.contains("blocks change"), "{sent:?}");
    }
}

#[test]
fn a_short_run_shows_no_bar() {
    let scene = chain_scene();
    let said = AtTerminal::start(&[&"patch", &scene.path("delta"), &scene.path("target")], &[]).finish().code(0);
    assert!(!said.err.contains('\x1b'), "{:?}", said.err);
}

#[test]
fn progress_as_lines_of_json() {
    let scene = chain_scene();
    let (delta, target, new) = (scene.path("delta"), scene.path("target"), scene.path("new"));
    let out = scene.path("out");
    type Run<'a> = (&'a [&'a dyn AsRef<OsStr>], &'a [&'a str]);
    let runs: [Run; 6] = [
        (&[&"patch", &delta, &target], &["checking the delta", "reading the target", "writing", "checking the result"]),
        (&[&"verify", &delta, &target], &["reading the target"]),
        (&[&"info", &delta], &["checking the delta"]),
        (&[&"sync", &scene.path("old"), &target], &["comparing, writing", "making it durable", "checking the result"]),
        (&[&"diff", &scene.path("old"), &new, &"-o", &out], &["comparing", "matching", "compressing"]),
        (&[&"sign", &new, &"-o", &out], &["hashing", "signing"]),
    ];
    for (args, phases) in runs {
        let args = [args, &[&"-q", &"--progress", &"json"]].concat();
        let said = run(&args).code(0);
        let lines: Vec<serde_json::Value> = said.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for phase in phases {
            assert!(lines.iter().any(|line| line["phase"] == **phase), "no phase {phase:?} in:\n{}", said.err);
        }
        lines.iter().for_each(|line| schema::assert_described(line, "progress-line"));
    }
}
