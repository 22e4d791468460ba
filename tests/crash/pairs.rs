//! Small pairs that need every kind of scratch.

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
    random.permutation(count).iter().for_each(|block| new.extend(&old[block * BLOCK..(block + 1) * BLOCK]));
    add("permutation", new);

    let mut new = old.clone();
    for block in new.chunks_mut(BLOCK) {
        block.rotate_left(100); // every block is made from itself
    }
    let mut scarce = new.clone();
    add("self-references", new);

    scarce[(count - 1) * BLOCK..].copy_from_slice(&random.bytes(BLOCK));
    add("self-references, one free block", scarce);

    let mut new = random.bytes(old.len()); // the second half is free
    for (block, old) in new.chunks_mut(BLOCK).zip(old.chunks(BLOCK)).take(count / 2) {
        let used = BLOCK - random.below(2) * 1500; // some blocks are used in part
        block[..used].copy_from_slice(&old[..used]);
        block[..used].rotate_left(100);
    }
    add("self-references, many free blocks", new);

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

    let mut blank = old.clone();
    blank[2 * BLOCK..3 * BLOCK].fill(0);
    let mut new = blank.clone();
    new.chunks_mut(BLOCK).for_each(|block| block.rotate_left(100));
    cases.push(pair("self-references beside one zero block", blank, new, resizable));

    let short = old[..old.len() - 700].to_vec(); // its last block is saved in part
    let mut new = old.clone();
    new.chunks_mut(BLOCK).for_each(|block| block[..BLOCK - 700].rotate_left(100));
    new.extend(random.bytes(2 * BLOCK));
    cases.push(pair("self-references, longer, a short last block", short, new, resizable));

    let new = mixed(random, &old, count);
    cases.push(pair("mixed", old, new, resizable));
    cases
}

/// Random edits, moves and swaps.
fn mixed(random: &mut Rng, old: &[u8], count: usize) -> Vec<u8> {
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
