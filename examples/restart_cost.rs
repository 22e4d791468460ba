//! What being restartable costs in bytes: writes the steps of a delta anew, front to back in one batch, without order,
//! saves, barriers and source checksums, and compares the sizes. What it writes cannot be applied in place.
//!
//!     cargo run --release --example restart_cost DELTA OLD NEW

use blkpatch::delta::batch::BatchKind;
use blkpatch::delta::header::Kind;
use blkpatch::delta::step::{Space, Step, StepKind};
use blkpatch::delta::stream::{Compression, JOB};
use blkpatch::delta::writer::{DeltaWriter, Identity, NewBatch};
use blkpatch::diff::window_log;
use blkpatch::image::Image;
use blkpatch::patch::{Opened, open_delta};
use blkpatch::units::{BLOCK, Extent, merge_extents};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, delta, old, new] = &args[..] else { return Err("usage: restart_cost DELTA OLD NEW".into()) };
    let opened = open_delta(Path::new(delta), u64::MAX)?;
    let (old, new) = (Image::open(Path::new(old))?, Image::open(Path::new(new))?);
    let with = opened.delta.file_len;
    let without = unordered(&opened, old.bytes(), new.bytes())?;
    let more = (with as f64 / without as f64 - 1.0) * 100.0;
    println!("{delta}: {with} bytes, {without} without being restartable: {more:+.2} %");
    Ok(())
}

/// Bytes of the same delta without order.
fn unordered(opened: &Opened, old: &[u8], new: &[u8]) -> Result<usize, Box<dyn Error>> {
    let delta = &opened.delta;
    let (steps, zeros) = by_address(opened)?;
    let folder = std::env::temp_dir();
    let compression = |kind| Compression { level: 19, window_log: window_log(kind), threads: 2, job: JOB };
    let mut writer =
        DeltaWriter::new(old, new, &opened.order.touched, &folder, compression).waiving(&["R1", "R2", "R3", "R4"]);
    let mut extents: Vec<Extent> =
        steps.iter().map(|step| blkpatch::units::blocks_touched(&(step.dst..step.dst + step.len))).collect();
    merge_extents(&mut extents);
    writer.add(&NewBatch { extents, steps, ..NewBatch::default() })?;
    if !zeros.is_empty() {
        writer.add(&NewBatch { zero: true, extents: zeros, ..NewBatch::default() })?;
    }
    let route = &delta.route;
    let identity = Identity {
        old: route.old,
        new: delta.header.new,
        untouched: route.untouched,
        region_log: route.region_log,
        regions: route.regions.clone(),
    };
    let mut out = Vec::new();
    let (header, _) = writer.finish(&identity, 19, &mut out)?;
    for section in header.sections.iter().filter(|section| section.stored_len >= 1024) {
        let there = delta.header.sections.iter().find(|other| other.kind == section.kind);
        let name = section.kind.map_or("", Kind::name);
        println!("{name:20} {:>10} instead of {:>10}", section.stored_len, there.map_or(0, |other| other.stored_len));
    }
    Ok(out.len())
}

/// All steps by address, those that continue each other as one; and the blocks of the zero batches.
fn by_address(opened: &Opened) -> Result<(Vec<Step>, Vec<Extent>), Box<dyn Error>> {
    let table = &opened.delta.table;
    let (mut reader, mut some) = (opened.delta.steps()?, Vec::new());
    let (mut all, mut zeros): (Vec<Step>, Vec<Extent>) = (Vec::new(), Vec::new());
    for batch in table.batches() {
        match batch.kind {
            BatchKind::Data => {
                reader.read_batch(table.extents(batch), &mut some)?;
                if some.iter().any(|step| step.kind.recodes() || step.kind.space() == Some(Space::New)) {
                    return Err(
                        "the delta has deflated data, or copies of new bytes: its steps depend on their order".into()
                    );
                }
                all.append(&mut some);
            }
            BatchKind::Zero => zeros.extend_from_slice(table.extents(batch)),
            BatchKind::Save => {}
        }
    }
    all.sort_unstable_by_key(|step| step.dst);
    merge_extents(&mut zeros);
    let mut merged: Vec<Step> = Vec::new();
    for step in all {
        let starts_block_run =
            step.dst.is_multiple_of(BLOCK) && merged.last().is_some_and(|last| last.dst + last.len != step.dst);
        match merged.last_mut() {
            Some(last) if !starts_block_run && last.kind == step.kind && continues(last, &step) => last.len += step.len,
            _ => merged.push(step),
        }
    }
    Ok((merged, zeros))
}

fn continues(last: &Step, step: &Step) -> bool {
    last.dst + last.len == step.dst
        && (matches!(step.kind, StepKind::Literal | StepKind::Zero) || last.src + last.len == step.src)
}
