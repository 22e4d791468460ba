//! A route: everything that depends on one old image, apart from the order itself (spec, chapter 4).

use super::{DeltaError, Fields};
use crate::digest::ImageId;

/// Bytes of a route before its region table.
pub const FIXED_LEN: usize = 152;
/// Flag: length and digests of the old image are known.
pub const FLAG_OLD_KNOWN: u32 = 1;
/// The most regions that a table has.
pub const MAX_REGIONS: u32 = 64;

/// Counts that the order must have; they bound what a patcher allocates before it has read the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches.
    pub batches: u64,
    /// Extents that the batches write, summed.
    pub extents: u64,
    /// Byte ranges that the saves copy, summed.
    pub save_ranges: u64,
    /// Pairs of a save and a batch that reads it.
    pub save_reads: u64,
    /// Barriers.
    pub barriers: u64,
    /// Blocks that saves write, summed.
    pub scratch_blocks: u64,
    /// Blocks that final batches write, each once.
    pub final_blocks: u64,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Length and digests of the old image, where they are known.
    pub old: Option<ImageId>,
    /// Bytes that the untouched digest covers: the shorter of old and new.
    pub untouched_len: u64,
    /// BLAKE3 of that prefix with every block that a batch writes taken as zero.
    pub untouched: [u8; 32],
    /// What the order holds.
    pub counts: Counts,
    /// log2 of the bytes of a region; 0 without a table.
    pub region_log: u8,
    /// CRC-32 of each region of the prefix, written blocks taken as zero; empty or up to [`MAX_REGIONS`].
    pub regions: Vec<u32>,
}

/// log2 of the region size for a prefix of `len` bytes: the smallest power of two from 1 MiB that needs at most
/// [`MAX_REGIONS`] regions.
#[must_use]
pub fn region_log(len: u64) -> u8 {
    (20u8..63).find(|log| len.div_ceil(1 << log) <= u64::from(MAX_REGIONS)).unwrap_or(63)
}

impl Route {
    /// Bytes of the old or of the new image, whichever is longer, as far as they are known.
    pub(crate) fn longer(&self, new_len: u64) -> u64 {
        self.old.map_or(new_len, |old| old.len.max(new_len))
    }

    /// The route as it stands in its section.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let unknown = ImageId { len: 0, crc: 0, blake3: [0; 32] };
        let old = self.old.unwrap_or(unknown);
        let c = &self.counts;
        let mut out = Vec::with_capacity(FIXED_LEN + 4 * self.regions.len());
        out.extend(if self.old.is_some() { FLAG_OLD_KNOWN } else { 0 }.to_le_bytes());
        out.extend(old.crc.to_le_bytes());
        out.extend(old.len.to_le_bytes());
        out.extend(old.blake3);
        out.extend(self.untouched_len.to_le_bytes());
        out.extend(self.untouched);
        for count in [c.batches, c.extents, c.save_ranges, c.save_reads, c.barriers, c.scratch_blocks, c.final_blocks] {
            out.extend(count.to_le_bytes());
        }
        out.extend(u32::from(self.region_log).to_le_bytes());
        out.extend((self.regions.len() as u32).to_le_bytes());
        for crc in &self.regions {
            out.extend(crc.to_le_bytes());
        }
        out
    }

    /// Reads a route; `new_len` is the header's.
    ///
    /// # Errors
    /// Fields out of range.
    pub fn decode(bytes: &[u8], new_len: u64) -> Result<Self, DeltaError> {
        if bytes.len() < FIXED_LEN {
            return Err(DeltaError::Malformed("the route is too short"));
        }
        let mut f = Fields(bytes);
        let flags = f.u32();
        if flags & !FLAG_OLD_KNOWN != 0 {
            return Err(DeltaError::Newer { what: format!("route flags {flags:#x}") });
        }
        let (crc, len) = (f.u32(), f.u64());
        super::header::check_len("old_len", len)?;
        let old = ImageId { len, crc, blake3: f.take() };
        let old = (flags & FLAG_OLD_KNOWN != 0).then_some(old);
        let untouched_len = f.u64();
        let expected = old.map_or(new_len, |old| old.len.min(new_len));
        if untouched_len != expected {
            return Err(DeltaError::field("untouched_len", untouched_len, format!("{expected}")));
        }
        let untouched = f.take();
        let counts = Counts {
            batches: f.u64(),
            extents: f.u64(),
            save_ranges: f.u64(),
            save_reads: f.u64(),
            barriers: f.u64(),
            scratch_blocks: f.u64(),
            final_blocks: f.u64(),
        };
        let (log, count) = (f.u32(), f.u32());
        let fits = if count == 0 { log == 0 } else { log == u32::from(region_log(untouched_len)) };
        if !fits {
            return Err(DeltaError::field("region_log", log.into(), "0, or the one that untouched_len gives"));
        }
        let expected = if count == 0 { 0 } else { untouched_len.div_ceil(1 << log) };
        if u64::from(count) != expected || f.0.len() as u64 != 4 * expected {
            return Err(DeltaError::field("region_count", count.into(), format!("0 or {expected}")));
        }
        let regions = (0..count).map(|_| f.u32()).collect();
        Ok(Self { old, untouched_len, untouched, counts, region_log: log as u8, regions })
    }
}
