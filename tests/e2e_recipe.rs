//! The Mender update module, packaging/mender/blkpatch, called as Mender calls it: one call for each state, in the
//! folder of the deployment, with the files that Mender puts there.

mod common;

use common::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A device with Mender on it.
struct Device {
    scene: Scene,
    target: PathBuf,
}

impl Device {
    /// One whose target is `target`, that gets an update from `old` to `new` in a deployment.
    fn new(scene: Scene, target: &Path) -> Self {
        let device = Self { target: target.to_owned(), scene };
        device.configure(Path::new(env!("CARGO_BIN_EXE_blkpatch")), "true");
        let tree = device.tree();
        for folder in ["header", "files", "tmp"] {
            fs::create_dir_all(tree.join(folder)).expect("the deployment's folders");
        }
        let texts = [
            ("version", "3"),
            ("artifact_name", "v1"),
            ("device_type", "qemux86-64"),
            ("header/header-info", r#"{"payloads":[{"type":"blkpatch"}],"artifact_provides":{"artifact_name":"v2"}}"#),
            ("header/files", r#"{"files":["update.delta"]}"#),
            ("header/type-info", r#"{"type":"blkpatch"}"#),
            ("header/meta-data", "{}"),
        ];
        for (name, text) in texts {
            fs::write(tree.join(name), text).expect("the deployment's files");
        }
        device
    }

    fn tree(&self) -> PathBuf {
        self.scene.path("work/payloads/0000/tree")
    }

    fn configure(&self, blkpatch: &Path, check: &str) {
        let log = |word: &str| format!("'echo {word} >>{}'", self.scene.path("calls").display());
        let text = format!(
            "TARGET='{}'\nKEEP='{}'\nBLKPATCH='{}'\nCHECK='{check}'\nSTOP={}\nSTART={}\n",
            self.target.display(),
            self.scene.path("keep").display(),
            blkpatch.display(),
            log("stop"),
            log("start"),
        );
        self.scene.write("mender.conf", text.as_bytes());
    }

    /// Calls the module with a state, as Mender does.
    #[track_caller]
    fn state(&self, state: &str) -> Out {
        run_command(self.command(state))
    }

    fn command(&self, state: &str) -> Command {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/mender/blkpatch");
        let mut command = Command::new(module);
        command.arg(state).arg(self.tree()).current_dir(self.tree()).stdin(Stdio::null());
        command.env("BLKPATCH_MENDER_CONF", self.scene.path("mender.conf"));
        command
    }

    /// `Download`, after which Mender has stored what the module left unread.
    #[track_caller]
    fn download(&self) {
        assert_eq!(self.state("SupportsRollback").code(0).out, "Yes\n");
        self.state("Download").code(0);
        fs::copy(self.scene.path("delta"), self.tree().join("files/update.delta")).expect("storing the delta");
    }

    /// What STOP and START were called for, in order.
    fn calls(&self) -> String {
        let calls = fs::read_to_string(self.scene.path("calls")).unwrap_or_default();
        calls.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The files that the module keeps between its calls.
    fn kept(&self) -> usize {
        fs::read_dir(self.scene.path("keep")).map_or(0, Iterator::count)
    }

    fn content(&self) -> Vec<u8> {
        fs::read(&self.target).expect("reading the target")
    }
}

/// Part 2 gets what 9 held, and 9 gets new data: 2 is written first, as it reads 9.
fn scene() -> Scene {
    let old = random(81, 16 * PART);
    let mut new = old.clone();
    new[part(2)].copy_from_slice(&old[part(9)]);
    new[part(9)].copy_from_slice(&random(82, PART));
    let scene = Scene::with_delta(&old, &new);
    scene.write("target", &old);
    scene
}

/// A device whose target is a file.
fn device() -> Device {
    let scene = scene();
    let target = scene.path("target");
    Device::new(scene, &target)
}

#[test]
fn a_deployment_patches_and_commits() {
    let scene = scene();
    // Both kinds of target where both can be had.
    let looped = loops("the Mender module").then(|| Loop::attach(&scene.path("target")));
    let target = looped.as_ref().map_or(scene.path("target"), |device| device.path().to_owned());
    let device = Device::new(scene, &target);
    device.download();
    device.state("ArtifactInstall").code(0);
    assert_eq!(device.state("NeedsArtifactReboot").code(0).out, "No\n");
    assert_eq!(device.calls(), "stop start");
    assert_eq!(device.kept(), 1, "the undo file, until the commit");
    device.state("ArtifactCommit").code(0);
    device.state("Cleanup").code(0);
    assert_eq!(device.kept(), 0, "nothing is kept after the commit");
    assert_state(&device.scene.path("delta"), &target, "new");
    assert_same(&device.content(), &device.scene.read("new"), "the target");
}

#[test]
fn a_failed_check_rolls_back() {
    let device = device();
    device.download();
    device.state("ArtifactInstall").code(0);
    assert_same(&device.content(), &device.scene.read("new"), "the target after the install");
    device.configure(Path::new(env!("CARGO_BIN_EXE_blkpatch")), "exit 7");
    device.state("ArtifactCommit").code(7);
    // A rollback may be cut short, and is then called again.
    for _ in 0..2 {
        device.state("ArtifactRollback").code(0);
        assert_same(&device.content(), &device.scene.read("old"), "the target after the rollback");
    }
    device.state("ArtifactFailure").code(0);
    device.state("Cleanup").code(0);
    assert_eq!((device.kept(), device.calls().as_str()), (0, "stop start stop start start"));
}

/// What Mender does when the power fails while it commits.
#[test]
fn a_commit_that_was_cut_short_is_rolled_back() {
    let device = device();
    device.download();
    for round in ["the module was done, and Mender does not know", "again"] {
        device.state("ArtifactInstall").code(0);
        device.state("ArtifactCommit").code(0);
        device.state("ArtifactRollback").code(0);
        assert_same(&device.content(), &device.scene.read("old"), round);
    }
    device.state("ArtifactFailure").code(0);
    device.state("Cleanup").code(0);
    assert_eq!(device.kept(), 0);
}

#[test]
fn a_failed_rollback_keeps_the_way_back() {
    let device = cut_short();
    let failing = device.scene.write("failing", b"#!/bin/sh\nexit 3\n");
    fs::set_permissions(&failing, fs::Permissions::from_mode(0o755)).expect("making it executable");
    device.configure(&failing, "true");
    assert_eq!(device.state("ArtifactRollback").code, 3);
    device.state("ArtifactFailure").code(0);
    let said = device.state("Cleanup").code(0).says("goes back");
    assert_eq!(device.kept(), 1, "{said:?}");
    // By hand, as it says.
    let undo = fs::read_dir(device.scene.path("keep")).unwrap().next().unwrap().unwrap().path();
    run(&[&"patch", &undo, &device.target]).code(0);
    assert_same(&device.content(), &device.scene.read("old"), "the target");
}

/// Mender signals the whole group after a time; the module must not end before what it started, or the rollback would
/// find the target in use.
#[test]
fn an_install_that_takes_too_long_ends_as_a_whole() {
    let device = device();
    device.download();
    let log = device.scene.path("log").display().to_string();
    let text = format!(
        "#!/bin/sh\ntrap 'sleep 0.3; echo ended >>{log}; kill $!; exit 3' TERM\necho begun >>{log}\nsleep 60 & wait\n"
    );
    let slow = device.scene.write("slow", text.as_bytes());
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("making it executable");
    device.configure(&slow, "true");
    let mut child = device.command("ArtifactInstall").stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    kill_when(&mut child, || device.scene.path("log").exists());
    signal(&mut child, "TERM");
    assert_eq!(finish(child, "the module").code, 3);
    assert_eq!(device.scene.read("log"), b"begun\nended\n", "what the module started goes on without it");
}

/// Installs with a program that is ended by the system when it writes part 9, after part 2 has been written.
fn cut_short() -> Device {
    let device = device();
    device.download();
    let limit = 5 * PART / 512;
    let blkpatch = env!("CARGO_BIN_EXE_blkpatch");
    let text = format!("#!/bin/sh\nulimit -c 0\nulimit -f {limit}\nexec '{blkpatch}' \"$@\"\n");
    let limited = device.scene.write("limited", text.as_bytes());
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).expect("making it executable");
    device.configure(&limited, "true");
    let said = device.state("ArtifactInstall");
    assert!(said.code > 1, "the install should have been cut short: {said:?}");
    assert_state(&device.scene.path("delta"), &device.target, "convertible");
    assert_eq!((device.calls().as_str(), device.kept()), ("stop", 1), "not in use, and there is a way back");
    let (old, found) = (device.scene.read("old"), device.content());
    assert!(found[part(2)] != old[part(2)] && found[part(9)] == old[part(9)], "between the two images");
    device.configure(Path::new(blkpatch), "true");
    device
}

#[test]
fn an_install_that_was_cut_short_is_resumed() {
    let device = cut_short();
    device.state("ArtifactInstall").code(0).says("resum");
    assert_same(&device.content(), &device.scene.read("new"), "the target");
    // Still there is a way back to the old image, not to the place of the interruption.
    device.state("ArtifactRollback").code(0);
    assert_same(&device.content(), &device.scene.read("old"), "the target after the rollback");
}

#[test]
fn an_install_that_was_cut_short_is_rolled_back() {
    let device = cut_short();
    device.state("ArtifactRollback").code(0);
    assert_same(&device.content(), &device.scene.read("old"), "the target");
    device.state("Cleanup").code(0);
    assert_eq!((device.calls().as_str(), device.kept()), ("stop stop start", 0));
}

#[test]
fn a_refused_install_changes_nothing_and_an_old_undo_file_is_not_taken() {
    let device = device();
    let foreign = random(83, 16 * PART);
    device.scene.write("target", &foreign);
    let before = Unwritten::look(&device.target);
    device.download();
    fs::create_dir_all(device.scene.path("keep")).expect("the folder for undo files");
    device.scene.write("keep/undo-0123.delta", &device.scene.read("delta"));
    device.state("ArtifactInstall").code(1).says("Nothing was written");
    device.state("ArtifactRollback").code(0);
    // It may be the only way back that somebody has, from a rollback that failed.
    device.state("Cleanup").code(0).says("undo-0123.delta");
    before.still(&device.target);
    assert_eq!((device.calls().as_str(), device.kept()), ("stop start start", 1));
    // After a deployment that was committed it leads nowhere.
    device.scene.write("target", &device.scene.read("old"));
    for state in ["ArtifactInstall", "ArtifactCommit", "Cleanup"] {
        device.state(state).code(0);
    }
    assert_eq!(device.kept(), 0);
}

#[test]
fn states_it_does_not_know_are_none_of_its_business() {
    let device = device();
    for state in ["SupportsAugmentedArtifacts", "ProvidePayloadFileSizes", "ArtifactVerifyReboot", "NoSuchState"] {
        let said = device.state(state).code(0);
        assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""), "{state}");
    }
}
