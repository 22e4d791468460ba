//! Compressed files whose content differs between editions.

use super::rng::Rng;
use std::io::Write;

/// Text of `count` lines, as in a program's data: some repeat, all differ a little. Other `edition`s differ in few lines.
pub fn lines(seed: u64, count: usize, edition: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let line = |i: usize| {
        let (a, b) = (rng.below(400), rng.below(90_000));
        let changed = if i % 97 == 5 { edition } else { 0 };
        format!("entry {a} of the table: value {b}, state {changed}\n").into_bytes()
    };
    (0..count).flat_map(line).collect()
}

/// A gzip file.
pub fn gzip(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// A stream of xz.
pub fn xz(content: &[u8], preset: u32) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), preset);
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// A frame of zstd.
pub fn zstd(content: &[u8], level: i32) -> Vec<u8> {
    zstd::bulk::compress(content, level).expect("memory")
}
