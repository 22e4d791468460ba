//! The batch table: the order in which the target is written (spec, chapter 5).

use super::DeltaError;
use super::header::Limits;
use super::route::Counts;
use crate::blockset::BlockSet;
use crate::units::{BLOCK, Extent, blocks_in};
use crate::varint::{self, VarintError};
use std::io::Read;
use std::ops::Range;

/// What a batch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BatchKind {
    /// Final: writes blocks of the new image, made by steps.
    Data = 0,
    /// Temporary: copies old bytes that are in danger into scratch blocks.
    Save = 1,
    /// Final: writes zeros; may be larger than the batch limit.
    Zero = 2,
}

/// Bit of a batch's head byte: a barrier stands before this batch.
pub const HEAD_BARRIER: u8 = 4;

/// One batch; its extents and ranges are kept in the [`BatchTable`].
#[derive(Clone, Debug)]
pub struct Batch {
    /// What it does.
    pub kind: BatchKind,
    /// Everything before must be durable before this batch, or one behind it, writes.
    pub barrier: bool,
    /// CRC-32 of what it leaves in its extents (for zeros by arithmetic).
    pub crc: u32,
    /// CRC-32 of the bytes it reads that no earlier batch writes, ascending and merged.
    pub source_crc: u32,
    extents: Range<usize>,
    ranges: Range<usize>,
}

/// All batches of a route, in order.
#[derive(Clone, Debug, Default)]
pub struct BatchTable {
    batches: Vec<Batch>,
    extents: Vec<Extent>,
    ranges: Vec<Range<u64>>,
}

impl BatchTable {
    /// The batches, in order.
    #[must_use]
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// The blocks that the batch writes: ascending, merged.
    #[must_use]
    pub fn extents(&self, batch: &Batch) -> &[Extent] {
        &self.extents[batch.extents.clone()]
    }

    /// The old bytes that a save copies: ascending, merged; empty for other batches.
    #[must_use]
    pub fn saved(&self, batch: &Batch) -> &[Range<u64>] {
        &self.ranges[batch.ranges.clone()]
    }

    /// Every block that any batch writes. Only final batches are asked: a save elsewhere would break R4.
    #[must_use]
    pub fn touched(&self) -> BlockSet {
        let mut set = BlockSet::new();
        let finals = self.batches.iter().filter(|batch| batch.kind != BatchKind::Save);
        finals.flat_map(|batch| self.extents(batch)).for_each(|extent| set.insert(*extent));
        set
    }

    /// The first batch that saves to a block which no final batch writes, and that block.
    #[must_use]
    pub fn stray_save(&self, touched: &BlockSet) -> Option<(u64, u64)> {
        (0u64..).zip(&self.batches).filter(|(_, batch)| batch.kind == BatchKind::Save).find_map(|(index, batch)| {
            let mut runs = self.extents(batch).iter().flat_map(|extent| touched.runs_in(*extent));
            runs.find(|(_, inside)| !inside).map(|(run, _)| (index, run.start))
        })
    }

    /// Adds a batch behind the others.
    pub fn push(&mut self, kind: BatchKind, barrier: bool, extents: &[Extent], saved: &[Range<u64>], crcs: (u32, u32)) {
        let (e, r) = (self.extents.len(), self.ranges.len());
        self.extents.extend_from_slice(extents);
        self.ranges.extend_from_slice(saved);
        let (extents, ranges) = (e..self.extents.len(), r..self.ranges.len());
        self.batches.push(Batch { kind, barrier, crc: crcs.0, source_crc: crcs.1, extents, ranges });
    }

    /// The table as it stands, before compression, in its section.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (mut extent_at, mut range_at) = (0u64, 0u64);
        for batch in &self.batches {
            out.push(batch.kind as u8 | if batch.barrier { HEAD_BARRIER } else { 0 });
            put_runs(&mut out, &mut extent_at, self.extents(batch).iter().map(|e| (e.start, e.count)));
            if batch.kind == BatchKind::Save {
                put_runs(&mut out, &mut range_at, self.saved(batch).iter().map(|r| (r.start, r.end - r.start)));
            }
            if batch.kind != BatchKind::Zero {
                out.extend(batch.crc.to_le_bytes());
                out.extend(batch.source_crc.to_le_bytes());
            }
        }
        out
    }

    /// Reads a table and checks it against the counts of its route and the length of the new image.
    ///
    /// # Errors
    /// Anything that is not as the spec says; memory stays within what the counts announce.
    pub fn decode(input: &mut impl Read, counts: &Counts, limits: &Limits, new_len: u64) -> Result<Self, DeltaError> {
        let mut table = Self::default();
        let (mut extent_at, mut range_at) = (0u64, 0u64);
        for index in 0..counts.batches {
            let mut head = [0u8];
            input.read_exact(&mut head).map_err(|e| stream_error(VarintError::Io(e)))?;
            let (kind, barrier) = decode_head(head[0], index)?;
            let (e, r) = (table.extents.len(), table.ranges.len());
            let room = counts.extents - e as u64;
            get_runs(input, &mut extent_at, room, |start, count| table.extents.push(Extent { start, count }))?;
            if kind == BatchKind::Save {
                let room = counts.save_ranges - r as u64;
                get_runs(input, &mut range_at, room, |start, len| table.ranges.push(start..start + len))?;
            }
            let (extents, ranges) = (e..table.extents.len(), r..table.ranges.len());
            let mut batch = Batch { kind, barrier, crc: 0, source_crc: 0, extents, ranges };
            table.check_extents(&batch, index, limits, new_len)?;
            if kind == BatchKind::Zero {
                batch.crc = crate::digest::crc_of_zeros(table.written_bytes(&batch, new_len));
            } else {
                (batch.crc, batch.source_crc) = (get_u32(input)?, get_u32(input)?);
            }
            table.batches.push(batch);
        }
        table.check_counts(counts)?;
        Ok(table)
    }

    /// Bytes that the batch leaves in its extents.
    #[must_use]
    pub fn written_bytes(&self, batch: &Batch, new_len: u64) -> u64 {
        self.extents(batch).iter().map(|e| e.bytes(new_len)).map(|r| r.end - r.start).sum()
    }

    fn check_extents(&self, batch: &Batch, index: u64, limits: &Limits, new_len: u64) -> Result<(), DeltaError> {
        // Scratch must hold whole blocks: a short last block cannot be scratch.
        let end = if batch.kind == BatchKind::Save { new_len / BLOCK } else { blocks_in(new_len) };
        let mut outside = self.extents(batch).iter().filter(|e| e.end() > end);
        if let Some(extent) = outside.next() {
            return Err(DeltaError::OutOfRange { batch: index, extent: *extent, end });
        }
        let written = self.written_bytes(batch, new_len);
        if batch.kind != BatchKind::Zero && written > limits.batch_bytes.into() {
            return Err(DeltaError::field("bytes of a batch", written, format!("at most {}", limits.batch_bytes)));
        }
        Ok(())
    }

    fn check_counts(&self, counts: &Counts) -> Result<(), DeltaError> {
        let blocks = |save: bool| -> u64 {
            let chosen = self.batches.iter().filter(|b| (b.kind == BatchKind::Save) == save);
            chosen.flat_map(|b| self.extents(b)).map(|e| e.count).fold(0, u64::saturating_add)
        };
        let barriers = self.batches.iter().filter(|b| b.barrier).count() as u64;
        for (field, found, announced) in [
            ("extents", self.extents.len() as u64, counts.extents),
            ("save_ranges", self.ranges.len() as u64, counts.save_ranges),
            ("barriers", barriers, counts.barriers),
            ("scratch_blocks", blocks(true), counts.scratch_blocks),
            ("final_blocks", blocks(false), counts.final_blocks),
        ] {
            if found != announced {
                return Err(DeltaError::field(field, announced, format!("{found}, as the batches have it")));
            }
        }
        Ok(())
    }
}

fn decode_head(head: u8, index: u64) -> Result<(BatchKind, bool), DeltaError> {
    let kind = match head & 3 {
        0 => BatchKind::Data,
        1 => BatchKind::Save,
        2 => BatchKind::Zero,
        _ => return Err(DeltaError::Malformed("a batch of kind 3")),
    };
    let barrier = head & HEAD_BARRIER != 0;
    if head & !7 != 0 || (barrier && index == 0) {
        return Err(DeltaError::field("batch head", head.into(), "bits 0 to 2, and no barrier before the first batch"));
    }
    Ok((kind, barrier))
}

/// Writes runs (start, length): a count, the first start relative to `at`, then gaps and lengths.
fn put_runs(out: &mut Vec<u8>, at: &mut u64, runs: impl ExactSizeIterator<Item = (u64, u64)>) {
    varint::put(out, runs.len() as u64);
    for (i, (start, len)) in runs.enumerate() {
        match i {
            0 => varint::put_signed(out, start.wrapping_sub(*at).cast_signed()),
            _ => varint::put(out, start - *at),
        }
        varint::put(out, len);
        *at = start + len;
    }
}

/// Reads what [`put_runs`] wrote; at most `room` runs.
fn get_runs(input: &mut impl Read, at: &mut u64, room: u64, mut push: impl FnMut(u64, u64)) -> Result<(), DeltaError> {
    let count = varint::get(input).map_err(stream_error)?;
    if count == 0 || count > room {
        return Err(DeltaError::field("extent count", count, format!("1 to {room}")));
    }
    for i in 0..count {
        let start = if i == 0 {
            at.checked_add_signed(varint::get_signed(input).map_err(stream_error)?)
        } else {
            let gap = varint::get(input).map_err(stream_error)?;
            at.checked_add(gap).filter(|_| gap > 0)
        };
        let len = varint::get(input).map_err(stream_error)?;
        // Below 2^51 blocks, a byte offset always fits 64 bits; byte ranges have the same bound times 4096.
        let end = start.and_then(|s| s.checked_add(len)).filter(|end| *end <= i64::MAX as u64 && len > 0);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(DeltaError::Malformed("an extent that overflows, is empty, or touches the one before it"));
        };
        push(start, len);
        *at = end;
    }
    Ok(())
}

fn get_u32(input: &mut impl Read) -> Result<u32, DeltaError> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes).map_err(|e| stream_error(VarintError::Io(e)))?;
    Ok(u32::from_le_bytes(bytes))
}

fn stream_error(e: VarintError) -> DeltaError {
    super::stream::varint_error("batch table", e)
}
