//! Writes planned batches as a delta, and reads it back.

use super::DiffOptions;
use crate::blockset::BlockSet;
use crate::compare::{Comparison, View};
use crate::delta::batch::BatchKind;
use crate::delta::check::check_order;
use crate::delta::header::Kind;
use crate::delta::route::region_log;
use crate::delta::stream::{Compression, JOB};
use crate::delta::writer::{DeltaWriter, Identity, NewBatch, NewTexts, WriteError};
use crate::delta::{Delta, DeltaError};
use crate::digest::ImageId;
use crate::monitor::Monitor;
use crate::units::{BLOCK, Extent};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// log2 of the windows: the target needs that much memory for each column. Measured on the pair `release`, half the window
/// for the literals costs 0.25 %, and twice as much gains 0.08 % (on `squashfs`: nothing); the columns of the steps hardly
/// repeat over a distance.
#[must_use]
pub fn window_log(kind: Kind) -> u8 {
    match kind {
        Kind::Literals => 21,
        Kind::DifferenceValues => 20,
        Kind::DifferenceGaps => 19,
        _ => 18,
    }
}

/// Deltas shorter than this do without the region table: 256 bytes are too much of them.
const REGIONS_FROM: usize = 64 << 10;

/// What a delta is made of.
pub(super) struct Draft<'a> {
    /// The old image, as far as batches read it.
    pub old: &'a [u8],
    /// An image that is the old one where that does not change.
    pub unchanged: View<'a>,
    pub new: View<'a>,
    pub old_id: Option<ImageId>,
    pub batches: &'a [NewBatch],
    pub texts: Option<&'a (dyn NewTexts + Sync)>,
}

pub(super) fn write_delta(
    draft: &Draft<'_>,
    comparison: &Comparison,
    spool_dir: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let mut touched = BlockSet::new();
    draft.batches.iter().flat_map(|batch| &batch.extents).for_each(|extent| touched.insert(*extent));
    makes_all(draft.batches, &comparison.changed)?;
    monitor.phase("hashing", 0);
    let log = region_log(comparison.old.len.min(comparison.new.len));
    let (untouched, regions) = comparison.untouched(draft.unchanged, &touched, log, options.threads);
    let blocks = |batch: &NewBatch| batch.extents.iter().map(|extent| extent.count).sum::<u64>();
    monitor.phase("compressing", draft.batches.iter().map(blocks).sum::<u64>() * BLOCK);
    let level = zstd_level(options.level, Kind::StepKinds);
    let compression = |kind| Compression {
        level: zstd_level(options.level, kind),
        window_log: window_log(kind),
        threads: options.threads as u32,
        job: JOB,
    };
    let writer = DeltaWriter::new(draft.old, draft.new.bytes, &touched, spool_dir, compression);
    let mut writer = writer.labelled(options.label.clone()).with_texts(draft.texts);
    draft.batches.iter().try_for_each(|batch| {
        monitor.advance(blocks(batch) * BLOCK);
        writer.add(batch)
    })?;
    let mut identity = Identity { old: draft.old_id, new: comparison.new, untouched, region_log: log, regions };
    if writer.stored_estimate() < REGIONS_FROM {
        (identity.region_log, identity.regions) = (0, Vec::new());
    }
    if identity.regions.is_empty() {
        identity.region_log = 0;
    }
    writer.finish(&identity, level, out)?;
    Ok(())
}

/// Whether each of these blocks is made by some batch: whoever patches could tell only at the end that one is not.
fn makes_all(batches: &[NewBatch], changed: &[Extent]) -> Result<(), WriteError> {
    let mut made = BlockSet::new();
    let finals = batches.iter().filter(|batch| batch.kind() != BatchKind::Save);
    finals.flat_map(|batch| &batch.extents).for_each(|extent| made.insert(*extent));
    match changed.iter().flat_map(|extent| made.runs_in(*extent)).find(|(_, made)| !made) {
        Some((missing, _)) => {
            Err(DeltaError::Rule { rule: "tiling", batch: batches.len() as u64, block: missing.start }.into())
        }
        None => Ok(()),
    }
}

/// zstd's level for each of ours. Literals may be long (those that a signature leaves over, for one, are five times as
/// long as those of a whole comparison), and nearly all the time goes there: one level less takes a tenth of it off for
/// 0.1 % of the bytes.
fn zstd_level(level: u32, kind: Kind) -> i32 {
    match level {
        0..=1 => 3,
        2..=3 => 9,
        4..=5 => 15,
        6..=8 if kind == Kind::Literals => 18,
        _ => 19,
    }
}

/// Reads the finished delta as `patch` will, with the same checks.
pub(crate) fn check_delta(file: &File) -> Result<u64, DeltaError> {
    let file = file.try_clone().map_err(DeltaError::Io)?;
    let delta = Delta::open(Arc::new(file), u64::MAX)?;
    check_order(&delta)?;
    Ok(delta.file_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A save of a block does not make it.
    #[test]
    fn a_changed_block_that_no_batch_makes_is_told() {
        let extent = |start, count| Extent { start, count };
        let batch = |save, extents: Vec<Extent>| NewBatch { save, extents, ..NewBatch::default() };
        let changed = [extent(2, 3), extent(9, 1)];
        let finals = |last| [batch(false, vec![extent(2, 2)]), batch(false, vec![extent(4, 1), extent(last, 1)])];
        assert!(makes_all(&finals(9), &changed).is_ok());
        for missing in [finals(8).to_vec(), vec![batch(false, vec![extent(2, 3)]), batch(true, vec![extent(9, 1)])]] {
            let told = makes_all(&missing, &changed);
            let Err(WriteError::Plan(DeltaError::Rule { rule, block, .. })) = told else { panic!("{told:?}") };
            assert_eq!((rule, block), ("tiling", 9));
        }
    }
}
