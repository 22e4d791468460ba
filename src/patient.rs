//! A pipe that is read only while nobody wants to stop: a signal alone would not end a read that waits.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, Read};

/// The reading was given up.
#[derive(Debug, thiserror::Error)]
#[error("asked to stop")]
pub(crate) struct Over;

/// A pipe or a file, of which no read waits longer than the user, or a failure elsewhere, lets it.
pub(crate) struct Patient<F> {
    pub file: File,
    /// Whether to give up.
    pub is_over: F,
}

impl<F: Fn() -> bool> Read for Patient<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        loop {
            if (self.is_over)() {
                return Err(io::Error::other(Over));
            }
            let mut files = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut files, Some(&WAIT)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                _ => return self.file.read(buffer), // where waiting fails, reading will tell why
            }
        }
    }
}
