//! Orders of larger random changes keep the rules: the writer and the checker refuse any that does not.

use blkpatch::compare::View;
use blkpatch::delta::Delta;
use blkpatch::delta::check::check_order;
use blkpatch::diff::{DiffOptions, diff_views};
use blkpatch::monitor::Silent;
use std::sync::Arc;

/// A small deterministic generator (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}

const BLOCK: usize = 4096;

fn image(random: &mut Random, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK / 8).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect()
}

fn check(old: &[u8], new: &[u8], what: &str) {
    let (a, b) = ([0..old.len() as u64], [0..new.len() as u64]);
    let options = DiffOptions { level: 1, threads: 2, memory: 16 << 20 };
    let (old, new) = (View { bytes: old, data: &a }, View { bytes: new, data: &b });
    let mut bytes = Vec::new();
    diff_views(old, new, &std::env::temp_dir(), &options, &Silent, &mut bytes)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let delta = Delta::open(Arc::new(bytes), u64::MAX).unwrap_or_else(|e| panic!("{what}: {e}"));
    check_order(&delta).unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// Moves stretches of random length around: everything moves, cycles of every kind arise.
fn shuffled(random: &mut Random, old: &[u8], longest: u64) -> Vec<u8> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < old.len() {
        let len = ((1 + random.below(longest) as usize) * BLOCK).min(old.len() - at);
        pieces.push(&old[at..at + len]);
        at += len;
    }
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, random.below(i as u64 + 1) as usize);
    }
    pieces.concat()
}

#[test]
fn permutations_keep_the_rules() {
    let mut random = Random(1);
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
    let mut random = Random(2);
    for round in 0..8u64 {
        let mut old = image(&mut random, 1500);
        for _ in 0..6 {
            let at = random.below(1400) as usize * BLOCK;
            old[at..at + (1 + random.below(90) as usize) * BLOCK].fill(0);
        }
        let mut new = shuffled(&mut random, &old, 1 + round * 20);
        for _ in 0..6 {
            let at = random.below(1400) as usize * BLOCK;
            let fresh = image(&mut random, 1 + round as usize * 10);
            new[at..at + fresh.len()].copy_from_slice(&fresh);
        }
        if round % 2 == 0 {
            new.rotate_right(1000 * round as usize + 7);
        }
        check(&old, &new, &format!("round {round}"));
    }
}
