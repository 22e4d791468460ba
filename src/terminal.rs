//! The terminal: where notes go, who is asked, and what is known of the run.

use crate::ask;
use crate::cli::{Cli, ProgressArg};
use crate::json::{Failure, document};
use crate::progress::{Progress, Style};
use crate::report::{complain, print};
use blkpatch::error::Error;
use blkpatch::monitor::{Intent, Monitor};
use serde::Serialize;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The terminal.
#[derive(Debug)]
pub struct Terminal {
    quiet: bool,
    /// Whether standard output gets JSON.
    json: bool,
    /// Whether standard error gets nothing but lines of JSON.
    json_lines: bool,
    verb: &'static str,
    /// What the user should know.
    notes: Mutex<Vec<String>>,
    /// Whether to ask before a device is written: only where somebody can answer.
    asks: bool,
    /// Whether the target is being written.
    writing: Arc<AtomicBool>,
    /// Whether the user wants the run to end.
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
}

impl Terminal {
    /// As the command line wants it.
    pub fn new(cli: &Cli) -> Self {
        let asks = !cli.verb.yes() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        let progress = Arc::new(Progress::new(style(cli)));
        Self {
            quiet: cli.quiet,
            json: cli.json,
            json_lines: cli.progress == ProgressArg::Json,
            verb: cli.verb.name(),
            notes: Mutex::default(),
            asks,
            writing: Arc::default(),
            stop: Arc::default(),
            progress,
        }
    }

    /// Ends the showing of progress: the work is done, `result` is what came of it.
    pub fn after<T>(&self, result: T) -> T {
        self.progress.finish();
        result
    }

    /// Becomes true when the first change to a target is about to be made.
    pub fn writing_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.writing)
    }

    /// To be set when the user wants the run to end.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Says what came of a run: in words on standard error, unless it is to be quiet; where scripts listen, `rest`
    /// as JSON on standard output.
    ///
    /// # Errors
    /// Where that cannot be written.
    pub fn result(&self, exit_code: u8, rest: impl Serialize, text: &str) -> Result<(), Error> {
        if self.json {
            let text = document(self.verb, exit_code, &self.notes(), rest);
            return self.print(&text);
        }
        if !self.quiet && !self.json_lines {
            self.progress.aside(|| complain(text));
        }
        Ok(())
    }

    /// Writes data to standard output.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn print(&self, text: &str) -> Result<(), Error> {
        print(text).map_err(|source| Error::Unsaid { source, written: self.writing.load(Ordering::SeqCst) })
    }

    /// Whether standard output gets JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Says why a run failed.
    pub fn failure(&self, exit_code: u8, failure: &Failure) {
        self.progress.abandon();
        if self.json_lines {
            line("error", failure.error());
        } else {
            complain(&format!("blkpatch: {}", failure.message()));
        }
        if self.json {
            // Where that fails, the exit code and the message tell.
            let _ = print(&document(self.verb, exit_code, &self.notes(), failure));
        }
    }

    fn notes(&self) -> MutexGuard<'_, Vec<String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line of JSON on standard error.
fn line(kind: &str, rest: impl Serialize) {
    #[derive(Serialize)]
    struct Line<'a, T> {
        #[serde(rename = "type")]
        kind: &'a str,
        #[serde(flatten)]
        rest: T,
    }
    if let Ok(text) = serde_json::to_string(&Line { kind, rest }) {
        complain(&text);
    }
}

/// How progress is shown; colour as no-color.org has it.
fn style(cli: &Cli) -> Style {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match cli.progress {
        ProgressArg::Json => Style::Json,
        ProgressArg::None => Style::Nothing,
        _ if cli.quiet => Style::Nothing,
        ProgressArg::Auto if std::io::stderr().is_terminal() && !dumb => Style::Bar { colour: !set("NO_COLOR") },
        ProgressArg::Auto | ProgressArg::Lines => Style::Lines,
    }
}

impl Monitor for Terminal {
    fn phase(&self, name: &'static str, total: u64) {
        self.progress.phase(name, total);
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }

    fn durable(&self) {
        self.progress.durable();
    }

    fn writing(&self) {
        self.writing.store(true, Ordering::SeqCst);
    }

    fn confirm(&self, intent: &dyn Fn() -> Intent) -> bool {
        !self.asks || self.progress.aside(|| ask::confirm(&intent(), &self.stop))
    }

    fn asks(&self) -> bool {
        self.asks
    }

    fn note(&self, text: &str) {
        self.notes().push(text.to_owned());
        if self.json_lines {
            self.progress.aside(|| line("note", serde_json::json!({ "text": text })));
        } else if !self.quiet {
            self.progress.aside(|| complain(&format!("note: {text}")));
        }
    }
}
