//! From runs to batches: an order in which the target can be patched in place and a restart needs nothing but the delta.
//!
//! [`recipe`] holds the runs and turns stretches of them into literals, [`free`] chooses those for scratch; [`pieces`] cuts what is written into pieces and
//! finds who reads what; [`order`] schedules the pieces, breaking cycles through scratch; [`cuts`] says where to cut long
//! chains of them; [`batches`] groups the schedule by levels; [`repeats`] then finds blocks that an earlier batch makes as
//! well. Pure: knows images only as bytes.

mod batches;
mod cuts;
mod elsewhere;
mod free;
mod order;
mod pieces;
mod recipe;
mod repeats;
mod volatile;

pub use recipe::{Recipe, Recode};
pub use repeats::copy_repeats;
pub use volatile::volatile_blocks;

use crate::delta::step::BATCH_TEXT;
use crate::delta::writer::NewBatch;
use crate::units::{BLOCK, Extent, count_blocks};
use cuts::Cut;
use elsewhere::{Elsewhere, Same};
use order::Schedule;
use std::cell::RefCell;

/// Largest number of blocks in a data or save batch: 1 MiB, what a slow stick writes in about the time of a sync.
pub const BATCH_BLOCKS: u64 = 256;
/// Largest number of source blocks of a batch: 1.5 MiB. The target holds three times as much in memory.
pub const SOURCE_BLOCKS: u64 = 384;
/// Largest number of steps of a batch.
pub const BATCH_STEPS: usize = 1 << 12;
/// Bytes of texts in a batch, as of [`BATCH_TEXT`]: where pieces lie side by side, the steps of both together are others
/// than those of each, and may take more.
const TEXT_BYTES: u64 = BATCH_TEXT / 2;

/// Sizes of pieces that are tried, in blocks: large ones overlap themselves more, small ones make longer chains. The
/// sizes from [`LAST_RESORT`] on need the least scratch, and are tried only where larger ones need literals.
const PIECE_BLOCKS: [u64; 5] = [256, 64, 16, 4, 1];
/// See [`PIECE_BLOCKS`].
const LAST_RESORT: u64 = 16;
/// An attempt that needs more literals for want of scratch than this is given up, unless pieces are single blocks.
const MOST_LITERAL: u64 = 16 * LITERAL_SCRATCH;
/// What a barrier costs on a slow stick, in blocks written: 50 ms at 8 MiB/s.
const BARRIER_BLOCKS: u64 = 100;
/// What a block costs that becomes a literal, in blocks written: the delta grows, on every device it is shipped to.
const LITERAL_BLOCKS: u64 = 400;
/// Smaller pieces are not tried where there would be more, if larger ones did: each takes some 300 bytes.
const MOST_PIECES: u64 = 1 << 18;
/// Blocks turned into literals where the target has no free block for scratch (delta grows by up to twice that).
const LITERAL_SCRATCH: u64 = 64;
/// To within so many it is found out how few are enough.
const LITERAL_STEP: u64 = 16;

/// An order and what it costs.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The batches, in order.
    pub batches: Vec<NewBatch>,
    /// Blocks that are zero in both images and serve as scratch, zeroed again at the end.
    pub zero_scratch: Vec<Extent>,
}

/// Plans the in-place application of a recipe. `zeros` yields, for a wanted number of blocks, extents of whole blocks that are zero in both images and outside what the recipe writes, fewer
/// where there are not so many; always the first ones. Blocks become literals where the target has nothing else for
/// scratch.
#[must_use]
pub fn plan(recipe: &Recipe, images: &Images<'_>, zeros: impl Fn(u64) -> Vec<Extent>) -> Plan {
    let mut best = None;
    let zeros = Zeros { find: zeros, known: RefCell::default() };
    let blocks = blocks_of(recipe, images.new_len);
    let mut smallest = u64::MAX;
    for size in PIECE_BLOCKS {
        if smallest <= size {
            continue; // scratch was so scarce that it has been tried
        }
        if smallest < u64::MAX && blocks / size > MOST_PIECES {
            break;
        }
        let Some((plenty, fewer)) = attempt(recipe.clone(), images, size, 0, &zeros) else { continue };
        let base = fewer.as_ref().unwrap_or(&plenty);
        smallest = base.size;
        let (free, literal) = (base.cost == 0, base.literal);
        let bought = worth_buying(base, &zeros).and_then(|count| {
            let mut recipe = recipe.clone();
            recipe.make_free(0, count, images.new_len);
            attempt(recipe, images, base.size, count, &zeros).map(|(plenty, fewer)| fewer.unwrap_or(plenty))
        });
        // With more scratch, chains can be cut in more places.
        for base in bought.into_iter().chain(fewer).chain([plenty]) {
            let used = count_blocks(&base.scratch);
            let more = |wanted| count_blocks(&zeros.first(used + wanted)).saturating_sub(used);
            let cuts = cuts::worth_trying(&base.pieces, &base.schedule, more).into_iter();
            cuts.filter_map(|cut| cut_chains(&base, images, cut, &zeros))
                .for_each(|attempt| consider(&mut best, attempt));
            consider(&mut best, base);
        }
        if free || (size <= LAST_RESORT && literal == 0) {
            break; // cannot be much better
        }
    }
    let Some(best) = best else { return Plan::default() };
    let batches = batches::group(&best.recipe, &best.pieces, &best.schedule, images.old_len, images.new_len);
    Plan { batches, zero_scratch: best.scratch }
}

/// Keeps the cheaper one.
fn consider<'a>(best: &mut Option<Attempt<'a>>, attempt: Attempt<'a>) {
    if best.as_ref().is_none_or(|best| attempt.cost < best.cost) {
        *best = Some(attempt);
    }
}

/// What a plan needs to know of the images.
#[derive(Clone, Copy)]
pub struct Images<'a> {
    /// Bytes of the old image.
    pub old_len: u64,
    /// Bytes of the new image.
    pub new_len: u64,
    /// Whether `len` old bytes from the first offset are the new ones from the second: (old, new, len).
    pub same: Same<'a>,
}

/// Blocks that are zero in both images; looked for once, as that may take a look at all of the image.
struct Zeros<F> {
    find: F,
    /// How many were looked for, and what was found.
    known: RefCell<(u64, Vec<Extent>)>,
}

impl<F: Fn(u64) -> Vec<Extent>> Zeros<F> {
    /// The first ones, up to `wanted` blocks.
    fn first(&self, wanted: u64) -> Vec<Extent> {
        let mut known = self.known.borrow_mut();
        if known.0 < wanted {
            let found = (self.find)(wanted);
            // Where there were fewer, these are all.
            *known = (if count_blocks(&found) < wanted { u64::MAX } else { wanted }, found);
        }
        let mut left = wanted;
        let mut take = |extent: &Extent| {
            let count = extent.count.min(left);
            left -= count;
            Extent { count, ..*extent }
        };
        known.1.iter().map(&mut take).take_while(|extent| extent.count > 0).collect()
    }
}

/// One way to order a recipe.
struct Attempt<'a> {
    recipe: Recipe<'a>,
    /// Blocks in a piece, at the most.
    size: u64,
    pieces: pieces::Pieces,
    schedule: Schedule,
    /// Whether readers may be led to where the new image has what they read.
    detours: bool,
    scratch: Vec<Extent>,
    /// Blocks turned into literals for want of scratch.
    literal: u64,
    /// What it costs, in blocks written.
    cost: u64,
}

/// The same pieces, with long chains of pieces that wait for each other cut by saving ahead.
fn cut_chains<'a>(
    base: &Attempt<'a>,
    images: &Images<'_>,
    (cut, blocks): (Cut, u64),
    zeros: &Zeros<impl Fn(u64) -> Vec<Extent>>,
) -> Option<Attempt<'a>> {
    let ahead = cut.pieces(&base.schedule);
    let elsewhere = if base.detours { Elsewhere::new } else { Elsewhere::nowhere }(&base.recipe, images);
    let (mut scratch, free) = (base.scratch.clone(), base.schedule.free_at_start);
    let more = count_blocks(&scratch) + blocks.saturating_sub(free);
    // With too little scratch only some of it would be saved ahead.
    let tries = [(blocks <= free).then_some(None), Some(Some(more)), (free > 0).then_some(Some(more + free))];
    for wanted in tries.into_iter().flatten() {
        if let Some(wanted) = wanted {
            scratch = zeros.first(wanted);
        }
        // Zero pieces change the numbering, so the pieces to cut at are found again by their place.
        let pieces = pieces::cut(&base.recipe, &scratch, images.new_len, base.size);
        let ahead: Vec<u32> = ahead.iter().filter_map(|piece| base.pieces.same_in(*piece, &pieces)).collect();
        if let Ok(schedule) = order::schedule(&pieces, &ahead, &elsewhere)
            && schedule.levels < base.schedule.levels
        {
            let used = order::used_scratch(&pieces, &schedule, &scratch);
            let cost = cost(&schedule, &scratch, base.literal);
            if used == scratch || wanted.is_some() {
                let (size, detours, literal) = (base.size, base.detours, base.literal);
                let recipe = base.recipe.clone();
                return Some(Attempt { recipe, size, pieces, schedule, detours, scratch, literal, cost });
            }
        }
    }
    None
}

/// How many blocks should become literals, to be scratch, although an order was found with less: with n times the scratch,
/// what moves a little way takes an n-th of the barriers. `None` where there is scratch that costs nothing, or enough.
fn worth_buying(base: &Attempt<'_>, zeros: &Zeros<impl Fn(u64) -> Vec<Extent>>) -> Option<u64> {
    let has = base.schedule.free_at_start.max(1);
    let best = (base.schedule.levels * has * BARRIER_BLOCKS / (2 * LITERAL_BLOCKS)).isqrt();
    let buy = best > 2 * has && count_blocks(&zeros.first(best)) < best;
    buy.then_some(best)
}

/// Tries with more and more scratch until there is enough, and then with fewer literals. `literal` blocks of the recipe are
/// literals for that already. What was found first, and what costs less, if there is such.
fn attempt<'a>(
    mut recipe: Recipe<'a>,
    images: &Images<'_>,
    mut size: u64,
    mut literal: u64,
    zeros: &Zeros<impl Fn(u64) -> Vec<Extent>>,
) -> Option<(Attempt<'a>, Option<Attempt<'a>>)> {
    let (mut scratch, mut wanted, mut last) = (Vec::new(), 0u64, None);
    let most = literal + MOST_LITERAL.max(blocks_of(&recipe, images.new_len) / 512);
    loop {
        let order::NeedScratch { blocks, near } = match order_with(&recipe, images, size, literal, scratch.clone()) {
            Ok(attempt) => {
                let fewer = last.and_then(|last| with_fewer_literals(&attempt, last, images));
                return Some((attempt, fewer));
            }
            Err(need) => need,
        };
        wanted = wanted.saturating_mul(2).max(blocks).max(4 * BATCH_BLOCKS);
        let found = zeros.first(wanted);
        if count_blocks(&found) > count_blocks(&scratch) {
            scratch = found;
            continue;
        }
        let count = literal.max(LITERAL_SCRATCH);
        let before = recipe.clone();
        recipe.make_free(near, count, images.new_len);
        last = Some(Bought { before, near, count });
        literal += count;
        if literal > most && size > 1 {
            return None;
        }
        size = size.min(LITERAL_SCRATCH / 2);
    }
}

/// Blocks that were turned into literals at last, and then there was enough scratch.
struct Bought<'a> {
    before: Recipe<'a>,
    near: u64,
    count: u64,
}

/// Halves the step in which literals were added at last, as long as that costs less.
fn with_fewer_literals<'a>(first: &Attempt<'a>, bought: Bought<'a>, images: &Images<'_>) -> Option<Attempt<'a>> {
    let Bought { before, near, count } = bought;
    let (mut best, mut enough, mut too_few) = (None, count, 0);
    while enough - too_few > LITERAL_STEP.max(enough / 8) {
        let tried = too_few + (enough - too_few) / 2;
        let mut recipe = before.clone();
        recipe.make_free(near, tried, images.new_len);
        let literal = first.literal - (count - tried);
        let least = best.as_ref().map_or(first.cost, |best: &Attempt<'_>| best.cost);
        match order_with(&recipe, images, first.size, literal, first.scratch.clone()) {
            Ok(attempt) if attempt.cost < least => (best, enough) = (Some(attempt), tried),
            // Less scratch takes more barriers.
            Ok(_) => break,
            Err(_) => too_few = tried,
        }
    }
    best
}

/// Orders a recipe of which `literal` blocks are literals for want of scratch.
fn order_with<'a>(
    recipe: &Recipe<'a>,
    images: &Images<'_>,
    size: u64,
    literal: u64,
    scratch: Vec<Extent>,
) -> Result<Attempt<'a>, order::NeedScratch> {
    let using = |scratch: Vec<Extent>| {
        let pieces = pieces::cut(recipe, &scratch, images.new_len, size);
        let mut schedule = order::schedule(&pieces, &[], &Elsewhere::new(recipe, images))?;
        // Where there is scratch enough, detours may cost barriers, and save little.
        let direct = (literal == 0 && !schedule.detours.is_empty())
            .then(|| order::schedule(&pieces, &[], &Elsewhere::nowhere(recipe, images)).ok())
            .flatten()
            .filter(|direct| cost(direct, &scratch, 0) < cost(&schedule, &scratch, 0));
        let detours = direct.is_none();
        schedule = direct.unwrap_or(schedule);
        let (recipe, cost) = (recipe.clone(), cost(&schedule, &scratch, literal));
        Ok(Attempt { recipe, size, pieces, schedule, detours, scratch, literal, cost })
    };
    let all: Attempt<'a> = using(scratch)?;
    let used = order::used_scratch(&all.pieces, &all.schedule, &all.scratch);
    if used == all.scratch {
        return Ok(all);
    }
    // Zero blocks that no save needed need not be written at all.
    Ok(using(used).unwrap_or(all))
}

fn cost(schedule: &Schedule, scratch: &[Extent], literal: u64) -> u64 {
    let barriers = schedule.levels.saturating_sub(1);
    schedule.saved_blocks + count_blocks(scratch) + barriers * BARRIER_BLOCKS + literal * LITERAL_BLOCKS
}

/// How many blocks a recipe writes.
fn blocks_of(recipe: &Recipe, new_len: u64) -> u64 {
    recipe.segments(new_len).iter().map(|(extent, _)| extent.count).sum()
}

/// The whole blocks of an image of `len` bytes.
fn whole_blocks(len: u64) -> u64 {
    len / BLOCK
}
