//! The digest of what an order leaves alone: the beginning of the target, with touched blocks taken as zero.
//!
//! A target that holds the old or the new image needs it not, and that is the usual case. So a first reading only keeps
//! what it knows anyway, the digests of parts without touched blocks; the others are read again if it is needed.

use crate::blockset::BlockSet;
use crate::compare::{add_region, add_zeros_to_region, zero_touched};
use crate::delta::Delta;
use crate::delta::check::CheckedOrder;
use crate::device::Device;
use crate::digest::{PartDigest, TreeDigest, combine_crc};
use crate::monitor::Monitor;
use crate::sweep::{Chunks, sweep};
use crate::target::{SurveyError, touched_parts};
use crate::units::{BLOCK, Extent, PART};
use std::sync::atomic::AtomicBool;

/// The digest, while parts of it are missing.
pub(crate) struct Untouched {
    tree: TreeDigest,
    regions: Vec<u32>,
    region_log: u8,
    len: u64,
}

impl Untouched {
    /// Of the first `len` bytes, with CRCs of regions of 2^`region_log` bytes (0: none).
    pub fn new(len: u64, region_log: u8) -> Self {
        Self { tree: TreeDigest::new(len), regions: Vec::new(), region_log, len }
    }

    /// Adds the next part; a touched one may be a placeholder.
    pub fn push(&mut self, offset: u64, part: PartDigest, touched: bool) {
        self.tree.push(part, touched);
        add_region(&mut self.regions, offset, &part, self.region_log);
    }

    /// Adds a next part of zeros that is not touched, at `offset`.
    pub fn push_zeros(&mut self, offset: u64) {
        self.tree.push_zeros();
        add_zeros_to_region(&mut self.regions, offset, self.region_log);
    }

    /// Reads the touched parts, and yields the digest and the CRCs of the regions.
    ///
    /// # Errors
    /// Where the target cannot be read, or the user asked to stop.
    pub fn complete(
        mut self,
        device: &dyn Device,
        delta: &Delta,
        order: &CheckedOrder,
        stop: &AtomicBool,
        monitor: &dyn Monitor,
    ) -> Result<([u8; 32], Vec<u32>), SurveyError> {
        self.tree.settle();
        let len = self.len;
        debug_assert_eq!(len, delta.route.untouched_len);
        let parts: Vec<u64> = touched_parts(order).into_iter().map(|part| part * PART).filter(|at| *at < len).collect();
        let chunk = |i: u64| parts[i as usize]..len.min(parts[i as usize] + PART);
        let chunks = Chunks { count: parts.len() as u64, chunk };
        monitor.phase("reading what is touched again", parts.len() as u64 * PART);
        let work = |offset, part: &mut [u8]| (offset, untouched_part(offset, part, len, &order.touched));
        sweep(device, &chunks, stop, work, |(offset, digest)| {
            self.replace(offset, digest);
            monitor.advance(digest.len);
        })?;
        Ok((self.tree.finish().map_or([0; 32], |id| id.blake3), self.regions))
    }

    fn replace(&mut self, offset: u64, part: PartDigest) {
        self.tree.replace(offset, part);
        if self.region_log == 0 {
            return;
        }
        let region = offset >> self.region_log;
        let end = ((region + 1) << self.region_log).min(self.len);
        if let Some(crc) = usize::try_from(region).ok().and_then(|region| self.regions.get_mut(region)) {
            // A placeholder counts as zero in the combined CRC, which is linear.
            *crc ^= combine_crc(part.crc, 0, end - offset - part.len);
        }
    }
}

/// The digest of a part with its touched blocks zeroed, which is done in place.
fn untouched_part(offset: u64, part: &mut [u8], total: u64, touched: &BlockSet) -> PartDigest {
    let blocks = Extent { start: offset / BLOCK, count: (part.len() as u64).div_ceil(BLOCK) };
    zero_touched(part, blocks, touched);
    PartDigest::new(offset, part, total)
}
