//! Who uses a block device, by name: the kernel only says that somebody does.

use super::open::device_number;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where the system tells about itself; tests give their own folders.
#[derive(Clone, Copy, Debug)]
pub(super) struct System<'a> {
    pub sys: &'a Path,
    pub proc: &'a Path,
}

impl System<'static> {
    /// The running one.
    pub fn running() -> Self {
        Self { sys: Path::new("/sys"), proc: Path::new("/proc") }
    }
}

/// A block device in sysfs: `8:1`, and the folder of its attributes.
struct Node {
    number: String,
    folder: PathBuf,
}

impl Node {
    fn of(system: System<'_>, rdev: u64) -> Option<Self> {
        let number = format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
        Self::at(fs::canonicalize(system.sys.join("dev/block").join(number)).ok()?)
    }

    fn at(folder: PathBuf) -> Option<Self> {
        let number = fs::read_to_string(folder.join("dev")).ok()?.trim().to_owned();
        Some(Self { number, folder })
    }

    fn name(&self) -> String {
        super::place::node(&self.folder).display().to_string()
    }

    /// The devices that hold it, such as logical volumes and RAIDs.
    fn holders(&self) -> Vec<Self> {
        entries(&self.folder.join("holders"))
            .into_iter()
            .filter_map(|link| Self::at(fs::canonicalize(link).ok()?))
            .collect()
    }

    fn partitions(&self) -> Vec<Self> {
        let folders = entries(&self.folder).into_iter().filter(|folder| folder.join("partition").exists());
        folders.filter_map(Self::at).collect()
    }

    /// The disk, for a partition.
    fn disk(&self) -> Option<Self> {
        let is_partition = self.folder.join("partition").exists();
        self.folder.parent().filter(|_| is_partition).and_then(|folder| Self::at(folder.to_owned()))
    }

    fn attribute(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(name)).ok().map(|text| text.trim().to_owned())
    }

    /// What kind of holder it is, and its name.
    fn described(&self) -> String {
        let Some(name) = self.attribute("dm/name") else {
            let raid = self.folder.join("md").exists();
            return format!("{}{}", if raid { "the RAID " } else { "" }, self.name());
        };
        let uuid = self.attribute("dm/uuid").unwrap_or_default();
        let kind = match uuid.split('-').next() {
            Some("LVM") => "the logical volume",
            Some("CRYPT") => "the encrypted volume",
            Some("mpath") => "the multipath device",
            _ => "the device mapper volume",
        };
        format!("{kind} {name} ({})", self.name())
    }
}

/// What a folder holds, in order.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Who uses a device, a partition of it, or the disk that it is a partition of, and what to do about it; `None` where
/// nobody is known to.
pub(super) fn user_of(system: System<'_>, rdev: u64) -> Option<String> {
    let own = Node::of(system, rdev)?;
    let users = Users::read(system);
    if let Some(use_) = users.of(&own, 0) {
        return Some(format!("it is {use_}"));
    }
    if let Some(disk) = own.disk() {
        return users.of(&disk, 0).map(|use_| format!("the disk {} that it is a partition of is {use_}", disk.name()));
    }
    let mut partitions = own.partitions().into_iter();
    partitions.find_map(|part| users.of(&part, 0).map(|use_| format!("its partition {} is {use_}", part.name())))
}

/// Who uses a device that a loop device shows, the disk that it is a partition of, or a partition of it that the loop
/// device `reaches`. Other loop devices do not count: they may show other bytes.
pub(super) fn user_below(system: System<'_>, rdev: u64, reaches: impl Fn(u64) -> bool) -> Option<String> {
    let own = Node::of(system, rdev)?;
    let users = Users { loops: Vec::new(), ..Users::read(system) };
    let partitions = own.partitions().into_iter().filter(|part| device_number(&part.number).is_some_and(&reaches));
    let mut nodes: Vec<Node> = own.disk().into_iter().chain(partitions).collect();
    nodes.insert(0, own);
    let used = |node: &Node| users.of(node, 0).map(|use_| format!("the device {} below it is {use_}", node.name()));
    nodes.iter().find_map(used)
}

/// What the system says of mounts and swap.
struct Users {
    /// Device number and mount point.
    mounts: Vec<(String, String)>,
    swaps: BTreeSet<String>,
    /// Loop devices, and the device each of them shows.
    loops: Vec<(String, String)>,
}

/// A holder of a holder of …: no stack of devices is deeper.
const DEEPEST: usize = 8;

impl Users {
    fn read(system: System<'_>) -> Self {
        let mounts = fs::read_to_string(system.proc.join("self/mountinfo")).unwrap_or_default();
        let swaps = fs::read_to_string(system.proc.join("swaps")).unwrap_or_default();
        let swaps = swaps.lines().skip(1).filter_map(|line| number_of(&unescaped(line.split_whitespace().next()?)));
        let loops = entries(&system.sys.join("block")).into_iter().filter_map(|folder| {
            let shown = fs::read_to_string(folder.join("loop/backing_file")).ok()?;
            Some((super::place::node(&folder).display().to_string(), number_of(shown.trim_end_matches('\n'))?))
        });
        Self { mounts: mounts.lines().filter_map(mount).collect(), swaps: swaps.collect(), loops: loops.collect() }
    }

    /// How a device is used: `mounted at /mnt`.
    fn of(&self, node: &Node, depth: usize) -> Option<String> {
        let points: Vec<&str> =
            self.mounts.iter().filter(|(number, _)| *number == node.number).map(|(_, point)| point.as_str()).collect();
        if !points.is_empty() {
            return Some(format!("mounted at {}", points.join(" and ")));
        }
        if self.swaps.contains(&node.number) {
            return Some(format!("used as swap (see 'swapoff {}')", node.name()));
        }
        if let Some((device, _)) = self.loops.iter().find(|(_, shown)| *shown == node.number) {
            return Some(format!("shown by the loop device {device} (see 'losetup -d {device}')"));
        }
        let holder = node.holders().into_iter().next()?;
        let further = if depth < DEEPEST { self.of(&holder, depth + 1) } else { None };
        let further = further.map_or(String::new(), |use_| format!(", which is {use_}"));
        Some(format!("held by {}{further}", holder.described()))
    }
}

/// Device number and mount point of a line of mountinfo (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let (number, point) = (fields.nth(2)?, unescaped(fields.nth(1)?));
    // File systems such as btrfs have numbers of their own; what is mounted tells the device.
    let number = if number.starts_with("0:") {
        number_of(&unescaped(right.split(' ').nth(1)?)).unwrap_or_else(|| number.to_owned())
    } else {
        number.to_owned()
    };
    Some((number, point))
}

/// The number of a block device in /dev.
fn number_of(path: &str) -> Option<String> {
    let meta = fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device())?;
    Some(format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())))
}

/// A path in which the kernel wrote spaces and the like as octal numbers.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    super::table::printable(&String::from_utf8_lossy(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A system with the disk sdz (8:400), its partitions sdz1 and sdz2, and what else a test adds.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            fake.device("block/sdz", "8:400");
            fake.device("block/sdz/sdz1", "8:401");
            fake.device("block/sdz/sdz2", "8:402");
            for part in ["sdz1", "sdz2"] {
                fake.write(&format!("sys/block/sdz/{part}/partition"), "1");
            }
            fake.write("proc/self/mountinfo", "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
            fake
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn device(&self, folder: &str, number: &str) {
            self.write(&format!("sys/{folder}/dev"), &format!("{number}\n"));
            let links = self.0.path().join("sys/dev/block");
            fs::create_dir_all(&links).unwrap();
            symlink(self.0.path().join("sys").join(folder), links.join(number)).unwrap();
        }

        /// A device of the device mapper that holds another one.
        fn holder(&self, name: &str, number: &str, holds: &str) {
            self.device(&format!("block/{name}"), number);
            let holders = self.0.path().join("sys").join(holds).join("holders");
            fs::create_dir_all(&holders).unwrap();
            symlink(self.0.path().join("sys/block").join(name), holders.join(name)).unwrap();
        }

        fn user(&self, minor: u32) -> Option<String> {
            let (sys, proc) = (self.0.path().join("sys"), self.0.path().join("proc"));
            user_of(System { sys: &sys, proc: &proc }, rustix::fs::makedev(8, minor))
        }
    }

    #[test]
    fn nobody_uses_an_idle_disk() {
        assert_eq!([400, 401, 402].map(|minor| Fake::new().user(minor)), [None, None, None]);
    }

    #[test]
    fn a_mounted_partition_keeps_the_disk_but_not_its_neighbour() {
        let fake = Fake::new();
        fake.write(
            "proc/self/mountinfo",
            "36 21 8:402 / /mnt/a\\040b rw - ext4 /dev/sdz2 rw\n37 21 8:402 / /c rw - ext4 x rw\n",
        );
        assert_eq!(fake.user(400).unwrap(), "its partition /dev/sdz2 is mounted at /mnt/a b and /c");
        assert_eq!(fake.user(402).unwrap(), "it is mounted at /mnt/a b and /c");
        assert_eq!(fake.user(401), None);
    }

    #[test]
    fn a_mounted_disk_keeps_its_partitions() {
        let fake = Fake::new();
        fake.write("proc/self/mountinfo", "36 21 8:400 / /mnt rw - ext4 /dev/sdz rw\n");
        assert_eq!(fake.user(401).unwrap(), "the disk /dev/sdz that it is a partition of is mounted at /mnt");
    }

    #[test]
    fn volumes_are_named_and_what_is_on_them() {
        let fake = Fake::new();
        fake.holder("dm-0", "254:0", "block/sdz/sdz1");
        fake.write("sys/block/dm-0/dm/name", "luks-x\n");
        fake.write("sys/block/dm-0/dm/uuid", "CRYPT-LUKS2-0815\n");
        fake.holder("dm-1", "254:1", "block/dm-0");
        fake.write("sys/block/dm-1/dm/name", "vg-root\n");
        fake.write("sys/block/dm-1/dm/uuid", "LVM-4711\n");
        fake.write("proc/self/mountinfo", "36 21 254:1 / /srv rw - ext4 /dev/mapper/vg-root rw\n");
        let text = "its partition /dev/sdz1 is held by the encrypted volume luks-x (/dev/dm-0), which is held by the \
                    logical volume vg-root (/dev/dm-1), which is mounted at /srv";
        assert_eq!(fake.user(400).unwrap(), text);
        assert_eq!(fake.user(402), None);
    }

    #[test]
    fn a_raid_is_named() {
        let fake = Fake::new();
        fake.holder("md127", "9:127", "block/sdz");
        fs::create_dir(fake.0.path().join("sys/block/md127/md")).unwrap();
        assert_eq!(fake.user(400).unwrap(), "it is held by the RAID /dev/md127");
        assert!(fake.user(401).unwrap().contains("the disk /dev/sdz"));
    }

    #[test]
    fn a_circle_of_holders_ends() {
        let fake = Fake::new();
        fake.holder("dm-0", "254:0", "block/sdz");
        fake.write("sys/block/dm-0/dm/name", "x\n");
        let holders = fake.0.path().join("sys/block/dm-0/holders");
        fs::create_dir(&holders).unwrap();
        symlink(fake.0.path().join("sys/block/dm-0"), holders.join("dm-0")).unwrap();
        assert!(fake.user(400).unwrap().contains("device mapper volume x"));
    }
}
