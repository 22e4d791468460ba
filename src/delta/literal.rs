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
        let compression = |kind| Compression { level: LEVEL, window_log: window_log(kind), threads };
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
