//! The image, from wherever it comes: it is taken in chunks, by several threads.

use super::stream::Head;
use super::trouble::Trouble;
use super::work::End;
use crate::device::table::TABLE_LEN;
use crate::device::{Access, AlignedBuffer, Device, open_target};
use crate::error::Error;
use crate::format::{Format, Kind, Medium, kind};
use crate::image::{Stamp, stamp};
use crate::monitor::{Monitor, Silent};
use crate::outlet::is_standard;
use crate::packed::Packing;
use crate::qcow2::Chain;
use crate::sweep::CHUNK;
use std::fs::{File, Metadata};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A chunk of the image: a multiple of [`CHUNK`] is where it starts, and only the last one is shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub offset: u64,
    pub len: usize,
    /// Nothing but zeros, which were not read: the buffer holds anything.
    pub hole: bool,
}

/// Something that yields an image in chunks: the next one to whoever asks.
pub(super) trait Source: Sync {
    /// Fills the buffer with the next chunk; `None` behind the end.
    fn next(&self, buffer: &mut AlignedBuffer) -> Result<Option<Piece>, Trouble>;

    /// The image's first bytes, as far as they tell whether it begins with a partition table, while nothing was taken yet;
    /// `None` where they cannot be had.
    fn head(&self) -> Option<Vec<u8>>;

    /// Bytes of the image that were taken so far; its length at the end.
    fn taken(&self) -> u64;
}

/// A file or a device that holds the image as it is.
struct Plain {
    device: Box<dyn Device>,
    len: u64,
    next: AtomicU64,
}

impl Source for Plain {
    fn next(&self, buffer: &mut AlignedBuffer) -> Result<Option<Piece>, Trouble> {
        // It cannot overflow: every thread asks at most once behind the end.
        let offset = self.next.fetch_add(CHUNK, Ordering::Relaxed);
        if offset >= self.len {
            return Ok(None);
        }
        let len = (self.len - offset).min(CHUNK);
        let hole = self.device.is_hole(offset, len);
        if !hole {
            buffer.resize(len as usize);
            self.device.read(offset, buffer).map_err(|e| Trouble::Image(e.to_string()))?;
        }
        Ok(Some(Piece { offset, len: len as usize, hole }))
    }

    fn head(&self) -> Option<Vec<u8>> {
        let mut head = vec![0; self.len.min(TABLE_LEN as u64) as usize];
        self.device.read(0, &mut head).ok()?; // whoever takes the first chunk will tell why
        Some(head)
    }

    fn taken(&self) -> u64 {
        self.next.load(Ordering::Relaxed).min(self.len)
    }
}

/// An image that is open.
pub(super) struct Image<'a> {
    pub name: String,
    /// Its length, where it is known before it was read.
    pub len: Option<u64>,
    /// Its least length, as a compressed file tells it.
    pub promised: Option<u64>,
    pub source: Box<dyn Source + 'a>,
    path: PathBuf,
    /// What it is, and all the files it lies on, to compare with the target.
    metas: Vec<Metadata>,
    /// What tells whether they are written.
    stamps: Vec<(PathBuf, Stamp)>,
}

impl<'a> Image<'a> {
    /// Opens a file, a block device, a pipe, or `-` for standard input, and recognises how it is packed.
    pub fn open(path: &Path, format: Format, end: &'a End<'a>, monitor: &dyn Monitor) -> Result<Self, Error> {
        if is_standard(path) {
            return Self::from_standard_input(format, end);
        }
        let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
        let medium = match meta.file_type() {
            it if it.is_file() => Medium::File,
            it if it.is_block_device() => Medium::Device,
            it if it.is_fifo() => Medium::Pipe,
            it => {
                let why = if it.is_dir() {
                    "is a directory, not an image"
                } else {
                    "is neither a file, a block device nor a pipe"
                };
                return Err(Error::Unusable { path: path.to_owned(), why });
            }
        };
        if medium == Medium::Device {
            kind(path, &[], medium, format)?;
            return Self::plain(path, meta);
        }
        let stamp = stamp(path);
        let file = File::open(path).map_err(Error::io("open", path))?;
        let head = read_head(file, path, end)?;
        match kind(path, head.bytes(), medium, format)? {
            Kind::Raw if medium == Medium::File => Self::plain(path, meta),
            Kind::Raw => Ok(Self::stream(path, meta, head, None, stamp)),
            Kind::Qcow2 => Self::chain(path, monitor),
            Kind::Packed(packing) => Ok(Self::stream(path, meta, head, Some(packing), stamp)),
        }
    }

    /// Opens it again from its start.
    pub fn again<'b>(&self, format: Format, end: &'b End<'b>) -> Result<Image<'b>, Error> {
        Image::open(&self.path, format, end, &Silent)
    }

    fn from_standard_input(format: Format, end: &'a End<'a>) -> Result<Self, Error> {
        let path = Path::new("standard input");
        let input = std::io::stdin();
        if input.is_terminal() {
            return Err(Error::Unusable {
                path: path.to_owned(),
                why: "is a terminal: pipe an image into this command",
            });
        }
        let file = File::from(input.as_fd().try_clone_to_owned().map_err(Error::io("open", path))?);
        let meta = file.metadata().map_err(Error::io("read", path))?;
        // A device that was redirected to it is one still: its content belongs to whoever uses it, and is not unpacked.
        let medium = if meta.file_type().is_block_device() { Medium::Device } else { Medium::Pipe };
        let head = read_head(file, path, end)?;
        let packing = match kind(path, head.bytes(), medium, format)? {
            Kind::Packed(packing) => Some(packing),
            Kind::Raw | Kind::Qcow2 => None,
        };
        Ok(Self::stream(path, meta, head, packing, None))
    }

    fn stream(path: &Path, meta: Metadata, head: Head<'a>, packing: Option<Packing>, stamp: Option<Stamp>) -> Self {
        let name = path.display().to_string();
        let promised = packing.and_then(|packing| head.promised(packing));
        let source = Box::new(head.unpack(name.clone(), packing));
        let stamps = stamp.map(|stamp| (path.to_owned(), stamp)).into_iter().collect();
        Self { name, len: None, promised, source, path: path.to_owned(), metas: vec![meta], stamps }
    }

    fn plain(path: &Path, meta: Metadata) -> Result<Self, Error> {
        let stamps = stamp(path).map(|stamp| (path.to_owned(), stamp)).into_iter().collect();
        Ok(Self::of_device(path, open_target(path, Access::Read)?, vec![meta], stamps))
    }

    /// A qcow2 image, with all that it lies on.
    fn chain(path: &Path, monitor: &dyn Monitor) -> Result<Self, Error> {
        let chain = Chain::open(path)?;
        if let Some(note) = chain.note() {
            monitor.note(&note);
        }
        let metas = chain.members().map(|member| member.meta.clone()).collect();
        let stamps = chain.members().filter_map(|member| Some((member.path.clone(), member.stamp?))).collect();
        Ok(Self::of_device(path, Box::new(chain), metas, stamps))
    }

    fn of_device(path: &Path, device: Box<dyn Device>, metas: Vec<Metadata>, stamps: Vec<(PathBuf, Stamp)>) -> Self {
        let len = device.len();
        let source = Box::new(Plain { device, len, next: AtomicU64::new(0) });
        let (name, path) = (path.display().to_string(), path.to_owned());
        Self { name, len: Some(len), promised: None, source, path, metas, stamps }
    }

    /// What it is, and what all the files are that it lies on.
    pub fn metas(&self) -> impl Iterator<Item = &Metadata> {
        self.metas.iter()
    }

    /// The files or devices that it lies on, as far as they have names.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.stamps.iter().map(|(path, _)| path.as_path()).chain([self.path.as_path()])
    }

    /// Fails if a regular file was written since it was opened; devices and pipes cannot tell.
    pub fn unchanged(&self) -> Result<(), Trouble> {
        match self.stamps.iter().find(|(path, then)| stamp(path) != Some(*then)) {
            Some((path, _)) => Err(Trouble::Changed(path.display().to_string())),
            None => Ok(()),
        }
    }

    /// The refusal of an image that holds nothing.
    pub fn empty(&self) -> Error {
        Error::Unusable { path: self.path.clone(), why: "holds no image: it is empty" }
    }
}

/// Refuses what can be read only once.
pub(super) fn refuse_stream(path: &Path) -> Result<(), Error> {
    let pipe = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    if path != Path::new("-") && !pipe {
        return Ok(());
    }
    let why = "can be read only once, and '--undo' reads the image twice, as it keeps everything before the first write: \
               write the image to a file first";
    let path = if pipe { path } else { Path::new("standard input") };
    Err(Error::Unusable { path: path.to_owned(), why })
}

fn read_head<'a>(file: File, path: &Path, end: &'a End<'a>) -> Result<Head<'a>, Error> {
    Head::read(file, end).map_err(|e| if end.asked() { Error::Interrupted } else { Error::io("read", path)(e) })
}
