//! spec/errors.md as the tests need it: its rows, and whether a message is the one of a row.

use std::path::Path;

/// A row of the tables.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The message, with `{placeholders}`.
    pub message: String,
    /// Exit codes, each with the code of `--json`; that is empty for wrong usage.
    pub codes: Vec<(i32, String)>,
    /// Cause, and what to do.
    pub advice: [String; 2],
}

/// All rows of spec/errors.md.
///
/// # Panics
/// A table that cannot be read.
pub fn rows() -> Vec<Row> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("spec/errors.md")).expect("the tables");
    let lines =
        text.lines().filter(|line| line.starts_with("| ") && line.contains(" | `") && !line.starts_with("| ---"));
    lines.map(row).collect()
}

fn row(line: &str) -> Row {
    // A bar within a cell is written as '\|'.
    let line = line.replace("\\|", "\u{1}");
    let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect();
    let [name, message, codes, cause, advice] = &cells[..] else { panic!("not five cells: {line}") };
    let codes = codes.split(", ").map(|code| {
        let (exit, name) = code.split_once(' ').unwrap_or((code, ""));
        (exit.parse().unwrap_or_else(|_| panic!("no exit code: {line}")), name.to_owned())
    });
    Row {
        name: name.clone(),
        message: message.strip_prefix('`').and_then(|m| m.strip_suffix('`')).expect("a message").to_owned(),
        codes: codes.collect(),
        advice: [cause.clone(), advice.clone()],
    }
}

/// The parts of a message between its placeholders, without those that are only signs. `{{` is no placeholder.
pub fn fixed_parts(message: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in message.replace("{{", "\u{2}").replace("}}", "\u{3}").chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                parts.push(String::new());
            }
            c if depth == 0 => parts.last_mut().expect("one at least").push(c),
            _ => {}
        }
    }
    parts.iter().map(|part| one_line(part)).filter(|part| part.chars().any(char::is_alphanumeric)).collect()
}

/// With every run of white space, and line ends as JSON writes them, as one space.
pub fn one_line(text: &str) -> String {
    text.replace("\\n", " ").replace("\\\"", "\"").split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Row {
    /// Whether a text holds this row's message.
    pub fn is_in(&self, text: &str) -> bool {
        let text = one_line(text);
        let mut rest = &text[..];
        fixed_parts(&self.message).iter().all(|part| match rest.find(&part[..]) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    }
}

/// Asserts that a text holds the message of a row.
#[track_caller]
pub fn assert_row(text: &str, name: &str) -> Row {
    let row = rows().into_iter().find(|row| row.name == name);
    let row = row.unwrap_or_else(|| panic!("spec/errors.md has no row {name}"));
    assert!(row.is_in(text), "this is not the message of {name} in spec/errors.md, {:?}:\n{text}", row.message);
    row
}

/// Asserts that some row of the exit code has this message.
#[track_caller]
pub fn assert_documented(text: &str, code: i32) {
    let known = rows().iter().any(|row| row.codes.iter().any(|(exit, _)| *exit == code) && row.is_in(text));
    assert!(known, "spec/errors.md has no row with exit code {code} for this:\n{text}");
}
