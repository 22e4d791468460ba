//! Small pairs that need every kind of scratch.

use super::deflated::{gzip, lines, xz, zstd};
use super::rng::Rng;

pub const BLOCK: usize = 4096;

pub struct Pair {
    pub name: String,
    pub old: Vec<u8>,
    pub new: Vec<u8>,
    /// Patched as a file (grows and shrinks) or as a device.
    pub resizable: bool,
}

/// `count` blocks drawn from `kinds` different contents; few kinds make blocks equal by chance.
fn blocks(random: &mut Rng, count: usize, kinds: usize) -> Vec<u8> {
    if kinds == 0 {
        return random.bytes(count * BLOCK);
    }
    (0..count).flat_map(|_| Rng::new(1 + random.below(kinds) as u64).bytes(BLOCK)).collect()
}

fn pair(name: &str, old: Vec<u8>, new: Vec<u8>, resizable: bool) -> Pair {
    Pair { name: name.into(), old, new, resizable }
}

pub fn swap_two_blocks() -> Pair {
    let old = blocks(&mut Rng::new(7), 4, 0);
    let mut new = old.clone();
    new[..2 * BLOCK].rotate_left(BLOCK);
    pair("swap of two blocks", old, new, false)
}

/// The kinds of change, with content that differs from round to round.
pub fn all(seed: u64, round: u64) -> Vec<Pair> {
    let random = &mut Rng::new(seed);
    let count = 6 + random.below(12);
    let kinds = [0, 0, 3, 6][(round % 4) as usize];
    let old = blocks(random, count, kinds);
    let resizable = random.below(2) == 0;
    let changed = |(name, new): (&str, Vec<u8>)| pair(name, old.clone(), new, resizable);
    let mut cases: Vec<Pair> = moves(random, &old, 1 + round as usize % 3).into_iter().map(changed).collect();
    cases.extend(self_references(random, &old).into_iter().map(changed));
    cases.extend(other_lengths(&old).into_iter().map(changed));
    cases.push(changed(("mixed", mixed(random, &old))));
    let special = special_old(random, &old).into_iter();
    cases.extend(special.map(|(name, old, new)| pair(name, old, new, resizable)));
    cases
}

/// A compressed file whose content changes, and which moves over itself.
fn recoded(name: &str, seed: u64, round: u64, pack: impl Fn(&[u8]) -> Vec<u8>) -> Pair {
    let random = &mut Rng::new(seed);
    let resizable = random.below(2) == 0;
    let (seed, before) = (round % 5, [random.below(2000), random.below(9000)]);
    let [old, new] = [0, 1].map(|edition: usize| {
        let mut image = [Rng::new(5).bytes(before[edition]), pack(&lines(seed, 900, edition as u64))].concat();
        image.resize(14 * BLOCK, 0);
        image
    });
    pair(name, old, new, resizable)
}

/// A gzip file, frames of zstd, and a stream of xz.
pub fn compressed(seed: u64, round: u64) -> [Pair; 3] {
    let frames = |content: &[u8]| content.chunks(16 << 10).flat_map(|part| zstd(part, 9)).collect();
    [
        recoded("deflated", seed, round, |content| gzip(content, 6)),
        recoded("zstd's blocks", seed, round, frames),
        recoded("LZMA2's chunks", seed, round, |content| xz(content, 6)),
    ]
}

type Changed = Vec<(&'static str, Vec<u8>)>;

/// Everything goes somewhere else.
fn moves(random: &mut Rng, old: &[u8], by: usize) -> Changed {
    let count = old.len() / BLOCK;
    let rotated = |bytes: usize| {
        let mut new = old.to_vec();
        new.rotate_left(bytes);
        new
    };
    let mut permuted = Vec::new();
    random.permutation(count).iter().for_each(|block| permuted.extend(&old[block * BLOCK..(block + 1) * BLOCK]));
    let mut shifted = old.to_vec();
    shifted[..BLOCK / 2 * count].rotate_right(700);
    shifted[(count - 2) * BLOCK..].copy_from_slice(&random.bytes(2 * BLOCK));
    let mut moved_up = old.to_vec();
    moved_up.rotate_right(BLOCK + 100);
    let (to, from) = (random.below(count / 2), count / 2 + random.below(count / 2));
    moved_up[to * BLOCK..(to + 1) * BLOCK].copy_from_slice(&old[from * BLOCK..(from + 1) * BLOCK]);
    vec![
        ("moved up, and one block twice", moved_up),
        ("rotation by blocks", rotated(BLOCK * by)),
        ("rotation by one byte, no free block", rotated(old.len() - 1)),
        ("halves swapped", rotated(count / 2 * BLOCK)),
        ("permutation", permuted),
        ("shift beside literals", shifted),
    ]
}

/// Blocks that are made from themselves.
fn self_references(random: &mut Rng, old: &[u8]) -> Changed {
    let count = old.len() / BLOCK;
    let all = turned(old, BLOCK);
    let mut scarce = all.clone();
    scarce[(count - 1) * BLOCK..].copy_from_slice(&random.bytes(BLOCK));
    let mut plenty = random.bytes(old.len());
    for (block, old) in plenty.chunks_mut(BLOCK).zip(old.chunks(BLOCK)).take(count / 2) {
        let used = BLOCK - random.below(2) * 1500;
        block[..used].copy_from_slice(&turned(&old[..used], used));
    }
    vec![
        ("self-references, no free block", all),
        ("self-references, one free block", scarce),
        ("self-references, half of the blocks free", plenty),
    ]
}

/// The first `part` bytes of each block, rotated within the block.
fn turned(old: &[u8], part: usize) -> Vec<u8> {
    let mut new = old.to_vec();
    new.chunks_mut(BLOCK).for_each(|block| block[..part].rotate_left(100));
    new
}

fn other_lengths(old: &[u8]) -> Changed {
    let mut shorter = old.to_vec();
    shorter.rotate_left(3 * BLOCK);
    shorter.truncate(old.len() - BLOCK - 1234);
    let mut longer = old.to_vec();
    longer.rotate_right(2 * BLOCK + 17);
    longer.extend(&old[..BLOCK + 4000]);
    longer.extend(vec![0; 5000]);
    vec![("shorter", shorter), ("longer", longer)]
}

/// Changes for which the old image must be a special one, too.
fn special_old(random: &mut Rng, old: &[u8]) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let mut zeroed = old.to_vec();
    zeroed[2 * BLOCK..4 * BLOCK].fill(0);
    let mut beside = zeroed.clone();
    beside[4 * BLOCK..].rotate_left(BLOCK + 1);
    beside[..BLOCK].fill(0);
    let mut blank = old.to_vec();
    blank[2 * BLOCK..3 * BLOCK].fill(0);
    let around = turned(&blank, BLOCK);
    let short = old[..old.len() - 700].to_vec(); // its last block is saved in part
    let mut longer = turned(old, BLOCK - 700);
    longer.extend(random.bytes(2 * BLOCK));
    vec![
        ("beside zeros", zeroed, beside),
        ("self-references beside one zero block", blank, around),
        ("self-references, longer, the last old block short", short, longer),
    ]
}

/// Random edits, moves and swaps.
fn mixed(random: &mut Rng, old: &[u8]) -> Vec<u8> {
    let count = old.len() / BLOCK;
    let mut new = old.to_vec();
    for _ in 0..1 + random.below(6) {
        let (a, b) = (random.below(count), random.below(count));
        match random.below(4) {
            0 => new[a * BLOCK..(a + 1) * BLOCK].copy_from_slice(&old[b * BLOCK..(b + 1) * BLOCK]),
            1 => new[a * BLOCK + 10..a * BLOCK + 20].fill(b as u8),
            2 => new[a.min(b) * BLOCK..(a.max(b) + 1) * BLOCK].rotate_left(1 + random.below(BLOCK)),
            _ => new[a * BLOCK..(a + 1) * BLOCK].fill(0),
        }
    }
    new
}
