//! The terminal: where notes go, who is asked, and what is known of the run.

use crate::ask;
use crate::report::complain;
use blkpatch::monitor::{Intent, Monitor};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal.
#[derive(Debug)]
pub struct Terminal {
    quiet: bool,
    /// Whether to ask before a device is written: only where somebody can answer.
    asks: bool,
    /// Whether the target is being written.
    writing: Arc<AtomicBool>,
    /// Whether the user wants the run to end.
    stop: Arc<AtomicBool>,
}

impl Terminal {
    /// `quiet` leaves out everything but errors; with `yes` nothing is asked.
    pub fn new(quiet: bool, yes: bool) -> Self {
        let asks = !yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        Self { quiet, asks, writing: Arc::default(), stop: Arc::default() }
    }

    /// Becomes true when the first change to a target is about to be made.
    pub fn writing_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.writing)
    }

    /// To be set when the user wants the run to end.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Writes a line, unless it is to be quiet.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            complain(text);
        }
    }
}

impl Monitor for Terminal {
    fn writing(&self) {
        self.writing.store(true, Ordering::SeqCst);
    }

    fn confirm(&self, intent: &dyn Fn() -> Intent) -> bool {
        !self.asks || ask::confirm(&intent(), &self.stop)
    }

    fn note(&self, text: &str) {
        self.say(&format!("note: {text}"));
    }
}
