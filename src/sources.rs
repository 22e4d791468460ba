//! The source blocks of a batch, read into memory: few large reads, several at a time.

use crate::delta::placement::Sources;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::units::{BLOCK, Extent};
use std::sync::{Arc, Mutex, PoisonError};

/// Blocks that are not wanted but read all the same, where that saves a read: on loop devices, disks and sticks alike a
/// read of its own costs about as much time as 32 KiB more of the one before.
const GAP: u64 = 8;
/// All such blocks of a batch: bounds the memory beyond what the delta announces.
const GAPS_MOST: u64 = 256;
/// Reads under way at the same time: hides what each of them waits.
const READERS: usize = 4;
/// A batch with fewer reads is not worth the threads.
const FEW: usize = 8;

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

    /// Reads all sources of a batch.
    pub fn load(&mut self, device: &dyn Device, sources: &Sources) -> Result<(), DeviceError> {
        self.runs.clear();
        let mut gaps = 0;
        for extent in &sources.blocks {
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
        let reading = Reading { device, wanted: &sources.blocks, end: self.end };
        reading.runs(&self.runs, &mut self.bytes)
    }

    /// Copies bytes from where they physically lie; `None` if they were not loaded.
    pub fn copy(&self, physical: u64, target: &mut [u8]) -> Option<()> {
        let i = self.runs.partition_point(|(run, _)| run.start * BLOCK <= physical).checked_sub(1)?;
        let (run, at) = self.runs.get(i)?;
        if physical + target.len() as u64 > run.end() * BLOCK {
            return None;
        }
        let start = at + (physical - run.start * BLOCK) as usize;
        target.copy_from_slice(self.bytes.get(start..start + target.len())?);
        Some(())
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
    /// Reads runs into `bytes`, which they fill; many of them by several threads.
    fn runs(self, runs: &[(Extent, usize)], bytes: &mut [u8]) -> Result<(), DeviceError> {
        if runs.len() < FEW {
            return self.some(runs, bytes);
        }
        let share = runs.len().div_ceil(READERS);
        std::thread::scope(|scope| {
            let mut rest = bytes;
            let mut readers = Vec::new();
            for runs in runs.chunks(share) {
                let len: u64 = runs.iter().map(|(run, _)| run.count * BLOCK).sum();
                let (mine, others) = std::mem::take(&mut rest).split_at_mut(len as usize);
                rest = others;
                // Where no thread can be had, its share is read here.
                let mine = Mutex::new(mine);
                let share = Arc::new(move || self.some(runs, &mut mine.lock().unwrap_or_else(PoisonError::into_inner)));
                let theirs = Arc::clone(&share);
                match std::thread::Builder::new().spawn_scoped(scope, move || theirs()) {
                    Ok(reader) => readers.push(reader),
                    Err(_) => share()?,
                }
            }
            let results =
                readers.into_iter().map(|r| r.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            results.fold(Ok(()), Result::and)
        })
    }

    /// Reads runs one after the other.
    fn some(self, runs: &[(Extent, usize)], bytes: &mut [u8]) -> Result<(), DeviceError> {
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

    /// Reads whole blocks. The image's last block may be short; behind it there is nothing to read.
    fn blocks(self, extent: Extent, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let range = extent.bytes(self.end);
        self.device.read(range.start, &mut bytes[..(range.end - range.start) as usize])
    }
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
        let sources = Sources { blocks: blocks.clone(), ..Sources::default() };
        let mut buffer = SourceBuffer::new(200 * BLOCK);
        buffer.load(&device, &sources).unwrap();
        for block in blocks.iter().flat_map(|extent| extent.start..extent.end()) {
            let mut found = [0; BLOCK as usize];
            buffer.copy(block * BLOCK, &mut found).unwrap();
            assert!(found.iter().all(|byte| u64::from(*byte) == block), "block {block}");
        }
        assert_eq!(buffer.copy(50 * BLOCK, &mut [0]), None);
    }
}
