//! Deltas of literals: content that is at hand, block by block, becomes batches that read nothing from the target. Such a
//! delta applies to whatever is right outside of its blocks. `--undo` and `--save-delta` write them.

use super::header::{Header, Kind};
use super::route::Route;
use super::step::{Step, StepKind};
use super::stream::Compression;
use super::writer::{DeltaWriter, Identity, NewBatch, WriteError};
use crate::blockset::BlockSet;
use crate::digest::is_zero;
use crate::units::{BLOCK, Extent, count_blocks, merge_extents};
use std::io::Write;
use std::path::Path;

/// Blocks of a data batch: 1 MiB, as the planner has it.
const BATCH_BLOCKS: u64 = 256;
/// zstd's level: such a delta is written while somebody waits, and mostly never read.
const LEVEL: i32 = 1;
/// log2 of the window of the literals: level 1 looks no further back than half of that.
const WINDOW_LOG: u8 = 20;
/// Bytes of one compression job: at this level it costs no size, and with two threads a column keeps 13 MiB in place of
/// the 60 of [`super::stream::JOB`] (300 MiB of `release`). This runs on the target.
const JOB: u32 = 1 << 20;
/// Shorter deltas do without the region table.
const REGIONS_FROM: usize = 64 << 10;
/// So many blocks of zeros in a row go to the zero batch; fewer are zero steps among literals.
const ZERO_BLOCKS: u64 = 16;

/// Collects a delta of literals. In memory it keeps one batch, its compressors, and the list of extents; what is
/// compressed is spooled to an unnamed file.
pub struct LiteralWriter<'a> {
    writer: DeltaWriter<'a>,
    /// The data batch that is being filled, and its bytes.
    batch: NewBatch,
    content: Vec<u8>,
    zeros: Vec<Extent>,
}

impl<'a> LiteralWriter<'a> {
    /// An empty one. `nothing` is an empty set: where nothing is read, nothing needs to be known of what is written
    /// later. The delta does not depend on `threads`.
    #[must_use]
    pub fn new(nothing: &'a BlockSet, spool_dir: &'a Path, threads: u32) -> Self {
        let window_log = |kind| if kind == Kind::Literals { WINDOW_LOG } else { WINDOW_LOG - 2 };
        let compression = |kind| Compression { level: LEVEL, window_log: window_log(kind), threads, job: JOB };
        let mut writer = DeltaWriter::new(&[], &[], nothing, spool_dir, compression);
        writer.set_length(i64::MAX as u64); // all blocks are whole until it is known better
        Self { writer, batch: NewBatch::default(), content: Vec::new(), zeros: Vec::new() }
    }

    /// Adds the content of an extent; of each block once, ascending. `bytes` are all of it, up to the new image's end,
    /// which may become known only behind the last extent.
    ///
    /// # Errors
    /// A failure to spool.
    pub fn add(&mut self, extent: Extent, bytes: &[u8]) -> Result<(), WriteError> {
        let mut blocks = bytes.chunks(BLOCK as usize).map(is_zero).peekable();
        let (mut start, mut rest) = (extent.start, bytes);
        while let Some(zero) = blocks.next() {
            let mut run = Extent { start, count: 1 };
            while blocks.next_if_eq(&zero).is_some() {
                run.count += 1;
            }
            let (now, later) = rest.split_at(rest.len().min((run.count * BLOCK) as usize));
            if zero && run.count >= ZERO_BLOCKS {
                append(&mut self.zeros, run);
            } else {
                self.add_run(run, now, zero)?;
            }
            (start, rest) = (run.end(), later);
        }
        Ok(())
    }

    /// Adds a run of blocks that are all zero or all not, to one data batch or several.
    fn add_run(&mut self, mut run: Extent, mut bytes: &[u8], zero: bool) -> Result<(), WriteError> {
        while run.count > 0 {
            let used = count_blocks(&self.batch.extents);
            let behind = self.batch.extents.last().is_none_or(|last| last.end() <= run.start);
            if used >= BATCH_BLOCKS || !behind {
                self.flush()?;
                continue;
            }
            let part = Extent { start: run.start, count: run.count.min(BATCH_BLOCKS - used) };
            let (now, later) = bytes.split_at(bytes.len().min((part.count * BLOCK) as usize));
            append(&mut self.batch.extents, part);
            self.content.extend_from_slice(now);
            let kind = if zero { StepKind::Zero } else { StepKind::Literal };
            let (dst, len) = (part.start * BLOCK, now.len() as u64);
            match self.batch.steps.last_mut() {
                Some(last) if last.kind == kind && last.dst + last.len == dst => last.len += len,
                _ => self.batch.steps.push(Step { kind, dst, len, src: 0 }),
            }
            run = Extent { start: part.end(), count: run.count - part.count };
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        if !self.batch.extents.is_empty() {
            self.writer.add_literal(&self.batch, &self.content)?;
        }
        (self.batch, _) = (NewBatch::default(), self.content.clear());
        Ok(())
    }

    /// Ends the delta and writes it to `out`.
    ///
    /// # Errors
    /// A block that was added twice, or a failure to write.
    pub fn finish(mut self, identity: &Identity, out: &mut impl Write) -> Result<(Header, Route), WriteError> {
        self.writer.set_length(identity.new.len); // before the short last block is flushed
        self.flush()?;
        if !self.zeros.is_empty() {
            let mut extents = std::mem::take(&mut self.zeros);
            merge_extents(&mut extents);
            self.writer.add_literal(&NewBatch { zero: true, extents, ..NewBatch::default() }, &[])?;
        }
        let mut identity = identity.clone();
        if self.writer.stored_estimate() < REGIONS_FROM {
            (identity.region_log, identity.regions) = (0, Vec::new());
        }
        self.writer.finish(&identity, LEVEL, out)
    }
}

/// Appends a run to a list, to the last one if it touches that.
fn append(list: &mut Vec<Extent>, run: Extent) {
    match list.last_mut() {
        Some(last) if last.end() == run.start => last.count += run.count,
        _ => list.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::Delta;
    use crate::delta::batch::BatchKind;
    use crate::delta::check::check_order;
    use crate::device::MemoryDevice;
    use crate::digest::{ImageId, PartDigest, TreeDigest};
    use crate::monitor::Silent;
    use crate::patch::{Opened, PatchOptions, patch_device};
    use crate::units::PART;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    fn id(image: &[u8]) -> ImageId {
        let mut tree = TreeDigest::new(image.len() as u64);
        for (offset, part) in (0..).step_by(PART as usize).zip(image.chunks(PART as usize)) {
            tree.push(PartDigest::new(offset, part, image.len() as u64), false);
        }
        tree.finish().unwrap()
    }

    /// The delta that writes `extents` of `new`, given in pieces of at most `piece` blocks.
    fn delta_of(new: &[u8], extents: &[Extent], piece: u64) -> Opened {
        let nothing = BlockSet::new();
        let folder = tempfile::tempdir().unwrap();
        let mut writer = LiteralWriter::new(&nothing, folder.path(), 2);
        let mut rest = new.to_vec();
        for extent in extents {
            let mut start = extent.start;
            while start < extent.end() {
                let part = Extent { start, count: piece.min(extent.end() - start) };
                let bytes = part.bytes(new.len() as u64);
                writer.add(part, &new[bytes.start as usize..bytes.end as usize]).unwrap();
                rest[bytes.start as usize..bytes.end as usize].fill(0);
                start = part.end();
            }
        }
        let mut file = Vec::new();
        let untouched = *blake3::hash(&rest).as_bytes();
        let old = id(&vec![1; new.len()]); // never there
        let identity = Identity { old: Some(old), new: id(new), untouched, region_log: 0, regions: Vec::new() };
        writer.finish(&identity, &mut file).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let delta = Delta::open(Arc::new(file), 64 << 20).unwrap();
        let order = check_order(&delta).unwrap();
        Opened { delta, order }
    }

    /// Noise and zeros; ends in the midst of a block.
    fn image(blocks: u64) -> Vec<u8> {
        let mut state = 3u32;
        let mut bytes: Vec<u8> = (0..blocks * BLOCK + 77)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        for zeros in [3..4, 10..25, 40..56, 100..300, 700..715, 716..740] {
            bytes[zeros.start * BLOCK as usize..zeros.end * BLOCK as usize].fill(0);
        }
        bytes
    }

    #[test]
    fn it_is_a_delta_that_reads_nothing_and_keeps_the_limits() {
        let new = image(1000);
        let extent = |start, end| Extent { start, count: end - start };
        for extents in [vec![extent(0, 1001)], vec![extent(2, 3), extent(4, 60), extent(62, 720), extent(900, 1001)]] {
            let mut counts = Vec::new();
            for piece in [1, 7, 64, 2000] {
                let opened = delta_of(&new, &extents, piece);
                let Opened { delta, order } = &opened;
                assert_eq!(order.touched.extents().collect::<Vec<_>>(), extents);
                assert_eq!((order.source_blocks, delta.route.counts.barriers), (0, 0));
                assert!(u64::from(delta.header.limits.batch_bytes) <= BATCH_BLOCKS * BLOCK);
                assert!(delta.memory() < 16 << 20, "{} bytes of memory", delta.memory());
                let zero = delta.table.batches().iter().filter(|batch| batch.kind == BatchKind::Zero);
                counts.push((zero.count(), delta.table.batches().len()));
                // Whatever the blocks hold.
                let mut target = new.clone();
                for bytes in extents.iter().map(|extent| extent.bytes(new.len() as u64)) {
                    target[bytes.start as usize..bytes.end as usize].fill(0x5a);
                }
                let device = MemoryDevice::new(target, false);
                let (options, stop) = (PatchOptions::default(), AtomicBool::new(false));
                patch_device(&opened, Path::new("delta"), &device, &options, &stop, &Silent).unwrap();
                assert!(device.contents() == new);
            }
            // However it comes, long zeros are one batch, and the rest fills batches.
            assert!(counts.iter().all(|(zero, all)| *zero <= 1 && *all <= 5), "{counts:?}");
        }
    }

    #[test]
    fn one_without_blocks_is_a_delta() {
        let opened = delta_of(&image(800), &[], 1);
        assert!(opened.delta.table.batches().is_empty());
    }
}
