//! Blocks of zstd and chunks of LZMA2 that changed: matched by their texts, and described as changes of these.

use super::frames::{Grouping, Unit, Units};
use super::texts::Limits;
use super::{LEAST, OLD_ANYWAY, OLD_PER_NEW, WORTH, near_literals, replaced};
use crate::compare::View;
use crate::delta::coding::Whole;
use crate::delta::step::{NEW_TEXT, OLD_TEXT, PACKED_MOST, Step, StepKind, UNPACK_MOST};
use crate::delta::writer::NewTexts;
use crate::matcher::{self, Run, Source};
use crate::plan::Recode;
use crate::units::{BLOCK, merge_ranges};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

/// Bytes of the old image that may be read for each byte that is made, and for a unit: keeps a batch's sources within bounds.
const SOURCES_EACH: u64 = 40;
const SOURCES_MOST: u64 = SOURCES_EACH * BLOCK;
/// The same of the old texts.
const TEXT_EACH: u64 = 64;
const TEXT_MOST: u64 = OLD_TEXT / 4;
/// Steps for a unit, at the most, and the bytes made for each of them: two large units may meet in a block, with small ones
/// between them, and all of their steps are to fit a batch as the planner makes them.
const STEPS_MOST: usize = 1500;
const STEP_BYTES: u64 = 8;
/// An old unit of which fewer bytes are of use is not worth its unpacking.
const USE_LEAST: u64 = 256;
/// What the steps of a unit cost besides those of its text, and each that unpacks.
const UNIT_COST: u64 = 16;
const UNPACK_COST: u64 = 9;

/// How units of a new image are made from those of an old one.
pub(crate) struct WholeRecoding {
    coding: Whole,
    old: Units,
    new: Units,
    /// Ascending.
    chosen: Vec<Chosen>,
}

/// A unit that is made of others.
struct Chosen {
    unit: Unit,
    /// What makes its text: the places of sources are those in all old texts.
    runs: Vec<Run>,
    /// The old units that these read: ascending.
    old: Vec<usize>,
    /// About how many bytes of the delta it takes.
    cost: u64,
}

/// Looks at what runs have as literals for blocks or chunks that can be made from those of the old image, and that share
/// nothing with those of other codings that are chosen already; as [`recode`](super::recode_deflate).
pub(super) fn recode_whole(
    coding: Whole,
    old: View<'_>,
    new: View<'_>,
    (runs, others): (&[Run], &[WholeRecoding]),
    options: &matcher::Options,
    folder: &Path,
) -> io::Result<Option<(WholeRecoding, Vec<Run>)>> {
    let ranges = near_literals(runs, new);
    if ranges.is_empty() {
        return Ok(None);
    }
    let limits = Limits { stream: NEW_TEXT as usize, all: u64::MAX, threads: options.threads };
    let wanted =
        |bytes: &Range<u64>| Gain::of(runs, bytes).is_some_and(|gain| gain.literal * 2 > bytes.end - bytes.start);
    let grouping = Grouping { coding, most: NEW_TEXT as usize, wanted: &wanted, new: true };
    let new_units = Units::find(new.bytes, &ranges, grouping, limits, folder)?;
    let candidates: Vec<(usize, Gain)> = (0..new_units.list.len())
        .filter_map(|i| {
            let bytes = &new_units.list[i].bytes;
            // What does not change has no run: so these do not tell it all.
            let gain = Gain::of(runs, bytes).filter(|_| !others.iter().any(|other| other.has(bytes)))?;
            (gain.literal >= LEAST && bytes.end - bytes.start <= PACKED_MOST).then_some((i, gain))
        })
        .collect();
    let mut texts: Vec<Range<u64>> = candidates.iter().map(|(i, _)| new_units.list[*i].text.clone()).collect();
    merge_ranges(&mut texts);
    let new_text: u64 = texts.iter().map(|text| text.end - text.start).sum();
    if new_text < WORTH {
        return Ok(None);
    }
    let limits = Limits { all: new_text.saturating_mul(OLD_PER_NEW).saturating_add(OLD_ANYWAY), ..limits };
    let grouping = Grouping { coding, most: TEXT_MOST as usize, wanted: &|_| true, new: false };
    let old_units = Units::find(old.bytes, old.data, grouping, limits, folder)?;
    if old_units.list.is_empty() {
        return Ok(None);
    }
    let old_bytes = old_units.text.bytes();
    let all = 0..old_bytes.len() as u64;
    let options = &matcher::Options { revise: false, ..*options };
    let text_runs = matcher::find_runs(old_bytes, std::slice::from_ref(&all), new_units.text.bytes(), &texts, options);
    let mut recoding = WholeRecoding { coding, old: old_units, new: new_units, chosen: Vec::new() };
    let choose = |(i, Gain { literal, pieces }): (usize, Gain)| {
        let unit = recoding.new.list.get(i)?;
        let chosen = recoding.choose(unit, &text_runs)?;
        (chosen.cost * pieces < literal - literal / 8).then_some(chosen)
    };
    recoding.chosen = candidates.into_iter().filter_map(choose).collect();
    if recoding.chosen.is_empty() {
        return Ok(None);
    }
    let ranges: Vec<Range<u64>> = recoding.chosen.iter().map(|chosen| chosen.unit.bytes.clone()).collect();
    let runs = replaced(runs, &ranges, Source::Recoded);
    Ok(Some((recoding, runs)))
}

/// What may be gained of some bytes.
struct Gain {
    /// How many of them are literals.
    literal: u64,
    /// How many pieces of them change, with something between them that does not: each takes all steps of its unit.
    pieces: u64,
}

impl Gain {
    /// `None` where some of these bytes are recoded already.
    fn of(runs: &[Run], bytes: &Range<u64>) -> Option<Self> {
        let first = runs.partition_point(|run| run.dst + run.len <= bytes.start);
        let (mut gain, mut end) = (Self { literal: 0, pieces: 0 }, None);
        for run in runs[first..].iter().take_while(|run| run.dst < bytes.end) {
            match run.source {
                Source::Literal => gain.literal += (run.dst + run.len).min(bytes.end) - run.dst.max(bytes.start),
                Source::Recoded => return None,
                _ => {}
            }
            gain.pieces += u64::from(end.replace(run.dst + run.len) != Some(run.dst));
        }
        Some(gain)
    }
}

impl WholeRecoding {
    /// How to make a unit, within bounds.
    fn choose(&self, unit: &Unit, text_runs: &[Run]) -> Option<Chosen> {
        let mut runs = self.split(unit, text_runs);
        let mut used: BTreeMap<usize, u64> = BTreeMap::new();
        for (run, old) in &runs {
            if let Some(old) = old {
                *used.entry(*old).or_default() += run.len;
            }
        }
        let old = self.affordable(used, unit.bytes.end - unit.bytes.start);
        for (run, from) in &mut runs {
            if from.is_some_and(|from| old.binary_search(&from).is_err()) {
                run.source = Source::Literal;
            }
        }
        let runs = joined(runs.into_iter().map(|(run, _)| run));
        if runs.len() + old.len() > STEPS_MOST.min(((unit.bytes.end - unit.bytes.start) / STEP_BYTES) as usize + 8) {
            return None;
        }
        let cost = self.cost(unit, &runs) + UNIT_COST + UNPACK_COST * old.len() as u64;
        Some(Chosen { unit: unit.clone(), runs, old, cost })
    }

    /// The runs that make a unit's text, cut where the old units end that they read, with the number of each.
    fn split(&self, unit: &Unit, text_runs: &[Run]) -> Vec<(Run, Option<usize>)> {
        let mut split = Vec::new();
        let first = text_runs.partition_point(|run| run.dst + run.len <= unit.text.start);
        for run in text_runs[first..].iter().take_while(|run| run.dst < unit.text.end) {
            let from = run.dst.max(unit.text.start);
            let mut rest = run.part(from - run.dst, (run.dst + run.len).min(unit.text.end) - from);
            while let Source::Copy { src } | Source::Add { src } = rest.source {
                let old = self.old.of_text(src);
                let len = self.old.list.get(old).map_or(rest.len, |old| (old.text.end - src).min(rest.len));
                split.push((rest.part(0, len), Some(old)));
                rest = rest.part(len, rest.len - len);
                if rest.len == 0 {
                    break;
                }
            }
            if rest.len > 0 {
                split.push((rest, None));
            }
        }
        split
    }

    /// As many of these old units as may be unpacked for `len` bytes, and are worth it: those first that are used most.
    fn affordable(&self, used: BTreeMap<usize, u64>, len: u64) -> Vec<usize> {
        let (most_sources, most_text) = ((len * SOURCES_EACH).min(SOURCES_MOST), (len * TEXT_EACH).min(TEXT_MOST));
        let mut by_use: Vec<(u64, usize)> = used.into_iter().map(|(old, used)| (used, old)).collect();
        by_use.sort_unstable_by(|a, b| b.cmp(a));
        let (mut sources, mut text, mut kept) = (0, 0, Vec::new());
        for (used, old) in by_use {
            let Some(unit) = self.old.list.get(old) else { continue };
            let (more, more_text) = (unit.bytes.end - unit.bytes.start, unit.text.end - unit.text.start);
            if used >= USE_LEAST && sources + more <= most_sources && text + more_text <= most_text {
                (sources, text) = (sources + more, text + more_text);
                kept.push(old);
            }
        }
        kept.sort_unstable();
        kept
    }

    /// What is literal in a text takes about as many bytes, when compressed, as the blocks that it stands for; a step takes
    /// three, a difference two.
    fn cost(&self, unit: &Unit, runs: &[Run]) -> u64 {
        let (old, new) = (self.old.text.bytes(), self.new.text.bytes());
        let (mut literal, mut other) = (0, 0);
        for run in runs {
            other += 3;
            match run.source {
                Source::Add { src } => {
                    let old = old.get(src as usize..(src + run.len) as usize).unwrap_or_default();
                    let new = new.get(run.dst as usize..(run.dst + run.len) as usize).unwrap_or_default();
                    other += 2 * old.chunks(4).zip(new.chunks(4)).filter(|(old, new)| old != new).count() as u64;
                }
                Source::Copy { .. } => {}
                _ => literal += run.len,
            }
        }
        let text = (unit.text.end - unit.text.start).max(1);
        literal * (unit.bytes.end - unit.bytes.start) / text + other
    }

    /// The units that have some of these bytes.
    fn having(&self, bytes: &Range<u64>) -> &[Chosen] {
        let first = self.chosen.partition_point(|chosen| chosen.unit.bytes.end <= bytes.start);
        let count = self.chosen[first..].partition_point(|chosen| chosen.unit.bytes.start < bytes.end);
        &self.chosen[first..first + count]
    }

    /// Whether these bytes are recoded here.
    pub(super) fn has(&self, bytes: &Range<u64>) -> bool {
        !self.having(bytes).is_empty()
    }

    /// The steps that unpack old units, and where in the text that they yield each begins.
    fn unpack(&self, old: &[usize]) -> (Vec<Step>, Vec<(u64, u64)>) {
        let (mut steps, mut bases, mut len): (Vec<Step>, Vec<(u64, u64)>, u64) = (Vec::new(), Vec::new(), 0);
        for unit in old.iter().filter_map(|old| self.old.list.get(*old)) {
            let (bytes, text) = (unit.bytes.end - unit.bytes.start, unit.text.end - unit.text.start);
            bases.push((unit.text.start, len));
            len += text;
            match steps.last_mut() {
                Some(last) if last.src + last.len == unit.bytes.start && last.len + bytes <= UNPACK_MOST => {
                    *last = Step::unpack_whole(self.coding, last.src, last.len + bytes, last.unpacked().1 + text);
                }
                _ => steps.push(Step::unpack_whole(self.coding, unit.bytes.start, bytes, text)),
            }
        }
        (steps, bases)
    }

    fn steps_of(&self, chosen: &Chosen, bytes: Range<u64>, steps: &mut Vec<Step>) {
        let len = bytes.end - bytes.start;
        if chosen.cost >= len {
            // A small part of what is cut in two by a batch's end.
            return steps.push(Step { kind: StepKind::Literal, dst: bytes.start, len, src: 0 });
        }
        let (unpack, bases) = self.unpack(&chosen.old);
        steps.extend(unpack);
        steps.push(Step::pack_whole(self.coding, bytes.start, len, bytes.start - chosen.unit.bytes.start));
        for run in &chosen.runs {
            let place = |src: u64| {
                let i = bases.partition_point(|(start, _)| *start <= src).checked_sub(1)?;
                bases.get(i).map(|(start, base)| base + src - start)
            };
            let (kind, src) = match run.source {
                Source::Copy { src } => (StepKind::TextCopy, place(src)),
                Source::Add { src } => (StepKind::TextAdd, place(src)),
                _ => (StepKind::TextLiteral, Some(0)),
            };
            steps.push(Step::text(kind, run.dst - chosen.unit.text.start, run.len, src.unwrap_or(0)));
        }
    }
}

/// Runs with those together that go on where another ends.
fn joined(runs: impl Iterator<Item = Run>) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.goes_on(&run) => last.len += run.len,
            _ => joined.push(run),
        }
    }
    joined
}

impl Recode for WholeRecoding {
    fn steps(&self, bytes: Range<u64>, steps: &mut Vec<Step>) {
        for chosen in self.having(&bytes) {
            let unit = &chosen.unit.bytes;
            self.steps_of(chosen, bytes.start.max(unit.start)..bytes.end.min(unit.end), steps);
        }
    }

    fn parts(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        self.having(&bytes).iter().map(|chosen| chosen.unit.bytes.clone()).collect()
    }
}

impl NewTexts for WholeRecoding {
    fn text(&self, bytes: Range<u64>) -> Option<(Vec<u8>, u32)> {
        let [chosen] = self.having(&bytes) else { return None };
        let skip = u32::try_from(bytes.start.checked_sub(chosen.unit.bytes.start)?).ok()?;
        Some((self.new.text_of(&chosen.unit).to_vec(), skip))
    }
}
