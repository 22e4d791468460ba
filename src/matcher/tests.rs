use std::ops::Range;

use super::*;

/// A small generator (splitmix64), so that a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// All 4 KiB blocks that differ, as ranges.
fn changes(old: &[u8], new: &[u8]) -> Vec<Range<u64>> {
    let mut changed: Vec<Range<u64>> = Vec::new();
    for start in (0..new.len()).step_by(BLOCK) {
        let end = (start + BLOCK).min(new.len());
        if old.get(start..end) == Some(&new[start..end]) {
            continue;
        }
        match changed.last_mut() {
            Some(last) if last.end == start as u64 => last.end = end as u64,
            _ => changed.push(start as u64..end as u64),
        }
    }
    changed
}

/// Checks everything that is promised of runs.
fn check(old: &[u8], new: &[u8], changed: &[Range<u64>], runs: &[Run]) {
    let mut expected = changed.iter().flat_map(|range| [range.start, range.end]);
    let mut at = expected.next();
    let mut end = expected.next();
    for run in runs {
        assert_eq!(Some(run.dst), at);
        assert!(run.len > 0);
        at = Some(run.dst + run.len);
        assert!(at <= end, "{run:?} goes beyond {end:?}");
        if at == end {
            (at, end) = (expected.next(), expected.next());
        }
        let bytes = &new[run.dst as usize..][..run.len as usize];
        match run.source {
            Source::Zero => assert!(bytes.iter().all(|&byte| byte == 0)),
            Source::Copy { src } => assert!(&old[src as usize..][..run.len as usize] == bytes),
            Source::Add { src } => assert!((src + run.len) as usize <= old.len()),
            Source::Literal | Source::Recoded => {}
        }
        if run.source != Source::Zero {
            let block = bytes.len() >= 2 * BLOCK && (run.dst as usize).is_multiple_of(BLOCK);
            assert!(!block || !bytes.chunks_exact(BLOCK).any(|block| block.iter().all(|&byte| byte == 0)));
        }
    }
    assert_eq!(at, None);
}

fn whole(bytes: &[u8]) -> [Range<u64>; 1] {
    [0..bytes.len() as u64]
}

fn find(old: &[u8], new: &[u8]) -> Vec<Run> {
    let changed = changes(old, new);
    let runs = find_runs(old, &whole(old), new, &changed, &Options::default());
    check(old, new, &changed, &runs);
    runs
}

fn literal(runs: &[Run]) -> u64 {
    runs.iter().filter(|run| run.source == Source::Literal).map(|run| run.len).sum()
}

#[test]
fn equal_images_need_nothing() {
    let image = Random(1).bytes(50_000);
    assert_eq!(find(&image, &image), []);
    assert_eq!(find(&[], &[]), []);
}

#[test]
fn nothing_old() {
    let new = Random(2).bytes(10_000);
    assert_eq!(find(&[], &new), [Run { dst: 0, len: 10_000, source: Source::Literal }]);
}

#[test]
fn moved_by_odd_bytes_is_one_copy() {
    let mut random = Random(3);
    let old = random.bytes(300_000);
    let mut new = random.bytes(12_345);
    new.extend_from_slice(&old[777..]);
    let runs = find(&old, &new);
    assert_eq!(runs[0], Run { dst: 0, len: 12_345, source: Source::Literal });
    assert_eq!(runs[1], Run { dst: 12_345, len: 299_223, source: Source::Copy { src: 777 } });
    assert_eq!(runs.len(), 2);
}

#[test]
fn a_program_with_changed_addresses_is_one_addition() {
    let mut random = Random(4);
    let old = random.bytes(200_000);
    let mut new = random.bytes(4096);
    new.extend_from_slice(&old);
    for at in (5000..200_000).step_by(40) {
        new[at] = new[at].wrapping_add(16);
    }
    let runs = find(&old, &new);
    assert_eq!(runs[1], Run { dst: 4096, len: 200_000, source: Source::Add { src: 0 } });
    assert_eq!(runs.len(), 2);
}

/// A journal's last block is a few numbers and zeros: it resembles, beyond those numbers, whatever is mostly zero.
#[test]
fn what_an_anchor_hardly_equals_is_taken_literally() {
    let mut random = Random(17);
    let start = random.bytes(64);
    let mut old = random.bytes(3 * BLOCK);
    for (number, record) in old[BLOCK + 64..2 * BLOCK].chunks_mut(16).enumerate() {
        record.fill(0);
        record[..3].copy_from_slice(&[number as u8 | 1, (number * 7) as u8 | 1, 3]);
    }
    old[BLOCK..BLOCK + 64].copy_from_slice(&start);
    let mut new = random.bytes(BLOCK);
    new[..64].copy_from_slice(&start);
    new[64..].fill(0);
    let runs = find_runs(&old, &whole(&old), &new, &whole(&new), &Options::default());
    let along = runs.iter().filter(|run| matches!(run.source, Source::Copy { .. } | Source::Add { .. }));
    let along: u64 = along.map(|run| run.len).sum();
    assert!((64..200).contains(&along), "{along} of {BLOCK} bytes along the old image");
}

#[test]
fn zero_blocks_come_out_as_zero() {
    let old = Random(5).bytes(100_000);
    let mut new = old.clone();
    new[8192..20_000].fill(0);
    new[98_304..].fill(0);
    let runs = find(&old, &new);
    assert_eq!(runs[0], Run { dst: 8192, len: 8192, source: Source::Zero });
    assert_eq!(*runs.last().unwrap(), Run { dst: 98_304, len: 1696, source: Source::Zero });
}

#[test]
fn holes_of_the_old_image_are_not_read() {
    // Holes may be told of that hold the very bytes wanted: they must not be used.
    let old = Random(6).bytes(100_000);
    let new = [&old[4096..], &old[..4096]].concat();
    let changed = changes(&old, &new);
    let runs = find_runs(&old, &[0..40_960, 81_920..100_000], &new, &changed, &Options::default());
    check(&old, &new, &changed, &runs);
    assert_eq!(literal(&runs), 40_960);
    for run in runs {
        if let Source::Copy { src } | Source::Add { src } = run.source {
            assert!(src + run.len <= 40_960 || src >= 81_920);
        }
    }
}

#[test]
fn nonsense_does_not_panic() {
    let old = Random(7).bytes(10_000);
    let new = Random(8).bytes(9_000);
    let strange = [5..4, 100..7_000, 50..80, 60..u64::MAX, u64::MAX..0];
    for threads in [0, 1, 100] {
        for memory in [0, 1, 1000] {
            for level in [0, 1, 9, u32::MAX] {
                let runs = find_runs(&old, &strange, &new, &strange, &Options { memory, threads, level, revise: true });
                check(&old, &new, &[100..9_000], &runs);
            }
        }
    }
}

/// An image of blocks that resemble a file system's: text, programs, noise, zeros, repeats.
fn image(random: &mut Random, len: usize) -> Vec<u8> {
    let mut image = Vec::with_capacity(len);
    while image.len() < len {
        let size = 1 + random.below(20_000);
        match random.below(6) {
            0 => image.resize(image.len() + size, 0),
            1 => image.extend((0..size).map(|i| b"the quick brown fox "[i % 20])),
            2 if !image.is_empty() => {
                let from = random.below(image.len());
                let end = (from + size).min(image.len());
                image.extend_from_within(from..end);
            }
            3 => image.extend((0..size).map(|_| b"etaoin shrdlu"[random.below(13)])),
            _ => image.extend(random.bytes(size)),
        }
    }
    image.truncate(len);
    image
}

/// Edits as releases bring them: bytes changed, ranges inserted, removed, moved, cleared.
fn edit(random: &mut Random, old: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    for _ in 0..random.below(20) {
        let at = random.below(new.len());
        let end = (at + random.below(30_000)).min(new.len());
        match random.below(6) {
            0 => drop(new.drain(at..end)),
            1 => {
                let size = random.below(9_000);
                let inserted = random.bytes(size);
                new.splice(at..at, inserted);
            }
            2 => new[at..end].fill(0),
            3 => {
                let moved: Vec<u8> = new.drain(at..end).collect();
                let to = random.below(new.len() + 1);
                new.splice(to..to, moved);
            }
            _ => {
                let step = 1 + random.below(300);
                new[at..end].iter_mut().step_by(step).for_each(|byte| *byte = byte.wrapping_add(8));
            }
        }
    }
    new
}

#[test]
fn random_edits_keep_every_promise() {
    for seed in 0..60 {
        let mut random = Random(seed * 1000);
        let len = random.below(400_000);
        let old = image(&mut random, len);
        let new = edit(&mut random, &old);
        let changed = changes(&old, &new);
        let data = [0..(len / 3) as u64, (len / 2) as u64..len as u64];
        let memory = [640 << 20, 10_000, 0][random.below(3)];
        let level = 1 + random.below(9) as u32;
        let options = Options { memory, threads: 1, level, ..Options::default() };
        let runs = find_runs(&old, &data, &new, &changed, &options);
        check(&old, &new, &changed, &runs);
        let more = find_runs(&old, &data, &new, &changed, &Options { threads: 3, ..options });
        assert_eq!(runs, more);
    }
}

#[test]
fn threads_do_not_matter_over_many_segments() {
    let mut random = Random(9);
    let old = image(&mut random, 3 * SEGMENT);
    let new = [&old[SEGMENT + 17..], &random.bytes(100), &edit(&mut random, &old[..SEGMENT])].concat();
    let changed = changes(&old, &new);
    let run = |threads| {
        let options = Options { threads, ..Options::default() };
        find_runs(&old, &whole(&old), &new, &changed, &options)
    };
    let runs = run(1);
    check(&old, &new, &changed, &runs);
    assert_eq!(runs, run(2));
    assert_eq!(runs, run(5));
}
