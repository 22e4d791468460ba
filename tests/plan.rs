//! Orders of larger random changes keep the rules: the writer and the checker refuse any that does not.

#[path = "common/rng.rs"]
mod rng;

use blkpatch::compare::View;
use blkpatch::delta::Delta;
use blkpatch::delta::check::check_order;
use blkpatch::diff::{DiffOptions, diff_views};
use blkpatch::matcher::{Run, Source};
use blkpatch::monitor::Silent;
use blkpatch::plan::{Recipe, plan};
use blkpatch::units::Extent;
use rng::Rng;
use std::sync::Arc;

const BLOCK: usize = 4096;

fn image(random: &mut Rng, blocks: usize) -> Vec<u8> {
    random.bytes(blocks * BLOCK)
}

fn check(old: &[u8], new: &[u8], what: &str) {
    let (a, b) = ([0..old.len() as u64], [0..new.len() as u64]);
    let options = DiffOptions { level: 1, threads: 2, memory: 16 << 20, ..DiffOptions::default() };
    let (old, new) = (View { bytes: old, data: &a }, View { bytes: new, data: &b });
    let mut bytes = Vec::new();
    diff_views(old, new, &std::env::temp_dir(), &options, &Silent, &mut bytes)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let delta = Delta::open(Arc::new(bytes), u64::MAX).unwrap_or_else(|e| panic!("{what}: {e}"));
    check_order(&delta).unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// Moves stretches of random length around: everything moves, cycles of every kind arise.
fn shuffled(random: &mut Rng, old: &[u8], longest: usize) -> Vec<u8> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < old.len() {
        let len = ((1 + random.below(longest)) * BLOCK).min(old.len() - at);
        pieces.push(&old[at..at + len]);
        at += len;
    }
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, random.below(i + 1));
    }
    pieces.concat()
}

#[test]
fn permutations_keep_the_rules() {
    let mut random = Rng::new(1);
    for blocks in [100, 700, 2500] {
        for longest in [1, 5, 60] {
            let old = image(&mut random, blocks);
            check(
                &old,
                &shuffled(&mut random, &old, longest),
                &format!("{blocks} blocks in stretches up to {longest}"),
            );
        }
    }
}

#[test]
fn permutations_beside_literals_and_zeros_keep_the_rules() {
    let mut random = Rng::new(2);
    for round in 0..8 {
        let mut old = image(&mut random, 1500);
        for _ in 0..6 {
            let at = random.below(1400) * BLOCK;
            old[at..at + (1 + random.below(90)) * BLOCK].fill(0);
        }
        let mut new = shuffled(&mut random, &old, 1 + round * 20);
        for _ in 0..6 {
            let at = random.below(1400) * BLOCK;
            let fresh = image(&mut random, 1 + round * 10);
            new[at..at + fresh.len()].copy_from_slice(&fresh);
        }
        if round % 2 == 0 {
            new.rotate_right(1000 * round + 7);
        }
        check(&old, &new, &format!("round {round}"));
    }
}

/// What moves a little way waits for its neighbours, all along. A few blocks of scratch cut that short.
#[test]
fn a_long_chain_is_cut_with_the_little_scratch_there_is() {
    const BLOCKS: u64 = 16_384;
    const ZEROS: u64 = 200;
    let len = BLOCKS * BLOCK as u64;
    for shift in [20 * BLOCK as u64, 20 * BLOCK as u64 + 1234] {
        let runs = vec![
            Run { dst: 0, len: shift, source: Source::Literal },
            Run { dst: shift, len: len - shift, source: Source::Copy { src: 0 } },
        ];
        let zeros = |wanted: u64| vec![Extent { start: BLOCKS, count: wanted.min(ZEROS) }];
        let new_len = len + ZEROS * BLOCK as u64;
        let plan = plan(&Recipe::new(runs), new_len, new_len, zeros);
        let barriers = plan.batches.iter().filter(|batch| batch.barrier).count();
        let saved: u64 =
            plan.batches.iter().filter(|batch| batch.save).flat_map(|batch| &batch.extents).map(|e| e.count).sum();
        // Without cuts there is a barrier for every 20 blocks, or nearly everything is saved.
        assert!(barriers <= 200 && saved <= 600, "shift {shift}: {barriers} barriers, {saved} blocks saved");
    }
}
