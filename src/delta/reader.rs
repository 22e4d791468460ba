//! Opens a delta: every byte of the file is checked against a digest before anything in it is believed.

use super::batch::BatchTable;
use super::difference::DifferenceReader;
use super::header::{Header, Kind, NO_ROUTE, Section, announced_len};
use super::label::Label;
use super::memory::{Footprint, Memory};
use super::pack::Streams;
use super::route::Route;
use super::step_reader::{StepBounds, StepReader};
use super::stream::{ReadAt, StreamReader, Stretch};
use super::{DeltaError, header::Codec};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// What its maker says about it.
    pub label: Option<Label>,
    /// What patching takes.
    pub memory: Memory,
}

impl std::fmt::Debug for Delta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delta").field("header", &self.header).field("route", &self.route).finish_non_exhaustive()
    }
}

impl Delta {
    /// Reads and checks header, digests, route and batch table; `memory_limit` in bytes bounds what it may announce.
    ///
    /// # Errors
    /// [`DeltaError`].
    pub fn open(source: Arc<dyn ReadAt>, memory_limit: u64) -> Result<Self, DeltaError> {
        Self::open_until(source, memory_limit, &AtomicBool::new(false))
    }

    /// The same; given up with any error when `stop` comes, as reading it through may take long.
    ///
    /// # Errors
    /// [`DeltaError`].
    pub(crate) fn open_until(
        source: Arc<dyn ReadAt>,
        memory_limit: u64,
        stop: &AtomicBool,
    ) -> Result<Self, DeltaError> {
        let file_len = source.size().map_err(DeltaError::Io)?;
        let header = read_header(&source, file_len)?;
        let expected = header.file_len();
        if expected != file_len {
            return Err(DeltaError::WrongLength { expected, actual: file_len });
        }
        check_sections(&source, &header, stop)?;
        let label = Label::read(&source, &header)?;
        let route_number = 0;
        let streams = Streams::of(&source, &header, route_number)?;
        let Some(section) = streams.section(Kind::Route) else {
            return Err(DeltaError::Malformed("it has no route"));
        };
        let route = read_route(streams.source(), section, header.new.len)?;
        let memory = Memory::new(&header, &route, route_number);
        memory.check(memory_limit)?;
        let mut stream = streams.open(Kind::Batches)?;
        let table = BatchTable::decode(&mut stream, &route.counts, &header.limits, header.new.len)?;
        stream.finish()?;
        // What a set of blocks takes depends on how they are scattered, which only the table tells.
        let footprint = Footprint::of_order(&table, route.longer(header.new.len), |footprint| {
            memory.with(footprint).check(memory_limit)
        })?;
        Ok(Self { header, streams, route, route_number, table, file_len, label, memory: memory.with(footprint) })
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
        let features = self.header.features;
        let (old_len, new_len) = (self.old_bound(), self.header.new.len);
        let bounds = StepBounds { old_len, new_len, batch_steps, features };
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
        self.memory.bytes()
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
fn check_sections(source: &Arc<dyn ReadAt>, header: &Header, stop: &AtomicBool) -> Result<(), DeltaError> {
    let mut buffer = vec![0; 256 << 10];
    for (i, section) in header.sections.iter().enumerate() {
        let same = |other: &Section| other.kind == section.kind && other.route == section.route;
        let of_route = section.kind.is_some_and(|kind| kind != Kind::Label);
        if of_route && (section.route == NO_ROUTE || header.sections[..i].iter().any(same)) {
            return Err(DeltaError::Malformed("a section of a route occurs twice, or without its route"));
        }
        let mut stretch = Stretch { source: Arc::clone(source), offset: section.offset, left: section.stored_len };
        let mut hasher = blake3::Hasher::new();
        while stretch.left > 0 {
            if stop.load(Ordering::Relaxed) {
                return Err(DeltaError::Io(std::io::Error::other("asked to stop")));
            }
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
