//! Writes what the walk has prepared, on a thread of its own, so that the next batch is made meanwhile. The only writer
//! of targets. The rules R1 to R4 speak of writes and syncs, whose order is kept; what the walk reads early it reads
//! only where no write is due (see `apply`).

use crate::apply::Walked;
use crate::delta::batch::{Batch, BatchKind};
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::monitor::Monitor;
use crate::units::Extent;
use std::sync::mpsc::{Receiver, Sender};

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

pub(crate) struct Scribe<'a> {
    device: &'a dyn Device,
    new_len: u64,
    monitor: &'a dyn Monitor,
    unsynced: bool,
    walked: Walked,
}

impl<'a> Scribe<'a> {
    /// `walked`: what was done before.
    pub fn new(device: &'a dyn Device, new_len: u64, monitor: &'a dyn Monitor, walked: Walked) -> Self {
        Self { device, new_len, monitor, unsynced: true, walked }
    }

    /// Carries out all orders, acknowledges each, and syncs. Says what it did, also if it failed.
    pub fn run(
        mut self,
        orders: &Receiver<Order<'_>>,
        done: &Sender<Option<AlignedBuffer>>,
    ) -> (Walked, Result<(), DeviceError>) {
        let result = self.all(orders, done);
        (self.walked, result)
    }

    fn all(&mut self, orders: &Receiver<Order<'_>>, done: &Sender<Option<AlignedBuffer>>) -> Result<(), DeviceError> {
        // Whatever an earlier run, or whoever wrote the old image, left in flight.
        self.sync()?;
        for order in orders {
            if order.batch.barrier {
                self.sync()?; // belongs to its place: also where the batch itself is done
            }
            let buffer = self.carry_out(order)?;
            let _ = done.send(buffer); // the other side may have given up
        }
        self.sync()
    }

    fn carry_out(&mut self, order: Order<'_>) -> Result<Option<AlignedBuffer>, DeviceError> {
        let before = self.walked.written;
        let buffer = match order.work {
            Work::Nothing => return Ok(None),
            Work::Zeros => {
                for extent in order.extents {
                    let bytes = extent.bytes(self.new_len);
                    let len = bytes.end - bytes.start;
                    self.writing(len, |device| device.write_zeros(bytes.start, len))?;
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
                }
                Some(buffer)
            }
        };
        let written = self.walked.written - before;
        if order.batch.kind == BatchKind::Save {
            self.walked.scratch += written;
        }
        self.walked.batches += 1;
        self.monitor.advance(written);
        Ok(buffer)
    }

    fn writing(
        &mut self,
        len: u64,
        write: impl FnOnce(&dyn Device) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        (self.unsynced, self.walked.began) = (true, true);
        write(self.device)?;
        self.walked.written += len;
        Ok(())
    }

    /// Makes everything written so far durable. Without writes since the last sync there is nothing to do.
    fn sync(&mut self) -> Result<(), DeviceError> {
        if self.unsynced {
            self.device.sync()?;
            self.unsynced = false;
            self.walked.syncs += 1;
        }
        Ok(())
    }
}
