//! Unpacks an image to a temporary file without a name, for those who need all of its bytes at hand. Where the image is
//! zero the file has holes: it takes no more room than the rest.

use super::{HEAD, PackedError, Packing, Unpacker, promised};
use crate::error::Error;
use crate::image::{Stamp, stamp};
use crate::monitor::Monitor;
use crate::reading::{fill, read_up_to};
use crate::sparse::write_data;
use crate::units::{PART, human};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A compressed image in a file.
#[derive(Debug)]
pub(crate) struct PackedFile {
    pub path: PathBuf,
    file: File,
    pub packing: Packing,
    /// What tells whether it is written meanwhile.
    pub stamp: Option<Stamp>,
    /// Bytes of the compressed file.
    pub len: u64,
    head: Vec<u8>,
}

/// How and where to unpack.
#[derive(Clone, Copy)]
pub(crate) struct Unpacking<'a> {
    /// The folder of the temporary file.
    pub folder: &'a Path,
    /// Whether the user wants it to end.
    pub stop: &'a AtomicBool,
    /// Is told of every byte of the compressed file that was unpacked.
    pub monitor: &'a dyn Monitor,
}

impl PackedFile {
    /// Opens a file that was recognised.
    pub fn open(path: &Path, packing: Packing) -> Result<Self, Error> {
        let stamp = stamp(path);
        let file = File::open(path).map_err(Error::io("open", path))?;
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        let mut head = vec![0; HEAD];
        let read = read_up_to(&file, 0, &mut head).map_err(Error::io("read", path))?;
        head.truncate(read);
        Ok(Self { path: path.to_owned(), file, packing, stamp, len, head })
    }

    /// Bytes of memory that unpacking it takes, where it says that it is much.
    pub fn memory(&self) -> u64 {
        super::codec::zstd_window(&self.head).unwrap_or(0)
    }

    /// Unpacks all of it.
    ///
    /// # Errors
    /// A file that is damaged or incomplete, a folder that has no room, and the user's wish.
    pub fn unpack(&self, how: Unpacking<'_>) -> Result<File, Error> {
        self.tell_of_room(how);
        let failed = |written| {
            move |source| Error::NoRoom {
                image: self.path.clone(),
                folder: how.folder.to_owned(),
                written: human(written),
                source,
            }
        };
        let file = tempfile::tempfile_in(how.folder).map_err(failed(0))?;
        let mut packed = Unpacker::new(&self.file, self.packing);
        let (mut buffer, mut at) = (vec![0; PART as usize], 0);
        loop {
            if how.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let taken = packed.taken();
            let len = fill(&mut packed, &mut buffer).map_err(|e| self.refused(at, packed.fault(e)))?;
            how.monitor.advance(packed.taken() - taken);
            if len == 0 {
                break;
            }
            write_data(&file, at, &buffer[..len]).map_err(failed(at))?;
            at += len as u64;
        }
        file.set_len(at).map_err(failed(at))?;
        let room = file.metadata().map_or(at, |meta| meta.blocks().saturating_mul(512));
        how.monitor.note(&format!(
            "{}, compressed by {}, is unpacked in {} until this program ends: {at} bytes, which take {} of room",
            self.path.display(),
            self.packing,
            how.folder.display(),
            human(room)
        ));
        Ok(file)
    }

    fn refused(&self, at: u64, source: PackedError) -> Error {
        Error::Packed { path: self.path.clone(), packing: self.packing, at, source }
    }

    /// Says so where it will not fit unless much of it is zero: how much is, nobody knows yet.
    fn tell_of_room(&self, how: Unpacking<'_>) {
        let promised = promised(self.packing, &self.head, &self.file);
        let free = rustix::fs::statvfs(how.folder).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        if let (Some(promised), Ok(free)) = (promised, free)
            && promised > free
        {
            how.monitor.note(&format!(
                "{} says that it unpacks to {}, and {} has {} of room: that is enough only if much of the image is zero; set \
                 TMPDIR to unpack it elsewhere",
                self.path.display(),
                human(promised),
                how.folder.display(),
                human(free)
            ));
        }
    }
}
