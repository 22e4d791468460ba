//! Which batches an interrupted target still needs. Pure.
//!
//! A final batch is done if its extents hold what it leaves; a save also if all batches that read it are done. What is
//! done must stay done: a save that is made again overwrites its scratch, and with it what later batches left there by
//! chance or truly. So a batch behind such a save, with blocks in common, counts as not done, until nothing changes
//! (spec, chapter 8, with the proof that every state an interruption leaves is finished).

use crate::delta::batch::{BatchKind, BatchTable};
use crate::delta::check::CheckedOrder;
use crate::units::Extent;

/// Says for each batch whether it must be done; `intact[k]`: the extents of batch k hold what it leaves.
///
/// Takes time in proportion to the order, however its batches hang together.
#[must_use]
pub fn to_redo(table: &BatchTable, order: &CheckedOrder, intact: &[bool]) -> Vec<bool> {
    let count = table.batches().len();
    let mut reads = order.save_reads.clone();
    reads.sort_unstable_by_key(|(_, reader)| *reader);
    let mut closure = Closure {
        table,
        spoilt: intact.iter().map(|intact| !intact).collect(),
        needed: vec![false; count],
        redo: vec![false; count],
        todo: Vec::new(),
    };
    let mut writers = ScratchWriters::new(table);
    (0..count).for_each(|k| closure.look_at(k));
    while let Some(k) = closure.todo.pop() {
        let first = reads.partition_point(|(_, reader)| (*reader as usize) < k);
        for (save, _) in reads[first..].iter().take_while(|(_, reader)| *reader as usize == k) {
            closure.needed[*save as usize] = true;
            closure.look_at(*save as usize);
        }
        if table.batches()[k].kind == BatchKind::Save {
            writers.take_behind(k, table.extents(&table.batches()[k]), |later| {
                closure.spoilt[later] = true;
                closure.look_at(later);
            });
        }
    }
    closure.redo
}

/// The smallest set of batches to do (spec, [W-2]), while it grows.
struct Closure<'a> {
    table: &'a BatchTable,
    /// Does not hold what it leaves, or will not when an earlier save has been done again.
    spoilt: Vec<bool>,
    /// For a save: a batch that reads it must be done.
    needed: Vec<bool>,
    redo: Vec<bool>,
    /// Batches that must be done, and whose consequences have not been drawn.
    todo: Vec<usize>,
}

impl Closure<'_> {
    fn look_at(&mut self, k: usize) {
        let wanted = self.table.batches()[k].kind != BatchKind::Save || self.needed[k];
        if self.spoilt[k] && wanted && !self.redo[k] {
            self.redo[k] = true;
            self.todo.push(k);
        }
    }
}

/// Who writes the blocks that serve as scratch, by pieces that are nowhere cut by the border of a save.
struct ScratchWriters {
    /// First block of each piece, ascending; the last one ends the last piece.
    borders: Vec<u64>,
    /// The batches that write each piece, ascending.
    batches: Vec<Vec<u32>>,
}

impl ScratchWriters {
    fn new(table: &BatchTable) -> Self {
        let saves = table.batches().iter().filter(|batch| batch.kind == BatchKind::Save);
        let mut borders: Vec<u64> =
            saves.flat_map(|batch| table.extents(batch)).flat_map(|extent| [extent.start, extent.end()]).collect();
        borders.sort_unstable();
        borders.dedup();
        let mut writers = Self { batches: vec![Vec::new(); borders.len().saturating_sub(1)], borders };
        for (k, batch) in (0u32..).zip(table.batches()) {
            for extent in table.extents(batch) {
                writers.pieces(extent).for_each(|piece| {
                    let list = &mut writers.batches[piece];
                    if list.last() != Some(&k) {
                        list.push(k);
                    }
                });
            }
        }
        writers
    }

    /// The pieces that have a block in common with an extent.
    fn pieces(&self, extent: &Extent) -> std::ops::Range<usize> {
        let first = self.borders.partition_point(|border| *border <= extent.start).saturating_sub(1);
        let last = self.borders.partition_point(|border| *border < extent.end()).min(self.batches.len());
        first.min(last)..last
    }

    /// Calls `found` with the batches behind `save` that write to its extents. Nobody finds them there again: they are
    /// spoilt then, whatever else is done again.
    fn take_behind(&mut self, save: usize, extents: &[Extent], mut found: impl FnMut(usize)) {
        for extent in extents {
            for piece in self.pieces(extent) {
                let list = &mut self.batches[piece];
                let keep = list.partition_point(|k| *k as usize <= save);
                list.drain(keep..).for_each(|k| found(k as usize));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockset::BlockSet;
    use proptest::prelude::*;

    /// The definition of the spec, word for word: passes until nothing changes.
    fn by_definition(table: &BatchTable, order: &CheckedOrder, intact: &[bool]) -> Vec<bool> {
        let mut redo = vec![false; intact.len()];
        loop {
            let before = redo.clone();
            let mut dirty = BlockSet::new();
            for (k, batch) in table.batches().iter().enumerate() {
                let spoilt = !intact[k] || table.extents(batch).iter().any(|extent| dirty.any(*extent));
                let is_read =
                    order.save_reads.iter().any(|(save, reader)| *save as usize == k && redo[*reader as usize]);
                redo[k] |= spoilt && (batch.kind != BatchKind::Save || is_read);
                if redo[k] && batch.kind == BatchKind::Save {
                    table.extents(batch).iter().for_each(|extent| dirty.insert(*extent));
                }
            }
            if redo == before {
                return redo;
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_the_smallest_set_of_the_definition(
            batches in prop::collection::vec((any::<bool>(), any::<bool>(), 0u64..12, 1u64..4, 0u64..3), 1..24),
            reads in prop::collection::vec((0usize..24, 0usize..24), 0..30),
        ) {
            let (mut table, mut order) = (BatchTable::default(), CheckedOrder::default());
            for (save, _, start, count, gap) in &batches {
                let kind = if *save { BatchKind::Save } else { BatchKind::Data };
                let second = Extent { start: start + count + gap + 1, count: 1 };
                let extents = [Extent { start: *start, count: *count }, second];
                table.push(kind, false, &extents[..1 + usize::from(*gap > 0)], &[], (0, 0));
            }
            for (a, b) in reads {
                let (save, reader) = (a.min(b), a.max(b));
                if save < reader && reader < batches.len() && batches[save].0 {
                    order.save_reads.push((save as u32, reader as u32));
                }
            }
            let intact: Vec<bool> = batches.iter().map(|batch| batch.1).collect();
            prop_assert_eq!(to_redo(&table, &order, &intact), by_definition(&table, &order, &intact));
        }
    }

    /// An order made to be slow: every pass of the definition adds one batch.
    #[test]
    fn a_long_chain_is_followed_at_once() {
        let n = 100_000;
        let (mut table, mut order) = (BatchTable::default(), CheckedOrder::default());
        let scratch = |k: usize| [Extent { start: 2 * k as u64, count: 1 }];
        (0..n).for_each(|k| table.push(BatchKind::Save, false, &scratch(k), &[0..1], (0, 0)));
        for k in (0..n).rev() {
            table.push(BatchKind::Data, true, &scratch(k + 1), &[], (0, 0));
            order.save_reads.push((k as u32, (n + (n - 1 - k)) as u32));
        }
        let intact: Vec<bool> = (0..2 * n).map(|k| k > n).collect();
        assert!(to_redo(&table, &order, &intact).iter().all(|redo| *redo));
    }
}
