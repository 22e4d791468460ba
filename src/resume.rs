//! Which batches an interrupted target still needs. Pure.
//!
//! A final batch is done if its extents hold what it leaves; a save also if all batches that read it are done. What is
//! done must stay done: a save that is made again overwrites its scratch, and with it what later batches left there by
//! chance or truly. So a batch behind such a save, with blocks in common, counts as not done, until nothing changes
//! (spec, chapter 8, with the proof that every state an interruption leaves is finished).

use crate::delta::batch::{BatchKind, BatchTable};
use crate::delta::check::CheckedOrder;
use crate::delta::scratch::ScratchPieces;
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

/// Who writes the blocks that serve as scratch.
struct ScratchWriters {
    pieces: ScratchPieces,
    /// Where the writers of each piece begin in `batches`.
    starts: Vec<usize>,
    /// How many of them are left.
    left: Vec<usize>,
    /// The batches that write each piece, ascending.
    batches: Vec<u32>,
}

impl ScratchWriters {
    fn new(table: &BatchTable) -> Self {
        let pieces = ScratchPieces::new(table);
        let mut starts = vec![0; pieces.len() + 1];
        let extents = || (0u32..).zip(table.batches()).flat_map(|(k, b)| table.extents(b).iter().map(move |e| (k, e)));
        extents().flat_map(|(_, extent)| pieces.of(extent)).for_each(|piece| starts[piece + 1] += 1);
        for piece in 0..pieces.len() {
            starts[piece + 1] += starts[piece];
        }
        let mut batches = vec![0; starts[pieces.len()]];
        let mut left = vec![0; pieces.len()];
        for (k, extent) in extents() {
            for piece in pieces.of(extent) {
                batches[starts[piece] + left[piece]] = k;
                left[piece] += 1;
            }
        }
        Self { pieces, starts, left, batches }
    }

    /// Calls `found` with the batches behind `save` that write to its extents. Nobody finds them there again: they are
    /// spoilt then, whatever else is done again.
    fn take_behind(&mut self, save: usize, extents: &[Extent], mut found: impl FnMut(usize)) {
        for piece in extents.iter().flat_map(|extent| self.pieces.of(extent)) {
            let (start, left) = (self.starts[piece], self.left[piece]);
            let writers = &self.batches[start..start + left];
            let keep = writers.partition_point(|k| *k as usize <= save);
            writers[keep..].iter().for_each(|k| found(*k as usize));
            self.left[piece] = keep;
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
