//! The second pass: who gives each byte between and around anchors.
//!
//! Between two anchors every byte is taken along the line before, along the line behind, along one of those that a
//! finer search finds ([`near`](super::near)), or literally, whichever makes the delta smallest by the estimate below:
//! a shortest path (Viterbi) over the bytes, which replaces bsdiff's forward and backward extension and its overlap rule.
//! So is what an anchor itself covers, where its line is far from equal.

use std::ops::Range;

use super::images::{Images, Line};
use super::near::{Candidate, Near};
use super::scan::Anchor;

/// A stretch of new data and the line it is taken along; `None`: literally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
    pub line: Option<Line>,
}

// Estimated cost in 1/64 byte of the compressed delta: found by trying on two kinds of images; the optimum is flat.
/// A literal byte, by how even the distribution of bytes around it is: 1 for noise, and compressed data hardly
/// above it; programs and text 5 to 20. Each limit is in quarters.
const LITERAL: [(usize, u32); 3] = [(6, 60), (12, 50), (20, 40)];
/// A literal byte among bytes more uneven than that.
const LITERAL_ELSE: u32 = 32;
/// Bytes before and behind a gap that are counted with it.
const AROUND: usize = 2048;
/// Equal bytes from which on the next one costs as little.
const REPEATED: usize = 8;
/// A byte taken over unchanged.
const EQUAL: u32 = 1;
/// A changed byte taken over with its difference.
const DIFFERENT: u32 = 56;
/// The first of several changed bytes: the run lengths around it.
const RUN: u32 = 24;
/// Another operation, from elsewhere.
const TURN: u32 = 200;
/// A literal operation in between.
const BREAK: u32 = 80;

/// What a candidate of the finer search must be worth, in equal bytes: less where literals hardly compress.
const WORTH: usize = 14;
const WORTH_IN_NOISE: usize = 10;

/// Bytes of an anchor that are looked at together, and the part of them (1 / this) from which on, if so many differ, they
/// are decided anew.
const CELL: usize = 64;
const POOR: usize = 16;
/// The per cent of what the anchor's line costs there from which on another way does not count: the estimate takes all
/// differences for new ones, but those of programs recur, and cost less.
const CLEARLY: u64 = 85;

/// Bytes of a gap, at either end, that are decided one by one; between them all is literal.
const REACH: usize = 32 << 10;

/// Cuts `piece` into spans by its `anchors`. `budget` is how many bytes that anchors cover may be decided anew, and becomes
/// how many more may.
pub(super) fn settle(
    images: &Images,
    piece: Range<usize>,
    anchors: &[Anchor],
    finer: bool,
    budget: &mut usize,
) -> Vec<Span> {
    let mut settle = Settle {
        images,
        finer,
        budget: *budget,
        piece: piece.clone(),
        spans: Vec::new(),
        near: Near::default(),
        literal: LITERAL_ELSE,
        states: Vec::new(),
        best: Vec::new(),
        entered: Vec::new(),
    };
    let mut done = piece.start;
    let mut before: Option<&Anchor> = None;
    for anchor in anchors {
        // Neighbours may overlap: there both lines are good, and the path decides where to change over.
        let from = before.map_or(piece.start, |before| before.end.min(anchor.start)).max(done);
        let to = before.map_or(anchor.start, |before| before.end.max(anchor.start)).min(anchor.end).max(from);
        settle.along(done..from, before.map(|before| before.line));
        settle.gap(from..to, before.map(|before| before.line), Some(anchor.line));
        done = to;
        before = Some(anchor);
    }
    let last = before.map(|before| before.line);
    let from = before.map_or(done, |before| before.end.max(done));
    settle.along(done..from, last);
    settle.gap(from..piece.end, last, None);
    *budget = settle.budget;
    settle.spans
}

struct Settle<'a> {
    images: &'a Images<'a>,
    /// Whether to search gaps.
    finer: bool,
    /// Bytes that may still be decided anew.
    budget: usize,
    piece: Range<usize>,
    spans: Vec<Span>,
    near: Near,
    /// The cost of a literal byte in the gap at hand.
    literal: u32,
    states: Vec<State>,
    /// For each byte of the gap at hand the best state before it, and a bit for each state that was entered from there.
    best: Vec<u8>,
    entered: Vec<u64>,
}

/// A way of giving bytes of a gap.
struct State {
    /// `None`: literally.
    line: Option<Line>,
    /// Where it may be used.
    range: Range<usize>,
    cost: u32,
    /// Whether the last byte differed.
    different: bool,
}

/// More than any way costs.
const NEVER: u32 = 1 << 24;

impl Settle<'_> {
    fn push(&mut self, range: Range<usize>, line: Option<Line>) {
        if range.is_empty() {
            return;
        }
        match self.spans.last_mut() {
            Some(last) if last.end == range.start && last.line == line => last.end = range.end,
            _ => self.spans.push(Span { start: range.start, end: range.end, line }),
        }
    }

    /// Takes what an anchor covers along its line, but for where that is far from equal and another way costs clearly less:
    /// an anchor follows its line as long as the index knows nothing better.
    fn along(&mut self, range: Range<usize>, line: Option<Line>) {
        let Some(line) = line else { return self.push(range, None) };
        let mut poor = range.start..range.start;
        for start in range.clone().step_by(CELL) {
            let cell = start..(start + CELL).min(range.end);
            if (cell.len() - self.images.equal_in(&line, cell.clone())) * POOR > cell.len() {
                poor.end = cell.end;
                continue;
            }
            self.again(poor, line);
            self.push(cell.clone(), Some(line));
            poor = cell.end..cell.end;
        }
        self.again(poor, line);
    }

    /// Decides a part of an anchor anew.
    fn again(&mut self, range: Range<usize>, line: Line) {
        if range.is_empty() {
            return;
        }
        let Some(budget) = self.budget.checked_sub(range.len()) else { return self.push(range, Some(line)) };
        self.budget = budget;
        let kept = self.spans.len();
        self.gap(range.clone(), Some(line), Some(line));
        let turn = |line: Option<Line>| u64::from(if line.is_none() { BREAK } else { TURN });
        let (mut cost, mut before) = (0, Some(line));
        for span in self.spans[kept.saturating_sub(1)..].iter().filter(|span| span.end > range.start) {
            cost += if span.line == before { 0 } else { turn(span.line) };
            cost += self.cost(span.start.max(range.start)..span.end, span.line);
            before = span.line;
        }
        cost += if before == Some(line) { 0 } else { turn(Some(line)) };
        if cost * 100 > self.cost(range.clone(), Some(line)) * CLEARLY {
            self.spans.truncate(kept);
            if let Some(last) = self.spans.last_mut() {
                last.end = last.end.min(range.start); // it may have been lengthened
            }
            self.push(range, Some(line));
        }
    }

    /// What bytes cost along a line, or literally, among bytes as of the last path.
    fn cost(&self, range: Range<usize>, line: Option<Line>) -> u64 {
        let mut different = false;
        range.map(|at| u64::from(byte_cost(self.images, self.literal, line, at, &mut different))).sum()
    }

    /// Decides a gap, near its ends byte by byte.
    fn gap(&mut self, gap: Range<usize>, before: Option<Line>, behind: Option<Line>) {
        if gap.len() <= 2 * REACH {
            return self.path(gap, before, behind);
        }
        let (head, tail) = (gap.start + REACH, gap.end - REACH);
        self.path(gap.start..head, before, None);
        self.push(head..tail, None);
        self.path(tail..gap.end, None, behind);
    }

    /// Finds the cheapest way through `gap`, from `before` to `behind`, either of which may be literal.
    fn path(&mut self, gap: Range<usize>, before: Option<Line>, behind: Option<Line>) {
        if gap.is_empty() {
            return;
        }
        self.literal = self.literal_cost(&gap);
        let worth = if self.literal == LITERAL_ELSE { WORTH } else { WORTH_IN_NOISE };
        let candidates =
            if self.finer { self.near.search(self.images, &gap, before, behind, worth) } else { Vec::new() };
        self.set_states(&gap, before, behind, &candidates);
        let count = self.states.len();
        let words = count.div_ceil(64);
        self.best.clear();
        self.entered.clear();
        self.entered.resize(gap.len() * words, 0);
        let mut active: Vec<usize> = Vec::with_capacity(count);
        let mut changes_at = gap.start;
        for (at, entered) in gap.clone().zip(self.entered.chunks_exact_mut(words)) {
            let fresh = at == changes_at;
            if fresh {
                changes_at = activate(&self.states, at, &mut active);
            }
            let best =
                if fresh { cheapest(&self.states, 0..count) } else { cheapest(&self.states, active.iter().copied()) };
            self.best.push(best as u8);
            step(self.images, self.literal, &mut self.states, &active, at, best, entered);
            if fresh {
                // A state that ended with the byte before could be left from in this step, but not later.
                let ended = |state: &&mut State| !state.range.contains(&at);
                self.states.iter_mut().filter(ended).for_each(|state| state.cost = NEVER);
            }
        }
        // Behind the gap is the next anchor; if there is none, any state may end it.
        let end = self.states.iter().position(|state| state.line == behind).unwrap_or(0);
        let cost = |number: usize| {
            let state = &self.states[number];
            let turn = if behind.is_none() || number == end { 0 } else { TURN };
            if state.range.end < gap.end { NEVER } else { state.cost + turn }
        };
        let last = (0..count).min_by_key(|&number| cost(number)).unwrap_or(0);
        self.trace(gap, last);
    }

    /// What a literal byte in `gap` costs: the sum of the squared shares of the 256 byte values says.
    fn literal_cost(&self, gap: &Range<usize>) -> u32 {
        let (start, end) = (gap.start.saturating_sub(AROUND), gap.end.saturating_add(AROUND));
        let sample = &self.images.new[start.max(self.piece.start)..end.min(self.piece.end)];
        let mut counts = [0_u64; 256];
        sample.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
        let squares: u64 = counts.iter().map(|count| count * count).sum();
        let total = sample.len() as u64;
        let even = |limit: usize| squares * 1024 <= total * total * limit as u64;
        LITERAL.iter().find(|(limit, _)| even(*limit)).map_or(LITERAL_ELSE, |(_, cost)| *cost)
    }

    /// The states for `gap`: 0 is literal, then come the neighbours' lines and the candidates'.
    fn set_states(&mut self, gap: &Range<usize>, before: Option<Line>, behind: Option<Line>, more: &[Candidate]) {
        let state = |line: Option<Line>, range: &Range<usize>| {
            let covered = line.map_or(gap.clone(), |line| range.start.max(line.lo)..range.end.min(line.hi));
            State { line, range: covered, cost: NEVER, different: false }
        };
        self.states.clear();
        self.states.push(state(None, gap));
        for line in before.into_iter().chain(behind.filter(|line| before != Some(*line))) {
            self.states.push(state(Some(line), gap));
        }
        let neighbours = [before, behind];
        let more = more.iter().filter(|candidate| !neighbours.contains(&Some(candidate.line)));
        self.states.extend(more.map(|candidate| state(Some(candidate.line), &candidate.range)));
        // The first byte may go on along `before`, or cost a turn.
        for (number, state) in self.states.iter_mut().enumerate() {
            state.cost = if state.line == before {
                0
            } else if number == 0 {
                BREAK
            } else {
                NEVER
            };
        }
    }

    /// Goes the path back from state `last` at the end of `gap` and adds its spans.
    fn trace(&mut self, gap: Range<usize>, last: usize) {
        let words = self.states.len().div_ceil(64);
        let (mut spans, mut state, mut end) = (Vec::new(), last, gap.end);
        for at in gap.clone().rev() {
            let row = at - gap.start;
            let entered = self.entered[row * words + state / 64] >> (state % 64) & 1 == 1;
            let before = if entered { usize::from(self.best[row]) } else { state };
            if before != state || at == gap.start {
                spans.push((at..end, self.states[state].line));
                end = at;
                state = before;
            }
        }
        for (range, line) in spans.into_iter().rev() {
            self.push(range, line);
        }
    }
}

/// Puts the states that may be used at `at` into `active`; returns where that changes next.
fn activate(states: &[State], at: usize, active: &mut Vec<usize>) -> usize {
    active.clear();
    let mut next = usize::MAX;
    for (number, state) in states.iter().enumerate() {
        if state.range.contains(&at) {
            active.push(number);
            next = next.min(state.range.end);
        } else if state.range.start > at {
            next = next.min(state.range.start);
        }
    }
    next
}

/// The cheapest of the states `numbers`.
fn cheapest(states: &[State], numbers: impl Iterator<Item = usize>) -> usize {
    numbers.min_by_key(|&number| states[number].cost).unwrap_or(0)
}

/// Whether the byte at `at` goes on a run of equal ones: as a literal it costs next to nothing.
fn repeats(new: &[u8], at: usize) -> bool {
    at >= REPEATED && new[at - REPEATED..at].iter().all(|byte| *byte == new[at])
}

/// Takes the byte `at` in each of the `active` states; where that is cheaper, it is entered from `best`.
fn step(
    images: &Images,
    literal: u32,
    states: &mut [State],
    active: &[usize],
    at: usize,
    best: usize,
    entered: &mut [u64],
) {
    let least = states[best].cost;
    for &number in active {
        let state = &mut states[number];
        // Costs are relative, so that they stay small however long the gap.
        let change = if number == 0 { BREAK } else { TURN };
        let stay = state.cost - least;
        entered[number / 64] |= u64::from(change < stay) << (number % 64);
        state.cost = stay.min(change) + byte_cost(images, literal, state.line, at, &mut state.different);
    }
}

/// What the byte at `at` costs along a line, or literally. `different` is whether the one before differed, and will be
/// whether this one does.
#[inline]
fn byte_cost(images: &Images, literal: u32, line: Option<Line>, at: usize, different: &mut bool) -> u32 {
    let Some(line) = line else { return if repeats(images.new, at) { EQUAL } else { literal } };
    let differs = images.new[at] != images.old[at.wrapping_add(line.shift)];
    let first = differs && !*different;
    *different = differs;
    // Among noise a difference is noise, too, and its varint of four bytes takes five.
    let change = DIFFERENT.max(literal + literal / 4);
    if differs { change + if first { RUN } else { 0 } } else { EQUAL }
}
