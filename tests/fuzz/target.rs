//! The device that a mutant is applied to: it knows what may be written.

use blkpatch::device::{Device, DeviceError, MemoryDevice};
use std::io;

/// Beyond this a file cannot grow: the disk is full.
const FULL: u64 = 32 << 20;

/// A device in memory that panics where a patcher must never write.
pub struct Target {
    inner: MemoryDevice,
    /// No write may reach further: the new image's length.
    end: u64,
    /// Nothing may be written before this.
    begun: std::sync::atomic::AtomicBool,
}

impl Target {
    pub fn new(content: Vec<u8>, resizable: bool, end: u64) -> Self {
        Self { inner: MemoryDevice::new(content, resizable), end, begun: false.into() }
    }

    pub fn contents(&self) -> Vec<u8> {
        self.inner.contents()
    }

    /// Whether anything was changed.
    pub fn was_written(&self) -> bool {
        self.begun.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn change(&self) {
        self.begun.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Device for Target {
    fn name(&self) -> String {
        "the target".into()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn resizable(&self) -> bool {
        self.inner.resizable()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        if len > FULL {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(DeviceError { operation: "resizing", name: self.name(), offset: len, len: 0, source });
        }
        self.change();
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let end = offset.checked_add(data.len() as u64).expect("a write beyond 2^64");
        assert!(end <= self.end, "a write of [{offset}, {end}) outside the image of {} bytes", self.end);
        self.change();
        self.inner.write(offset, data)
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let end = offset.checked_add(len).expect("a write beyond 2^64");
        assert!(end <= self.end, "zeros to [{offset}, {end}) outside the image of {} bytes", self.end);
        self.change();
        self.inner.write_zeros(offset, len)
    }
    fn sync(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
