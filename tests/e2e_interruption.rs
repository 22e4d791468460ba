//! Interruptions: `patch` killed or stopped at any moment and run again; `diff` killed, stopped or failing.

mod common;

use common::*;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Kills `patch` when it has written a random share of its bytes, again and again; then lets it finish.
fn killed_again_and_again(scene: &Scene, device: &Loop, planned: u64, rounds: usize) -> usize {
    let (delta, target) = (scene.path("delta"), device.path());
    let (old, new) = (scene.read("old"), scene.read("new"));
    let written = || device.bytes_written();
    let mut rng = Rng::new(74);
    let mut between = 0;
    for round in 0..rounds {
        let start = written();
        // Sometimes early, where it only reads; sometimes anywhere.
        let share = if round % 5 == 0 { 0 } else { rng.next() % planned };
        let pause = Duration::from_micros(rng.next() % 4000);
        let mut child = start_patch(&delta, target);
        kill_when(&mut child, || written() >= start + share.max(1) || share == 0);
        if share == 0 {
            sleep(pause);
        }
        let _ = child.kill();
        let said = finish(child, "patch");
        assert!(said.code == -9 || said.code == 0, "killed, and yet: {said:?}");
        let state = run(&[&"verify", &delta, &target]);
        assert!([0, 10, 11].contains(&state.code), "after a kill: {state:?}");
        between += usize::from(state.code == 11);
        if state.code == 0 {
            device.write(0, &old); // done: from the start again
        }
    }
    run(&[&"patch", &delta, &target]).code(0);
    assert_same(&device.read(), &new, "the device after all those kills");
    assert_state(&delta, target, "new");
    between
}

fn start_patch(delta: &Path, target: &Path) -> Child {
    start(&[&"patch", &delta, &target])
}

#[test]
fn killed_at_any_moment_and_run_again_on_a_device() {
    if !loops("killing patch") {
        return;
    }
    let (old, new) = busy_pair(scaled(6 * MIB, 64 * MIB));
    let scene = Scene::with_delta(&old, &new);
    let info = info(&scene.path("delta"));
    assert!(info_number(&info, "saves") > 0 && info_number(&info, "barriers") > 5, "this pair is to be hard: {info}");
    let planned = info_number(&info, "written_bytes");
    let device = Loop::attach(&scene.write("backing", &old));
    let rounds = scaled(25, 200);
    let between = killed_again_and_again(&scene, &device, planned, rounds);
    eprintln!("{between} of {rounds} kills left the device between the images");
    assert!(between >= rounds / 3, "only {between} of {rounds} kills left the device between the images");
}

#[test]
fn killed_at_any_moment_and_run_again_on_a_file() {
    let (old, mut new) = busy_pair(scaled(4 * MIB, 64 * MIB));
    // Another length: the file grows before the first batch. And back: it is cut after the last.
    new.extend(random(75, 100_001));
    for (old, new) in [(&old, &new), (&new, &old)] {
        let scene = Scene::with_delta(old, new);
        let target = scene.write("target", old);
        let delta = scene.path("delta");
        let mut rng = Rng::new(76);
        // As long as an undisturbed run takes, roughly.
        let begun = Instant::now();
        run(&[&"patch", &delta, &target]).code(0);
        let whole = begun.elapsed().as_micros().max(1) as u64;
        scene.write("target", old);
        for _ in 0..scaled(15, 200) {
            let child = start_patch(&delta, &target);
            sleep(Duration::from_micros(rng.next() % whole));
            let mut child = child;
            let _ = child.kill();
            let said = finish(child, "patch");
            assert!(said.code == -9 || said.code == 0, "killed, and yet: {said:?}");
            let len = fs::metadata(&target).unwrap().len() as usize;
            assert!((old.len().min(new.len())..=old.len().max(new.len())).contains(&len), "{len} bytes long");
            let state = run(&[&"verify", &delta, &target]);
            assert!([0, 10, 11].contains(&state.code), "after a kill: {state:?}");
            if state.code == 0 && len == new.len() {
                scene.write("target", old);
            }
        }
        run(&[&"patch", &delta, &target]).code(0);
        assert_same(&scene.read("target"), new, "the file after all those kills");
        scene.holds_only(&["old", "new", "delta", "target"]);
    }
}

#[test]
fn every_length_an_interruption_leaves_is_resumed() {
    let (old, _) = chain();
    let longer = [&chain().1[..], &random(77, 30_000)].concat();
    for (old, new) in [(&old, &longer), (&longer, &old)] {
        let scene = Scene::with_delta(old, new);
        let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
        // The file had been made longer, and nothing else was done.
        for len in [short, short + 1, short + 5000, long - 1, long] {
            let mut target = old.clone();
            target.resize(len.max(old.len()), 0);
            let path = scene.write("target", &target);
            run(&[&"patch", &scene.path("delta"), &path]).code(0);
            assert_same(&scene.read("target"), new, &format!("from {len} bytes"));
        }
    }
}

#[test]
fn stopped_by_a_signal_says_so_and_is_finished_by_the_next_run() {
    if !loops("stopping patch") {
        return;
    }
    let (old, new) = busy_pair(scaled(6 * MIB, 64 * MIB));
    let scene = Scene::with_delta(&old, &new);
    let delta = scene.path("delta");
    let planned = info_number(&info(&delta), "written_bytes");
    let mut stopped = 0;
    for (name, share) in [("INT", 1), ("TERM", planned / 4), ("INT", planned / 2), ("INT", planned * 9 / 10)] {
        let device = Loop::attach(&scene.write("backing", &old));
        let mut child = start_patch(&delta, device.path());
        kill_when(&mut child, || device.bytes_written() >= share);
        signal(&mut child, name);
        let said = finish(child, "patch");
        assert!(said.code == 0 || said.code == 3, "SIG{name}: {said:?}");
        if said.code == 3 {
            stopped += 1;
            let said = said.row("stopped-signal").says("stopped after");
            assert!(said.err.contains(&device.path().display().to_string()), "{}", said.err);
            assert_state(&delta, device.path(), "convertible");
        }
        run(&[&"patch", &delta, &device.path()]).code(0);
        assert_same(&device.read(), &new, "the device that was stopped and resumed");
    }
    assert!(stopped > 0, "no run was stopped before its end");
}

#[test]
fn stopped_before_the_first_write_leaves_the_target_untouched_and_says_so() {
    // So large that looking at it takes a while; all of it holes but for the start.
    let len = 2 << 30;
    let scene = Scene::with_delta(b"old", b"new");
    for (name, text) in [("old", b"old"), ("new", b"new"), ("target", b"old")] {
        scene.write(name, text);
        fs::OpenOptions::new().write(true).open(scene.path(name)).unwrap().set_len(len).unwrap();
    }
    let (delta, target) = (scene.path("delta"), scene.path("target"));
    run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &delta]).code(0);
    let mut child = start_patch(&delta, &target);
    // It reads the target as soon as it has opened it.
    let open = format!("/proc/{}/fd", child.id());
    kill_when(&mut child, || {
        let fds = fs::read_dir(&open).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == target))
    });
    sleep(Duration::from_millis(20));
    signal(&mut child, "INT");
    let said = finish(child, "patch");
    let mut start = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&fs::File::open(&target).unwrap(), &mut start, 0).unwrap();
    assert_eq!(&start, b"old", "something was written after all: {said:?}");
    // 3 is for a target between the images.
    assert!(!said.err.contains("between the old and the new"), "{}", said.err);
    assert!(said.code == 1 || said.code == -2, "{said:?}");
}

/// What the delta reads is checked batch by batch, which may be most of a disk. That it ends there, not behind it, shows
/// in what is said: the target holds something else.
#[test]
fn stopped_while_it_checks_what_the_delta_reads() {
    if !loops("stopping the check of the sources") {
        return;
    }
    let half = 24 * MIB;
    let old = random(83, 2 * half);
    let new = [&old[half..], &old[..half]].concat();
    let scene = Scene::new();
    let (a, b, delta) = (scene.write("old", &old), scene.write("new", &new), scene.path("delta"));
    run(&[&"diff", &"--level", &"1", &a, &b, &"-o", &delta]).code(0);
    let device = Loop::attach(&scene.write("target", &old));
    let wrong = half - 1;
    device.write(wrong as u64, &[!old[wrong]]);
    let written = device.bytes_written();
    run(&[&"patch", &delta, &device.path()]).code(1).says("data that the delta builds on differs");
    // A machine that is busy with other things may come too late.
    let stopped = (0..5).any(|_| {
        let mut child = start(&[&"--progress", &"json", &"patch", &delta, &device.path()]);
        assert!(wait_for_line(&mut child, "checking what the delta reads"), "it never came to that");
        for name in ["STOP", "INT", "CONT"] {
            signal(&mut child, name); // while it stands still it cannot be done
        }
        finish(child, "patch").code(1).says("Nothing was written").err.contains("interrupted")
    });
    assert!(stopped, "the wish to stop was not heard while it was checked");
    assert_eq!(device.bytes_written(), written);
    device.write(wrong as u64, &old[wrong..=wrong]);
    run(&[&"patch", &delta, &device.path()]).code(0);
    assert_same(&device.read(), &new, "the device that was stopped before it was written");
}

/// Runs it until both signals, sent together when `reached` says so, end it at once: the first alone may come so late
/// that it stops before the second is seen.
#[track_caller]
fn ended_at_once(row: &str, mut begin: impl FnMut() -> (Child, Box<dyn FnMut() -> bool>)) {
    for _ in 0..30 {
        let (mut child, mut reached) = begin();
        kill_when(&mut child, &mut reached);
        for name in ["STOP", "INT", "TERM", "CONT"] {
            signal(&mut child, name);
        }
        let said = finish(child, row);
        if said.err.contains("at once") {
            said.row(row);
            return;
        }
    }
    panic!("{row}: it never ended at once");
}

#[test]
fn what_is_said_at_once_is_in_the_tables() {
    if !loops("a second signal") {
        return;
    }
    let (old, new) = busy_pair(6 * MIB);
    let scene = Scene::with_delta(&old, &new);
    let (delta, image, old_path) = (scene.path("delta"), scene.path("new"), scene.path("old"));
    let device = std::rc::Rc::new(Loop::attach(&scene.write("backing", &old)));
    let written = |device: &std::rc::Rc<Loop>| {
        let (device, before) = (std::rc::Rc::clone(device), device.bytes_written());
        Box::new(move || device.bytes_written() > before + 4096)
    };
    ended_at_once("at-once-patch", || {
        device.write(0, &old);
        let reached = written(&device);
        (start_patch(&delta, device.path()), reached)
    });
    ended_at_once("at-once-slot", || {
        device.write(0, &random(5, new.len()));
        let reached = written(&device);
        (start(&[&"patch", &delta, &device.path(), &"--old", &old_path]), reached)
    });
    ended_at_once("at-once-sync", || {
        device.write(0, &old);
        let reached = written(&device);
        (start(&[&"sync", &image, &device.path()]), reached)
    });
    // Nobody writes into the pipe, so nothing is read, and nothing written.
    let (reader, _writer) = std::io::pipe().unwrap();
    ended_at_once("at-once-before", || {
        let mut command = command(&[&"sync", &"-", &device.path()]);
        command.stdin(reader.try_clone().unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let wchan = format!("/proc/{}/wchan", child.id());
        (child, Box::new(move || fs::read_to_string(&wchan).is_ok_and(|place| place.contains("poll"))))
    });
}

/// Both signals at once: whichever way they fall, what is said fits what was done.
#[test]
fn stopped_at_once_by_a_second_signal_says_whether_anything_was_written() {
    if !loops("stopping patch twice") {
        return;
    }
    let (old, new) = busy_pair(scaled(6 * MIB, 64 * MIB));
    let scene = Scene::with_delta(&old, &new);
    let delta = scene.path("delta");
    let planned = info_number(&info(&delta), "written_bytes");
    for share in [0, 1, planned / 2] {
        let device = Loop::attach(&scene.write("backing", &old));
        let mut child = start_patch(&delta, device.path());
        let fds = format!("/proc/{}/fd", child.id());
        let opened = || {
            let links = fs::read_dir(&fds).into_iter().flatten().flatten();
            links.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == device.path()))
        };
        kill_when(&mut child, || if share == 0 { opened() } else { device.bytes_written() >= share });
        signal(&mut child, "INT");
        signal(&mut child, "TERM");
        let said = finish(child, "patch");
        match said.code {
            0 => {}
            1 => {
                assert_eq!(device.bytes_written(), 0, "{said:?}");
                said.says("Nothing was written");
            }
            3 => drop(said.says("Run the same command again")),
            _ => panic!("{said:?}"),
        }
        run(&[&"patch", &delta, &device.path()]).code(0);
        assert_same(&device.read(), &new, "the device that was stopped twice and resumed");
    }
}

// -------------------------------------------------------------------------------------------------------- diff

#[test]
fn diff_killed_leaves_no_delta_or_a_whole_one() {
    let (old, new) = busy_pair(scaled(4 * MIB, 64 * MIB));
    let scene = Scene::with_delta(&old, &new);
    let (a, b, delta) = (scene.path("old"), scene.path("new"), scene.path("out"));
    let begun = Instant::now();
    run(&[&"diff", &a, &b, &"-o", &delta]).code(0);
    let whole = begun.elapsed().as_micros().max(1) as u64;
    let expected = scene.read("out");
    fs::remove_file(&delta).unwrap();
    let mut rng = Rng::new(78);
    for _ in 0..scaled(12, 100) {
        let mut child = start(&[&"diff", &a, &b, &"-o", &delta]);
        sleep(Duration::from_micros(rng.next() % whole));
        let _ = child.kill();
        finish(child, "diff");
        if delta.exists() {
            assert_same(&scene.read("out"), &expected, "the delta of a run that was killed");
            fs::remove_file(&delta).unwrap();
        }
    }
    // Over an older delta: that one, or the new one.
    let older = scene.write("out", b"an older delta");
    for _ in 0..scaled(5, 50) {
        let mut child = start(&[&"diff", &a, &b, &"-o", &older]);
        sleep(Duration::from_micros(rng.next() % whole));
        let _ = child.kill();
        finish(child, "diff");
        let found = scene.read("out");
        assert!(found == b"an older delta" || found == expected, "neither the older delta nor the new one");
    }
    assert_same(&scene.read("old"), &old, "OLD");
    assert_same(&scene.read("new"), &new, "NEW");
}

#[test]
fn diff_stopped_by_a_signal_leaves_nothing_behind() {
    let (old, new) = busy_pair(scaled(4 * MIB, 64 * MIB));
    let scene = Scene::with_delta(&old, &new);
    let (a, b) = (scene.path("old"), scene.path("new"));
    let begun = Instant::now();
    run(&[&"diff", &a, &b, &"-o", &scene.path("out")]).code(0);
    let whole = begun.elapsed();
    // At several moments; and where a file shows beside the others, as soon as it does.
    for (i, name) in ["INT", "TERM", "INT", "TERM", "INT", "HUP"].into_iter().enumerate() {
        let _ = fs::remove_file(scene.path("out"));
        let begun = Instant::now();
        let mut child = start(&[&"diff", &a, &b, &"-o", &scene.path("out")]);
        kill_when(&mut child, || scene.names().len() > 3 || begun.elapsed() > whole * i as u32 / 5);
        signal(&mut child, name);
        let said = finish(child, "diff");
        // It may have been done but for its last words.
        if said.code == 0 || scene.path("out").exists() {
            assert_same(&scene.read("out"), &scene.read("delta"), "the delta of a run that was stopped");
        }
        let _ = fs::remove_file(scene.path("out"));
        assert_eq!(scene.names(), ["delta", "new", "old"], "left behind after SIG{name}");
    }
}

#[test]
fn diff_overwrites_an_older_delta() {
    let scene = chain_scene();
    let expected = scene.read("delta");
    scene.write("delta", &vec![7; 1_000_000]);
    let diff = || run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &scene.path("delta")]);
    diff().code(0);
    assert_same(&scene.read("delta"), &expected, "the delta");
    diff().code(0);
    assert_same(&scene.read("delta"), &expected, "the delta made again");
    scene.holds_only(&["old", "new", "delta", "target"]);
    // By a relative name in the working directory, too.
    let mut command = command(&[&"diff", &"old", &"new", &"-o", &"delta2"]);
    command.current_dir(scene.folder());
    run_command(command).code(0);
    assert_same(&scene.read("delta2"), &expected, "the delta by a relative name");
}

#[test]
fn diff_without_room_fails_and_leaves_what_was_there() {
    if !loops("diff without room (tmpfs needs the same)") {
        return;
    }
    let scene = Scene::new();
    let (old, new) = (scene.write("old", &random(79, 10)), scene.write("new", &random(80, MIB)));
    let at = scene.path("small");
    let mount = Mount::new("tmpfs", Path::new("tmpfs"), &at, "size=300k");
    let delta = at.join("delta");
    let failed = || run(&[&"diff", &old, &new, &"-o", &delta]).code(1).says("No space left").says("small");
    failed();
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "a part of a delta was left");
    fs::write(&delta, b"an older delta").unwrap();
    failed();
    assert_eq!(fs::read(&delta).unwrap(), b"an older delta");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 1, "a part of a delta was left");
    drop(mount);
}

#[test]
fn diff_reads_block_devices() {
    if !loops("diff of devices") {
        return;
    }
    let scene = chain_scene();
    let (old, new) = (Loop::attach(&scene.path("old")), Loop::attach(&scene.path("new")));
    let from_devices = scene.path("from-devices");
    run(&[&"diff", &old.path(), &new.path(), &"-o", &from_devices]).code(0);
    assert_same(&scene.read("from-devices"), &scene.read("delta"), "the delta between devices");
    run(&[&"diff", &old.path(), &scene.path("new"), &"-o", &from_devices]).code(0);
    assert_same(&scene.read("from-devices"), &scene.read("delta"), "the delta from a device to a file");
    assert_eq!(old.bytes_written() + new.bytes_written(), 0, "diff wrote to a device");
}

#[test]
fn the_same_inputs_give_the_same_delta() {
    let (old, new) = busy_pair(3 * MIB);
    let scene = Scene::with_delta(&old, &new);
    for threads in ["1", "2", "3", "7"] {
        let out = scene.path("again");
        run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &out, &"--threads", &threads]).code(0);
        assert_same(&scene.read("again"), &scene.read("delta"), &format!("with {threads} threads"));
    }
    for level in ["1", "5", "9"] {
        let target = scene.write("target", &old);
        let out = scene.path("again");
        run(&[&"diff", &scene.path("old"), &scene.path("new"), &"-o", &out, &"--level", &level]).code(0);
        run(&[&"patch", &out, &target]).code(0);
        assert_same(&scene.read("target"), &new, &format!("at level {level}"));
    }
}

#[test]
fn diff_warns_where_the_delta_is_no_smaller_than_the_new_image() {
    let scene = Scene::new();
    let (old, new) = (scene.write("old", &random(81, 300_000)), scene.write("new", &random(82, 300_000)));
    run(&[&"diff", &old, &new, &"-o", &scene.path("delta")]).code(0).says("have little in common");
    let mut similar = scene.read("old");
    similar[..9000].fill(3);
    scene.write("new", &similar);
    let said = run(&[&"diff", &old, &new, &"-o", &scene.path("delta")]).code(0);
    assert!(!said.err.contains("little in common"), "{}", said.err);
}
