//! Checks an order before anything is written: the steps, the limits and the rules R1 to R4 (spec, chapter 7).

use super::DeltaError;
use super::batch::BatchKind;
use super::placement::{Placement, Sources, Waived};
use super::reader::Delta;
use super::step::{Step, StepKind};
use crate::blockset::BlockSet;
use crate::units::{BLOCK, Extent, blocks_in};

/// What a restart needs to know of an order that keeps the rules.
#[derive(Clone, Debug, Default)]
pub struct CheckedOrder {
    /// Every block that any batch writes.
    pub touched: BlockSet,
    /// (save, a batch that reads it), by batch number.
    pub save_reads: Vec<(u32, u32)>,
    /// (save, the batch that is the first to overwrite some of its scratch), by batch number.
    pub save_ends: Vec<(u32, u32)>,
    /// Blocks that batches read, summed over batches.
    pub source_blocks: u64,
    /// Steps of each kind, by [`StepKind`] number.
    pub steps: [u64; StepKind::ALL.len()],
    /// Bytes that steps of each kind make, by [`StepKind`] number.
    pub step_bytes: [u64; StepKind::ALL.len()],
    /// Rules that were not checked: none, but for the crash test.
    #[doc(hidden)]
    pub waived: Waived,
}

impl CheckedOrder {
    /// Follows this order from its start.
    pub(crate) fn placement(&self) -> Placement<'_> {
        Placement::new(&self.touched).waiving(self.waived)
    }
}

/// Reads the whole order and all steps, and checks everything that can be checked without the target.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_order(delta: &Delta) -> Result<CheckedOrder, DeltaError> {
    check_order_waiving(delta, &[])
}

/// The same where all blocks that any batch writes, `touched`, are collected already, and are needed elsewhere
/// meanwhile: the caller is to add them to what is returned.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn check_order_of(delta: &Delta, touched: &BlockSet) -> Result<CheckedOrder, DeltaError> {
    check(delta, touched, &[])
}

/// The same, with some rules not enforced: for the crash test only.
#[doc(hidden)]
pub fn check_order_waiving(delta: &Delta, waived: Waived) -> Result<CheckedOrder, DeltaError> {
    let touched = delta.table.touched();
    let checked = check(delta, &touched, waived)?;
    Ok(CheckedOrder { touched, ..checked })
}

fn check(delta: &Delta, touched: &BlockSet, waived: Waived) -> Result<CheckedOrder, DeltaError> {
    let mut checked = CheckedOrder { waived, ..CheckedOrder::default() };
    if let Some((batch, block)) = delta.table.stray_save(touched)
        && !waived.contains(&"R4")
    {
        return Err(DeltaError::Rule { rule: "R4", batch, block });
    }
    let mut placement = Placement::new(touched).waiving(waived);
    let mut steps = Vec::new();
    let (mut reader, mut differences) = (delta.steps()?, delta.differences()?);
    for (index, batch) in (0u64..).zip(delta.table.batches()) {
        let missing = |block| DeltaError::Rule { rule: "source", batch: index, block };
        let extents = delta.table.extents(batch);
        let sources = match batch.kind {
            BatchKind::Zero => Sources::default(),
            BatchKind::Save => {
                let saved = delta.table.saved(batch);
                let outside = saved.iter().find(|range| range.end > delta.old_bound());
                if let Some(range) = outside {
                    return Err(DeltaError::field("end of a saved range", range.end, format!("{}", delta.old_bound())));
                }
                let bytes = saved.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add);
                if bytes > delta.header.limits.source_bytes.into() {
                    return Err(DeltaError::field("bytes of a save", bytes, "at most source_bytes"));
                }
                placement.save_sources(saved).map_err(missing)?
            }
            BatchKind::Data => {
                reader.read_batch(extents, &mut steps)?;
                count_steps(&steps, &mut checked);
                // Step by step, as the ends of steps cut fields.
                steps.iter().filter(|step| step.kind.adds()).try_for_each(|step| differences.skip(step.len))?;
                placement.sources(&steps).map_err(missing)?
            }
        };
        check_limits(delta, &sources)?;
        checked.source_blocks += sources.bytes() / BLOCK;
        let ended = placement.advance(index, &delta.table, batch, &sources)?;
        let number = index as u32; // advance() refuses saves beyond 2^32, and only saves are listed
        checked.save_reads.extend(sources.saves.iter().map(|save| (*save, number)));
        checked.save_ends.extend(ended.into_iter().map(|save| (save, number)));
        if checked.save_reads.len() as u64 > delta.route.counts.save_reads {
            return Err(DeltaError::field("save_reads", delta.route.counts.save_reads, "as many as the order has"));
        }
    }
    reader.finish()?;
    differences.finish()?;
    finish(delta, &checked, &placement)?;
    Ok(checked)
}

fn count_steps(steps: &[Step], checked: &mut CheckedOrder) {
    for step in steps {
        checked.steps[step.kind as usize] += 1;
        checked.step_bytes[step.kind as usize] += step.len;
    }
}

fn check_limits(delta: &Delta, sources: &Sources) -> Result<(), DeltaError> {
    let limits = &delta.header.limits;
    if sources.bytes() > limits.source_bytes.into() {
        return Err(DeltaError::field(
            "bytes a batch reads",
            sources.bytes(),
            format!("at most {}", limits.source_bytes),
        ));
    }
    Ok(())
}

/// What holds for the order as a whole.
fn finish(delta: &Delta, checked: &CheckedOrder, placement: &Placement<'_>) -> Result<(), DeltaError> {
    let counts = &delta.route.counts;
    placement.finish(counts.batches)?;
    if checked.save_reads.len() as u64 != counts.save_reads {
        return Err(DeltaError::field("save_reads", counts.save_reads, format!("{}", checked.save_reads.len())));
    }
    // Behind the old image's end nothing is known, so all of it must be written.
    if let Some(old) = delta.route.old {
        let start = old.len / BLOCK;
        let count = blocks_in(delta.header.new.len).saturating_sub(start);
        if delta.header.new.len > old.len
            && let Some(block) = placement.first_unwritten(Extent { start, count })
        {
            return Err(DeltaError::Rule { rule: "R4", batch: counts.batches, block });
        }
    }
    // The literals must be exactly as long as the steps that use them.
    let mut literals = delta.literals()?;
    let kinds = StepKind::ALL.into_iter().filter(|kind| kind.is_literal());
    literals.skip(kinds.map(|kind| checked.step_bytes[kind as usize]).sum())?;
    literals.finish()
}
