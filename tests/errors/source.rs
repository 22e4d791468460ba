//! The string literals of the program, found in its source: enough of Rust's syntax for that.

use std::fs;
use std::path::{Path, PathBuf};

/// A string literal, with its escapes resolved.
#[derive(Debug)]
pub struct Literal {
    pub file: String,
    pub line: usize,
    pub text: String,
    /// The code before it, without white space at its end.
    pub before: String,
}

/// All files below a folder whose names end in `.rs`.
pub fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of the source") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The literals of the program itself, without those of its unit tests and without bytes.
pub fn of_program() -> Vec<Literal> {
    let files = sources("src").into_iter().filter(|path| !path.ends_with("tests.rs"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    files
        .flat_map(|path| {
            let text = fs::read_to_string(&path).expect("a source");
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            literals(&name, &text[..end_of_program(&text)])
        })
        .collect()
}

/// Where a file's unit tests begin.
fn end_of_program(text: &str) -> usize {
    let tests = text.match_indices("\n#[cfg(test)]\nmod ").find(|(at, start)| {
        let rest = &text[at + start.len()..];
        rest.find(['{', ';']).is_some_and(|end| rest.as_bytes()[end] == b'{')
    });
    tests.map_or(text.len(), |(at, _)| at)
}

/// The literals of a text.
pub fn literals(file: &str, text: &str) -> Vec<Literal> {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let rest = &text[at..];
        at += match bytes[at] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'\'' => char_len(rest),
            b'"' => {
                let (literal, len) = literal(rest);
                if at == 0 || bytes[at - 1] != b'b' {
                    let (line, before) = (text[..at].lines().count(), text[..at].trim_end().to_owned());
                    let before = before[before.floor_boundary(60)..].to_owned();
                    found.push(Literal { file: file.to_owned(), line, text: literal, before });
                }
                len
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    found
}

/// The end of a text.
trait Boundary {
    fn floor_boundary(&self, len: usize) -> usize;
}

impl Boundary for str {
    /// Where about the last `len` bytes begin.
    fn floor_boundary(&self, len: usize) -> usize {
        (0..=self.len().saturating_sub(len)).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0)
    }
}

/// Length of a character, or of the quote that begins a lifetime.
fn char_len(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 3),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 1),
        None => 1,
    }
}

/// What a literal at the start of a text holds, and its length there.
fn literal(text: &str) -> (String, usize) {
    let mut held = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (held, at + 1),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('\n') => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                Some('n') => held.push('\n'),
                Some(c) => held.push(c),
                None => break,
            },
            c => held.push(c),
        }
    }
    panic!("a literal without end: {}", &text[..text.len().min(80)])
}
