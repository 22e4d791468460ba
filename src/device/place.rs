//! What the system tells of a block device: what it is, and how it lies on its disk.

use super::open::sysfs;
use super::table::printable;
use std::path::{Path, PathBuf};

/// A block device among the others.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Maker, model and what it is, for people; may be empty.
    pub model: String,
    /// Serial number; may be empty.
    pub serial: String,
    /// Bytes of a logical sector.
    pub sector: u64,
    /// For a partition: which one of its disk.
    pub part_of: Option<PartOf>,
    /// The partitions that the kernel knows, of the disk itself or of the disk that this is a partition of.
    pub partitions: Vec<Known>,
}

/// Which partition of which disk.
#[derive(Clone, Debug)]
pub struct PartOf {
    /// Its number, from 1.
    pub number: u32,
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// The disk.
    pub disk: PathBuf,
}

/// A partition that the kernel knows.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its node in /dev.
    pub path: PathBuf,
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// The kernel counts in these, whatever a device's sectors are.
const UNIT: u64 = 512;

impl Place {
    /// Asks sysfs; what it does not tell stays empty.
    #[must_use]
    pub fn of(rdev: u64, sector: u64) -> Self {
        let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let folder = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
        let number = sysfs(rdev, "partition").and_then(|number| number.parse().ok());
        let disk = if number.is_some() { folder.parent().map(Path::to_owned).unwrap_or_default() } else { folder };
        let start = sysfs(rdev, "start").and_then(|start| start.parse::<u64>().ok()?.checked_mul(UNIT));
        let part_of = number.zip(start).map(|(number, start)| PartOf { number, start, disk: node(&disk) });
        Self { model: model(&disk), serial: serial(&disk), sector, part_of, partitions: partitions(&disk) }
    }
}

/// The node in /dev of what a folder in sysfs stands for.
pub(super) fn node(folder: &Path) -> PathBuf {
    Path::new("/dev").join(folder.file_name().unwrap_or_default().to_string_lossy().replace('!', "/"))
}

fn attribute(folder: &Path, name: &str) -> Option<String> {
    let text = std::fs::read(folder.join(name)).ok()?;
    Some(printable(&String::from_utf8_lossy(&text))).filter(|text| !text.is_empty())
}

fn model(disk: &Path) -> String {
    if let Some(file) = attribute(disk, "loop/backing_file") {
        return format!("loop device over {file}");
    }
    if let Some(name) = attribute(disk, "dm/name") {
        return format!("device mapper {name}");
    }
    // 'name' is what SD and MMC cards have.
    let names = ["device/vendor", "device/model", "device/name"].iter().filter_map(|name| attribute(disk, name));
    let mut words: Vec<String> = names.filter(|name| name != "ATA" && !name.starts_with("0x")).collect();
    if attribute(disk, "removable").as_deref() == Some("1") {
        words.push("(removable)".into());
    }
    words.join(" ")
}

fn serial(disk: &Path) -> String {
    if let Some(serial) = ["device/serial", "serial"].iter().find_map(|name| attribute(disk, name)) {
        return serial;
    }
    // SCSI: page 0x80 of the vital product data, behind a header of four bytes.
    if let Some(page) = std::fs::read(disk.join("device/vpd_pg80")).ok().filter(|page| page.len() > 4) {
        return printable(&String::from_utf8_lossy(&page[4..]));
    }
    // USB: the device lies a few levels above.
    let Ok(device) = std::fs::canonicalize(disk.join("device")) else { return String::new() };
    let usb = |folder: &&Path| folder.join("idVendor").exists();
    device.ancestors().take(8).find(usb).and_then(|folder| attribute(folder, "serial")).unwrap_or_default()
}

/// The partitions of a disk that the kernel knows, by where they start.
fn partitions(disk: &Path) -> Vec<Known> {
    let bytes = |folder: &Path, name: &str| attribute(folder, name)?.parse::<u64>().ok()?.checked_mul(UNIT);
    let Ok(entries) = std::fs::read_dir(disk) else { return Vec::new() };
    let folders = entries.flatten().map(|entry| entry.path()).filter(|folder| folder.join("partition").exists());
    let mut known: Vec<Known> = folders
        .filter_map(|folder| {
            Some(Known { path: node(&folder), start: bytes(&folder, "start")?, len: bytes(&folder, "size")? })
        })
        .collect();
    known.sort_by_key(|partition| partition.start);
    known
}
