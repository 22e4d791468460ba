//! Whether a target that no batch shows as begun was written to all the same: a power cut in the midst of the first batch
//! leaves single blocks that are new already.

use crate::apply::WalkError;
use crate::blockset::BlockSet;
use crate::delta::batch::BatchKind;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::digest::is_zero;
use crate::monitor::Silent;
use crate::patch::Opened;
use crate::slot::build::{Materials, make_batches};
use crate::slot::canvas::Canvas;
use crate::units::{BLOCK, Extent, PART};
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

/// A target to which nothing is written: what would be is noted.
struct Untouchable<'a> {
    device: &'a dyn Device,
    missing: Mutex<BlockSet>,
}

impl Untouchable<'_> {
    fn note(&self, offset: u64, len: u64) {
        let extent = Extent { start: offset / BLOCK, count: len.div_ceil(BLOCK) };
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(extent);
    }
}

impl Device for Untouchable<'_> {
    fn name(&self) -> String {
        self.device.name()
    }

    fn len(&self) -> u64 {
        self.device.len()
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        let source = io::Error::from(io::ErrorKind::Unsupported);
        Err(DeviceError { operation: "resizing", name: self.name(), offset: len, len: 0, source })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.note(offset, data.len() as u64);
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.note(offset, len);
        Ok(())
    }

    fn sync(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn forget_cache(&self) -> Result<(), DeviceError> {
        self.device.forget_cache()
    }
}

/// Whether any block that the delta changes is new already, zeros apart. The old image must be known (only then every
/// block of a data batch changes), and no batch done, so that all sources are at home.
pub(crate) fn has_traces(device: &dyn Device, opened: &Opened, stop: &AtomicBool) -> Result<bool, WalkError> {
    let Opened { delta, order } = opened;
    let untouchable = Untouchable { device, missing: Mutex::default() };
    let from = Materials { old: device, delta, order };
    match make_batches(from, &Canvas::new(&untouchable, &Silent), stop, &Silent) {
        Ok(()) => {}
        // Made from this target, it does not come out right: somebody wrote to it.
        Err(WalkError::WrongResult { .. }) => return Ok(true),
        Err(e) => return Err(e),
    }
    let missing = untouchable.missing.into_inner().unwrap_or_else(PoisonError::into_inner);
    let data = delta.table.batches().iter().filter(|batch| batch.kind == BatchKind::Data);
    let mut buffer = AlignedBuffer::default();
    for extent in data.flat_map(|batch| delta.table.extents(batch)) {
        for (run, _) in missing.runs_in(*extent).filter(|(_, missing)| !missing) {
            let mut bytes = run.bytes(device.len().min(delta.header.new.len));
            while bytes.start < bytes.end {
                buffer.resize((bytes.end - bytes.start).min(PART) as usize);
                device.read(bytes.start, &mut buffer)?;
                if !is_zero(&buffer) {
                    return Ok(true);
                }
                bytes.start += buffer.len() as u64;
            }
        }
    }
    Ok(false)
}
