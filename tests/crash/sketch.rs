//! The smallest orders in which a rule matters, drawn batch by batch.

use super::orders::Order;
use super::pairs::BLOCK;
use super::rng::Rng;
use blkpatch::delta::step::{Step, StepKind};
use blkpatch::delta::writer::NewBatch;
use blkpatch::units::{BLOCK as B, Extent, merge_extents};

/// What a block becomes.
#[derive(Clone, Copy, Debug)]
pub enum Make {
    /// Bytes from the delta: what is due there already, or fresh ones.
    Literal,
    /// Bytes from the delta: those of an old block.
    LikeOld(u64),
    /// The bytes of an old block, rotated, so that no block of the new image is like one of the old.
    From(u64),
}

/// An order in the making.
#[derive(Clone, Debug)]
pub struct Sketch {
    random: Rng,
    order: Order,
    made: Vec<u64>,
    barrier: bool,
}

/// By how much [`Make::From`] rotates.
const TURN: u64 = 100;

fn extents(blocks: impl Iterator<Item = u64>) -> Vec<Extent> {
    let mut extents = blocks.map(|start| Extent { start, count: 1 }).collect();
    merge_extents(&mut extents);
    extents
}

impl Sketch {
    /// Over `count` blocks of random content; those of `blank` are zero.
    pub fn new(random: &mut Rng, count: usize, blank: &[usize]) -> Self {
        let mut random = Rng::new(random.next());
        let mut old = random.bytes(count * BLOCK);
        blank.iter().for_each(|block| old[block * BLOCK..(block + 1) * BLOCK].fill(0));
        let order = Order { new: old.clone(), old, batches: Vec::new() };
        Self { random, order, made: Vec::new(), barrier: false }
    }

    /// A barrier before the next batch.
    pub fn barrier(mut self) -> Self {
        self.barrier = true;
        self
    }

    fn add(mut self, batch: NewBatch) -> Self {
        let barrier = std::mem::take(&mut self.barrier);
        self.order.batches.push(NewBatch { barrier, ..batch });
        self
    }

    /// Copies old blocks to scratch; both ascending.
    pub fn save(self, old: &[u64], scratch: &[u64]) -> Self {
        let saved = extents(old.iter().copied()).iter().map(|e| e.bytes(u64::MAX)).collect();
        self.add(NewBatch { save: true, saved, extents: extents(scratch.iter().copied()), ..NewBatch::default() })
    }

    /// Clears a block.
    pub fn zero(mut self, block: u64) -> Self {
        self.order.new[block as usize * BLOCK..][..BLOCK].fill(0);
        self.add(NewBatch { zero: true, extents: extents([block].into_iter()), ..NewBatch::default() })
    }

    /// Makes blocks, ascending.
    pub fn data(mut self, blocks: &[(u64, Make)]) -> Self {
        let steps = blocks.iter().flat_map(|(block, make)| self.make(*block, *make)).collect();
        self.add(NewBatch { steps, extents: extents(blocks.iter().map(|(block, _)| *block)), ..NewBatch::default() })
    }

    fn make(&mut self, block: u64, make: Make) -> Vec<Step> {
        let dst = block * B;
        let Order { old, new, .. } = &mut self.order;
        let target = &mut new[dst as usize..][..BLOCK];
        let literal = vec![Step { kind: StepKind::Literal, dst, len: B, src: 0 }];
        let is_made = self.made.contains(&block);
        self.made.push(block);
        match make {
            Make::Literal if is_made => literal,
            Make::Literal => {
                target.copy_from_slice(&self.random.bytes(BLOCK));
                literal
            }
            Make::LikeOld(source) => {
                target.copy_from_slice(&old[source as usize * BLOCK..][..BLOCK]);
                literal
            }
            Make::From(source) => {
                target.copy_from_slice(&old[source as usize * BLOCK..][..BLOCK]);
                target.rotate_left(TURN as usize);
                let (kind, src) = (StepKind::Copy, source * B);
                let head = Step { kind, dst, len: B - TURN, src: src + TURN };
                vec![head, Step { kind, dst: dst + head.len, len: TURN, src }]
            }
        }
    }

    pub fn order(self) -> Order {
        self.order
    }
}
