//! The source blocks of a batch in memory: pages, each of which holds what a few large reads bring.

use crate::delta::DeltaError;
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::units::{BLOCK, Extent};

/// Blocks that are not wanted but read all the same, where that saves a read: on loop devices, disks and sticks alike a
/// read of its own costs about as much time as 32 KiB more of the one before.
const GAP: u64 = 8;
/// All such blocks of a batch: bounds the memory beyond what the delta announces.
const GAPS_MOST: u64 = 64;
/// Blocks in a page, at the most. Pages are read at the same time: that keeps a device busy also with reads that are small,
/// and memory is taken for as many batches as need it.
const PAGE: u64 = 64;

/// A part of what a batch reads, in memory.
#[derive(Default)]
pub(crate) struct Page {
    /// What is read, ascending, and where it lies in the buffer.
    runs: Vec<(Extent, usize)>,
    /// The blocks that are wanted; runs hold gaps besides.
    wanted: Vec<Extent>,
    bytes: AlignedBuffer,
}

impl Page {
    /// Memory for a page.
    pub fn allocated() -> Self {
        let bytes = AlignedBuffer::new((PAGE * BLOCK) as usize);
        Self { bytes, ..Self::default() }
    }

    /// Reads what is planned.
    ///
    /// # Errors
    /// The device's.
    pub fn load(&mut self, device: &dyn Device, end: u64) -> Result<(), DeviceError> {
        Reading { device, wanted: &self.wanted, end }.runs(&self.runs, &mut self.bytes)
    }

    fn blocks(&self) -> u64 {
        self.runs.last().map_or(0, |(run, at)| *at as u64 / BLOCK + run.count)
    }

    /// Adds a run of which only the blocks from `wanted` on are wanted.
    fn push(&mut self, run: Extent, wanted: Extent) {
        match self.runs.last_mut() {
            Some((last, _)) if last.end() == run.start => last.count += run.count,
            _ => self.runs.push((run, (self.blocks() * BLOCK) as usize)),
        }
        match self.wanted.last_mut() {
            Some(last) if last.end() == wanted.start => last.count += wanted.count,
            _ => self.wanted.push(wanted),
        }
    }

    fn plan(&mut self) {
        self.runs.clear();
        self.wanted.clear();
    }

    fn size(&mut self) {
        self.bytes.resize((self.blocks() * BLOCK) as usize);
    }
}

/// The pages that fit the memory for three batches that read so many bytes, and what is read between these: enough for one.
pub(crate) fn pages_of_three(bytes: u64) -> u64 {
    // A page takes a block more, for its alignment.
    (bytes / BLOCK).saturating_add(GAPS_MOST).saturating_mul(3) / (PAGE + 1)
}

/// Divides `blocks` (ascending, merged), all that a batch reads, into pages. `page` gives memory for the next one.
pub(crate) fn divide<E>(blocks: &[Extent], mut page: impl FnMut() -> Result<Page, E>) -> Result<Vec<Page>, E> {
    let mut pages: Vec<Page> = Vec::new();
    let (mut gaps, mut before) = (0, None);
    for extent in blocks {
        let gap = before.map_or(u64::MAX, |end| extent.start - end);
        let mut start = extent.start;
        // A gap that does not fit the page is not read.
        if gap <= GAP.min(GAPS_MOST - gaps) && pages.last().is_some_and(|page| page.blocks() + gap < PAGE) {
            (start, gaps) = (extent.start - gap, gaps + gap);
        }
        while start < extent.end() {
            if pages.last().is_none_or(|page| page.blocks() == PAGE) {
                let mut next = page()?;
                next.plan();
                pages.push(next);
            }
            if let Some(last) = pages.last_mut() {
                let end = extent.end().min(start + PAGE - last.blocks());
                let wanted = start.max(extent.start);
                last.push(Extent { start, count: end - start }, Extent { start: wanted, count: end - wanted });
                start = end;
            }
        }
        before = Some(extent.end());
    }
    pages.iter_mut().for_each(Page::size);
    Ok(pages)
}

/// What a batch reads, in memory.
#[derive(Default)]
pub(crate) struct SourceBuffer {
    /// Ascending.
    pages: Vec<Page>,
}

impl SourceBuffer {
    /// Of pages that are loaded, as [`divide`] gave them.
    pub fn new(pages: Vec<Page>) -> Self {
        Self { pages }
    }

    /// Reads `blocks` (ascending, merged) of a target that ends at byte `end`.
    ///
    /// # Errors
    /// The device's.
    pub fn load(&mut self, device: &dyn Device, blocks: &[Extent], end: u64) -> Result<(), DeviceError> {
        let mut spare = std::mem::take(&mut self.pages);
        self.pages = divide(blocks, || Ok(spare.pop().unwrap_or_else(Page::allocated)))?;
        self.pages.iter_mut().try_for_each(|page| page.load(device, end))
    }

    /// The memory, to be used again.
    pub fn into_pages(self) -> Vec<Page> {
        self.pages
    }

    /// Copies bytes from where they physically lie.
    ///
    /// # Errors
    /// A delta whose steps read what their batch does not announce.
    pub fn copy(&self, physical: u64, target: &mut [u8]) -> Result<(), DeltaError> {
        let starts = |page: &Page| page.runs.first().is_some_and(|(run, _)| run.start * BLOCK <= physical);
        let first = self.pages.partition_point(starts).saturating_sub(1);
        let (mut at, mut rest) = (physical, target);
        for page in &self.pages[first..] {
            let i = page.runs.partition_point(|(run, _)| run.start * BLOCK <= at).checked_sub(1);
            let Some((run, start)) = i.and_then(|i| page.runs.get(i)).filter(|(run, _)| at < run.end() * BLOCK) else {
                break;
            };
            let len = rest.len().min((run.end() * BLOCK - at) as usize);
            let from = start + (at - run.start * BLOCK) as usize;
            let Some(bytes) = page.bytes.get(from..from + len) else { break };
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(bytes);
            (at, rest) = (at + len as u64, later);
            if rest.is_empty() {
                return Ok(());
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(DeltaError::Malformed("a step reads what its batch does not announce"))
        }
    }
}

/// A page's reading.
#[derive(Clone, Copy)]
struct Reading<'a> {
    device: &'a dyn Device,
    /// The blocks that somebody needs; runs hold gaps besides.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;
    use proptest::prelude::*;

    fn device(blocks: u64) -> MemoryDevice {
        MemoryDevice::new((0..blocks * BLOCK).map(|i| (i / BLOCK) as u8 ^ i as u8).collect(), false)
    }

    fn found(buffer: &SourceBuffer, bytes: std::ops::Range<u64>) -> Option<bool> {
        let mut found = vec![0; (bytes.end - bytes.start) as usize];
        buffer.copy(bytes.start, &mut found).ok()?;
        Some(found.iter().zip(bytes).all(|(byte, i)| *byte == (i / BLOCK) as u8 ^ i as u8))
    }

    proptest! {
        #[test]
        fn what_is_wanted_is_there_and_nothing_far_from_it(parts in prop::collection::vec((0u64..30, 1u64..90), 1..30)) {
            let (mut blocks, mut at): (Vec<Extent>, u64) = (Vec::new(), 0);
            for (gap, count) in parts {
                let start = at + gap + u64::from(at > 0);
                blocks.push(Extent { start, count });
                at = start + count;
            }
            let end = at * BLOCK - 1000; // the last block is short
            let device = device(at);
            let mut buffer = SourceBuffer::default();
            buffer.load(&device, &blocks, end).unwrap();
            for extent in &blocks {
                let bytes = extent.start * BLOCK + 1..(extent.end() * BLOCK).min(end);
                prop_assert_eq!(found(&buffer, bytes), Some(true));
            }
            let wanted: u64 = blocks.iter().map(|extent| extent.count).sum();
            prop_assert!(buffer.pages.len() as u64 <= pages_of_three(wanted * BLOCK));
            let read: u64 = buffer.pages.iter().map(Page::blocks).sum();
            prop_assert!(buffer.pages.iter().all(|page| page.blocks() <= PAGE) && read <= wanted + GAPS_MOST);
            for pair in blocks.windows(2).filter(|pair| pair[1].start - pair[0].end() > GAP) {
                prop_assert_eq!(found(&buffer, pair[0].end() * BLOCK..pair[0].end() * BLOCK + 1), None);
                prop_assert_eq!(found(&buffer, pair[0].end() * BLOCK - 1..pair[1].start * BLOCK + 1), None);
            }
        }
    }

    #[test]
    fn pages_are_filled() {
        let mut buffer = SourceBuffer::default();
        let blocks: Vec<Extent> = (0..100).map(|i| Extent { start: i * 10, count: 3 }).collect();
        buffer.load(&device(1000), &blocks, 1000 * BLOCK).unwrap();
        assert_eq!(buffer.pages.len(), 6, "300 blocks and 64 in gaps");
    }
}
