//! The walk: makes the batches that must be done, in order, and hands them over to be written (spec, chapter 8).
//!
//! While one batch is written, or a barrier waits for the medium, the next ones are made, and those behind them are planned,
//! and what they read is read. That is sound: bytes at home stay there until a later batch writes (R2 orders only writes); bytes that
//! an earlier batch produces are read when that batch has been written.

use crate::delta::Delta;
use crate::delta::DeltaError;
use crate::delta::batch::{Batch, BatchKind};
use crate::delta::check::CheckedOrder;
use crate::delta::placement::{Piece, Placement, Sources};
use crate::delta::step::Step;
use crate::delta::step_reader::StepReader;
use crate::delta::writer::fill_save;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::maker::Maker;
use crate::milestone::{Gone, Milestone};
use crate::monitor::Monitor;
use crate::scribe::{Order, Scribe, WRITERS, Work};
use crate::sources::{READERS, ReadingRoom, SourceBuffer, read_jobs};
use crate::target::SurveyError;
use crate::units::{BLOCK, Extent};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

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
        "batch {batch} does not come out right: what it is made from, or the delta, is not what it was when \
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

impl From<SurveyError> for WalkError {
    fn from(e: SurveyError) -> Self {
        match e {
            SurveyError::Device(e) => Self::Device(e),
            SurveyError::Delta(e) => Self::Delta(e),
            SurveyError::Stop => Self::Stop,
        }
    }
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
    let written = Milestone::new();
    let (to_write, orders) = sync_channel(1);
    let scribe = Scribe::new(device, delta.header.new.len, monitor, &written, orders, *walked);
    let (done, to_reuse) = channel();
    let (to_read, jobs) = channel();
    let jobs = Mutex::new(jobs);
    let (to_make, plans) = sync_channel(AHEAD);
    let (made, used) = channel();
    let reading = ReadingRoom::new(to_read, &written, device.len());
    let mut planner = Planner { delta, placement: order.placement(), steps: delta.steps()?, reading, used };
    let desk = Desk { to_write, to_reuse, buffers: Vec::new(), made: 0 };
    let mut walker = Walker { delta, maker: Maker::new(delta)?, plans, made, desk };
    let prepared = std::thread::scope(|scope| {
        // Whatever ends this, nobody may wait for orders that will not come.
        let _end = Abandon(&written);
        for _ in 0..READERS {
            start(scope, device, || read_jobs(device, &jobs, &written))?;
        }
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let (scribe, done) = (&scribe, done.clone());
            writers.push(start(scope, device, move || {
                let _end = CloseOnPanic(scribe);
                scribe.work(&done);
            })?);
        }
        drop(done);
        start(scope, device, move || planner.all(redo, &to_make))?;
        let prepared = walker.all(stop, monitor);
        drop(walker); // no more orders
        writers.into_iter().for_each(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        prepared
    });
    let failed = scribe.has_failed();
    let (did, written) = scribe.finish();
    *walked = did;
    match (prepared, written) {
        // Where writing failed, preparing did so only because of that; if not, the last sync was not the cause.
        (prepared, Err(e)) if failed || matches!(prepared, Ok(()) | Err(WalkError::Stop)) => Err(e.into()),
        (prepared, _) => prepared,
    }
}

pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    device: &dyn Device,
    work: impl FnOnce() + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, ()>, WalkError> {
    let started = std::thread::Builder::new().spawn_scoped(scope, work);
    Ok(started.map_err(|source| DeviceError::no_thread(device, source))?)
}

/// Releases all who wait for orders to be carried out.
struct Abandon<'a>(&'a Milestone);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Ends all writing when a writer panics; one that merely has nothing more to do leaves the others at work.
struct CloseOnPanic<'a, 'b>(&'a Scribe<'b>);

impl Drop for CloseOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close();
        }
    }
}

/// Batches that are being made or written at the same time: one is made, one waits.
pub(crate) const BUFFERS: usize = WRITERS + 2;
/// Plans that wait for the maker: besides one that is being made, and one that is being planned. The sources of all but the
/// first are being read.
const AHEAD: usize = READERS - 1;

/// Follows the order ahead of the walk: finds out where the sources of each batch lie when its turn comes, and has them
/// read.
struct Planner<'a> {
    delta: &'a Delta,
    placement: Placement<'a>,
    steps: StepReader,
    reading: ReadingRoom<'a>,
    /// What batches that are done needed.
    used: Receiver<Used>,
}

/// Memory for other batches.
#[derive(Default)]
struct Used {
    steps: Vec<Step>,
    pieces: Vec<(u64, u64)>,
    sources: Option<SourceBuffer>,
}

/// Makes what was planned, and hands it over.
struct Walker<'a> {
    delta: &'a Delta,
    maker: Maker,
    plans: Receiver<Result<Planned<'a>, WalkError>>,
    made: Sender<Used>,
    desk: Desk<'a>,
}

/// A batch whose place in the order is known.
struct Planned<'a> {
    index: u64,
    batch: &'a Batch,
    redo: bool,
    steps: Vec<Step>,
    /// Where the bytes of the steps that read lie: byte on the target, and number of bytes.
    pieces: Vec<(u64, u64)>,
    loaded: Option<Receiver<Result<SourceBuffer, DeviceError>>>,
}

impl From<Gone> for WalkError {
    fn from(Gone: Gone) -> Self {
        Self::Stop
    }
}

/// What has been handed over to be written.
struct Desk<'a> {
    to_write: SyncSender<Order<'a>>,
    to_reuse: Receiver<AlignedBuffer>,
    buffers: Vec<AlignedBuffer>,
    made: usize,
}

impl<'a> Desk<'a> {
    fn hand_over(&mut self, batch: &'a Batch, extents: &'a [Extent], work: Work) -> Result<(), Gone> {
        self.to_write.send(Order { batch, extents, work }).map_err(|_| Gone)
    }

    fn buffer(&mut self, len: usize) -> Result<AlignedBuffer, Gone> {
        self.buffers.extend(self.to_reuse.try_iter());
        if self.buffers.is_empty() && self.made == BUFFERS {
            self.buffers.push(self.to_reuse.recv().map_err(|_| Gone)?);
        }
        let mut buffer = self.buffers.pop().unwrap_or_else(|| {
            self.made += 1;
            AlignedBuffer::default()
        });
        buffer.resize(len);
        Ok(buffer)
    }
}

impl<'a> Planner<'a> {
    /// Plans batch after batch, until one cannot be planned, or nobody wants the next.
    fn all(&mut self, redo: &[bool], to_make: &SyncSender<Result<Planned<'a>, WalkError>>) {
        for ((index, batch), redo) in (0u64..).zip(self.delta.table.batches()).zip(redo) {
            let planned = self.plan(index, batch, *redo);
            let failed = planned.is_err();
            if to_make.send(planned).is_err() || failed {
                return;
            }
        }
    }

    fn plan(&mut self, index: u64, batch: &'a Batch, redo: bool) -> Result<Planned<'a>, WalkError> {
        let missing = |block| DeltaError::Rule { rule: "source", batch: index, block };
        let extents = self.delta.table.extents(batch);
        let Used { steps, pieces, sources } = self.used.try_recv().unwrap_or_default();
        self.reading.buffers.extend(sources);
        let mut planned = Planned { index, batch, redo, steps, pieces, loaded: None };
        let sources = match batch.kind {
            BatchKind::Zero => Sources::default(),
            BatchKind::Save => self.placement.save_sources(self.delta.table.saved(batch)).map_err(missing)?,
            BatchKind::Data => {
                self.steps.read_batch(extents, &mut planned.steps)?;
                let pieces = &mut planned.pieces;
                let keep = |piece: &Piece| {
                    if redo {
                        pieces.push((piece.physical, piece.len))
                    }
                };
                self.placement.sources_in_pieces(&planned.steps, keep).map_err(missing)?
            }
        };
        // The rules were checked before; this keeps track of where old bytes lie.
        self.placement.advance(index, &self.delta.table, batch, &sources)?;
        if redo && batch.kind != BatchKind::Zero {
            planned.loaded = Some(self.reading.request(sources)?);
        }
        if redo || batch.barrier {
            self.reading.note_order(if redo { extents } else { &[] });
        }
        Ok(planned)
    }
}

impl<'a> Walker<'a> {
    fn all(&mut self, stop: &AtomicBool, monitor: &dyn Monitor) -> Result<(), WalkError> {
        // Who plans ends early only where that fails.
        while let Ok(planned) = self.plans.recv() {
            let planned = planned?;
            // Not where everything is done.
            if stop.load(Ordering::Relaxed) {
                return Err(WalkError::Stop);
            }
            if !planned.redo {
                monitor.advance(self.delta.table.written_bytes(planned.batch, self.delta.header.new.len));
            }
            self.carry_out(planned)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, planned: Planned<'a>) -> Result<(), WalkError> {
        let Planned { batch, redo, .. } = planned;
        let extents = self.delta.table.extents(batch);
        let mut sources = None;
        if redo {
            let work = match batch.kind {
                BatchKind::Zero => Work::Zeros,
                BatchKind::Save | BatchKind::Data => {
                    // Those who read end early only where the writer did.
                    let loaded = planned.loaded.as_ref().and_then(|loaded| loaded.recv().ok()).ok_or(Gone)?;
                    Work::Bytes(self.make(&planned, sources.insert(loaded?))?)
                }
            };
            self.desk.hand_over(batch, extents, work)?;
        } else {
            if batch.barrier {
                self.desk.hand_over(batch, &[], Work::Nothing)?;
            }
            self.maker.skip(&planned.steps)?;
        }
        let Planned { mut steps, mut pieces, .. } = planned;
        steps.clear();
        pieces.clear();
        // Who plans may be done.
        let _ = self.made.send(Used { steps, pieces, sources });
        Ok(())
    }

    /// Makes the bytes of a batch; they are the right ones.
    fn make(&mut self, planned: &Planned<'_>, sources: &SourceBuffer) -> Result<AlignedBuffer, WalkError> {
        let batch = planned.batch;
        let len = self.delta.table.written_bytes(batch, self.delta.header.new.len);
        let mut output = self.desk.buffer(len as usize)?;
        if batch.kind == BatchKind::Save {
            self.make_save(batch, sources, &mut output)?;
        } else {
            self.make_data(planned, sources, &mut output)?;
        }
        if crc32fast::hash(&output) != batch.crc {
            let offset = self.delta.table.extents(batch).first().map_or(0, |e| e.start * BLOCK);
            return Err(WalkError::WrongResult { batch: planned.index, offset });
        }
        Ok(output)
    }

    fn make_save(&self, batch: &Batch, sources: &SourceBuffer, output: &mut [u8]) -> Result<(), WalkError> {
        output.fill(0);
        let mut result = Ok(());
        // Saves read at home, so the logical offset is the physical one.
        fill_save(self.delta.table.saved(batch), output, |range, target| {
            if result.is_ok() {
                result = sources.copy(range.start, target);
            }
        });
        Ok(result?)
    }

    fn make_data(&mut self, planned: &Planned<'_>, sources: &SourceBuffer, output: &mut [u8]) -> Result<(), WalkError> {
        let mut pieces = planned.pieces.iter();
        let made = self.maker.make(&planned.steps, output, |_, target| {
            let mut filled = 0;
            while filled < target.len()
                && let Some((physical, len)) = pieces.next()
            {
                let end = filled + *len as usize;
                sources.copy(*physical, &mut target[filled..end])?;
                filled = end;
            }
            Ok(())
        });
        Ok(made?)
    }
}
