//! The memory that patching takes (spec, chapter 9).

use super::DeltaError;
use super::batch::{BatchKind, BatchTable};
use super::header::{Codec, DEFLATE, Header, Kind, LZMA, ZSTD};
use super::pack::PACK_MEMORY;
use super::route::Route;
use super::scratch::{ScratchPieces, most_live, saved_extents};
use super::step::{BATCH_TEXT, NEW_TEXT, OLD_TEXT, PACKED_MOST, UNPACK_MOST};
use crate::blockset::{BlockSet, PAGE_BLOCKS};
use crate::lzma_chunk;
use crate::units::{BLOCK, Extent, PART};
use crate::zstd_block::{BEYOND, CONTENT_MOST, SEQUENCE_LEAST};
use std::collections::BTreeSet;

/// Blocks in a part.
const PART_BLOCKS: u64 = PART / BLOCK;

/// Fixed part of the memory that patching takes: code, buffers, and the gaps that are read along with the sources of
/// three batches.
const BASE: u64 = (6 << 20) + 3 * (256 << 10);

/// What deflated data takes: old texts and a new one, the bytes that they are made of, for each thread that unpacks, and
/// become, and codes; and where what is unpacked lies, as each block may lie elsewhere.
const TEXTS: u64 = (OLD_TEXT + NEW_TEXT + UNPACKERS * UNPACK_MOST) + 4 * NEW_TEXT + BATCH_TEXT / BLOCK * 160;
/// Threads that unpack while another one packs.
pub const UNPACKERS: u64 = 2;

/// What zstd's blocks take besides: the literals and sequences of a text, as large as they can be, and their blocks; and the
/// literals and tables of those that are unpacked meanwhile.
const BLOCKS: u64 = CONTENT_MOST as u64
    + NEW_TEXT / SEQUENCE_LEAST as u64 * 12
    + PACKED_MOST
    + BEYOND as u64
    + (64 << 10)
    + UNPACKERS * (CONTENT_MOST as u64 + (32 << 10));
/// LZMA2's chunks take less: their content and probabilities, for those that are made and those that are unpacked meanwhile,
/// and themselves.
const _: () =
    assert!((1 + UNPACKERS) * (lzma_chunk::CONTENT_MOST as u64 + (64 << 10)) + PACKED_MOST + (1 << 10) <= BLOCKS);

/// What an order takes because of where the blocks lie that it writes, and because of what it saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Pages of a [`BlockSet`] that hold them: aligned runs of 32,768 blocks, 128 MiB.
    pub pages: u64,
    /// Aligned parts of 1 MiB that hold them, and the fewest aligned runs of parts, a power of two long, that make up what
    /// lies between: the subtrees of a digest of which some parts will be replaced.
    pub nodes: u64,
    /// Ranges and extents of saves that are live at a time, at the most.
    pub live: u64,
    /// Parts into which what is written to scratch is cut: see [`ScratchPieces::parts`].
    pub parts: u64,
}

impl Footprint {
    /// Of blocks in an image of `len` bytes, without saves.
    #[must_use]
    fn of(touched: &BlockSet, len: u64) -> Self {
        let (mut nodes, mut at) = (0u64, 0);
        for extent in touched.extents() {
            let (first, last) = parts_of(extent);
            let first = first.max(at);
            nodes = nodes.saturating_add(subtrees(at, first)).saturating_add(last.saturating_sub(first));
            at = at.max(last);
        }
        let end = len.div_ceil(PART);
        Self { pages: touched.pages(), nodes: nodes.saturating_add(subtrees(at, end.max(at))), live: 0, parts: 0 }
    }

    /// Of an order for an image of `len` bytes. `check` is asked before anything is collected that takes memory.
    ///
    /// # Errors
    /// What `check` says.
    pub fn of_order(
        table: &BatchTable,
        len: u64,
        check: impl Fn(Self) -> Result<(), DeltaError>,
    ) -> Result<Self, DeltaError> {
        let finals = || table.batches().iter().filter(|batch| batch.kind != BatchKind::Save);
        // Blocks that are written twice, which will be refused, count twice: they must not cost time either.
        let blocks = finals().flat_map(|batch| table.extents(batch)).fold(0, |sum: u64, e| sum.saturating_add(e.count));
        let paged = |pages| check(Self { pages, ..Self::default() });
        paged(blocks / PAGE_BLOCKS)?;
        let mut pages = BTreeSet::new();
        for extent in finals().flat_map(|batch| table.extents(batch)).filter(|extent| extent.count > 0) {
            paged(pages.len() as u64)?;
            pages.extend(extent.start / PAGE_BLOCKS..=(extent.end() - 1) / PAGE_BLOCKS);
        }
        paged(pages.len() as u64)?;
        drop(pages);
        let mut footprint = Self::of(&table.touched(), len);
        check(footprint)?;
        footprint.live = most_live(table, |live| check(Self { live, ..footprint }))?;
        check(Self { parts: saved_extents(table), ..footprint })?;
        footprint.parts = ScratchPieces::new(table).parts(table);
        check(footprint)?;
        Ok(footprint)
    }
}

/// The parts that hold an extent: the first, and one past the last.
fn parts_of(extent: Extent) -> (u64, u64) {
    (extent.start / PART_BLOCKS, extent.end().div_ceil(PART_BLOCKS))
}

/// The fewest aligned runs, each a power of two long, that make up `[from, to)`.
fn subtrees(mut from: u64, to: u64) -> u64 {
    let mut count = 0;
    while from < to {
        let aligned = from.trailing_zeros().min(63);
        let fits = (to - from).ilog2();
        from += 1 << aligned.min(fits);
        count += 1;
    }
    count
}

/// What patching with a delta takes: always, and besides either while it is told what the target holds, or while it is
/// written, whichever is more. What the former takes is given back before the latter.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// What the header says.
    announced: u64,
    /// Always, but for what the footprint takes.
    always: u64,
    /// While the target is written.
    writing: u64,
    /// Of the blocks that are written; nothing as long as it is not known.
    footprint: Footprint,
}

impl Memory {
    /// From what header and route announce.
    #[must_use]
    pub fn new(header: &Header, route: &Route, route_number: u16) -> Self {
        let (always, writing) = (always(header, route, route_number), writing(header));
        Self { announced: header.limits.memory, always, writing, footprint: Footprint::default() }
    }

    /// The same, when it is known where the blocks lie that are written.
    #[must_use]
    pub fn with(self, footprint: Footprint) -> Self {
        Self { footprint, ..self }
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let Footprint { pages, nodes, live, parts } = self.footprint;
        // Bitmaps: touched twice, written, final, in flight. Digests: of what the target will hold, and while it is looked
        // at, of what the delta leaves alone, too.
        let bitmaps = pages.saturating_mul(5 * 4200);
        let digests = nodes.saturating_mul(128);
        let saves = live.saturating_mul(176);
        let looking = digests.saturating_add(parts.saturating_mul(24));
        [self.always, bitmaps, digests, saves, self.writing.max(looking)]
            .into_iter()
            .fold(0, u64::saturating_add)
            .max(self.announced)
    }

    /// Whether that is more than `limit` bytes.
    ///
    /// # Errors
    /// [`DeltaError::Memory`].
    pub fn check(&self, limit: u64) -> Result<(), DeltaError> {
        let needed = self.bytes();
        if needed > limit { Err(DeltaError::Memory { needed, limit }) } else { Ok(()) }
    }
}

fn always(header: &Header, route: &Route, route_number: u16) -> u64 {
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
    [
        BASE,
        windows.fold(0, u64::saturating_add),
        // The steps of the batches that are made and read for, and where what these read lies.
        u64::from(header.limits.batch_steps) * 320,
        counts.batches.saturating_mul(80),
        counts.extents.saturating_mul(16),
        counts.save_ranges.saturating_mul(16),
        counts.save_reads.saturating_mul(32),
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}

fn writing(header: &Header) -> u64 {
    let limits = &header.limits;
    // What four batches write (one is made, one waits, two are written); what three read (one is made).
    let batches = u64::from(limits.batch_bytes) * 4 + u64::from(limits.source_bytes) * 3;
    let where_any = |features: u64, bytes: u64| if header.features & features > 0 { bytes } else { 0 };
    batches + where_any(DEFLATE | ZSTD | LZMA, TEXTS) + where_any(ZSTD | LZMA, BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scattered_blocks_take_more_than_blocks_side_by_side() {
        let of = |extents: &[(u64, u64)], len| {
            let mut set = BlockSet::new();
            extents.iter().for_each(|(start, count)| set.insert(Extent { start: *start, count: *count }));
            let footprint = Footprint::of(&set, len);
            (footprint.pages, footprint.nodes)
        };
        assert_eq!(of(&[], 0), (0, 0));
        assert_eq!(of(&[], 8 * PART), (0, 1));
        assert_eq!(of(&[(0, 1)], 8 * PART), (1, 4)); // 0, 1, 2-3, 4-7
        assert_eq!(of(&[(0, 1), (5, 1), (255, 2)], 8 * PART), (1, 4)); // 0, 1, 2-3, 4-7
        assert_eq!(of(&[(3 * 256, 1)], 5 * PART + 1), (1, 4)); // 0-1, 2, 3, 4-5
        assert_eq!(of(&[(0, 1 << 15)], 1 << 40), (1, 128 + 13));
        assert_eq!(of(&[(0, 1), (1 << 27, 2)], 1 << 40).0, 2);
    }

    proptest! {
        /// What is counted is what a digest keeps.
        #[test]
        fn nodes_are_those_of_a_digest(len in 2 * PART..200 * PART, at in prop::collection::btree_set(0u64..200, 0..12)) {
            use crate::digest::{PartDigest, TreeDigest};
            let at: Vec<u64> = at.into_iter().filter(|part| part * PART < len).collect();
            let mut set = BlockSet::new();
            at.iter().for_each(|part| set.insert(Extent { start: part * PART_BLOCKS, count: 1 }));
            let mut tree = TreeDigest::new(len);
            for part in 0..len.div_ceil(PART) {
                tree.push(PartDigest::placeholder(tree.part_len(part * PART)), at.contains(&part));
            }
            let counted = Footprint::of(&set, len).nodes;
            // A last part that is short, and the root, are not merged.
            prop_assert!((counted..=counted + 8).contains(&(tree.nodes() as u64)), "{} {}", counted, tree.nodes());
        }
    }
}
