//! From runs to batches: an order in which the target can be patched in place and a restart needs nothing but the delta.
//!
//! [`recipe`] holds the runs and turns stretches of them into literals; [`pieces`] cuts what is written into pieces and
//! finds who reads what; [`order`] schedules the pieces, breaking cycles through scratch; [`batches`] groups the
//! schedule by levels. Pure: knows images only as bytes.

mod batches;
mod order;
mod pieces;
mod recipe;
mod volatile;

pub use recipe::Recipe;
pub use volatile::volatile_blocks;

use crate::delta::writer::NewBatch;
use crate::units::{BLOCK, Extent, count_blocks};
use order::Schedule;

/// Largest number of blocks in a data or save batch: 1 MiB, what a slow stick writes in about the time of a sync.
pub const BATCH_BLOCKS: u64 = 256;
/// Largest number of source blocks of a batch: 4 MiB.
pub const SOURCE_BLOCKS: u64 = 1024;
/// Largest number of steps of a batch.
pub const BATCH_STEPS: usize = 1 << 14;

/// Sizes of pieces that are tried, in blocks: large ones overlap themselves more, small ones make longer chains.
const PIECE_BLOCKS: [u64; 3] = [256, 64, 16];
/// Levels after which chains are cut, where that is cheaper than their barriers.
const CUT_LEVELS: [u32; 2] = [24, 12];
/// What a barrier costs on a slow stick, in blocks written: 50 ms at 8 MiB/s.
const BARRIER_BLOCKS: u64 = 100;
/// Blocks turned into literals where the target has no free block for scratch (delta grows by up to twice that).
const LITERAL_SCRATCH: u64 = 64;

/// An order and what it costs.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The batches, in order.
    pub batches: Vec<NewBatch>,
    /// Blocks that are zero in both images and serve as scratch, zeroed again at the end.
    pub zero_scratch: Vec<Extent>,
}

/// Plans the in-place application of a recipe for images of `old_len` and `new_len` bytes. `zeros` yields, for a wanted
/// number of blocks, extents of whole blocks that are zero in both images and outside what the recipe writes, fewer
/// where there are not so many. Blocks become literals where the target has nothing else for scratch.
#[must_use]
pub fn plan(recipe: &Recipe, old_len: u64, new_len: u64, zeros: impl Fn(u64) -> Vec<Extent>) -> Plan {
    let mut best: Option<Attempt> = None;
    let mut consider = |attempt: Attempt| {
        if best.as_ref().is_none_or(|best| attempt.cost < best.cost) {
            best = Some(attempt);
        }
    };
    for size in PIECE_BLOCKS {
        let base = attempt(recipe.clone(), new_len, size, &zeros);
        let free = base.cost == (0, 0);
        for step in CUT_LEVELS.into_iter().filter(|step| base.schedule.levels > u64::from(*step)) {
            if let Some(cut) = cut_chains(&base, new_len, size, step, &zeros) {
                consider(cut);
            }
        }
        consider(base);
        if free {
            break; // cannot be better
        }
    }
    let Some(best) = best else { return Plan::default() };
    let batches = batches::group(&best.recipe, &best.pieces, &best.schedule, old_len, new_len);
    Plan { batches, zero_scratch: best.scratch }
}

/// One way to order a recipe.
struct Attempt {
    recipe: Recipe,
    pieces: pieces::Pieces,
    schedule: Schedule,
    scratch: Vec<Extent>,
    /// Blocks turned into literals, which make the delta grow, count before everything else; then the cost in blocks.
    cost: (u64, u64),
}

/// The same pieces, with long chains of pieces that wait for each other cut by saving ahead at every `step`-th level.
fn cut_chains(
    base: &Attempt,
    new_len: u64,
    size: u64,
    step: u32,
    zeros: &impl Fn(u64) -> Vec<Extent>,
) -> Option<Attempt> {
    let (ahead, blocks) = order::cuts(&base.pieces, &base.schedule, step);
    // Saving costs at least so much: where that is more than all barriers, there is nothing to win.
    if blocks >= base.schedule.levels * BARRIER_BLOCKS {
        return None;
    }
    let mut scratch = base.scratch.clone();
    for wanted in [None, Some(count_blocks(&scratch) + blocks)] {
        if let Some(wanted) = wanted {
            scratch = zeros(wanted);
        }
        // Zero pieces change the numbering, so the pieces to cut at are found again by their place.
        let pieces = pieces::cut(&base.recipe, &scratch, new_len, size);
        let ahead: Vec<u32> = ahead.iter().filter_map(|piece| base.pieces.same_in(*piece, &pieces)).collect();
        if let Ok(schedule) = order::schedule(&pieces, &ahead)
            && schedule.levels < base.schedule.levels
        {
            let used = order::used_scratch(&pieces, &schedule, &scratch);
            let cost = (base.cost.0, cost(&schedule, &scratch));
            if used == scratch || wanted.is_some() {
                return Some(Attempt { recipe: base.recipe.clone(), pieces, schedule, scratch, cost });
            }
        }
    }
    None
}

/// Tries with more and more scratch until there is enough.
fn attempt(mut recipe: Recipe, new_len: u64, mut size: u64, zeros: &impl Fn(u64) -> Vec<Extent>) -> Attempt {
    let (mut scratch, mut wanted, mut literal, mut trimmed) = (Vec::new(), 0u64, 0u64, false);
    loop {
        let pieces = pieces::cut(&recipe, &scratch, new_len, size);
        match order::schedule(&pieces, &[]) {
            Ok(schedule) => {
                let used = order::used_scratch(&pieces, &schedule, &scratch);
                if used != scratch && !trimmed {
                    // Zero blocks that no save needed need not be written at all.
                    (scratch, trimmed) = (used, true);
                    continue;
                }
                let cost = (literal, cost(&schedule, &scratch));
                return Attempt { recipe, pieces, schedule, scratch, cost };
            }
            Err(order::NeedScratch { blocks, near }) => {
                wanted = wanted.saturating_mul(2).max(blocks).max(4 * BATCH_BLOCKS);
                let found = zeros(wanted);
                if count_blocks(&found) > count_blocks(&scratch) {
                    scratch = found;
                } else {
                    recipe.make_free(Extent { start: near, count: LITERAL_SCRATCH }, new_len);
                    literal += LITERAL_SCRATCH;
                    size = size.min(LITERAL_SCRATCH / 2);
                }
            }
        }
    }
}

fn cost(schedule: &Schedule, scratch: &[Extent]) -> u64 {
    schedule.saved_blocks + count_blocks(scratch) + schedule.levels.saturating_sub(1) * BARRIER_BLOCKS
}

/// The whole blocks of an image of `len` bytes.
fn whole_blocks(len: u64) -> u64 {
    len / BLOCK
}
