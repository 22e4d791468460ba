//! Media that lie: they return other bytes than before, or other bytes than were written.

use crate::errors::assert_row;
use crate::{BLOCK, delta_of, noise, pair, patch};
use blkpatch::device::{Device, DeviceError, MemoryDevice};
use blkpatch::target::Verify;
use std::sync::atomic::{AtomicBool, Ordering};

/// How it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Once it has been read to its end, it returns other bytes.
    WhenReadAgain,
    /// It keeps nothing that is written.
    KeepsNothing,
    /// It changes what is written.
    KeepsOther,
}

struct Fickle<'a> {
    inner: &'a MemoryDevice,
    lie: Lie,
    armed: AtomicBool,
}

impl Device for Fickle<'_> {
    fn name(&self) -> String {
        "/dev/fickle".into()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(offset, buffer)?;
        if self.armed.load(Ordering::SeqCst) {
            buffer[0] ^= 1;
        }
        if self.lie == Lie::WhenReadAgain && offset + buffer.len() as u64 == self.len() {
            self.armed.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        match self.lie {
            Lie::KeepsNothing => Ok(()),
            Lie::KeepsOther => {
                let mut other = data.to_vec();
                other[0] ^= 1;
                self.inner.write(offset, &other)
            }
            Lie::WhenReadAgain => self.inner.write(offset, data),
        }
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.write(offset, &vec![0; len as usize])
    }
    fn sync(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Patches a medium that lies; the message is that of a row, and what is said of the target is true.
#[track_caller]
fn told(old: &[u8], new: &[u8], lie: Lie, row: &str) {
    let (_folder, opened) = delta_of(old, new);
    let inner = MemoryDevice::new(old.to_vec(), false);
    let error = patch(&opened, &Fickle { inner: &inner, lie, armed: AtomicBool::new(false) }, Verify::Full);
    let error = error.expect_err("a medium that lies");
    let row = assert_row(&error.to_string(), row);
    assert!(row.codes.contains(&(error.exit_code().into(), error.code().into())), "{lie:?}: {error}");
    if error.exit_code() == 1 {
        assert!(inner.contents() == old, "{lie:?}: {error}");
    }
}

#[test]
fn media_that_lie_are_told_as_the_tables_say() {
    // Blocks that trade places: the first thing done is to read one.
    let old = noise(5, 40 * BLOCK);
    let mut new = old.clone();
    new[3 * BLOCK..4 * BLOCK].copy_from_slice(&old[20 * BLOCK..21 * BLOCK]);
    new[20 * BLOCK..21 * BLOCK].copy_from_slice(&old[30 * BLOCK..31 * BLOCK]);
    new[30 * BLOCK..31 * BLOCK].copy_from_slice(&noise(6, BLOCK));
    told(&old, &new, Lie::WhenReadAgain, "target-changing");
    told(&old, &new, Lie::KeepsNothing, "stopped-unkept");
    told(&old, &new, Lie::KeepsOther, "damaged-written");
    // Saves, which are read again before the end.
    let (old, new) = pair(0);
    told(&old, &new, Lie::KeepsNothing, "stopped-wrong");
}
