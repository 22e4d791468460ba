//! Orders of larger random changes keep the rules: the writer and the checker refuse any that does not.

#[path = "common/rng.rs"]
mod rng;

use blkpatch::compare::View;
use blkpatch::delta::Delta;
use blkpatch::delta::check::check_order;
use blkpatch::delta::step::StepKind;
use blkpatch::diff::{DiffOptions, diff_views};
use blkpatch::matcher::{Run, Source};
use blkpatch::monitor::Silent;
use blkpatch::plan::{Images, Recipe, plan};
use blkpatch::units::Extent;
use rng::Rng;
use std::sync::Arc;

const BLOCK: usize = 4096;

fn image(random: &mut Rng, blocks: usize) -> Vec<u8> {
    random.bytes(blocks * BLOCK)
}

/// Returns how many steps read the new image.
fn check(old: &[u8], new: &[u8], what: &str) -> u64 {
    let (a, b) = ([0..old.len() as u64], [0..new.len() as u64]);
    let options = DiffOptions { level: 1, threads: 2, memory: 16 << 20, ..DiffOptions::default() };
    let (old, new) = (View { bytes: old, data: &a }, View { bytes: new, data: &b });
    let mut bytes = Vec::new();
    diff_views(old, new, &std::env::temp_dir(), &options, &Silent, &mut bytes)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let delta = Delta::open(Arc::new(bytes), u64::MAX).unwrap_or_else(|e| panic!("{what}: {e}"));
    let order = check_order(&delta).unwrap_or_else(|e| panic!("{what}: {e}"));
    order.steps[StepKind::CopyNew as usize] + order.steps[StepKind::AddNew as usize]
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

/// Barriers and blocks of scratch of an order for `blocks` blocks that all move up by `shift` bytes, with so many blocks
/// zero behind them, and 20 new ones that stand apart.
fn moved_up(blocks: u64, shift: u64, zeros: u64) -> (usize, u64) {
    let len = blocks * BLOCK as u64;
    let mut runs = vec![
        Run { dst: 0, len: shift, source: Source::Literal },
        Run { dst: shift, len: len - shift, source: Source::Copy { src: 0 } },
    ];
    let apart = |i: u64| Run { dst: len + (2 * i + 1) * BLOCK as u64, len: BLOCK as u64, source: Source::Literal };
    runs.extend((0..20).map(apart));
    let start = blocks + 50;
    let new_len = (start + zeros) * BLOCK as u64;
    let images = Images { old_len: new_len, new_len, same: &|_, _, _| true };
    let plan = plan(&Recipe::new(runs), &images, |wanted| vec![Extent { start, count: wanted.min(zeros) }]);
    let saves = plan.batches.iter().filter(|batch| batch.save).flat_map(|batch| &batch.extents);
    (plan.batches.iter().filter(|batch| batch.barrier).count(), saves.map(|extent| extent.count).sum())
}

/// What moves a little way waits for its neighbours, all along. A few blocks of scratch cut that short; without cuts
/// there is a barrier for every 20 blocks here, or nearly everything is saved.
#[test]
fn a_long_chain_is_cut_with_the_little_scratch_there_is() {
    for shift in [20 * BLOCK as u64, 20 * BLOCK as u64 + 1234] {
        let (barriers, saved) = moved_up(16_384, shift, 200);
        assert!(barriers <= 200 && saved <= 600, "shift {shift}: {barriers} barriers, {saved} blocks saved");
    }
}

/// Runs as of an image into which a few bytes were inserted in every MiB, and 20,000 bytes written that stand elsewhere,
/// too: nothing is where it was, everything is needed, and no block is free.
fn grown(random: &mut Rng, len: u64) -> Vec<Run> {
    const PART: usize = 1 << 20;
    let (mut runs, mut dst, mut src) = (Vec::new(), 0, 0);
    let mut push = |len_of: u64, source: Source| {
        let left: u64 = len - dst;
        if left > 0 {
            runs.push(Run { dst, len: len_of.min(left), source });
            dst += len_of.min(left);
        }
    };
    while src < len {
        let spot = 1 + random.below(PART / 2) as u64;
        push(3 + random.below(297) as u64, Source::Literal);
        push(spot, Source::Add { src });
        push(20_000, Source::Copy { src: random.below(len as usize - 20_000) as u64 });
        let behind = src + spot + 20_000;
        src += PART as u64;
        push(src - behind, Source::Add { src: behind });
    }
    runs
}

/// Without detours each stretch of 20,000 bytes must be kept from the time when it is overwritten to that when it is
/// read, and there is nowhere to keep it: very many batches, then, of a block or two.
#[test]
fn where_all_is_moved_and_no_block_is_free_the_order_stays_short() {
    let len = 256 << 20;
    let images = Images { old_len: len, new_len: len, same: &|_, _, _| true };
    let batches = plan(&Recipe::new(grown(&mut Rng::new(3), len)), &images, |_| Vec::new()).batches;
    let steps = || batches.iter().flat_map(|batch| &batch.steps);
    let made = |kind: StepKind| steps().filter(|step| step.kind == kind).map(|step| step.len).sum::<u64>();
    let said = format!("{} batches, {} bytes literal", batches.len(), made(StepKind::Literal));
    assert!(batches.len() <= 10_000 && made(StepKind::Literal) <= 4 << 20, "{said}");
    assert!(made(StepKind::CopyNew) + made(StepKind::AddNew) > 0, "{said}");
}

/// The same with bytes: all the rules are kept.
#[test]
fn growth_keeps_the_rules() {
    let mut random = Rng::new(4);
    let old = image(&mut random, 3000);
    let mut new = Vec::new();
    for part in old.chunks(100 * BLOCK) {
        let count = 3 + random.below(297);
        new.extend(random.bytes(count));
        let elsewhere = random.below(old.len() - 20_000);
        let spot = random.below(60 * BLOCK);
        new.extend(&part[..spot]);
        new.extend(&old[elsewhere..elsewhere + 20_000]);
        new.extend(&part[spot + 20_000..]);
    }
    let reads_new = check(&old, &new[..old.len()], "moved up");
    assert!(reads_new > 0, "no step reads the new image");
    check(&new[..old.len()], &old, "moved down");
}

/// The more there is to save at a cut, the fewer cuts pay; and scratch that happens to be free must not keep a cut from
/// getting the zeros that it needs.
#[test]
fn a_long_chain_is_cut_no_oftener_than_pays() {
    for shift in [16, 1024] {
        let (barriers, saved) = moved_up(65_536, shift * BLOCK as u64, 65_536);
        assert!(barriers <= 100 && saved <= 6_000, "{shift} blocks: {barriers} barriers, {saved} blocks saved");
    }
}
