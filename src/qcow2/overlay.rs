//! Writes a qcow2 overlay: what differs from a raw (or qcow2) image, which becomes its backing file.
//!
//! Version 3, clusters of 64 KiB, in the file in the order in which they are first written; tables and reference counts
//! behind them. While it is made, it can be read like the disk that it will be.

use super::header::{Layout, MOST_NAME, encode};
use crate::device::{Device, DeviceError};
use crate::digest::{ZERO_BLOCK, ZERO_PART, is_zero};
use crate::reading::read_up_to;
use crate::units::{BLOCK, PART};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// log2 of the bytes of a cluster.
pub const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Blocks of a cluster.
const BLOCKS: u64 = CLUSTER / BLOCK;
/// Clusters that a table of the second level tells of.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Reference counts in a cluster.
const COUNTS: u64 = CLUSTER / 2;
/// Entries of the table of the first level that QEMU reads: 2 PiB.
const MOST_L1: u64 = (32 << 20) / 8;
/// An entry: nobody else refers to this.
const COPIED: u64 = 1 << 63;
/// An entry: the cluster reads as zeros.
const ZERO: u64 = 1;

/// A cluster of which at least a block was written.
#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    /// Its number in the file; without one, what was written is zeros.
    host: Option<u64>,
    /// Which of its blocks were written, a bit each.
    written: u16,
}

#[derive(Debug, Default)]
struct State {
    clusters: BTreeMap<u64, Cluster>,
    /// Clusters of the file that are taken, the header's included.
    taken: u64,
}

/// An overlay that is being written.
pub struct Overlay<'a> {
    file: &'a File,
    /// For messages.
    path: PathBuf,
    backing: &'a dyn Device,
    backing_len: u64,
    /// Bytes of the image; the disk has whole sectors.
    len: u64,
    state: Mutex<State>,
}

/// What an overlay says of its backing file.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// Its name, at most 1,023 bytes.
    pub name: &'a [u8],
    /// Its format.
    pub format: &'a [u8],
}

impl<'a> Overlay<'a> {
    /// An overlay of an image of `len` bytes, in an empty file; `path` is for messages. On an empty `backing` it becomes an
    /// image that stands alone.
    #[must_use]
    pub fn new(file: &'a File, path: &Path, backing: &'a dyn Device, len: u64) -> Self {
        let state = Mutex::new(State { clusters: BTreeMap::new(), taken: 1 });
        Self { file, path: path.to_owned(), backing, backing_len: backing.len(), len, state }
    }

    /// Bytes of the disk: the image's length in whole sectors of 512 bytes, as QEMU counts.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len.next_multiple_of(512)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, operation: &'static str, offset: u64, len: u64, source: io::Error) -> DeviceError {
        DeviceError { operation, name: Device::name(self), offset, len, source }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.file.write_all_at(data, offset).map_err(|e| self.failed("writing", offset, data.len() as u64, e))
    }

    /// Reads the backing file; zeros behind its end.
    fn read_backing(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let there = self.backing_len.saturating_sub(offset).min(buffer.len() as u64) as usize;
        buffer[there..].fill(0);
        if there == 0 { Ok(()) } else { self.backing.read(offset, &mut buffer[..there]) }
    }

    /// Notes that blocks of a cluster are written; where data comes, the cluster gets a place in the file. Returns that,
    /// and which blocks were written before.
    fn take(&self, number: u64, blocks: u16, is_data: bool) -> (Option<u64>, u16) {
        let mut state = self.state();
        let State { clusters, taken } = &mut *state;
        let cluster = clusters.entry(number).or_default();
        if is_data && cluster.host.is_none() {
            cluster.host = Some(*taken);
            *taken += 1;
        }
        let before = cluster.written;
        cluster.written |= blocks;
        (cluster.host, before)
    }

    /// The pieces, each within one cluster, of bytes that are to be written: the cluster, the bytes and the blocks.
    fn pieces(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = (u64, Range<u64>, u16)>, DeviceError> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        let whole = |end: u64| end.is_multiple_of(BLOCK) || end == self.len;
        let Some(end) = end.filter(|end| offset.is_multiple_of(BLOCK) && whole(*end)) else {
            return Err(self.failed("writing", offset, len, io::ErrorKind::InvalidInput.into()));
        };
        let mut at = offset;
        Ok(std::iter::from_fn(move || {
            let piece = at..end.min((at / CLUSTER + 1) * CLUSTER);
            at = piece.end;
            (!piece.is_empty()).then(|| (piece.start / CLUSTER, piece.clone(), mask(&piece)))
        }))
    }

    /// `named`: what the backing file is, if there is one. Completes the clusters that were written in part, adds tables, reference counts and at last the header. The file
    /// then is a sound image, but not synced.
    ///
    /// # Errors
    /// Where reading the backing file or writing fails, or where the disk is too large for QEMU.
    pub fn finish(&self, named: Option<Named<'_>>) -> Result<(), DeviceError> {
        let invalid = |why| self.failed("writing", 0, 0, io::Error::other(why));
        let l1_entries = self.size().div_ceil(CLUSTER * L2_ENTRIES);
        if l1_entries > MOST_L1 {
            return Err(invalid("QEMU cannot use a qcow2 image of a disk that is larger than 2 PiB"));
        }
        if named.is_some_and(|named| named.name.len() > MOST_NAME) {
            return Err(invalid("the name of the backing file is too long for qcow2: 1023 bytes at the most"));
        }
        self.complete_tail()?;
        let numbers: Vec<u64> = self.state().clusters.keys().copied().collect();
        numbers.into_iter().try_for_each(|number| self.complete(number))?;
        let l1 = self.write_tables(l1_entries as usize)?;
        let l1_at = self.append(&l1.iter().flat_map(|entry| entry.to_be_bytes()).collect::<Vec<u8>>())?;
        let refcounts = self.write_refcounts()?;
        let layout = Layout { size: self.size(), l1: (l1_entries as u32, l1_at), refcounts };
        self.write_at(0, &encode(&layout, CLUSTER_BITS, named.map(|named| (named.name, named.format))))?;
        // The last cluster, too, is there as a whole.
        let len = self.state().taken * CLUSTER;
        self.file.set_len(len).map_err(|e| self.failed("resizing", len, 0, e))
    }

    /// Behind the end of the image, its last sector is zeros, whatever the backing file holds there.
    fn complete_tail(&self) -> Result<(), DeviceError> {
        if self.len.is_multiple_of(512) || self.backing_len <= self.len {
            return Ok(());
        }
        let start = self.len / BLOCK * BLOCK;
        let mut tail = vec![0; (self.len - start) as usize];
        self.read(start, &mut tail)?;
        self.write(start, &tail)
    }

    /// Fills in the blocks of a cluster that were not written.
    fn complete(&self, number: u64) -> Result<(), DeviceError> {
        let start = number * CLUSTER;
        let cluster = self.state().clusters.get(&number).copied().unwrap_or_default();
        let missing = (0..BLOCKS).filter(|block| cluster.written >> block & 1 == 0 && start + block * BLOCK < self.len);
        for block in missing {
            let mut bytes = ZERO_BLOCK;
            let at = start + block * BLOCK;
            self.read_backing(at, &mut bytes)?;
            // A place in the file that nobody has written is zeros.
            if !is_zero(&bytes) {
                let (host, _) = self.take(number, 0, true);
                self.write_at(host.unwrap_or(0) * CLUSTER + block * BLOCK, &bytes)?;
            }
        }
        Ok(())
    }

    /// Writes the tables of the second level; returns the one of the first.
    fn write_tables(&self, l1_entries: usize) -> Result<Vec<u64>, DeviceError> {
        let mut l1 = vec![0; l1_entries];
        let mut at = 0;
        loop {
            let next = self.state().clusters.range(at..).next().map(|(number, _)| number / L2_ENTRIES);
            let Some(table) = next else { return Ok(l1) };
            let span = table * L2_ENTRIES..(table + 1) * L2_ENTRIES;
            at = span.end;
            let mut bytes = vec![0; CLUSTER as usize];
            for (number, cluster) in self.state().clusters.range(span.clone()) {
                let entry = cluster.host.map_or(ZERO, |host| (host * CLUSTER) | COPIED);
                let place = (number - span.start) as usize * 8;
                bytes[place..place + 8].copy_from_slice(&entry.to_be_bytes());
            }
            let offset = self.append(&bytes)?;
            if let Some(entry) = l1.get_mut(table as usize) {
                *entry = offset | COPIED;
            }
        }
    }

    /// Writes whole clusters behind the others; returns where they are.
    fn append(&self, bytes: &[u8]) -> Result<u64, DeviceError> {
        let offset = {
            let mut state = self.state();
            let first = state.taken;
            state.taken += (bytes.len() as u64).div_ceil(CLUSTER).max(1);
            first * CLUSTER
        };
        self.write_at(offset, bytes)?;
        Ok(offset)
    }

    /// Counts one reference for every cluster of the file, those of the counts included; returns number and place of the
    /// clusters of their table.
    fn write_refcounts(&self) -> Result<(u32, u64), DeviceError> {
        let before = self.state().taken;
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let all = before + blocks + tables;
            let needed = (all.div_ceil(COUNTS), blocks.div_ceil(L2_ENTRIES).max(1));
            if needed == (blocks, tables) {
                break;
            }
            (blocks, tables) = needed;
        }
        let all = before + blocks + tables;
        let mut table = Vec::with_capacity((blocks * 8) as usize);
        for block in 0..blocks {
            let counted = (all - block * COUNTS).min(COUNTS) as usize;
            let mut bytes = [0u8, 1].repeat(counted);
            bytes.resize(CLUSTER as usize, 0);
            table.extend(self.append(&bytes)?.to_be_bytes());
        }
        table.resize((tables * CLUSTER) as usize, 0);
        Ok((tables as u32, self.append(&table)?))
    }
}

/// The blocks of a cluster that bytes within it touch.
fn mask(bytes: &Range<u64>) -> u16 {
    let (first, last) = (bytes.start % CLUSTER / BLOCK, (bytes.end - 1) % CLUSTER / BLOCK);
    (u16::MAX >> (BLOCKS - 1 - (last - first))) << first
}

/// It reads as the disk that it will be. What is written are whole blocks, but for the image's last one.
impl Device for Overlay<'_> {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        Err(self.failed("resizing", len, 0, io::ErrorKind::Unsupported.into()))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let len = buffer.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.failed("reading", offset, len, io::ErrorKind::UnexpectedEof.into()));
        }
        let mut rest = buffer;
        let mut at = offset;
        while !rest.is_empty() {
            let cluster = self.state().clusters.get(&(at / CLUSTER)).copied().unwrap_or_default();
            let is_written = |at: u64| cluster.written >> (at % CLUSTER / BLOCK) & 1 != 0;
            let end = (offset + len).min((at / CLUSTER + 1) * CLUSTER);
            // As far as blocks of the cluster are in one place.
            let mut to = end.min((at / BLOCK + 1) * BLOCK);
            while to < end && is_written(to) == is_written(at) {
                to = end.min(to + BLOCK);
            }
            let (now, later) = std::mem::take(&mut rest).split_at_mut((to - at) as usize);
            match cluster.host {
                _ if !is_written(at) => self.read_backing(at, now)?,
                None => now.fill(0),
                Some(host) => {
                    let from = host * CLUSTER + at % CLUSTER;
                    let got = read_up_to(self.file, from, now);
                    let got = got.map_err(|e| self.failed("reading", from, now.len() as u64, e))?;
                    now[got..].fill(0); // the file's end
                }
            }
            (rest, at) = (later, to);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        for (number, bytes, blocks) in self.pieces(offset, data.len() as u64)? {
            let piece = &data[(bytes.start - offset) as usize..(bytes.end - offset) as usize];
            if is_zero(piece) {
                self.write_zeros(bytes.start, bytes.end - bytes.start)?;
                continue;
            }
            let (host, _) = self.take(number, blocks, true);
            self.write_at(host.unwrap_or(0) * CLUSTER + bytes.start % CLUSTER, piece)?;
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        for (number, bytes, blocks) in self.pieces(offset, len)? {
            // What nobody has written is zeros already.
            if let (Some(host), before) = self.take(number, blocks, false)
                && before & blocks != 0
            {
                let zeros = &ZERO_PART[..(bytes.end - bytes.start) as usize];
                self.write_at(host * CLUSTER + bytes.start % CLUSTER, zeros)?;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DeviceError> {
        Ok(()) // who names the file syncs it
    }

    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

const _: () = assert!(CLUSTER <= PART && BLOCKS == 16);
