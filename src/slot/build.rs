//! Builds the new image from the old one and a delta, side by side: copies the blocks that no batch writes, and makes the
//! others (spec, section 8.9). The old image is never written, so all old bytes are at home: saves and barriers have
//! nothing to protect, and batches are taken in order only because the columns are.

use super::canvas::Canvas;
use crate::apply::{WalkError, start};
use crate::blockset::BlockSet;
use crate::delta::batch::{Batch, BatchKind};
use crate::delta::check::CheckedOrder;
use crate::delta::step::{Space, Step};
use crate::delta::step_reader::StepReader;
use crate::delta::text::OldTexts;
use crate::delta::{Delta, DeltaError};
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::digest::ZERO_PART;
use crate::maker::{Fetch, Maker};
use crate::milestone::Milestone;
use crate::monitor::Monitor;
use crate::reading_room::{Loading, READERS, ReadJob, read_jobs};
use crate::sources::{Page, SourceBuffer, divide};
use crate::sweep::{CHUNK, Chunks, sweep};
use crate::units::{BLOCK, Extent, PART, blocks_touched, merge_extents};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

/// What the new image is built from; the old image has been checked.
#[derive(Clone, Copy)]
pub(crate) struct Materials<'a> {
    pub old: &'a dyn Device,
    pub delta: &'a Delta,
    pub order: &'a CheckedOrder,
}

/// Builds the new image on a canvas.
///
/// # Errors
/// [`WalkError`]; doing it again on the same canvas then writes only what is missing.
pub(crate) fn build(
    from: Materials<'_>,
    canvas: &Canvas<'_>,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<(), WalkError> {
    copy_untouched(from, canvas, stop, monitor)?;
    make_batches(from, canvas, stop, monitor)
}

/// Copies the blocks that no batch writes. Several threads read, compare and write, each a chunk.
fn copy_untouched(
    from: Materials<'_>,
    canvas: &Canvas<'_>,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<(), WalkError> {
    let (len, touched) = (from.delta.route.untouched_len, &from.order.touched);
    monitor.phase("copying what stays", len);
    let chunk = |i: u64| untouched_chunk(i, len, touched);
    let chunks = Chunks { count: len.div_ceil(CHUNK), chunk };
    let over = AtomicBool::new(false);
    let copy = |offset: u64, chunk: &mut [u8]| -> Result<u64, DeviceError> {
        let blocks = Extent { start: offset / BLOCK, count: (chunk.len() as u64).div_ceil(BLOCK) };
        for (run, _) in touched.runs_in(blocks).filter(|(_, touched)| !touched) {
            // Where it ends early, nothing more may be written.
            if over.load(Ordering::Relaxed) {
                break;
            }
            let bytes = run.bytes(len);
            canvas.put(bytes.start, &chunk[(bytes.start - offset) as usize..(bytes.end - offset) as usize])?;
        }
        Ok(chunk.len() as u64)
    };
    let mut failure = None;
    let swept = sweep(from.old, &chunks, &over, copy, |copied| {
        match copied {
            Ok(bytes) => monitor.advance(bytes),
            Err(e) => {
                failure.get_or_insert(e);
            }
        }
        if failure.is_some() || stop.load(Ordering::Relaxed) {
            over.store(true, Ordering::Relaxed);
        }
    });
    match failure {
        Some(e) => Err(e.into()),
        None => Ok(swept?),
    }
}

/// The bytes of a chunk; none where batches write all of it.
fn untouched_chunk(i: u64, len: u64, touched: &BlockSet) -> Range<u64> {
    let bytes = i * CHUNK..len.min((i + 1) * CHUNK);
    let all = touched.runs_in(blocks_touched(&bytes)).all(|(_, touched)| touched);
    if all { bytes.start..bytes.start } else { bytes }
}

/// Makes what the batches write, in order.
///
/// # Errors
/// As [`build`].
pub(crate) fn make_batches(
    from: Materials<'_>,
    canvas: &Canvas<'_>,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<(), WalkError> {
    monitor.phase("making what changes", from.delta.route.counts.final_blocks.saturating_mul(BLOCK));
    let nothing = Milestone::new(); // nobody who reads the old image waits for a write
    let (to_read, jobs) = channel();
    let jobs = Mutex::new(jobs);
    let builder = Builder {
        from,
        canvas,
        steps: from.delta.steps()?,
        maker: Maker::new(from.delta)?,
        texts: OldTexts::default(),
        ahead: VecDeque::new(),
        to_read,
        pages: Vec::new(),
        produced: SourceBuffer::default(),
        output: AlignedBuffer::default(),
    };
    std::thread::scope(|scope| {
        let end = from.old.len();
        for _ in 0..READERS {
            let (jobs, nothing) = (&jobs, &nothing);
            start(scope, from.old, move || read_jobs(from.old, end, jobs, nothing))?;
        }
        // It takes the orders to read with it when it ends, and so the readers end.
        builder.all(stop, monitor)
    })
}

/// Batches that are planned at the same time: the sources of all but the one being made are being read.
const AHEAD: usize = 3;

struct Builder<'a> {
    from: Materials<'a>,
    canvas: &'a Canvas<'a>,
    steps: StepReader,
    maker: Maker,
    texts: OldTexts,
    ahead: VecDeque<Planned<'a>>,
    to_read: Sender<ReadJob>,
    /// To be used again.
    pages: Vec<Page>,
    /// What the batch being made reads of the new image.
    produced: SourceBuffer,
    output: AlignedBuffer,
}

/// A batch whose sources are being read.
struct Planned<'a> {
    index: u64,
    batch: &'a Batch,
    steps: Vec<Step>,
    /// None for zeros.
    loading: Option<Loading>,
}

impl<'a> Builder<'a> {
    fn all(mut self, stop: &AtomicBool, monitor: &dyn Monitor) -> Result<(), WalkError> {
        let table = &self.from.delta.table;
        let finals = |(_, batch): &(u64, &Batch)| batch.kind != BatchKind::Save;
        let mut to_plan = (0u64..).zip(table.batches()).filter(finals);
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(WalkError::Stop);
            }
            while self.ahead.len() < AHEAD
                && let Some((index, batch)) = to_plan.next()
            {
                let planned = self.plan(index, batch)?;
                self.ahead.push_back(planned);
            }
            let Some(planned) = self.ahead.pop_front() else { return Ok(()) };
            let batch = planned.batch;
            match batch.kind {
                BatchKind::Zero => self.zero(table.extents(batch), stop)?,
                BatchKind::Data | BatchKind::Save => self.make(planned)?,
            }
            monitor.advance(table.written_bytes(batch, self.from.delta.header.new.len));
        }
    }

    /// Reads the steps of a batch, and has its old bytes read.
    fn plan(&mut self, index: u64, batch: &'a Batch) -> Result<Planned<'a>, WalkError> {
        let mut planned = Planned { index, batch, steps: Vec::new(), loading: None };
        if batch.kind == BatchKind::Zero {
            return Ok(planned);
        }
        self.steps.read_batch(self.from.delta.table.extents(batch), &mut planned.steps)?;
        let blocks = source_blocks(&planned.steps, &self.from.order.touched, Holder::Old);
        let pages = divide(&blocks, || Ok::<_, WalkError>(self.pages.pop().unwrap_or_else(Page::allocated)))?;
        // Readers end only when there are no more orders, so somebody takes them.
        planned.loading = Some(Loading::start(pages, 0, &self.to_read)?);
        Ok(planned)
    }

    fn make(&mut self, planned: Planned<'_>) -> Result<(), WalkError> {
        let Planned { index, batch, steps, loading } = planned;
        let (table, touched) = (&self.from.delta.table, &self.from.order.touched);
        let new_len = self.from.delta.header.new.len;
        let old = loading.ok_or(WalkError::Stop)?.wait()??;
        // All earlier batches are written.
        let produced = &mut self.produced;
        let built = self.canvas.device();
        produced.load(built, &source_blocks(&steps, touched, Holder::New), built.len())?;
        self.output.resize(table.written_bytes(batch, new_len) as usize);
        let fetch = Held { touched, old: &old, produced };
        self.texts.start_batch();
        self.maker.make(&steps, &mut self.output, fetch, &mut self.texts)?;
        self.pages.extend(old.into_pages());
        let extents = table.extents(batch);
        if crc32fast::hash(&self.output) != batch.crc {
            let offset = extents.first().map_or(0, |extent| extent.start * BLOCK);
            return Err(WalkError::WrongResult { batch: index, offset });
        }
        let mut rest = &self.output[..];
        for bytes in extents.iter().map(|extent| extent.bytes(new_len)) {
            let (now, later) = rest.split_at((bytes.end - bytes.start) as usize);
            self.canvas.put(bytes.start, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Makes zeros be there; that may be most of a disk.
    fn zero(&self, extents: &[Extent], stop: &AtomicBool) -> Result<(), WalkError> {
        if self.canvas.is_blank() {
            return Ok(());
        }
        for bytes in extents.iter().map(|extent| extent.bytes(self.from.delta.header.new.len)) {
            let mut at = bytes.start;
            while at < bytes.end {
                if stop.load(Ordering::Relaxed) {
                    return Err(WalkError::Stop);
                }
                let len = (bytes.end - at).min(PART);
                self.canvas.put(at, &ZERO_PART[..len as usize])?;
                at += len;
            }
        }
        Ok(())
    }
}

/// Takes the sources of steps from who holds them.
struct Held<'a> {
    touched: &'a BlockSet,
    old: &'a SourceBuffer,
    produced: &'a SourceBuffer,
}

impl Fetch for Held<'_> {
    fn fill(&mut self, step: &Step, target: &mut [u8]) -> Result<(), DeltaError> {
        let mut rest = target;
        each_source(step, self.touched, |bytes, holder| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut((bytes.end - bytes.start) as usize);
            rest = later;
            match holder {
                Holder::Old => self.old.copy(bytes.start, now),
                Holder::New => self.produced.copy(bytes.start, now),
            }
        })
    }

    fn pass(&mut self, _: &Step) {}
}

/// Who holds the bytes of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// The old image; also what the new one has in common with it.
    Old,
    /// What has been built.
    New,
}

/// Cuts the source of a step by who holds it, and calls `each` in order; not at all for a step that reads nothing.
pub(super) fn each_source(
    step: &Step,
    touched: &BlockSet,
    mut each: impl FnMut(Range<u64>, Holder) -> Result<(), DeltaError>,
) -> Result<(), DeltaError> {
    let source = step.src..step.src + step.len;
    match step.kind.space() {
        None => Ok(()),
        Some(Space::Old) => each(source, Holder::Old),
        Some(Space::New) => touched.runs_in(blocks_touched(&source)).try_for_each(|(run, touched)| {
            let bytes = run.bytes(source.end);
            each(bytes.start.max(source.start)..bytes.end, if touched { Holder::New } else { Holder::Old })
        }),
    }
}

/// The blocks that a batch reads of one holder: ascending, merged.
fn source_blocks(steps: &[Step], touched: &BlockSet, holder: Holder) -> Vec<Extent> {
    let mut blocks: Vec<Extent> = Vec::new();
    for step in steps {
        let noted = each_source(step, touched, |bytes, who| {
            if who == holder {
                blocks.push(blocks_touched(&bytes));
            }
            Ok(())
        });
        debug_assert!(noted.is_ok());
    }
    merge_extents(&mut blocks);
    blocks
}
