//! `patch --old`: builds the new image in another place, from the old image, which is only read, and the delta.
//!
//! Nothing can be lost here, so that no order has to be kept and no scratch is needed: whatever TARGET holds, the same
//! command makes it the new image, and writes only the blocks that differ.

pub(crate) mod build;
pub(crate) mod canvas;
#[cfg(test)]
mod tests;

use crate::apply::WalkError;
use crate::delta::Delta;
use crate::device::{Access, Device, FileTarget, OpenError, open_target, share_bytes};
use crate::digest::ImageId;
use crate::disk::{ask, finish};
use crate::error::Error;
use crate::format::Format;
use crate::monitor::Monitor;
use crate::opening::OldImage;
use crate::outlet::unpack_folder;
use crate::output::{Output, folder_of};
use crate::packed::file::Unpacking;
use crate::patch::{DEFAULT_MEMORY_LIMIT, Opened, open_delta_telling};
use crate::target::{read_digest, reread_all};
use crate::units::human;
use build::{Materials, build};
use canvas::Canvas;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How to build the new image.
#[derive(Clone, Copy, Debug)]
pub struct SlotOptions {
    /// Only check, and say what would be written.
    pub dry_run: bool,
    /// Bytes of memory that the delta may announce.
    pub memory_limit: u64,
    /// The old image's format.
    pub format: Format,
}

impl Default for SlotOptions {
    fn default() -> Self {
        Self { dry_run: false, memory_limit: DEFAULT_MEMORY_LIMIT, format: Format::Auto }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// TARGET holds the new image now.
    Built {
        /// Bytes written.
        written: u64,
    },
    /// TARGET held the new image already; nothing was written.
    UpToDate,
    /// Nothing was written: that was not asked for.
    Possible {
        /// Bytes that would be written at the most.
        most: u64,
    },
}

/// What `patch --old` did.
#[derive(Clone, Copy, Debug)]
pub struct SlotReport {
    /// What came of it.
    pub outcome: Outcome,
    /// Time taken.
    pub elapsed: Duration,
}

/// Makes a target hold the new image: a device, or a file that appears under its name only when it is complete.
///
/// # Errors
/// [`Error`]; its exit code tells whether the target is untouched.
pub fn patch_slot(
    delta_path: &Path,
    old: &Path,
    target: &Path,
    options: &SlotOptions,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<SlotReport, Error> {
    let start = Instant::now();
    let opened = open_delta_telling(delta_path, options.memory_limit, stop, monitor)?;
    check_apart(delta_path, old, target)?;
    // The target first: it may lock the disk on which both are partitions.
    let destination = Destination::open(target, if options.dry_run { Access::Inspect } else { Access::Write })?;
    let old = OldImage::open(old, options.format, Access::Source, monitor)?;
    old.files.iter().try_for_each(|file| check_apart(delta_path, file, target))?;
    if let Destination::Device(device) = &destination {
        device.warnings().iter().for_each(|warning| monitor.note(warning));
        check_len(&**device, opened.delta.header.new.len)?;
        if !options.dry_run {
            ask(&**device, &|| intent(&opened, delta_path, old.name()), stop, monitor)?;
        }
    }
    let unpacking = Unpacking { folder: &destination.unpack_folder(), stop, monitor };
    let (old, _) = old.unpack(unpacking)?;
    let job = Job { opened: &opened, delta_path, old: &*old, dry_run: options.dry_run, stop, monitor };
    let outcome = match &destination {
        Destination::Device(device) => {
            let outcome = job.onto_device(&**device)?;
            if !options.dry_run {
                finish(&**device, matches!(outcome, Outcome::Built { .. }), monitor);
            }
            outcome
        }
        Destination::File { path, there } => job.in_file(path, there.as_deref())?,
    };
    Ok(SlotReport { outcome, elapsed: start.elapsed() })
}

/// What is about to be done, for the question.
fn intent(opened: &Opened, delta_path: &Path, old: &str) -> Vec<(&'static str, String)> {
    let new = opened.delta.header.new;
    vec![
        ("delta", delta_path.display().to_string()),
        ("old", format!("{old}, which is only read")),
        ("new", format!("{} ({} bytes), CRC-32 {:08x}", human(new.len), new.len, new.crc)),
        ("writes", "all blocks that differ from the new image".into()),
    ]
}

/// As [`patch_slot`], from an image onto a device that are open; `delta_path` is for messages.
///
/// # Errors
/// As [`patch_slot`].
pub fn patch_slot_device(
    opened: &Opened,
    delta_path: &Path,
    (old, target): (&dyn Device, &dyn Device),
    options: &SlotOptions,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<SlotReport, Error> {
    let start = Instant::now();
    let job = Job { opened, delta_path, old, dry_run: options.dry_run, stop, monitor };
    let outcome = job.onto_device(target)?;
    Ok(SlotReport { outcome, elapsed: start.elapsed() })
}

/// What is written must neither be read nor be the delta.
fn check_apart(delta: &Path, old: &Path, target: &Path) -> Result<(), Error> {
    let unusable = |why| Err(Error::Unusable { path: target.to_owned(), why });
    if share_bytes(old, target) {
        return unusable("the target and OLD are the same, or share bytes; OLD must not be written");
    }
    if share_bytes(delta, target) {
        return unusable("the target is the delta, or the delta lies on it");
    }
    Ok(())
}

/// Where the new image is to be.
enum Destination {
    /// On a block device.
    Device(Box<dyn Device>),
    /// In a file.
    File {
        /// Its name, links followed.
        path: PathBuf,
        /// The file that has this name, locked.
        there: Option<Box<dyn Device>>,
    },
}

impl Destination {
    fn open(path: &Path, access: Access) -> Result<Self, Error> {
        if std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            check_folder(path)?;
            return Ok(Self::File { path: path.to_owned(), there: None });
        }
        let device = open_target(path, access)?;
        if !device.resizable() {
            return Ok(Self::Device(device));
        }
        // Not the link is to be replaced.
        let path = path.canonicalize().map_err(Error::io("follow the name", path))?;
        Ok(Self::File { path, there: Some(device) })
    }

    /// Where a compressed old image is unpacked.
    fn unpack_folder(&self) -> PathBuf {
        match self {
            Self::Device(_) => unpack_folder(None),
            Self::File { path, .. } => unpack_folder(Some(path)),
        }
    }
}

/// A new file needs a folder, and not the one of the devices: there the name of a device was meant, and a file would
/// fill the memory.
fn check_folder(path: &Path) -> Result<(), Error> {
    let folder = folder_of(path);
    let folder = folder.canonicalize().map_err(Error::io("find the folder", folder))?;
    if folder.starts_with("/dev") && !folder.starts_with("/dev/shm") {
        return Err(OpenError::Missing { path: path.to_owned() }.into());
    }
    Ok(())
}

/// What is to be done, whatever the destination.
struct Job<'a> {
    opened: &'a Opened,
    delta_path: &'a Path,
    old: &'a dyn Device,
    dry_run: bool,
    stop: &'a AtomicBool,
    monitor: &'a dyn Monitor,
}

impl Job<'_> {
    fn delta(&self) -> &Delta {
        &self.opened.delta
    }

    fn new_id(&self) -> ImageId {
        self.delta().header.new
    }

    fn materials(&self) -> Materials<'_> {
        Materials { old: self.old, delta: self.delta(), order: &self.opened.order }
    }

    /// Makes sure that OLD is the old image, all of it.
    fn check_old(&self) -> Result<(), Error> {
        let Some(expected) = self.delta().route.old else {
            let why = "it does not say what its old image is, so that OLD cannot be checked; patch in place";
            return Err(Error::Unusable { path: self.delta_path.to_owned(), why });
        };
        check_len(self.old, expected.len)?;
        self.old.forget_cache()?;
        self.monitor.phase("checking OLD", expected.len);
        let read = read_digest(self.old, expected.len, self.stop, self.monitor);
        match read.map_err(|e| e.untouched(self.delta_path))?.finish() {
            Some(found) if found == expected => Ok(()),
            found => Err(wrong_old(self.old.name(), found, [expected, self.new_id()], WRONG_OLD)),
        }
    }

    fn onto_device(&self, device: &dyn Device) -> Result<Outcome, Error> {
        check_len(device, self.new_id().len)?;
        self.check_old()?;
        if self.dry_run {
            return Ok(Outcome::Possible { most: self.new_id().len });
        }
        self.monitor.phase("waiting for earlier writes", 0);
        device.sync()?; // what it holds must be what lasts, as it may be left as it is
        let canvas = Canvas::new(device, self.monitor);
        let built = build(self.materials(), &canvas, self.stop, self.monitor);
        // Also where nothing was written now: a run that was interrupted may have been the one to write it.
        self.monitor.phase("making it durable", 0);
        let built = built.and_then(|()| Ok(device.sync()?));
        built.map_err(|e| unfinished(&canvas, e))?;
        if let Err(why) = self.check_result(device) {
            let name = device.name();
            return Err(if canvas.began() {
                Error::slot_unfinished(name, canvas.written(), &why)
            } else {
                Error::Unreliable { name, why }
            });
        }
        Ok(match canvas.written() {
            0 => Outcome::UpToDate,
            written => Outcome::Built { written },
        })
    }

    /// Builds the image in a file beside `path`, which then gets that name.
    fn in_file(&self, path: &Path, there: Option<&dyn Device>) -> Result<Outcome, Error> {
        self.check_old()?;
        if self.is_there(there)? {
            return Ok(Outcome::UpToDate);
        }
        if self.dry_run {
            return Ok(Outcome::Possible { most: self.new_id().len });
        }
        let failed = |e: &dyn std::fmt::Display| Error::NotMade { path: path.to_owned(), why: e.to_string() };
        let folder = folder_of(path);
        let output = Output::create_in(folder).map_err(Error::io("create a file in", folder))?;
        if there.is_some() {
            let meta = std::fs::metadata(path).map_err(|e| failed(&e))?;
            // Only root may give files away; for others it becomes theirs, as with any program that replaces a file.
            let _ = std::os::unix::fs::fchown(output.file(), Some(meta.uid()), Some(meta.gid()));
            output.file().set_permissions(meta.permissions()).map_err(|e| failed(&e))?;
        }
        let file = FileTarget::new(output.file().try_clone().map_err(|e| failed(&e))?, path);
        let canvas = Canvas::blank(&file, self.monitor);
        let built = file.set_len(self.new_id().len).map_err(WalkError::from);
        let built = built.and_then(|()| build(self.materials(), &canvas, self.stop, self.monitor));
        built.and_then(|()| Ok(file.sync()?)).map_err(|e| match e {
            WalkError::Stop => Error::Interrupted,
            e => failed(&e),
        })?;
        self.check_result(&file).map_err(|why| failed(&why))?;
        output.finish(path).map_err(|e| failed(&e))?;
        Ok(Outcome::Built { written: canvas.written() })
    }

    /// Whether the file that is to be replaced holds the new image already.
    fn is_there(&self, there: Option<&dyn Device>) -> Result<bool, Error> {
        let new = self.new_id();
        let Some(file) = there.filter(|file| file.len() == new.len) else { return Ok(false) };
        file.forget_cache()?;
        self.monitor.phase("reading the target", new.len);
        let read = read_digest(file, new.len, self.stop, self.monitor);
        Ok(read.map_err(|e| e.untouched(self.delta_path))?.finish() == Some(new))
    }

    /// Reads all of the new image back, past the cache.
    fn check_result(&self, device: &dyn Device) -> Result<(), String> {
        let new = self.new_id();
        device.forget_cache().map_err(|e| e.to_string())?;
        self.monitor.phase("checking the result", new.len);
        match reread_all(device, new.len, self.monitor).map_err(|e| e.to_string())?.finish() {
            Some(found) if found == new => Ok(()),
            found => {
                let found = found.map_or(0, |found| found.crc);
                let expected = new.crc;
                Err(format!(
                    "reading back after writing gives CRC-32 {found:08x} instead of {expected:08x}; the medium may be \
                     failing, or something has written to it or to OLD meanwhile"
                ))
            }
        }
    }
}

fn check_len(device: &dyn Device, needed: u64) -> Result<(), Error> {
    let actual = device.len();
    if actual >= needed {
        return Ok(());
    }
    Err(Error::TooSmall { name: device.name(), needed, actual })
}

/// What to say of an OLD that holds the new image, and of one that holds neither.
const WRONG_OLD: [&str; 2] = [
    "It holds the new image. Are OLD and the target mixed up, or was it patched in place?",
    "Check that this is the right OLD and the right delta ('blkpatch info' shows the old image's digests). If it is, a \
     file system on it was probably mounted read-write",
];

/// The refusal of an OLD that holds something else; with what to say where it is the new image, and where it is not.
pub(crate) fn wrong_old(name: String, found: Option<ImageId>, ids: [ImageId; 2], hints: [&str; 2]) -> Error {
    let [expected, new] = ids;
    let len = expected.len;
    let place = match found {
        Some(found) if found.crc != expected.crc => {
            format!("the CRC-32 of its first {len} bytes is {:08x} instead of {:08x}", found.crc, expected.crc)
        }
        _ => format!("the BLAKE3 of its first {len} bytes differs"),
    };
    let hint = hints[usize::from(found != Some(new))];
    Error::Neither { name, place, hint: hint.into() }
}

/// Building on a device has ended early.
fn unfinished(canvas: &Canvas<'_>, e: WalkError) -> Error {
    let name = canvas.device().name();
    match e {
        e if canvas.began() => Error::slot_unfinished(name, canvas.written(), &e),
        WalkError::Stop => Error::Interrupted,
        WalkError::Device(e) => Error::Device(e),
        e => Error::Unreliable { name, why: e.to_string() },
    }
}
