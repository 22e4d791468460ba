//! Old bytes that the new image holds as well, at another place.
//!
//! A piece that is kept from being written only because others still read its old content need not wait, and nothing
//! need be saved, where what they read has been written elsewhere by then: they take a **detour** and read it there.

use super::Images;
use super::pieces::Piece;
use super::recipe::{Recipe, source_of};
use crate::delta::step::{Step, StepKind};
use crate::units::{BLOCK, blocks_touched};
use std::ops::Range;

/// Runs that are looked at to find one that copies a byte.
const LOOK: usize = 32;

/// Bytes of the new image that are made of other bytes of the new image, in place of the old bytes that these equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// First byte made.
    pub dst: u64,
    /// Bytes.
    pub len: u64,
    /// First byte read, in the new image.
    pub src: u64,
}

/// Whether `len` old bytes from the first offset are the new ones from the second: (old, new, len).
pub type Same<'a> = &'a dyn Fn(u64, u64, u64) -> bool;

/// Where in the new image the old bytes are that a recipe copies.
pub struct Elsewhere<'a> {
    recipe: &'a Recipe<'a>,
    new_len: u64,
    same: Same<'a>,
    /// By the first byte read: that byte, the number of bytes, the first byte made.
    copies: Vec<(u64, u64, u64)>,
}

impl<'a> Elsewhere<'a> {
    /// For a schedule without detours.
    pub fn nowhere(recipe: &'a Recipe<'a>, images: &Images<'a>) -> Self {
        Self { recipe, new_len: images.new_len, same: images.same, copies: Vec::new() }
    }

    /// Of this recipe.
    pub fn new(recipe: &'a Recipe<'a>, images: &Images<'a>) -> Self {
        let copy = |run| source_of(run).map(|source| (source.start, run.len, run.dst));
        let mut copies: Vec<_> = recipe.runs().iter().filter_map(copy).collect();
        copies.sort_unstable();
        Self { copies, ..Self::nowhere(recipe, images) }
    }

    /// The detours by which a piece need not read an old block. `written` says whether bytes of the new image are there
    /// already. `None` if there is a byte that must be read in the old block.
    pub fn around(&self, reader: &Piece, block: u64, written: impl Fn(Range<u64>) -> bool) -> Option<Vec<Detour>> {
        let bytes = block * BLOCK..(block + 1) * BLOCK;
        let mut detours = Vec::new();
        for run in reader.extents.iter().flat_map(|extent| self.recipe.clip(extent.bytes(self.new_len))) {
            if self.recipe.unpacks_from(&run, block) {
                return None; // what is unpacked is read where it was
            }
            let Some(source) = source_of(&run) else { continue };
            let (mut at, end) = (bytes.start.max(source.start), bytes.end.min(source.end));
            while at < end {
                let (len, src) = self.one(at..end, &written)?;
                detours.push(Detour { dst: run.dst + (at - source.start), len, src });
                at += len;
            }
        }
        Some(detours)
    }

    /// Where the first of these old bytes are as well: how many, and where.
    fn one(&self, old: Range<u64>, written: impl Fn(Range<u64>) -> bool) -> Option<(u64, u64)> {
        let before = self.copies.partition_point(|(src, _, _)| *src <= old.start);
        let near = self.copies.get(before.saturating_sub(LOOK)..before).unwrap_or_default();
        near.iter().rev().find_map(|(src, len, dst)| {
            let len = (src + len).min(old.end).checked_sub(old.start).filter(|len| *len > 0)?;
            let place = dst + (old.start - src);
            (written(place..place + len) && (self.same)(old.start, place, len)).then_some((len, place))
        })
    }
}

/// What detours add to what a piece reads: steps and blocks, at the most.
pub fn added(detours: &[Detour]) -> (usize, u64) {
    let blocks = detours.iter().map(|detour| blocks_touched(&(detour.src..detour.src + detour.len)).count).sum();
    (2 * detours.len(), blocks)
}

/// Puts detours in order, and those together that go on where another ends.
pub fn join(detours: &mut Vec<Detour>) {
    detours.sort_unstable_by_key(|detour| detour.dst);
    detours.dedup_by(|next, last| {
        let goes_on = last.dst + last.len == next.dst && last.src + last.len == next.src;
        last.len += if goes_on { next.len } else { 0 };
        goes_on
    });
}

/// Leads steps, ascending, along detours, which were [joined](join).
pub fn divert(steps: Vec<Step>, detours: &[Detour]) -> Vec<Step> {
    let mut diverted = Vec::with_capacity(steps.len());
    for step in steps {
        if step.kind.recodes() {
            diverted.push(step);
            continue;
        }
        let end = step.dst + step.len;
        let mut at = step.dst;
        let mut part = |from: u64, to: u64, kind, src| {
            if from < to {
                diverted.push(Step { kind, dst: from, len: to - from, src });
            }
        };
        let first = detours.partition_point(|detour| detour.dst + detour.len <= step.dst);
        for detour in detours[first..].iter().take_while(|detour| detour.dst < end) {
            let kind = match step.kind {
                StepKind::Copy => StepKind::CopyNew,
                StepKind::Add => StepKind::AddNew,
                _ => continue,
            };
            let (from, to) = (detour.dst.max(at), (detour.dst + detour.len).min(end));
            part(at, from, step.kind, step.src + (at - step.dst));
            part(from, to, kind, detour.src + (from - detour.dst));
            at = to;
        }
        let src = if step.kind.space().is_some() { step.src + (at - step.dst) } else { 0 };
        part(at, end, step.kind, src);
    }
    diverted
}
