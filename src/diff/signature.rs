//! `diff --signature`: a delta where the old image is not at hand, only its signature. What the signature's blocks tell
//! of the new image is copied, byte for byte; the rest is literal.
//!
//! MD4 and a truncated checksum prove little, and a bare signature does not even know the old image's length: so what
//! holds the delta together is checked on the target, before its first write, as for any other delta: the sources of
//! every batch, and the digest of all that is not touched.

use super::DiffOptions;
use crate::compare::{Comparison, View, identify};
use crate::digest::is_zero;
use crate::matcher::{Run, Source};
use crate::parallel;
use crate::signature::{SignatureError, SignatureFile, entries_of, segments};
use crate::signature_index::Sought;
use crate::units::{BLOCK, Extent, blocks_touched, merge_extents, merge_ranges};
use fast_rsync::{IndexedSignature, diff};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are matched in one go, about: matches across their borders are found only in part.
const PIECE: u64 = 4 << 20;

/// What a signature tells about a new image.
pub(crate) struct Told {
    /// Runs that tile the changed blocks.
    pub runs: Vec<Run>,
    /// As much as is known, with the new image in the old one's place where nothing is known of it.
    pub comparison: Comparison,
}

/// Finds out what of `new` differs from the signature's image, and what of that lies elsewhere in it.
///
/// # Errors
/// [`SignatureError`].
pub(crate) fn match_signature(
    signature: &SignatureFile,
    new: View<'_>,
    options: &DiffOptions,
) -> Result<Told, SignatureError> {
    let threads = options.threads;
    let sought = Sought::new(signature, PIECE, options.memory)?;
    let changed = changed_blocks(signature, new, threads);
    let index = sought.index();
    let pieces: Vec<Range<u64>> = changed.iter().flat_map(|extent| cut(extent.bytes(new.len()))).collect();
    let found = parallel::map(pieces.len(), threads, |i| match_piece(&sought, &index, new.bytes, pieces[i].clone()));
    let mut runs: Vec<Run> = Vec::new();
    for piece in found {
        piece
            .ok_or(SignatureError::Malformed("its checksums cannot be used"))?
            .into_iter()
            .for_each(|run| push(&mut runs, run));
    }
    let id = identify(new, threads);
    let comparison = Comparison::of_old_unknown(signature.image.unwrap_or(id), id, changed);
    Ok(Told { runs, comparison })
}

fn cut(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    (range.start..range.end).step_by(PIECE as usize).map(move |start| start..range.end.min(start + PIECE))
}

/// The blocks of the new image that are not, as a whole, in blocks whose checksums equal the signature's at the same place.
fn changed_blocks(signature: &SignatureFile, new: View<'_>, threads: usize) -> Vec<Extent> {
    let shape = signature.shape;
    let (entry, block) = (shape.entry(), u64::from(shape.block_len));
    let segments = segments(new.len(), shape);
    let differing = parallel::map(segments.len(), threads, |i| {
        let segment = &segments[i];
        let mine = entries_of(new, segment.clone(), shape);
        let from = (segment.start / block) as usize * entry;
        let theirs = signature.entries().get(from..).unwrap_or_default();
        let same = |i: usize, mine: &[u8]| theirs.get(i * entry..(i + 1) * entry) == Some(mine);
        let mut changed: Vec<Extent> = Vec::new();
        for (i, _) in mine.chunks(entry).enumerate().filter(|(i, mine)| !same(*i, mine)) {
            let start = segment.start + i as u64 * block;
            let blocks = blocks_touched(&(start..segment.end.min(start + block)));
            match changed.last_mut() {
                // Neighbours merge at once: a signature may have very many blocks.
                Some(last) if blocks.start <= last.end() => last.count = blocks.end() - last.start,
                _ => changed.push(blocks),
            }
        }
        changed
    });
    let mut changed: Vec<Extent> = differing.into_iter().flatten().collect();
    merge_extents(&mut changed);
    changed
}

/// Where the bytes of a piece come from. `None` where the signature cannot be used.
fn match_piece(sought: &Sought, index: &IndexedSignature<'_>, new: &[u8], piece: Range<u64>) -> Option<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = piece.start;
    while at < piece.end {
        // Zero blocks are set aside: they cost nothing as they are.
        let zero = |from: u64| is_zero(&new[from as usize..piece.end.min(from + BLOCK) as usize]);
        let kind = zero(at);
        let mut end = at;
        while end < piece.end && zero(end) == kind {
            end = piece.end.min(end + BLOCK);
        }
        if kind {
            push(&mut runs, Run { dst: at, len: end - at, source: Source::Zero });
        } else {
            let mut commands = Vec::new();
            diff(index, &new[at as usize..end as usize], &mut commands).ok()?;
            read_commands(&commands, sought, at, &mut runs)?;
        }
        at = end;
    }
    Some(runs)
}

/// Reads librsync's commands (its doc/format.md) for the new image from byte `dst` on.
fn read_commands(commands: &[u8], sought: &Sought, mut dst: u64, runs: &mut Vec<Run>) -> Option<()> {
    let mut rest = commands.get(4..)?; // the magic number
    let take = |rest: &mut &[u8], count: usize| {
        let (number, others) = rest.split_at_checked(count)?;
        *rest = others;
        Some(number.iter().fold(0, |all: u64, byte| all << 8 | u64::from(*byte)))
    };
    loop {
        let len = match take(&mut rest, 1)? as u8 {
            0 => return rest.is_empty().then_some(()),
            command @ 0x01..=0x40 => u64::from(command),
            command @ 0x41..=0x44 => take(&mut rest, 1 << (command - 0x41))?,
            command @ 0x45..=0x54 => {
                let (offset, len) = ((command - 0x45) / 4, (command - 0x45) % 4);
                let (found, len) = (take(&mut rest, 1 << offset)?, take(&mut rest, 1 << len)?);
                let block = sought.block_len;
                for (dst, src) in (dst..).step_by(block as usize).zip(sought.places(found, len)?) {
                    push(runs, Run { dst, len: block, source: Source::Copy { src } });
                }
                dst += len;
                continue;
            }
            _ => return None,
        };
        rest = rest.get(usize::try_from(len).ok()?..)?;
        push(runs, Run { dst, len, source: Source::Literal });
        dst += len;
    }
}

/// Appends a run, to the last one if it continues it.
fn push(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut()
        && last.dst + last.len == run.dst
    {
        let continues = match (last.source, run.source) {
            (Source::Literal, Source::Literal) | (Source::Zero, Source::Zero) => true,
            (Source::Copy { src: a }, Source::Copy { src: b }) => a + last.len == b,
            _ => false,
        };
        if continues {
            last.len += run.len;
            return;
        }
    }
    runs.push(run);
}

/// As much of the old image as the runs read, in a sparse file: what they copy is in the new image.
///
/// # Errors
/// The system's.
pub(crate) fn known_old(runs: &[Run], new: &[u8], folder: &Path) -> io::Result<File> {
    let file = tempfile::tempfile_in(folder)?;
    let mut len = 0;
    for run in runs {
        if let Source::Copy { src } = run.source {
            file.write_all_at(&new[run.dst as usize..(run.dst + run.len) as usize], src)?;
            len = len.max(src + run.len);
        }
    }
    file.set_len(len.next_multiple_of(BLOCK))?;
    Ok(file)
}

/// The old bytes that runs read: ascending, merged. Saves must hold nothing else, as nothing else is known.
pub(crate) fn known_ranges(runs: &[Run]) -> Vec<Range<u64>> {
    let copies = runs.iter().filter_map(|run| match run.source {
        Source::Copy { src } => Some(src..src + run.len),
        _ => None,
    });
    let mut ranges: Vec<Range<u64>> = copies.collect();
    merge_ranges(&mut ranges);
    ranges
}

/// The parts of `ranges` that lie in `known`, both ascending and disjoint.
pub(crate) fn clipped(ranges: &[Range<u64>], known: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut clipped = Vec::new();
    for range in ranges {
        let first = known.partition_point(|known| known.end <= range.start);
        let inside = known[first..].iter().take_while(|known| known.start < range.end);
        clipped.extend(inside.map(|known| known.start.max(range.start)..known.end.min(range.end)));
    }
    clipped
}
