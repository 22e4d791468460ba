//! The hot loops one by one: `cargo bench --bench micro`. Not a test; a later change can see here what it costs.
//!
//! The images are made up, as much like programs as is needed: content moved by odd distances, addresses in it adjusted,
//! some of it new. Whole programs on real images: `benches/compare.py` and `benches/patch.py`.

use blkpatch::compare::{View, compare, identify};
use blkpatch::deflate::{Unpacker, pack};
use blkpatch::delta::Delta;
use blkpatch::delta::check::check_order;
use blkpatch::device::MemoryDevice;
use blkpatch::diff::{DiffOptions, diff_views};
use blkpatch::matcher::{self, find_runs};
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, patch_device};
use blkpatch::target::{Verify, survey};
use blkpatch::{lzma_chunk, varint, zstd_block};
use divan::Bencher;
use divan::counter::BytesCount;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

const MIB: usize = 1 << 20;

struct Pair {
    old: Vec<u8>,
    new: Vec<u8>,
    delta: Vec<u8>,
}

/// 16 MiB. Every 64 KiB of the old image move by a few blocks and bytes; an address in 24 bytes is adjusted; a tenth is new.
static PAIR: LazyLock<Pair> = LazyLock::new(|| {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // Few different values, as in programs, so that it compresses.
    let old: Vec<u8> = (0..16 * MIB).map(|i| if i % 3 == 0 { next() as u8 } else { (next() & 15) as u8 }).collect();
    let mut new = Vec::with_capacity(old.len());
    while new.len() < old.len() {
        let from = (new.len() + 40 * 4096 + next() as usize % 8192) % (old.len() - (64 << 10));
        let mut piece = old[from..from + (64 << 10)].to_vec();
        piece.iter_mut().skip(3).step_by(24).for_each(|byte| *byte = byte.wrapping_add(0x10));
        piece[..6 << 10].iter_mut().for_each(|byte| *byte = next() as u8);
        new.extend(piece);
    }
    new.truncate(old.len());
    let mut delta = Vec::new();
    let options = DiffOptions { level: 1, ..DiffOptions::default() };
    let whole = [0..old.len() as u64];
    let view = |bytes| View { bytes, data: &whole };
    diff_views(view(&old), view(&new), Path::new("/tmp"), &options, &Silent, &mut delta).expect("a delta");
    Pair { old, new, delta }
});

fn whole() -> [Range<u64>; 1] {
    [0..PAIR.old.len() as u64]
}

fn opened() -> Opened {
    let delta = Delta::open(Arc::new(PAIR.delta.clone()), u64::MAX).expect("a delta");
    let order = check_order(&delta).expect("an order");
    Opened { delta, order }
}

/// Both digests of an image, one thread.
#[divan::bench]
fn digests(bencher: Bencher) {
    let view = View { bytes: &PAIR.old, data: &whole() };
    bencher.counter(BytesCount::new(PAIR.old.len())).bench(|| identify(view, 1));
}

/// Comparing at equal offsets, with all digests, one thread: images that differ everywhere, or nowhere.
#[divan::bench(args = [false, true])]
fn comparison(bencher: Bencher, same: bool) {
    let old = View { bytes: &PAIR.old, data: &whole() };
    let new = if same { old } else { View { bytes: &PAIR.new, data: &whole() } };
    bencher.counter(BytesCount::new(2 * PAIR.old.len())).bench(|| compare(old, new, 1, &Silent));
}

/// Indexing the old image and matching the new one, one thread.
#[divan::bench(args = [1, 6, 9], sample_count = 10)]
fn matching(bencher: Bencher, level: u32) {
    let options = matcher::Options { memory: 512 << 20, threads: 1, level, revise: true };
    let counter = BytesCount::new(PAIR.new.len());
    bencher.counter(counter).bench(|| find_runs(&PAIR.old, &whole(), &PAIR.new, &whole(), &options));
}

/// Everything that `diff` does, one thread, fastest compression.
#[divan::bench(sample_count = 10)]
fn whole_diff(bencher: Bencher) {
    let options = DiffOptions { level: 1, threads: 1, ..DiffOptions::default() };
    let data = whole();
    let view = |bytes| View { bytes, data: &data };
    bencher.counter(BytesCount::new(PAIR.new.len())).bench(|| {
        let mut delta = Vec::new();
        diff_views(view(&PAIR.old), view(&PAIR.new), Path::new("/tmp"), &options, &Silent, &mut delta).map(|_| delta)
    });
}

/// Reading all of a delta and checking its order; bytes of the image that it makes.
#[divan::bench]
fn checking_a_delta(bencher: Bencher) {
    bencher.counter(BytesCount::new(PAIR.new.len())).bench(opened);
}

/// Reading a target in memory and telling its state.
#[divan::bench]
fn survey_of_a_target(bencher: Bencher) {
    let (opened, device) = (opened(), MemoryDevice::new(PAIR.old.clone(), false));
    let stop = AtomicBool::new(false);
    bencher
        .counter(BytesCount::new(PAIR.old.len()))
        .bench(|| survey(&device, &opened.delta, &opened.order, Verify::Full, &stop, &Silent));
}

/// All of `patch` on a target in memory.
#[divan::bench]
fn whole_patch(bencher: Bencher) {
    let (opened, stop) = (opened(), AtomicBool::new(false));
    bencher
        .counter(BytesCount::new(PAIR.new.len()))
        .with_inputs(|| MemoryDevice::new(PAIR.old.clone(), false))
        .bench_values(|device| {
            patch_device(&opened, Path::new("delta"), &device, &PatchOptions::default(), &stop, &Silent)
                .expect("it can be patched")
        });
}

/// A million small numbers.
#[divan::bench]
fn varints(bencher: Bencher) {
    let mut bytes = Vec::new();
    (0..1_000_000u64).for_each(|i| varint::put(&mut bytes, i % 300));
    bencher.counter(BytesCount::new(bytes.len())).bench(|| {
        let (mut rest, mut sum) = (&bytes[..], 0u64);
        while let Ok(Some((value, len))) = varint::get_from(rest) {
            (rest, sum) = (&rest[len..], sum.wrapping_add(value));
            if rest.is_empty() {
                break;
            }
        }
        sum
    });
}

/// Deflated data, and its text: words that repeat, and bytes that do not.
static DEFLATED: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let words = PAIR.old.chunks(4096).flat_map(|chunk| chunk[..usize::from(chunk[0]) + 1].repeat(2));
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(9));
    encoder.write_all(&words.collect::<Vec<u8>>()).expect("in memory");
    let bytes = encoder.finish().expect("in memory");
    let mut text = Vec::new();
    unpack(&bytes, &mut text);
    (bytes, text)
});

fn unpack(bytes: &[u8], text: &mut Vec<u8>) {
    let (mut unpacker, mut at) = (Unpacker::new(), 0);
    while let Ok((_, next)) = unpacker.run(bytes, at, (u64::MAX, usize::MAX), text) {
        at = next;
    }
}

/// Deflated data made a text.
#[divan::bench]
fn unpacking(bencher: Bencher) {
    let mut text = Vec::with_capacity(DEFLATED.1.len());
    bencher.counter(BytesCount::new(DEFLATED.0.len())).bench_local(|| {
        text.clear();
        unpack(&DEFLATED.0, &mut text);
    });
}

/// A text made deflated data.
#[divan::bench]
fn packing(bencher: Bencher) {
    let (bytes, text) = &*DEFLATED;
    let mut made = vec![0; bytes.len()];
    assert_eq!((pack(text, 0, &mut made), &made), (Ok(()), bytes));
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| pack(text, 0, &mut made));
}

/// zstd's blocks of 128 KiB each, and their text.
static BLOCKS: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let program = std::fs::read(std::env::current_exe().expect("this program")).expect("its file");
    let (mut blocks, mut text) = (Vec::new(), Vec::new());
    for content in program[..4 * MIB].chunks(128 << 10) {
        let frame = zstd::bulk::compress(content, 15).expect("in memory");
        // A frame of one block has nine bytes in front of that at this size, and nothing behind.
        let before = text.len();
        match zstd_block::unpack(&frame[9..], usize::MAX, &mut text) {
            Ok(()) => blocks.extend_from_slice(&frame[9..]),
            Err(_) => text.truncate(before),
        }
    }
    assert!(blocks.len() > MIB, "blocks that have no text");
    (blocks, text)
});

/// zstd's blocks made a text.
#[divan::bench]
fn unpacking_zstd(bencher: Bencher) {
    let mut text = Vec::with_capacity(BLOCKS.1.len());
    bencher.counter(BytesCount::new(BLOCKS.0.len())).bench_local(|| {
        text.clear();
        zstd_block::unpack(&BLOCKS.0, usize::MAX, &mut text)
    });
}

/// A text made zstd's blocks.
#[divan::bench]
fn packing_zstd(bencher: Bencher) {
    let (blocks, text) = &*BLOCKS;
    let mut made = Vec::with_capacity(blocks.len());
    bencher.counter(BytesCount::new(blocks.len())).bench_local(|| {
        made.clear();
        zstd_block::pack(text, blocks.len(), &mut made)
    });
    assert_eq!(&made, blocks);
}

/// Chunks of LZMA2, of streams of 128 KiB each, and their text.
static CHUNKS: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let program = std::fs::read(std::env::current_exe().expect("this program")).expect("its file");
    let (mut chunks, mut text) = (Vec::new(), Vec::new());
    for content in program[..4 * MIB].chunks(128 << 10) {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(content).expect("in memory");
        let xz = encoder.finish().expect("in memory");
        // Behind two headers of 12 bytes; at the end of the first chunk is the last, or another.
        let len = 6 + usize::from(u16::from_be_bytes([xz[27], xz[28]])) + 1;
        if lzma_chunk::unpack(&xz[24..24 + len], usize::MAX >> 1, &mut text).is_ok() {
            chunks.extend_from_slice(&xz[24..24 + len]);
        }
    }
    assert!(chunks.len() > MIB / 2, "chunks that have no text");
    (chunks, text)
});

/// LZMA2's chunks made a text.
#[divan::bench]
fn unpacking_lzma(bencher: Bencher) {
    let mut text = Vec::with_capacity(CHUNKS.1.len());
    bencher.counter(BytesCount::new(CHUNKS.0.len())).bench_local(|| {
        text.clear();
        lzma_chunk::unpack(&CHUNKS.0, usize::MAX >> 1, &mut text)
    });
}

/// A text made LZMA2's chunks.
#[divan::bench]
fn packing_lzma(bencher: Bencher) {
    let (chunks, text) = &*CHUNKS;
    let mut made = Vec::with_capacity(chunks.len());
    bencher.counter(BytesCount::new(chunks.len())).bench_local(|| {
        made.clear();
        lzma_chunk::pack(text, chunks.len(), &mut made)
    });
    assert_eq!(&made, chunks);
}

fn main() {
    LazyLock::force(&PAIR);
    divan::main();
}
