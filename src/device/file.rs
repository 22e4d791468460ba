//! A regular file as the target. Reads that check drop the page cache first; that is best effort on files.

use super::{Device, DeviceError, ZEROS};
use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// An image in a regular file.
#[derive(Debug)]
pub struct FileTarget {
    file: File,
    path: PathBuf,
    /// Holes that were reserved.
    reserved: Mutex<Vec<Range<u64>>>,
    /// Whether only this process knows it: what it holds is what was written, and need not come from the medium.
    temporary: bool,
}

impl FileTarget {
    /// Wraps an open file; `path` is for messages.
    #[must_use]
    pub fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_owned(), reserved: Mutex::default(), temporary: false }
    }

    /// The same for a file without a name that this process has made; `path` stands for it.
    pub(crate) fn temporary(file: File, path: &Path) -> Self {
        Self { temporary: true, ..Self::new(file, path) }
    }

    /// The holes of the file among `len` bytes from `offset`.
    fn holes(&self, offset: u64, len: u64) -> Vec<Range<u64>> {
        let (mut at, end, mut holes) = (offset, offset.saturating_add(len), Vec::new());
        while at < end {
            // Fails behind the last data: all the rest is a hole, or behind the end of the file.
            let data = rustix::fs::seek(&self.file, SeekFrom::Data(at)).map_or(end, |data| data.clamp(at, end));
            if data > at {
                holes.push(at..data);
            }
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).map_or(end, |hole| hole.clamp(data, end));
            if at == data && data < end {
                break; // a file system that answers nonsense
            }
        }
        holes
    }

    fn error(&self, operation: &'static str, offset: u64, len: u64, source: io::Error) -> DeviceError {
        DeviceError { operation, name: self.name(), offset, len, source }
    }
}

/// Reads all of `buffer`, continuing after short reads and EINTR. On failure: how many bytes came before it.
pub(super) fn read_all(file: &impl FileExt, offset: u64, buffer: &mut [u8]) -> Result<(), (u64, io::Error)> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err((done as u64, io::Error::new(io::ErrorKind::UnexpectedEof, "the target ends here"))),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((done as u64, e)),
        }
    }
    Ok(())
}

/// Writes all of `data`, continuing after short writes and EINTR. On failure: how many bytes came before it.
pub(super) fn write_all(file: &impl FileExt, offset: u64, data: &[u8]) -> Result<(), (u64, io::Error)> {
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset + done as u64) {
            Ok(0) => {
                return Err((done as u64, io::Error::new(io::ErrorKind::WriteZero, "nothing more can be written")));
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((done as u64, e)),
        }
    }
    Ok(())
}

impl Device for FileTarget {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }

    fn resizable(&self) -> bool {
        true
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.file.set_len(len).map_err(|e| self.error("resizing", len, 0, e))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let len = buffer.len() as u64;
        read_all(&self.file, offset, buffer).map_err(|(done, e)| self.error("reading", offset + done, len - done, e))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let len = data.len() as u64;
        write_all(&self.file, offset, data).map_err(|(done, e)| self.error("writing", offset + done, len - done, e))
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if len == 0 {
            return Ok(());
        }
        // ZERO_RANGE keeps the space reserved, so that later writes cannot run out of it.
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&self.file, flags, offset, len).is_ok() {
            return Ok(());
        }
        let mut at = offset;
        while at < offset + len {
            let n = (offset + len - at).min(ZEROS.len() as u64);
            self.write(at, &ZEROS[..n as usize])?;
            at += n;
        }
        Ok(())
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if let Ok(mut reserved) = self.reserved.lock() {
            reserved.extend(self.holes(offset, len));
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len) {
            Err(e) if matches!(e, Errno::NOSPC | Errno::FBIG | Errno::DQUOT | Errno::IO) => {
                Err(self.error("reserving space in", offset, len, e.into()))
            }
            _ => Ok(()), // file systems without fallocate: the write will tell
        }
    }

    fn unreserve(&self) {
        let ranges = self.reserved.lock().map(|mut ranges| std::mem::take(&mut *ranges)).unwrap_or_default();
        for range in ranges {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // It was a hole: making it one again changes no content, and failing to leaves it reserved.
            let _ = rustix::fs::fallocate(&self.file, flags, range.start, range.end - range.start);
        }
    }

    fn is_hole(&self, offset: u64, len: u64) -> bool {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data >= offset.saturating_add(len),
            Err(e) => e == Errno::NXIO && offset < self.len(), // no data up to the end
        }
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.file.sync_all().map_err(|e| self.error("syncing", 0, 0, e))
    }

    fn forget_cache(&self) -> Result<(), DeviceError> {
        if self.temporary {
            return Ok(());
        }
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)
            .map_err(|e| self.error("dropping the cache of", 0, 0, e.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Storage whose calls are interrupted, move a few bytes at a time, and fail at `broken`.
    struct Sluggish {
        bytes: RefCell<Vec<u8>>,
        calls: RefCell<usize>,
        broken: usize,
    }

    impl Sluggish {
        fn new(len: u8, broken: usize) -> Self {
            Self { bytes: RefCell::new((0..len).collect()), calls: RefCell::new(0), broken }
        }

        /// The index range that this call moves.
        fn piece(&self, want: usize, offset: u64) -> io::Result<std::ops::Range<usize>> {
            *self.calls.borrow_mut() += 1;
            let (calls, at) = (*self.calls.borrow(), offset as usize);
            if !calls.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let end = self.bytes.borrow().len().min(at + want.min(1 + calls % 5));
            if at <= self.broken && self.broken < end {
                return if at == self.broken { Err(io::Error::from_raw_os_error(5)) } else { Ok(at..self.broken) };
            }
            Ok(at..end)
        }
    }

    impl FileExt for Sluggish {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let at = self.piece(buffer.len(), offset)?;
            buffer[..at.len()].copy_from_slice(&self.bytes.borrow()[at.clone()]);
            Ok(at.len())
        }

        fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
            let at = self.piece(data.len(), offset)?;
            self.bytes.borrow_mut()[at.clone()].copy_from_slice(&data[..at.len()]);
            Ok(at.len())
        }
    }

    #[test]
    fn short_and_interrupted_calls_are_continued() {
        let storage = Sluggish::new(100, 1000);
        let mut buffer = [0; 90];
        read_all(&storage, 7, &mut buffer).unwrap();
        assert!(buffer.iter().copied().eq(7..97));
        write_all(&storage, 3, &[0xEE; 80]).unwrap();
        let expected: Vec<u8> = (0..3).chain([0xEE; 80]).chain(83..100).collect();
        assert_eq!(*storage.bytes.borrow(), expected);
    }

    #[test]
    fn a_failure_names_the_first_byte_that_failed() {
        let storage = Sluggish::new(100, 50);
        let (done, e) = read_all(&storage, 7, &mut [0; 90]).unwrap_err();
        assert_eq!((7 + done, e.raw_os_error()), (50, Some(5)));
        let (done, e) = write_all(&storage, 7, &[0xEE; 90]).unwrap_err();
        assert_eq!((7 + done, e.raw_os_error()), (50, Some(5)));
        let written = storage.bytes.borrow().iter().filter(|byte| **byte == 0xEE).count();
        assert_eq!(written, 43, "all before the failure, and nothing behind it");
    }

    #[test]
    fn an_end_that_comes_too_soon_is_an_error() {
        let storage = Sluggish::new(100, 1000);
        let (done, e) = read_all(&storage, 90, &mut [0; 20]).unwrap_err();
        assert_eq!((done, e.kind()), (10, io::ErrorKind::UnexpectedEof));
        let (done, e) = write_all(&storage, 90, &[1; 20]).unwrap_err();
        assert_eq!((done, e.kind()), (10, io::ErrorKind::WriteZero));
    }
}
