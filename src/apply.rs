//! The walk: makes the batches that must be done, in order, and hands them over to be written (spec, chapter 8).
//!
//! While one batch is written, or a barrier waits for the medium, the next ones are made, and those behind them are planned,
//! and what they read is read. That is sound: bytes at home stay there until a later batch writes (R2 orders only writes); bytes that
//! an earlier batch produces are read when that batch has been written.

use crate::ahead::{Coming, Unpacking, unpack_texts};
use crate::delta::Delta;
use crate::delta::DeltaError;
use crate::delta::batch::{Batch, BatchKind};
use crate::delta::check::CheckedOrder;
use crate::delta::memory::UNPACKERS;
use crate::delta::writer::fill_save;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::maker::Maker;
use crate::milestone::{Gone, Milestone};
use crate::monitor::Monitor;
use crate::planner::{Loaded, Planned, Planner};
use crate::reading_room::{READERS, ReadingRoom, read_jobs};
use crate::scribe::{Order, Scribe, WRITERS, Work};
use crate::sources::SourceBuffer;
use crate::target::SurveyError;
use crate::units::{BLOCK, Extent};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
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
    let (to_load, plans) = channel();
    let (to_make, loaded) = channel();
    let (to_plan, used) = channel();
    let (to_use, texts) = channel();
    let (to_unpack, reuse) = channel();
    let mut planner = Planner::new(delta, order, ReadingRoom::new(to_read, &written), used)?;
    let desk = Desk { to_write, to_reuse, buffers: Vec::new(), made: 0 };
    let unpacking = Arc::new(Mutex::new(Unpacking::new(plans, to_make, to_plan, reuse)));
    let mut walker = Walker { delta, maker: Maker::new(delta)?, loaded, texts: Coming::new(texts, to_unpack), desk };
    let prepared = std::thread::scope(|scope| {
        // Whatever ends this, nobody may wait for orders that will not come.
        let _end = Abandon(&written);
        let end = device.len();
        for _ in 0..READERS {
            let (jobs, written) = (&jobs, &written);
            start(scope, device, move || read_jobs(device, end, jobs, written))?;
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
        for _ in 0..UNPACKERS {
            let (unpacking, to_use) = (Arc::clone(&unpacking), to_use.clone());
            start(scope, device, move || unpack_texts(&unpacking, &to_use))?;
        }
        drop((unpacking, to_use));
        start(scope, device, move || planner.all(redo, &to_load))?;
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

/// Makes what was planned, and hands it over.
struct Walker<'a> {
    delta: &'a Delta,
    maker: Maker,
    loaded: Receiver<Result<Arc<Loaded<'a>>, WalkError>>,
    texts: Coming,
    desk: Desk<'a>,
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

impl<'a> Walker<'a> {
    fn all(&mut self, stop: &AtomicBool, monitor: &dyn Monitor) -> Result<(), WalkError> {
        // Who plans, and who loads, ends early only where that fails.
        while let Ok(loaded) = self.loaded.recv() {
            let loaded = loaded?;
            // Not where everything is done.
            if stop.load(Ordering::Relaxed) {
                return Err(WalkError::Stop);
            }
            if !loaded.planned.redo {
                monitor.advance(self.delta.table.written_bytes(loaded.planned.batch, self.delta.header.new.len));
            }
            self.carry_out(&loaded)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, loaded: &Loaded<'a>) -> Result<(), WalkError> {
        let Planned { batch, redo, steps, .. } = &loaded.planned;
        let extents = self.delta.table.extents(batch);
        if *redo {
            let work = match batch.kind {
                BatchKind::Zero => Work::Zeros,
                BatchKind::Save | BatchKind::Data => Work::Bytes(self.make(loaded)?),
            };
            return Ok(self.desk.hand_over(batch, extents, work)?);
        }
        if batch.barrier {
            self.desk.hand_over(batch, &[], Work::Nothing)?;
        }
        Ok(self.maker.skip(steps)?)
    }

    /// Makes the bytes of a batch; they are the right ones.
    fn make(&mut self, loaded: &Loaded<'_>) -> Result<AlignedBuffer, WalkError> {
        let batch = loaded.planned.batch;
        let len = self.delta.table.written_bytes(batch, self.delta.header.new.len);
        let mut output = self.desk.buffer(len as usize)?;
        if batch.kind == BatchKind::Save {
            self.make_save(batch, &loaded.sources, &mut output)?;
        } else {
            self.texts.start_batch();
            self.maker.make(&loaded.planned.steps, &mut output, loaded.fetch(0), &mut self.texts)?;
        }
        if crc32fast::hash(&output) != batch.crc {
            let offset = self.delta.table.extents(batch).first().map_or(0, |e| e.start * BLOCK);
            return Err(WalkError::WrongResult { batch: loaded.planned.index, offset });
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
}
