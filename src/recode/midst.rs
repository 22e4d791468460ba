//! Where deflated data go on though nothing says so: in the pieces, but the first, of a file that does not lie in one.

use super::stream::Followed;
use super::texts::Limits;
use crate::deflate::next_header;
use crate::parallel;
use crate::units::BLOCK;
use std::ops::Range;

/// Bytes that one thread looks through in one go.
const PIECE: u64 = 4 << 20;
/// Bytes of a block of the image, in four places, by which it is told whether it is compressed, and how many different
/// ones these are at least: random bytes 221 ± 5 of 256, deflated data not much fewer, programs and texts 150 at most.
const SAMPLE: usize = 128;
const DIFFERENT: u32 = 180;
/// What may be done in vain, in bytes that could be unpacked meanwhile, for each byte that was looked through and in any
/// case. Beyond it, bytes are passed over.
const IN_VAIN_EACH: u64 = 1;
const IN_VAIN_ANYWAY: u64 = 64 << 10;
/// What it costs to tell from its codes that something is no header, in the same.
const CODES_COST: u64 = 64;

/// A stretch of a stream.
#[derive(Clone, Copy)]
struct Stretch {
    bits: (u64, u64),
    text: u64,
}

/// The bits in `image` at which, by the codes that stand there, deflated data go on: ascending. `ranges` (ascending,
/// disjoint) are looked through. `follow` unpacks from a bit up to a byte and a little further, or as far as there is
/// something to unpack. What it reaches is not looked through, and begins again only where a text becomes too long.
pub(super) fn headers(
    image: &[u8],
    ranges: &[Range<u64>],
    limits: Limits,
    follow: impl Fn(u64, u64) -> Followed + Sync,
) -> Vec<u64> {
    let pieces: Vec<Range<u64>> = ranges
        .iter()
        .flat_map(|range| {
            // Cut at multiples, so that blocks stay whole.
            let cuts = range.start / PIECE..range.end.div_ceil(PIECE);
            cuts.map(move |i| range.start.max(i * PIECE)..range.end.min((i + 1) * PIECE))
        })
        .collect();
    let mut pieces = parallel::map(pieces.len(), limits.threads, |i| compressed_blocks(image, &pieces[i]));
    let mut searched = 0;
    pieces.retain(|blocks| {
        searched += blocks.len() as u64 * BLOCK;
        !blocks.is_empty() && searched <= limits.all
    });
    let found = parallel::map(pieces.len(), limits.threads, |i| stretches_in(image, &pieces[i], &follow));
    let (mut starts, mut end, mut text) = (Vec::new(), None, 0);
    for stretch in found.into_iter().flatten() {
        // One that goes on behind the end of a piece is found there again.
        if Some(stretch.bits.0) == end && text + stretch.text <= limits.stream as u64 {
            text += stretch.text;
        } else {
            starts.push(stretch.bits.0);
            text = stretch.text;
        }
        end = Some(stretch.bits.1);
    }
    starts
}

/// The blocks of the image in a range that may be compressed.
fn compressed_blocks(image: &[u8], range: &Range<u64>) -> Vec<Range<u64>> {
    let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
    let blocks = blocks.map(|block| range.start.max(block * BLOCK)..range.end.min((block + 1) * BLOCK));
    blocks.filter(|block| may_be_compressed(&image[block.start as usize..block.end as usize])).collect()
}

fn stretches_in(image: &[u8], blocks: &[Range<u64>], follow: impl Fn(u64, u64) -> Followed) -> Vec<Stretch> {
    let (mut found, mut in_vain, mut looked, mut at) = (Vec::new(), 0, 0, 0);
    let until = blocks.last().map_or(0, |last| last.end);
    for block in blocks {
        looked += block.end - block.start;
        while at < block.end * 8 && in_vain <= looked * IN_VAIN_EACH + IN_VAIN_ANYWAY {
            let mut tried = 0;
            let bit = next_header(image, at.max(block.start * 8)..block.end * 8, &mut tried);
            in_vain += tried * CODES_COST;
            let Some(bit) = bit else { break };
            let Followed { end, text, in_vain: more } = follow(bit, until);
            in_vain += more;
            at = end.max(bit + 1);
            if end > bit {
                found.push(Stretch { bits: (bit, end), text });
            }
        }
    }
    found
}

/// Whether these bytes are as different from each other as compressed ones; few bytes may always be.
fn may_be_compressed(bytes: &[u8]) -> bool {
    let mut seen = [0u64; 4];
    for place in bytes.chunks(BLOCK as usize / 4) {
        let Some(sample) = place.first_chunk::<SAMPLE>() else { return true };
        sample.iter().for_each(|byte| seen[usize::from(byte >> 6)] |= 1 << (byte & 63));
    }
    bytes.len() < BLOCK as usize || seen.iter().map(|bits| bits.count_ones()).sum::<u32>() >= DIFFERENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recode::stream::Stream;
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

    fn limits(threads: usize, stream: usize, all: u64) -> Limits {
        Limits { stream, all, threads }
    }

    /// It is found wherever it lies among other data, and not looked for where it was followed, or where nobody wants it.
    #[test]
    fn what_goes_on_is_found_once() {
        let stream = deflated(100_000);
        let at = 3 * BLOCK as usize;
        let image = [vec![0; at], stream.clone(), vec![7; 9 << 20]].concat();
        let (all, start, end) = (0..image.len() as u64, at as u64 * 8, (at + stream.len()) as u64 * 8);
        let follow = |bit, _| Followed { end, text: (end - bit) / 4, in_vain: 0 };
        for threads in [1, 3] {
            assert_eq!(headers(&image, std::slice::from_ref(&all), limits(threads, 1 << 30, 1 << 30), follow), [start]);
        }
        let behind = at as u64 + BLOCK;
        let found = headers(&image, &[0..at as u64, behind..all.end], limits(2, 1 << 30, 1 << 30), follow);
        assert!(matches!(found[..], [bit] if bit >= behind * 8), "{found:?}");
        assert!(headers(&image, std::slice::from_ref(&all), limits(2, 1 << 30, BLOCK), follow).is_empty());
    }

    /// A stream that is longer than a piece begins but once; and again where its text becomes too long.
    #[test]
    fn long_streams_are_put_together() {
        let image = deflated(1_500_000);
        assert!(image.len() as u64 > PIECE * 3 / 2);
        let all = 0..image.len() as u64;
        let found = |most| {
            let follow = |bit, until| Stream::follow(&image, bit, until, most);
            headers(&image, std::slice::from_ref(&all), limits(2, most as usize, u64::MAX), follow)
        };
        assert_eq!(found(u64::MAX >> 1), [0]);
        let many = found(1 << 20);
        assert!(many.len() > 5 && many[0] == 0 && many.is_sorted(), "{many:?}");
    }

    /// Where headers are everywhere and lead nowhere, or not far for what it costs, trials do not take over.
    #[test]
    fn headers_everywhere_are_not_all_tried() {
        let image = deflated(10_000)[..2000].repeat(1000);
        let len = image.len() as u64;
        for far in [0, 160] {
            let cost = AtomicU64::new(0);
            let follow = |bit: u64, _| {
                cost.fetch_add(5000, Ordering::Relaxed);
                Followed { end: bit + far, text: 1, in_vain: 5000 - far / 8 }
            };
            headers(&image, std::slice::from_ref(&(0..len)), limits(1, 1 << 30, 1 << 30), follow);
            let cost = cost.into_inner();
            assert!((IN_VAIN_ANYWAY..len * 2).contains(&cost), "{cost} for {len}");
        }
    }

    #[test]
    fn what_is_not_compressed_is_told_at_once() {
        let stream = deflated(100_000);
        let blocks = || stream[4096..].chunks_exact(BLOCK as usize);
        assert!(blocks().count() > 20 && blocks().all(may_be_compressed));
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let blocks = program.chunks_exact(BLOCK as usize);
        assert!(blocks.clone().filter(|block| may_be_compressed(block)).count() * 20 < blocks.len());
    }
}
