//! The first pass over a piece of new data: which old places its parts come from.
//!
//! It follows one displacement as long as that gives equal bytes. Where a byte differs it looks the surrounding windows
//! up and changes to another displacement only by bsdiff's rule (Percival, "Naive differences of executable code",
//! 2003): if the other's exact match is longer by more than eight bytes than what the present one gives over the same
//! bytes. So a program whose addresses changed stays one stretch.

use std::ops::Range;

use super::images::{Images, Line};
use super::index::{BATCH, Index, WINDOW};

/// A stretch of new data, `start..end`, that `line` gives, but for a few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    pub start: usize,
    pub end: usize,
    pub line: Line,
}

/// Bytes by which another displacement must be better: bsdiff's.
const GAIN: usize = 8;
/// Wrong bytes in the next two windows up to which the present line counts as good.
const GOOD: usize = 16;
/// Wrong places of a good line from one look for a better one to the next.
const PATIENCE: usize = 4;
/// How far a candidate is compared, in bytes each way: enough to tell which is better.
const REACH: usize = 4096;
/// Windows before a differing byte that are looked up; they contain it.
const BEFORE: usize = 24;
/// Equal bytes along the same displacement that make a new anchor.
const STRETCH: usize = 16;
/// Different bytes that an anchor bridges.
const BRIDGE: usize = 8;

pub(super) struct Scan<'a> {
    images: &'a Images<'a>,
    index: &'a Index,
    piece: Range<usize>,
    line: Option<Line>,
    anchors: Vec<Anchor>,
    /// Windows before this one have been looked up.
    looked: usize,
    found: Vec<(usize, usize)>,
    /// Wrong bytes since the last look while the present line was good.
    wrong: usize,
}

/// The anchors of `piece`, in order; starts and ends ascend, though neighbours may overlap. `shifts` are displacements to
/// try first.
pub(super) fn scan(images: &Images, index: &Index, piece: Range<usize>, shifts: &[usize]) -> Vec<Anchor> {
    let looked = piece.start;
    let mut scan = Scan { images, index, piece, line: None, anchors: Vec::new(), looked, found: Vec::new(), wrong: 0 };
    scan.line = scan.first_line(shifts);
    scan.run();
    scan.anchors
}

impl Scan<'_> {
    fn run(&mut self) {
        let mut at = self.piece.start;
        while at < self.piece.end {
            at = self.follow(at);
            if at >= self.piece.end {
                break;
            }
            match self.look(at) {
                Some(better) => {
                    at = better.end;
                    self.line = Some(better.line);
                    self.anchors.push(better);
                }
                None => at += 1,
            }
        }
    }

    /// Of `shifts`, the one that gives most of the piece's first bytes.
    fn first_line(&self, shifts: &[usize]) -> Option<Line> {
        let start = self.piece.start;
        let lines = shifts.iter().filter_map(|shift| self.images.line(start, start.wrapping_add(*shift)));
        lines.max_by_key(|line| self.images.equal_in(line, start..self.piece.end.min(start + REACH)))
    }

    /// Goes along the present line as far as bytes are equal.
    fn follow(&mut self, at: usize) -> usize {
        let Some(line) = self.line else { return at };
        let len = self.images.equal_from(&line, at, self.piece.end);
        let end = at + len;
        if len == 0 {
            return at;
        }
        match self.anchors.last_mut() {
            Some(last) if last.line == line && at - last.end <= BRIDGE => last.end = end,
            _ if len >= STRETCH => self.anchors.push(Anchor { start: at, end, line }),
            _ => {}
        }
        end
    }

    /// At `at` the present line gives a wrong byte: a better one around here, if there is one.
    fn look(&mut self, at: usize) -> Option<Anchor> {
        if self.looked > at {
            return None;
        }
        let (start, end) = self.where_to_look(at)?;
        let mut from = self.looked.max(start);
        let mut best: Option<(usize, Anchor)> = None;
        while from < end && best.is_none() {
            let to = (from + BATCH).min(end);
            self.looked = to;
            let mut found = std::mem::take(&mut self.found);
            self.index.find(&self.new_bytes()[..self.piece.end], from..to, &mut found);
            for (dst, src) in found.drain(..) {
                best = self.better(best, dst, src);
            }
            self.found = found;
            from = to;
        }
        best.map(|(_, anchor)| anchor)
    }

    /// The windows to look up at `at`, where the present line gives a wrong byte. While it gives few wrong bytes, another
    /// one can be better only over a long stretch, and so is found just as well a little later: no need to look each time.
    fn where_to_look(&mut self, at: usize) -> Option<(usize, usize)> {
        let ahead = at..(at + 2 * WINDOW).min(self.piece.end);
        let good = self.line.is_some_and(|line| ahead.len() - self.images.equal_in(&line, ahead.clone()) <= GOOD);
        if !good {
            return Some((at.saturating_sub(BEFORE), at + BATCH));
        }
        self.wrong += 1;
        if self.wrong < PATIENCE {
            return None;
        }
        self.wrong = 0;
        Some((at.saturating_sub(self.index.grid() - 1), at + 1))
    }

    fn new_bytes(&self) -> &[u8] {
        self.images.new
    }

    /// The better of `best` and what `src` gives for `dst`.
    fn better(&self, best: Option<(usize, Anchor)>, dst: usize, src: usize) -> Option<(usize, Anchor)> {
        let known = |shift| self.line.is_some_and(|line| line.shift == shift && line.covers(dst));
        let shift = src.wrapping_sub(dst);
        if known(shift) || best.is_some_and(|(_, anchor)| anchor.line.shift == shift && dst < anchor.end) {
            return best;
        }
        let Some(line) = self.images.line(dst, src) else { return best };
        let len = self.images.equal_from(&line, dst, self.piece.end.min(dst + REACH));
        if len < WINDOW {
            return best;
        }
        let floor = self.anchors.last().map_or(self.piece.start, |last| last.start).max(dst.saturating_sub(REACH));
        let start = dst - self.images.equal_before(&line, dst, floor);
        let end = dst + len;
        let present = self.line.map_or(0, |line| self.images.equal_in(&line, start..end));
        let gain = end - start - present;
        if gain <= GAIN {
            return best;
        }
        let nearer = |other: &Line| self.line.is_some_and(|now| now.distance(&line) < now.distance(other));
        match best {
            Some((most, anchor)) if most > gain || most == gain && !nearer(&anchor.line) => best,
            _ => Some((gain, Anchor { start, end, line })),
        }
    }
}
