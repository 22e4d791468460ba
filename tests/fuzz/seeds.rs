//! What is mutated: the golden files, and small deltas between images of many kinds.

use crate::common::{BLOCK, Rng, block, gzip, lines, random, reorder, xz, zstd};
use blkpatch::diff::{DiffOptions, diff};
use blkpatch::monitor::Silent;
use std::path::Path;

/// A delta and its images.
pub struct Seed {
    pub delta: Vec<u8>,
    pub old: Vec<u8>,
    pub new: Vec<u8>,
}

/// All of them.
pub fn seeds() -> Vec<Seed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("testdata");
    let names = std::fs::read_dir(&folder).expect("testdata").map(|e| e.expect("an entry").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    let mut seeds: Vec<Seed> = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".delta")) {
        let stem = name.trim_end_matches(".delta");
        // The bad ones are damaged forms of the example.
        let stem = if names.contains(&format!("{stem}.old")) { stem } else { "good-example" };
        let (old, new) = (read(&format!("{stem}.old")), read(&format!("{stem}.new")));
        seeds.push(Seed { delta: read(name), old, new });
    }
    seeds.extend(pairs().into_iter().map(|(old, new)| Seed { delta: delta_of(&old, &new), old, new }));
    seeds
}

fn delta_of(old: &[u8], new: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("old"), old).expect("old");
    std::fs::write(path("new"), new).expect("new");
    let options = DiffOptions { threads: 1, ..DiffOptions::default() };
    diff(&path("old"), &path("new"), &path("delta"), &options, &Silent).expect("a delta");
    std::fs::read(path("delta")).expect("the delta")
}

fn pairs() -> Vec<(Vec<u8>, Vec<u8>)> {
    let old = random(1, 24 * BLOCK);
    // Swaps, so that there are saves; edits; zeros; a part from elsewhere at another offset.
    let mut busy =
        reorder(&old, &[1, 0, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11, 23, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 12]);
    busy[2 * BLOCK + 7] ^= 3;
    busy[block(7)].fill(0);
    busy[9 * BLOCK..10 * BLOCK].copy_from_slice(&old[14 * BLOCK + 99..15 * BLOCK + 99]);
    // As a program whose addresses moved: differences everywhere.
    let code: Vec<u8> = old.iter().enumerate().map(|(i, byte)| byte.wrapping_add((i % 40 == 0) as u8 * 16)).collect();
    let longer = [&busy[..], &random(2, 3 * BLOCK + 77)].concat();
    let shuffled = reorder(&old, &Rng::new(3).permutation(24));
    let text: Vec<u8> = (0..9000u32).flat_map(|i| i.to_string().into_bytes()).collect();
    let mut edited = text.clone();
    edited.splice(5000..5100, b"another text, of another length".iter().copied());
    let hollow = [&vec![0; 20 * BLOCK][..], &old[..4 * BLOCK]].concat();
    let filled = [&old[..4 * BLOCK], &vec![0; 20 * BLOCK][..]].concat();
    // Deflated data, blocks of zstd and chunks of LZMA2, which move and change.
    let packed = [&old[..BLOCK], &gzip(&lines(4, 3000, 0), 6), &old[..9]].concat();
    let repacked = [&old[..2 * BLOCK], &gzip(&lines(4, 3000, 1), 6)].concat();
    let frames = [&old[..BLOCK], &zstd(&lines(4, 3000, 0), 6), &old[..9]].concat();
    let other_frames = [&old[..2 * BLOCK], &zstd(&lines(4, 3000, 1), 6)].concat();
    let chunks = [&old[..BLOCK], &xz(&lines(4, 3000, 0), 6), &old[..9]].concat();
    let other_chunks = [&old[..2 * BLOCK], &xz(&lines(4, 3000, 1), 6)].concat();
    vec![
        (packed, repacked),
        (frames, other_frames),
        (chunks, other_chunks),
        (old.clone(), busy.clone()),
        (busy.clone(), old.clone()),
        (old.clone(), code),
        (old.clone(), longer.clone()),
        (longer, old.clone()),
        (old.clone(), shuffled),
        (text, edited),
        (hollow, filled),
        (Vec::new(), old[..5000].to_vec()),
        (old.clone(), Vec::new()),
        (old.clone(), old.clone()),
    ]
}
