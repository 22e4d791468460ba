//! Writes a delta: takes batches in order, fills the columns, and puts the file together.

use super::batch::{BatchKind, BatchTable};
use super::difference::DifferenceWriter;
use super::header::{Codec, Header, Kind, Limits, NO_ROUTE, Section};
use super::label::Label;
use super::memory::{Footprint, Memory};
use super::pack::{PACK_MOST, pack};
use super::placement::{Placement, Sources, Waived, pair_extents, saved_blocks};
use super::route::{Counts, Route};
use super::step::{BATCH_TEXT, Prediction, Step, StepKind};
use super::stream::{Compression, Finished, Stored, StreamWriter, compress_mixture};
use super::text::OldTexts;
use crate::blockset::BlockSet;
use crate::digest::ImageId;
use crate::units::{BLOCK, Extent, blocks_touched};
use crate::varint;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::ops::Range;
use std::path::Path;

mod texts;

pub use texts::NewTexts;

/// A batch as the planner gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewBatch {
    /// What it does; `None` is a data batch.
    pub save: bool,
    /// Zeros.
    pub zero: bool,
    /// A barrier stands before it.
    pub barrier: bool,
    /// The blocks it writes: ascending, merged.
    pub extents: Vec<Extent>,
    /// For a save: the old bytes it copies, ascending, merged.
    pub saved: Vec<Range<u64>>,
    /// For a data batch: the steps that tile its extents.
    pub steps: Vec<Step>,
}

impl NewBatch {
    pub(crate) fn kind(&self) -> BatchKind {
        match (self.save, self.zero) {
            (true, _) => BatchKind::Save,
            (false, true) => BatchKind::Zero,
            (false, false) => BatchKind::Data,
        }
    }
}

/// What is known of the images beside the batches.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The old image, where it is known.
    pub old: Option<ImageId>,
    /// The new image.
    pub new: ImageId,
    /// BLAKE3 of the untouched prefix.
    pub untouched: [u8; 32],
    /// log2 of the region size; 0 without a table.
    pub region_log: u8,
    /// CRC-32 of each region of the untouched prefix.
    pub regions: Vec<u32>,
}

/// Why a delta could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system's.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The planner's order breaks a rule: a bug, caught before a delta exists.
    #[error("internal error: the planned order is not safe ({0}); please report it")]
    Plan(#[from] super::DeltaError),
}

/// The block from which on the steps of a batch do not make its extents, one byte behind the other.
fn stray_step(batch: &NewBatch, new_len: u64) -> Option<u64> {
    let mut steps = batch.steps.iter().filter(|step| step.kind.makes());
    for extent in &batch.extents {
        let bytes = extent.bytes(new_len);
        let mut at = bytes.start;
        while at < bytes.end {
            match steps.next() {
                Some(step) if step.dst == at && step.len <= bytes.end - at => at += step.len,
                _ => return Some(at / BLOCK),
            }
        }
    }
    steps.next().map(|step| step.dst / BLOCK)
}

/// Room for the lengths at the start of a pack.
const PACK_LENGTHS: usize = Kind::STREAMS.len() * varint::MAX_VARINT;
/// A pack of fewer bytes is not compressed: next to nothing can be gained, and a hex dump can be read.
const READABLE: usize = 512;
/// Bytes of a column's varint buffer before it goes to the compressor.
const FLUSH: usize = 64 << 10;

/// Collects a delta.
pub struct DeltaWriter<'a> {
    old: &'a [u8],
    new: &'a [u8],
    new_len: u64,
    spool_dir: &'a Path,
    table: BatchTable,
    placement: Placement<'a>,
    counts: Counts,
    label: Option<Label>,
    limits: Limits,
    prediction: Prediction,
    differences: DifferenceWriter,
    old_texts: OldTexts,
    new_texts: Option<&'a (dyn NewTexts + Sync)>,
    /// Incompatible features: which compressed data any step has to do with.
    features: u64,
    threads: usize,
    /// As of [`Compression`].
    job: u32,
    /// By position in [`Kind::COLUMNS`].
    columns: Vec<Column>,
}

struct Column {
    kind: Kind,
    pending: Vec<u8>,
    stream: StreamWriter,
}

impl<'a> DeltaWriter<'a> {
    /// For two images; `touched` are all blocks that any batch will write. Long columns are spooled in `spool_dir`.
    #[must_use]
    pub fn new(
        old: &'a [u8],
        new: &'a [u8],
        touched: &'a BlockSet,
        spool_dir: &'a Path,
        compression: impl Fn(Kind) -> Compression,
    ) -> Self {
        let column = |kind| Column { kind, pending: Vec::new(), stream: StreamWriter::new(compression(kind)) };
        let Compression { threads, job, .. } = compression(Kind::Literals);
        Self {
            old,
            new,
            new_len: new.len() as u64,
            spool_dir,
            table: BatchTable::default(),
            placement: Placement::new(touched),
            counts: Counts::default(),
            label: None,
            limits: Limits::default(),
            prediction: Prediction::default(),
            differences: DifferenceWriter::default(),
            old_texts: OldTexts::default(),
            new_texts: None,
            features: 0,
            threads: threads as usize,
            job,
            columns: Kind::COLUMNS.into_iter().map(column).collect(),
        }
    }

    /// With a label.
    #[must_use]
    pub fn labelled(self, label: Option<Label>) -> Self {
        Self { label, ..self }
    }

    /// With what deflate steps need.
    #[must_use]
    pub fn with_texts(self, texts: Option<&'a (dyn NewTexts + Sync)>) -> Self {
        Self { new_texts: texts, ..self }
    }

    /// Sets the length in bytes of a new image that is not at hand as a whole: see [`DeltaWriter::add_literal`]. To be
    /// called before its last block is added.
    pub fn set_length(&mut self, new_len: u64) {
        self.new_len = new_len;
    }

    /// With some rules not enforced: for the crash test only.
    #[doc(hidden)]
    #[must_use]
    pub fn waiving(self, waived: Waived) -> Self {
        Self { placement: self.placement.waiving(waived), ..self }
    }

    fn column(&mut self, kind: Kind) -> &mut Vec<u8> {
        &mut self.columns[kind as usize - Kind::StepKinds as usize].pending
    }

    /// Adds the next batch.
    ///
    /// # Errors
    /// A rule that the order breaks, or a failure to spool.
    pub fn add(&mut self, batch: &NewBatch) -> Result<(), WriteError> {
        self.add_made(batch, None)
    }

    /// Adds the next batch, of zeros or of literals and zeros, whose bytes are `content`, extent behind extent.
    ///
    /// # Errors
    /// As [`DeltaWriter::add`].
    pub fn add_literal(&mut self, batch: &NewBatch, content: &[u8]) -> Result<(), WriteError> {
        self.add_made(batch, Some(content))
    }

    fn add_made(&mut self, batch: &NewBatch, content: Option<&[u8]>) -> Result<(), WriteError> {
        let index = self.counts.batches;
        let missing = |block| super::DeltaError::Rule { rule: "source", batch: index, block };
        let kind = batch.kind();
        let sources = match kind {
            BatchKind::Zero => Sources::default(),
            BatchKind::Save => self.placement.save_sources(&batch.saved).map_err(missing)?,
            BatchKind::Data => self.placement.sources(&batch.steps).map_err(missing)?,
        };
        let crc = match kind {
            BatchKind::Zero => 0, // by arithmetic
            BatchKind::Save => self.save_crc(batch),
            BatchKind::Data => match content {
                Some(content) => crc32fast::hash(content),
                None => crc_of(self.new, batch.extents.iter().map(|e| e.bytes(self.new_len))),
            },
        };
        let source_crc = crc_of(self.old, sources.home.iter().cloned());
        self.table.push(kind, batch.barrier, &batch.extents, &batch.saved, (crc, source_crc));
        if let Some(entry) = self.table.batches().last() {
            self.placement.advance(index, &self.table, entry, &sources)?;
        }
        self.count(batch, kind, &sources);
        if kind == BatchKind::Data {
            if let Some(block) = stray_step(batch, self.new_len) {
                return Err(super::DeltaError::Rule { rule: "tiling", batch: index, block }.into());
            }
            let text_bytes = batch.steps.iter().map(Step::text_bytes).sum();
            if text_bytes > BATCH_TEXT {
                return Err(super::DeltaError::field(
                    "bytes of texts in a batch",
                    text_bytes,
                    format!("at most {BATCH_TEXT}"),
                )
                .into());
            }
            self.differences.start_batch();
            self.old_texts.start_batch();
            self.add_steps(batch, content)?;
        }
        Ok(())
    }

    fn add_steps(&mut self, batch: &NewBatch, mut content: Option<&[u8]>) -> Result<(), WriteError> {
        let (image, mut steps) = (self.new, batch.steps.as_slice());
        while let Some((step, others)) = steps.split_first() {
            steps = others;
            if step.kind.unpacks() {
                let makes = others.iter().find(|step| !step.kind.unpacks());
                self.add_unpack(step, makes.map_or(0, |step| step.dst))?;
                continue;
            }
            let made = match &mut content {
                Some(rest) => rest.split_off(..step.len as usize).unwrap_or_default(),
                None => slice(image, &(step.dst..step.dst + step.len)),
            };
            if step.kind.packs() {
                let (text, others) = others.split_at(others.iter().take_while(|step| step.kind.is_text()).count());
                steps = others;
                self.add_packed(step, text, &batch.extents, made)?;
            } else {
                self.add_step(step, &batch.extents, made)?;
            }
        }
        Ok(())
    }

    /// Bytes given to the columns so far, before compression.
    #[must_use]
    pub fn stored_estimate(&self) -> usize {
        let bytes = self.columns.iter().map(|column| column.stream.raw_len() as usize + column.pending.len());
        bytes.sum()
    }

    fn count(&mut self, batch: &NewBatch, kind: BatchKind, sources: &Sources) {
        let blocks = crate::units::count_blocks(&batch.extents);
        self.counts.batches += 1;
        self.counts.extents += batch.extents.len() as u64;
        self.counts.save_ranges += batch.saved.len() as u64;
        self.counts.save_reads += sources.saves.len() as u64;
        self.counts.barriers += u64::from(batch.barrier);
        match kind {
            BatchKind::Save => self.counts.scratch_blocks += blocks,
            BatchKind::Data | BatchKind::Zero => self.counts.final_blocks += blocks,
        }
        let limits = &mut self.limits;
        if kind != BatchKind::Zero {
            limits.batch_bytes = limits.batch_bytes.max((blocks * BLOCK) as u32);
        }
        limits.source_bytes = limits.source_bytes.max(sources.bytes() as u32);
        limits.batch_steps = limits.batch_steps.max(batch.steps.len() as u32);
    }

    /// CRC-32 of what a save leaves: the saved bytes in their blocks, zeros around them.
    fn save_crc(&self, batch: &NewBatch) -> u32 {
        let mut content = vec![0u8; (crate::units::count_blocks(&batch.extents) * BLOCK) as usize];
        fill_save(&batch.saved, &mut content, |range, target| target.copy_from_slice(slice(self.old, &range)));
        crc32fast::hash(&content)
    }

    fn put_kind_and_length(&mut self, step: &Step, extents: &[Extent]) {
        self.column(Kind::StepKinds).push(step.kind as u8);
        let end = step.dst + step.len;
        let last = blocks_touched(&(step.dst..end));
        let i = extents.partition_point(|e| e.end() <= last.start);
        let to_end = extents.get(i).is_some_and(|e| e.bytes(self.new_len).end == end);
        varint::put(self.column(Kind::StepLengths), if to_end { 0 } else { step.len });
    }

    fn add_step(&mut self, step: &Step, extents: &[Extent], made: &[u8]) -> Result<(), WriteError> {
        self.put_kind_and_length(step, extents);
        if let Some(space) = step.kind.space() {
            let coded = self.prediction.encode(space, step.dst, step.src);
            varint::put_signed(self.column(Kind::StepSources), coded);
        }
        match step.kind {
            StepKind::Literal => self.column(Kind::Literals).extend_from_slice(made),
            StepKind::Add => self.add_differences(step, made, slice(self.old, &(step.src..step.src + step.len))),
            StepKind::AddNew => self.add_differences(step, made, slice(self.new, &(step.src..step.src + step.len))),
            _ => {}
        }
        self.flush(FLUSH)
    }

    fn add_differences(&mut self, step: &Step, made: &[u8], base: &[u8]) {
        let i = Kind::DifferenceGaps as usize - Kind::StepKinds as usize;
        let [gaps, values] = &mut self.columns[i..i + 2] else { return };
        self.differences.put((step.src, base), (step.dst, made), [&mut gaps.pending, &mut values.pending]);
    }

    fn flush(&mut self, at_least: usize) -> Result<(), WriteError> {
        for column in &mut self.columns {
            if column.pending.len() >= at_least {
                column.stream.put(&column.pending, self.spool_dir)?;
                column.pending.clear();
            }
        }
        Ok(())
    }

    /// Ends the delta and writes it to `out`.
    ///
    /// # Errors
    /// A rule that the order breaks as a whole, or a failure to write.
    pub fn finish(
        mut self,
        identity: &Identity,
        level: i32,
        out: &mut impl Write,
    ) -> Result<(Header, Route), WriteError> {
        self.placement.finish(self.counts.batches)?;
        std::mem::take(&mut self.differences).finish(self.column(Kind::DifferenceGaps));
        self.flush(1)?;
        let route = Route {
            old: identity.old,
            untouched_len: identity.old.map_or(identity.new.len, |old| old.len.min(identity.new.len)),
            untouched: identity.untouched,
            counts: self.counts,
            region_log: identity.region_log,
            regions: identity.regions.clone(),
        };
        let footprint = Footprint::of_order(&self.table, route.longer(identity.new.len), |_| Ok(()))?;
        let (limits, label, features) = (self.limits, self.label.take(), self.features);
        let mut parts = self.parts(&route, level)?;
        parts.extend(label.map(|label| (Kind::Label, stored(label.as_str().into()))));
        let header = Header { features, compatible: 0, new: identity.new, limits, sections: Vec::new() };
        let header = assemble(header, &route, footprint, parts, out)?;
        Ok((header, route))
    }

    /// The sections: one, if everything fits a pack.
    fn parts(self, route: &Route, level: i32) -> io::Result<Vec<(Kind, Finished)>> {
        let (route, batches, threads) = (route.encode(), self.table.encode(), self.threads);
        let compress = |bytes: &[u8]| {
            let mut stream = StreamWriter::new(Compression { level, window_log: 18, threads: 1, job: self.job });
            stream.put(bytes, self.spool_dir)?;
            stream.finish()
        };
        let raw = self.columns.iter().map(|column| column.stream.raw_len()).sum::<u64>();
        if raw + (route.len() + batches.len() + PACK_LENGTHS) as u64 <= PACK_MOST {
            let mut streams = [const { Vec::new() }; Kind::STREAMS.len()];
            let columns = self.columns.into_iter().map(|column| column.stream.into_short());
            streams.iter_mut().zip([route, batches].into_iter().chain(columns)).for_each(|(to, from)| *to = from);
            let bytes = pack(&streams);
            let part = if bytes.len() < READABLE { stored(bytes) } else { compress_mixture(bytes, level, threads)? };
            return Ok(vec![(Kind::Pack, part)]);
        }
        let mut parts = vec![(Kind::Route, stored(route)), (Kind::Batches, compress(&batches)?)];
        for column in self.columns {
            parts.push((column.kind, column.stream.finish()?));
        }
        parts.retain(|(kind, part)| *kind == Kind::Route || part.raw_len > 0);
        Ok(parts)
    }
}

fn stored(bytes: Vec<u8>) -> Finished {
    Finished { codec: Codec::Stored, raw_len: bytes.len() as u64, stored: Stored::Memory(bytes) }
}

/// Writes header and sections.
fn assemble(
    mut header: Header,
    route: &Route,
    footprint: Footprint,
    mut parts: Vec<(Kind, Finished)>,
    out: &mut impl Write,
) -> io::Result<Header> {
    for (kind, part) in &mut parts {
        let (stored_len, blake3) = part.stored.digest()?;
        let (codec, raw_len) = (part.codec, part.raw_len);
        let route = if *kind == Kind::Label { NO_ROUTE } else { 0 };
        header.sections.push(Section { kind: Some(*kind), route, codec, offset: 0, stored_len, raw_len, blake3 });
    }
    header.limits.memory = Memory::new(&header, route, 0).with(footprint).bytes();
    let mut offset = header.encoded_len() as u64;
    for section in &mut header.sections {
        section.offset = offset;
        offset += section.stored_len;
    }
    out.write_all(&header.encode())?;
    parts.iter_mut().try_for_each(|(_, part)| part.stored.copy_to(out))?;
    Ok(header)
}

impl Stored {
    fn digest(&mut self) -> io::Result<(u64, [u8; 32])> {
        let mut hasher = blake3::Hasher::new();
        self.copy_to(&mut hasher)?;
        Ok((hasher.count(), *hasher.finalize().as_bytes()))
    }

    fn copy_to(&mut self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => out.write_all(bytes),
            Self::Spool(file) => {
                let file: &mut File = file;
                file.rewind()?;
                io::copy(file, out).map(drop)
            }
        }
    }
}

/// Lays saved byte ranges out as the save leaves them: each in its block, blocks side by side. `copy` fills a slice
/// with the old bytes of a range. Ranges outside what `content` has room for are left out.
pub fn fill_save(ranges: &[Range<u64>], content: &mut [u8], mut copy: impl FnMut(Range<u64>, &mut [u8])) {
    let blocks = saved_blocks(ranges);
    let packed = [Extent { start: 0, count: content.len() as u64 / BLOCK }];
    let mut ranges = ranges.iter().cloned().peekable();
    // A shorter list on either side ends the walk; the counts were checked where it matters.
    let _ = pair_extents(&blocks, &packed, |old, at, count| {
        while let Some(range) = ranges.peek_mut() {
            let end = range.end.min((old + count) * BLOCK);
            if range.start >= end {
                break;
            }
            let to = (at * BLOCK + range.start - old * BLOCK) as usize;
            copy(range.start..end, &mut content[to..to + (end - range.start) as usize]);
            range.start = end;
            if range.start < range.end {
                break;
            }
            ranges.next();
        }
    });
}

fn crc_of(image: &[u8], ranges: impl Iterator<Item = Range<u64>>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    ranges.for_each(|range| hasher.update(slice(image, &range)));
    hasher.finalize()
}

/// A byte range of a mapped image; what lies behind its end is left out.
fn slice<'a>(image: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    let end = usize::try_from(range.end).unwrap_or(usize::MAX).min(image.len());
    let start = usize::try_from(range.start).unwrap_or(usize::MAX).min(end);
    &image[start..end]
}
