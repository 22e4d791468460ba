//! `export`: writes a delta as a qcow2 overlay on the old image, so that the new one can be tried in QEMU before any disk
//! is touched. The old image is only read, and checked first.
//!
//! The overlay, while it is made, is a device that shows the old image: so what batches write is made on it as in another
//! slot, and what they leave alone is there already. QEMU cannot read compressed images: where the old one is, the result
//! has no backing file, and holds all of the new image.

use crate::delta::Delta;
use crate::device::{Access, Device, MemoryDevice};
use crate::digest::ImageId;
use crate::error::Error;
use crate::format::{Format, Kind};
use crate::monitor::Monitor;
use crate::opening::OldImage;
use crate::outlet::{check_output, is_standard, output_name, real_output, unpack_folder};
use crate::output::{Output, folder_of};
use crate::packed::file::Unpacking;
use crate::patch::{DEFAULT_MEMORY_LIMIT, open_delta};
use crate::qcow2::Chain;
use crate::qcow2::overlay::{Named, Overlay};
use crate::slot::build::{Materials, build, make_batches};
use crate::slot::canvas::Canvas;
use crate::slot::wrong_old;
use crate::target::reread_all;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How to export.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// The old image's format, which is noted in the overlay.
    pub format: Format,
    /// Bytes of memory that the delta may announce.
    pub memory_limit: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { format: Format::Auto, memory_limit: DEFAULT_MEMORY_LIMIT }
    }
}

/// What `export` did.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// The new image.
    pub new: ImageId,
    /// Bytes of the overlay.
    pub overlay_len: u64,
    /// The old image, as the overlay names it; `None` where it stands alone, as the old image is compressed.
    pub backing: Option<PathBuf>,
    /// Time taken.
    pub elapsed: Duration,
}

/// Writes an overlay on `old` that shows the new image; where `old` is compressed, an image that stands alone. `output`
/// appears only when it is complete and was read back.
///
/// # Errors
/// A delta that cannot be used, an `old` that is not its old image, or an output that cannot be written.
pub fn export(
    delta_path: &Path,
    old_path: &Path,
    output: &Path,
    options: &ExportOptions,
    monitor: &dyn Monitor,
) -> Result<ExportReport, Error> {
    let start = Instant::now();
    if is_standard(output) {
        let why = "an overlay must be a file that has a name, as it lies on another one";
        return Err(Error::Unusable { path: output_name(output).to_owned(), why });
    }
    let opened = open_delta(delta_path, options.memory_limit)?;
    let delta = &opened.delta;
    let old = OldImage::open(old_path, options.format, Access::Read, monitor)?;
    let output = &real_output(output)?;
    check_output(output, old.files.iter().map(PathBuf::as_path).chain([old_path, delta_path]))?;
    // A signal ends the program, and with it all that has no name yet.
    let never = AtomicBool::new(false);
    let unpacking = Unpacking { folder: &unpack_folder(Some(output)), stop: &never, monitor };
    let (device, kind) = old.unpack(unpacking)?;
    check_old(&*device, delta, delta_path, monitor)?;
    let folder = folder_of(output);
    let backing = Backing::new(kind, old_path, folder)?;
    let file = Output::create_in(folder).map_err(Error::io("create a file in", folder))?;
    let from = Materials { old: &*device, delta, order: &opened.order };
    make(from, backing.as_ref(), file.file(), output, monitor)?;
    check_result(file.file(), output, backing.as_ref(), delta, monitor)?;
    let overlay_len = file.file().metadata().map_err(Error::io("write", output))?.len();
    file.finish(output).map_err(Error::io("create", output))?;
    let backing = backing.map(|backing| PathBuf::from(OsStr::from_bytes(&backing.name)));
    Ok(ExportReport { new: delta.header.new, overlay_len, backing, elapsed: start.elapsed() })
}

/// Makes the overlay in an empty file; `output` is for messages.
fn make(
    from: Materials<'_>,
    backing: Option<&Backing<'_>>,
    file: &File,
    output: &Path,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let failed = |e: &dyn std::fmt::Display| Error::NotMade { path: output.to_owned(), why: e.to_string() };
    let (nothing, never) = (MemoryDevice::new(Vec::new(), false), AtomicBool::new(false));
    let below: &dyn Device = if backing.is_some() { from.old } else { &nothing };
    let overlay = Overlay::new(file, output, below, from.delta.header.new.len);
    let made = match backing {
        Some(_) => make_batches(from, &Canvas::unseen(&overlay, monitor), &never, monitor),
        None => build(from, &Canvas::blank(&overlay, monitor), &never, monitor),
    };
    made.map_err(|e| failed(&e))?;
    let named = backing.map(|backing| Named { name: &backing.name, format: backing.format() });
    overlay.finish(named).map_err(|e| failed(&e))
}

/// What an overlay lies on.
struct Backing<'a> {
    /// The old image.
    path: &'a Path,
    /// How the overlay names it.
    name: Vec<u8>,
    is_qcow2: bool,
}

impl<'a> Backing<'a> {
    /// `None` for an image that QEMU cannot read.
    fn new(kind: Kind, path: &'a Path, folder: &Path) -> Result<Option<Self>, Error> {
        if matches!(kind, Kind::Packed(_)) {
            return Ok(None);
        }
        let name = backing_name(path, folder)?;
        Ok(Some(Self { path, name, is_qcow2: kind == Kind::Qcow2 }))
    }

    fn format(&self) -> &'static [u8] {
        if self.is_qcow2 { b"qcow2" } else { b"raw" }
    }
}

/// Makes sure that a device holds the delta's old image, all of it.
fn check_old(device: &dyn Device, delta: &Delta, delta_path: &Path, monitor: &dyn Monitor) -> Result<(), Error> {
    let Some(expected) = delta.route.old else {
        let why = "it does not say what its old image is, so that OLD cannot be checked";
        return Err(Error::Unusable { path: delta_path.to_owned(), why });
    };
    let name = device.name();
    if device.len() < expected.len {
        return Err(Error::TooSmall { name, needed: expected.len, actual: device.len() });
    }
    monitor.phase("checking OLD", expected.len);
    let read = reread_all(device, expected.len, monitor).map_err(|e| e.untouched(delta_path))?;
    match read.finish() {
        Some(found) if found == expected => Ok(()),
        found => Err(wrong_old(name, found, [expected, delta.header.new], WRONG_OLD)),
    }
}

/// What to say of an OLD that holds the new image, and of one that holds neither.
const WRONG_OLD: [&str; 2] = [
    "It holds the new image; an overlay is made on the old one",
    "Check that this is the right OLD and the right delta ('blkpatch info' shows the old image's digests)",
];

/// How the overlay names the old image: by its bare name where both lie in one folder, so that they can be moved together,
/// and else by its whole path.
fn backing_name(old: &Path, folder: &Path) -> Result<Vec<u8>, Error> {
    let real = |folder: &Path| folder.canonicalize().map_err(Error::io("find the folder", folder));
    let (old_folder, folder) = (real(folder_of(old))?, real(folder)?);
    let why = "has no name that an overlay could use";
    let name = old.file_name().ok_or_else(|| Error::Unusable { path: old.to_owned(), why })?;
    let path = match old_folder == folder {
        // Before a colon QEMU would see a protocol.
        true if name.as_bytes().contains(&b':') => Path::new(".").join(name),
        true => PathBuf::from(name),
        false => old_folder.join(name),
    };
    Ok(path.into_os_string().as_bytes().to_vec())
}

/// Reads the overlay as any other reader would.
fn check_result(
    file: &File,
    output: &Path,
    backing: Option<&Backing<'_>>,
    delta: &Delta,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let not_made = |why: String| Error::NotMade { path: output.to_owned(), why };
    let new = delta.header.new;
    monitor.phase("checking the result", new.len);
    let file = file.try_clone().map_err(Error::io("read", output))?;
    let chain = match backing {
        Some(backing) => Chain::on(file, output, backing.path, backing.is_qcow2)?,
        None => Chain::alone(file, output)?,
    };
    let found = reread_all(&chain, new.len, monitor).map_err(|e| not_made(e.to_string()))?.finish();
    if found == Some(new) {
        return Ok(());
    }
    let (found, expected) = (found.map_or(0, |found| found.crc), new.crc);
    Err(not_made(format!(
        "reading it back gives CRC-32 {found:08x} instead of {expected:08x}; the medium may be failing, or something has \
         written to OLD meanwhile"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_beside_its_base_names_it_barely() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("sub")).unwrap();
        let name = |old: &str, to: &str| {
            let name = backing_name(&folder.join(old), &folder.join(to)).unwrap();
            String::from_utf8(name).unwrap()
        };
        assert_eq!(name("old.img", ""), "old.img");
        assert_eq!(name("sub/../old.img", "."), "old.img");
        assert_eq!(name("a:b.img", ""), "./a:b.img");
        assert_eq!(name("old.img", "sub"), folder.join("old.img").to_str().unwrap());
        assert_eq!(name("sub/a:b", ""), folder.join("sub/a:b").to_str().unwrap());
        assert!(backing_name(Path::new(".."), &folder).is_err());
    }
}
