//! Opens images of any kind: those that are mapped, for `diff` and `sign`, and an old image that only needs to be read.

use crate::device::{Access, Device, FileTarget, open_target};
use crate::error::Error;
use crate::format::{Format, Kind, kind_of};
use crate::image::{Image, Room, storage_kind};
use crate::monitor::Monitor;
use crate::packed::file::{PackedFile, Unpacking};
use crate::packed::memory_limit;
use crate::parallel;
use crate::qcow2::Chain;
use crate::qcow2::map::open_chain;
use crate::units::human;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// How and where to open images.
#[derive(Clone, Copy)]
pub(crate) struct Opening<'a> {
    /// Where temporary files go.
    pub folder: &'a Path,
    /// Threads that unpack.
    pub threads: usize,
    /// Who is told what else is read, and where it is unpacked.
    pub monitor: &'a dyn Monitor,
}

/// Opens an image of any kind.
///
/// # Errors
/// One that cannot be read or is refused, and a temporary file that cannot be written.
pub(crate) fn open_image(path: &Path, format: Format, how: Opening<'_>) -> Result<Image, Error> {
    let image = match kind_of(path, format)? {
        Kind::Raw => Image::open(path),
        Kind::Qcow2 => open_chain(path, how),
        Kind::Packed(packing) => {
            let packed = PackedFile::open(path, packing)?;
            unpack_all(&[packed], how)?.pop().map_or_else(|| Image::open(path), Ok)
        }
    }?;
    check_holes(path, &[&image], how.folder)?;
    Ok(image)
}

/// Opens two images; if both are compressed, they are unpacked at the same time.
///
/// # Errors
/// As [`open_image`].
pub(crate) fn open_pair(inputs: [(&Path, Format); 2], how: Opening<'_>) -> Result<(Image, Image), Error> {
    let [(old, old_format), (new, new_format)] = inputs;
    // What is left for one need not be enough for both.
    let checked = |images: (Image, Image)| {
        check_holes(old, &[&images.0, &images.1], how.folder)?;
        Ok(images)
    };
    if let (Kind::Packed(a), Kind::Packed(b)) = (kind_of(old, old_format)?, kind_of(new, new_format)?) {
        let mut images = unpack_all(&[PackedFile::open(old, a)?, PackedFile::open(new, b)?], how)?;
        if let (Some(new), Some(old)) = (images.pop(), images.pop()) {
            return checked((old, new));
        }
    }
    checked((open_image(old, old_format, how)?, open_image(new, new_format, how)?))
}

/// Unpacks compressed images, in order.
fn unpack_all(files: &[PackedFile], how: Opening<'_>) -> Result<Vec<Image>, Error> {
    how.monitor.phase("unpacking", files.iter().map(|file| file.len).sum());
    let memory: u64 = files.iter().map(PackedFile::memory).fold(0, u64::saturating_add);
    let threads = if memory > memory_limit() { 1 } else { how.threads };
    // A signal ends the program, and with it the files, which have no names. Where one fails, the others end.
    let failed = AtomicBool::new(false);
    let unpacking = Unpacking { folder: how.folder, stop: &failed, monitor: how.monitor };
    let unpacked = parallel::map(files.len(), threads, |i| {
        let file = files[i].unpack(unpacking);
        failed.fetch_or(file.is_err(), Ordering::Relaxed);
        file
    });
    let (unpacked, errors): (Vec<_>, Vec<_>) = unpacked.into_iter().partition(Result::is_ok);
    if let Some(e) = errors.into_iter().filter_map(Result::err).find(|e| !matches!(e, Error::Interrupted)) {
        return Err(e);
    }
    let unpacked = unpacked.into_iter().collect::<Result<Vec<File>, Error>>()?;
    let image = |(packed, file): (&PackedFile, File)| {
        let image = Image::of_file(file).map_err(Error::io("map", &packed.path))?;
        Ok(image.watching([(packed.path.as_path(), packed.stamp)].into_iter()))
    };
    files.iter().zip(unpacked).map(image).collect()
}

/// On a tmpfs a hole takes room as soon as it is read through a map, and where there is none the system ends the program.
fn check_holes(name: &Path, images: &[&Image], folder: &Path) -> Result<(), Error> {
    const TMPFS: u64 = 0x0102_1994;
    let sum = |bytes: fn(Room) -> u64| images.iter().fold(0u64, |sum, image| sum.saturating_add(bytes(image.room())));
    let (taken, holes) = (sum(|room| room.taken), sum(|room| room.holes));
    let is_tmpfs = rustix::fs::statfs(folder).is_ok_and(|fs| fs.f_type as u64 == TMPFS);
    if holes == 0 || !is_tmpfs {
        return Ok(());
    }
    let free = rustix::fs::statvfs(folder).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    if holes <= free {
        return Ok(());
    }
    let why = "it is a tmpfs, where zeros that are read take room as well";
    Err(Error::NoRoom {
        image: name.to_owned(),
        folder: folder.to_owned(),
        written: human(taken),
        source: io::Error::new(io::ErrorKind::StorageFull, why),
    })
}

/// An old image that is only read: whoever reads it checks all of it by its digest.
pub(crate) struct OldImage {
    /// It; a compressed one only when it is unpacked.
    opened: Opened,
    /// All files that are read.
    pub files: Vec<PathBuf>,
    name: String,
}

enum Opened {
    Ready(Box<dyn Device>, Kind),
    Packed(PackedFile),
}

impl OldImage {
    /// Opens an image of any kind; a raw one for this access.
    pub fn open(path: &Path, format: Format, access: Access, monitor: &dyn Monitor) -> Result<Self, Error> {
        // What holds no bytes cannot be opened either, which says it better.
        let kind = if storage_kind(path).is_ok() { kind_of(path, format)? } else { Kind::Raw };
        let mut files = vec![path.to_owned()];
        let opened = match kind {
            Kind::Raw => Opened::Ready(open_target(path, access)?, kind),
            Kind::Packed(packing) => Opened::Packed(PackedFile::open(path, packing)?),
            Kind::Qcow2 => {
                let chain = Chain::open(path)?;
                if let Some(note) = chain.note() {
                    monitor.note(&note);
                }
                files = chain.members().map(|member| member.path.clone()).collect();
                Opened::Ready(Box::new(chain), kind)
            }
        };
        Ok(Self { opened, files, name: path.display().to_string() })
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes all of its bytes readable; unpacks what is compressed, which may take long. Also says what it was.
    pub fn unpack(self, how: Unpacking<'_>) -> Result<(Box<dyn Device>, Kind), Error> {
        match self.opened {
            Opened::Ready(device, kind) => Ok((device, kind)),
            Opened::Packed(packed) => {
                how.monitor.phase("unpacking OLD", packed.len);
                let file = packed.unpack(how)?;
                Ok((Box::new(FileTarget::temporary(file, &packed.path)), Kind::Packed(packed.packing)))
            }
        }
    }
}
