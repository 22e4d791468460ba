//! The papers that are made from the command line: help, man pages, completions. What must be in them is read from the
//! built binary's help, not from the code that writes them.

mod common;
#[path = "../examples/papers.rs"]
mod papers;

use common::{Scene, has, is_root, run, skip, tool, tools};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The verbs that the binary's help lists.
fn verbs() -> Vec<String> {
    let help = run(&[&"--help"]).code(0).out;
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let words = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let verbs: Vec<String> = words.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert!(verbs.len() > 5, "the verbs in the help:\n{help}");
    verbs.into_iter().filter(|verb| verb != "help").collect()
}

/// The long options that the help of a verb lists.
fn options(verb: &str) -> Vec<String> {
    let help = run(&[&verb, &"--help"]).code(0).out;
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let names = lines.filter_map(|line| line.split_once("--")).map(|(_, rest)| rest);
    let end = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    let options: Vec<String> = names.filter_map(|rest| rest.split(end).next()).map(str::to_owned).collect();
    assert!(options.iter().any(|option| option == "help"), "the options in the help of {verb}:\n{help}");
    options
}

fn written() -> Scene {
    let scene = Scene::new();
    papers::write(scene.folder()).expect("writing the papers");
    scene
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A checker of the system, where it is installed, must find nothing.
#[track_caller]
fn finds_nothing(program: &str, args: &[&str], file: &Path, ignore: &str) {
    if !has(program) {
        return skip(&format!("checking {}", file.display()), &format!("{program} is missing"));
    }
    let out = Command::new(program).args(args).arg(file).output().expect("running a checker");
    let said = [out.stdout, out.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let said: Vec<&str> = said.lines().filter(|line| ignore.is_empty() || !line.contains(ignore)).collect();
    assert!(said.is_empty(), "{program} on {}:\n{}", file.display(), said.join("\n"));
    assert!(out.status.success() || !ignore.is_empty(), "{program} on {}: {}", file.display(), out.status);
}

#[test]
fn help_is_at_most_80_columns_wide_and_has_an_example() {
    let mut commands = vec![vec![]];
    commands.extend(verbs().into_iter().map(|verb| vec![verb]));
    for command in commands {
        for flag in ["-h", "--help"] {
            let mut blkpatch = common::command(&[]);
            // Whatever the width of the terminal that the tests run in.
            blkpatch.args(&command).arg(flag).env("COLUMNS", "200");
            let help = common::run_command(blkpatch).code(0).out;
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{command:?} {flag} has a line of over 80 columns:\n{line}");
            }
            let example = help.split_once("\nExample").map(|(_, text)| text).unwrap_or_default();
            let uses = |line: &str| line.contains(&format!("blkpatch {}", command.join(" ")));
            assert!(example.lines().any(uses), "{command:?} {flag} has no example:\n{help}");
        }
    }
}

#[test]
fn every_verb_has_a_man_page_with_every_option() {
    let scene = written();
    let mut expected = vec!["blkpatch.1".to_owned()];
    for verb in verbs() {
        let name = format!("blkpatch-{verb}.1");
        let page = read(&scene.path("man").join(&name));
        for option in options(&verb) {
            let escaped = format!("\\-\\-{}", option.replace('-', "\\-"));
            assert!(page.contains(&escaped), "{name} lacks --{option}");
        }
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            let heading = [format!("\n.SH {section}\n"), format!("\n.SH \"{section}\"\n")];
            assert_eq!(heading.iter().map(|h| page.matches(h).count()).sum::<usize>(), 1, "{name}: {section}");
        }
        expected.push(name);
    }
    let top = read(&scene.path("man").join("blkpatch.1"));
    for verb in verbs() {
        assert!(top.contains(&format!("blkpatch\\-{verb}(1)")), "blkpatch.1 lacks {verb}");
    }
    expected.sort();
    let entries = fs::read_dir(scene.path("man")).expect("listing the pages");
    let mut found: Vec<String> =
        entries.map(|entry| entry.expect("a page").file_name().to_string_lossy().into_owned()).collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn man_pages_are_sound() {
    let scene = written();
    for entry in fs::read_dir(scene.path("man")).expect("listing the pages") {
        let page = entry.expect("a page").path();
        finds_nothing("mandoc", &["-Tlint", "-W", "warning"], &page, "missing date");
        if has("man") && has("nroff") {
            let out = Command::new("man").args(["--warnings", "-l"]).arg(&page).env("MANPAGER", "cat").output();
            let out = out.expect("running man");
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && said.is_empty(), "man on {}:\n{said}", page.display());
        }
    }
}

#[test]
fn completions_know_every_verb_and_option() {
    let scene = written();
    let folder = scene.path("completions");
    let (bash, zsh, fish) = ("blkpatch.bash", "_blkpatch", "blkpatch.fish");
    for verb in verbs() {
        for name in [bash, zsh, fish] {
            let text = read(&folder.join(name));
            assert!(text.contains(&verb), "{name} lacks {verb}");
            for option in options(&verb) {
                let way = if name == fish { format!("-l {option}") } else { format!("--{option}") };
                assert!(text.contains(&way), "{name} lacks --{option} of {verb}");
            }
        }
    }
    finds_nothing("bash", &["-n"], &folder.join(bash), "");
    for (shell, name) in [("zsh", zsh), ("fish", fish)] {
        if has(shell) {
            finds_nothing(shell, &["-n"], &folder.join(name), "");
        }
    }
}

#[test]
fn bash_completes_a_verb_and_an_option() {
    let scene = written();
    let file = scene.path("completions").join("blkpatch.bash");
    let complete = |words: &str, at: usize| {
        let list: Vec<&str> = words.split(' ').collect();
        let script = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD={at}; _blkpatch blkpatch '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            file.display(),
            list[at],
            list[at - 1]
        );
        common::tool("bash", &[&"-c", &script])
    };
    assert_eq!(complete("blkpatch ver", 1), "verify");
    assert_eq!(complete("blkpatch patch --dry", 2), "--dry-run");
}

// ------------------------------------------------------------------------------------------------- the package

/// What Cargo.toml lists for the Debian package: files (the last name may have a `*`), where they go, mode.
fn assets() -> Vec<[String; 3]> {
    let manifest = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let lines = manifest.lines().skip_while(|line| *line != "assets = [").skip(1).take_while(|line| *line != "]");
    let assets = lines.map(|line| serde_json::from_str(line.trim().trim_end_matches(',')).expect("an asset"));
    assets.collect()
}

/// The files that a pattern stands for.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().expect("a name").to_string_lossy();
    let Some((head, tail)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let entries = fs::read_dir(pattern.parent().expect("a folder")).expect("listing a folder");
    let fits = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(head) && name.ends_with(tail)
    };
    entries.map(|entry| entry.expect("a file").path()).filter(fits).collect()
}

/// Packs what cargo-deb would pack, but for its control file and its dependencies.
fn pack(scene: &Scene) -> PathBuf {
    papers::write(&scene.path("papers")).expect("writing the papers");
    let binary = scene.path("blkpatch");
    tool("strip", &[&"-o", &binary, &env!("CARGO_BIN_EXE_blkpatch")]);
    let root = scene.path("root");
    for [from, to, mode] in assets() {
        let from = match from.strip_prefix("target/papers/") {
            Some(rest) => scene.path("papers").join(rest),
            None if from == "target/release/blkpatch" => binary.clone(),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join(&from),
        };
        let files = matching(&from);
        assert!(!files.is_empty(), "nothing is {}", from.display());
        for file in files {
            let mut target = root.join(&to);
            if to.ends_with('/') {
                target.push(file.file_name().expect("a name"));
            }
            tool("install", &[&"-D", &"-m", &mode, &file, &target]);
            if to.starts_with("usr/share/man/") {
                tool("gzip", &[&"-9n", &target]);
            }
        }
    }
    let architecture = tool("dpkg", &[&"--print-architecture"]);
    let control = format!(
        "Package: blkpatch\nVersion: {}-1\nArchitecture: {architecture}\nMaintainer: nobody <nobody@example.org>\n\
         Description: for a test\n",
        env!("CARGO_PKG_VERSION")
    );
    fs::create_dir(root.join("DEBIAN")).expect("the control folder");
    fs::write(root.join("DEBIAN/control"), control).expect("the control file");
    let package = scene.path("blkpatch.deb");
    tool("dpkg-deb", &[&"--root-owner-group", &"-Zgzip", &"-z1", &"--build", &root, &package]);
    package
}

/// As packaging/test-deb does with the package that is shipped: installed in a scratch root, used, removed again.
#[test]
fn the_debian_package_installs_works_and_goes() {
    let test = "the Debian package";
    if !is_root() {
        return skip(test, "needs root");
    }
    if !tools(test, &["dpkg", "dpkg-deb", "strip", "man"]) {
        return;
    }
    let scene = Scene::new();
    let package = pack(&scene);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/test-deb");
    let out = Command::new(script).arg(&package).env("LINTIAN", "no").output().expect("running packaging/test-deb");
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(out.status.success() && said.contains("the package installs, works and goes"), "{said}");
    let changelog = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/changelog"));
    let version = format!("blkpatch ({}-1)", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&version), "packaging/changelog does not begin with {version}");
}
