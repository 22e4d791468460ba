//! The walk: does the batches that must be done, in order, on a device (spec, chapter 8). The only writer of targets.

use crate::blockset::BlockSet;
use crate::delta::Delta;
use crate::delta::DeltaError;
use crate::delta::batch::{Batch, BatchKind};
use crate::delta::difference::DifferenceReader;
use crate::delta::placement::{Placement, Sources};
use crate::delta::step::{Step, StepKind, StepReader};
use crate::delta::stream::StreamReader;
use crate::delta::writer::fill_save;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::monitor::Monitor;
use crate::units::{BLOCK, Extent, count_blocks};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a walk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Bytes written, scratch and zeros included.
    pub written: u64,
    /// Bytes of them that went to scratch.
    pub scratch: u64,
    /// Syncs, the first and the last included.
    pub syncs: u64,
    /// Batches done.
    pub batches: u64,
}

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The target failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The delta cannot be read any more.
    #[error("the delta can no longer be read: {0}")]
    Delta(#[from] DeltaError),
    /// What was computed is not what the delta promises: a source is not what it was when it was checked.
    #[error("batch {batch} does not come out right: the target returned other data than before near offset {offset}")]
    WrongResult {
        /// The batch's number, from 0.
        batch: u64,
        /// Where it would have written.
        offset: u64,
    },
    /// The user asked to stop.
    #[error("asked to stop")]
    Stop,
}

/// Does the batches with `redo` set, in order. On failure `walked` says what had been done.
///
/// # Errors
/// [`WalkError`]; the target then is in a state from which the same walk finishes, unless a source was lost.
pub fn walk(
    device: &dyn Device,
    delta: &Delta,
    touched: &BlockSet,
    redo: &[bool],
    stop: &AtomicBool,
    monitor: &dyn Monitor,
    walked: &mut Walked,
) -> Result<(), WalkError> {
    let mut walker = Walker {
        device,
        delta,
        placement: Placement::new(touched),
        steps: delta.steps()?,
        differences: delta.differences()?,
        literals: delta.literals()?,
        step_list: Vec::new(),
        output: AlignedBuffer::default(),
        sources: SourceBuffer::default(),
        unsynced: true,
        walked,
    };
    // Whatever an earlier run, or whoever wrote the old image, left in flight.
    walker.sync()?;
    for ((index, batch), redo) in (0u64..).zip(delta.table.batches()).zip(redo) {
        if stop.load(Ordering::Relaxed) {
            walker.sync()?;
            return Err(WalkError::Stop);
        }
        if batch.barrier {
            walker.sync()?; // belongs to its place: also where the batch itself is done
        }
        walker.batch(index, batch, *redo)?;
        monitor.advance(delta.table.written_bytes(batch, delta.header.new.len));
    }
    walker.sync()
}

struct Walker<'a> {
    device: &'a dyn Device,
    delta: &'a Delta,
    placement: Placement<'a>,
    steps: StepReader,
    differences: DifferenceReader,
    literals: StreamReader,
    step_list: Vec<Step>,
    output: AlignedBuffer,
    sources: SourceBuffer,
    unsynced: bool,
    walked: &'a mut Walked,
}

impl Walker<'_> {
    /// Makes everything written so far durable. Without writes since the last sync there is nothing to do.
    fn sync(&mut self) -> Result<(), WalkError> {
        if self.unsynced {
            self.device.sync()?;
            self.unsynced = false;
            self.walked.syncs += 1;
        }
        Ok(())
    }

    fn batch(&mut self, index: u64, batch: &Batch, redo: bool) -> Result<(), WalkError> {
        let missing = |block| DeltaError::Rule { rule: "source", batch: index, block };
        let extents = self.delta.table.extents(batch);
        let sources = match batch.kind {
            BatchKind::Zero => Sources::default(),
            BatchKind::Save => self.placement.save_sources(self.delta.table.saved(batch)).map_err(missing)?,
            BatchKind::Data => {
                self.steps.read_batch(extents, &mut self.step_list)?;
                self.placement.sources(&self.step_list).map_err(missing)?
            }
        };
        match (redo, batch.kind) {
            (false, BatchKind::Data) => self.skip_steps()?,
            (false, _) => {}
            (true, BatchKind::Zero) => self.zero(extents)?,
            (true, BatchKind::Save) => {
                self.sources.load(self.device, &sources)?;
                self.make_save(batch)?;
                self.write(index, batch)?;
                self.walked.scratch += self.output.len() as u64;
            }
            (true, BatchKind::Data) => {
                self.sources.load(self.device, &sources)?;
                self.make_data(index, batch)?;
                self.write(index, batch)?;
            }
        }
        self.walked.batches += u64::from(redo);
        // The rules were checked before; this keeps track of where old bytes lie.
        self.placement.advance(index, &self.delta.table, batch, &sources)?;
        Ok(())
    }

    /// Passes over the columns of a batch that is done.
    fn skip_steps(&mut self) -> Result<(), WalkError> {
        for step in &self.step_list {
            if step.kind == StepKind::Literal {
                self.literals.skip(step.len)?;
            } else if step.kind.adds() {
                self.differences.skip(step.len)?;
            }
        }
        Ok(())
    }

    fn zero(&mut self, extents: &[Extent]) -> Result<(), WalkError> {
        for extent in extents {
            let bytes = extent.bytes(self.delta.header.new.len);
            self.unsynced = true;
            self.device.write_zeros(bytes.start, bytes.end - bytes.start)?;
            self.walked.written += bytes.end - bytes.start;
        }
        Ok(())
    }

    fn make_save(&mut self, batch: &Batch) -> Result<(), WalkError> {
        let len = count_blocks(self.delta.table.extents(batch)) * BLOCK;
        self.output.resize(len as usize);
        self.output.fill(0);
        let sources = &self.sources;
        let mut complete = true;
        // Saves read at home, so the logical offset is the physical one.
        fill_save(self.delta.table.saved(batch), &mut self.output, |range, target| {
            complete &= sources.copy(range.start, target).is_some();
        });
        if complete { Ok(()) } else { Err(DeltaError::Malformed("a save reads what it does not announce").into()) }
    }

    fn make_data(&mut self, index: u64, batch: &Batch) -> Result<(), WalkError> {
        let delta = self.delta;
        let len = delta.table.written_bytes(batch, delta.header.new.len);
        self.output.resize(len as usize);
        self.differences.start_batch();
        let mut at = 0;
        for step in &self.step_list {
            let target = &mut self.output[at..at + step.len as usize];
            at += step.len as usize;
            match step.kind.space() {
                None if step.kind == StepKind::Zero => target.fill(0),
                None => self.literals.fill(target)?,
                Some(space) => {
                    let (mut filled, mut complete) = (0, true);
                    let sources = &self.sources;
                    let located = self.placement.locate(space, step.src..step.src + step.len, |piece| {
                        let part = &mut target[filled..filled + piece.len as usize];
                        complete &= sources.copy(piece.physical, part).is_some();
                        filled += piece.len as usize;
                    });
                    located.map_err(|block| DeltaError::Rule { rule: "source", batch: index, block })?;
                    if !complete {
                        return Err(DeltaError::Malformed("a step reads what its batch does not announce").into());
                    }
                    if step.kind.adds() {
                        self.differences.add_to(step.src, step.dst, target)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the computed bytes, if they are the right ones.
    fn write(&mut self, index: u64, batch: &Batch) -> Result<(), WalkError> {
        let extents = self.delta.table.extents(batch);
        if crc32fast::hash(&self.output) != batch.crc {
            let offset = extents.first().map_or(0, |e| e.start * BLOCK);
            return Err(WalkError::WrongResult { batch: index, offset });
        }
        let mut at = 0;
        for extent in extents {
            let bytes = extent.bytes(self.delta.header.new.len);
            let len = (bytes.end - bytes.start) as usize;
            self.unsynced = true;
            self.device.write(bytes.start, &self.output[at..at + len])?;
            self.walked.written += len as u64;
            at += len;
        }
        Ok(())
    }
}

/// The source blocks of a batch, in memory: read in ascending order, neighbours at once.
#[derive(Default)]
struct SourceBuffer {
    extents: Vec<(Extent, usize)>,
    bytes: AlignedBuffer,
}

impl SourceBuffer {
    fn load(&mut self, device: &dyn Device, sources: &Sources) -> Result<(), DeviceError> {
        self.extents.clear();
        self.bytes.resize(sources.bytes() as usize);
        let mut at = 0;
        let end = device.len();
        for extent in &sources.blocks {
            // The image's last block may be short; behind it there is nothing to read.
            let bytes = extent.bytes(end);
            let len = (bytes.end - bytes.start) as usize;
            device.read(bytes.start, &mut self.bytes[at..at + len])?;
            self.extents.push((*extent, at));
            at += (extent.count * BLOCK) as usize;
        }
        Ok(())
    }

    /// Copies bytes from where they physically lie; `None` if they were not loaded.
    fn copy(&self, physical: u64, target: &mut [u8]) -> Option<()> {
        let i = self.extents.partition_point(|(extent, _)| extent.start * BLOCK <= physical).checked_sub(1)?;
        let (extent, at) = self.extents.get(i)?;
        if physical + target.len() as u64 > extent.end() * BLOCK {
            return None;
        }
        let start = at + (physical - extent.start * BLOCK) as usize;
        target.copy_from_slice(self.bytes.get(start..start + target.len())?);
        Some(())
    }
}
