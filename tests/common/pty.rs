//! The built binary at a terminal: a pseudo-terminal whose other side is the test.

use super::{Out, command};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A program at a terminal of 80 columns.
#[derive(Debug)]
pub struct AtTerminal {
    child: Child,
    terminal: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl AtTerminal {
    /// Starts the built binary with standard input and error, but not output, at a terminal; with some variables.
    pub fn start(args: &[&dyn AsRef<OsStr>], variables: &[(&str, &str)]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&terminal).expect("a pseudo-terminal");
        unlockpt(&terminal).expect("a pseudo-terminal");
        let name = OsString::from_vec(ptsname(&terminal, Vec::new()).expect("its name").into_bytes());
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).expect("the terminal's size");
        let end = || OpenOptions::new().read(true).write(true).open(&name).expect("the program's side");
        let mut command = command(args);
        command.env("TERM", "xterm").env_remove("NO_COLOR").envs(variables.iter().copied());
        let child = command.stdin(end()).stderr(end()).stdout(Stdio::piped()).spawn().expect("starting blkpatch");
        drop(command); // it holds the program's side open
        let terminal = File::from(terminal);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut source, sink) = (terminal.try_clone().expect("the terminal"), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Fails when the program has closed its side.
            while let Ok(len) = source.read(&mut buffer) {
                sink.lock().expect("what was seen").extend_from_slice(&buffer[..len]);
            }
        });
        Self { child, terminal, seen }
    }

    /// All that has appeared so far.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("what was seen")).into_owned()
    }

    /// Waits until `text` has appeared, at most a minute.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.seen().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} does not appear:\n{}", self.seen());
            sleep(Duration::from_millis(5));
        }
    }

    /// Types something.
    pub fn type_in(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("typing");
    }

    /// The program, to send it signals.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the end; what appeared is the result's `err`.
    #[track_caller]
    pub fn finish(self) -> Out {
        let Self { child, terminal, seen } = self;
        let said = super::finish(child, "blkpatch at a terminal");
        // What the program wrote last may still be on its way.
        let mut last = usize::MAX;
        loop {
            let len = seen.lock().expect("what was seen").len();
            if len == last {
                break;
            }
            last = len;
            sleep(Duration::from_millis(50));
        }
        drop(terminal);
        let err = String::from_utf8_lossy(&seen.lock().expect("what was seen")).into_owned();
        Out { err, ..said }
    }
}
