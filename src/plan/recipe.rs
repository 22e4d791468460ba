//! The recipe: what makes every changed byte of the new image, independent of any order.

use crate::delta::step::{Step, StepKind};
use crate::matcher::{Run, Source};
use crate::units::{BLOCK, Extent, blocks_in, blocks_touched, merge_extents};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Knows the steps of compressed data.
pub trait Recode: Sync {
    /// Appends the steps that make these bytes, which lie in a run of [`Source::Recoded`].
    fn steps(&self, bytes: Range<u64>, steps: &mut Vec<Step>);

    /// What these bytes, a run of [`Source::Recoded`], are made of: ascending, disjoint, perhaps with more at both ends. The
    /// steps of any stretch of a part read no more than those of all of it, nor are they more or larger.
    fn parts(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        in_blocks(bytes).collect()
    }
}

/// Runs that tile the changed blocks of the new image, ascending.
#[derive(Clone, Default)]
pub struct Recipe<'a> {
    runs: Vec<Run>,
    recode: Option<&'a dyn Recode>,
    /// What each part of the compressed data reads: asked for often, and slow to find.
    deflated: Arc<Deflated>,
    /// Whether blocks were made free for scratch: see [`Recipe::make_free`].
    pub(super) freed: bool,
}

/// What some blocks are made from.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    /// The old blocks that are read: ascending, merged.
    pub blocks: Vec<Extent>,
    /// Steps.
    pub steps: usize,
    /// Bytes of texts that these take, as of [`Step::text_bytes`].
    pub text_bytes: u64,
}

/// The old bytes that a run reads, deflated data apart.
pub fn source_of(run: &Run) -> Option<Range<u64>> {
    match run.source {
        Source::Copy { src } | Source::Add { src } => Some(src..src + run.len),
        Source::Literal | Source::Zero | Source::Recoded => None,
    }
}

/// Whether a run reads the old image.
fn reads(run: &Run) -> bool {
    source_of(run).is_some() || run.source == Source::Recoded
}

/// What each part of the compressed data reads: by its first byte, with the byte behind its last one.
type Deflated = BTreeMap<u64, (u64, Reads)>;

/// The parts that have some of these bytes, the last one first.
fn parts_of<'a>(bytes: &Range<u64>, deflated: &'a Deflated) -> impl Iterator<Item = (Range<u64>, &'a Reads)> {
    let start = bytes.start;
    let before = deflated.range(..bytes.end).rev().map(|(from, (to, reads))| (*from..*to, reads));
    before.take_while(move |(part, _)| part.end > start)
}

/// The old blocks that a run reads, or some more: what its deflated data read block by block.
fn sources_of(run: &Run, deflated: &Deflated) -> Vec<Extent> {
    if run.source != Source::Recoded {
        return source_of(run).map(|range| blocks_touched(&range)).into_iter().collect();
    }
    parts_of(&(run.dst..run.dst + run.len), deflated).flat_map(|(_, reads)| reads.blocks.iter().copied()).collect()
}

/// Bytes cut at the ends of blocks.
pub fn in_blocks(bytes: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let blocks = blocks_touched(&bytes);
    let part = move |block: u64| (block * BLOCK).max(bytes.start)..((block + 1) * BLOCK).min(bytes.end);
    (blocks.start..blocks.end()).map(part)
}

/// The parts of a run of deflated data, of which those blocks become literals that read from `old_blocks`.
fn avoid_in_deflate(run: &Run, old_blocks: &[Extent], deflated: &Deflated, parts: &mut Vec<Run>) {
    let avoids = |run: &Run| {
        sources_of(run, deflated).iter().all(|blocks| {
            let i = old_blocks.partition_point(|extent| extent.end() <= blocks.start);
            old_blocks.get(i).is_none_or(|extent| extent.start >= blocks.end())
        })
    };
    if avoids(run) {
        return parts.push(*run);
    }
    for part in in_blocks(run.dst..run.dst + run.len) {
        let part = run.part(part.start - run.dst, part.end - part.start);
        let part = if avoids(&part) { part } else { Run { source: Source::Literal, ..part } };
        match parts.last_mut() {
            Some(last) if last.source == part.source && last.dst + last.len == part.dst => last.len += part.len,
            _ => parts.push(part),
        }
    }
}

impl<'a> Recipe<'a> {
    /// From the matcher's runs: ascending, each within a stretch of changed blocks.
    #[must_use]
    pub fn new(runs: Vec<Run>) -> Self {
        Self { runs, ..Self::default() }
    }

    /// With runs of deflated data.
    #[must_use]
    pub fn recoding(mut self, recode: &'a dyn Recode) -> Self {
        let mut deflated = Deflated::new();
        let mut steps = Vec::new();
        for run in self.runs.iter().filter(|run| run.source == Source::Recoded) {
            for part in recode.parts(run.dst..run.dst + run.len) {
                steps.clear();
                recode.steps(part.clone(), &mut steps);
                let text_bytes = steps.iter().map(Step::text_bytes).sum::<u64>();
                let reading = steps.iter().filter(|step| step.kind.space().is_some());
                let mut blocks = reading.map(|step| blocks_touched(&(step.src..step.src + step.len))).collect();
                merge_extents(&mut blocks);
                deflated.insert(part.start, (part.end, Reads { blocks, steps: steps.len(), text_bytes }));
            }
        }
        (self.recode, self.deflated) = (Some(recode), Arc::new(deflated));
        self
    }

    /// Whether a run is of deflated data that may be made from this old block.
    #[must_use]
    pub fn unpacks_from(&self, run: &Run, block: u64) -> bool {
        let own = Extent { start: block, count: 1 };
        let reads = || sources_of(run, &self.deflated).iter().any(|read| read.intersect(&own).count > 0);
        run.source == Source::Recoded && reads()
    }

    /// The old blocks that a run of deflated data is made of, or some more.
    #[must_use]
    pub fn reads_deflated(&self, run: &Run) -> Vec<Extent> {
        sources_of(run, &self.deflated)
    }

    /// What extents (ascending, merged) are made from, or some more than that.
    #[must_use]
    pub fn reads(&self, extents: &[Extent], new_len: u64) -> Reads {
        let mut reads = Reads::default();
        for run in extents.iter().flat_map(|extent| self.clip(extent.bytes(new_len))) {
            reads.blocks.extend(sources_of(&run, &self.deflated));
            if run.source != Source::Recoded {
                reads.steps += 1;
                continue;
            }
            for (_, part) in parts_of(&(run.dst..run.dst + run.len), &self.deflated) {
                reads.steps += part.steps;
                reads.text_bytes += part.text_bytes;
            }
        }
        merge_extents(&mut reads.blocks);
        reads
    }

    /// The old blocks that runs read: ascending, merged.
    #[must_use]
    pub fn source_blocks(&self) -> Vec<Extent> {
        let mut blocks = self.runs.iter().flat_map(|run| sources_of(run, &self.deflated)).collect();
        merge_extents(&mut blocks);
        blocks
    }

    /// The runs.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The changed blocks in two classes, ascending: (extent, whether all of it becomes zero).
    #[must_use]
    pub fn segments(&self, new_len: u64) -> Vec<(Extent, bool)> {
        let mut segments: Vec<(Extent, bool)> = Vec::new();
        let mut add = |extent: Extent, zero: bool| {
            if let Some((last, last_zero)) = segments.last_mut() {
                let start = extent.start.max(last.end());
                let extent = Extent { start, count: extent.end().saturating_sub(start) };
                if extent.count == 0 {
                    return;
                }
                if last.end() == extent.start && *last_zero == zero {
                    last.count += extent.count;
                    return;
                }
                segments.push((extent, zero));
            } else if extent.count > 0 {
                segments.push((extent, zero));
            }
        };
        for run in &self.runs {
            let end = run.dst + run.len;
            let blocks = blocks_touched(&(run.dst..end));
            if run.source != Source::Zero {
                add(blocks, false);
                continue;
            }
            let start = run.dst.div_ceil(BLOCK);
            let stop = if end == new_len { blocks_in(end) } else { end / BLOCK };
            if start < stop {
                add(Extent { start: blocks.start, count: start - blocks.start }, false);
                add(Extent { start, count: stop - start }, true);
                add(Extent { start: stop, count: blocks.end() - stop }, false);
            } else {
                add(blocks, false);
            }
        }
        segments
    }

    /// The runs that make `bytes`, clipped to it.
    pub fn clip(&self, bytes: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let first = self.runs.partition_point(|run| run.dst + run.len <= bytes.start);
        self.runs[first..].iter().take_while(move |run| run.dst < bytes.end).map(move |run| {
            let start = run.dst.max(bytes.start);
            run.part(start - run.dst, (run.dst + run.len).min(bytes.end) - start)
        })
    }

    /// The stretches of whole blocks within an extent that are made without reading anything: ascending.
    #[must_use]
    pub fn literal_stretches(&self, extent: Extent, new_len: u64) -> Vec<Extent> {
        let mut stretches = Vec::new();
        let bytes = extent.bytes(new_len);
        let (mut start, mut stop) = (bytes.start, bytes.start);
        let mut end_stretch = |start: u64, stop: u64| {
            let first = start.div_ceil(BLOCK);
            let end = if stop == new_len { blocks_in(stop) } else { stop / BLOCK };
            if first < end {
                stretches.push(Extent { start: first, count: end - first });
            }
        };
        for run in self.clip(bytes) {
            if reads(&run) {
                end_stretch(start, stop);
                start = run.dst + run.len;
            }
            stop = run.dst + run.len;
        }
        end_stretch(start, stop);
        stretches
    }

    /// The steps that make an extent.
    pub fn steps(&self, extent: &Extent, new_len: u64, steps: &mut Vec<Step>) {
        for run in self.clip(extent.bytes(new_len)) {
            let (kind, src) = match run.source {
                Source::Literal => (StepKind::Literal, 0),
                Source::Zero => (StepKind::Zero, 0),
                Source::Copy { src } => (StepKind::Copy, src),
                Source::Add { src } => (StepKind::Add, src),
                Source::Recoded => {
                    if let Some(recode) = self.recode {
                        recode.steps(run.dst..run.dst + run.len, steps);
                    }
                    continue;
                }
            };
            steps.push(Step { kind, dst: run.dst, len: run.len, src });
        }
    }

    /// Replaces the runs by what `change` makes of each, merging neighbouring literals within a stretch.
    fn rewrite(&mut self, mut change: impl FnMut(&Run, &mut Vec<Run>)) {
        let mut out: Vec<Run> = Vec::with_capacity(self.runs.len());
        let mut parts = Vec::new();
        for run in &self.runs {
            change(run, &mut parts);
            for part in parts.drain(..).filter(|part: &Run| part.len > 0) {
                match out.last_mut() {
                    Some(last)
                        if last.source == Source::Literal
                            && part.source == Source::Literal
                            && last.dst + last.len == part.dst =>
                    {
                        last.len += part.len;
                    }
                    _ => out.push(part),
                }
            }
        }
        self.runs = out;
    }

    /// Turns everything that is read from these old blocks (ascending, merged) into literals.
    pub fn avoid_sources(&mut self, old_blocks: &[Extent]) {
        let deflated = Arc::clone(&self.deflated);
        self.rewrite(|run, parts| {
            if run.source == Source::Recoded {
                return avoid_in_deflate(run, old_blocks, &deflated, parts);
            }
            let Some(source) = source_of(run) else { return parts.push(*run) };
            let mut at = source.start;
            let first = old_blocks.partition_point(|e| e.end() * BLOCK <= source.start);
            for extent in old_blocks[first..].iter().take_while(|e| e.start * BLOCK < source.end) {
                let (start, end) = ((extent.start * BLOCK).max(source.start), (extent.end() * BLOCK).min(source.end));
                parts.push(run.part(at - source.start, start - at));
                parts.push(Run { source: Source::Literal, ..run.part(start - source.start, end - start) });
                at = end;
            }
            parts.push(run.part(at - source.start, source.end - at));
        });
    }

    /// Turns these new blocks (ascending, merged) into literals, zeros excepted.
    pub fn make_literal(&mut self, new_blocks: &[Extent]) {
        self.rewrite(|run, parts| {
            if run.source == Source::Zero {
                return parts.push(*run);
            }
            let end = run.dst + run.len;
            let mut at = run.dst;
            let first = new_blocks.partition_point(|e| e.end() * BLOCK <= run.dst);
            for extent in new_blocks[first..].iter().take_while(|e| e.start * BLOCK < end) {
                let (start, stop) = ((extent.start * BLOCK).max(run.dst), (extent.end() * BLOCK).min(end));
                parts.push(run.part(at - run.dst, start - at));
                parts.push(Run { dst: start, len: stop - start, source: Source::Literal });
                at = stop;
            }
            parts.push(run.part(at - run.dst, end - at));
        });
    }

    /// New blocks that are made, in part, from their own old content.
    #[must_use]
    pub fn self_references(&self) -> Vec<u64> {
        let mut found = Vec::new();
        for run in &self.runs {
            if run.source == Source::Recoded {
                let bytes = run.dst..run.dst + run.len;
                for (part, reads) in parts_of(&bytes, &self.deflated) {
                    let own = blocks_touched(&(part.start.max(bytes.start)..part.end.min(bytes.end)));
                    let itself = reads.blocks.iter().map(|read| read.intersect(&own));
                    found.extend(itself.flat_map(|both| both.start..both.end()));
                }
            }
            let Some(source) = source_of(run) else { continue };
            if run.dst.abs_diff(source.start) >= 2 * BLOCK {
                continue; // cannot lie in the same block
            }
            let blocks = blocks_touched(&(run.dst..run.dst + run.len));
            for block in blocks.start..blocks.end() {
                let start = (block * BLOCK).max(run.dst);
                let end = ((block + 1) * BLOCK).min(run.dst + run.len);
                let read = blocks_touched(&(source.start + start - run.dst..source.start + end - run.dst));
                if read.start <= block && block < read.end() && found.last() != Some(&block) {
                    found.push(block);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe<'static> {
        Recipe::new(vec![
            Run { dst: 0, len: 5000, source: Source::Copy { src: 8192 } },
            Run { dst: 5000, len: 3 * BLOCK - 5000, source: Source::Zero },
            Run { dst: 5 * BLOCK, len: 100, source: Source::Add { src: 5 * BLOCK + 10 } },
        ])
    }

    #[test]
    fn whole_zero_blocks_form_their_own_segments() {
        let new_len = 5 * BLOCK + 100;
        let e = |start, count| Extent { start, count };
        assert_eq!(recipe().segments(new_len), [(e(0, 2), false), (e(2, 1), true), (e(5, 1), false)]);
        let zeros = Recipe::new(vec![Run { dst: BLOCK, len: 10, source: Source::Zero }]);
        assert_eq!(zeros.segments(BLOCK + 10), [(e(1, 1), true)]);
    }

    #[test]
    fn avoided_sources_become_literals_and_the_rest_stays() {
        let mut recipe = recipe();
        recipe.avoid_sources(&[Extent { start: 3, count: 1 }]);
        assert_eq!(recipe.runs()[0], Run { dst: 0, len: 4096, source: Source::Copy { src: 8192 } });
        assert_eq!(recipe.runs()[1], Run { dst: 4096, len: 904, source: Source::Literal });
        let total: u64 = recipe.runs().iter().map(|r| r.len).sum();
        assert_eq!(total, 3 * BLOCK + 100);
    }

    #[test]
    fn literal_blocks_keep_their_neighbours() {
        let mut recipe = recipe();
        recipe.make_literal(&[Extent { start: 0, count: 1 }]);
        assert_eq!(recipe.runs()[0], Run { dst: 0, len: 4096, source: Source::Literal });
        assert_eq!(recipe.runs()[1], Run { dst: 4096, len: 904, source: Source::Copy { src: 8192 + 4096 } });
        assert_eq!(recipe.self_references(), [5]);
    }
}
