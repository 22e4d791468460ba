//! The second pass: who gives each byte between and around anchors.
//!
//! Between two anchors every byte is taken along the line before, along the line behind, or literally, whichever makes
//! the delta smallest by the estimate below: a shortest path (Viterbi) over the bytes, which replaces bsdiff's forward
//! and backward extension and its overlap rule.

use std::ops::Range;

use super::images::{Images, Line};
use super::scan::Anchor;

/// A stretch of new data and the line it is taken along; `None`: literally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
    pub line: Option<Line>,
}

// Estimated cost in 1/64 byte of the compressed delta.
/// A literal byte.
const LITERAL: u32 = 40;
/// A byte taken over unchanged.
const EQUAL: u32 = 1;
/// A changed byte taken over with its difference.
const DIFFERENT: u32 = 56;
/// The first of several changed bytes: the run lengths around it.
const RUN: u32 = 48;
/// Another operation, from elsewhere.
const TURN: u32 = 300;
/// A literal operation in between.
const BREAK: u32 = 120;

/// Bytes of a gap, at either end, that are decided one by one; between them all is literal.
const REACH: usize = 32 << 10;

/// Cuts `piece` into spans by its `anchors`.
pub(super) fn settle(images: &Images, piece: Range<usize>, anchors: &[Anchor]) -> Vec<Span> {
    let mut settle = Settle { images, spans: Vec::new(), choices: Vec::new() };
    let mut done = piece.start;
    let mut before: Option<&Anchor> = None;
    for anchor in anchors {
        // Neighbours may overlap: there both lines are good, and the path decides where to change over.
        let from = before.map_or(piece.start, |before| before.end.min(anchor.start)).max(done);
        let to = before.map_or(anchor.start, |before| before.end.max(anchor.start)).min(anchor.end).max(from);
        settle.push(done..from, before.map(|before| before.line));
        settle.gap(from..to, before.map(|before| before.line), Some(anchor.line));
        done = to;
        before = Some(anchor);
    }
    let last = before.map(|before| before.line);
    let from = before.map_or(done, |before| before.end.max(done));
    settle.push(done..from, last);
    settle.gap(from..piece.end, last, None);
    settle.spans
}

struct Settle<'a> {
    images: &'a Images<'a>,
    spans: Vec<Span>,
    /// For each byte and state of the gap at hand, the state before it.
    choices: Vec<[u8; 3]>,
}

impl Settle<'_> {
    fn push(&mut self, range: Range<usize>, line: Option<Line>) {
        if range.is_empty() {
            return;
        }
        if let Some(last) = self.spans.last_mut()
            && last.end == range.start
            && last.line == line
        {
            last.end = range.end;
            return;
        }
        self.spans.push(Span { start: range.start, end: range.end, line });
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

    /// Finds the cheapest way through `gap`: states are 0, literal; 1, along `before`; 2, along `behind`.
    fn path(&mut self, gap: Range<usize>, before: Option<Line>, behind: Option<Line>) {
        let lines = [None, before, behind.filter(|line| before != Some(*line))];
        let first = usize::from(before.is_some());
        let last = match behind {
            Some(line) if before == Some(line) => 1,
            Some(_) => 2,
            None => 0,
        };
        if gap.is_empty() {
            return;
        }
        let mut cost = [TURN; 3];
        cost[0] = BREAK;
        cost[first] = 0;
        self.choices.clear();
        let mut different = [false; 3];
        for at in gap.clone() {
            let best = (0..3).min_by_key(|&state| cost[state]).unwrap_or(0);
            let mut choice = [0, 1, 2];
            for state in 0..3 {
                let change = cost[best] + if state == 0 { BREAK } else { TURN };
                if change < cost[state] {
                    cost[state] = change;
                    choice[state] = best as u8;
                }
                cost[state] += match lines[state] {
                    None if state == 0 => LITERAL,
                    Some(line) if line.covers(at) => {
                        let equal = self.images.new[at] == self.images.old[at.wrapping_add(line.shift)];
                        let start = !equal && !different[state];
                        different[state] = !equal;
                        if equal { EQUAL } else { DIFFERENT + if start { RUN } else { 0 } }
                    }
                    _ => u32::MAX / 4,
                };
            }
            // Costs are relative: taking the smallest off keeps them small however long the gap.
            let least = cost[0].min(cost[1]).min(cost[2]);
            for cost in &mut cost {
                *cost = (*cost - least).min(1 << 20);
            }
            self.choices.push(choice);
        }
        // Behind the gap is the next anchor; if there is none, any state may end it.
        for (state, cost) in cost.iter_mut().enumerate() {
            *cost += if behind.is_none() || state == last { 0 } else { TURN };
        }
        let state = (0..3).min_by_key(|&state| cost[state]).unwrap_or(0);
        self.trace(gap, &lines, state);
    }

    /// Goes the path back from `state` at the end of `gap` and adds its spans.
    fn trace(&mut self, gap: Range<usize>, lines: &[Option<Line>; 3], mut state: usize) {
        let mut spans = Vec::new();
        let mut end = gap.end;
        for at in gap.clone().rev() {
            let before = usize::from(self.choices[at - gap.start][state]);
            if before != state || at == gap.start {
                spans.push((at..end, lines[state]));
                end = at;
                state = before;
            }
        }
        for (range, line) in spans.into_iter().rev() {
            self.push(range, line);
        }
    }
}
