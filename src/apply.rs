//! The walk: makes the batches that must be done, in order, and hands them over to be written (spec, chapter 8).
//!
//! While one batch is written, or a barrier waits for the medium, the next ones are made. What they read is read then,
//! which is sound: bytes at home stay there until a later batch writes (R2 orders only writes); bytes that an earlier
//! batch produces are read when that batch has been written.

use crate::delta::Delta;
use crate::delta::DeltaError;
use crate::delta::batch::{Batch, BatchKind};
use crate::delta::check::CheckedOrder;
use crate::delta::difference::DifferenceReader;
use crate::delta::placement::{Placement, Sources};
use crate::delta::step::{Step, StepKind, StepReader};
use crate::delta::stream::StreamReader;
use crate::delta::writer::fill_save;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::monitor::Monitor;
use crate::scribe::{Order, Scribe, Work};
use crate::sources::SourceBuffer;
use crate::units::{BLOCK, Extent};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

/// What a walk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Whether anything was changed, or may have been: a write, or a new length, was asked for.
    pub began: bool,
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
    #[error(
        "batch {batch} does not come out right: the target or the delta has yielded other data than when \
        it was checked (the batch writes at offset {offset})"
    )]
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
    order: &CheckedOrder,
    redo: &[bool],
    stop: &AtomicBool,
    monitor: &dyn Monitor,
    walked: &mut Walked,
) -> Result<(), WalkError> {
    let scribe = Scribe::new(device, delta.header.new.len, monitor, *walked);
    let (to_write, orders) = sync_channel(BUFFERS);
    let (done, to_reuse) = channel();
    let (steps, differences, literals) = (delta.steps()?, delta.differences()?, delta.literals()?);
    std::thread::scope(|scope| {
        let started = std::thread::Builder::new().spawn_scoped(scope, move || scribe.run(&orders, &done));
        let scribe = started.map_err(|source| DeviceError::no_thread(device, source))?;
        let mut walker = Walker {
            device,
            delta,
            placement: order.placement(),
            steps,
            differences,
            literals,
            step_list: Vec::new(),
            sources: SourceBuffer::new(device.len()),
            desk: Desk { to_write, to_reuse, underway: VecDeque::new(), buffers: Vec::new(), made: 0 },
        };
        let prepared = walker.all(redo, stop, monitor);
        drop(walker);
        let (did, written) = scribe.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        *walked = did;
        // Where writing failed, preparing did so only because of that.
        written?;
        prepared
    })
}

/// Batches that are being made or written at the same time: one is made, one written, one waits.
const BUFFERS: usize = 3;

struct Walker<'a> {
    device: &'a dyn Device,
    delta: &'a Delta,
    placement: Placement<'a>,
    steps: StepReader,
    differences: DifferenceReader,
    literals: StreamReader,
    step_list: Vec<Step>,
    sources: SourceBuffer,
    desk: Desk<'a>,
}

/// What has been handed over to be written.
struct Desk<'a> {
    to_write: SyncSender<Order<'a>>,
    to_reuse: Receiver<Option<AlignedBuffer>>,
    /// The extents of what may not be written yet, in order.
    underway: VecDeque<&'a [Extent]>,
    buffers: Vec<AlignedBuffer>,
    made: usize,
}

/// The writer has given up; it knows why.
struct Gone;

impl From<Gone> for WalkError {
    fn from(Gone: Gone) -> Self {
        Self::Stop
    }
}

impl<'a> Desk<'a> {
    fn hand_over(&mut self, batch: &'a Batch, extents: &'a [Extent], work: Work) -> Result<(), Gone> {
        self.underway.push_back(extents);
        self.to_write.send(Order { batch, extents, work }).map_err(|_| Gone)
    }

    /// Waits until nothing is underway to these blocks, so that they can be read.
    fn settle(&mut self, blocks: &[Extent]) -> Result<(), Gone> {
        while let Ok(buffer) = self.to_reuse.try_recv() {
            self.written(buffer);
        }
        while self.underway.iter().any(|extents| have_common(extents, blocks)) {
            let buffer = self.to_reuse.recv().map_err(|_| Gone)?;
            self.written(buffer);
        }
        Ok(())
    }

    fn written(&mut self, buffer: Option<AlignedBuffer>) {
        self.underway.pop_front();
        self.buffers.extend(buffer);
    }

    fn buffer(&mut self, len: usize) -> Result<AlignedBuffer, Gone> {
        while self.buffers.is_empty() && self.made == BUFFERS {
            let buffer = self.to_reuse.recv().map_err(|_| Gone)?;
            self.written(buffer);
        }
        let mut buffer = self.buffers.pop().unwrap_or_else(|| {
            self.made += 1;
            AlignedBuffer::default()
        });
        buffer.resize(len);
        Ok(buffer)
    }
}

impl<'a> Walker<'a> {
    fn all(&mut self, redo: &[bool], stop: &AtomicBool, monitor: &dyn Monitor) -> Result<(), WalkError> {
        let delta = self.delta;
        for ((index, batch), redo) in (0u64..).zip(delta.table.batches()).zip(redo) {
            if stop.load(Ordering::Relaxed) {
                return Err(WalkError::Stop);
            }
            self.batch(index, batch, *redo)?;
            if !redo {
                monitor.advance(delta.table.written_bytes(batch, delta.header.new.len));
            }
        }
        Ok(())
    }

    fn batch(&mut self, index: u64, batch: &'a Batch, redo: bool) -> Result<(), WalkError> {
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
        if redo {
            let work = match batch.kind {
                BatchKind::Zero => Work::Zeros,
                BatchKind::Save => Work::Bytes(self.make(index, batch, &sources, Self::make_save)?),
                BatchKind::Data => Work::Bytes(self.make(index, batch, &sources, Self::make_data)?),
            };
            self.desk.hand_over(batch, extents, work)?;
        } else {
            if batch.barrier {
                self.desk.hand_over(batch, &[], Work::Nothing)?;
            }
            if batch.kind == BatchKind::Data {
                self.skip_steps()?;
            }
        }
        // The rules were checked before; this keeps track of where old bytes lie.
        self.placement.advance(index, &self.delta.table, batch, &sources)?;
        Ok(())
    }

    /// Makes the bytes of a batch; they are the right ones.
    fn make(
        &mut self,
        index: u64,
        batch: &Batch,
        sources: &Sources,
        fill: impl FnOnce(&mut Self, u64, &Batch, &mut [u8]) -> Result<(), WalkError>,
    ) -> Result<AlignedBuffer, WalkError> {
        self.desk.settle(&sources.blocks)?;
        self.sources.load(self.device, sources)?;
        let len = self.delta.table.written_bytes(batch, self.delta.header.new.len);
        let mut output = self.desk.buffer(len as usize)?;
        fill(self, index, batch, &mut output)?;
        if crc32fast::hash(&output) != batch.crc {
            let offset = self.delta.table.extents(batch).first().map_or(0, |e| e.start * BLOCK);
            return Err(WalkError::WrongResult { batch: index, offset });
        }
        Ok(output)
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

    fn make_save(&mut self, _: u64, batch: &Batch, output: &mut [u8]) -> Result<(), WalkError> {
        output.fill(0);
        let sources = &self.sources;
        let mut complete = true;
        // Saves read at home, so the logical offset is the physical one.
        fill_save(self.delta.table.saved(batch), output, |range, target| {
            complete &= sources.copy(range.start, target).is_some();
        });
        if complete { Ok(()) } else { Err(DeltaError::Malformed("a save reads what it does not announce").into()) }
    }

    fn make_data(&mut self, index: u64, _: &Batch, output: &mut [u8]) -> Result<(), WalkError> {
        self.differences.start_batch();
        let mut at = 0;
        for step in &self.step_list {
            let target = &mut output[at..at + step.len as usize];
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
}

/// Whether two lists of extents, both ascending, have a block in common.
fn have_common(mut a: &[Extent], mut b: &[Extent]) -> bool {
    while let ([x, rest_a @ ..], [y, rest_b @ ..]) = (a, b) {
        if x.end() <= y.start {
            a = rest_a;
        } else if y.end() <= x.start {
            b = rest_b;
        } else {
            return true;
        }
    }
    false
}
