//! Images on the build machine: mapped files or block devices, read-only, with their holes known.

use crate::error::Error;
use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::SeekFrom as HoleSeek;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A mapped image.
#[derive(Debug)]
pub struct Image {
    map: Option<Mmap>,
    data: Vec<Range<u64>>,
    /// Length, modification and change time when it was opened; for regular files.
    stamp: Option<Stamp>,
}

/// Length, modification and change time (seconds, nanoseconds).
pub(crate) type Stamp = (u64, (i64, i64), (i64, i64));

/// What tells whether a regular file is written; `None` for anything else.
pub(crate) fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    let times = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    meta.is_file().then_some((meta.len(), times.0, times.1))
}

impl Image {
    /// Whether the file has been written since it was opened. `None`: devices cannot tell.
    #[must_use]
    pub fn changed_since(&self, path: &Path) -> Option<bool> {
        self.stamp.map(|then| Some(then) != stamp(path))
    }

    /// Maps a regular file or a block device.
    ///
    /// # Errors
    /// Where it cannot be read, or is neither.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let kind = storage_kind(path)?;
        let stamp = stamp(path);
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let len = file.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
        if len == 0 {
            return Ok(Self { map: None, data: Vec::new(), stamp });
        }
        let map = map(&file, len).map_err(Error::io("map", path))?;
        let _ = map.advise(Advice::Sequential); // only a hint
        let data = if kind.is_file() { data_ranges(&file, len) } else { vec![0..len] };
        Ok(Self { map: Some(map), data, stamp })
    }

    /// Maps a file that this process has made.
    ///
    /// # Errors
    /// The system's.
    pub fn of_file(file: File) -> std::io::Result<Self> {
        let len = file.metadata()?.len();
        let map = if len == 0 { None } else { Some(map(&file, len)?) };
        Ok(Self { map, data: data_ranges(&file, len), stamp: None })
    }

    /// All bytes; reading a hole yields zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// The ranges that are not holes: ascending, disjoint.
    #[must_use]
    pub fn data(&self) -> &[Range<u64>] {
        &self.data
    }
}

/// What kind of thing a path is, if its content can be read at any place. Asked before it is opened: opening a pipe
/// would wait for somebody to write into it.
///
/// # Errors
/// Where there is nothing, or something else.
pub(crate) fn storage_kind(path: &Path) -> Result<std::fs::FileType, Error> {
    let kind = std::fs::metadata(path).map_err(Error::io("open", path))?.file_type();
    let why = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(kind),
        () if kind.is_dir() => "is a directory, not a file or a block device",
        () if kind.is_fifo() => "is a pipe, not a file or a block device",
        () => "is neither a file nor a block device",
    };
    Err(Error::Unusable { path: path.to_owned(), why })
}

#[allow(unsafe_code)]
fn map(file: &File, len: u64) -> std::io::Result<Mmap> {
    let len = usize::try_from(len).map_err(|_| std::io::Error::other("too large to map on this machine"))?;
    // SAFETY: the map is read-only and private to this process. If another process changes the file meanwhile, the bytes
    // seen may change; nothing here relies on reading the same byte twice for memory safety, and `diff` throws the delta
    // away if a file was written meanwhile. A truncated file raises SIGBUS, which ends `diff` before a delta appears. Measured:
    // mapping lets both cores compare 8 GiB without copying, and the kernel drops the pages when memory is short.
    unsafe { MmapOptions::new().len(len).map(file) }
}

/// The ranges of a file that are not holes, as SEEK_DATA and SEEK_HOLE tell; all of it where they do not work.
fn data_ranges(file: &File, len: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, HoleSeek::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break, // only a hole is left
            Err(_) => at,
        };
        let end = rustix::fs::seek(file, HoleSeek::Hole(start)).unwrap_or(len).min(len);
        if start >= end {
            ranges.push(start.min(len)..len);
            break;
        }
        ranges.push(start..end);
        at = end;
    }
    ranges
}
