//! Writes the man pages and the shells' completions, all taken from the command line's own help (src/cli.rs).
//!
//!     cargo run --example papers [FOLDER]
//!
//! FOLDER is target/papers if none is given. It gets `man/blkpatch.1`, `man/blkpatch-VERB.1` for each verb, and
//! `completions/` with `blkpatch.bash`, `_blkpatch` (zsh) and `blkpatch.fish`.

// The example writes about arguments and reads none of them.
#[allow(dead_code)]
#[path = "../src/cli.rs"]
mod cli;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::fs::{self, create_dir_all};
use std::io;
use std::path::{Path, PathBuf};

// Unused where tests/e2e_papers.rs takes this file in.
#[allow(dead_code)]
fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("target/papers"), PathBuf::from);
    write(&folder)?;
    println!("{} has the man pages and completions", folder.display());
    Ok(())
}

/// Writes everything into a folder, which is made.
pub fn write(folder: &Path) -> io::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    create_dir_all(&man)?;
    create_dir_all(&completions)?;
    let command = command();
    let top = Help::of(&command);
    fs::write(man.join("blkpatch.1"), page(&command, &top, &names(&command))?)?;
    for verb in verbs(&command) {
        let others = std::iter::once("blkpatch".to_owned()).chain(names(&command));
        let name = page_name(verb);
        let others: Vec<String> = others.filter(|other| *other != name).collect();
        let mut help = Help::of(verb);
        if help.exit.is_empty() {
            help.exit.clone_from(&top.exit);
        }
        fs::write(man.join(format!("{name}.1")), page(verb, &help, &others)?)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut cli::Cli::command(), "blkpatch", &completions)?;
    }
    Ok(())
}

/// The command line, with what its verbs inherit.
pub fn command() -> Command {
    let mut command = cli::Cli::command();
    command.build();
    command
}

/// The verbs but `help`.
pub fn verbs(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|verb| verb.get_name() != "help" && !verb.is_hide_set())
}

fn names(command: &Command) -> Vec<String> {
    verbs(command).map(page_name).collect()
}

fn page_name(verb: &Command) -> String {
    format!("blkpatch-{}", verb.get_name())
}

/// What stands below the options in the help, by kind; each is a list of paragraphs.
#[derive(Default)]
struct Help {
    notes: Vec<String>,
    exit: Vec<String>,
    examples: Vec<String>,
}

impl Help {
    fn of(command: &Command) -> Self {
        let text = command.get_after_long_help().or_else(|| command.get_after_help());
        let text = text.map(ToString::to_string).unwrap_or_default();
        let mut help = Self::default();
        for part in text.split("\n\n").filter(|part| !part.trim().is_empty()) {
            let kind = match part {
                _ if part.starts_with("Example") => &mut help.examples,
                _ if part.starts_with("Exit code") => &mut help.exit,
                _ => &mut help.notes,
            };
            let part = part.strip_prefix("Exit codes: ").or_else(|| part.strip_prefix("Exit code: ")).unwrap_or(part);
            kind.push(part.to_owned());
        }
        help
    }
}

/// One man page.
fn page(command: &Command, help: &Help, see: &[String]) -> io::Result<String> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let man = Man::new(command.clone());
    let mut title = Roff::new();
    let (name, source) = (name.to_uppercase(), format!("blkpatch {}", env!("CARGO_PKG_VERSION")));
    // The same program always gives the same pages: they carry no date.
    title.control("TH", [name.as_str(), "1", "\"\"", &source, "User Commands"]);
    let mut page = title.render().into_bytes();
    let mut section = |render: &dyn Fn(&mut Vec<u8>) -> io::Result<()>| -> io::Result<()> {
        let mut text = Vec::new();
        render(&mut text)?;
        page.extend_from_slice(without_preamble(&text));
        Ok(())
    };
    section(&|w| man.render_name_section(w))?;
    section(&|w| man.render_synopsis_section(w))?;
    section(&|w| man.render_description_section(w))?;
    section(&|w| paragraphs(None, &help.notes).to_writer(w))?;
    section(&|w| man.render_options_section(w))?;
    if verbs(command).next().is_some() {
        section(&|w| man.render_subcommands_section(w))?;
    }
    section(&|w| paragraphs(Some("EXIT STATUS"), &help.exit).to_writer(w))?;
    section(&|w| paragraphs(Some("EXAMPLES"), &help.examples).to_writer(w))?;
    section(&|w| see_also(see).to_writer(w))?;
    // The space before a list of values, in the one way that every checker accepts.
    Ok(String::from_utf8_lossy(&page).replace(".br\n\n.br\n", ".sp\n"))
}

/// Every section that roff renders begins with the same two lines, which a page needs once.
fn without_preamble(text: &[u8]) -> &[u8] {
    let empty = Roff::new().render();
    text.strip_prefix(empty.as_bytes()).unwrap_or(text)
}

/// Paragraphs of the help: commands, which are indented there, stay as they are; all else is filled.
fn paragraphs(title: Option<&str>, paragraphs: &[String]) -> Roff {
    let mut roff = Roff::new();
    if let (Some(title), false) = (title, paragraphs.is_empty()) {
        roff.control("SH", [title]);
    }
    for (i, paragraph) in paragraphs.iter().enumerate() {
        if title.is_none() || i > 0 {
            roff.control("PP", []);
        }
        // The headings of the page say it.
        let lines = paragraph.lines().filter(|line| !matches!(*line, "Example:" | "Examples:"));
        let mut indented = false;
        for line in lines {
            let command = line.starts_with(' ');
            if command != indented {
                roff.control(if command { "RS" } else { "fi" }, if command { &["4"][..] } else { &[] }.iter().copied());
                roff.control(if command { "nf" } else { "RE" }, []);
                indented = command;
            }
            roff.text([roman(line.trim())]);
        }
        if indented {
            roff.control("fi", []).control("RE", []);
        }
    }
    roff
}

fn see_also(names: &[String]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    for (i, name) in names.iter().enumerate() {
        let comma = if i + 1 < names.len() { "," } else { "" };
        roff.text([bold(name), roman(format!("(1){comma}"))]);
    }
    roff
}
