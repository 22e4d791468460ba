//! What keeping track of scratch takes: how much of it is in use at a time, and into what pieces saves cut it.

use super::DeltaError;
use super::batch::{Batch, BatchKind, BatchTable};
use crate::units::Extent;
use std::collections::BTreeMap;
use std::ops::Range;

/// The blocks that any save writes, cut wherever an extent of a save begins or ends.
#[derive(Clone, Debug)]
pub struct ScratchPieces {
    /// Where extents of saves begin or end: ascending.
    borders: Vec<u64>,
    /// How many pieces there are before each border; between others nothing is saved.
    before: Vec<u32>,
}

impl ScratchPieces {
    /// Of all saves of an order.
    #[must_use]
    pub fn new(table: &BatchTable) -> Self {
        let mut borders = Vec::with_capacity(2 * save_extents(table).count());
        borders.extend(save_extents(table).flat_map(|extent| [extent.start, extent.end()]));
        borders.sort_unstable();
        borders.dedup();
        let place = |block: u64| borders.partition_point(|border| *border < block);
        // First how many extents begin less how many end there.
        let mut before = vec![0u32; borders.len()];
        for extent in save_extents(table) {
            let (start, end) = (place(extent.start), place(extent.end()));
            before[start] = before[start].wrapping_add(1);
            before[end] = before[end].wrapping_sub(1);
        }
        let (mut open, mut pieces) = (0u32, 0);
        for change in &mut before {
            open = open.wrapping_add(std::mem::replace(change, pieces));
            pieces += u32::from(open > 0);
        }
        Self { borders, before }
    }

    /// How many pieces there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.before.last().map_or(0, |pieces| *pieces as usize)
    }

    /// Whether nothing is ever saved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces that have a block in common with an extent, by number.
    #[must_use]
    pub fn of(&self, extent: &Extent) -> Range<usize> {
        if extent.count == 0 || self.borders.is_empty() {
            return 0..0;
        }
        let first = self.borders.partition_point(|border| *border <= extent.start).saturating_sub(1);
        let last = self.borders.partition_point(|border| *border < extent.end()).min(self.borders.len() - 1);
        let number = |border: usize| self.before.get(border).map_or(0, |pieces| *pieces as usize);
        number(first).min(number(last))..number(last)
    }

    /// Into how many parts all that an order writes to scratch, also to what is not scratch yet or no longer, is cut.
    #[must_use]
    pub fn parts(&self, table: &BatchTable) -> u64 {
        let extents = table.batches().iter().flat_map(|batch| table.extents(batch));
        extents.map(|extent| self.of(extent).len() as u64).fold(0, u64::saturating_add)
    }
}

fn save_extents(table: &BatchTable) -> impl Iterator<Item = &Extent> {
    saves(table).flat_map(|batch| table.extents(batch))
}

fn saves(table: &BatchTable) -> impl Iterator<Item = &Batch> {
    table.batches().iter().filter(|batch| batch.kind == BatchKind::Save)
}

/// How many extents all saves have.
#[must_use]
pub fn saved_extents(table: &BatchTable) -> u64 {
    saves(table).map(|batch| table.extents(batch).len() as u64).fold(0, u64::saturating_add)
}

/// The largest number of ranges and extents, together, of saves that are live at a time (spec, [P-1]). `check` is asked
/// whenever the number grows, before memory is taken for it.
///
/// # Errors
/// What `check` says.
pub fn most_live(table: &BatchTable, check: impl Fn(u64) -> Result<(), DeltaError>) -> Result<u64, DeltaError> {
    let weight = |save: &Batch| (table.extents(save).len() + table.saved(save).len()) as u64;
    // By first block: one past the last, and the save.
    let mut scratch: BTreeMap<u64, (u64, &Batch)> = BTreeMap::new();
    let (mut live, mut most) = (0u64, 0u64);
    for batch in table.batches() {
        for extent in table.extents(batch) {
            let before = scratch.range(..extent.start).next_back().filter(|(_, (end, _))| *end > extent.start);
            let mut hit =
                before.or_else(|| scratch.range(extent.start..extent.end()).next()).map(|(_, (_, save))| *save);
            while let Some(save) = hit {
                // A save ends as a whole.
                live -= weight(save);
                table.extents(save).iter().for_each(|extent| {
                    scratch.remove(&extent.start);
                });
                hit = scratch.range(extent.start..extent.end()).next().map(|(_, (_, save))| *save);
            }
        }
        if batch.kind == BatchKind::Save {
            live = live.saturating_add(weight(batch));
            if live > most {
                check(live)?;
                most = live;
            }
            table.extents(batch).iter().for_each(|extent| {
                scratch.insert(extent.start, (extent.end(), batch));
            });
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(start: u64, count: u64) -> Extent {
        Extent { start, count }
    }

    #[test]
    fn pieces_are_what_saves_cut() {
        let mut table = BatchTable::default();
        table.push(BatchKind::Save, false, &[extent(10, 4), extent(20, 2)], &[0..1], (0, 0));
        table.push(BatchKind::Save, false, &[extent(12, 4)], &[0..1], (0, 0));
        table.push(BatchKind::Data, false, &[extent(0, 11), extent(13, 8)], &[], (0, 0));
        let pieces = ScratchPieces::new(&table); // 10-12, 12-14, 14-16, 20-22
        assert_eq!((pieces.len(), pieces.parts(&table)), (4, 2 + 1 + 2 + 1 + 3));
        assert_eq!(pieces.of(&extent(16, 4)), 3..3);
        assert_eq!(pieces.of(&extent(0, 100)), 0..4);
        assert_eq!(pieces.of(&extent(30, 100)).len(), 0);
    }

    #[test]
    fn a_save_is_live_until_any_of_its_blocks_is_written() {
        let mut table = BatchTable::default();
        table.push(BatchKind::Save, false, &[extent(10, 4), extent(20, 2)], &[0..1, 5..6], (0, 0));
        table.push(BatchKind::Save, false, &[extent(30, 1)], &[0..1], (0, 0));
        table.push(BatchKind::Data, false, &[extent(21, 1)], &[], (0, 0));
        table.push(BatchKind::Save, false, &[extent(10, 1)], &[0..1], (0, 0));
        assert_eq!(most_live(&table, |_| Ok(())).unwrap(), 4 + 2);
        let refuse = |live| if live > 4 { Err(DeltaError::Malformed("too much")) } else { Ok(()) };
        assert!(most_live(&table, refuse).is_err());
    }

    proptest! {
        #[test]
        fn pieces_are_found_as_block_by_block(
            batches in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..9), 1..20),
        ) {
            let mut table = BatchTable::default();
            for (save, start, count) in &batches {
                let kind = if *save { BatchKind::Save } else { BatchKind::Data };
                table.push(kind, false, &[extent(*start, *count)], &[], (0, 0));
            }
            let saves = || batches.iter().filter(|batch| batch.0);
            let border = |b: u64| saves().any(|(_, start, count)| *start == b || start + count == b);
            let saved = |b: u64| saves().any(|(_, start, count)| (*start..start + count).contains(&b));
            // The number of the piece of each block that is saved.
            let (mut number, mut numbers) = (0, Vec::new());
            for b in 0..50 {
                number += usize::from(saved(b) && (border(b) || !saved(b.wrapping_sub(1))));
                numbers.push(saved(b).then(|| number - 1));
            }
            let pieces = ScratchPieces::new(&table);
            prop_assert_eq!(pieces.len(), number);
            for (_, start, count) in &batches {
                let mut expected: Vec<usize> = (*start..start + count).filter_map(|b| numbers[b as usize]).collect();
                expected.dedup();
                prop_assert_eq!(pieces.of(&extent(*start, *count)).collect::<Vec<_>>(), expected);
            }
        }
    }
}
