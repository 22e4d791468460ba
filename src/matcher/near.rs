//! A finer search, in a gap between anchors: parts of it may come from near where its neighbours come from.
//!
//! All windows of eight bytes of that old neighbourhood are put into a small table, and the gap's are looked up.
//! A changed function matches itself only in pieces, so a candidate is judged by bsdiff's measure of an approximate
//! match: equal bytes less different ones, as far as that grows.

use std::iter;
use std::ops::Range;

use super::images::{Images, Line};

/// Bytes of a window.
const WINDOW: usize = 8;
/// Shorter gaps are not worth a search.
const SHORTEST: usize = 16;
/// The longest gap searched, in bytes: what is longer is new.
const LONGEST: usize = 64 << 10;
/// Bytes of the old image searched before and behind where the neighbours point to.
const SLACK: usize = 4096;
/// Places of one hash that are tried.
const TRIES: usize = 8;
/// Displacements that may be open at one place: bounds the time where everything resembles everything.
const OPEN: usize = 100;
/// How far a candidate is followed, in bytes each way.
const REACH: usize = 256;
/// Bytes beyond a candidate's best extent over which it may still be used.
const MARGIN: usize = 64;
/// The most candidates for a gap. With the neighbours' lines and the literal state, their number fits a byte.
pub(super) const MOST: usize = 250;

/// Part of a gap, and the line along which it may be taken.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub line: Line,
    pub range: Range<usize>,
}

/// The tables for a search, kept for the next one.
#[derive(Default)]
pub(super) struct Near {
    /// For each hash the last place in `region` with it, plus one.
    heads: Vec<u32>,
    /// For each place the one before with the same hash.
    chain: Vec<u32>,
    found: Vec<(usize, Candidate)>,
    /// Of what was judged last, that which reaches the place at hand: displacement and end.
    open: Vec<(usize, usize)>,
    /// What a candidate must be worth, in equal bytes.
    enough: usize,
}

fn hash(bytes: &[u8], bits: u32) -> Option<usize> {
    let word = u64::from_le_bytes(*bytes.first_chunk::<WINDOW>()?);
    let plain = word == word.rotate_left(8);
    (!plain).then(|| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize)
}

impl Near {
    /// Candidates for `gap`, which lies between what `before` and `behind` give: those that are worth at least `worth`
    /// equal bytes.
    pub(super) fn search(
        &mut self,
        images: &Images,
        gap: &Range<usize>,
        before: Option<Line>,
        behind: Option<Line>,
        worth: usize,
    ) -> Vec<Candidate> {
        self.found.clear();
        self.enough = worth;
        if (SHORTEST..=LONGEST).contains(&gap.len()) {
            let regions = regions(images, gap, before, behind);
            for region in regions {
                self.search_region(images, gap, region);
            }
        }
        self.found.sort_by_key(|(worth, candidate)| (std::cmp::Reverse(*worth), candidate.range.start));
        self.found.truncate(MOST);
        self.found.drain(..).map(|(_, candidate)| candidate).collect()
    }

    fn search_region(&mut self, images: &Images, gap: &Range<usize>, region: Range<usize>) {
        let old = &images.old[region.clone()];
        let bits = usize::BITS - old.len().leading_zeros() + 1;
        self.heads.clear();
        self.heads.resize(1 << bits, 0);
        self.chain.clear();
        for at in 0..(old.len() + 1).saturating_sub(WINDOW) {
            let head = hash(&old[at..], bits).map_or(0, |hash| std::mem::replace(&mut self.heads[hash], at as u32 + 1));
            self.chain.push(head);
        }
        self.open.clear();
        let mut covered = gap.start;
        for at in gap.start..(gap.end + 1).saturating_sub(WINDOW) {
            if at < covered {
                continue;
            }
            let Some(hash) = hash(&images.new[at..], bits) else { continue };
            let mut place = self.heads[hash] as usize;
            for _ in 0..TRIES {
                let Some(here) = place.checked_sub(1) else { break };
                covered = covered.max(self.judge(images, gap, at, region.start + here));
                place = self.chain[here] as usize;
            }
        }
    }

    /// Notes that `src` gives `at`, if that is worth it; returns up to where no more windows need be looked up.
    fn judge(&mut self, images: &Images, gap: &Range<usize>, at: usize, src: usize) -> usize {
        if images.new[at..at + WINDOW] != images.old[src..src + WINDOW] {
            return at;
        }
        let shift = src.wrapping_sub(at);
        self.open.retain(|&(_, end)| end > at);
        if self.open.len() >= OPEN || self.open.iter().any(|&(known, _)| known == shift) {
            return at;
        }
        let Some(line) = images.line(at, src) else { return at };
        let exact = images.equal_from(&line, at, gap.end);
        let (low, high) = (gap.start.max(line.lo).max(at.saturating_sub(REACH)), gap.end.min(line.hi).min(at + REACH));
        let equal = |x: usize| images.new[x] == images.old[x.wrapping_add(shift)];
        let (forth, gained) = extend((at..high.max(at)).map(equal));
        let (back, gained_back) = extend((low.min(at)..at).rev().map(equal));
        let worth = gained + gained_back;
        if worth < self.enough {
            // The next windows of this match would only say the same.
            self.open.push((shift, at + exact));
            return at;
        }
        let start = (at - back).saturating_sub(MARGIN).max(gap.start);
        let end = (at + forth + MARGIN).min(gap.end);
        self.open.push((shift, end));
        self.found.push((worth, Candidate { line, range: start..end }));
        // A long exact match needs no rival.
        if exact >= 2 * WINDOW { at + exact - WINDOW / 2 } else { at }
    }
}

/// How far to go for the largest surplus of equal bytes over twice the different ones, and that surplus.
fn extend(equal: impl Iterator<Item = bool>) -> (usize, usize) {
    let (mut score, mut best, mut len) = (0_i32, 0, 0);
    for (number, equal) in equal.enumerate() {
        score += if equal { 1 } else { -2 };
        if score > best {
            (best, len) = (score, number + 1);
        } else if score < best - 48 {
            break;
        }
    }
    (len, usize::try_from(best).unwrap_or(0))
}

/// Where to search in the old image: around the places where `before` would go on and `behind` come from.
fn regions(images: &Images, gap: &Range<usize>, before: Option<Line>, behind: Option<Line>) -> Vec<Range<usize>> {
    let slack = SLACK.min(gap.len() * 4 + 256);
    let around = |dst: usize, line: Line, back: usize, forth: usize| {
        let src = dst.wrapping_add(line.shift);
        let inside = images.line(line.lo, line.lo.wrapping_add(line.shift))?;
        let data = line.lo.wrapping_add(line.shift)..inside.hi.wrapping_add(line.shift);
        let (start, end) = (src.saturating_sub(back).max(data.start), src.saturating_add(forth).min(data.end));
        (start < end).then_some(start..end)
    };
    let first = before.and_then(|line| around(gap.start, line, slack, gap.len() + slack));
    let second = behind.and_then(|line| around(gap.end, line, gap.len() + slack, slack));
    match (first, second) {
        (Some(first), Some(second)) if first.start <= second.end && second.start <= first.end => {
            iter::once(first.start.min(second.start)..first.end.max(second.end)).collect()
        }
        (first, second) => first.into_iter().chain(second).collect(),
    }
}
