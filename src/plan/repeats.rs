//! Blocks that the new image holds more than once, such as what a file system writes both to its journal and to its place:
//! the later one in the order becomes a copy of the earlier.
//!
//! The matcher describes each of them by old bytes, and perhaps by different ones. A copy of what an earlier batch has
//! produced is allowed anywhere: that is final, so that no barrier need stand between (R2), and nobody overwrites it.

use super::{BATCH_STEPS, SOURCE_BLOCKS};
use crate::delta::step::{Space, Step, StepKind};
use crate::delta::writer::NewBatch;
use crate::units::{BLOCK, Extent, blocks_touched, count_blocks, merge_extents};
use std::collections::HashMap;
use std::ops::Range;

/// Literal and differing bytes of a block from which on it may become a copy, which costs some ten bytes.
const WORTH: u32 = 48;
/// The same for all blocks that get a batch of their own, which costs some thirty bytes more.
const WORTH_A_BATCH: u32 = 256;
/// Blocks that get a batch of their own, at the most: each is a write of its own, which slow media mind.
const MOVED: usize = 8;
/// Blocks that are remembered, at the most: bounds the memory, to some 13 MiB. Where more is new, a few repeats hardly count.
const REMEMBERED: usize = 1 << 18;

/// A block that can be a copy of another one.
#[derive(Clone, Copy, Debug)]
struct Repeat {
    block: u64,
    src: u64,
    /// Literal and differing bytes that this spares.
    price: u32,
}

/// Makes later ones of equal blocks copies of the first, in batches that keep the rules, and still do.
#[must_use]
pub fn copy_repeats(batches: Vec<NewBatch>, old: &[u8], new: &[u8]) -> Vec<NewBatch> {
    let mut first: HashMap<u32, (usize, u64)> = HashMap::new();
    let mut done = Vec::with_capacity(batches.len());
    for (number, batch) in batches.into_iter().enumerate() {
        if batch.save || batch.zero {
            done.push(batch);
            continue;
        }
        let (mut before, mut within) = (Vec::new(), Vec::new());
        for (block, price) in prices(&batch, old, new) {
            let Some(bytes) = whole_block(new, block).filter(|_| price.is_none_or(|price| price >= WORTH)) else {
                continue;
            };
            let key = crc32fast::hash(bytes);
            match (first.get(&key), price) {
                (Some((owner, src)), Some(price)) if whole_block(new, *src) == Some(bytes) => {
                    let repeats = if *owner == number { &mut within } else { &mut before };
                    repeats.push(Repeat { block, src: *src, price });
                }
                (None, _) if first.len() < REMEMBERED => {
                    first.insert(key, (number, block));
                }
                _ => {}
            }
        }
        let batch = replaced(batch, &before);
        let worth = within.len() <= MOVED && within.iter().map(|repeat| repeat.price).sum::<u32>() >= WORTH_A_BATCH;
        match worth.then(|| split(&batch, &within)).flatten() {
            Some(parts) => done.extend(parts),
            None => done.push(batch),
        }
    }
    done
}

fn whole_block(image: &[u8], block: u64) -> Option<&[u8]> {
    let start = usize::try_from(block.checked_mul(BLOCK)?).ok()?;
    image.get(start..start.checked_add(BLOCK as usize)?)
}

/// For each block that a batch makes: the bytes that are literal, or other than their source; `None` where some of it is
/// deflated data, whose steps cannot be cut.
fn prices(batch: &NewBatch, old: &[u8], new: &[u8]) -> Vec<(u64, Option<u32>)> {
    let mut prices: Vec<(u64, Option<u32>)> =
        batch.extents.iter().flat_map(|extent| extent.start..extent.end()).map(|block| (block, Some(0))).collect();
    for step in batch.steps.iter().filter(|step| step.kind.makes()) {
        let end = step.dst + step.len;
        let blocks = blocks_touched(&(step.dst..end));
        let from = prices.partition_point(|(block, _)| *block < blocks.start);
        for (block, price) in prices[from..].iter_mut().take_while(|(block, _)| *block < blocks.end()) {
            let part = step.dst.max(*block * BLOCK)..end.min((*block + 1) * BLOCK);
            *price = price.zip(price_of(step, &part, old, new)).map(|(sum, more)| sum + more);
        }
    }
    prices
}

/// The bytes of `part` that a step has to be told; `None` where they are deflated data.
fn price_of(step: &Step, part: &Range<u64>, old: &[u8], new: &[u8]) -> Option<u32> {
    match step.kind {
        StepKind::Literal => Some((part.end - part.start) as u32),
        kind if kind.packs() => None,
        kind if kind.adds() => {
            let from = if kind.space() == Some(Space::New) { new } else { old };
            let src = step.src + (part.start - step.dst);
            let source = from.get(src as usize..(src + (part.end - part.start)) as usize)?;
            let made = new.get(part.start as usize..part.end as usize)?;
            Some(source.iter().zip(made).filter(|(a, b)| a != b).count() as u32)
        }
        _ => Some(0),
    }
}

/// A batch with repeats of earlier batches' blocks; as it was where that would break a limit.
fn replaced(batch: NewBatch, repeats: &[Repeat]) -> NewBatch {
    if repeats.is_empty() {
        return batch;
    }
    let steps = with_copies(&batch.steps, repeats);
    let fits = steps.len() <= BATCH_STEPS && source_blocks(&steps) <= SOURCE_BLOCKS;
    if fits { NewBatch { steps, ..batch } } else { batch }
}

/// Moves repeats of a batch's own blocks to a batch behind it: no batch reads what it writes itself (R1). Nobody between
/// the two barriers around a batch reads what another one writes there, so that a part of it may be written last. `None`
/// where that would break a limit.
fn split(batch: &NewBatch, repeats: &[Repeat]) -> Option<[NewBatch; 2]> {
    let copies = with_copies(&batch.steps, repeats);
    let moved = |at: u64| repeats.binary_search_by_key(&(at / BLOCK), |repeat| repeat.block).is_ok();
    let (mut behind, mut steps) = (Vec::new(), Vec::with_capacity(copies.len()));
    for step in copies {
        if step.kind == StepKind::CopyNew && moved(step.dst) { behind.push(step) } else { steps.push(step) }
    }
    let mut extents: Vec<Extent> = repeats.iter().map(|repeat| Extent { start: repeat.block, count: 1 }).collect();
    merge_extents(&mut extents);
    let kept = batch.extents.iter().flat_map(|extent| extent.start..extent.end()).filter(|block| !moved(block * BLOCK));
    let mut rest = kept.map(|start| Extent { start, count: 1 }).collect();
    merge_extents(&mut rest);
    let behind = NewBatch { extents, steps: behind, ..NewBatch::default() };
    (steps.len() <= BATCH_STEPS).then(|| [NewBatch { extents: rest, steps, ..batch.clone() }, behind])
}

/// Steps of which those blocks are copies. No step of deflated data lies in one of them.
fn with_copies(steps: &[Step], repeats: &[Repeat]) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::with_capacity(steps.len() + repeats.len());
    for step in steps {
        if !step.kind.makes() {
            out.push(*step);
            continue;
        }
        let (mut at, end) = (step.dst, step.dst + step.len);
        let first = repeats.partition_point(|repeat| (repeat.block + 1) * BLOCK <= at);
        for (i, repeat) in (first..).zip(&repeats[first..]).take_while(|(_, repeat)| repeat.block * BLOCK < end) {
            let block = repeat.block * BLOCK;
            out.extend(part(step, at..block.max(at)));
            if block >= step.dst {
                // Once, by the step that makes its first byte.
                push_copy(&mut out, repeat, i.checked_sub(1).and_then(|before| repeats.get(before)));
            }
            at = (block + BLOCK).min(end);
        }
        out.extend(part(step, at..end));
    }
    out
}

fn part(step: &Step, bytes: Range<u64>) -> Option<Step> {
    if bytes == (step.dst..step.dst + step.len) {
        return Some(*step);
    }
    let src = if step.kind.space().is_some() { step.src + (bytes.start - step.dst) } else { step.src };
    (bytes.start < bytes.end).then_some(Step { dst: bytes.start, len: bytes.end - bytes.start, src, ..*step })
}

/// Adds a copy, or lengthens that of the repeat `before`, which is then the last step.
fn push_copy(steps: &mut Vec<Step>, repeat: &Repeat, before: Option<&Repeat>) {
    let goes_on = before.is_some_and(|before| before.block + 1 == repeat.block && before.src + 1 == repeat.src);
    match steps.last_mut() {
        Some(last) if goes_on => last.len += BLOCK,
        _ => {
            let (dst, src) = (repeat.block * BLOCK, repeat.src * BLOCK);
            steps.push(Step { kind: StepKind::CopyNew, dst, len: BLOCK, src });
        }
    }
}

/// The blocks that steps read, in either image: at least as many as their batch will read.
fn source_blocks(steps: &[Step]) -> u64 {
    let blocks = |space| {
        let reading = steps.iter().filter(|step| step.kind.space() == Some(space));
        let mut blocks = reading.map(|step| blocks_touched(&(step.src..step.src + step.len))).collect();
        merge_extents(&mut blocks);
        count_blocks(&blocks)
    };
    blocks(Space::Old) + blocks(Space::New)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = BLOCK as usize;

    fn noise(seed: u32, len: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn extent(start: u64, count: u64) -> Extent {
        Extent { start, count }
    }

    fn literal(start: u64, blocks: u64) -> Step {
        Step { kind: StepKind::Literal, dst: start * BLOCK, len: blocks * BLOCK, src: 0 }
    }

    fn copy_new(dst: u64, src: u64, blocks: u64) -> Step {
        Step { kind: StepKind::CopyNew, dst: dst * BLOCK, len: blocks * BLOCK, src: src * BLOCK }
    }

    fn data(extents: Vec<Extent>, steps: Vec<Step>, barrier: bool) -> NewBatch {
        NewBatch { extents, steps, barrier, ..NewBatch::default() }
    }

    /// Blocks 0 and 1 stand again at 4 and 5, and block 2 at 7; 6 is of its own.
    fn image() -> Vec<u8> {
        let mut image = noise(1, 8 * SIZE);
        image.copy_within(..2 * SIZE, 4 * SIZE);
        image.copy_within(2 * SIZE..3 * SIZE, 7 * SIZE);
        image
    }

    #[test]
    fn what_an_earlier_batch_makes_is_copied() {
        let new = image();
        let batches = vec![
            data(vec![extent(0, 3)], vec![literal(0, 3)], false),
            data(vec![extent(4, 4)], vec![literal(4, 4)], true),
        ];
        let made = copy_repeats(batches.clone(), &[], &new);
        let steps = vec![copy_new(4, 0, 2), literal(6, 1), copy_new(7, 2, 1)];
        assert_eq!(made, [batches[0].clone(), NewBatch { steps, ..batches[1].clone() }]);
    }

    #[test]
    fn what_a_batch_makes_itself_is_copied_by_one_behind_it() {
        let new = image();
        let extents = vec![extent(0, 3), extent(4, 4)];
        let made = copy_repeats(vec![data(extents, vec![literal(0, 3), literal(4, 4)], true)], &[], &new);
        let first = data(vec![extent(0, 3), extent(6, 1)], vec![literal(0, 3), literal(6, 1)], true);
        let steps = vec![copy_new(4, 0, 2), copy_new(7, 2, 1)];
        assert_eq!(made, [first, data(vec![extent(4, 2), extent(7, 1)], steps, false)]);
    }

    #[test]
    fn copies_of_both_kinds_side_by_side_stay_apart() {
        // 0 and 1 stand again at 4 and 5, of which 0 is made by another batch, and 1 by the same one.
        let new = image();
        let batches = vec![
            data(vec![extent(0, 1)], vec![literal(0, 1)], false),
            data(vec![extent(1, 1), extent(4, 2)], vec![literal(1, 1), literal(4, 2)], false),
        ];
        let made = copy_repeats(batches.clone(), &[], &new);
        let second = data(vec![extent(1, 1), extent(4, 1)], vec![literal(1, 1), copy_new(4, 0, 1)], false);
        assert_eq!(made, [batches[0].clone(), second, data(vec![extent(5, 1)], vec![copy_new(5, 1, 1)], false)]);
    }

    #[test]
    fn many_blocks_are_not_moved_and_no_limit_is_broken() {
        // Nine blocks that stand twice, side by side; then one, beside as many steps as a batch may have.
        let each = noise(3, 9 * SIZE);
        let twice: Vec<u8> = each.chunks(SIZE).flat_map(|block| block.repeat(2)).collect();
        let batches = vec![data(vec![extent(0, 18)], vec![literal(0, 18)], false)];
        assert_eq!(copy_repeats(batches.clone(), &[], &twice), batches);
        let mut new = noise(4, 5 * SIZE);
        new.copy_within(..SIZE, 3 * SIZE);
        let byte = |i| Step { dst: BLOCK + i, len: 1, ..literal(1, 1) };
        let single = BATCH_STEPS as u64 - 3;
        let rest = Step { dst: BLOCK + single, len: BLOCK - single, ..literal(1, 1) };
        let steps: Vec<Step> =
            [literal(0, 1)].into_iter().chain((0..single).map(byte)).chain([rest, literal(2, 3)]).collect();
        let batches = vec![data(vec![extent(0, 5)], steps, false)];
        assert_eq!(batches[0].steps.len(), BATCH_STEPS);
        assert_eq!(copy_repeats(batches.clone(), &[], &new), batches);
    }

    #[test]
    fn what_is_made_of_deflated_data_is_copied_but_stays() {
        let new = image();
        let deflate = |start: u64, blocks| Step { kind: StepKind::Deflate, ..literal(start, blocks) };
        let first = data(vec![extent(0, 3)], vec![deflate(0, 3)], false);
        let second = |steps| data(vec![extent(4, 4)], steps, false);
        let made = copy_repeats(vec![first.clone(), second(vec![literal(4, 4)])], &[], &new);
        assert_eq!(made[1].steps, [copy_new(4, 0, 2), literal(6, 1), copy_new(7, 2, 1)]);
        let both = vec![first, second(vec![deflate(4, 4)])];
        assert_eq!(copy_repeats(both.clone(), &[], &new), both);
    }

    #[test]
    fn what_costs_little_stays() {
        let new = image();
        let mut old = new.clone();
        old.truncate(7 * SIZE);
        old[5 * SIZE..][..47].iter_mut().for_each(|byte| *byte ^= 1);
        let add = |start: u64, blocks| Step { kind: StepKind::Add, src: start * BLOCK, ..literal(start, blocks) };
        let batches = vec![
            data(vec![extent(0, 3)], vec![literal(0, 3)], false),
            data(vec![extent(4, 3)], vec![add(4, 3)], false),
        ];
        assert_eq!(copy_repeats(batches.clone(), &old, &new), batches);
        // One byte more, and it does not.
        old[5 * SIZE + 47] ^= 1;
        let steps = vec![add(4, 1), copy_new(5, 1, 1), add(6, 1)];
        assert_eq!(copy_repeats(batches.clone(), &old, &new)[1], NewBatch { steps, ..batches[1].clone() });
    }

    #[test]
    fn a_batch_reads_no_more_than_it_may() {
        // Both read as much as they may from the old image, and repeats elsewhere would be more.
        let count = SOURCE_BLOCKS;
        let mut new = noise(2, SIZE);
        new.resize(count as usize * SIZE, 0);
        new.extend_from_within(..SIZE);
        let old = vec![0; (count as usize + 1) * SIZE];
        let batch = |steps| data(vec![extent(1, count)], steps, false);
        let first = data(vec![extent(0, 1)], vec![literal(0, 1)], false);
        let zeros = Step { kind: StepKind::Copy, dst: BLOCK, len: (count - 1) * BLOCK, src: 0 };
        let steps = vec![zeros, literal(count, 1)];
        let made = copy_repeats(vec![first.clone(), batch(steps)], &old, &new);
        assert_eq!(made[1].steps, [zeros, copy_new(count, 0, 1)]);
        let more = Step { kind: StepKind::Copy, dst: BLOCK, len: (count - 1) * BLOCK, src: 1 };
        let steps = vec![more, literal(count, 1)];
        assert_eq!(copy_repeats(vec![first, batch(steps.clone())], &old, &new)[1].steps, steps);
    }
}
