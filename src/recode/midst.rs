//! Where deflated data go on though nothing says so: in the pieces, but the first, of a file that does not lie in one.

use super::find::Trial;
use crate::deflate::next_header;
use crate::parallel;
use crate::units::BLOCK;
use std::ops::Range;

/// Bytes that one thread looks through in one go.
const PIECE: u64 = 4 << 20;
/// Bytes of a block that are looked at to tell whether it is compressed, and how many different ones these then are at
/// least: random bytes 221 ± 5 of 256, deflated data not much fewer, programs and texts 150 at most.
const SAMPLE: usize = 512;
const DIFFERENT: u32 = 180;
/// What trials that fail may cost, in bytes that could be unpacked meanwhile, for each byte that was looked through and in
/// any case. Nearly every place that is tried is one.
const TRIAL_EACH: u64 = 1;
const TRIAL_ANYWAY: u64 = 64 << 10;

/// The bits in `image` at which, by the codes that stand there, a block of deflated data begins: ascending. `ranges`
/// (ascending, disjoint) are looked through. `follow` unpacks from a bit up to a byte, or as far as there is something to
/// unpack: of what it finds likely, only where it begins is kept, and it goes on where a trial ended.
pub(super) fn headers(
    image: &[u8],
    ranges: &[Range<u64>],
    threads: usize,
    follow: impl Fn(u64, u64) -> Trial + Sync,
) -> Vec<u64> {
    let pieces: Vec<Range<u64>> = ranges
        .iter()
        .flat_map(|range| {
            // Cut at multiples, so that blocks stay whole.
            let cuts = range.start / PIECE..range.end.div_ceil(PIECE);
            cuts.map(move |i| range.start.max(i * PIECE)..range.end.min((i + 1) * PIECE))
        })
        .collect();
    let found = parallel::map(pieces.len(), threads, |i| headers_in(image, pieces[i].clone(), &follow));
    found.into_iter().flatten().collect()
}

fn headers_in(image: &[u8], range: Range<u64>, follow: impl Fn(u64, u64) -> Trial) -> Vec<u64> {
    let (mut found, mut spent, mut at) = (Vec::new(), 0, range.start * 8);
    let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
    for block in blocks.map(|block| range.start.max(block * BLOCK)..range.end.min((block + 1) * BLOCK)) {
        let end = block.end * 8;
        if at >= end || !may_be_compressed(&image[block.start as usize..block.end as usize]) {
            continue;
        }
        at = at.max(block.start * 8);
        while let Some(bit) = next_header(image, at..end) {
            if spent > (bit / 8 - range.start) * TRIAL_EACH + TRIAL_ANYWAY {
                return found;
            }
            let trial = follow(bit, range.end);
            at = bit + 1;
            if trial.likely {
                found.push(bit);
                at = at.max(trial.end * 8);
            } else {
                spent += trial.cost;
            }
        }
    }
    found
}

/// Whether these bytes are as different from each other as compressed ones; few bytes may always be.
fn may_be_compressed(bytes: &[u8]) -> bool {
    let Some(sample) = bytes.first_chunk::<SAMPLE>() else { return true };
    let mut seen = [0u64; 4];
    sample.iter().for_each(|byte| seen[usize::from(byte >> 6)] |= 1 << (byte & 63));
    seen.iter().map(|bits| bits.count_ones()).sum::<u32>() >= DIFFERENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::DeflateEncoder;
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn deflated(count: u32) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(6));
        for i in 0..count {
            write!(encoder, "{} of {i}, ", i.wrapping_mul(2_654_435_761) >> (8 + i % 19)).unwrap();
        }
        encoder.finish().unwrap()
    }

    /// It is found wherever it lies among other data, and not looked for where it was followed, or where nobody wants it.
    #[test]
    fn what_goes_on_is_found_once() {
        let stream = deflated(100_000);
        let at = 3 * BLOCK as usize;
        let image = [vec![0; at], stream.clone(), vec![7; 9 << 20]].concat();
        let (all, len) = (0..image.len() as u64, stream.len() as u64);
        let follow = |bit, until: u64| Trial { likely: true, end: until.min(at as u64 + len), cost: bit };
        for threads in [1, 3] {
            assert_eq!(headers(&image, std::slice::from_ref(&all), threads, follow), [at as u64 * 8]);
        }
        let behind = at as u64 + BLOCK;
        let found = headers(&image, &[0..at as u64, behind..all.end], 2, follow);
        assert!(matches!(found[..], [bit] if bit >= behind * 8), "{found:?}");
    }

    /// Where headers are everywhere and none leads anywhere, trials do not take over.
    #[test]
    fn headers_everywhere_are_not_all_tried() {
        let header = &deflated(10_000)[..2000];
        let image = header.repeat(1000);
        let cost = AtomicU64::new(0);
        let follow = |bit: u64, _| {
            cost.fetch_add(2000, Ordering::Relaxed);
            Trial { likely: false, end: bit / 8, cost: 2000 }
        };
        let len = image.len() as u64;
        assert!(headers(&image, std::slice::from_ref(&(0..len)), 1, follow).is_empty());
        let cost = cost.into_inner();
        assert!((TRIAL_ANYWAY..len * 2).contains(&cost), "{cost} for {len}");
    }

    #[test]
    fn what_is_not_compressed_is_told_at_once() {
        let stream = deflated(100_000);
        let blocks = || stream[4096..].chunks_exact(BLOCK as usize);
        assert!(blocks().count() > 20 && blocks().all(may_be_compressed));
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut blocks = program.chunks_exact(BLOCK as usize);
        assert!(blocks.clone().filter(|block| may_be_compressed(block)).count() * 20 < blocks.len());
        assert!(!blocks.all(may_be_compressed));
    }
}
