//! A qcow2 image with all its bytes at hand, for `diff` and `sign`.
//!
//! What lies in the raw image at the bottom of the chain is mapped from there, so that it is neither copied nor read
//! twice. What the qcow2 files themselves hold is unpacked into a temporary file without a name, which is sparse: it takes
//! at most the space of that, rounded up to whole pieces.

use super::{Chain, Qcow2Error};
use crate::device::Device;
use crate::error::Error;
use crate::image::Image;
use crate::opening::Opening;
use crate::parallel;
use crate::sparse::write_data;
use crate::units::PART;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// Pieces into which an image is cut at most: each is a map of its own in the worst case, and Linux allows 65,530.
const MOST_PIECES: u64 = 1 << 14;
/// Bytes that a thread unpacks before it takes the next ones.
const SHARE: u64 = 16 << 20;

/// Opens a qcow2 image.
///
/// # Errors
/// One that cannot be read or is refused, and a temporary file that cannot be written.
pub(crate) fn open_chain(path: &Path, how: Opening<'_>) -> Result<Image, Error> {
    let chain = Chain::open(path)?;
    if let Some(note) = chain.note() {
        how.monitor.note(&note);
    }
    how.monitor.phase("unpacking", chain.len());
    let own = own_pieces(&chain).map_err(|source| Error::Qcow2 { path: path.to_owned(), source })?;
    let failed = || Error::io("write a temporary file in", how.folder);
    let file = tempfile::tempfile_in(how.folder).map_err(failed())?;
    file.set_len(chain.len()).map_err(failed())?;
    unpack(&chain, &own, &file, path, how)?;
    let image = Image::of_file(file).map_err(Error::io("map", path))?;
    let image = match chain.base() {
        None => image,
        Some(base) => {
            let below = complement(&own, base.len.min(chain.len()));
            image.with_base(base, below).map_err(Error::io("map", path))?
        }
    };
    Ok(image.watching(chain.members().map(|member| (member.path.as_path(), member.stamp))))
}

/// The pieces of an image that the base does not hold alone: ascending, merged, multiples of [`PART`].
fn own_pieces(chain: &Chain) -> Result<Vec<Range<u64>>, Qcow2Error> {
    let piece = PART.max(chain.len().div_ceil(MOST_PIECES).next_power_of_two());
    let mut own: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < chain.len() {
        let (in_base, len) = chain.is_in_base(at, chain.len())?;
        if !in_base {
            let pieces = at / piece * piece..(at + len).next_multiple_of(piece).min(chain.len());
            match own.last_mut() {
                Some(last) if pieces.start <= last.end => last.end = last.end.max(pieces.end),
                _ => own.push(pieces),
            }
        }
        at += len;
    }
    Ok(own)
}

/// What lies before `end` and between ranges, which are ascending.
fn complement(ranges: &[Range<u64>], end: u64) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain([end]);
    starts.zip(ends).map(|(start, next)| start..next.min(end)).filter(|gap| gap.start < gap.end).collect()
}

/// Writes what is not zero to the places in `file` that it has on the disk.
fn unpack(chain: &Chain, own: &[Range<u64>], file: &File, path: &Path, how: Opening<'_>) -> Result<(), Error> {
    let share = |range: &Range<u64>| {
        let range = range.clone();
        (range.start..range.end).step_by(SHARE as usize).map(move |at| at..range.end.min(at + SHARE))
    };
    let shares: Vec<Range<u64>> = own.iter().flat_map(share).collect();
    let done = parallel::map(shares.len(), how.threads, |i| {
        let mut buffer = vec![0; PART as usize];
        for at in (shares[i].start..shares[i].end).step_by(PART as usize) {
            let bytes = &mut buffer[..(shares[i].end - at).min(PART) as usize];
            if chain.is_hole(at, bytes.len() as u64) {
                continue;
            }
            chain.read(at, bytes).map_err(|source| Error::Qcow2 { path: path.to_owned(), source })?;
            write_data(file, at, bytes).map_err(Error::io("write a temporary file in", how.folder))?;
        }
        Ok(())
    });
    done.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_ranges_leave() {
        assert_eq!(complement(&[], 10), [0..10]);
        assert_eq!(complement(&[0..10], 10), []);
        assert_eq!(complement(&[0..2, 5..7], 10), [2..5, 7..10]);
        assert_eq!(complement(&[2..5, 7..20], 6), [0..2, 5..6]);
        assert_eq!(complement(&[7..20], 0), []);
    }
}
