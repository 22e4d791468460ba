//! Batches: the actions of a schedule grouped by level, with a barrier before each level but the first.

use super::elsewhere::divert;
use super::order::{Action, Schedule};
use super::pieces::{Piece, Pieces};
use super::recipe::Recipe;
use super::{BATCH_BLOCKS, BATCH_STEPS, SOURCE_BLOCKS, TEXT_BYTES};
use crate::delta::writer::NewBatch;
use crate::units::{Extent, count_blocks, merge_extents, merge_ranges};

/// Groups a schedule into batches: in each level the saves, then the data, ascending, then the zeros.
pub fn group(recipe: &Recipe, pieces: &Pieces, schedule: &Schedule, old_len: u64, new_len: u64) -> Vec<NewBatch> {
    let mut actions: Vec<(u32, u8, u64, &Action)> = Vec::with_capacity(schedule.actions.len());
    for (number, (level, action)) in (0u64..).zip(&schedule.actions) {
        // Saves of a level do not depend on each other; they keep the order in which they were found.
        let (class, place) = match action {
            Action::Save(_) => (0, number),
            Action::Piece(piece) => {
                let piece = &pieces.list[*piece as usize];
                (1 + u8::from(piece.zero), piece.extents.first().map_or(0, |e| e.start))
            }
        };
        actions.push((*level, class, place, action));
    }
    actions.sort_by_key(|(level, class, place, _)| (*level, *class, *place));
    let mut batches: Vec<NewBatch> = Vec::new();
    let (mut level, mut open) = (0, Open::default());
    for (next, class, _, action) in actions {
        let barrier = next != level;
        if barrier || class != open.class {
            open = Open { class, ..Open::default() };
        }
        match action {
            Action::Save(pairs) => batches.push(save(pieces, pairs, old_len)),
            Action::Piece(number) => {
                let piece = &pieces.list[*number as usize];
                let added = schedule.added.get(number).copied().unwrap_or_default();
                if !open.has_room_for(piece, added) {
                    batches.push(NewBatch { zero: piece.zero, ..NewBatch::default() });
                }
                open.add(piece, added);
                if let Some(batch) = batches.last_mut() {
                    batch.extents.extend(&piece.extents);
                }
            }
        }
        if barrier && let Some(batch) = batches.last_mut() {
            batch.barrier = true;
            level = next;
        }
    }
    for batch in &mut batches {
        merge_extents(&mut batch.extents);
        if !batch.save && !batch.zero {
            batch.extents.iter().for_each(|extent| recipe.steps(extent, new_len, &mut batch.steps));
            batch.steps = divert(std::mem::take(&mut batch.steps), &schedule.detours);
        }
    }
    batches
}

/// What the batch that is being filled holds.
#[derive(Default)]
struct Open {
    class: u8,
    started: bool,
    blocks: u64,
    sources: u64,
    steps: usize,
    text_bytes: u64,
}

impl Open {
    /// `added` are steps and blocks that the piece has and reads besides.
    fn has_room_for(&self, piece: &Piece, added: (usize, u64)) -> bool {
        let blocks = count_blocks(&piece.extents);
        let fits = self.blocks + blocks <= BATCH_BLOCKS
            && self.sources + piece.source_blocks + added.1 <= SOURCE_BLOCKS
            && self.steps + piece.steps + added.0 <= BATCH_STEPS
            && self.text_bytes + piece.text_bytes <= TEXT_BYTES;
        self.started && (piece.zero || fits)
    }

    fn add(&mut self, piece: &Piece, added: (usize, u64)) {
        if !self.has_room_for(piece, added) {
            (self.blocks, self.sources, self.steps, self.text_bytes) = (0, 0, 0, 0);
        }
        self.started = true;
        self.blocks += count_blocks(&piece.extents);
        self.sources += piece.source_blocks + added.1;
        self.steps += piece.steps + added.0;
        self.text_bytes += piece.text_bytes;
    }
}

fn save(pieces: &Pieces, pairs: &[(u32, u32)], old_len: u64) -> NewBatch {
    let one = |dense: u32| Extent { start: pieces.block(dense), count: 1 };
    let mut extents: Vec<Extent> = pairs.iter().map(|(_, slot)| one(*slot)).collect();
    let mut saved = pairs.iter().map(|(block, _)| one(*block)).map(|e| e.bytes(old_len)).collect();
    merge_extents(&mut extents);
    merge_ranges(&mut saved);
    NewBatch { save: true, extents, saved, ..NewBatch::default() }
}
