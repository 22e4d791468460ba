//! `export`: writes a delta as a qcow2 overlay on the old image, so that the new one can be tried in QEMU before any disk
//! is touched. The old image is only read, and checked first.
//!
//! The overlay, while it is made, is a device that shows the old image: so what batches write is made on it as in another
//! slot, and what they leave alone is there already.

use crate::delta::Delta;
use crate::device::{Access, Device, open_target};
use crate::diff::{check_output, real_output};
use crate::digest::ImageId;
use crate::error::Error;
use crate::monitor::Monitor;
use crate::outlet::{is_standard, output_name};
use crate::output::{Output, folder_of};
use crate::patch::{DEFAULT_MEMORY_LIMIT, open_delta};
use crate::qcow2::overlay::{Named, Overlay};
use crate::qcow2::{Chain, Format, file_is_qcow2};
use crate::slot::build::{Materials, make_batches};
use crate::slot::canvas::Canvas;
use crate::slot::wrong_old;
use crate::target::reread_all;
use std::ffi::OsStr;
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
    /// The old image, as the overlay names it.
    pub backing: PathBuf,
    /// Time taken.
    pub elapsed: Duration,
}

/// Writes an overlay on `old` that shows the new image. `output` appears only when it is complete and was read back.
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
    let old = Old::open(old_path, options.format, monitor)?;
    let output = &real_output(output)?;
    check_output(output, old.files.iter().map(PathBuf::as_path).chain([old_path, delta_path]))?;
    old.check(delta, delta_path, monitor)?;
    let folder = folder_of(output);
    let name = backing_name(old_path, folder)?;
    let file = Output::create_in(folder).map_err(Error::io("create a file in", folder))?;
    let overlay = Overlay::new(file.file(), output, &*old.device, delta.header.new.len);
    let failed = |e: &dyn std::fmt::Display| Error::NotMade { path: output.to_owned(), why: e.to_string() };
    let from = Materials { old: &*old.device, delta, order: &opened.order };
    // A signal ends the program, and with it the file, which has no name yet.
    make_batches(from, &Canvas::unseen(&overlay, monitor), &AtomicBool::new(false), monitor).map_err(|e| failed(&e))?;
    overlay.finish(Named { name: &name, format: old.format }).map_err(|e| failed(&e))?;
    check_result(file.file(), output, old_path, &old, delta, monitor)?;
    let overlay_len = file.file().metadata().map_err(Error::io("write", output))?.len();
    file.finish(output).map_err(Error::io("create", output))?;
    let backing = PathBuf::from(OsStr::from_bytes(&name));
    Ok(ExportReport { new: delta.header.new, overlay_len, backing, elapsed: start.elapsed() })
}

/// The old image.
struct Old {
    device: Box<dyn Device>,
    format: &'static [u8],
    /// All files that are read.
    files: Vec<PathBuf>,
}

impl Old {
    fn open(path: &Path, format: Format, monitor: &dyn Monitor) -> Result<Self, Error> {
        if !file_is_qcow2(path, format)? {
            let device = open_target(path, Access::Read)?;
            return Ok(Self { device, format: b"raw", files: vec![path.to_owned()] });
        }
        let chain = Chain::open(path)?;
        if let Some(note) = chain.note() {
            monitor.note(&note);
        }
        let files = chain.members().map(|member| member.path.clone()).collect();
        Ok(Self { device: Box::new(chain), format: b"qcow2", files })
    }

    /// Makes sure that it is the delta's old image, all of it.
    fn check(&self, delta: &Delta, delta_path: &Path, monitor: &dyn Monitor) -> Result<(), Error> {
        let Some(expected) = delta.route.old else {
            let why = "it does not say what its old image is, so that OLD cannot be checked";
            return Err(Error::Unusable { path: delta_path.to_owned(), why });
        };
        let (device, name) = (&*self.device, self.device.name());
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
    file: &std::fs::File,
    output: &Path,
    old_path: &Path,
    old: &Old,
    delta: &Delta,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let not_made = |why: String| Error::NotMade { path: output.to_owned(), why };
    let new = delta.header.new;
    monitor.phase("checking the result", new.len);
    let file = file.try_clone().map_err(Error::io("read", output))?;
    let chain = Chain::on(file, output, old_path, old.format == b"qcow2")?;
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
