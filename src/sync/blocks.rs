//! Which blocks of a chunk differ, and what is remembered of those that were written. Pure.

use crate::digest::is_zero;
use crate::sweep::CHUNK;
use crate::units::BLOCK;
use std::ops::Range;

/// Bytes of a window, the unit in which written blocks are remembered: as many blocks as a mask has bits.
const WINDOW: u64 = 64 * BLOCK;
/// Windows in a chunk.
const WINDOWS: usize = (CHUNK / WINDOW) as usize;

/// The blocks of a chunk that differ, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Differing([u64; WINDOWS]);

impl Differing {
    /// Compares a chunk of the image with as many bytes of the target.
    pub fn between(image: &[u8], target: &[u8]) -> Self {
        let mut found = Self::default();
        let blocks = image.chunks(BLOCK as usize).zip(target.chunks(BLOCK as usize));
        for (i, _) in blocks.enumerate().filter(|(_, (a, b))| a != b) {
            found.0[i / 64] |= 1 << (i % 64);
        }
        found
    }

    /// Whether no block differs.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WINDOWS]
    }

    fn holds(&self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }

    /// The runs of differing blocks, as bytes of a chunk of `len` bytes, whose last block may be short.
    pub fn runs(&self, len: usize) -> impl Iterator<Item = Range<usize>> {
        let blocks = len.div_ceil(BLOCK as usize);
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = (at..blocks).find(|block| self.holds(*block))?;
            at = (start..blocks).find(|block| !self.holds(*block)).unwrap_or(blocks);
            Some(start * BLOCK as usize..(at * BLOCK as usize).min(len))
        })
    }
}

/// Cuts a run where long zeros begin and end; tells of each piece whether it is zeros. Short zeros stay with what
/// surrounds them: one write more would cost more than it saves.
pub(super) fn pieces(run: &[u8]) -> impl Iterator<Item = (Range<usize>, bool)> {
    const UNIT: usize = WINDOW as usize / 4;
    let mut units = run.chunks(UNIT).map(|unit| (unit.len(), unit.len() == UNIT && is_zero(unit))).peekable();
    let mut at = 0;
    std::iter::from_fn(move || {
        let (mut len, zeros) = units.next()?;
        while let Some((more, _)) = units.next_if(|(_, next)| *next == zeros) {
            len += more;
        }
        at += len;
        Some((at - len..at, zeros))
    })
}

/// What was written to a window of the target: enough to check it by reading it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Where the window starts.
    start: u64,
    /// A bit for each block that was written.
    mask: u64,
    /// Bytes of the window that lie in the image.
    len: u32,
    /// CRC-32 of the blocks that were written, in order.
    crc: u32,
}

impl Written {
    /// What is remembered of a chunk at `offset` whose `differing` blocks were written.
    pub fn of(offset: u64, chunk: &[u8], differing: &Differing) -> impl Iterator<Item = Self> {
        let windows = (offset..).step_by(WINDOW as usize).zip(chunk.chunks(WINDOW as usize)).zip(differing.0);
        windows.filter(|(_, mask)| *mask != 0).map(|((start, bytes), mask)| {
            let window = Self { start, mask, len: bytes.len() as u32, crc: 0 };
            let span = window.span();
            let crc = window.crc_of(&bytes[(span.start - start) as usize..(span.end - start) as usize]);
            Self { crc, ..window }
        })
    }

    /// From the first byte that was written to the last.
    pub fn span(&self) -> Range<u64> {
        let first = u64::from(self.mask.trailing_zeros());
        let behind = u64::from(u64::BITS - self.mask.leading_zeros());
        self.start + first * BLOCK..self.start + (behind * BLOCK).min(u64::from(self.len))
    }

    /// Whether the bytes of [`Written::span`] are those that were written, as far as they were.
    pub fn is_kept(&self, span: &[u8]) -> bool {
        self.crc_of(span) == self.crc
    }

    fn crc_of(&self, span: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut mask = self.mask >> self.mask.trailing_zeros();
        for block in span.chunks(BLOCK as usize) {
            if mask & 1 == 1 {
                hasher.update(block);
            }
            mask >>= 1;
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: usize = BLOCK as usize;

    fn differing(blocks: &[usize]) -> Differing {
        let mut found = Differing::default();
        blocks.iter().for_each(|block| found.0[block / 64] |= 1 << (block % 64));
        found
    }

    #[test]
    fn differing_blocks_are_found_and_run_together() {
        let image = vec![1; 200 * B + 100];
        let mut target = image.clone();
        for at in [0, 5 * B, 6 * B + 7, 64 * B - 1, 64 * B, 200 * B + 99] {
            target[at] = 2;
        }
        let found = Differing::between(&image, &target);
        assert_eq!(found, differing(&[0, 5, 6, 63, 64, 200]));
        let runs: Vec<_> = found.runs(image.len()).collect();
        assert_eq!(runs, [0..B, 5 * B..7 * B, 63 * B..65 * B, 200 * B..200 * B + 100]);
        let same = Differing::between(&image, &image);
        assert!(same.is_empty() && same.runs(image.len()).next().is_none());
        let all = Differing::between(&[1; CHUNK as usize], &[0; CHUNK as usize]);
        assert_eq!(all.runs(CHUNK as usize).collect::<Vec<_>>(), [0..CHUNK as usize]);
    }

    #[test]
    fn long_zeros_stand_apart_and_short_ones_do_not() {
        let mut run = vec![0; 70 * B];
        run[20 * B] = 1;
        run[69 * B + 5] = 1;
        let found: Vec<_> = pieces(&run).collect();
        assert_eq!(
            found,
            [(0..16 * B, true), (16 * B..32 * B, false), (32 * B..64 * B, true), (64 * B..70 * B, false)]
        );
        assert_eq!(pieces(&[0; 3 * B]).collect::<Vec<_>>(), [(0..3 * B, false)]);
        assert!(pieces(&[]).next().is_none());
    }

    #[test]
    fn what_was_written_is_recognised_and_nothing_else_matters() {
        let chunk: Vec<u8> = (0..130 * B + 9).map(|i| (i / B) as u8 + 1).collect();
        let windows: Vec<Written> = Written::of(CHUNK, &chunk, &differing(&[3, 5, 130])).collect();
        assert_eq!(windows.len(), 2);
        let spans: Vec<Range<u64>> = windows.iter().map(Written::span).collect();
        let at = |block: u64| CHUNK + block * BLOCK;
        assert_eq!(spans, [at(3)..at(6), at(130)..at(130) + 9]);
        let mut back = chunk[3 * B..6 * B].to_vec();
        assert!(windows[0].is_kept(&back));
        back[B + 1] = 99; // the block between was not written
        assert!(windows[0].is_kept(&back));
        back[2 * B] ^= 1;
        assert!(!windows[0].is_kept(&back));
        assert!(windows[1].is_kept(&chunk[130 * B..]) && !windows[1].is_kept(&[0; 9]));
    }
}
