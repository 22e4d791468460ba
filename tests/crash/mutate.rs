//! Planned orders over random pairs, and small changes to them that may break a rule.

use super::orders::Order;
use super::pairs::{self, Pair};
use super::rng::Rng;
use blkpatch::delta::step::{Step, StepKind};
use blkpatch::delta::writer::NewBatch;
use blkpatch::units::{BLOCK, Extent, merge_extents};
use std::collections::BTreeMap;

/// The steps of a data batch, block by block.
type Blocks = BTreeMap<u64, Vec<Step>>;

/// The planner's order for a random pair, its batches cut into smaller ones, which breaks nothing: the planner puts all
/// that it can into one.
pub fn planned(random: &mut Rng) -> Order {
    loop {
        let pairs: Vec<Pair> = pairs::all(random.next(), random.next() % 4);
        let pair = &pairs[random.below(pairs.len())];
        let mut order = Order::planned(&pair.old, &pair.new);
        order.batches = order.batches.iter().flat_map(|batch| split(batch, random)).collect();
        if !order.batches.is_empty() {
            return order;
        }
    }
}

fn is_data(batch: &NewBatch) -> bool {
    !batch.save && !batch.zero
}

fn split(batch: &NewBatch, random: &mut Rng) -> Vec<NewBatch> {
    let mut blocks = blocks_of(batch);
    if !is_data(batch) || blocks.len() < 2 {
        return vec![batch.clone()];
    }
    let middle = *blocks.keys().nth(1 + random.below(blocks.len() - 1)).expect("a block");
    let tail = blocks.split_off(&middle);
    let mut parts = split(&data(blocks, batch.barrier), random);
    parts.push(data(tail, false));
    parts
}

fn blocks_of(batch: &NewBatch) -> Blocks {
    let mut blocks = Blocks::new();
    for step in &batch.steps {
        let end = step.dst + step.len;
        let mut at = step.dst;
        while at < end {
            let next = end.min((at / BLOCK + 1) * BLOCK);
            let src = if step.kind.space().is_some() { step.src + (at - step.dst) } else { 0 };
            blocks.entry(at / BLOCK).or_default().push(Step { dst: at, len: next - at, src, kind: step.kind });
            at = next;
        }
    }
    blocks
}

fn data(blocks: Blocks, barrier: bool) -> NewBatch {
    let mut extents = blocks.keys().map(|start| Extent { start: *start, count: 1 }).collect();
    merge_extents(&mut extents);
    NewBatch { barrier, extents, steps: blocks.into_values().flatten().collect(), ..NewBatch::default() }
}

/// Drops a barrier, or moves it behind the batch that it stands before.
pub fn loosen(order: &mut Order, random: &mut Rng) {
    let places: Vec<usize> = (0..order.batches.len()).filter(|k| order.batches[*k].barrier).collect();
    let Some(k) = places.get(random.below(places.len())) else { return };
    order.batches[*k].barrier = false;
    if random.below(2) == 0
        && let Some(next) = order.batches.get_mut(k + 1)
    {
        next.barrier = true;
    }
}

/// Makes one of two neighbouring data batches.
pub fn merge(order: &mut Order, random: &mut Rng) {
    let batches = &mut order.batches;
    let places: Vec<usize> = (1..batches.len()).filter(|k| is_data(&batches[k - 1]) && is_data(&batches[*k])).collect();
    let Some(k) = places.get(random.below(places.len())) else { return };
    let mut blocks = blocks_of(&batches[k - 1]);
    blocks.extend(blocks_of(&batches[*k]));
    let barrier = batches[k - 1].barrier;
    batches.remove(*k);
    batches[k - 1] = data(blocks, barrier);
}

/// Lets an earlier batch write a block too: what it writes is final there, and yet not its last content.
pub fn write_early(order: &mut Order, random: &mut Rng) {
    let batches = &mut order.batches;
    let (a, b) = (random.below(batches.len()), random.below(batches.len()));
    let (early, late) = (a.min(b), a.max(b));
    if !is_data(&batches[early]) || batches[late].save {
        return;
    }
    let mut chosen = if batches[late].zero {
        let start = batches[late].extents[0].start;
        let (dst, end) = (start * BLOCK, order.new.len() as u64);
        Blocks::from([(start, vec![Step { kind: StepKind::Zero, dst, len: BLOCK.min(end - dst), src: 0 }])])
    } else {
        blocks_of(&batches[late])
    };
    let block = *chosen.keys().nth(random.below(chosen.len())).expect("a block");
    let mut blocks = blocks_of(&batches[early]);
    blocks.entry(block).or_insert_with(|| chosen.remove(&block).unwrap_or_default());
    batches[early] = data(blocks, batches[early].barrier);
}
