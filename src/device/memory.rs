//! A device in memory, for tests of the library and of its users.

use super::{Device, DeviceError};
use std::io;
use std::sync::{Mutex, PoisonError};

/// A device that is a vector of bytes; every sync is a no-op and every write durable.
#[derive(Debug, Default)]
pub struct MemoryDevice {
    bytes: Mutex<Vec<u8>>,
    resizable: bool,
}

impl MemoryDevice {
    /// A device that holds `bytes`; `resizable` makes it behave as a regular file.
    #[must_use]
    pub fn new(bytes: Vec<u8>, resizable: bool) -> Self {
        Self { bytes: Mutex::new(bytes), resizable }
    }

    /// What the device holds.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outside(operation: &'static str, offset: u64, len: usize) -> DeviceError {
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        DeviceError { operation, name: "memory".into(), offset, len: len as u64, source }
    }
}

/// The index range of `[offset, offset + len)` if it lies within `size` bytes.
fn range(offset: u64, len: usize, size: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(len)?;
    (end <= size).then_some(start..end)
}

impl Device for MemoryDevice {
    fn name(&self) -> String {
        "memory".into()
    }

    fn len(&self) -> u64 {
        self.lock().len() as u64
    }

    fn resizable(&self) -> bool {
        self.resizable
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        let size = usize::try_from(len).map_err(|_| Self::outside("resizing", len, 0))?;
        self.lock().resize(size, 0);
        Ok(())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let bytes = self.lock();
        let at =
            range(offset, buffer.len(), bytes.len()).ok_or_else(|| Self::outside("reading", offset, buffer.len()))?;
        buffer.copy_from_slice(&bytes[at]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut bytes = self.lock();
        if let Some(end) = usize::try_from(offset).ok().and_then(|start| start.checked_add(data.len()))
            && self.resizable
            && end > bytes.len()
        {
            bytes.resize(end, 0);
        }
        let at = range(offset, data.len(), bytes.len()).ok_or_else(|| Self::outside("writing", offset, data.len()))?;
        bytes[at].copy_from_slice(data);
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let size = usize::try_from(len).map_err(|_| Self::outside("writing", offset, 0))?;
        self.write(offset, &vec![0; size])
    }

    fn sync(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
