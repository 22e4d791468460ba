//! What a loop device shows. Sysfs tells a name, which leads nowhere, or elsewhere, when the file was deleted, replaced,
//! or belongs to another container; the kernel knows the file itself.

use super::open::{device_number, sysfs};
use super::overlap::Storage;
use rustix::fs::OFlags;
use rustix::ioctl::{Getter, Opcode, ioctl};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `LOOP_GET_STATUS64` of `linux/loop.h`.
const LOOP_GET_STATUS64: Opcode = 0x4C05;

/// `struct loop_info64` of `linux/loop.h`, the same on all architectures.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    /// What is of no interest here.
    rest: [u64; 26],
}

/// The loop devices that show something: node and number.
pub(super) fn loop_devices() -> Vec<(PathBuf, u64)> {
    let folders = std::fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.path());
    let attached = folders.filter(|folder| folder.join("loop").exists());
    attached.filter_map(|folder| Some((super::place::node(&folder), number(&folder)?))).collect()
}

fn number(folder: &Path) -> Option<u64> {
    device_number(std::fs::read_to_string(folder.join("dev")).ok()?.trim())
}

/// The file or device that a loop device shows; `None` for any other device, and where that cannot be found out.
pub(super) fn shown_by(rdev: u64) -> Option<Storage> {
    let name = sysfs(rdev, "loop/backing_file")?;
    asked(rdev).or_else(|| {
        // Whoever may not open the device still has the name.
        let meta = std::fs::metadata(name).ok()?;
        Storage::of(&meta)
    })
}

fn asked(rdev: u64) -> Option<Storage> {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let folder = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let flags = i32::from_ne_bytes(OFlags::NONBLOCK.bits().to_ne_bytes());
    let device = OpenOptions::new().read(true).custom_flags(flags).open(super::place::node(&folder)).ok()?;
    let is_it = device.metadata().ok()?.rdev() == rdev;
    let info = status(&device).ok().filter(|_| is_it)?;
    Some(if info.rdevice == 0 { Storage::File(info.device, info.inode) } else { Storage::Block(info.rdevice) })
}

#[allow(unsafe_code)]
fn status(device: &File) -> rustix::io::Result<LoopInfo> {
    // SAFETY: LOOP_GET_STATUS64 fills a `struct loop_info64`, 232 bytes of plain numbers, which `LoopInfo` is; on anything
    // but a loop device it fails. No crate in use wraps it.
    unsafe { ioctl(device, Getter::<LOOP_GET_STATUS64, LoopInfo>::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_fills_is_as_long_as_it_thinks() {
        assert_eq!(size_of::<LoopInfo>(), 232);
    }

    #[test]
    fn other_files_show_nothing() {
        let file = tempfile::tempfile().unwrap();
        assert!(status(&file).is_err());
        assert_eq!(shown_by(file.metadata().unwrap().dev()), None);
    }
}
