//! A qcow2 image with its backing files, as one disk that can be read.

use super::entry::Place;
use super::layer::Layer;
pub use super::layer::Member;
use super::{MAGIC, Qcow2Error};
use crate::device::{Device, DeviceError};
use crate::error::Error;
use crate::image::data_ranges;
use crate::reading::read_up_to;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files that a chain may have.
pub const MOST_FILES: usize = 64;

/// A qcow2 image and what it lies on.
#[derive(Debug)]
pub struct Chain {
    /// The image itself first.
    layers: Vec<Layer>,
    base: Option<Base>,
}

/// The raw image, or block device, at the bottom of a chain.
#[derive(Debug)]
pub struct Base {
    /// Which one.
    pub member: Member,
    /// It, open.
    pub file: File,
    /// Bytes of it.
    pub len: u64,
    /// Its ranges that are not holes: ascending.
    pub data: Vec<Range<u64>>,
}

/// What lies below an image.
enum Below {
    Nothing,
    Raw(PathBuf),
    Qcow2(PathBuf),
}

impl Chain {
    /// Opens an image and all that it lies on, and checks their tables.
    ///
    /// # Errors
    /// [`Error::Qcow2`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_all(path).map_err(|source| Error::Qcow2 { path: path.to_owned(), source })
    }

    /// An image that has no name yet, on what it is to lie on; `path` is for messages.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn on(file: File, path: &Path, below_path: &Path, below_is_qcow2: bool) -> Result<Self, Error> {
        let chain = || {
            let layers = vec![Layer::of_file(file, path)?];
            let below = if below_is_qcow2 { Below::Qcow2 } else { Below::Raw };
            Self { layers, base: None }.with_all(below(below_path.to_owned()))
        };
        chain().map_err(|source| Error::Qcow2 { path: path.to_owned(), source })
    }

    /// An image that has no name yet and stands alone; `path` is for messages.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn alone(file: File, path: &Path) -> Result<Self, Error> {
        let chain = || Self { layers: vec![Layer::of_file(file, path)?], base: None }.with_all(Below::Nothing);
        chain().map_err(|source| Error::Qcow2 { path: path.to_owned(), source })
    }

    fn open_all(path: &Path) -> Result<Self, Qcow2Error> {
        Self { layers: Vec::new(), base: None }.with_all(Below::Qcow2(path.to_owned()))
    }

    /// Opens what is below, and all that this lies on.
    fn with_all(self, mut below: Below) -> Result<Self, Qcow2Error> {
        let mut chain = self;
        let mut seen = HashSet::new();
        loop {
            let named = |chain: &Self, path: &Path| {
                let (first, name) = (chain.layers.is_empty(), path.display().to_string());
                move |e| if first { e } else { Qcow2Error::Backing { name, source: Box::new(e) } }
            };
            match below {
                Below::Nothing => return Ok(chain),
                Below::Raw(path) => {
                    let base = Base::open(&path).map_err(named(&chain, &path))?;
                    meet(&mut seen, &base.member.meta)?;
                    chain.base = Some(base);
                    return Ok(chain);
                }
                Below::Qcow2(path) => {
                    if chain.layers.len() >= MOST_FILES {
                        return Err(Qcow2Error::TooDeep(MOST_FILES));
                    }
                    // Before its tables are read, which takes time.
                    if let Ok(meta) = std::fs::metadata(&path) {
                        meet(&mut seen, &meta)?;
                    }
                    let layer = Layer::open(&path).map_err(named(&chain, &path))?;
                    below = what_is_below(&layer).map_err(named(&chain, &path))?;
                    chain.layers.push(layer);
                }
            }
        }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.header.size)
    }

    /// Whether the disk has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All files that are read, the image itself first.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.layers.iter().map(|layer| &layer.member).chain(self.base.iter().map(|base| &base.member))
    }

    /// The raw image at the bottom.
    #[must_use]
    pub fn base(&self) -> Option<&Base> {
        self.base.as_ref()
    }

    /// What a user should know: which other files are read. `None` for an image that stands alone.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let mut names = self.members().map(|member| member.path.display().to_string());
        let first = names.next()?;
        let others: Vec<String> = names.collect();
        (!others.is_empty())
            .then(|| format!("{first} is an overlay; its backing file is read as well: {}", others.join(", on ")))
    }

    /// How many bytes from byte `at` on, at least 1 and at most up to `end`, either all lie in the base, if there is one
    /// (`true`), or do not. `at` must lie before `end`, and that within the disk.
    ///
    /// # Errors
    /// An image that became unreadable.
    pub fn is_in_base(&self, at: u64, end: u64) -> Result<(bool, u64), Qcow2Error> {
        let (mut end, mut in_base) = (end, self.base.is_some());
        for layer in &self.layers {
            if at >= layer.header.size {
                in_base = false; // zeros
                break;
            }
            let (place, len) = layer.place(at, end.min(layer.header.size))?;
            end = at + len;
            if place != Place::Below {
                in_base = false;
                break;
            }
        }
        Ok((in_base, end - at))
    }

    /// Fills `buffer` with the bytes of the disk from byte `at` on; all of them must lie within it.
    ///
    /// # Errors
    /// An image that cannot be read any more, or compressed data that is damaged.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        self.read_from(0, at, buffer)
    }

    fn read_from(&self, depth: usize, at: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        let Some(layer) = self.layers.get(depth) else { return self.read_base(at, buffer) };
        let there = layer.header.size.saturating_sub(at);
        let (mut rest, behind) = buffer.split_at_mut(buffer.len().min(usize::try_from(there).unwrap_or(usize::MAX)));
        behind.fill(0);
        let mut here = at;
        while !rest.is_empty() {
            let (place, len) = layer.place(here, here + rest.len() as u64)?;
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len as usize);
            match place {
                Place::Below => self.read_from(depth + 1, here, now)?,
                Place::Zero => now.fill(0),
                Place::Data(host) => layer.read_data(host, now).map_err(|e| Qcow2Error::Io("read", e))?,
                Place::Compressed { host, len, skip } => layer.read_compressed(here, (host, len), skip, now)?,
            }
            (rest, here) = (later, here + len);
        }
        Ok(())
    }

    fn read_base(&self, at: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        let len = match &self.base {
            None => 0,
            Some(base) => {
                let there = usize::try_from(base.len.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
                let len = read_up_to(&base.file, at, &mut buffer[..there]).map_err(|e| Qcow2Error::Io("read", e))?;
                if len < there {
                    return Err(Qcow2Error::Io("read", io::ErrorKind::UnexpectedEof.into()));
                }
                len
            }
        };
        buffer[len..].fill(0);
        Ok(())
    }

    /// Whether it is known without reading that `len` bytes from `at` on are zeros.
    fn is_zero(&self, depth: usize, at: u64, len: u64) -> Result<bool, Qcow2Error> {
        let Some(layer) = self.layers.get(depth) else {
            return Ok(self.base.as_ref().is_none_or(|base| base.is_hole(at, len)));
        };
        let mut here = at;
        let end = at.saturating_add(len).min(layer.header.size);
        while here < end {
            let (place, len) = layer.place(here, end)?;
            let zero = match place {
                Place::Zero => true,
                Place::Below => self.is_zero(depth + 1, here, len)?,
                Place::Data(_) | Place::Compressed { .. } => false,
            };
            if !zero {
                return Ok(false);
            }
            here += len;
        }
        Ok(true)
    }
}

impl Base {
    fn open(path: &Path) -> Result<Self, Qcow2Error> {
        let (member, file, len) = Member::open(path, true)?;
        let data = if member.meta.is_file() { data_ranges(&file, len) } else { vec![0..len] };
        Ok(Self { member, file, len, data })
    }

    fn is_hole(&self, at: u64, len: u64) -> bool {
        let next = self.data.partition_point(|data| data.end <= at);
        self.data.get(next).is_none_or(|data| data.start >= at.saturating_add(len))
    }
}

/// Notes that a file is in the chain.
fn meet(seen: &mut HashSet<(u64, u64)>, meta: &Metadata) -> Result<(), Qcow2Error> {
    if seen.insert((meta.dev(), meta.ino())) { Ok(()) } else { Err(Qcow2Error::Loop) }
}

/// The backing file of an image and its format, which is never guessed.
fn what_is_below(layer: &Layer) -> Result<Below, Qcow2Error> {
    let Some(name) = &layer.header.backing else { return Ok(Below::Nothing) };
    let shown = || String::from_utf8_lossy(name).into_owned();
    // What QEMU would take for a protocol, such as nbd: or json:, stands before a colon in the first part of the name.
    let first = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    if first.contains(&b':') {
        return Err(Qcow2Error::BackingName(shown()));
    }
    let path = folder_of(&layer.member.path).join(OsStr::from_bytes(name));
    match layer.header.backing_format.as_deref() {
        Some(b"qcow2") => Ok(Below::Qcow2(path)),
        Some(b"raw" | b"file" | b"host_device") => Ok(Below::Raw(path)),
        Some(format) => {
            Err(Qcow2Error::BackingFormat { name: shown(), format: String::from_utf8_lossy(format).into_owned() })
        }
        None if begins_like_qcow2(&path) => Err(Qcow2Error::BackingUnsaid(shown())),
        None => Ok(Below::Raw(path)),
    }
}

fn begins_like_qcow2(path: &Path) -> bool {
    let mut head = [0; MAGIC.len()];
    let len = Member::open(path, true).ok().and_then(|(_, file, _)| read_up_to(&file, 0, &mut head).ok());
    len.is_some_and(|len| head[..len] == MAGIC)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// A chain can be read like a device, and not be written.
impl Device for Chain {
    fn name(&self) -> String {
        self.layers.first().map_or_else(String::new, |layer| layer.member.path.display().to_string())
    }

    fn len(&self) -> u64 {
        Chain::len(self)
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        Err(self.failed("resizing", len, 0, io::ErrorKind::Unsupported.into()))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let len = buffer.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(self.failed("reading", offset, len, io::ErrorKind::UnexpectedEof.into()));
        }
        Chain::read(self, offset, buffer).map_err(|e| {
            let source = match e {
                Qcow2Error::Io(_, e) => e,
                other => io::Error::other(other),
            };
            self.failed("reading", offset, len, source)
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        Err(self.failed("writing", offset, data.len() as u64, io::ErrorKind::Unsupported.into()))
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        Err(self.failed("writing", offset, len, io::ErrorKind::Unsupported.into()))
    }

    fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.is_zero(0, offset, len).unwrap_or(false) // reading will tell
    }

    fn sync(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Chain {
    fn failed(&self, operation: &'static str, offset: u64, len: u64, source: io::Error) -> DeviceError {
        DeviceError { operation, name: self.name(), offset, len, source }
    }
}
