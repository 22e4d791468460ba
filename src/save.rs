//! What the verbs share that write a delta of literals beside what they do to a target: the file, what is read of the
//! target for it, and the digests.

use crate::blockset::BlockSet;
use crate::compare::{add_region, add_zeros_to_region, zero_touched};
use crate::delta::literal::LiteralWriter;
use crate::delta::route::region_log;
use crate::delta::writer::{Identity, WriteError};
use crate::device::Device;
use crate::diff::{DiffOptions, check_delta};
use crate::digest::{ImageId, PartDigest, TreeDigest, is_zero};
use crate::error::Error;
use crate::monitor::Monitor;
use crate::output::{Output, folder_of};
use crate::sweep::{Chunks, sweep, whole};
use crate::target::SurveyError;
use crate::units::{BLOCK, Extent, PART};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The digest of all that a delta does not touch.
#[derive(Clone, Debug)]
pub(crate) struct Rest {
    pub untouched: [u8; 32],
    pub region_log: u8,
    pub regions: Vec<u32>,
}

impl Rest {
    /// What a delta's route says of the rest of its images.
    pub fn of(route: &crate::delta::route::Route) -> Self {
        Self { untouched: route.untouched, region_log: route.region_log, regions: route.regions.clone() }
    }
}

/// Puts the digest of the rest together from its parts of [`PART`] bytes.
pub(crate) struct RestDigest {
    tree: TreeDigest,
    log: u8,
    regions: Vec<u32>,
    at: u64,
}

impl RestDigest {
    /// Of the first `len` bytes.
    pub fn new(len: u64) -> Self {
        Self { tree: TreeDigest::new(len), log: region_log(len), regions: Vec::new(), at: 0 }
    }

    /// Adds the next part; `None` is [`PART`] zeros.
    pub fn push(&mut self, part: Option<PartDigest>) {
        match part {
            Some(part) => {
                self.tree.push(part, false);
                add_region(&mut self.regions, self.at, &part, self.log);
                self.at += part.len;
            }
            None => {
                self.tree.push_zeros();
                add_zeros_to_region(&mut self.regions, self.at, self.log);
                self.at += PART;
            }
        }
    }

    /// The digest; `None` while parts are missing.
    pub fn finish(mut self) -> Option<Rest> {
        self.tree.settle();
        let region_log = if self.regions.is_empty() { 0 } else { self.log };
        Some(Rest { untouched: self.tree.finish()?.blake3, region_log, regions: self.regions })
    }
}

/// Reads the first `len` bytes of a target: their digests, and that of the rest of the first `rest_len` where the
/// blocks in `touched` are left out.
pub(crate) fn identify(
    device: &dyn Device,
    len: u64,
    rest_len: u64,
    touched: &BlockSet,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<(ImageId, Rest), SurveyError> {
    debug_assert!(rest_len <= len);
    monitor.phase("reading what is to be kept for undo", len);
    let (mut tree, mut rest) = (TreeDigest::new(len), RestDigest::new(rest_len));
    let work = |offset: u64, part: &mut [u8]| {
        let blocks = Extent { start: offset / BLOCK, count: (part.len() as u64).div_ceil(BLOCK) };
        let (size, there) = (part.len() as u64, rest_len.saturating_sub(offset).min(part.len() as u64));
        if size == PART && (there == PART || there == 0) && !touched.any(blocks) && is_zero(part) {
            return (size, None, (there > 0).then_some(None));
        }
        let digest = PartDigest::new(offset, part, len);
        zero_touched(part, blocks, touched);
        let rest = (there > 0).then(|| Some(PartDigest::new(offset, &part[..there as usize], rest_len)));
        (size, Some(digest), rest)
    };
    sweep(device, &whole(len), stop, work, |(size, digest, others)| {
        monitor.advance(size);
        match digest {
            Some(digest) => tree.push(digest, false),
            None => tree.push_zeros(),
        }
        if let Some(part) = others {
            rest.push(part);
        }
    })?;
    tree.settle();
    match (tree.finish(), rest.finish()) {
        (Some(id), Some(rest)) => Ok((id, rest)),
        _ => Err(crate::delta::DeltaError::Malformed("internal error: parts of the target are missing").into()),
    }
}

/// Blocks that are read at once.
const SPAN_BLOCKS: u64 = 64;
/// Blocks between others that are read along with them: a read more would take longer.
const GAP_BLOCKS: u64 = 8;
/// Spans that are read before it is looked whether they could be written: as many wait in memory at the most.
const SPANS: usize = 32;
/// Threads that compress, at the most: each holds several MiB.
const MOST_THREADS: u32 = 2;

/// Stretches of at most [`SPAN_BLOCKS`] that cover all blocks of a set.
fn spans(blocks: &BlockSet) -> Vec<Extent> {
    let mut spans: Vec<Extent> = Vec::new();
    for mut extent in blocks.extents() {
        while extent.count > 0 {
            let count = extent.count.min(SPAN_BLOCKS);
            match spans.last_mut() {
                Some(last)
                    if extent.start - last.end() <= GAP_BLOCKS && extent.start + count - last.start <= SPAN_BLOCKS =>
                {
                    last.count = extent.start + count - last.start;
                }
                _ => spans.push(Extent { start: extent.start, count }),
            }
            extent = Extent { start: extent.start + count, count: extent.count - count };
        }
    }
    spans
}

/// Why content could not be kept.
pub(crate) enum SaveError {
    /// The target, or the user.
    Survey(SurveyError),
    /// The file.
    Write(WriteError),
}

/// Reads blocks of an image of `len` bytes from a target and gives them to a delta of literals.
pub(crate) fn keep(
    device: &dyn Device,
    blocks: &BlockSet,
    len: u64,
    writer: &mut LiteralWriter<'_>,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<(), SaveError> {
    let spans = spans(blocks);
    monitor.phase("keeping what will be overwritten", blocks.len() * BLOCK);
    for spans in spans.chunks(SPANS) {
        let chunk = |i: u64| -> Range<u64> { spans[i as usize].bytes(len) };
        let chunks = Chunks { count: spans.len() as u64, chunk };
        let mut result = Ok(());
        let work = |offset: u64, bytes: &mut [u8]| (offset, bytes.to_vec());
        let read = sweep(device, &chunks, stop, work, |(offset, bytes)| {
            let span = Extent { start: offset / BLOCK, count: (bytes.len() as u64).div_ceil(BLOCK) };
            for (run, _) in blocks.runs_in(span).filter(|(_, wanted)| *wanted) {
                let (start, end) = ((run.start - span.start) * BLOCK, (run.end() - span.start) * BLOCK);
                let bytes = &bytes[start as usize..bytes.len().min(end as usize)];
                if result.is_ok() {
                    result = writer.add(run, bytes);
                }
                monitor.advance(bytes.len() as u64);
            }
        });
        read.map_err(SaveError::Survey)?;
        result.map_err(SaveError::Write)?;
    }
    Ok(())
}

/// Threads that compress.
pub(crate) fn threads() -> u32 {
    (DiffOptions::default().threads as u32).min(MOST_THREADS)
}

/// A delta that is being written to a file, which gets its name only when it is complete.
pub(crate) struct DeltaFile<'a> {
    path: &'a Path,
    output: Output,
}

impl<'a> DeltaFile<'a> {
    /// Starts one.
    pub fn create(path: &'a Path) -> Result<Self, Error> {
        let folder = folder_of(path);
        Ok(Self { path, output: Output::create_in(folder).map_err(Error::io("create a file in", folder))? })
    }

    /// Where long streams are spooled.
    pub fn folder(&self) -> &'a Path {
        folder_of(self.path)
    }

    /// The failure to write it.
    pub fn failed(path: &Path, e: WriteError) -> Error {
        match e {
            WriteError::Io(source) => Error::Io { doing: "write", path: path.to_owned(), source },
            WriteError::Plan(_) => Error::Write(e),
        }
    }

    /// Writes it, checks it as `patch` will, makes it and its name durable. Its length in bytes.
    pub fn finish(self, writer: LiteralWriter<'_>, old: ImageId, new: ImageId, rest: Rest) -> Result<u64, Error> {
        let path = self.path;
        let Rest { untouched, region_log, regions } = rest;
        let identity = Identity { old: Some(old), new, untouched, region_log, regions };
        let mut out = BufWriter::new(self.output.file());
        writer.finish(&identity, &mut out).map_err(|e| Self::failed(path, e))?;
        out.flush().map_err(Error::io("write", path))?;
        drop(out);
        let len = check_delta(self.output.file()).map_err(|e| Self::failed(path, e.into()))?;
        self.output.finish_new(path).map_err(Error::io("create", path))?;
        Ok(len)
    }
}
