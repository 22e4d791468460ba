//! Images on the build machine: mapped files or block devices, read-only, with their holes known.

use crate::error::Error;
use crate::qcow2::chain::Base;
use crate::units::PART;
use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::SeekFrom as HoleSeek;
use std::fs::{File, Metadata};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A mapped image.
#[derive(Debug, Default)]
pub struct Image {
    map: Option<Mmap>,
    data: Vec<Range<u64>>,
    /// Length, modification and change time when it was opened; for regular files.
    stamp: Option<Stamp>,
    /// What it is a map of, if that is one file or device.
    identity: Option<Identity>,
    /// The ranges that show another file or device at equal offsets: ascending.
    base: Option<(Identity, Vec<Range<u64>>)>,
    /// Of a file that this process has made: how much room it takes, and how much more if all of it were read on a file
    /// system that fills holes then.
    room: Room,
    /// All the files that it is made from, where it is no map of one.
    watched: Vec<(PathBuf, Stamp)>,
}

/// Room on a disk, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    /// What a file takes.
    pub taken: u64,
    /// What its holes would take.
    pub holes: u64,
}

/// What tells a file or a device from others.
type Identity = (bool, u64, u64);

fn identity(meta: &Metadata) -> Identity {
    if meta.file_type().is_block_device() { (true, meta.rdev(), 0) } else { (false, meta.dev(), meta.ino()) }
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
        if !self.watched.is_empty() {
            return Some(self.watched.iter().any(|(path, then)| stamp(path) != Some(*then)));
        }
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
        let identity = Some(identity(&file.metadata().map_err(Error::io("read", path))?));
        let len = file.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
        if len == 0 {
            return Ok(Self { stamp, identity, ..Self::default() });
        }
        let map = map(&file, len).map_err(Error::io("map", path))?;
        let _ = map.advise(Advice::Sequential); // only a hint
        let data = if kind.is_file() { data_ranges(&file, len) } else { vec![0..len] };
        Ok(Self { map: Some(map), data, stamp, identity, ..Self::default() })
    }

    /// Maps a file that this process has made.
    ///
    /// # Errors
    /// The system's.
    pub fn of_file(file: File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        let (len, taken) = (meta.len(), meta.blocks().saturating_mul(512));
        let room = Room { taken, holes: len.saturating_sub(taken) };
        let map = if len == 0 { None } else { Some(map(&file, len)?) };
        Ok(Self { map, data: data_ranges(&file, len), room, ..Self::default() })
    }

    /// Shows the base of an overlay in these ranges, which are holes of this image, ascending, and lie within both;
    /// where they start is a multiple of [`PART`].
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn with_base(mut self, base: &Base, ranges: Vec<Range<u64>>) -> std::io::Result<Self> {
        for range in &ranges {
            let map = self.map.as_mut().ok_or(std::io::ErrorKind::InvalidInput)?;
            map_over(map, &base.file, range)?;
            self.room.holes = self.room.holes.saturating_sub(range.end - range.start);
            let first = base.data.partition_point(|data| data.end <= range.start);
            let data = base.data[first..].iter().take_while(|data| data.start < range.end);
            self.data.extend(data.map(|data| data.start.max(range.start)..data.end.min(range.end)));
        }
        self.data.sort_unstable_by_key(|data| data.start);
        self.base = Some((identity(&base.member.meta), ranges));
        Ok(self)
    }

    /// Makes [`Image::changed_since`] look at these files. Devices cannot tell.
    pub(crate) fn watching<'a>(mut self, files: impl Iterator<Item = (&'a Path, Option<Stamp>)>) -> Self {
        self.watched = files.filter_map(|(path, stamp)| Some((path.to_owned(), stamp?))).collect();
        self
    }

    /// The files that it is made from, where it is no map of one.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.watched.iter().map(|(path, _)| path.as_path())
    }

    /// Room that it takes, and would take, where this process has made the file.
    pub(crate) fn room(&self) -> Room {
        self.room
    }

    /// The ranges in which this image shows the other one, at equal offsets: ascending.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> &[Range<u64>] {
        match &self.base {
            Some((base, ranges)) if Some(*base) == other.identity => ranges,
            _ => &[],
        }
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

/// Puts a range of a file in the place of the same range of a map.
#[allow(unsafe_code)]
fn map_over(map: &mut Mmap, file: &File, range: &Range<u64>) -> std::io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags};
    let start = usize::try_from(range.start).ok().filter(|start| start.is_multiple_of(PART as usize));
    let end = usize::try_from(range.end).ok().filter(|end| *end <= map.len());
    let (Some(start), Some(end)) = (start, end) else { return Err(std::io::ErrorKind::InvalidInput.into()) };
    let len = end.checked_sub(start).filter(|len| *len > 0).ok_or(std::io::ErrorKind::InvalidInput)?;
    let place = map.as_ptr().wrapping_add(start).cast_mut().cast();
    // SAFETY: the pages that are replaced lie within `map`: it starts at a page, `start` is a multiple of every page size,
    // and `end`, rounded up to a page, is within the last page of `map` at the most. `&mut` says that nobody has a
    // reference to its bytes. What replaces them is readable and not writable like them, and is unmapped with them, as
    // `Mmap` unmaps all of its addresses. Of the files the same holds as in `map`. What was measured: unpacking the overlay
    // of an 8 GiB disk need not copy the disk.
    unsafe {
        rustix::mm::mmap(place, len, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, range.start)?;
    }
    Ok(())
}

/// The ranges of a file that are not holes, as SEEK_DATA and SEEK_HOLE tell; all of it where they do not work.
pub(crate) fn data_ranges(file: &File, len: u64) -> Vec<Range<u64>> {
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
