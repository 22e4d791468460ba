//! Opening a target: what it is, who else uses it, and how to say that it cannot be used.

use super::loops::{loop_devices, shown_by};
use super::overlap::{Storage, shown_below, twin_of};
use super::users::{System, user_below, user_of};
use super::{BlockTarget, Device, FileTarget, Place};
use crate::units::BLOCK;
use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the target is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads; a mounted device may be looked at.
    Read,
    /// Only reads, but as exclusively as for writing.
    Inspect,
    /// Reads and writes, exclusively.
    Write,
    /// Only reads what another target is made from. A partition does not lock its disk: the target may be on it, too.
    Source,
}

impl Access {
    /// Whether nobody else may use the target.
    fn is_exclusive(self) -> bool {
        matches!(self, Self::Inspect | Self::Write)
    }
}

/// Why a target was not opened. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such file or device.
    #[error("{path} does not exist; nothing was created (check the name; 'lsblk' lists the devices)")]
    Missing {
        /// The target.
        path: PathBuf,
    },
    /// A directory or another thing that holds no image.
    #[error("{path} is {what}, not a block device or an image file")]
    WrongKind {
        /// The target.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Someone holds it.
    #[error("{path} is in use: {by}; unmount it or stop what uses it, then try again")]
    Busy {
        /// The target.
        path: PathBuf,
        /// What is known of who holds it.
        by: String,
    },
    /// A file where a device was meant.
    #[error(
        "{path} is a regular file in /dev, not a device: perhaps something was copied to a misspelt name, or the device \
         was not plugged in. Look at it, remove it, and check the name with 'lsblk'"
    )]
    FileInDev {
        /// The target.
        path: PathBuf,
    },
    /// Not permitted.
    #[error("no permission to open {path}; run the command as root, for example with sudo")]
    Permission {
        /// The target.
        path: PathBuf,
    },
    /// Not even root is permitted.
    #[error(
        "the system does not let even root open {path}: in a container that device must be handed in; else a security \
         policy (SELinux, AppArmor) or the server of a network drive forbids it"
    )]
    Denied {
        /// The target.
        path: PathBuf,
    },
    /// An attribute of the file forbids writing, to root as well.
    #[error(
        "{path} must not be written by anybody: it is marked as {mark} ('lsattr {path}'); 'chattr -{flag} {path}' ends that"
    )]
    Marked {
        /// The target.
        path: PathBuf,
        /// `immutable`, or `append-only`.
        mark: &'static str,
        /// How chattr(1) calls it.
        flag: char,
    },
    /// Sectors that are larger than a block.
    #[error(
        "{path} has sectors of {sector} bytes; with more than 4096 a power cut could tear what is not being written"
    )]
    Sectors {
        /// The target.
        path: PathBuf,
        /// Bytes of one.
        sector: u32,
    },
    /// Write-protected.
    #[error("{path} is read-only (a write-protect switch, 'blockdev --getro', or a read-only file system)")]
    ReadOnly {
        /// The target.
        path: PathBuf,
    },
    /// Any other failure of the system.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The target.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// What is said where the kernel refuses, and nothing tells why.
const UNKNOWN_USER: &str = "mounted (perhaps in a container), or held by swap, LVM, RAID or another program";

fn classify(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => OpenError::Missing { path },
        Some(Errno::ACCESS | Errno::PERM) => forbidden(path),
        Some(Errno::TXTBSY) => OpenError::Busy { path, by: "it is a swap file in use, or a program that runs".into() },
        Some(Errno::ROFS) => OpenError::ReadOnly { path },
        Some(Errno::BUSY) => OpenError::Busy { path, by: UNKNOWN_USER.into() },
        _ => OpenError::Io { path, source },
    }
}

/// Why opening is not permitted: what the system says is the same for everything that may forbid it.
fn forbidden(path: PathBuf) -> OpenError {
    let attributes =
        rustix::fs::statx(CWD, &path, AtFlags::empty(), StatxFlags::empty()).map(|found| found.stx_attributes);
    let attributes = attributes.unwrap_or(StatxAttributes::empty());
    match () {
        () if attributes.contains(StatxAttributes::IMMUTABLE) => {
            OpenError::Marked { path, mark: "immutable", flag: 'i' }
        }
        () if attributes.contains(StatxAttributes::APPEND) => {
            OpenError::Marked { path, mark: "append-only", flag: 'a' }
        }
        () if rustix::process::geteuid().is_root() => OpenError::Denied { path },
        () => OpenError::Permission { path },
    }
}

/// Opens a block device or an image file as a target.
///
/// For [`Access::Write`] and [`Access::Inspect`] a block device is opened exclusively (the kernel refuses while it, or a
/// partition of it, is mounted or held), and devices and files are locked, so that two runs cannot share a target. Nothing
/// overrides that: what is mounted would be written behind its file system's back.
///
/// # Errors
/// [`OpenError`]; the target is as it was.
pub fn open_target(path: &Path, access: Access) -> Result<Box<dyn Device>, OpenError> {
    let meta = std::fs::metadata(path).map_err(|e| classify(path, e))?;
    let kind = meta.file_type();
    if kind.is_block_device() {
        return open_block(path, access, meta.rdev());
    }
    let what = if kind.is_file() {
        if access.is_exclusive() && is_behind_a_loop_device(&meta) {
            let by = "a loop device shows it; detach that with 'losetup -d', or patch the loop device instead".into();
            return Err(OpenError::Busy { path: path.to_owned(), by });
        }
        if access.is_exclusive() && is_in_dev(path, &meta) {
            return Err(OpenError::FileInDev { path: path.to_owned() });
        }
        let file = open(path, access, OFlags::empty())?;
        lock(&file, path, access)?;
        // Virtual machines (QEMU) hold this kind of lock on the images they run from.
        if access == Access::Write
            && rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
                .is_err_and(|e| matches!(e, Errno::WOULDBLOCK | Errno::ACCESS))
        {
            let by = "another program, perhaps a virtual machine, has locked it".into();
            return Err(OpenError::Busy { path: path.to_owned(), by });
        }
        return Ok(Box::new(FileTarget::new(file, path)));
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a pipe or socket"
    };
    Err(OpenError::WrongKind { path: path.to_owned(), what })
}

fn open(path: &Path, access: Access, flags: OFlags) -> Result<File, OpenError> {
    let write = access == Access::Write;
    let flags = i32::from_ne_bytes(flags.bits().to_ne_bytes());
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).map_err(|e| classify(path, e))
}

fn open_block(path: &Path, access: Access, rdev: u64) -> Result<Box<dyn Device>, OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    // The kernel lets a write-protected device be opened for writing, and fails the first write.
    if access.is_exclusive() && sysfs(rdev, "ro").as_deref() == Some("1") {
        return Err(OpenError::ReadOnly { path: path.to_owned() });
    }
    if access.is_exclusive()
        && let Some(by) = user_of(System::running(), rdev).or_else(|| twin(rdev)).or_else(|| below(rdev))
    {
        return Err(OpenError::Busy { path: path.to_owned(), by });
    }
    let flags = if access.is_exclusive() { OFlags::DIRECT | OFlags::EXCL } else { OFlags::DIRECT };
    let disk = if access == Access::Source { None } else { lock_disk(rdev, path, access)? };
    let mut file = open(path, access, flags)?;
    lock(&file, path, access)?;
    let len = file.seek(SeekFrom::End(0)).map_err(io_error)?;
    let sector = rustix::fs::ioctl_blksszget(&file).map_err(|e| io_error(e.into()))?;
    if u64::from(sector) > BLOCK || !sector.is_power_of_two() {
        // A block would be less than the device can write at once, so a torn write would reach its neighbours.
        return Err(OpenError::Sectors { path: path.to_owned(), sector });
    }
    Ok(Box::new(BlockTarget::new(file, path, len, Place::of(rdev, u64::from(sector))).holding(disk)))
}

/// For a partition: locks the whole disk too, which is what udev and the programs that follow it look at
/// (systemd.io, 'Locking Block Device Access'). `None` for a whole disk, and where the disk has no usable node.
fn lock_disk(rdev: u64, path: &Path, access: Access) -> Result<Option<BlockTarget>, OpenError> {
    if sysfs(rdev, "partition").is_none() {
        return Ok(None);
    }
    let Some(node) = sysfs(rdev, "../dev").and_then(|number| disk_node(rdev, &number)) else { return Ok(None) };
    // Whoever may use the partition only cannot lock the disk, and need not.
    let Ok(mut disk) = open(&node, Access::Read, OFlags::DIRECT) else { return Ok(None) };
    lock(&disk, path, access).map_err(|e| match e {
        OpenError::Busy { path, .. } => {
            OpenError::Busy { path, by: "another program has locked the disk that this is a partition of".into() }
        }
        e => e,
    })?;
    let Ok(len) = disk.seek(SeekFrom::End(0)) else { return Ok(None) };
    let sector = rustix::fs::ioctl_blksszget(&disk).map_or(BLOCK, u64::from);
    let place = std::fs::metadata(&node).map_or_else(|_| Place::default(), |meta| Place::of(meta.rdev(), sector));
    Ok(Some(BlockTarget::new(disk, &node, len, Place { sector, ..place })))
}

/// The node in /dev of the disk that a partition belongs to, if it is the device `number`, as major:minor.
fn disk_node(rdev: u64, number: &str) -> Option<PathBuf> {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let disk = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}/..")).ok()?;
    let node = Path::new("/dev").join(disk.file_name()?.to_string_lossy().replace('!', "/"));
    let found = std::fs::metadata(&node).ok()?;
    let is_it = format!("{}:{}", rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev())) == number;
    (found.file_type().is_block_device() && is_it).then_some(node)
}

/// How often a lock is tried, a tenth of a second apart: udev holds one for a moment after a device was closed.
const LOCK_TRIES: u32 = 20;

/// Two runs must not share a target; several may look at it.
fn lock(file: &File, path: &Path, access: Access) -> Result<(), OpenError> {
    let how = match access {
        Access::Write | Access::Inspect => FlockOperation::NonBlockingLockExclusive,
        Access::Read | Access::Source => FlockOperation::NonBlockingLockShared,
    };
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(file, how) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(100)),
            Err(e) if access == Access::Write => return Err(OpenError::Io { path: path.to_owned(), source: e.into() }),
            _ => return Ok(()),
        }
    }
    Err(OpenError::Busy { path: path.to_owned(), by: "another program, perhaps blkpatch itself, has locked it".into() })
}

/// Whether a loop device is attached to the file, under whichever name.
fn is_behind_a_loop_device(file: &std::fs::Metadata) -> bool {
    let file = Storage::of(file);
    loop_devices().into_iter().any(|(_, device)| file.is_some() && shown_by(device) == file)
}

/// Where a loop device shows the same file as another one, whoever uses that would not know.
fn twin(rdev: u64) -> Option<String> {
    twin_of(rdev).map(|twin| {
        let twin = twin.display();
        format!("the loop device {twin} shows the same bytes (see 'losetup -d {twin}')")
    })
}

/// Who uses what a loop device shows: the kernel asks only who holds the loop device itself.
fn below(rdev: u64) -> Option<String> {
    let shown = shown_below(rdev);
    shown.iter().find_map(|shown| user_below(System::running(), shown.device, |part| shown.reaches(part)))
}

/// Whether a regular file lies where only devices belong: not in /dev/shm, which is a file system of its own.
fn is_in_dev(path: &Path, file: &std::fs::Metadata) -> bool {
    let dev = Path::new("/dev");
    let inside = std::fs::canonicalize(path).is_ok_and(|path| path.starts_with(dev));
    inside && std::fs::metadata(dev).is_ok_and(|dev| dev.dev() == file.dev())
}

/// An attribute of a block device, where sysfs is mounted.
pub(super) fn sysfs(rdev: u64, attribute: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{attribute}")).ok()?;
    Some(text.trim().to_owned())
}

/// The number of a device, as sysfs writes it: `8:1`.
pub(super) fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}
