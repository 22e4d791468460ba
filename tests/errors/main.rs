//! spec/errors.md has every message with which the program refuses, fails or stops, and no other; and each of its rows is
//! read by a test.
//!
//! To add a message: write its row, and a test that ends in `.row("its-name")`. Words that are no message of their own go
//! to tests/errors/no_refusals.txt.

#[path = "../common/errors.rs"]
#[allow(dead_code)]
mod errors;
mod source;

use blkpatch::codes::CODES;
use errors::{Row, fixed_parts, rows};
use source::{Literal, literals, of_program, sources};
use std::collections::{BTreeMap, BTreeSet};

/// Rows that no test can bring about, and why.
const UNREACHED: [(&str, &str); 5] = [
    ("large-sectors", "takes a disk with sectors of more than 4096 bytes; loop devices have none"),
    ("export-no-name", "a path without a last name is a folder, and refused as such before"),
    ("file-not-made-wrong", "takes a file system that returns other bytes than were written a moment ago"),
    ("overlay-not-made", "the same"),
    ("too-large-to-map", "takes a machine of 32 bits"),
];

/// Said by the parser of the command line, which is not ours.
const FOREIGN: [&str; 2] = ["usage-nothing", "usage-other"];

/// Files that say what was done, not what was refused.
const REPORTS: [&str; 4] = ["src/ask.rs", "src/info.rs", "src/progress.rs", "src/report.rs"];

/// Code before a literal that shows that it is none either.
const NO_MESSAGE: [&str; 3] = [".phase(", "after_help =", "override_usage ="];

/// What a message says beside its placeholders, without white space: lines are broken differently.
fn parts(message: &str) -> Vec<String> {
    let squeeze = |part: String| part.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    fixed_parts(message).into_iter().map(squeeze).collect()
}

/// Words that are no message of their own: what is filled in for placeholders, notes, parts of questions.
fn no_refusals() -> BTreeSet<String> {
    let lines = include_str!("no_refusals.txt").lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.replace("\\n", "\n").trim().to_owned())
        .collect()
}

#[test]
fn every_message_of_the_program_has_a_row() {
    let rows: Vec<String> = rows().iter().map(|row| parts(&row.message).join("\0")).collect();
    let others = no_refusals();
    let is_known = |literal: &Literal| {
        let parts = parts(&literal.text);
        parts.is_empty() || rows.iter().any(|row| parts.iter().all(|part| row.contains(part.as_str())))
    };
    let (mut unknown, mut used) = (Vec::new(), BTreeSet::new());
    for literal in of_program() {
        let words = literal.text.trim().contains(' ');
        if !words
            || REPORTS.contains(&&literal.file[..])
            || NO_MESSAGE.iter().any(|code| literal.before.ends_with(code))
        {
            continue;
        }
        if others.contains(literal.text.trim()) {
            used.insert(literal.text.trim().to_owned());
        } else if !is_known(&literal) {
            unknown.push(format!("{}:{}: {:?}", literal.file, literal.line, literal.text));
        }
    }
    assert!(
        unknown.is_empty(),
        "not in spec/errors.md: add a row, or, if it is no refusal, a line to tests/errors/no_refusals.txt:\n{}",
        unknown.join("\n")
    );
    let gone: Vec<_> = others.difference(&used).collect();
    assert!(gone.is_empty(), "no longer in the source: take them out of tests/errors/no_refusals.txt: {gone:#?}");
}

#[test]
fn every_row_is_a_message_of_the_program() {
    let known: BTreeSet<String> =
        of_program().iter().flat_map(|literal| parts(&literal.text)).filter(|part| part.len() > 1).collect();
    for row in rows().iter().filter(|row| !FOREIGN.contains(&&row.name[..])) {
        for part in parts(&row.message) {
            if let Err(rest) = put_together(&part, &known) {
                panic!("{}: the program does not say what begins at {rest:?}, in {:?}", row.name, row.message);
            }
        }
    }
}

/// Whether a text is made of known parts, and signs; else where that ends.
fn put_together<'a>(text: &'a str, known: &BTreeSet<String>) -> Result<(), &'a str> {
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for (at, c) in text.char_indices() {
        if !reached[at] {
            continue;
        }
        if !c.is_alphanumeric() {
            reached[at + c.len_utf8()] = true;
        }
        for part in known.iter().filter(|part| text[at..].starts_with(part.as_str())) {
            reached[at + part.len()] = true;
        }
    }
    let furthest = reached.iter().rposition(|reached| *reached).unwrap_or(0);
    if furthest == text.len() { Ok(()) } else { Err(&text[furthest..]) }
}

#[test]
fn rows_are_complete_and_all_codes_have_one() {
    let rows = rows();
    assert!(rows.len() > 150, "{} rows are found", rows.len());
    let mut names = BTreeSet::new();
    for Row { name, codes, advice, .. } in &rows {
        assert!(names.insert(name), "{name} occurs twice");
        // So that tests can be searched for it.
        assert!(name.contains('-') && !CODES.contains(&&name[..]), "{name}: a name has a hyphen, and is no code");
        assert!(!advice[1].is_empty(), "{name}: what to do?");
        for (exit, code) in codes {
            let fits = match exit {
                1 | 3 | 4 => CODES.contains(&&code[..]),
                2 => code.is_empty(),
                _ => false,
            };
            assert!(fits, "{name}: {exit} {code}");
        }
    }
    for code in CODES {
        assert!(rows.iter().any(|row| row.codes.iter().any(|(_, c)| c == code)), "{code} has no row");
    }
}

#[test]
fn every_row_is_read_by_a_test() {
    let mut read: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in sources("tests").iter().chain(&sources("src")) {
        let file = path.display().to_string();
        if file.contains("tests/errors") || file.ends_with("common/errors.rs") {
            continue;
        }
        for literal in literals(&file, &std::fs::read_to_string(path).expect("a test")) {
            read.entry(literal.text).or_default().push(format!("{file}:{}", literal.line));
        }
    }
    let unreached: BTreeMap<_, _> = UNREACHED.into_iter().collect();
    let rows = rows();
    let unread: Vec<_> =
        rows.iter().filter(|row| !read.contains_key(&row.name) && !unreached.contains_key(&row.name[..])).collect();
    let names: Vec<_> = unread.iter().map(|row| &row.name).collect();
    assert!(names.is_empty(), "no test reads the messages of: {names:#?}");
    for (name, why) in UNREACHED {
        assert!(rows.iter().any(|row| row.name == name), "there is no row {name}");
        assert!(!read.contains_key(name), "{name} is read by a test: {:?}; it said: {why}", read[name]);
    }
}
