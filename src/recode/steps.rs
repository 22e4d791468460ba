//! The steps that make deflated bytes of the new image from a changed text.

use super::Recoding;
use super::stream::Place;
use crate::delta::step::{NEW_TEXT, OLD_TEXT, Step, StepKind, UNPACK_MOST};
use crate::delta::writer::NewTexts;
use crate::matcher::{Run, Source};
use crate::plan::Recode;
use crate::units::BLOCK;
use std::ops::Range;

/// Bytes of the old image that may be read for a block of the new one: keeps a batch's sources within bounds.
const BLOCK_SOURCES: u64 = 160 << 10;
/// Bytes of the old texts for a block of the new image: what makes two of them, and what reaches in, are enough for a step.
const BLOCK_TEXT: u64 = OLD_TEXT / 4;
/// Old text of a block that is unpacked, at the most, to reach what is wanted of it; further in, its header and the rest
/// are unpacked apart.
const AHEAD: u64 = 4 << 10;

/// A stretch of the old texts between two known places, and how much of it is used.
#[derive(Clone, Debug)]
struct Stretch {
    text: Range<u64>,
    used: u64,
}

impl Recode for Recoding<'_> {
    fn steps(&self, bytes: Range<u64>, steps: &mut Vec<Step>) {
        let Some((first, end)) = self.new_texts.items_of(self.new, &bytes) else { return };
        let Some(header) = self.header_before(first) else { return };
        let len = bytes.end - bytes.start;
        let text = first.text..end.text;
        let stretches = self.stretches(&text);
        let (unpack, bases) = self.unpack(&stretches);
        let fits = header + text.end - text.start <= NEW_TEXT && Cost::of(&unpack).text <= OLD_TEXT;
        if !fits && len > 1 {
            let middle = bytes.start + len / 2;
            self.steps(bytes.start..middle, steps);
            self.steps(middle..bytes.end, steps);
            return;
        }
        steps.extend(unpack);
        steps.push(Step::deflate(bytes.start, len, (bytes.start * 8 - first.bit) as u32));
        self.text_steps(&text, header, (&stretches, &bases), steps);
    }
}

/// What unpacking takes.
#[derive(Default)]
struct Cost {
    text: u64,
    sources: u64,
}

impl Cost {
    fn of(steps: &[Step]) -> Self {
        steps.iter().fold(Self::default(), |cost, step| Self {
            text: cost.text + step.unpacked().1,
            sources: cost.sources + step.len,
        })
    }
}

/// Keeps as many of a block's stretches as may be unpacked for it, those that are used least being left out first.
fn affordable(stretches: &mut Vec<Stretch>, cost: impl FnMut(&Stretch) -> Cost) {
    let costs: Vec<Cost> = stretches.iter().map(cost).collect();
    let Cost { mut text, mut sources } = costs
        .iter()
        .fold(Cost::default(), |sum, cost| Cost { text: sum.text + cost.text, sources: sum.sources + cost.sources });
    let mut by_use: Vec<usize> = (0..stretches.len()).collect();
    by_use.sort_by_key(|i| stretches[*i].used);
    let mut kept = vec![true; stretches.len()];
    for i in by_use {
        if text <= BLOCK_TEXT && sources <= BLOCK_SOURCES {
            break;
        }
        (text, sources, kept[i]) = (text - costs[i].text, sources - costs[i].sources, false);
    }
    let mut kept = kept.into_iter();
    stretches.retain(|_| kept.next() == Some(true));
}

impl NewTexts for Recoding<'_> {
    fn text(&self, bytes: Range<u64>) -> Option<(Vec<u8>, u32)> {
        let (first, end) = self.new_texts.items_of(self.new, &bytes)?;
        let header = self.header_before(first)?;
        let mut text = if header > 0 { self.new_texts.silent_header(first.block)? } else { Vec::new() };
        text.extend_from_slice(self.new_texts.bytes.bytes().get(first.text as usize..end.text as usize)?);
        Some((text, (bytes.start * 8 - first.bit) as u32))
    }
}

impl Recoding<'_> {
    /// Bytes of what a text that begins here needs before it: the silent header of the block, unless that begins here, too.
    fn header_before(&self, first: Place) -> Option<u64> {
        let block = self.new_texts.blocks.get(first.block as usize)?;
        Some(if block.header.bit == first.bit { 0 } else { block.behind.text - block.header.text })
    }

    /// The runs that make this text, clipped to it.
    fn clip(&self, text: &Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let Range { start, end } = *text;
        let first = self.runs.partition_point(|run| run.dst + run.len <= start);
        self.runs[first..].iter().take_while(move |run| run.dst < end).map(move |run| {
            let from = run.dst.max(start);
            run.part(from - run.dst, (run.dst + run.len).min(end) - from)
        })
    }

    /// The stretches of the old texts that this text is made of: ascending, disjoint.
    fn stretches(&self, text: &Range<u64>) -> Vec<Stretch> {
        let mut all: Vec<Stretch> = self
            .clip(text)
            .filter_map(|run| {
                let (Source::Copy { src } | Source::Add { src }) = run.source else { return None };
                let from = self.old_texts.start_for(src, AHEAD)?.text;
                let to = self.old_texts.mark_from(src + run.len)?.text;
                Some(Stretch { text: from..to, used: run.len })
            })
            .collect();
        all.sort_unstable_by_key(|stretch| stretch.text.start);
        let mut merged: Vec<Stretch> = Vec::new();
        for stretch in all {
            match merged.last_mut() {
                Some(last) if stretch.text.start <= last.text.end => {
                    last.text.end = last.text.end.max(stretch.text.end);
                    last.used += stretch.used;
                }
                _ => merged.push(stretch),
            }
        }
        merged
    }

    /// The unpack steps for stretches, and where in the text that they yield each begins.
    fn unpack(&self, stretches: &[Stretch]) -> (Vec<Step>, Vec<u64>) {
        let (mut steps, mut bases, mut len) = (Vec::new(), Vec::new(), 0);
        for stretch in stretches {
            let mut at = stretch.text.start;
            // A header that is unpacked apart stands before the stretch.
            let header = self.old_texts.header_apart(at);
            len += header.map_or(0, |step| step.unpacked().1);
            steps.extend(header);
            bases.push(len);
            while let Some((step, end)) = self.old_texts.unpack_step(at, stretch.text.end, UNPACK_MOST) {
                steps.push(step);
                len += end - at;
                at = end;
            }
        }
        (steps, bases)
    }

    /// What must be literals in the new texts as it would take too much, block by block of the new image: so the steps for
    /// any stretch of it read what those for its blocks read. `bytes` are deflated data.
    pub(super) fn too_dear(&self, bytes: &Range<u64>) -> Vec<Range<u64>> {
        let (mut at, mut done, mut dear) = (bytes.start, 0, Vec::new());
        while at < bytes.end {
            let end = ((at / BLOCK + 1) * BLOCK).min(bytes.end);
            if let Some((first, last)) = self.new_texts.items_of(self.new, &(at..end)) {
                let text = first.text.max(done)..last.text;
                done = last.text;
                self.too_dear_of_block(&text, &mut dear);
            }
            at = end;
        }
        dear
    }

    fn too_dear_of_block(&self, text: &Range<u64>, dear: &mut Vec<Range<u64>>) {
        let mut stretches = self.stretches(text);
        let all = stretches.len();
        affordable(&mut stretches, |stretch| Cost::of(&self.unpack(std::slice::from_ref(stretch)).0));
        if stretches.len() == all {
            return;
        }
        let kept = |src: u64, len: u64| {
            let i = stretches.partition_point(|stretch| stretch.text.end <= src);
            stretches.get(i).is_some_and(|stretch| stretch.text.start <= src && src + len <= stretch.text.end)
        };
        for run in self.clip(text) {
            if let Source::Copy { src } | Source::Add { src } = run.source
                && !kept(src, run.len)
            {
                dear.push(run.dst..run.dst + run.len);
            }
        }
    }

    /// The steps that make a new text, behind `header` bytes of a header.
    fn text_steps(
        &self,
        text: &Range<u64>,
        header: u64,
        (stretches, bases): (&[Stretch], &[u64]),
        steps: &mut Vec<Step>,
    ) {
        let mut literal = (header > 0).then(|| Step::text(StepKind::TextLiteral, 0, header, 0));
        let place = |src: u64| {
            let i = stretches.partition_point(|stretch| stretch.text.start <= src).checked_sub(1)?;
            Some(bases.get(i)? + src - stretches.get(i)?.text.start)
        };
        for run in self.clip(text) {
            let dst = header + run.dst - text.start;
            let (kind, src) = match run.source {
                Source::Copy { src } => (StepKind::TextCopy, place(src)),
                Source::Add { src } => (StepKind::TextAdd, place(src)),
                _ => (StepKind::TextLiteral, None),
            };
            match (src, &mut literal) {
                (Some(src), _) => {
                    steps.extend(literal.take());
                    steps.push(Step::text(kind, dst, run.len, src));
                }
                (None, Some(literal)) => literal.len += run.len,
                (None, None) => literal = Some(Step::text(StepKind::TextLiteral, dst, run.len, 0)),
            }
        }
        steps.extend(literal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stretches_used_least_are_left_out_first_and_each_is_weighed_once() {
        let mut stretches: Vec<Stretch> =
            (0..3000).map(|i| Stretch { text: i * 1000..i * 1000 + 500, used: i * 7 % 3000 }).collect();
        let mut weighed = 0;
        affordable(&mut stretches, |stretch| {
            weighed += 1;
            Cost { text: stretch.text.end - stretch.text.start, sources: 100 }
        });
        assert_eq!(weighed, 3000);
        assert_eq!(stretches.len() as u64, BLOCK_TEXT / 500);
        assert!(stretches.is_sorted_by_key(|stretch| stretch.text.start));
        assert!(stretches.iter().all(|stretch| stretch.used >= 3000 - BLOCK_TEXT / 500));
    }
}
