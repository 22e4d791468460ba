//! What end-to-end tests cannot bring about: media that do not keep what was written, images written meanwhile.

use super::*;
use crate::device::{DeviceError, MemoryDevice};
use crate::message_rows::assert_row;
use crate::monitor::Silent;
use crate::units::BLOCK;
use std::path::PathBuf;

const B: usize = BLOCK as usize;
const LEN: usize = (3 << 20) + 4096 + 5;

fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A folder with the file `image`.
fn scene(image: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, image).unwrap();
    (folder, path)
}

fn sync_to(
    image: &Path,
    device: &dyn Device,
    options: &SyncOptions,
    monitor: &dyn Monitor,
) -> Result<SyncReport, Error> {
    let stop = AtomicBool::new(false);
    let end = End::new(&stop);
    let image = Image::open(image, options.format, &end, &Silent)?;
    sync_device(&image, device, options, &end, monitor)
}

#[test]
fn only_differing_blocks_are_counted_and_written() {
    let bytes = noise(LEN);
    let (_folder, image) = scene(&bytes);
    let mut old = bytes.clone();
    for block in [0, 5, 6, 256, 700, LEN / B] {
        old[block * B] ^= 1;
    }
    old.extend([9; 5000]);
    let device = MemoryDevice::new(old.clone(), false);
    let changed = (5 * B + LEN % B) as u64;
    let dry = sync_to(&image, &device, &SyncOptions { dry_run: true, ..SyncOptions::default() }, &Silent).unwrap();
    assert_eq!((dry.compared, dry.differing), (LEN as u64, changed));
    assert!(device.contents() == old);
    let done = sync_to(&image, &device, &SyncOptions::default(), &Silent).unwrap();
    assert_eq!((done.differing, done.resized_from), (changed, None));
    assert!(device.contents()[..LEN] == bytes && device.contents()[LEN..] == [9; 5000]);
    assert_eq!(sync_to(&image, &device, &SyncOptions::default(), &Silent).unwrap().differing, 0);
}

#[test]
fn a_file_gets_the_length_of_the_image() {
    let mut bytes = noise(LEN);
    bytes[2 << 20..].fill(0);
    let (_folder, image) = scene(&bytes);
    for old in [Vec::new(), vec![0; 100], bytes[..LEN - 1].to_vec(), [&bytes[..], &[1; 9000]].concat(), noise(5 << 20)]
    {
        let device = MemoryDevice::new(old.clone(), true);
        let done = sync_to(&image, &device, &SyncOptions::default(), &Silent).unwrap();
        assert!(device.contents() == bytes, "from {} bytes", old.len());
        assert_eq!(done.resized_from, Some(old.len() as u64));
    }
}

/// Panics where it is read at its start.
struct Faulty(MemoryDevice);

impl Device for Faulty {
    fn name(&self) -> String {
        self.0.name()
    }
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.0.set_len(len)
    }
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        assert!(offset > 0, "a bug");
        self.0.read(offset, bytes)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.0.write(offset, bytes)
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.0.write_zeros(offset, len)
    }
    fn sync(&self) -> Result<(), DeviceError> {
        self.0.sync()
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        self.0.forget_cache()
    }
}

#[test]
fn a_thread_that_panics_ends_those_that_wait_for_its_chunk() {
    let bytes = noise(12 << 20);
    let (folder, image) = scene(&bytes);
    let device = Faulty(MemoryDevice::new(bytes, false));
    let options =
        SyncOptions { dry_run: true, save_delta: Some(folder.path().join("delta")), ..SyncOptions::default() };
    let run = std::panic::AssertUnwindSafe(|| sync_to(&image, &device, &options, &Silent));
    assert!(std::panic::catch_unwind(run).is_err());
}

/// Loses all writes behind an offset.
struct Forgetful {
    inner: MemoryDevice,
    from: u64,
}

impl Device for Forgetful {
    fn name(&self) -> String {
        "stick".into()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        if offset < self.from { self.inner.write(offset, data) } else { Ok(()) }
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if offset < self.from { self.inner.write_zeros(offset, len) } else { Ok(()) }
    }
    fn sync(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[test]
fn a_medium_that_keeps_nothing_is_found_out() {
    let (_folder, image) = scene(&noise(LEN));
    let device = Forgetful { inner: MemoryDevice::new(vec![0; LEN], false), from: 2 << 20 };
    let failed = sync_to(&image, &device, &SyncOptions::default(), &Silent).unwrap_err();
    assert_eq!(failed.exit_code(), 3);
    let said = failed.to_string();
    assert!(said.contains("between bytes 2097152 and 2359296"), "{said}");
    assert_row(&said, "sync-unkept");
}

/// Writes the image while it is read.
struct Meddler(PathBuf);

impl Monitor for Meddler {
    fn advance(&self, _bytes: u64) {
        let file = std::fs::OpenOptions::new().append(true).open(&self.0).unwrap();
        std::io::Write::write_all(&mut &file, b"more").unwrap();
    }
}

#[test]
fn an_image_that_is_written_meanwhile_is_no_success() {
    let (_folder, image) = scene(&noise(LEN));
    let device = MemoryDevice::new(noise(LEN), false);
    let failed = sync_to(&image, &device, &SyncOptions::default(), &Meddler(image.clone())).unwrap_err();
    assert_eq!(failed.exit_code(), 1, "nothing was written: {failed}");
    assert_row(&failed.to_string(), "sync-changed");
    let (_folder, image) = scene(&noise(LEN));
    let device = MemoryDevice::new(vec![0; LEN], false);
    let failed = sync_to(&image, &device, &SyncOptions::default(), &Meddler(image.clone())).unwrap_err();
    assert_eq!(failed.exit_code(), 3, "{failed}");
    assert_row(&failed.to_string(), "sync-changed");
}

/// Writes a block of the image, once, when it is about to be read for the second time.
struct LateMeddler(PathBuf);

impl Monitor for LateMeddler {
    fn phase(&self, name: &'static str, _total: u64) {
        if name == "comparing, writing" {
            let file = std::fs::OpenOptions::new().write(true).open(&self.0).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"meanwhile", 2 << 20).unwrap();
        }
    }
}

#[test]
fn an_image_that_is_another_one_when_it_is_read_again_is_no_success() {
    let bytes = noise(LEN);
    let (folder, image) = scene(&bytes);
    let mut old = bytes;
    old[..4096].fill(0);
    let device = MemoryDevice::new(old, false);
    let options = SyncOptions { undo: Some(folder.path().join("undo")), ..SyncOptions::default() };
    let failed = sync_to(&image, &device, &options, &LateMeddler(image.clone())).unwrap_err();
    let row = assert_row(&failed.to_string(), "sync-inconstant");
    assert!(row.codes.contains(&(failed.exit_code().into(), failed.code().into())), "{failed}");
}

#[test]
fn a_wish_to_stop_is_heard_before_the_first_write() {
    let (_folder, path) = scene(&noise(LEN));
    let stop = AtomicBool::new(false);
    let end = End::new(&stop);
    let image = Image::open(&path, Format::Auto, &end, &Silent).unwrap();
    stop.store(true, Ordering::SeqCst);
    let device = MemoryDevice::new(vec![0; LEN], false);
    let failed = sync_device(&image, &device, &SyncOptions::default(), &end, &Silent).unwrap_err();
    assert!(matches!(failed, Error::Interrupted) && device.contents() == vec![0; LEN]);
}
