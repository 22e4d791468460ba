//! A file that appears under its name only when it is complete, and leaves nothing behind when it is not.

use rustix::fs::{AtFlags, CWD, OFlags};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// An output that is being written.
#[derive(Debug)]
pub enum Output {
    /// Without a name, so that not even a killed process leaves it behind (Linux's O_TMPFILE).
    Unnamed(File),
    /// With a temporary name, on file systems that cannot do better, such as FAT.
    Named(NamedTempFile),
}

/// The folder that a path lies in.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Output {
    /// Starts an output that will lie in `folder`.
    ///
    /// # Errors
    /// The system's.
    pub fn create_in(folder: &Path) -> io::Result<Self> {
        let flags = i32::from_ne_bytes(OFlags::TMPFILE.bits().to_ne_bytes());
        if let Ok(file) = OpenOptions::new().read(true).write(true).mode(0o666).custom_flags(flags).open(folder) {
            return Ok(Self::Unnamed(file));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".blkpatch-").permissions(Permissions::from_mode(0o666)).tempfile_in(folder).map(Self::Named)
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        match self {
            Self::Unnamed(file) => file,
            Self::Named(file) => file.as_file(),
        }
    }

    /// Makes it durable and gives it its name, replacing what has it.
    ///
    /// # Errors
    /// The system's; the name is then as it was.
    pub fn finish(self, path: &Path) -> io::Result<()> {
        self.file().sync_all()?;
        match self {
            Self::Named(file) => file.persist(path).map(drop).map_err(|e| e.error)?,
            Self::Unnamed(file) => {
                let temporary = link(&file, folder_of(path))?;
                if let Err(e) = std::fs::rename(&temporary, path) {
                    let _ = std::fs::remove_file(&temporary); // the first error is the one to tell
                    return Err(e);
                }
            }
        }
        // The name, too, should survive a power cut; where a folder cannot be synced, it will be there soon.
        let _ = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// The same where nothing may have the name, and the name too must be durable.
    ///
    /// # Errors
    /// The system's; also where something has the name.
    pub fn finish_new(self, path: &Path) -> io::Result<()> {
        self.file().sync_all()?;
        match self {
            Self::Named(file) => file.persist_noclobber(path).map(drop).map_err(|e| e.error)?,
            Self::Unnamed(file) => {
                let source = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, source.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW)?;
            }
        }
        match File::open(folder_of(path)).and_then(|folder| folder.sync_all()) {
            // There are file systems whose folders cannot be synced; the file was.
            Err(e) if !matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Err(e),
            _ => Ok(()),
        }
    }
}

/// Gives an unnamed file a name that nobody has: linkat(2) cannot replace, so a rename follows.
fn link(file: &File, folder: &Path) -> io::Result<PathBuf> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..100u32 {
        let name = folder.join(format!(".blkpatch-{}-{attempt}", std::process::id()));
        match rustix::fs::linkat(CWD, source.as_str(), CWD, &name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(name),
            Err(e) => last = e.into(),
        }
        if last.kind() != io::ErrorKind::AlreadyExists {
            break;
        }
    }
    Err(last)
}
