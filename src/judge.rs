//! Judges the batches of an order on a target at rest: which are done, which must be done, and whether they can be
//! (spec, chapter 8).

use crate::delta::batch::{Batch, BatchKind, BatchTable};
use crate::delta::check::CheckedOrder;
use crate::delta::placement::{Placement, Sources};
use crate::delta::step::Step;
use crate::delta::step_reader::StepReader;
use crate::delta::{Delta, DeltaError};
use crate::device::Device;
use crate::monitor::Monitor;
use crate::resume;
use crate::target::{Mismatch, State, Survey, SurveyError, crc_of};
use crate::units::{BLOCK, blocks_in};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much of what a delta writes a target holds. Only for messages: what must be done is decided by `resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of it.
    Nothing,
    /// The content of some batches, and before the last barrier among them of all: what an interruption leaves.
    Begun {
        /// Data batches whose content is there.
        done: u64,
        /// Data batches in all.
        all: u64,
    },
    /// Some, but not as an interruption leaves it.
    Some,
    /// All of it.
    All,
}

/// Tells the progress from the data batches that are intact.
#[must_use]
pub fn progress(table: &BatchTable, intact: &[bool]) -> Progress {
    // Per stretch between barriers: data batches, and those that are intact.
    let mut stretches = vec![(0u64, 0u64)];
    for (batch, intact) in table.batches().iter().zip(intact) {
        if batch.barrier {
            stretches.push((0, 0));
        }
        if batch.kind == BatchKind::Data
            && let Some((all, done)) = stretches.last_mut()
        {
            *all += 1;
            *done += u64::from(*intact);
        }
    }
    let (all, done) = stretches.iter().fold((0, 0), |sum, stretch| (sum.0 + stretch.0, sum.1 + stretch.1));
    if done == 0 {
        return Progress::Nothing;
    }
    if done == all {
        return Progress::All;
    }
    let mut open = stretches.iter().skip_while(|(all, done)| all == done).skip(1);
    if open.all(|(_, done)| *done == 0) { Progress::Begun { done, all } } else { Progress::Some }
}

/// Says of each batch whether its extents hold what it leaves.
///
/// # Errors
/// Where the target cannot be read, or the user asked to stop.
pub fn intact(
    device: &dyn Device,
    delta: &Delta,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Vec<bool>, SurveyError> {
    let new_len = delta.header.new.len;
    monitor.phase("judging the batches", delta.route.counts.final_blocks * BLOCK);
    let mut intact = Vec::with_capacity(delta.table.batches().len());
    for batch in delta.table.batches() {
        if stop.load(Ordering::Relaxed) {
            return Err(SurveyError::Stop);
        }
        let extents = delta.table.extents(batch);
        let crc = crc_of(device, extents.iter().map(|e| e.bytes(new_len)))?;
        intact.push(crc == batch.crc);
        monitor.advance(delta.table.written_bytes(batch, new_len));
    }
    Ok(intact)
}

/// Judges every batch at rest: which are done, which must be done, and whether they can be.
///
/// # Errors
/// Where the target or the delta cannot be read, or the user asked to stop.
pub fn judge(
    device: &dyn Device,
    delta: &Delta,
    order: &CheckedOrder,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Survey, SurveyError> {
    let intact = intact(device, delta, stop, monitor)?;
    let redo = resume::to_redo(&delta.table, order, &intact);
    if !redo.contains(&true) && device.len() >= delta.header.new.len {
        return Ok(Survey { state: State::New, redo, tree: None });
    }
    let lost = first_lost_source(device, delta, order, &redo, stop, monitor)?;
    let state = match lost {
        Some(within) => {
            let progress = match progress(&delta.table, &intact) {
                // Where the delta writes everything, nothing tells this image from any other.
                Progress::Begun { .. } if order.touched.len() >= blocks_in(delta.route.untouched_len) => Progress::Some,
                progress => progress,
            };
            State::Neither(Mismatch::Source { within, progress })
        }
        None => State::Convertible { done: redo.iter().filter(|redo| !**redo).count() as u64 },
    };
    Ok(Survey { state, redo, tree: None })
}

/// What a batch reads when its turn has come; to be called for one batch after the other.
pub(crate) fn sources_in_turn(
    delta: &Delta,
    placement: &mut Placement<'_>,
    reader: &mut StepReader,
    steps: &mut Vec<Step>,
    (index, batch): (u64, &Batch),
) -> Result<Sources, DeltaError> {
    let missing = |block| DeltaError::Rule { rule: "source", batch: index, block };
    let sources = match batch.kind {
        BatchKind::Zero => Sources::default(),
        BatchKind::Save => placement.save_sources(delta.table.saved(batch)).map_err(missing)?,
        BatchKind::Data => {
            reader.read_batch(delta.table.extents(batch), steps)?;
            placement.sources(steps).map_err(missing)?
        }
    };
    placement.advance(index, &delta.table, batch, &sources)?;
    Ok(sources)
}

/// Compares the sources of all batches that must be done with their CRCs. That may be most of the target.
fn first_lost_source(
    device: &dyn Device,
    delta: &Delta,
    order: &CheckedOrder,
    redo: &[bool],
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Option<Range<u64>>, SurveyError> {
    monitor.phase("checking what the delta reads", order.source_blocks * BLOCK);
    let mut placement = order.placement();
    let mut reader = delta.steps()?;
    let mut steps = Vec::new();
    for ((index, batch), redo) in (0u64..).zip(delta.table.batches()).zip(redo) {
        if stop.load(Ordering::Relaxed) {
            return Err(SurveyError::Stop);
        }
        let sources = sources_in_turn(delta, &mut placement, &mut reader, &mut steps, (index, batch))?;
        if *redo && let (Some(first), Some(last)) = (sources.home.first(), sources.home.last()) {
            let within = first.start..last.end;
            if crc_of(device, sources.home.iter().cloned())? != batch.source_crc {
                return Ok(Some(within));
            }
        }
        monitor.advance(sources.blocks.iter().map(|extent| extent.count * BLOCK).sum());
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Extent;

    fn table(barriers: &[bool]) -> BatchTable {
        let mut table = BatchTable::default();
        for (start, barrier) in (0u64..).zip(barriers) {
            table.push(BatchKind::Data, *barrier, &[Extent { start, count: 1 }], &[], (0, 0));
        }
        table
    }

    #[test]
    fn progress_tells_an_interruption_from_another_image() {
        let table = table(&[false, false, true, false, true]);
        let of = |intact: [u8; 5]| progress(&table, &intact.map(|i| i == 1));
        assert_eq!(of([0, 0, 0, 0, 0]), Progress::Nothing);
        assert_eq!(of([1, 1, 1, 1, 1]), Progress::All);
        assert_eq!(of([0, 1, 0, 0, 0]), Progress::Begun { done: 1, all: 5 });
        assert_eq!(of([1, 1, 0, 1, 0]), Progress::Begun { done: 3, all: 5 });
        assert_eq!(of([1, 0, 1, 0, 0]), Progress::Some);
        assert_eq!(of([0, 0, 0, 0, 1]), Progress::Some);
    }
}
