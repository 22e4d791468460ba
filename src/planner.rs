//! Follows the order ahead of the walk: finds out where the sources of each batch lie when its turn comes, and has them read.

use crate::apply::WalkError;
use crate::delta::batch::{Batch, BatchKind};
use crate::delta::check::CheckedOrder;
use crate::delta::placement::{Piece, Placement, Sources};
use crate::delta::step::{BATCH_TEXT, Step};
use crate::delta::step_reader::StepReader;
use crate::delta::{Delta, DeltaError};
use crate::maker::Fetch;
use crate::milestone::Gone;
use crate::reading_room::{Loading, ReadingRoom};
use crate::sources::{Page, SourceBuffer, divide, pages_of_three};
use crate::units::BLOCK;
use std::sync::mpsc::{Receiver, Sender};

/// Batches that are planned and not yet made, at the most. Where their steps or sources are many, they are fewer.
const PLANS: usize = 12;

/// A batch whose place in the order is known.
pub(crate) struct Planned<'a> {
    pub index: u64,
    pub batch: &'a Batch,
    pub redo: bool,
    pub steps: Box<[Step]>,
    /// Where the bytes of the steps that read lie: byte on the target, and number of bytes.
    pub pieces: Box<[(u64, u64)]>,
}

/// A batch, and its sources as they are read; none where it is not made, or has none.
pub(crate) type Plan<'a> = (Planned<'a>, Option<Loading>);

/// A batch whose sources are in memory. What it has taken goes back when nobody has it any more.
pub(crate) struct Loaded<'a> {
    pub planned: Planned<'a>,
    pub sources: SourceBuffer,
    used: Sender<Used>,
}

impl<'a> Loaded<'a> {
    /// Waits for the sources.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn wait((planned, loading): Plan<'a>, used: Sender<Used>) -> Result<Self, WalkError> {
        let sources = match loading {
            Some(loading) => loading.wait()??,
            None => SourceBuffer::default(),
        };
        Ok(Self { planned, sources, used })
    }

    /// What fills in its sources, from this piece on.
    pub fn fetch(&self, piece: usize) -> Pieces<'_> {
        Pieces { sources: &self.sources, pieces: &self.planned.pieces, at: piece }
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.sources).into_pages();
        let (steps, pieces) = (self.planned.steps.len(), self.planned.pieces.len());
        let _ = self.used.send(Used { steps, pieces, pages }); // who plans may be done
    }
}

/// Takes the sources of steps from where they lie on the target, piece after piece.
pub(crate) struct Pieces<'a> {
    sources: &'a SourceBuffer,
    pieces: &'a [(u64, u64)],
    at: usize,
}

impl Pieces<'_> {
    /// The next piece.
    pub fn at(&self) -> usize {
        self.at
    }
}

impl Fetch for Pieces<'_> {
    fn fill(&mut self, _: &Step, target: &mut [u8]) -> Result<(), DeltaError> {
        let mut filled = 0;
        while filled < target.len()
            && let Some((physical, len)) = self.pieces.get(self.at)
        {
            let end = filled + *len as usize;
            self.sources.copy(*physical, &mut target[filled..end])?;
            filled = end;
            self.at += 1;
        }
        Ok(())
    }

    fn pass(&mut self, step: &Step) {
        let mut left = if step.kind.space().is_some() { step.len } else { 0 };
        while left > 0
            && let Some((_, len)) = self.pieces.get(self.at)
        {
            left = left.saturating_sub(*len);
            self.at += 1;
        }
    }
}

/// What a batch that is done with has taken.
pub(crate) struct Used {
    pub steps: usize,
    pub pieces: usize,
    pub pages: Vec<Page>,
}

/// What batches that are planned and not done with may take together: as much as the largest three (table 9.2 of the spec).
struct Room {
    used: Receiver<Used>,
    /// Memory that is free, and how many more pages may be had.
    pages: Vec<Page>,
    more: u64,
    plans: usize,
    /// Steps of those plans, and how many of them may be when another batch is planned.
    steps: usize,
    steps_most: usize,
    /// The same of pieces.
    pieces: usize,
    pieces_most: usize,
}

impl Room {
    fn new(used: Receiver<Used>, delta: &Delta) -> Self {
        let limits = &delta.header.limits;
        let more = pages_of_three(limits.source_bytes.into());
        let steps_most = (limits.batch_steps as usize).saturating_mul(2);
        // As many pieces are in the sums of table 9.2, too.
        let pieces_most = steps_most.saturating_add((BATCH_TEXT / BLOCK) as usize * 2);
        Self { used, pages: Vec::new(), more, plans: 0, steps: 0, steps_most, pieces: 0, pieces_most }
    }

    /// Waits for a batch to be done with.
    fn wait(&mut self) -> Result<(), Gone> {
        let Used { steps, pieces, pages } = self.used.recv().map_err(|_| Gone)?;
        self.plans -= 1;
        self.steps -= steps;
        self.pieces -= pieces;
        self.pages.extend(pages);
        Ok(())
    }

    /// Waits until another batch may be planned.
    fn enter(&mut self) -> Result<(), Gone> {
        while self.plans >= PLANS || self.steps > self.steps_most || self.pieces > self.pieces_most {
            self.wait()?;
        }
        Ok(())
    }

    fn page(&mut self) -> Result<Page, Gone> {
        while self.pages.is_empty() && self.more == 0 {
            self.wait()?;
        }
        Ok(self.pages.pop().unwrap_or_else(|| {
            self.more -= 1;
            Page::allocated()
        }))
    }
}

/// Plans batch after batch.
pub(crate) struct Planner<'a> {
    delta: &'a Delta,
    placement: Placement<'a>,
    reader: StepReader,
    reading: ReadingRoom<'a>,
    room: Room,
    /// The steps of the batch that is being planned, and their pieces.
    steps: Vec<Step>,
    pieces: Vec<(u64, u64)>,
}

impl<'a> Planner<'a> {
    /// Before the first batch. What batches have taken is to come back through `used`.
    ///
    /// # Errors
    /// Where the delta cannot be read.
    pub fn new(
        delta: &'a Delta,
        order: &'a CheckedOrder,
        reading: ReadingRoom<'a>,
        used: Receiver<Used>,
    ) -> Result<Self, DeltaError> {
        let (placement, room) = (order.placement(), Room::new(used, delta));
        Ok(Self { delta, placement, reader: delta.steps()?, reading, room, steps: Vec::new(), pieces: Vec::new() })
    }

    /// Plans all, until one cannot be planned, or nobody wants the next.
    pub fn all(&mut self, redo: &[bool], to_make: &Sender<Result<Plan<'a>, WalkError>>) {
        for ((index, batch), redo) in (0u64..).zip(self.delta.table.batches()).zip(redo) {
            let planned = self.plan(index, batch, *redo);
            let failed = planned.is_err();
            if to_make.send(planned).is_err() || failed {
                return;
            }
        }
    }

    fn plan(&mut self, index: u64, batch: &'a Batch, redo: bool) -> Result<Plan<'a>, WalkError> {
        self.room.enter()?;
        let missing = |block| DeltaError::Rule { rule: "source", batch: index, block };
        let extents = self.delta.table.extents(batch);
        self.steps.clear();
        self.pieces.clear();
        let sources = match batch.kind {
            BatchKind::Zero => Sources::default(),
            BatchKind::Save => self.placement.save_sources(self.delta.table.saved(batch)).map_err(missing)?,
            BatchKind::Data => {
                self.reader.read_batch(extents, &mut self.steps)?;
                let pieces = &mut self.pieces;
                let keep = |piece: &Piece| {
                    if redo {
                        pieces.push((piece.physical, piece.len))
                    }
                };
                self.placement.sources_in_pieces(&self.steps, keep).map_err(missing)?
            }
        };
        // The rules were checked before; this keeps track of where old bytes lie.
        self.placement.advance(index, &self.delta.table, batch, &sources)?;
        let mut loading = None;
        if redo && batch.kind != BatchKind::Zero {
            let pages = divide(&sources.blocks, || self.room.page())?;
            loading = Some(self.reading.request(&sources, pages)?);
        }
        if redo || batch.barrier {
            self.reading.note_order(if redo { extents } else { &[] });
        }
        self.room.plans += 1;
        self.room.steps += self.steps.len();
        self.room.pieces += self.pieces.len();
        let (steps, pieces) = (self.steps.as_slice().into(), self.pieces.as_slice().into());
        Ok((Planned { index, batch, redo, steps, pieces }, loading))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Nothing ever comes back: what would have to wait fails.
    fn room() -> Room {
        let (_, used) = channel();
        Room { used, pages: Vec::new(), more: 2, plans: 0, steps: 0, steps_most: 10, pieces: 0, pieces_most: 20 }
    }

    #[test]
    fn no_batch_is_planned_beyond_what_all_may_take() {
        for (plans, steps, pieces, may) in
            [(PLANS - 1, 10, 20, true), (PLANS, 0, 0, false), (1, 11, 0, false), (1, 0, 21, false)]
        {
            let mut room = Room { plans, steps, pieces, ..room() };
            assert_eq!(room.enter().is_ok(), may, "{plans} plans, {steps} steps, {pieces} pieces");
        }
        let mut room = room();
        assert!(room.page().is_ok() && room.page().is_ok() && room.page().is_err());
    }

    #[test]
    fn what_comes_back_makes_room() {
        let (to_plan, used) = channel();
        let mut room = Room { used, plans: PLANS, steps: 11, pieces: 21, more: 0, ..room() };
        to_plan.send(Used { steps: 11, pieces: 21, pages: vec![Page::allocated()] }).unwrap();
        assert!(room.enter().is_ok() && room.page().is_ok());
        assert_eq!((room.plans, room.steps, room.pieces), (PLANS - 1, 0, 0));
    }
}
