//! Deltas made to do harm, with all digests right: refused before the first write, within the announced memory.

use blkpatch::blockset::BlockSet;
use blkpatch::delta::batch::{BatchKind, BatchTable};
use blkpatch::delta::check::check_order;
use blkpatch::delta::header::{Codec, Header, KNOWN_INCOMPATIBLE, Kind, Limits, Section};
use blkpatch::delta::route::{Counts, Route};
use blkpatch::delta::step::{Step, StepKind};
use blkpatch::delta::stream::{Compression, JOB};
use blkpatch::delta::writer::{DeltaWriter, Identity, NewBatch, WriteError};
use blkpatch::delta::{Delta, DeltaError};
use blkpatch::device::MemoryDevice;
use blkpatch::digest::ImageId;
use blkpatch::monitor::Silent;
use blkpatch::target::{Verify, survey};
use blkpatch::units::{BLOCK, Extent};
use blkpatch::varint;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn id(bytes: &[u8]) -> ImageId {
    ImageId { len: bytes.len() as u64, crc: crc32fast::hash(bytes), blake3: *blake3::hash(bytes).as_bytes() }
}

fn extent(start: u64, count: u64) -> Extent {
    Extent { start, count }
}

fn literal(block: u64) -> NewBatch {
    let step = Step { kind: StepKind::Literal, dst: block * BLOCK, len: BLOCK, src: 0 };
    NewBatch { extents: vec![extent(block, 1)], steps: vec![step], ..NewBatch::default() }
}

fn fast(_: Kind) -> Compression {
    Compression { level: 3, window_log: 20, threads: 1, job: JOB }
}

fn unknown(len: u64) -> ImageId {
    ImageId { len, crc: 0, blake3: [0; 32] }
}

/// Puts sections together with right digests.
fn assemble(new: ImageId, limits: Limits, parts: &[(Kind, Vec<u8>)]) -> Vec<u8> {
    let mut header = Header { features: KNOWN_INCOMPATIBLE, compatible: 0, new, limits, sections: Vec::new() };
    for (kind, bytes) in parts {
        let (len, blake3) = (bytes.len() as u64, *blake3::hash(bytes).as_bytes());
        let (kind, codec) = (Some(*kind), Codec::Stored);
        header.sections.push(Section { kind, route: 0, codec, offset: 0, stored_len: len, raw_len: len, blake3 });
    }
    let mut file = header.encode();
    parts.iter().for_each(|(_, bytes)| file.extend(bytes));
    file
}

/// High-water mark of this process's memory, in bytes.
fn high_water() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[test]
fn who_reads_part_of_a_save_must_not_overwrite_another_part() {
    let old: Vec<u8> = (0..8 * BLOCK).map(|i| (i * 7 + i / 4096) as u8).collect();
    let mut new = old.clone();
    new[..3 * BLOCK as usize].fill(9);
    new.copy_within(0..1, 3 * BLOCK as usize);
    new[3 * BLOCK as usize..4 * BLOCK as usize].copy_from_slice(&old[..BLOCK as usize]);
    let mut touched = BlockSet::new();
    touched.insert(extent(0, 4));
    let folder = std::env::temp_dir();
    let mut writer = DeltaWriter::new(&old, &new, &touched, &folder, fast);
    let saved = vec![0..2 * BLOCK];
    writer.add(&NewBatch { save: true, extents: vec![extent(2, 2)], saved, ..NewBatch::default() }).expect("save");
    writer.add(&NewBatch { barrier: true, ..literal(0) }).expect("a literal");
    writer.add(&literal(1)).expect("a literal");
    let copy = Step { kind: StepKind::Copy, dst: 3 * BLOCK, len: BLOCK, src: 0 };
    let both = NewBatch { barrier: true, extents: vec![extent(3, 1)], steps: vec![copy], ..NewBatch::default() };
    let refused = writer.add(&both);
    assert!(matches!(refused, Err(WriteError::Plan(DeltaError::Rule { rule: "R3", .. }))), "{refused:?}");
}

/// Steps that leave a gap, overlap, end too early or too late, or make another place.
#[test]
fn steps_that_do_not_make_their_extents_are_refused() {
    let (old, new) = (vec![1; 8 * BLOCK as usize], vec![2; 8 * BLOCK as usize]);
    let mut touched = BlockSet::new();
    touched.insert(extent(1, 4));
    let folder = std::env::temp_dir();
    let add = |places: &[(u64, u64)]| {
        let steps = places.iter().map(|(dst, len)| Step { kind: StepKind::Literal, dst: *dst, len: *len, src: 0 });
        let extents = vec![extent(1, 1), extent(3, 2)];
        let batch = NewBatch { extents, steps: steps.collect(), ..NewBatch::default() };
        DeltaWriter::new(&old, &new, &touched, &folder, fast).add(&batch)
    };
    assert!(add(&[(4096, 96), (4192, 4000), (12_288, 8192)]).is_ok());
    let wrong: [(&[(u64, u64)], u64); 6] = [
        (&[(4096, 96), (4193, 3999), (12_288, 8192)], 1),
        (&[(4096, 97), (4192, 4000), (12_288, 8192)], 1),
        (&[(4096, 4096), (12_288, 8191)], 4),
        (&[(4096, 4096), (12_288, 8192), (20_480, 1)], 5),
        (&[(4096, 4096), (12_288, 8193)], 3),
        (&[(4096, 4096), (16_384, 8192)], 3),
    ];
    for (places, at) in wrong {
        let told = add(places);
        let Err(WriteError::Plan(DeltaError::Rule { rule: "tiling", block, .. })) = told else {
            panic!("{places:?}: {told:?}")
        };
        assert_eq!(block, at, "{places:?}");
    }
}

#[test]
fn claims_of_huge_saves_cost_no_memory() {
    let blocks = 1u64 << 32;
    let mut table = BatchTable::default();
    table.push(BatchKind::Save, false, &[extent(0, blocks)], &[0..blocks * BLOCK], (0, 0));
    table.push(BatchKind::Zero, true, &[extent(0, 1)], &[], (0, 0));
    let counts = Counts {
        batches: 2,
        extents: 2,
        save_ranges: 1,
        save_reads: 0,
        barriers: 1,
        scratch_blocks: blocks,
        final_blocks: 1,
    };
    let image = unknown(1 << 50);
    let (untouched_len, untouched) = (1 << 50, [0; 32]);
    let route = Route { old: Some(image), untouched_len, untouched, counts, region_log: 0, regions: vec![] };
    let limits = Limits { batch_bytes: 4096, source_bytes: 4096, batch_steps: 1, memory: 0 };
    let file = assemble(image, limits, &[(Kind::Route, route.encode()), (Kind::Batches, table.encode())]);
    let refused = Delta::open(Arc::new(file), 64 << 20).map(|delta| check_order(&delta));
    assert!(!matches!(refused, Ok(Ok(_))), "accepted");
    assert!(high_water() < 512 << 20, "{} bytes of memory", high_water());
}

#[test]
fn claims_of_far_sources_cost_no_memory() {
    let (batches, steps) = (50u64, 4096u64);
    let new = vec![0u8; (batches * BLOCK) as usize];
    let mut touched = BlockSet::new();
    touched.insert(extent(0, batches));
    let folder = std::env::temp_dir();
    let mut writer = DeltaWriter::new(&new, &new, &touched, &folder, fast);
    for block in 0..batches {
        let far = |i| Step { kind: StepKind::Copy, dst: block * BLOCK + i, len: 1, src: (block * steps + i + 1) << 27 };
        let steps = (0..steps).map(far).collect();
        writer.add(&NewBatch { extents: vec![extent(block, 1)], steps, ..NewBatch::default() }).expect("a batch");
    }
    let (old, new) = (unknown(1 << 50), id(&new));
    let identity = Identity { old: Some(old), new, untouched: [0; 32], region_log: 0, regions: vec![] };
    let mut out = Vec::new();
    writer.finish(&identity, 19, &mut out).expect("a delta");
    let before = high_water();
    let delta = Delta::open(Arc::new(out), 64 << 20).expect("within the limit");
    let announced = delta.memory();
    check_order(&delta).expect("an order that keeps the rules");
    assert!(high_water() - before < announced, "{} announced, {} taken", announced, high_water() - before);
}

/// Steps that unpack make nothing: whoever wrote many of them for each byte could keep a patcher busy for days.
#[test]
fn what_is_unpacked_again_and_again_is_refused() {
    let accepted = |times: usize| {
        let mut table = BatchTable::default();
        table.push(BatchKind::Data, false, &[extent(64, 1)], &[], (0, 0));
        let counts = Counts { batches: 1, extents: 1, final_blocks: 1, ..Counts::default() };
        let (old, new) = (unknown(256 << 10), unknown((256 << 10) + BLOCK));
        let route = Route {
            old: Some(old),
            untouched_len: old.len,
            untouched: [0; 32],
            counts,
            region_log: 0,
            regions: vec![],
        };
        // A text of 1 byte of all of the old image, for a byte of the new one.
        let kinds = [[6, 7, 8]; 4096][..times].concat();
        let lengths = [[0x80, 0x80, 0x10, 0, 1, 1, 0, 1, 0]; 4096][..times].concat();
        let mut sources = Vec::new();
        (0..times).for_each(|i| varint::put_signed(&mut sources, if i == 0 { -(256 << 10) } else { -1 }));
        let columns = [
            (Kind::Route, route.encode()),
            (Kind::Batches, table.encode()),
            (Kind::StepKinds, [kinds, vec![0]].concat()),
            (Kind::StepLengths, [lengths, vec![0]].concat()),
            (Kind::StepSources, sources),
            (Kind::DifferenceGaps, Vec::new()),
            (Kind::DifferenceValues, Vec::new()),
            (Kind::Literals, vec![0; 4096]),
        ];
        let limits = Limits { batch_bytes: 4096, source_bytes: 256 << 10, batch_steps: 1 << 14, memory: 0 };
        let file = assemble(new, limits, &columns);
        check_order(&Delta::open(Arc::new(file), 64 << 20).expect("opens")).map(|_| ())
    };
    accepted(60).expect("unpacks 15 MiB");
    let refused = accepted(70).expect_err("unpacks 17.5 MiB");
    assert!(refused.to_string().contains("bytes of texts in a batch"), "{refused}");
}

/// A claimed length of 2^62 bytes must not be read, hashed or allocated.
#[test]
fn claimed_lengths_cost_no_time() {
    let new = vec![7u8; BLOCK as usize];
    let mut touched = BlockSet::new();
    touched.insert(extent(0, 1));
    let mut writer = DeltaWriter::new(&[], &new, &touched, Path::new("/tmp"), fast);
    writer.add(&literal(0)).expect("a literal");
    let (old, new) = (unknown(1 << 62), id(&new));
    let identity = Identity { old: Some(old), new, untouched: [1; 32], region_log: 0, regions: vec![] };
    let mut out = Vec::new();
    writer.finish(&identity, 3, &mut out).expect("a delta");
    let delta = Delta::open(Arc::new(out), 64 << 20).expect("opens");
    let order = check_order(&delta).expect("an order that keeps the rules");
    let device = MemoryDevice::new(vec![0; BLOCK as usize], true);
    let stop = AtomicBool::new(false);
    // Ends at all: hashing 2^62 bytes would not.
    survey(&device, &delta, &order, Verify::Full, &stop, &Silent).expect("a verdict");
}
