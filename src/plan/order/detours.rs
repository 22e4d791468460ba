//! Leads readers around what waits for them: to where the new image has what they read.

use super::super::elsewhere::{Detour, added};
use super::super::{BATCH_STEPS, SOURCE_BLOCKS};
use super::{NONE, State};
use crate::units::blocks_touched;
use std::ops::Range;

/// Rounds of ready pieces that a piece waits for readers that could take a detour. They may well get their turn, and a
/// detour costs a few bytes; but who waits for this piece waits as long.
pub(super) const PATIENCE: u64 = 4;

/// What waits for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halfway {
    /// A piece, to be written.
    Piece(u32),
    /// A save, to give back its scratch.
    Group(u32),
}

impl State<'_> {
    /// One reader less needs what was saved.
    pub(super) fn leave_group(&mut self, group: u32) {
        let group = &mut self.groups[group as usize];
        group.pending -= 1;
        if group.pending == 0 {
            self.pool.extend(&group.slots);
        }
    }

    pub(super) fn waits(&self, what: Halfway) -> bool {
        match what {
            Halfway::Piece(piece) => self.foreign_blocks[piece as usize] > 0,
            Halfway::Group(group) => self.groups[group as usize].pending > 0,
        }
    }

    pub(super) fn note_halfway(&mut self, what: Halfway) {
        if self.waits(what) && self.halfway.back() != Some(&(self.round, what)) {
            self.halfway.push_back((self.round, what));
        }
    }

    /// Leads the readers around what has been halfway free for so many rounds, where that sets it free. Whether there was
    /// such a thing.
    pub(super) fn free_halfway(&mut self, patience: u64) -> bool {
        let mut freed = false;
        while let Some((round, what)) = self.halfway.front().copied()
            && round + patience <= self.round
        {
            self.halfway.pop_front();
            freed |= self.waits(what) && self.lead_around(what);
        }
        freed
    }

    /// Leads all that must be led around a piece so that it can be written, or only waits for what it reads itself; or
    /// around what was saved.
    pub(super) fn lead_around(&mut self, what: Halfway) -> bool {
        let waiting: Vec<u32> = match what {
            Halfway::Piece(piece) => self.endangered(piece).into_iter().filter(|d| !self.own[*d as usize]).collect(),
            Halfway::Group(group) => self.groups[group as usize].blocks.clone(),
        };
        let mut found = Vec::new();
        for d in &waiting {
            for i in self.reader_start[*d as usize]..self.reader_start[*d as usize + 1] {
                let reader = self.reader_list[i as usize];
                if self.done[reader as usize] || self.around.contains(&(reader, *d)) {
                    continue;
                }
                let Some(detours) = self.detours(reader, *d, NONE) else { return false };
                found.push((reader, *d, detours));
            }
        }
        if found.is_empty() {
            return false;
        }
        let key = if let Halfway::Piece(piece) = what { self.need(piece) } else { 0 };
        for (reader, d, detours) in found {
            self.take(reader, &detours);
            self.schedule.detours.extend(detours);
            self.around.insert((reader, d));
            match what {
                Halfway::Piece(piece) => {
                    self.outward[reader as usize] -= 1;
                    self.foreign[d as usize] -= 1;
                    self.foreign_blocks[piece as usize] -= u32::from(self.foreign[d as usize] == 0);
                }
                Halfway::Group(group) => self.leave_group(group),
            }
        }
        if let Halfway::Piece(piece) = what {
            self.classify(piece, Some(key));
            self.note_alone(piece);
            self.nearly.push(piece);
        }
        true
    }

    /// Whether all who still read a piece can be led around it once it is written.
    pub(super) fn around_when_written(&self, piece: u32) -> bool {
        self.endangered(piece).into_iter().all(|d| {
            let readers = self.reader_start[d as usize]..self.reader_start[d as usize + 1];
            readers.into_iter().map(|i| self.reader_list[i as usize]).all(|reader| {
                let reads = reader != piece && !self.done[reader as usize] && !self.around.contains(&(reader, d));
                !reads || self.detours(reader, d, piece).is_some()
            })
        })
    }

    /// The detours of a reader around a block, if there are, and its batch can bear them, when what has been written is
    /// written and another piece, too.
    pub(super) fn detours(&self, reader: u32, dense: u32, too: u32) -> Option<Vec<Detour>> {
        let piece = &self.pieces.list[reader as usize];
        let written = |bytes: Range<u64>| self.written(&bytes, reader, too).is_some();
        let detours = self.elsewhere.around(piece, self.pieces.block(dense), written)?;
        let ((steps, blocks), had) = (added(&detours), self.schedule.added.get(&reader).copied().unwrap_or_default());
        let fits = piece.steps + had.0 + steps <= BATCH_STEPS && piece.source_blocks + had.1 + blocks <= SOURCE_BLOCKS;
        fits.then_some(detours)
    }

    /// The level behind which bytes of the new image can be read by another piece, if they have been written.
    pub(super) fn written(&self, bytes: &Range<u64>, reader: u32, too: u32) -> Option<u32> {
        let blocks = blocks_touched(bytes);
        let (mut count, mut level) = (0, 0);
        for d in self.pieces.dense(blocks) {
            let owner = self.pieces.owner[d as usize];
            if owner == reader || !(self.done[owner as usize] || owner == too) {
                return None;
            }
            level = level.max(self.level_of[owner as usize] + 1);
            count += 1;
        }
        (count == blocks.count).then_some(level)
    }

    /// The reader takes these detours.
    pub(super) fn take(&mut self, reader: u32, detours: &[Detour]) {
        let level =
            detours.iter().filter_map(|d| self.written(&(d.src..d.src + d.len), reader, NONE)).max().unwrap_or(0);
        let not_before = self.not_before.entry(reader).or_default();
        *not_before = level.max(*not_before);
        let (steps, blocks) = added(detours);
        let sum = self.schedule.added.entry(reader).or_default();
        *sum = (sum.0 + steps, sum.1 + blocks);
    }
}
