//! Compressed data that changed: found in both images, matched by their texts, and described as changes of these.
//!
//! Deflated data: [`find`] tells where they may begin, [`midst`] where they go on elsewhere, [`stream`] unpacks one stream,
//! [`texts`] all of them and knows where everything stands, [`steps`] makes steps. Which stretches of the new image are
//! worth it is decided here. Blocks of zstd and chunks of LZMA2: [`frames`] finds and unpacks them, [`whole`] decides.

mod container;
mod find;
mod frames;
mod midst;
mod steps;
mod stream;
#[cfg(test)]
mod tests;
mod texts;
mod whole;

use crate::compare::View;
use crate::delta::coding::Whole;
use crate::delta::step::Step;
use crate::delta::writer::NewTexts;
use crate::matcher::{self, Run, Source};
use crate::plan::Recode;
use crate::units::merge_ranges;
use std::io;
use std::ops::Range;
use std::path::Path;
use texts::{Limits, Search, Texts};
use whole::{WholeRecoding, recode_whole};

/// Literals of fewer bytes, in all, are not looked at.
const WORTH: u64 = 2 << 10;
/// Stretches of a stream of fewer bytes stay as they are: a step of its own needs some two hundred.
const LEAST: u64 = 512;
/// A match of fewer bytes within a stream is a coincidence.
const COINCIDENCE: u64 = 256;
/// How far before changed data their stream may begin: for each byte of theirs, as all of a stream that lies behind a
/// change changes, and the work stays in proportion to what it may gain; and at most.
const BEFORE_EACH: u64 = 256;
const BEFORE_MOST: u64 = 32 << 20;
/// Literals that are not further apart are taken for those of one stream.
const TOGETHER: u64 = 64 << 10;
/// Text of the old image for each byte of the new one's, and in any case.
const OLD_PER_NEW: u64 = 64;
const OLD_ANYWAY: u64 = 256 << 20;

/// How the deflated data of a new image are made from those of an old one.
struct Recoding<'a> {
    new: &'a [u8],
    old_texts: Texts,
    new_texts: Texts,
    /// What makes the new texts of the old: ascending, not everywhere.
    runs: Vec<Run>,
}

/// How the compressed data of a new image are made from those of an old one.
pub(crate) struct Recodings<'a> {
    deflate: Option<Recoding<'a>>,
    whole: Vec<WholeRecoding>,
}

/// Looks at what `runs` have as literals for compressed data that can be made from those of the old image. Returns how, and
/// the runs with [`Source::Recoded`] where that is shorter; `None` where it is nowhere. Texts are kept in files without
/// names in `folder`.
///
/// # Errors
/// The system's, from writing these files.
pub(crate) fn recode<'a>(
    old: View<'_>,
    new: View<'a>,
    runs: &[Run],
    options: &matcher::Options,
    folder: &Path,
) -> io::Result<Option<(Recodings<'a>, Vec<Run>)>> {
    let (deflate, runs) = match recode_deflate(old, new, runs, options, folder)? {
        Some((recoding, runs)) => (Some(recoding), runs),
        None => (None, runs.to_vec()),
    };
    let (mut runs, mut whole) = (runs, Vec::new());
    for coding in [Whole::Zstd, Whole::Lzma] {
        if let Some((recoding, recoded)) = recode_whole(coding, old, new, (&runs, &whole), options, folder)? {
            whole.push(recoding);
            runs = recoded;
        }
    }
    let any = deflate.is_some() || !whole.is_empty();
    Ok(any.then_some((Recodings { deflate, whole }, runs)))
}

impl Recodings<'_> {
    /// Who recodes these bytes.
    fn whole(&self, bytes: &Range<u64>) -> Option<&WholeRecoding> {
        self.whole.iter().find(|recoding| recoding.has(bytes))
    }
}

impl Recode for Recodings<'_> {
    fn steps(&self, bytes: Range<u64>, steps: &mut Vec<Step>) {
        match (self.whole(&bytes), &self.deflate) {
            (Some(recoding), _) => recoding.steps(bytes, steps),
            (None, Some(recoding)) => recoding.steps(bytes, steps),
            (None, None) => {}
        }
    }

    fn parts(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        match (self.whole(&bytes), &self.deflate) {
            (Some(recoding), _) => recoding.parts(bytes),
            (None, Some(recoding)) => recoding.parts(bytes),
            (None, None) => Vec::new(),
        }
    }
}

impl NewTexts for Recodings<'_> {
    fn text(&self, bytes: Range<u64>) -> Option<(Vec<u8>, u32)> {
        match self.whole(&bytes) {
            Some(recoding) => recoding.text(bytes),
            None => self.deflate.as_ref()?.text(bytes),
        }
    }
}

/// Looks at what `runs` have as literals for deflated data that can be made from those of the old image. Returns how, and
/// the runs with [`Source::Recoded`] where that is shorter; `None` where it is nowhere. Texts are kept in files without
/// names in `folder`.
///
/// # Errors
/// The system's, from writing these files.
fn recode_deflate<'a>(
    old: View<'_>,
    new: View<'a>,
    runs: &[Run],
    options: &matcher::Options,
    folder: &Path,
) -> io::Result<Option<(Recoding<'a>, Vec<Run>)>> {
    let ranges = near_literals(runs, new);
    if ranges.is_empty() {
        return Ok(None);
    }
    let stream = usize::try_from(options.memory / 8).unwrap_or(usize::MAX);
    let limits = Limits { stream, all: u64::MAX, threads: options.threads };
    let search = Search { starts: &ranges, midst: &literals(runs), always: true };
    let new_texts = Texts::find(new.bytes, search, limits, folder)?;
    let candidates = candidates(runs, &new_texts);
    let mut wanted: Vec<Range<u64>> = candidates
        .iter()
        .filter_map(|bytes| new_texts.items_of(new.bytes, bytes))
        .map(|(first, end)| first.text..end.text)
        .collect();
    merge_ranges(&mut wanted);
    if wanted.is_empty() {
        return Ok(None);
    }
    let new_text: u64 = wanted.iter().map(|range| range.end - range.start).sum();
    let limits = Limits { all: new_text.saturating_mul(OLD_PER_NEW).saturating_add(OLD_ANYWAY), ..limits };
    let search = Search { starts: old.data, midst: old.data, always: new_texts.pieces };
    let old_texts = Texts::find(old.bytes, search, limits, folder)?;
    if old_texts.sections.is_empty() {
        return Ok(None);
    }
    let old_bytes = old_texts.bytes.bytes();
    let all = 0..old_bytes.len() as u64;
    let options = &matcher::Options { revise: false, ..*options };
    let text_runs =
        matcher::find_runs(old_bytes, std::slice::from_ref(&all), new_texts.bytes.bytes(), &wanted, options);
    let mut recoding = Recoding { new: new.bytes, old_texts, new_texts, runs: text_runs };
    let mut dear: Vec<Range<u64>> = candidates.iter().flat_map(|bytes| recoding.too_dear(bytes)).collect();
    merge_ranges(&mut dear);
    recoding.runs = replaced(&recoding.runs, &dear, Source::Literal);
    let chosen: Vec<Range<u64>> = candidates.into_iter().filter(|bytes| recoding.gains(bytes)).collect();
    if chosen.is_empty() {
        return Ok(None);
    }
    let runs = replaced(runs, &chosen, Source::Recoded);
    Ok(Some((recoding, runs)))
}

/// The data around literals, if there are enough of these.
fn near_literals(runs: &[Run], new: View<'_>) -> Vec<Range<u64>> {
    let literals = || runs.iter().filter(|run| run.source == Source::Literal && run.len >= LEAST);
    if literals().map(|run| run.len).sum::<u64>() < WORTH {
        return Vec::new();
    }
    let mut together: Vec<(Range<u64>, u64)> = Vec::new();
    for run in literals() {
        match together.last_mut() {
            Some((range, len)) if run.dst - range.end <= TOGETHER => {
                (range.end, *len) = (run.dst + run.len, *len + run.len)
            }
            _ => together.push((run.dst..run.dst + run.len, run.len)),
        }
    }
    let before = |len: u64| len.saturating_mul(BEFORE_EACH).min(BEFORE_MOST);
    let near = together.into_iter().map(|(range, len)| range.start.saturating_sub(before(len))..range.end);
    let mut near: Vec<Range<u64>> = near.collect();
    merge_ranges(&mut near);
    let mut ranges = Vec::new();
    for range in near {
        let first = new.data.partition_point(|data| data.end <= range.start);
        let data = new.data[first..].iter().take_while(|data| data.start < range.end);
        ranges.extend(data.map(|data| data.start.max(range.start)..data.end.min(range.end)));
    }
    ranges
}

/// Where literals are, coincidences between them included.
fn literals(runs: &[Run]) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for run in runs.iter().filter(|run| run.source == Source::Literal) {
        match found.last_mut() {
            Some(last) if run.dst - last.end < COINCIDENCE => last.end = run.dst + run.len,
            _ => found.push(run.dst..run.dst + run.len),
        }
    }
    found.retain(|range| range.end - range.start >= LEAST);
    found
}

/// The stretches of deflated data that are literals, coincidences apart.
fn candidates(runs: &[Run], texts: &Texts) -> Vec<Range<u64>> {
    let mut found: Vec<(Range<u64>, u64)> = Vec::new();
    for section in &texts.sections {
        let bytes = &section.bytes;
        let first = runs.partition_point(|run| run.dst + run.len <= bytes.start);
        let mut open = false;
        for run in runs[first..].iter().take_while(|run| run.dst < bytes.end) {
            let part = run.dst.max(bytes.start)..(run.dst + run.len).min(bytes.end);
            let literal = if run.source == Source::Literal { part.end - part.start } else { 0 };
            match found.last_mut().filter(|(range, _)| open && range.end == part.start) {
                Some(last) if literal > 0 || run.len < COINCIDENCE => {
                    *last = (last.0.start..part.end, last.1 + literal)
                }
                _ if literal > 0 => (open, _) = (true, found.push((part, literal))),
                _ => open = false,
            }
        }
    }
    found.into_iter().filter(|(_, literal)| *literal >= LEAST).map(|(range, _)| range).collect()
}

impl Recoding<'_> {
    /// Whether a stretch of deflated data is shorter as a change of its text. What is literal in a text takes about as many
    /// bytes, when compressed, as the data that it stands for; a step takes three, a difference two.
    fn gains(&self, bytes: &Range<u64>) -> bool {
        let Some((first, end)) = self.new_texts.items_of(self.new, bytes) else { return false };
        let (old, new) = (self.old_texts.bytes.bytes(), self.new_texts.bytes.bytes());
        let (mut literal, mut other) = (0u64, 200u64);
        let from = self.runs.partition_point(|run| run.dst + run.len <= first.text);
        for run in self.runs[from..].iter().take_while(|run| run.dst < end.text) {
            other += 3;
            match run.source {
                Source::Add { src } => {
                    let (old, new) =
                        (&old[src as usize..][..run.len as usize], &new[run.dst as usize..][..run.len as usize]);
                    other += 2 * old.chunks(4).zip(new.chunks(4)).filter(|(old, new)| old != new).count() as u64;
                }
                Source::Copy { .. } => {}
                _ => literal += run.len,
            }
        }
        let len = bytes.end - bytes.start;
        let text = (end.text - first.text).max(1);
        // u128: lengths of images need not fit when multiplied.
        let literal = u64::try_from(u128::from(literal) * u128::from(len) / u128::from(text)).unwrap_or(u64::MAX);
        literal.saturating_add(other) < len - len / 8
    }
}

/// The runs with these ranges, ascending and disjoint, of another source.
fn replaced(runs: &[Run], ranges: &[Range<u64>], source: Source) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::with_capacity(runs.len());
    let mut ranges = ranges.iter().peekable();
    for run in runs {
        let (mut at, end) = (run.dst, run.dst + run.len);
        while at < end {
            while ranges.next_if(|range| range.end <= at).is_some() {}
            let (stop, inside) = match ranges.peek() {
                Some(range) if range.start <= at => (range.end.min(end), true),
                Some(range) => (range.start.min(end), false),
                None => (end, false),
            };
            if inside {
                // Another range is that of another section, or not side by side; and in the midst of a range there may be
                // what does not change, and so has no run.
                let begun = |last: &&mut Run| {
                    last.dst + last.len == at && ranges.peek().is_some_and(|range| range.start <= last.dst)
                };
                match out.last_mut().filter(begun) {
                    Some(last) => last.len += stop - at,
                    None => out.push(Run { dst: at, len: stop - at, source }),
                }
            } else {
                out.push(run.part(at - run.dst, stop - at));
            }
            at = stop;
        }
    }
    out
}
