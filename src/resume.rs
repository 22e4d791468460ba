//! Which batches an interrupted target still needs. Pure.
//!
//! A final batch is done if its extents hold what it leaves; a save also if all batches that read it are done. What is
//! done must stay done: a save that is made again overwrites its scratch, and with it what later batches left there by
//! chance or truly. So a batch behind such a save, with blocks in common, counts as not done, until nothing changes
//! (spec, chapter 8, with the proof that every state an interruption leaves is finished).

use crate::blockset::BlockSet;
use crate::delta::batch::{BatchKind, BatchTable};
use crate::delta::check::CheckedOrder;

/// Says for each batch whether it must be done; `intact[k]`: the extents of batch k hold what it leaves.
#[must_use]
pub fn to_redo(table: &BatchTable, order: &CheckedOrder, intact: &[bool]) -> Vec<bool> {
    let batches = table.batches();
    let mut readers = order.save_reads.clone();
    readers.sort_unstable();
    let mut redo = vec![false; batches.len()];
    loop {
        let mut changed = false;
        let mut dirty = BlockSet::new();
        for (k, batch) in batches.iter().enumerate() {
            if !redo[k] {
                let good = intact[k] && !table.extents(batch).iter().any(|extent| dirty.any(*extent));
                redo[k] = !good && (batch.kind != BatchKind::Save || any_reader(&readers, k, &redo));
                changed |= redo[k];
            }
            if redo[k] && batch.kind == BatchKind::Save {
                table.extents(batch).iter().for_each(|extent| dirty.insert(*extent));
            }
        }
        if !changed {
            return redo;
        }
    }
}

/// Whether a batch that reads the save must be done.
fn any_reader(readers: &[(u32, u32)], save: usize, redo: &[bool]) -> bool {
    let first = readers.partition_point(|(s, _)| (*s as usize) < save);
    readers[first..].iter().take_while(|(s, _)| *s as usize == save).any(|(_, reader)| redo[*reader as usize])
}
