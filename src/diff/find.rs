//! Finds what changed, and plans the batches that make it.

use super::DiffOptions;
use crate::compare::{Comparison, View};
use crate::delta::writer::NewBatch;
use crate::matcher;
use crate::monitor::Monitor;
use crate::plan::{self, Images, Recipe, copy_repeats, volatile_blocks};
use crate::recode::{Recodings, recode};
use crate::units::{BLOCK, Extent, merge_extents};
use std::ops::Range;
use std::path::Path;

/// Batches, and what the deflated data in them are made of.
pub(super) struct Found<'a> {
    pub batches: Vec<NewBatch>,
    pub recoding: Option<Recodings<'a>>,
}

/// Matches and plans.
pub(super) fn find_batches<'a>(
    old: View<'a>,
    new: View<'a>,
    comparison: &Comparison,
    spool_dir: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
) -> std::io::Result<Found<'a>> {
    let changed: Vec<Range<u64>> = comparison.changed.iter().map(|e| e.bytes(new.len())).collect();
    monitor.phase("matching", changed.iter().map(|r| r.end - r.start).sum());
    let DiffOptions { memory, threads, level, .. } = *options;
    let matching = matcher::Options { memory, threads, level, revise: true };
    // Not the holes that the file system tells: they may change while nobody writes.
    let old_data: Vec<Range<u64>> = bridged(&comparison.old_data).map(|e| e.bytes(old.len())).collect();
    let done = |bytes| monitor.advance(bytes);
    let mut runs = matcher::find_runs_telling(old.bytes, &old_data, new.bytes, &changed, &matching, &done);
    monitor.phase("matching compressed data", 0);
    let recoded = recode(old, new, &runs, &matching, spool_dir)?;
    let recoding = recoded.map(|(recoding, recoded)| {
        runs = recoded;
        recoding
    });
    monitor.phase("planning", 0);
    let recipe = Recipe::new(runs);
    let recipe = match &recoding {
        Some(recoding) => recipe.recoding(recoding),
        None => recipe,
    };
    let batches = plan_recipe(recipe, old.bytes, old.len(), new, comparison);
    Ok(Found { batches, recoding })
}

/// Plans a recipe that copies from `old`, of which zeros up to `zeros_to` may serve as scratch where they stay as they are.
pub(super) fn plan_recipe(
    mut recipe: Recipe<'_>,
    old: &[u8],
    zeros_to: u64,
    new: View<'_>,
    comparison: &Comparison,
) -> Vec<NewBatch> {
    recipe.avoid_sources(&volatile_blocks(old, &recipe.source_blocks()));
    let cheap: Vec<Extent> = recipe
        .self_references()
        .into_iter()
        .filter(|block| is_cheap_literal(block_bytes(new.bytes, *block)))
        .map(|start| Extent { start, count: 1 })
        .collect();
    recipe.make_literal(&merged(cheap));
    let zeros = |wanted| zero_blocks(new, zeros_to.min(new.len()), &comparison.changed, wanted);
    let same = |a: u64, b: u64, len: u64| {
        let there = old.get(a as usize..(a + len) as usize);
        there.is_some() && there == new.bytes.get(b as usize..(b + len) as usize)
    };
    let images = Images { old_len: old.len() as u64, new_len: new.len(), same: &same };
    copy_repeats(plan::plan(&recipe, &images, zeros).batches, old, new.bytes)
}

/// Extents with short gaps between them closed: matches may run across a few zero blocks.
fn bridged(extents: &[Extent]) -> impl Iterator<Item = Extent> + '_ {
    const GAP: u64 = 16;
    let mut rest = extents.iter().copied().peekable();
    std::iter::from_fn(move || {
        let mut extent = rest.next()?;
        while let Some(next) = rest.next_if(|next| next.start - extent.end() <= GAP) {
            extent.count = next.end() - extent.start;
        }
        Some(extent)
    })
}

fn merged(mut extents: Vec<Extent>) -> Vec<Extent> {
    merge_extents(&mut extents);
    extents
}

fn block_bytes(image: &[u8], block: u64) -> &[u8] {
    let start = ((block * BLOCK) as usize).min(image.len());
    &image[start..(start + BLOCK as usize).min(image.len())]
}

/// Whether a block costs next to nothing as a literal, as most of it are runs of one byte (a bitmap, for one), so that it need not go through scratch.
fn is_cheap_literal(block: &[u8]) -> bool {
    block.iter().zip(block.iter().skip(1)).filter(|(byte, next)| byte != next).count() <= 64
}

/// Unchanged whole blocks below `limit` that are zero in both images, up to `wanted`; holes first, as they cost no look.
fn zero_blocks(new: View<'_>, limit: u64, changed: &[Extent], wanted: u64) -> Vec<Extent> {
    let (mut found, mut left) = (Vec::new(), wanted);
    let mut at = 0;
    for extent in changed.iter().copied().chain([Extent { start: limit / BLOCK, count: 0 }]) {
        for block in at..extent.start.min(limit / BLOCK) {
            if left == 0 {
                break;
            }
            let bytes = block * BLOCK..(block + 1) * BLOCK;
            if new.is_hole(&bytes) || block_bytes(new.bytes, block).iter().all(|byte| *byte == 0) {
                found.push(Extent { start: block, count: 1 });
                left -= 1;
            }
        }
        at = at.max(extent.end());
    }
    merged(found)
}
