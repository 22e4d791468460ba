//! One qcow2 file of a chain: finds and reads what it holds itself.

use super::Qcow2Error;
use super::entry::{self, Place};
use super::header::{Compression, Header};
use crate::image::{Stamp, stamp};
use crate::reading::read_up_to;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of the tables that are read at once. Entries do not lie across their borders.
const SLICE: u64 = 4096;
/// Slices that are kept: 2 MiB tell of 16 GiB of a disk, with the usual clusters.
const SLICES: usize = 512;

/// A file of a chain, for whoever must know what is read.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub path: PathBuf,
    /// What it is.
    pub meta: Metadata,
    /// What tells whether a regular file is written.
    pub stamp: Option<Stamp>,
}

impl Member {
    /// Opens a regular file or, where `devices` are allowed, a block device; `None` for the length where it ends.
    ///
    /// # Errors
    /// Where it cannot be read, or is something else.
    pub(super) fn open(path: &Path, devices: bool) -> Result<(Self, File, u64), Qcow2Error> {
        use std::os::unix::fs::FileTypeExt;
        // Asked before it is opened: opening a pipe would wait for somebody to write into it.
        let kind = std::fs::metadata(path).map_err(|e| Qcow2Error::Io("open", e))?.file_type();
        if !(kind.is_file() || devices && kind.is_block_device()) {
            return Err(Qcow2Error::Kind(if devices {
                "is neither a file nor a block device"
            } else {
                "is not a regular file"
            }));
        }
        let stamp = stamp(path);
        let mut file = File::open(path).map_err(|e| Qcow2Error::Io("open", e))?;
        let meta = file.metadata().map_err(|e| Qcow2Error::Io("read", e))?;
        let len = file.seek(SeekFrom::End(0)).map_err(|e| Qcow2Error::Io("read", e))?;
        Ok((Self { path: path.to_owned(), meta, stamp }, file, len))
    }
}

/// A qcow2 file.
#[derive(Debug)]
pub(super) struct Layer {
    pub member: Member,
    pub header: Header,
    file: File,
    file_len: u64,
    slices: Mutex<HashMap<u64, Arc<Vec<u8>>>>,
}

impl Layer {
    /// Opens a file and checks all entries of its tables.
    pub fn open(path: &Path) -> Result<Self, Qcow2Error> {
        let (member, file, file_len) = Member::open(path, false)?;
        Self::of(member, file, file_len)
    }

    /// The same of a file that is open; `path` is for messages.
    pub fn of_file(file: File, path: &Path) -> Result<Self, Qcow2Error> {
        let meta = file.metadata().map_err(|e| Qcow2Error::Io("read", e))?;
        let len = meta.len();
        Self::of(Member { path: path.to_owned(), meta, stamp: None }, file, len)
    }

    fn of(member: Member, file: File, file_len: u64) -> Result<Self, Qcow2Error> {
        let header = Header::read(&file)?;
        let layer = Self { member, header, file, file_len, slices: Mutex::default() };
        layer.check()?;
        Ok(layer)
    }

    /// Checks all entries. Tables and clusters belong to one place of the disk each, so that all of them fit the file: one
    /// that says otherwise would be read, and unpacked, nearly without end.
    fn check(&self) -> Result<(), Qcow2Error> {
        let (mut tables, mut data, mut at) = (0u64, 0u64, 0);
        while at < self.header.size {
            tables += u64::from(at.is_multiple_of(1 << self.header.span_log()) && self.table(at)?.is_some());
            let (place, len) = self.place(at, self.header.size)?;
            data += if matches!(place, Place::Data(_)) { len } else { 0 };
            at += len;
            // The last cluster of the file may be short.
            if data + tables * self.header.cluster() > self.file_len + self.header.cluster() {
                return Err(Qcow2Error::Overlap);
            }
        }
        Ok(())
    }

    /// Where the bytes from byte `at` of the disk on are, and how many, at least 1 and at most up to `end`, are in one
    /// place. `at` must lie before `end`, and that within the disk.
    pub fn place(&self, at: u64, end: u64) -> Result<(Place, u64), Qcow2Error> {
        let span = 1u64 << self.header.span_log();
        let table = self.table(at)?;
        // No further than the table tells.
        let end = end.min((at / span + 1) * span);
        let Some(table) = table else { return Ok((Place::Below, end - at)) };
        let (cluster, entry_len) = (self.header.cluster(), 1u64 << self.header.entry_log());
        let mut slice = (u64::MAX, Arc::default());
        let mut found: Option<(Place, u64)> = None;
        let mut here = at;
        while here < end {
            let offset = table + (here % span) / cluster * entry_len;
            if slice.0 != offset / SLICE {
                slice = (offset / SLICE, self.slice(offset / SLICE)?);
            }
            let entry = number(&slice.1, offset % SLICE)?;
            let bitmap = if self.header.extended { number(&slice.1, offset % SLICE + 8)? } else { 0 };
            let (place, len) = entry::place(entry, bitmap, here % cluster, &self.header, self.file_len)
                .map_err(|why| self.damaged(here, why, entry))?;
            let len = len.min(end - here);
            match &mut found {
                None => found = Some((place, len)),
                Some((first, before)) if first.continues(*before, place) => *before += len,
                Some(_) => break,
            }
            here += len;
        }
        Ok(found.unwrap_or((Place::Below, end - at)))
    }

    /// The table of the second level that tells of a byte of the disk.
    fn table(&self, at: u64) -> Result<Option<u64>, Qcow2Error> {
        let offset = self.header.l1_offset + (at >> self.header.span_log()) * 8;
        let slice = self.slice(offset / SLICE)?;
        let entry = number(&slice, offset % SLICE)?;
        entry::l2_offset(entry, &self.header, self.file_len).map_err(|why| self.damaged(at, why, entry))
    }

    fn damaged(&self, guest: u64, why: &'static str, entry: u64) -> Qcow2Error {
        Qcow2Error::Entry { guest, why, entry, file_len: self.file_len }
    }

    /// Some bytes of the tables.
    fn slice(&self, number: u64) -> Result<Arc<Vec<u8>>, Qcow2Error> {
        let slices = || self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = slices().get(&number) {
            return Ok(Arc::clone(slice));
        }
        let mut bytes = vec![0; SLICE as usize];
        let len =
            read_up_to(&self.file, number.saturating_mul(SLICE), &mut bytes).map_err(|e| Qcow2Error::Io("read", e))?;
        bytes.truncate(len);
        let slice = Arc::new(bytes);
        let mut slices = slices();
        if slices.len() >= SLICES {
            slices.clear();
        }
        slices.insert(number, Arc::clone(&slice));
        Ok(slice)
    }

    /// Reads bytes that are at byte `host` of the file. The file's last cluster may be short.
    pub fn read_data(&self, host: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len = read_up_to(&self.file, host, buffer)?;
        buffer[len..].fill(0);
        Ok(())
    }

    /// Unpacks the cluster that byte `guest` of the disk lies in, and copies what lies from byte `skip` of it on.
    pub fn read_compressed(
        &self,
        guest: u64,
        (host, len): (u64, u64),
        skip: u64,
        buffer: &mut [u8],
    ) -> Result<(), Qcow2Error> {
        // At most two clusters: an entry has no room for more.
        let mut packed = vec![0; len as usize];
        let there = read_up_to(&self.file, host, &mut packed).map_err(|e| Qcow2Error::Io("read", e))?;
        let mut cluster = vec![0; self.header.cluster() as usize];
        unpack(self.header.compression, &packed[..there], &mut cluster)
            .map_err(|e| Qcow2Error::Compressed { guest, why: e.to_string() })?;
        buffer.copy_from_slice(&cluster[skip as usize..skip as usize + buffer.len()]);
        Ok(())
    }
}

fn unpack(compression: Compression, packed: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    // Behind the compressed data something else may follow: no more is asked for than a cluster.
    match compression {
        Compression::Deflate => flate2::bufread::DeflateDecoder::new(packed).read_exact(cluster),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(packed)?.read_exact(cluster),
    }
}

/// A number of a table.
fn number(slice: &[u8], at: u64) -> Result<u64, Qcow2Error> {
    let bytes = slice.get(at as usize..).and_then(|rest| rest.first_chunk());
    let bytes = bytes.ok_or_else(|| Qcow2Error::Io("read", io::ErrorKind::UnexpectedEof.into()))?;
    Ok(u64::from_be_bytes(*bytes))
}
