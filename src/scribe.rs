//! Writes what the walk has prepared, on threads of its own, so that the next batches are made meanwhile. The only
//! writer of targets. Between two barriers the rules let batches be written in any order (R2: none writes what another
//! one writes or reads at home), so that several are written at the same time; what the walk reads early it reads only
//! where no write is due (see `apply`).

use crate::apply::Walked;
use crate::delta::batch::{Batch, BatchKind};
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::milestone::Milestone;
use crate::monitor::Monitor;
use crate::units::Extent;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, PoisonError};

/// Batches that are written at the same time: hides what each write waits.
pub(crate) const WRITERS: usize = 2;

/// What is to be done for a batch; a barrier before it included.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    pub batch: &'a Batch,
    pub extents: &'a [Extent],
    pub work: Work,
}

#[derive(Debug)]
pub(crate) enum Work {
    /// The batch is done; only its barrier counts.
    Nothing,
    /// Write zeros.
    Zeros,
    /// Write these bytes.
    Bytes(AlignedBuffer),
}

/// What the writers share.
pub(crate) struct Scribe<'a> {
    device: &'a dyn Device,
    new_len: u64,
    monitor: &'a dyn Monitor,
    /// Orders that are carried out.
    written: &'a Milestone,
    /// Who holds it takes the next order, and sees to the barrier before it.
    gate: Mutex<Gate<'a>>,
    log: Mutex<Log>,
}

struct Gate<'a> {
    /// `None` when no more will be taken: whoever wants to hand one over then learns so.
    orders: Option<Receiver<Order<'a>>>,
    taken: u64,
}

/// The failure is in the log.
struct Failed;

struct Log {
    unsynced: bool,
    walked: Walked,
    failure: Option<DeviceError>,
}

impl<'a> Scribe<'a> {
    /// `walked`: what was done before.
    pub fn new(
        device: &'a dyn Device,
        new_len: u64,
        monitor: &'a dyn Monitor,
        written: &'a Milestone,
        orders: Receiver<Order<'a>>,
        walked: Walked,
    ) -> Self {
        let log = Mutex::new(Log { unsynced: true, walked, failure: None });
        Self { device, new_len, monitor, written, gate: Mutex::new(Gate { orders: Some(orders), taken: 0 }), log }
    }

    /// Carries out orders until there are no more, and gives their buffers back. Several threads may do so.
    pub fn work(&self, done: &Sender<AlignedBuffer>) {
        while let Some((number, order)) = self.take() {
            // Where that fails, there is no next one.
            if let Ok(buffer) = self.carry_out(order) {
                self.written.done(number);
                // The other side may have given up.
                let _ = buffer.map(|buffer| done.send(buffer));
            }
        }
    }

    /// Whether a write, or a sync at a barrier, has failed.
    pub fn has_failed(&self) -> bool {
        self.log(|log| log.failure.is_some())
    }

    /// Syncs, when all who work have ended. Says what was done, also if that failed.
    pub fn finish(self) -> (Walked, Result<(), DeviceError>) {
        let mut log = self.log.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut result = log.failure.take().map_or(Ok(()), Err);
        if result.is_ok() && log.unsynced {
            result = self.device.sync();
            log.walked.syncs += u64::from(result.is_ok());
        }
        (log.walked, result)
    }

    /// The next order, when everything before its barrier is durable.
    fn take(&self) -> Option<(u64, Order<'a>)> {
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.next(&gate);
        match next {
            Some(_) => gate.taken += 1,
            None => gate.orders = None,
        }
        Some(gate.taken).zip(next)
    }

    fn next(&self, gate: &Gate<'a>) -> Option<Order<'a>> {
        // Where another writer has failed, nothing more may be written, and a sync would prove nothing.
        if self.written.is_abandoned() {
            return None;
        }
        // Whatever an earlier run, or whoever wrote the old image, left in flight must not pass the first write.
        if gate.taken == 0 {
            self.sync()?;
        }
        let order = gate.orders.as_ref()?.recv().ok()?;
        if order.batch.barrier {
            // It belongs to its place: also where the batch itself is done.
            if !self.written.wait_for(gate.taken) {
                return None;
            }
            self.sync()?;
        }
        (!self.written.is_abandoned()).then_some(order)
    }

    fn carry_out(&self, order: Order<'_>) -> Result<Option<AlignedBuffer>, Failed> {
        let mut bytes_written = 0;
        let buffer = match order.work {
            Work::Nothing => return Ok(None),
            Work::Zeros => {
                for extent in order.extents {
                    let bytes = extent.bytes(self.new_len);
                    let len = bytes.end - bytes.start;
                    self.writing(len, |device| device.write_zeros(bytes.start, len))?;
                    bytes_written += len;
                }
                None
            }
            Work::Bytes(buffer) => {
                let mut rest = &buffer[..];
                for extent in order.extents {
                    let bytes = extent.bytes(self.new_len);
                    let (now, later) = rest.split_at((bytes.end - bytes.start) as usize);
                    self.writing(now.len() as u64, |device| device.write(bytes.start, now))?;
                    rest = later;
                    bytes_written += now.len() as u64;
                }
                Some(buffer)
            }
        };
        self.log(|log| {
            if order.batch.kind == BatchKind::Save {
                log.walked.scratch += bytes_written;
            }
            log.walked.batches += 1;
        });
        self.monitor.advance(bytes_written);
        Ok(buffer)
    }

    fn writing(&self, len: u64, write: impl FnOnce(&dyn Device) -> Result<(), DeviceError>) -> Result<(), Failed> {
        // Where another writer has failed, nothing more may be written.
        if self.written.is_abandoned() {
            return Err(Failed);
        }
        self.log(|log| (log.unsynced, log.walked.began) = (true, true));
        write(self.device).map_err(|e| self.fail(e))?;
        self.log(|log| log.walked.written += len);
        Ok(())
    }

    /// Makes everything written so far durable; nobody writes meanwhile. Without writes since the last sync there is
    /// nothing to do. `None` where that fails.
    fn sync(&self) -> Option<()> {
        if self.log(|log| log.unsynced) {
            self.device.sync().map_err(|e| self.fail(e)).ok()?;
            self.monitor.durable();
            self.log(|log| {
                log.unsynced = false;
                log.walked.syncs += 1;
            });
        }
        Some(())
    }

    /// Ends all writing, and lets nobody wait for it: whoever hands an order over learns so.
    pub fn close(&self) {
        self.written.abandon();
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).orders = None;
    }

    /// Ends all writing; the first failure counts.
    fn fail(&self, e: DeviceError) -> Failed {
        self.log(|log| {
            log.failure.get_or_insert(e);
        });
        self.written.abandon();
        Failed
    }

    fn log<R>(&self, note: impl FnOnce(&mut Log) -> R) -> R {
        note(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
