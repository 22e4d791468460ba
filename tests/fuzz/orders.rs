//! Mutations of the order that keep its encoding and its counts right: what is left to refuse are the rules.

use crate::common::Rng;
use crate::model::{Model, Order, order_of};
use crate::mutate::extreme;
use blkpatch::delta::batch::BatchKind;
use blkpatch::delta::check::check_order;
use blkpatch::delta::{Delta, DeltaError};
use std::sync::Arc;

/// Changes the order of a good delta; nothing happens to a bad one.
pub fn mutate(model: &mut Model, bytes: &[u8], rng: &mut Rng) {
    let Some((route, mut order)) = order_of(bytes) else { return };
    for _ in 0..=rng.below(3) {
        change(&mut order, rng);
    }
    for batch in &mut order {
        batch.extents.retain(|e| e.count > 0);
        batch.extents.sort_unstable();
    }
    // Lists that are not canonical cannot be encoded.
    let good = |b: &Order| {
        let extents =
            b.extents.windows(2).all(|e| e[0].start.checked_add(e[0].count).is_some_and(|end| end < e[1].start));
        let fits = b.extents.last().is_some_and(|e| e.start.checked_add(e.count).is_some_and(|end| end < 1 << 62));
        let saved = b.saved.windows(2).all(|r| r[0].end < r[1].start) && b.saved.iter().all(|r| r.start < r.end);
        extents && fits && saved && (b.kind != BatchKind::Save || !b.saved.is_empty())
    };
    order.retain(good);
    if let Some(first) = order.first_mut() {
        first.barrier = false;
    }
    let reads = route.counts.save_reads;
    model.set_order(route.clone(), &order, reads);
    // How many reads of saves there are, the checker tells.
    let checked = Delta::open(Arc::new(model.assemble()), 64 << 20).and_then(|delta| check_order(&delta));
    if let Err(DeltaError::Field { field: "save_reads", allowed, .. }) = checked
        && let Ok(found) = allowed.parse()
    {
        model.set_order(route, &order, found);
    }
}

fn change(order: &mut Vec<Order>, rng: &mut Rng) {
    if order.is_empty() {
        return;
    }
    let (i, j) = (rng.below(order.len()), rng.below(order.len()));
    match rng.below(11) {
        0 => order.swap(i, j),
        1 | 2 => order[i].barrier ^= true,
        3 => {
            let copy = order[i].clone();
            order.insert(j, copy);
        }
        4 => drop(order.remove(i)),
        5 => order[i].kind = [BatchKind::Data, BatchKind::Save, BatchKind::Zero][rng.below(3)],
        6 => {
            let e = rng.below(order[i].extents.len());
            if let Some(extent) = order[i].extents.get_mut(e) {
                match rng.below(3) {
                    0 => extent.start = extreme(rng, extent.start),
                    1 => extent.count = extreme(rng, extent.count),
                    _ => extent.start = rng.below(30) as u64,
                }
            }
        }
        7 => split(order, i),
        8 => {
            let r = rng.below(order[i].saved.len());
            if let Some(range) = order[i].saved.get_mut(r) {
                match rng.below(2) {
                    0 => range.start = extreme(rng, range.start) % (1 << 62),
                    _ => range.end = extreme(rng, range.end) % (1 << 62),
                }
            }
        }
        9 => order[i].crcs.0 ^= 1 << rng.below(32),
        _ => order[i].crcs.1 ^= 1 << rng.below(32),
    }
}

/// Cuts a zero batch in two, which changes nothing; or another kind, which hardly ever is right.
fn split(order: &mut Vec<Order>, i: usize) {
    let mut second = order[i].clone();
    let first = &mut order[i];
    if first.extents.len() > 1 {
        second.extents = first.extents.split_off(1);
    } else if let Some(extent) = first.extents.first_mut().filter(|extent| extent.count > 1) {
        second.extents[0].start = extent.start.wrapping_add(1);
        second.extents[0].count -= 1;
        extent.count = 1;
    } else {
        return;
    }
    order.insert(i + 1, second);
}
