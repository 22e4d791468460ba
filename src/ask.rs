//! The question before a device is written.

use blkpatch::monitor::Intent;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Shows what is about to be done, and asks. Anything but `y` or `yes` means no, also the end of the input, and `stop`.
pub fn confirm(intent: &Intent, stop: &AtomicBool) -> bool {
    let mut err = std::io::stderr();
    let _ = write!(err, "{}\nWrite to {}? [y/N] ", described(intent), intent.target);
    let _ = err.flush();
    let answer = answer(stop);
    if answer.is_none() {
        let _ = writeln!(err); // the cursor stands behind the question
    }
    answer.is_some_and(|answer| matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// The facts, one a line, in two columns.
fn described(intent: &Intent) -> String {
    let mut text = String::new();
    for (name, fact) in &intent.facts {
        let _ = writeln!(text, "  {name:<8}  {fact}"); // writing to a string does not fail
    }
    text
}

/// A line from standard input; `None` at its end, or when `stop` comes. A signal alone would not end a read.
fn answer(stop: &AtomicBool) -> Option<String> {
    const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let input = std::io::stdin();
    loop {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&WAIT)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => break,
            Err(_) => return None,
        }
    }
    let mut line = String::new();
    input.lock().read_line(&mut line).ok().filter(|len| *len > 0).map(|_| line)
}
