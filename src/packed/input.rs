//! The compressed bytes, of which a few can be looked at before they are taken.

use std::io::{self, ErrorKind, Read};

/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// A buffered reader that can look ahead, and counts what is taken.
#[derive(Debug)]
pub(super) struct Input<R> {
    reader: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    taken: u64,
    over: bool,
}

impl<R: Read> Input<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; READ], start: 0, end: 0, taken: 0, over: false }
    }

    /// Bytes that were taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next bytes: at least `least`, at most 4 KiB of which can be asked for, and fewer only where the input ends.
    pub fn look(&mut self, least: usize) -> io::Result<&[u8]> {
        while self.end - self.start < least && !self.over {
            if self.buffer.len() - self.start < least {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            } else if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.over = true,
                Ok(n) => self.end += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Takes some of the bytes that were looked at.
    pub fn take(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.taken += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_come_in_order_however_they_are_looked_at() {
        let bytes: Vec<u8> = (0..3 * READ as u32 + 77).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut input = Input::new(&bytes[..]);
        let mut seen = Vec::new();
        for i in 0.. {
            let least = [1, 18, 4096, 7][i % 4];
            let next = input.look(least).unwrap();
            assert!(next.len() >= least.min(bytes.len() - seen.len()));
            let count = next.len().min([1000, 4096, 3, 100_000][i % 4]);
            seen.extend_from_slice(&next[..count]);
            input.take(count);
            assert_eq!(input.taken(), seen.len() as u64);
            if count == 0 {
                break;
            }
        }
        assert!(seen == bytes);
    }
}
