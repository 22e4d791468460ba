//! Recoveries that forget something. The walk and the rest of the judgement are the real ones.

use super::disk::Disk;
use super::session::End;
use blkpatch::apply::{WalkError, Walked, walk};
use blkpatch::delta::Delta;
use blkpatch::delta::batch::{BatchKind, BatchTable};
use blkpatch::delta::check::CheckedOrder;
use blkpatch::device::Device;
use blkpatch::monitor::Silent;
use blkpatch::patch::Opened;
use blkpatch::resume::to_redo;
use blkpatch::target::Verify;
use std::sync::atomic::AtomicBool;

/// The second condition is forgotten: a save is done only if its scratch is intact.
pub fn saves_by_content_only(opened: &Opened, disk: &Disk, _: Verify) -> End {
    resume(opened, disk, |_, _, intact| intact.iter().map(|intact| !intact).collect(), false)
}

/// Judged in advance by "a final batch is done if it is intact, a save if it is intact or all its readers are done":
/// nobody asks what else a save that is done again overwrites.
pub fn judged_in_advance(opened: &Opened, disk: &Disk, _: Verify) -> End {
    let judge = |table: &BatchTable, order: &CheckedOrder, intact: &[bool]| {
        let is_read = |save: usize| {
            order.save_reads.iter().any(|(read, reader)| *read as usize == save && !intact[*reader as usize])
        };
        let batches = table.batches().iter().enumerate();
        batches.map(|(k, batch)| !intact[k] && (batch.kind != BatchKind::Save || is_read(k))).collect()
    };
    resume(opened, disk, judge, false)
}

/// The barrier before a batch that is done is skipped with it.
pub fn barriers_skipped(opened: &Opened, disk: &Disk, _: Verify) -> End {
    resume(opened, disk, to_redo, true)
}

/// The same run with nothing forgotten: loses nothing.
pub fn sound(opened: &Opened, disk: &Disk, _: Verify) -> End {
    resume(opened, disk, to_redo, false)
}

/// A run: sync, look, walk. As in the real one, a disk with the old image needs all batches, one with the new none.
fn resume(
    opened: &Opened,
    disk: &Disk,
    judge: impl Fn(&BatchTable, &CheckedOrder, &[bool]) -> Vec<bool>,
    skip_barriers: bool,
) -> End {
    if let Err(e) = disk.sync() {
        return End::Stopped(e.to_string());
    }
    let Opened { delta, order } = opened;
    let content = disk.contents();
    let holds = |len: u64, blake3: [u8; 32]| *blake3::hash(&content[..len as usize]).as_bytes() == blake3;
    if holds(delta.header.new.len, delta.header.new.blake3) {
        return End::Done;
    }
    let is_old = delta.route.old.is_some_and(|old| holds(old.len, old.blake3));
    let redo = if is_old {
        vec![true; delta.table.batches().len()]
    } else {
        judge(&delta.table, order, &intact(delta, &content))
    };
    let (stop, mut walked) = (AtomicBool::new(false), Walked::default());
    let result = if skip_barriers {
        let (delta, order) = without_barriers(opened, &redo);
        walk(disk, &delta, &order, &redo, &stop, &Silent, &mut walked)
    } else {
        walk(disk, delta, order, &redo, &stop, &Silent, &mut walked)
    };
    match result {
        Ok(()) => End::Done,
        Err(WalkError::Device(e)) => End::Stopped(e.to_string()),
        Err(e) => End::Lost(e.to_string()),
    }
}

fn intact(delta: &Delta, content: &[u8]) -> Vec<bool> {
    let is_intact = |batch| {
        let mut hasher = crc32fast::Hasher::new();
        for extent in delta.table.extents(batch) {
            let bytes = extent.bytes(delta.header.new.len);
            hasher.update(&content[bytes.start as usize..bytes.end as usize]);
        }
        hasher.finalize() == batch.crc
    };
    delta.table.batches().iter().map(is_intact).collect()
}

/// The order as if the batches that are done had no barriers.
fn without_barriers(opened: &Opened, redo: &[bool]) -> (Delta, CheckedOrder) {
    let delta = &opened.delta;
    let mut table = BatchTable::default();
    for (batch, redo) in delta.table.batches().iter().zip(redo) {
        let (extents, saved) = (delta.table.extents(batch), delta.table.saved(batch));
        table.push(batch.kind, batch.barrier && *redo, extents, saved, (batch.crc, batch.source_crc));
    }
    let delta = Delta {
        streams: delta.streams.clone(),
        header: delta.header.clone(),
        route: delta.route.clone(),
        table,
        label: None,
        ..*delta
    };
    (delta, CheckedOrder { waived: &["R2", "R3"], ..opened.order.clone() })
}
