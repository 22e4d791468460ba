//! Targets that another program changes while they are being patched.

use crate::errors::assert_row;
use crate::{BLOCK, Patched, delta_of, pair, patch};
use blkpatch::device::{Device, DeviceError, FileTarget};
use blkpatch::error::exit;
use blkpatch::target::Verify;
use std::sync::Mutex;

/// A file that another program cuts at one of the syncs, or writes into.
struct Meddled<'a> {
    inner: FileTarget,
    syncs: Mutex<usize>,
    at_sync: usize,
    meddle: &'a (dyn Fn() + Sync),
}

impl Device for Meddled<'_> {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn resizable(&self) -> bool {
        self.inner.resizable()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        // Once the survey has read the last block.
        let end = offset + buffer.len() as u64 == self.inner.len();
        let result = self.inner.read(offset, buffer);
        if end && self.at_sync == 0 && std::mem::replace(&mut *self.syncs.lock().unwrap(), 100) < 100 {
            (self.meddle)();
        }
        result
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(offset, data)
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.write_zeros(offset, len)
    }
    fn reserve(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.inner.reserve(offset, len)
    }
    fn sync(&self) -> Result<(), DeviceError> {
        let mut syncs = self.syncs.lock().unwrap();
        *syncs += 1;
        if *syncs == self.at_sync {
            (self.meddle)();
        }
        self.inner.sync()
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        self.inner.forget_cache()
    }
}

/// Patches a file that is changed by `meddle` at a sync; 0: behind the survey.
fn meddled(at_sync: usize, more: usize, meddle: impl Fn(&std::fs::File) + Sync) -> (Patched, Patched, bool) {
    let (old, new) = pair(more);
    let (folder, opened) = delta_of(&old, &new);
    let path = folder.path().join("target");
    std::fs::write(&path, &old).expect("target");
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("target");
    let inner = FileTarget::new(open(), &path);
    let meddle = || meddle(&open());
    let device = Meddled { inner, syncs: Mutex::new(0), at_sync, meddle: &meddle };
    let first = patch(&opened, &device, Verify::Full);
    let is_new = std::fs::read(&path).expect("target") == new;
    (first, patch(&opened, &FileTarget::new(open(), &path), Verify::Full), is_new)
}

#[test]
fn a_file_that_is_cut_between_survey_and_walk() {
    for more in [0, 5000] {
        // Block 38 is neither read nor written.
        let (first, second, _) = meddled(0, more, |file| file.set_len(38 * BLOCK as u64).unwrap());
        let e = first.expect_err("a file that was cut");
        assert_eq!(e.exit_code(), exit::REFUSED, "{e}");
        assert!(e.to_string().contains("its length changed from 163840 to 155648"), "{e}");
        assert_row(&e.to_string(), "changed-length");
        // What was cut off is lost, and no run takes the rest for an old image.
        let e = second.expect_err("what is left of it");
        assert_eq!(e.exit_code(), exit::REFUSED, "{e}");
    }
}

#[test]
fn a_file_that_is_cut_during_the_walk() {
    for at_sync in 2..8 {
        let (first, second, is_new) = meddled(at_sync, 0, |file| file.set_len(38 * BLOCK as u64).unwrap());
        match first {
            // There are not as many syncs.
            Ok(_) => assert!(is_new && at_sync > 4, "cut at sync {at_sync}, and yet a success"),
            Err(e) => {
                assert_eq!(e.exit_code(), exit::STOPPED, "sync {at_sync}: {e}");
                assert_row(&e.to_string(), "stopped-length");
                let e = second.expect_err("what is left of it");
                assert!([exit::REFUSED, exit::DAMAGED].contains(&e.exit_code()), "{e}");
                assert!(!is_new);
            }
        }
    }
}

#[test]
fn a_file_that_another_program_writes_into_is_never_called_new() {
    use std::os::unix::fs::FileExt;
    for at_sync in 2..8 {
        // In blocks that are read, written, and read back.
        for block in [3, 20, 33] {
            let at = (block * BLOCK + 100) as u64;
            let (first, second, is_new) = meddled(at_sync, 0, |file| file.write_all_at(b"meddled", at).unwrap());
            assert_eq!(first.is_ok(), is_new, "block {block}, sync {at_sync}: {first:?}");
            if let Err(e) = second {
                assert!([exit::DAMAGED, exit::REFUSED].contains(&e.exit_code()), "{e}");
            }
        }
    }
}
