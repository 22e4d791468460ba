//! Small pairs that need every kind of scratch.

use super::disk::Random;

const BLOCK: usize = 4096;

pub struct Pair {
    pub name: String,
    pub old: Vec<u8>,
    pub new: Vec<u8>,
    /// Patched as a file (grows and shrinks) or as a device.
    pub resizable: bool,
}

/// `count` blocks drawn from `kinds` different contents; few kinds make blocks equal by chance.
fn blocks(random: &mut Random, count: usize, kinds: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(count * BLOCK);
    for _ in 0..count {
        let seed = if kinds == 0 { random.next() } else { 1 + random.below(kinds) };
        let mut content = Random(seed);
        for _ in 0..BLOCK / 8 {
            out.extend(content.next().to_le_bytes());
        }
    }
    out
}

fn pair(name: &str, old: Vec<u8>, new: Vec<u8>, resizable: bool) -> Pair {
    Pair { name: name.into(), old, new, resizable }
}

pub fn swap_two_blocks() -> Pair {
    let old = blocks(&mut Random(7), 4, 0);
    let mut new = old.clone();
    new[..2 * BLOCK].rotate_left(BLOCK);
    pair("swap of two blocks", old, new, false)
}

/// The kinds of change, with content that differs from round to round.
pub fn all(seed: u64, round: u64) -> Vec<Pair> {
    let random = &mut Random(seed);
    let count = 6 + random.below(12) as usize;
    let kinds = [0, 0, 3, 6][(round % 4) as usize];
    let old = blocks(random, count, kinds);
    let resizable = random.below(2) == 0;
    let mut cases = Vec::new();
    let mut add = |name: &str, new: Vec<u8>| cases.push(pair(name, old.clone(), new, resizable));

    let mut new = old.clone();
    new.rotate_left(BLOCK * (1 + round as usize % 3));
    add("rotation by blocks", new);

    let mut new = old.clone();
    new.rotate_right(1);
    add("rotation by one byte, no free block", new);

    let mut new = old.clone();
    new.rotate_left(count / 2 * BLOCK);
    add("halves swapped", new);

    let mut new = Vec::new();
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order.iter().for_each(|block| new.extend(&old[block * BLOCK..(block + 1) * BLOCK]));
    add("permutation", new);

    let mut new = old.clone();
    for block in new.chunks_mut(BLOCK) {
        block.rotate_left(100); // every block is made from itself
    }
    add("self-references", new);

    let mut new = old.clone();
    new[..BLOCK / 2 * count].rotate_right(700);
    let fresh = blocks(random, 2, 0);
    new[(count - 2) * BLOCK..].copy_from_slice(&fresh);
    add("shift beside literals", new);

    let mut new = old.clone();
    new.rotate_left(3 * BLOCK);
    new.truncate(count * BLOCK - BLOCK - 1234);
    add("shorter", new);

    let mut new = old.clone();
    new.rotate_right(2 * BLOCK + 17);
    new.extend(&old[..BLOCK + 4000]);
    new.extend(vec![0; 5000]);
    add("longer", new);

    let mut zeroed = old.clone();
    zeroed[2 * BLOCK..4 * BLOCK].fill(0);
    let mut new = zeroed.clone();
    new[4 * BLOCK..].rotate_left(BLOCK + 1);
    new[..BLOCK].fill(0);
    cases.push(pair("beside zeros", zeroed, new, resizable));

    let new = mixed(random, &old, count);
    cases.push(pair("mixed", old, new, resizable));
    cases
}

/// Random edits, moves and swaps.
fn mixed(random: &mut Random, old: &[u8], count: usize) -> Vec<u8> {
    let mut new = old.to_vec();
    for _ in 0..1 + random.below(6) {
        let (a, b) = (random.below(count as u64) as usize, random.below(count as u64) as usize);
        match random.below(4) {
            0 => new[a * BLOCK..(a + 1) * BLOCK].copy_from_slice(&old[b * BLOCK..(b + 1) * BLOCK]),
            1 => new[a * BLOCK + 10..a * BLOCK + 20].fill(b as u8),
            2 => new[a.min(b) * BLOCK..(a.max(b) + 1) * BLOCK].rotate_left(1 + random.below(BLOCK as u64) as usize),
            _ => new[a * BLOCK..(a + 1) * BLOCK].fill(0),
        }
    }
    new
}
