//! Where deflated data begin: behind the header of a gzip file or a zlib stream, or in a zip archive.

use crate::parallel;
use std::ops::Range;

/// Bytes that one thread looks through in one go.
const PIECE: u64 = 4 << 20;
/// Longest name, or comment, in the header of a gzip file that is believed.
const NAME_MOST: usize = 1 << 10;

/// The offsets in `image` at which, by what stands before them, deflated data may begin: ascending. `ranges` (ascending,
/// disjoint) are looked through for the beginnings of headers. Only those offsets are kept, one by one, that are `likely`:
/// data may be full of what looks like a header.
pub(super) fn starts(
    image: &[u8],
    ranges: &[Range<u64>],
    threads: usize,
    likely: impl Fn(u64) -> bool + Sync,
) -> Vec<u64> {
    let pieces: Vec<Range<u64>> = ranges
        .iter()
        .flat_map(|range| {
            let end = range.end;
            (range.start..end).step_by(PIECE as usize).map(move |start| start..end.min(start + PIECE))
        })
        .collect();
    let found = parallel::map(pieces.len(), threads, |i| starts_in(image, &pieces[i], &likely));
    let mut starts: Vec<u64> = found.into_iter().flatten().collect();
    starts.sort_unstable();
    starts.dedup();
    starts
}

/// Bytes that are looked at together: where none of them begins a header, as nearly everywhere, that is told at once.
const STRIDE: usize = 64;

fn starts_in(image: &[u8], range: &Range<u64>, likely: impl Fn(u64) -> bool) -> Vec<u64> {
    let end = (range.end as usize).min(image.len());
    let mut at = (range.start as usize).min(end);
    let mut starts = Vec::new();
    while at < end {
        let stop = end.min(at + STRIDE);
        let pairs = image[at..stop].iter().zip(&image[at + 1..]);
        // No short cuts: so the compiler makes it few instructions for many bytes.
        if pairs.fold(false, |any, (first, second)| any | begins_header(*first, *second)) {
            let headers = (at..stop).filter_map(|at| Some((at + header(&image[at..])?) as u64));
            starts.extend(headers.filter(|start| likely(*start)));
        }
        at = stop;
    }
    starts
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
            assert_eq!(starts(&image, &[0..len], threads, |_| true), expected);
        }
        assert_eq!(starts(&image, &[2..5_000_000, 5_000_001..len], 2, |_| true), [expected[1], expected[3]]);
    }

    #[test]
    fn headers_that_are_cut_off_are_none() {
        for header in [
            &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 3][..],
            &[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3, 1],
            b"PK\x03\x04",
            &[0x78],
        ] {
            assert!(starts(header, &[0..header.len() as u64], 1, |_| true).is_empty());
        }
    }
}
