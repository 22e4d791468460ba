//! A delta taken apart into bytes that can be changed one by one, and put together with all digests right.

use blkpatch::delta::Delta;
use blkpatch::delta::batch::{Batch, BatchKind, BatchTable};
use blkpatch::delta::header::{DIGEST_LEN, ENTRY_LEN, FIXED_LEN, Kind};
use blkpatch::delta::route::{Counts, Route};
use blkpatch::units::Extent;
use std::ops::Range;
use std::sync::Arc;

/// A section: its entry in the header, and its bytes in the file.
#[derive(Clone)]
pub struct Section {
    pub entry: Vec<u8>,
    pub stored: Vec<u8>,
    /// Claims another stored_len than it has.
    pub lies: Option<u64>,
}

/// A delta in parts.
#[derive(Clone)]
pub struct Model {
    pub fixed: Vec<u8>,
    pub sections: Vec<Section>,
    /// Bytes behind the last section.
    pub tail: Vec<u8>,
}

pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

impl Section {
    pub fn kind(&self) -> u64 {
        number(&self.entry[..2])
    }

    pub fn is_packed(&self) -> bool {
        self.entry[6] == 1
    }

    /// Its bytes after decompression; `None` where they cannot be had.
    pub fn raw(&self) -> Option<Vec<u8>> {
        if !self.is_packed() {
            return Some(self.stored.clone());
        }
        let mut raw = Vec::new();
        let decoder = zstd::Decoder::new(&self.stored[..]).ok()?;
        std::io::Read::read_to_end(&mut std::io::Read::take(decoder, 8 << 20), &mut raw).ok()?;
        Some(raw)
    }

    /// Stores `raw` as it is.
    pub fn store(&mut self, raw: Vec<u8>) {
        self.entry[6..8].copy_from_slice(&[0, 0]);
        self.set_raw_len(raw.len() as u64);
        self.stored = raw;
    }

    /// Stores `packed`, a frame or several, of `raw_len` bytes.
    pub fn store_packed(&mut self, packed: Vec<u8>, raw_len: u64, window_log: u8) {
        self.entry[6..8].copy_from_slice(&[1, window_log]);
        self.set_raw_len(raw_len);
        self.stored = packed;
    }

    pub fn set_raw_len(&mut self, len: u64) {
        self.entry[16..24].copy_from_slice(&len.to_le_bytes());
    }
}

impl Model {
    /// `None` for bytes whose header cannot be taken apart.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let header_len = number(bytes.get(8..12)?) as usize;
        let count = number(bytes.get(14..16)?) as usize;
        if header_len != FIXED_LEN + count * ENTRY_LEN + DIGEST_LEN || header_len > bytes.len() {
            return None;
        }
        let mut rest = &bytes[header_len..];
        let mut sections = Vec::new();
        for i in 0..count {
            let entry = bytes[FIXED_LEN + i * ENTRY_LEN..][..ENTRY_LEN].to_vec();
            let len = (number(&entry[8..16]) as usize).min(rest.len());
            sections.push(Section { entry, stored: rest[..len].to_vec(), lies: None });
            rest = &rest[len..];
        }
        Some(Self { fixed: bytes[..FIXED_LEN].to_vec(), sections, tail: rest.to_vec() })
    }

    /// The file; lengths, counts and digests follow the parts.
    pub fn assemble(&self) -> Vec<u8> {
        let mut out = self.fixed.clone();
        let header_len = FIXED_LEN + self.sections.len() * ENTRY_LEN + DIGEST_LEN;
        out[8..12].copy_from_slice(&(header_len as u32).to_le_bytes());
        out[14..16].copy_from_slice(&(self.sections.len() as u16).to_le_bytes());
        for section in &self.sections {
            let mut entry = section.entry.clone();
            entry[8..16].copy_from_slice(&section.lies.unwrap_or(section.stored.len() as u64).to_le_bytes());
            if entry[6] == 0 && section.lies.is_none() {
                entry.copy_within(8..16, 16);
            }
            entry[24..56].copy_from_slice(blake3::hash(&section.stored).as_bytes());
            out.extend(entry);
        }
        out.extend(blake3::hash(&out).as_bytes());
        self.sections.iter().for_each(|section| out.extend(&section.stored));
        out.extend(&self.tail);
        out
    }

    pub fn section(&mut self, kind: Kind) -> Option<&mut Section> {
        self.sections.iter_mut().find(|section| section.kind() == kind as u64)
    }

    /// Replaces the order; the counts follow, but for `save_reads`.
    pub fn set_order(&mut self, mut route: Route, order: &[Order], save_reads: u64) {
        let mut table = BatchTable::default();
        let mut counts = Counts { save_reads, ..Counts::default() };
        for batch in order {
            table.push(batch.kind, batch.barrier, &batch.extents, &batch.saved, batch.crcs);
            let blocks: u64 = batch.extents.iter().map(|e| e.count).fold(0, u64::saturating_add);
            counts.batches += 1;
            counts.extents += batch.extents.len() as u64;
            counts.barriers += u64::from(batch.barrier);
            let sum = if batch.kind == BatchKind::Save {
                counts.save_ranges += batch.saved.len() as u64;
                &mut counts.scratch_blocks
            } else {
                &mut counts.final_blocks
            };
            *sum = sum.saturating_add(blocks);
        }
        route.counts = counts;
        let (route, table) = (route.encode(), table.encode());
        if let Some(section) = self.section(Kind::Route) {
            section.store(route);
        }
        if let Some(section) = self.section(Kind::Batches) {
            section.store(table);
        }
    }
}

/// A batch of an order that is changed.
#[derive(Clone)]
pub struct Order {
    pub kind: BatchKind,
    pub barrier: bool,
    pub extents: Vec<Extent>,
    pub saved: Vec<Range<u64>>,
    pub crcs: (u32, u32),
}

/// The route and order of a good delta.
pub fn order_of(bytes: &[u8]) -> Option<(Route, Vec<Order>)> {
    let delta = Delta::open(Arc::new(bytes.to_vec()), u64::MAX).ok()?;
    let of = |batch: &Batch| Order {
        kind: batch.kind,
        barrier: batch.barrier,
        extents: delta.table.extents(batch).to_vec(),
        saved: delta.table.saved(batch).to_vec(),
        crcs: (batch.crc, batch.source_crc),
    };
    let order = delta.table.batches().iter().map(of).collect();
    Some((delta.route, order))
}
