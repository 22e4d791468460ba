//! A block device as the target. All I/O is O_DIRECT, so that what is read is what the medium holds: after a failed
//! writeback Linux shows cached data that never reached it, and reports the failure once.

use super::buffer::{ALIGN, AlignedBuffer, is_aligned};
use super::file::{read_all, write_all};
use super::reread::reread_partitions;
use super::{Device, DeviceError, Place, ZEROS};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes moved at once through a bounce buffer.
const BOUNCE: usize = 1 << 20;

/// A block device, opened with O_DIRECT.
#[derive(Debug)]
pub struct BlockTarget {
    file: File,
    path: PathBuf,
    len: u64,
    /// Logical block size: the smallest unit the device reads or writes, 512 or 4096 bytes in practice.
    sector: u64,
    place: Place,
    /// For a partition: the disk, open and locked as long as this lives.
    disk: Option<Box<BlockTarget>>,
}

impl BlockTarget {
    /// Wraps an open device of `len` bytes, more of which are never used, at `place`.
    #[must_use]
    pub fn new(file: File, path: &Path, len: u64, place: Place) -> Self {
        let sector = place.sector.clamp(512, ALIGN as u64);
        Self { file, path: path.to_owned(), len, sector, place, disk: None }
    }

    /// Keeps the disk open, and with it its lock, as long as the partition is.
    #[must_use]
    pub fn holding(self, disk: Option<Self>) -> Self {
        Self { disk: disk.map(Box::new), ..self }
    }

    fn error(&self, operation: &'static str, offset: u64, len: u64, source: io::Error) -> DeviceError {
        DeviceError { operation, name: self.name(), offset, len, source }
    }

    fn fits(&self, operation: &'static str, offset: u64, len: u64) -> Result<(), DeviceError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.error(operation, offset, len, io::Error::other("outside the device"))),
        }
    }

    fn whole_sectors(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.sector) && len.is_multiple_of(self.sector)
    }

    /// The part of `[offset, end)` that one bounce moves: the window in whole sectors and where the data lies in it.
    fn window(&self, offset: u64, end: u64) -> (u64, usize, usize, usize) {
        let first = offset - offset % self.sector;
        let last = end.next_multiple_of(self.sector).min(first + BOUNCE as u64);
        let skip = (offset - first) as usize;
        let take = (end.min(last) - offset) as usize;
        (first, (last - first) as usize, skip, take)
    }
}

impl Device for BlockTarget {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> u64 {
        // Asked anew: a device can shrink under its user, or go away.
        (&self.file).seek(SeekFrom::End(0)).unwrap_or(0).min(self.len)
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        Err(self.error("resizing", len, 0, io::Error::from(io::ErrorKind::Unsupported)))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let len = buffer.len() as u64;
        self.fits("reading", offset, len)?;
        if self.whole_sectors(offset, len) && is_aligned(buffer) {
            return read_all(&self.file, offset, buffer)
                .map_err(|(done, e)| self.error("reading", offset + done, len - done, e));
        }
        let mut bounce = AlignedBuffer::new(BOUNCE.min(len as usize + 2 * ALIGN));
        let mut done = 0;
        while done < buffer.len() {
            let (first, size, skip, take) = self.window(offset + done as u64, offset + len);
            bounce.resize(size);
            read_all(&self.file, first, &mut bounce)
                .map_err(|(n, e)| self.error("reading", first + n, size as u64, e))?;
            buffer[done..done + take].copy_from_slice(&bounce[skip..skip + take]);
            done += take;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let len = data.len() as u64;
        self.fits("writing", offset, len)?;
        if self.whole_sectors(offset, len) && is_aligned(data) {
            return write_all(&self.file, offset, data)
                .map_err(|(done, e)| self.error("writing", offset + done, len - done, e));
        }
        let mut bounce = AlignedBuffer::new(BOUNCE.min(len as usize + 2 * ALIGN));
        let mut done = 0;
        while done < data.len() {
            let (first, size, skip, take) = self.window(offset + done as u64, offset + len);
            bounce.resize(size);
            if skip != 0 || take != size {
                // A sector that the image fills only in part, at the image's end: the rest of it stays as it is.
                let failed = |(n, e)| self.error("reading", first + n, size as u64, e);
                read_all(&self.file, first, &mut bounce).map_err(failed)?;
            }
            bounce[skip..skip + take].copy_from_slice(&data[done..done + take]);
            write_all(&self.file, first, &bounce).map_err(|(n, e)| self.error("writing", first + n, size as u64, e))?;
            done += take;
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.fits("writing", offset, len)?;
        let whole = len - len % self.sector;
        let mut at = offset;
        // On a block device the kernel turns ZERO_RANGE into BLKZEROOUT, which guarantees zeros, never a bare discard.
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if whole > 0
            && offset.is_multiple_of(self.sector)
            && rustix::fs::fallocate(&self.file, flags, offset, whole).is_ok()
        {
            at += whole;
        }
        while at < offset + len {
            let n = (offset + len - at).min(ZEROS.len() as u64);
            self.write(at, &ZEROS[..n as usize])?;
            at += n;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.file.sync_all().map_err(|e| self.error("syncing", 0, 0, e))
    }

    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(()) // O_DIRECT: there is none
    }

    fn place(&self) -> Option<&Place> {
        Some(&self.place)
    }

    fn whole_disk(&self) -> Option<&dyn Device> {
        self.disk.as_deref().map(|disk| disk as &dyn Device)
    }

    fn reread_partitions(&self) -> io::Result<()> {
        match reread_partitions(&self.file) {
            // A partition, or a device that has none, such as most loop devices.
            Ok(()) | Err(Errno::INVAL | Errno::NOTTY) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn warnings(&self) -> Vec<String> {
        match self.place.part_of.as_ref().map(|part| part.start) {
            Some(start) if !start.is_multiple_of(4096) => vec![format!(
                "{} starts at byte {start} of its disk, which is not a multiple of 4096: slower, and a power cut may \
                 tear a physical sector across two blocks",
                self.name()
            )],
            _ => Vec::new(),
        }
    }
}
