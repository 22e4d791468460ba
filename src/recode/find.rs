//! Where deflated data begin: behind the header of a gzip file or a zlib stream, or in a zip archive.

use crate::parallel;
use std::ops::Range;

/// Bytes that one thread looks through in one go.
const PIECE: u64 = 4 << 20;
/// Longest name, or comment, in the header of a gzip file that is believed.
const NAME_MOST: usize = 1 << 8;
/// What trials that fail may cost, in bytes that could be unpacked meanwhile, for each byte that was looked through and in
/// any case; once for headers of zlib, of which two bytes are all there is, and once for the others. Beyond it headers are
/// passed over.
const TRIAL_EACH: u64 = 2;
const TRIAL_ANYWAY: u64 = 64 << 10;

/// What comes of unpacking the beginning of what may be a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// Whether it may be one still.
    pub likely: bool,
    /// The byte of the image up to which it was unpacked.
    pub end: u64,
    /// What it cost, in bytes.
    pub cost: u64,
}

/// The offsets in `image` at which, by what stands before them, deflated data may begin: ascending. `ranges` (ascending,
/// disjoint) are looked through for the beginnings of headers. Only those offsets are kept, one by one, at which `attempt`
/// finds a stream likely: data may be full of what looks like a header. So that it takes no time without bounds, not all
/// are tried where very many are not, nor what is unpacked in the trial of a likely one.
pub(super) fn starts(
    image: &[u8],
    ranges: &[Range<u64>],
    threads: usize,
    attempt: impl Fn(u64) -> Trial + Sync,
) -> Vec<u64> {
    let pieces: Vec<Range<u64>> = ranges
        .iter()
        .flat_map(|range| {
            let end = range.end;
            (range.start..end).step_by(PIECE as usize).map(move |start| start..end.min(start + PIECE))
        })
        .collect();
    let found = parallel::map(pieces.len(), threads, |i| starts_in(image, &pieces[i], &attempt));
    let mut starts: Vec<u64> = found.into_iter().flatten().collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// Bytes that are looked at together: where none of them begins a header, as nearly everywhere, that is told at once.
const STRIDE: usize = 64;

fn starts_in(image: &[u8], range: &Range<u64>, attempt: impl Fn(u64) -> Trial) -> Vec<u64> {
    let end = (range.end as usize).min(image.len());
    let first = (range.start as usize).min(end);
    let mut found = Found { attempt, first, starts: Vec::new(), tried: 0, spent: [0; 2] };
    for at in (first..end).step_by(STRIDE) {
        let stop = end.min(at + STRIDE);
        let pairs = image[at..stop].iter().zip(&image[at + 1..]);
        // No short cuts: so the compiler makes it few instructions for many bytes.
        if pairs.fold(false, |any, (first, second)| any | begins_header(*first, *second)) {
            (at..stop).for_each(|at| found.look(image, at));
        }
    }
    found.starts
}

/// What was found in a piece.
struct Found<F> {
    attempt: F,
    /// Where the piece begins.
    first: usize,
    starts: Vec<u64>,
    /// The byte up to which something likely was unpacked.
    tried: u64,
    /// What failed trials have cost: of zlib headers, and of others.
    spent: [u64; 2],
}

impl<F: Fn(u64) -> Trial> Found<F> {
    /// Tries what stands behind a header at this byte, if there is one.
    fn look(&mut self, image: &[u8], at: usize) {
        let Some(header) = header(&image[at..]) else { return };
        let start = (at + header) as u64;
        let spent = &mut self.spent[usize::from(image[at] != 0x78)];
        if start < self.tried || *spent > (at - self.first) as u64 * TRIAL_EACH + TRIAL_ANYWAY {
            return;
        }
        let trial = (self.attempt)(start);
        if trial.likely {
            self.tried = trial.end;
            self.starts.push(start);
        } else {
            *spent += trial.cost;
        }
    }
}

/// Whether these are the first two bytes of a header.
#[inline]
fn begins_header(first: u8, second: u8) -> bool {
    let zlib = (second == 0x01) | (second == 0x5e) | (second == 0x9c) | (second == 0xda);
    (first == 0x1f) & (second == 0x8b) | (first == 0x78) & zlib | (first == b'P') & (second == b'K')
}

/// Length of the header that these bytes begin with.
fn header(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        0x1f => gzip_header(bytes),
        0x78 => zlib_header(bytes),
        b'P' => zip_header(bytes),
        _ => None,
    }
}

/// Length of a gzip header (RFC 1952, 2.3).
fn gzip_header(bytes: &[u8]) -> Option<usize> {
    let [0x1f, 0x8b, 8, flags, _, _, _, _, _, _, rest @ ..] = bytes else { return None };
    if flags & 0xe0 > 0 {
        return None;
    }
    let mut at = 10;
    if flags & 4 > 0 {
        at += 2 + usize::from(u16::from_le_bytes(*rest.first_chunk()?));
    }
    for flag in [8, 16] {
        if flags & flag > 0 {
            at += bytes.get(at..)?.iter().take(NAME_MOST).position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & 2 > 0 {
        at += 2;
    }
    Some(at)
}

/// Length of a zlib header (RFC 1950, 2.2) of a window of 32 KiB without a dictionary, as nearly everybody writes it.
fn zlib_header(bytes: &[u8]) -> Option<usize> {
    matches!(bytes, [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..]).then_some(2)
}

/// Length of the header of a deflated file in a zip archive (PKWARE's APPNOTE.TXT, 4.3.7).
fn zip_header(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<30>()?;
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    (header.starts_with(b"PK\x03\x04") && field(8) == 8).then(|| 30 + field(26) + field(28))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn likely(start: u64) -> Trial {
        Trial { likely: true, end: start, cost: 0 }
    }

    #[test]
    fn headers_are_found_wherever_they_stand() {
        let mut image = vec![0u8; 9 << 20];
        let gzip = [0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3, b'n', 0];
        let zip = [b"PK\x03\x04\x14\0\0\0\x08\0".as_slice(), &[0; 16], &[2, 0, 3, 0], b"abxyz"].concat();
        let mut expected = Vec::new();
        for (at, header) in [(1, &gzip[..]), ((4 << 20) - 5, &zip), (5_000_000, &[0x78, 0x9c]), ((8 << 20) - 1, &gzip)]
        {
            image[at..at + header.len()].copy_from_slice(header);
            expected.push((at + header.len()) as u64);
        }
        let len = image.len() as u64;
        for threads in [1, 3] {
            assert_eq!(starts(&image, &[0..len], threads, likely), expected);
        }
        assert_eq!(starts(&image, &[2..5_000_000, 5_000_001..len], 2, likely), [expected[1], expected[3]]);
    }

    #[test]
    fn headers_that_are_cut_off_are_none() {
        for header in [
            &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 3][..],
            &[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3, 1],
            b"PK\x03\x04",
            &[0x78],
        ] {
            assert!(starts(header, &[0..header.len() as u64], 1, likely).is_empty());
        }
    }

    /// Where everything looks like a header and nothing is a stream, trials do not take over; and where it looks like one
    /// of zlib, one of gzip is tried all the same.
    #[test]
    fn headers_everywhere_are_not_all_tried() {
        let mut image = [0x78, 0x9c, 0, 0, 0, 0, 0, 0].repeat(1 << 20);
        let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        image[5_000_000..5_000_010].copy_from_slice(&gzip);
        let (len, cost) = (image.len() as u64, AtomicU64::new(0));
        let attempt = |start| {
            let gzip = start == 5_000_010;
            cost.fetch_add(2000, Ordering::Relaxed);
            Trial { likely: gzip, end: start + 2000, cost: 2000 }
        };
        assert_eq!(starts(&image, &[0..len], 1, attempt), [5_000_010]);
        let cost = cost.into_inner();
        assert!((len..len * 5 / 2).contains(&cost), "{cost} for {len}");
    }

    #[test]
    fn what_was_unpacked_in_a_trial_is_not_looked_through() {
        let image = [0x78, 0x9c, 0, 0, 0, 0, 0, 0].repeat(10_000);
        let (len, count) = (image.len() as u64, AtomicU64::new(0));
        let attempt = |start| {
            count.fetch_add(1, Ordering::Relaxed);
            Trial { likely: true, end: start + 2000, cost: 2000 }
        };
        starts(&image, &[0..len], 1, attempt);
        assert_eq!(count.into_inner(), len.div_ceil(2000));
    }
}
