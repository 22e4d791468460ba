//! Opens a delta: every byte of the file is checked against a digest before anything in it is believed.

use super::batch::BatchTable;
use super::difference::DifferenceReader;
use super::header::{Header, Kind, NO_ROUTE, Section, announced_len};
use super::pack::{PACK_MEMORY, Streams};
use super::route::Route;
use super::step::{StepBounds, StepReader};
use super::stream::{ReadAt, StreamReader, Stretch};
use super::{DeltaError, header::Codec};
use crate::units::blocks_in;
use std::io::Read;
use std::sync::Arc;

/// A delta whose bytes fit their digests. The order is not yet checked: see [`super::check::check_order`].
pub struct Delta {
    /// The header.
    pub header: Header,
    /// Where the streams lie.
    pub streams: Streams,
    /// The route that is taken.
    pub route: Route,
    /// Its number.
    pub route_number: u16,
    /// Its order.
    pub table: BatchTable,
    /// Bytes of the file.
    pub file_len: u64,
}

impl std::fmt::Debug for Delta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delta").field("header", &self.header).field("route", &self.route).finish_non_exhaustive()
    }
}

/// Fixed part of the memory that patching takes: code, buffers, and the gaps that are read along with sources.
const BASE_MEMORY: u64 = (6 << 20) + 3 * (256 << 10);

impl Delta {
    /// Reads and checks header, digests, route and batch table; `memory_limit` in bytes bounds what it may announce.
    ///
    /// # Errors
    /// [`DeltaError`].
    pub fn open(source: Arc<dyn ReadAt>, memory_limit: u64) -> Result<Self, DeltaError> {
        let file_len = source.size().map_err(DeltaError::Io)?;
        let header = read_header(&source, file_len)?;
        let expected = header.file_len();
        if expected != file_len {
            return Err(DeltaError::WrongLength { expected, actual: file_len });
        }
        check_sections(&source, &header)?;
        let route_number = 0;
        let streams = Streams::of(&source, &header, route_number)?;
        let Some(section) = streams.section(Kind::Route) else {
            return Err(DeltaError::Malformed("it has no route"));
        };
        let route = read_route(streams.source(), section, header.new.len)?;
        let needed = memory_needed(&header, &route, route_number).max(header.limits.memory);
        if needed > memory_limit {
            return Err(DeltaError::Memory { needed, limit: memory_limit });
        }
        let mut stream = streams.open(Kind::Batches)?;
        let table = BatchTable::decode(&mut stream, &route.counts, &header.limits, header.new.len)?;
        stream.finish()?;
        Ok(Self { header, streams, route, route_number, table, file_len })
    }

    /// One past the largest offset that a source in the old image may have.
    #[must_use]
    pub fn old_bound(&self) -> u64 {
        self.route.old.map_or(i64::MAX as u64, |old| old.len)
    }

    /// The steps, from the first batch on.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn steps(&self) -> Result<StepReader, DeltaError> {
        let batch_steps = self.header.limits.batch_steps;
        let bounds = StepBounds { old_len: self.old_bound(), new_len: self.header.new.len, batch_steps };
        StepReader::open(&self.streams, bounds)
    }

    /// The differences, from the first on.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn differences(&self) -> Result<DifferenceReader, DeltaError> {
        DifferenceReader::open(&self.streams)
    }

    /// The literals, from the first on.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn literals(&self) -> Result<StreamReader, DeltaError> {
        self.streams.open(Kind::Literals)
    }

    /// Bytes of memory that patching takes at the most.
    #[must_use]
    pub fn memory(&self) -> u64 {
        memory_needed(&self.header, &self.route, self.route_number).max(self.header.limits.memory)
    }
}

fn read_header(source: &Arc<dyn ReadAt>, file_len: u64) -> Result<Header, DeltaError> {
    let mut start = [0u8; 12];
    if file_len < start.len() as u64 {
        return Err(DeltaError::NotADelta);
    }
    read_exact(source, 0, file_len, &mut start)?;
    let len = announced_len(&start)?;
    if u64::from(len) > file_len {
        return Err(DeltaError::WrongLength { expected: len.into(), actual: file_len });
    }
    let mut bytes = vec![0; len as usize];
    read_exact(source, 0, file_len, &mut bytes)?;
    Header::decode(&bytes)
}

fn read_exact(source: &Arc<dyn ReadAt>, offset: u64, left: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
    Stretch { source: Arc::clone(source), offset, left }.read_exact(buffer).map_err(DeltaError::Io)
}

/// Compares every section with its digest. Kinds that occur twice for one route are refused.
fn check_sections(source: &Arc<dyn ReadAt>, header: &Header) -> Result<(), DeltaError> {
    let mut buffer = vec![0; 256 << 10];
    for (i, section) in header.sections.iter().enumerate() {
        let same = |other: &Section| other.kind == section.kind && other.route == section.route;
        if section.kind.is_some() && (section.route == NO_ROUTE || header.sections[..i].iter().any(same)) {
            return Err(DeltaError::Malformed("a section of a route occurs twice, or without its route"));
        }
        let mut stretch = Stretch { source: Arc::clone(source), offset: section.offset, left: section.stored_len };
        let mut hasher = blake3::Hasher::new();
        while stretch.left > 0 {
            let n = stretch.read(&mut buffer).map_err(DeltaError::Io)?;
            hasher.update(&buffer[..n]);
        }
        if hasher.finalize().as_bytes() != &section.blake3 {
            return Err(DeltaError::Damaged { what: section.kind.map_or("extension section", Kind::name) });
        }
    }
    Ok(())
}

fn read_route(source: &Arc<dyn ReadAt>, section: &Section, new_len: u64) -> Result<Route, DeltaError> {
    const LONGEST: u64 = super::route::FIXED_LEN as u64 + 4 * super::route::MAX_REGIONS as u64;
    if section.codec != Codec::Stored || section.raw_len > LONGEST {
        return Err(DeltaError::field("route length", section.raw_len, format!("at most {LONGEST}, not compressed")));
    }
    let mut bytes = vec![0; section.raw_len as usize];
    read_exact(source, section.offset, section.stored_len, &mut bytes)?;
    Route::decode(&bytes, new_len)
}

/// Bytes of memory that patching takes, from what header and route announce (spec, chapter 9).
#[must_use]
pub fn memory_needed(header: &Header, route: &Route, route_number: u16) -> u64 {
    let own = header.sections.iter().filter(|s| s.route == route_number && s.kind.is_some());
    let windows = own.map(|s| {
        let streams = if s.kind == Some(Kind::Pack) { PACK_MEMORY } else { 0 };
        streams
            + match s.codec {
                // A decompressor holds its window, a block of 128 KiB and its buffers.
                Codec::Zstd { window_log } => (1u64 << window_log) + (512 << 10),
                Codec::Stored => 128 << 10,
            }
    });
    let counts = &route.counts;
    let limits = &header.limits;
    // A bitmap page of 4 KiB covers 32,768 blocks; there are never more pages than blocks set.
    let written = counts.final_blocks.min(blocks_in(header.new.len).div_ceil(1 << 15).saturating_add(1));
    let parts = counts.final_blocks.min(header.new.len.div_ceil(crate::units::PART).saturating_add(1));
    [
        BASE_MEMORY,
        windows.fold(0, u64::saturating_add),
        // What four batches write, what three read, and their steps: room for a patcher that reads and writes ahead. This
        // one holds what three batches write (one is made, one written, one waits) and what one reads.
        u64::from(limits.batch_bytes) * 4,
        u64::from(limits.source_bytes) * 3,
        u64::from(limits.batch_steps) * 320,
        counts.batches.saturating_mul(80),
        counts.extents.saturating_mul(16),
        counts.save_ranges.saturating_mul(16 + 128),
        counts.scratch_blocks.min(counts.save_ranges.saturating_add(counts.extents)).saturating_mul(128),
        counts.save_reads.saturating_mul(32),
        counts.scratch_blocks.saturating_mul(8),
        // Bitmaps: touched twice, written, final, in flight.
        written.saturating_mul(5 * 4200),
        parts.saturating_mul(256),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}
