//! Whether two paths lead to the same bytes of storage, under whatever names: a device and its twin, a partition and its
//! disk, a loop device and its file, a file and the device its file system is on, a mapped device and what lies below it.

use super::loops::{loop_devices, shown_by};
use super::open::{device_number, sysfs};
use crate::output::folder_of;
use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many layers of devices are looked through.
const LAYERS: u32 = 8;

/// Something that holds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// A regular file, by the device it lies on and its inode.
    File(u64, u64),
    /// A block device, by its number.
    Block(u64),
}

impl Storage {
    /// What a name leads to, if it holds bytes.
    pub fn of(meta: &Metadata) -> Option<Self> {
        let kind = meta.file_type();
        if kind.is_block_device() {
            return Some(Self::Block(meta.rdev()));
        }
        kind.is_file().then(|| Self::File(meta.dev(), meta.ino()))
    }
}

/// Where bytes lie in a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    storage: Storage,
    bytes: Range<u64>,
    /// Whether all of these are meant; a file or a mapped device takes some of them, nobody says which.
    exact: bool,
}

impl Place {
    fn whole(storage: Storage, exact: bool) -> Self {
        Self { storage, bytes: 0..u64::MAX, exact }
    }

    /// Where the bytes of a part lie, if the part is `len` bytes from `start` of `storage`.
    fn within(&self, storage: Storage, start: u64, len: u64) -> Self {
        let at = |offset: u64| start.saturating_add(offset.min(len));
        Self { storage, bytes: at(self.bytes.start)..at(self.bytes.end), exact: self.exact }
    }

    /// Two files or mapped devices on one disk do not meet: nobody gives the same bytes to two.
    fn meets(&self, other: &Self) -> bool {
        let overlap = self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end;
        self.storage == other.storage && overlap && (self.exact || other.exact)
    }
}

/// Whether writing to one of two files or block devices would change the other. A file that is yet to be made takes
/// space of its file system, too.
#[must_use]
pub fn share_bytes(a: &Path, b: &Path) -> bool {
    let (a, b) = (places(a), places(b));
    a.iter().any(|a| b.iter().any(|b| a.meets(b)))
}

/// A loop device that shows bytes of a device's own storage, as where both show one file.
pub(super) fn twin_of(rdev: u64) -> Option<PathBuf> {
    // One that was detached stays for a moment where another program, such as this one, just looks at it.
    const PATIENCE: (u32, Duration) = (10, Duration::from_millis(50));
    for _ in 0..PATIENCE.0 {
        twin_now(rdev)?;
        std::thread::sleep(PATIENCE.1);
    }
    twin_now(rdev)
}

fn twin_now(rdev: u64) -> Option<PathBuf> {
    let exact = |rdev| -> Vec<Place> {
        let top = vec![Place::whole(Storage::Block(rdev), true)];
        layers(top, below).into_iter().filter(|place| place.exact).collect()
    };
    let mine = exact(rdev);
    let below_me = |other| mine.iter().any(|place| place.storage == Storage::Block(other));
    let others = loop_devices().into_iter().filter(|(_, other)| !below_me(*other));
    let mut twins = others.filter(|(_, other)| exact(*other).iter().any(|place| mine.iter().any(|my| my.meets(place))));
    twins.next().map(|(path, _)| path)
}

/// What a loop device shows, where that is a block device: the loop device does not hold it, so it may be in use.
pub(super) struct Shown {
    pub device: u64,
    place: Place,
}

impl Shown {
    /// Whether a partition of it has bytes that are shown.
    pub fn reaches(&self, partition: u64) -> bool {
        below(&Place::whole(Storage::Block(partition), true)).iter().any(|place| place.meets(&self.place))
    }
}

/// The block devices that a device's bytes lie on by way of loop devices.
pub(super) fn shown_below(rdev: u64) -> Vec<Shown> {
    // What lies below a file is in use, of course: by the file system, through which the loop device writes.
    let below_device = |place: &Place| match place.storage {
        Storage::File(..) => Vec::new(),
        Storage::Block(_) => below(place),
    };
    let is_loop = |place: &&Place| matches!(place.storage, Storage::Block(rdev) if shown_by(rdev).is_some());
    let places = layers(vec![Place::whole(Storage::Block(rdev), true)], below_device);
    let shown = places.iter().filter(is_loop).flat_map(below);
    shown
        .filter_map(|place| match place.storage {
            Storage::Block(device) => Some(Shown { device, place }),
            Storage::File(..) => None,
        })
        .collect()
}

/// Where the bytes of a file or device lie, layer by layer.
fn places(path: &Path) -> Vec<Place> {
    let top = match std::fs::metadata(path) {
        Ok(meta) => Storage::of(&meta).map(|storage| Place::whole(storage, true)),
        Err(_) => std::fs::metadata(folder_of(path)).ok().map(|meta| Place::whole(Storage::Block(meta.dev()), false)),
    };
    layers(top.into_iter().collect(), below)
}

fn layers(mut layer: Vec<Place>, below: impl Fn(&Place) -> Vec<Place>) -> Vec<Place> {
    let mut all = Vec::new();
    for _ in 0..LAYERS {
        let next = layer.iter().flat_map(&below).collect();
        all.append(&mut layer);
        layer = next;
    }
    all
}

/// Where the bytes of a place lie one layer further down, as sysfs tells it.
fn below(place: &Place) -> Vec<Place> {
    let rdev = match place.storage {
        Storage::File(holder, _) => return vec![Place::whole(Storage::Block(holder), false)],
        Storage::Block(rdev) => rdev,
    };
    let number = |attribute| sysfs(rdev, attribute).and_then(|text| text.parse::<u64>().ok());
    let len = number("size").map_or(u64::MAX, |sectors| sectors.saturating_mul(512));
    if let Some(disk) = sysfs(rdev, "partition").and_then(|_| sysfs(rdev, "../dev")) {
        let start = number("start").unwrap_or(0).saturating_mul(512);
        return device(&disk).map(|disk| place.within(disk, start, len)).into_iter().collect();
    }
    if let Some(shown) = shown_by(rdev) {
        let start = number("loop/offset").unwrap_or(0);
        return vec![place.within(shown, start, len)];
    }
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let slaves = std::fs::read_dir(format!("/sys/dev/block/{major}:{minor}/slaves"));
    let slaves = slaves.into_iter().flatten().flatten();
    slaves
        .filter_map(|slave| device(std::fs::read_to_string(slave.path().join("dev")).ok()?.trim()))
        .map(|slave| Place::whole(slave, false))
        .collect()
}

/// A block device by its number, as sysfs writes it: `8:1`.
fn device(number: &str) -> Option<Storage> {
    device_number(number).map(Storage::Block)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Storage = Storage::Block(8);

    #[test]
    fn a_part_meets_its_whole_and_what_overlaps_it_but_not_its_neighbour() {
        let part = |number| Place::whole(Storage::Block(number), true);
        let disk = Place::whole(DISK, true);
        let (first, second) = (part(1).within(DISK, 4096, 8192), part(2).within(DISK, 12_288, 4096));
        assert_eq!(first.bytes, 4096..12_288);
        assert!(first.meets(&disk) && disk.meets(&second) && first.meets(&first));
        assert!(!first.meets(&second) && !part(1).meets(&part(2)));
        // A loop device over a stretch of the disk's middle, and a partition of that.
        let inner = part(4).within(Storage::Block(3), 1024, 1024).within(DISK, 11_000, 5000);
        assert_eq!(inner.bytes, 12_024..13_048);
        assert!(inner.meets(&first) && inner.meets(&second));
        assert!(!inner.meets(&part(5).within(DISK, 0, 12_024)));
    }

    #[test]
    fn mapped_devices_meet_what_lies_below_but_not_one_another() {
        let mapped = Place::whole(DISK, false);
        assert!(mapped.meets(&Place::whole(DISK, true)) && !mapped.meets(&mapped));
    }

    #[test]
    fn files_are_known_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let [one, twin, other] = ["one", "twin", "other"].map(|name| folder.path().join(name));
        std::fs::write(&one, b"").unwrap();
        std::fs::write(&other, b"").unwrap();
        std::fs::hard_link(&one, &twin).unwrap();
        assert!(share_bytes(&one, &one) && share_bytes(&one, &twin));
        assert!(!share_bytes(&one, &other) && !share_bytes(&one, &folder.path().join("nowhere")));
    }
}
