//! The source blocks of a batch, read into memory in few large reads, by threads that read ahead of the walk.

use crate::delta::DeltaError;
use crate::delta::placement::Sources;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::milestone::{Gone, Milestone};
use crate::units::{BLOCK, Extent};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// Blocks that are not wanted but read all the same, where that saves a read: on loop devices, disks and sticks alike a
/// read of its own costs about as much time as 32 KiB more of the one before.
const GAP: u64 = 8;
/// All such blocks of a batch: bounds the memory beyond what the delta announces.
const GAPS_MOST: u64 = 64;
/// Batches whose sources are read at the same time: hides what each read waits.
pub(crate) const READERS: usize = 2;

/// What a batch reads, in memory.
pub(crate) struct SourceBuffer {
    /// Where the target ended when the walk began; one that ends sooner by now fails to be read.
    end: u64,
    /// What was read, ascending, and where it lies in the buffer.
    runs: Vec<(Extent, usize)>,
    bytes: AlignedBuffer,
}

impl SourceBuffer {
    /// For a target that ends at byte `end`.
    pub fn new(end: u64) -> Self {
        Self { end, runs: Vec::new(), bytes: AlignedBuffer::default() }
    }

    /// Reads `blocks` (ascending, merged), all that a batch reads.
    pub fn load(&mut self, device: &dyn Device, blocks: &[Extent]) -> Result<(), DeviceError> {
        self.runs.clear();
        let mut gaps = 0;
        for extent in blocks {
            match self.runs.last_mut() {
                Some((run, _)) if extent.start - run.end() <= GAP.min(GAPS_MOST - gaps) => {
                    gaps += extent.start - run.end();
                    run.count = extent.end() - run.start;
                }
                _ => self.runs.push((*extent, 0)),
            }
        }
        let mut at = 0;
        for (run, start) in &mut self.runs {
            *start = at;
            at += (run.count * BLOCK) as usize;
        }
        self.bytes.resize(at);
        Reading { device, wanted: blocks, end: self.end }.runs(&self.runs, &mut self.bytes)
    }

    /// Copies bytes from where they physically lie.
    ///
    /// # Errors
    /// A delta whose steps read what their batch does not announce.
    pub fn copy(&self, physical: u64, target: &mut [u8]) -> Result<(), DeltaError> {
        let unannounced = DeltaError::Malformed("a step reads what its batch does not announce");
        let i = self.runs.partition_point(|(run, _)| run.start * BLOCK <= physical).checked_sub(1);
        let Some((run, at)) = i.and_then(|i| self.runs.get(i)) else { return Err(unannounced) };
        if physical + target.len() as u64 > run.end() * BLOCK {
            return Err(unannounced);
        }
        let start = at + (physical - run.start * BLOCK) as usize;
        target.copy_from_slice(self.bytes.get(start..start + target.len()).ok_or(unannounced)?);
        Ok(())
    }
}

/// What is to be read for a batch.
pub(crate) struct ReadJob {
    /// Ascending, merged.
    pub blocks: Vec<Extent>,
    /// Orders that must have been carried out before: they write these blocks.
    pub after: u64,
    pub buffer: SourceBuffer,
    /// Where the buffer goes then.
    pub loaded: SyncSender<Result<SourceBuffer, DeviceError>>,
}

/// Does jobs until there are no more, or until what they wait for will not happen.
pub(crate) fn read_jobs(device: &dyn Device, jobs: &Mutex<Receiver<ReadJob>>, written: &Milestone) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(ReadJob { blocks, after, mut buffer, loaded }) = job else { return };
        if !written.wait_for(after) {
            return;
        }
        let result = buffer.load(device, &blocks);
        let _ = loaded.send(result.map(|()| buffer)); // the other side may have given up
    }
}

/// What is being read.
pub(crate) struct ReadingRoom<'a> {
    to_read: Sender<ReadJob>,
    written: &'a Milestone,
    /// Orders that write, with their numbers from 1, that may not be carried out yet.
    underway: VecDeque<(u64, &'a [Extent])>,
    orders: u64,
    /// Where the target ends.
    end: u64,
    /// Not in use.
    pub buffers: Vec<SourceBuffer>,
}

impl<'a> ReadingRoom<'a> {
    pub fn new(to_read: Sender<ReadJob>, written: &'a Milestone, end: u64) -> Self {
        Self { to_read, written, underway: VecDeque::new(), orders: 0, end, buffers: Vec::new() }
    }

    /// Has the sources of a batch read, when all orders so far that write them are done.
    pub fn request(&mut self, sources: Sources) -> Result<Receiver<Result<SourceBuffer, DeviceError>>, Gone> {
        let clash = |(_, extents): &&(u64, &[Extent])| have_common(extents, &sources.blocks);
        let after = self.underway.iter().rev().find(clash).map_or(0, |(number, _)| *number);
        let buffer = self.buffers.pop().unwrap_or_else(|| SourceBuffer::new(self.end));
        let (loaded, result) = sync_channel(1);
        self.to_read.send(ReadJob { blocks: sources.blocks, after, buffer, loaded }).map_err(|_| Gone)?;
        Ok(result)
    }

    /// An order will be handed over that writes `extents`.
    pub fn note_order(&mut self, extents: &'a [Extent]) {
        self.orders += 1;
        self.underway.push_back((self.orders, extents));
        let reached = self.written.reached();
        while self.underway.front().is_some_and(|(number, _)| *number <= reached) {
            self.underway.pop_front();
        }
    }
}

/// One batch's reading.
#[derive(Clone, Copy)]
struct Reading<'a> {
    device: &'a dyn Device,
    /// What the batch reads; runs hold gaps besides.
    wanted: &'a [Extent],
    end: u64,
}

impl Reading<'_> {
    /// Reads runs into `bytes`, which they fill.
    fn runs(self, runs: &[(Extent, usize)], bytes: &mut [u8]) -> Result<(), DeviceError> {
        let mut rest = bytes;
        for (run, _) in runs {
            let (mine, others) = std::mem::take(&mut rest).split_at_mut((run.count * BLOCK) as usize);
            rest = others;
            let Err(e) = self.blocks(*run, mine) else { continue };
            let first = self.wanted.partition_point(|extent| extent.end() <= run.start);
            let mut wanted = self.wanted[first..].iter().take_while(|extent| extent.start < run.end());
            if wanted.clone().count() == 1 {
                return Err(e);
            }
            // Perhaps it is just the gaps that cannot be read, and nobody wants them.
            wanted.try_for_each(|extent| {
                let start = ((extent.start - run.start) * BLOCK) as usize;
                self.blocks(*extent, &mut mine[start..start + (extent.count * BLOCK) as usize])
            })?;
        }
        Ok(())
    }

    /// Reads whole blocks. Behind the target's end zeros follow.
    fn blocks(self, extent: Extent, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let range = extent.bytes(self.end);
        let (there, behind) = bytes.split_at_mut((range.end - range.start) as usize);
        behind.fill(0);
        if there.is_empty() { Ok(()) } else { self.device.read(range.start, there) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    #[test]
    fn what_is_wanted_is_there_and_nothing_else_counts() {
        let content: Vec<u8> = (0..200 * BLOCK).map(|i| (i / BLOCK) as u8).collect();
        let device = MemoryDevice::new(content, false);
        let blocks: Vec<Extent> = [(0, 1), (3, 2), (20, 1), (22, 1), (40, 5), (60, 1), (90, 1), (120, 3), (199, 1)]
            .map(|(start, count)| Extent { start, count })
            .to_vec();
        let mut buffer = SourceBuffer::new(200 * BLOCK);
        buffer.load(&device, &blocks).unwrap();
        for block in blocks.iter().flat_map(|extent| extent.start..extent.end()) {
            let mut found = [0; BLOCK as usize];
            buffer.copy(block * BLOCK, &mut found).unwrap();
            assert!(found.iter().all(|byte| u64::from(*byte) == block), "block {block}");
        }
        assert!(buffer.copy(50 * BLOCK, &mut [0]).is_err());
    }
}
