//! Pieces: what is written, cut into units of order, and which of the written blocks each of them reads.

use super::recipe::{Reads, Recipe};
use super::{BATCH_STEPS, SOURCE_BLOCKS, TEXT_BYTES, whole_blocks};
use crate::units::{Extent, count_blocks, merge_extents};

/// Blocks of zeros in a piece at the most, in pieces of data.
const ZERO_FACTOR: u64 = 64;

/// A unit of order: blocks that are written together.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The blocks it writes: ascending, merged.
    pub extents: Vec<Extent>,
    /// Whether all of it becomes zero.
    pub zero: bool,
    /// Number of blocks it reads, wherever they lie.
    pub source_blocks: u64,
    /// Number of steps that make it.
    pub steps: usize,
    /// Bytes of texts that these take: see [`TEXT_BYTES`].
    pub text_bytes: u64,
    /// The written blocks that it reads, as dense numbers: ascending.
    pub reads: Vec<u32>,
}

/// All pieces of a recipe, ascending, and the dense numbering of the blocks they write.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// The pieces.
    pub list: Vec<Piece>,
    /// The blocks that are written: ascending, merged.
    extents: Vec<Extent>,
    /// Dense number of each extent's first block.
    first: Vec<u32>,
    /// The piece that writes each dense block.
    pub owner: Vec<u32>,
    /// Whether a dense block can be scratch: whole, not the image's short last one.
    pub whole_end: u64,
}

impl Pieces {
    /// How many blocks are written.
    pub fn blocks(&self) -> usize {
        self.owner.len()
    }

    /// The number of a piece of these in another cut of the same recipe.
    pub fn same_in(&self, piece: u32, other: &Self) -> Option<u32> {
        let extents = &self.list.get(piece as usize)?.extents;
        let i = other.list.partition_point(|p| p.extents.first() < extents.first());
        (other.list.get(i)?.extents == *extents).then_some(i as u32)
    }

    /// The dense numbers of the written blocks in an extent.
    pub fn dense(&self, extent: Extent) -> impl Iterator<Item = u32> + '_ {
        let from = self.extents.partition_point(|e| e.end() <= extent.start);
        self.extents[from..].iter().zip(&self.first[from..]).take_while(move |(e, _)| e.start < extent.end()).flat_map(
            move |(e, first)| {
                let common = e.intersect(&extent);
                let start = first + (common.start - e.start) as u32;
                start..start + common.count as u32
            },
        )
    }

    /// The block with that dense number.
    pub fn block(&self, dense: u32) -> u64 {
        let i = self.first.partition_point(|first| *first <= dense).saturating_sub(1);
        self.extents[i].start + u64::from(dense - self.first[i])
    }
}

/// Cuts a recipe into pieces of at most `size` blocks, each within an aligned window of so many blocks; `scratch` are
/// unchanged zero blocks that are written, too.
pub fn cut(recipe: &Recipe, scratch: &[Extent], new_len: u64, size: u64) -> Pieces {
    let mut list = Vec::new();
    let mut window: Vec<Extent> = Vec::new();
    for (extent, zero) in recipe.segments(new_len) {
        if zero {
            push_zeros(&mut list, extent, size * ZERO_FACTOR);
            continue;
        }
        let mut start = extent.start;
        while start < extent.end() {
            let end = extent.end().min((start / size + 1) * size);
            if window.first().is_some_and(|first| first.start / size != start / size) {
                push_window(recipe, &mut list, std::mem::take(&mut window), new_len);
            }
            window.push(Extent { start, count: end - start });
            start = end;
        }
    }
    push_window(recipe, &mut list, window, new_len);
    scratch.iter().for_each(|extent| push_zeros(&mut list, *extent, size));
    list.sort_by_key(|piece| piece.extents.first().map(|e| e.start));
    number(recipe, list, new_len)
}

fn push_zeros(list: &mut Vec<Piece>, extent: Extent, most: u64) {
    let mut start = extent.start;
    while start < extent.end() {
        let end = extent.end().min((start / most + 1) * most);
        let extents = vec![Extent { start, count: end - start }];
        list.push(Piece { extents, zero: true, source_blocks: 0, steps: 0, text_bytes: 0, reads: Vec::new() });
        start = end;
    }
}

/// Stretches of at least so many blocks that read nothing form pieces of their own: they can go last, and so serve as
/// scratch.
const LEAF_BLOCKS: u64 = 4;

/// Adds the data of a window: what reads nothing apart from the rest.
fn push_window(recipe: &Recipe, list: &mut Vec<Piece>, extents: Vec<Extent>, new_len: u64) {
    // Blocks that were made free were made so to be scratch.
    let least = if recipe.freed { 1 } else { LEAF_BLOCKS };
    let (mut reading, mut leaves) = (Vec::new(), Vec::new());
    for extent in extents {
        let mut at = extent.start;
        for stretch in recipe.literal_stretches(extent, new_len).into_iter().filter(|s| s.count >= least) {
            reading.push(Extent { start: at, count: stretch.start - at });
            leaves.push(stretch);
            at = stretch.end();
        }
        reading.push(Extent { start: at, count: extent.end() - at });
    }
    reading.retain(|extent| extent.count > 0);
    push_data(recipe, list, reading, new_len);
    push_data(recipe, list, leaves, new_len);
}

/// Adds a piece of data, halved until it keeps the limits on sources and steps.
fn push_data(recipe: &Recipe, list: &mut Vec<Piece>, extents: Vec<Extent>, new_len: u64) {
    let total = count_blocks(&extents);
    if total == 0 {
        return;
    }
    let Reads { blocks, steps, text_bytes } = recipe.reads(&extents, new_len);
    let source_blocks = count_blocks(&blocks);
    if total > 1 && (source_blocks > SOURCE_BLOCKS || steps > BATCH_STEPS || text_bytes > TEXT_BYTES) {
        let (left, right) = halve(extents, total / 2);
        push_data(recipe, list, left, new_len);
        push_data(recipe, list, right, new_len);
    } else {
        list.push(Piece { extents, zero: false, source_blocks, steps, text_bytes, reads: Vec::new() });
    }
}

fn halve(extents: Vec<Extent>, mut blocks: u64) -> (Vec<Extent>, Vec<Extent>) {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for extent in extents {
        let count = extent.count.min(blocks);
        blocks -= count;
        if count > 0 {
            left.push(Extent { start: extent.start, count });
        }
        if count < extent.count {
            right.push(Extent { start: extent.start + count, count: extent.count - count });
        }
    }
    (left, right)
}

/// Numbers the written blocks and finds which of them each piece reads.
fn number(recipe: &Recipe, list: Vec<Piece>, new_len: u64) -> Pieces {
    let mut extents: Vec<Extent> = list.iter().flat_map(|piece| piece.extents.iter().copied()).collect();
    merge_extents(&mut extents);
    let mut first = Vec::with_capacity(extents.len());
    let mut total = 0u32;
    for extent in &extents {
        first.push(total);
        total += extent.count as u32;
    }
    let owner = vec![0; total as usize];
    let mut pieces = Pieces { list: Vec::new(), extents, first, owner, whole_end: whole_blocks(new_len) };
    let mut list = list;
    for (number, piece) in list.iter_mut().enumerate() {
        let dense: Vec<u32> = piece.extents.iter().flat_map(|e| pieces.dense(*e)).collect();
        dense.iter().for_each(|d| pieces.owner[*d as usize] = number as u32);
        if !piece.zero {
            let reads = recipe.reads(&piece.extents, new_len);
            piece.reads = reads.blocks.iter().flat_map(|e| pieces.dense(*e)).collect();
        }
    }
    pieces.list = list;
    pieces
}
