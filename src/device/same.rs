//! Whether two paths lead to the same storage: an image must not be written over itself.

use super::loops::shown_by;
use super::open::{device_number, sysfs};
use super::overlap::Storage;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// How two files or devices share storage, as far as the system tells; `None` where they do not.
#[must_use]
pub fn shared_storage(a: &Metadata, b: &Metadata) -> Option<&'static str> {
    match () {
        () if is_same(a, b) => Some("they are the same file or device"),
        () if shows(a, b) || shows(b, a) => Some("one of them is a loop device that shows the other one"),
        () if is_part_of(a, b) || is_part_of(b, a) => Some("one of them is a partition of the other one"),
        () => None,
    }
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    let blocks = (a.file_type().is_block_device(), b.file_type().is_block_device());
    match blocks {
        (true, true) => a.rdev() == b.rdev(),
        (false, false) => a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Whether `device` is a loop device, or a partition of one, over `file`.
fn shows(device: &Metadata, file: &Metadata) -> bool {
    if !device.file_type().is_block_device() {
        return false;
    }
    let disk = sysfs(device.rdev(), "partition").and_then(|_| device_number(&sysfs(device.rdev(), "../dev")?));
    let shown = shown_by(disk.unwrap_or(device.rdev()));
    shown.is_some() && shown == Storage::of(file)
}

/// Whether `part` is a partition of the disk `whole`.
fn is_part_of(part: &Metadata, whole: &Metadata) -> bool {
    let both = part.file_type().is_block_device() && whole.file_type().is_block_device();
    if !both || sysfs(part.rdev(), "partition").is_none() {
        return false;
    }
    let number = format!("{}:{}", rustix::fs::major(whole.rdev()), rustix::fs::minor(whole.rdev()));
    sysfs(part.rdev(), "../dev") == Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_itself_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| folder.path().join(name));
        std::fs::write(&a, "x").unwrap();
        std::fs::write(&b, "x").unwrap();
        std::fs::hard_link(&a, &link).unwrap();
        let [a, b, link] = [a, b, link].map(|path| std::fs::metadata(path).unwrap());
        assert!(shared_storage(&a, &a).is_some() && shared_storage(&a, &link).is_some());
        assert!(shared_storage(&a, &b).is_none());
        let folder = std::fs::metadata(folder.path()).unwrap();
        assert!(shared_storage(&folder, &a).is_none());
    }
}
