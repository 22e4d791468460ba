//! The only place that touches storage that is patched.
//!
//! [`Device`] is the contract; [`FileTarget`] and [`BlockTarget`] are the real ones, [`MemoryDevice`] is for tests.
//! What the walk assumes of a medium (spec, chapter 7): a completed sync is durable; before it, any subset of the
//! 512-byte sectors written may have landed; sectors that are not being written do not change.

mod block;
mod buffer;
mod file;
mod loops;
mod memory;
mod open;
mod overlap;
mod place;
mod reread;
mod same;
pub mod table;
mod users;

pub use block::BlockTarget;
pub use buffer::AlignedBuffer;
pub use file::FileTarget;
pub use memory::MemoryDevice;
pub use open::{Access, OpenError, open_target};
pub use overlap::share_bytes;
pub use place::{Known, PartOf, Place};
pub use same::shared_storage;

use std::io;

/// A failed operation on a device, with everything a person needs to find the place.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {name} failed{}: {source}", self.place())]
pub struct DeviceError {
    /// What was done: `reading`, `writing`, `syncing`, …
    pub operation: &'static str,
    /// The device or file.
    pub name: String,
    /// Byte offset; for `resizing` the length wanted.
    pub offset: u64,
    /// Bytes; 0 for what has no place, such as a sync.
    pub len: u64,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

/// [`DeviceError::operation`] where it was not the device that failed.
const NO_THREAD: &str = "starting a thread for";

impl DeviceError {
    /// Where it happened; a sync, for one, has no place.
    fn place(&self) -> String {
        match (self.operation, self.len) {
            ("resizing", _) => format!(" at {} bytes", self.offset),
            (_, 0) => String::new(),
            (_, len) => format!(" at offset {} ({len} bytes)", self.offset),
        }
    }

    /// What to do before trying again.
    pub(crate) fn advice(&self) -> &'static str {
        match () {
            () if self.is_full() => "Make room on the file system that it lies on",
            () if self.operation == NO_THREAD => "End other programs, or raise the limit ('ulimit -u')",
            () => "Check the medium and its cable ('dmesg' may tell more)",
        }
    }

    /// Whether there was no room.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// The system does not let a thread be started that is to work on the device.
    pub(crate) fn no_thread(device: &dyn Device, source: io::Error) -> Self {
        Self { operation: NO_THREAD, name: device.name(), offset: 0, len: 0, source }
    }
}

/// Storage that holds an image: a block device, a file, or memory.
///
/// All methods take `&self`: reads and writes of several threads may overlap each other, in different blocks. While a
/// sync is under way, nobody writes.
pub trait Device: Send + Sync {
    /// The name used in messages.
    fn name(&self) -> String;

    /// Bytes that can be read and written now.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`Device::set_len`] works: regular files.
    fn resizable(&self) -> bool {
        false
    }

    /// Sets the length; new bytes read as zeros.
    ///
    /// # Errors
    /// Where the length is fixed, or the system refuses.
    fn set_len(&self, len: u64) -> Result<(), DeviceError>;

    /// Fills `buffer` from `offset`, whole: short reads are continued, reading past the end is an error.
    ///
    /// # Errors
    /// The first offset that could not be read.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes all of `data` at `offset`: short writes are continued. A target that can be resized grows as needed.
    ///
    /// # Errors
    /// The first offset that may not have been written.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Makes `len` bytes from `offset` read as zeros, in the cheapest way that guarantees it (never a bare discard).
    ///
    /// # Errors
    /// As [`Device::write`].
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError>;

    /// Makes sure that writing `len` bytes from `offset` cannot run out of space half-way, where the target is sparse.
    ///
    /// # Errors
    /// Where there is not enough space. What was reserved so far stays so until [`Device::unreserve`].
    fn reserve(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let _ = (offset, len);
        Ok(())
    }

    /// Gives back the space that [`Device::reserve`] took, while nothing has been written to it.
    fn unreserve(&self) {}

    /// Whether it is known without reading that `len` bytes from `offset` are zeros.
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }

    /// Returns when everything written before is durable. An error is final: the system may report it only once,
    /// so a later success proves nothing.
    ///
    /// # Errors
    /// Where durability cannot be vouched for.
    fn sync(&self) -> Result<(), DeviceError>;

    /// Makes later reads come from the medium, as far as the system allows.
    ///
    /// # Errors
    /// Where the system refuses.
    fn forget_cache(&self) -> Result<(), DeviceError>;

    /// For a block device: what the system tells of it.
    fn place(&self) -> Option<&Place> {
        None
    }

    /// For a partition: the disk that it is a partition of, to look at, where it can be opened.
    fn whole_disk(&self) -> Option<&dyn Device> {
        None
    }

    /// Makes the system read the partition table of a whole disk again, if the device can have partitions.
    ///
    /// # Errors
    /// The system's, such as a partition that is in use.
    fn reread_partitions(&self) -> io::Result<()> {
        Ok(())
    }

    /// What a user should know about this target before it is written, for example a misaligned partition.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Zero bytes to write where the system offers nothing cheaper.
pub(crate) static ZEROS: [u8; 65536] = [0; 65536];
