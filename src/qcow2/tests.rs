//! The writer of overlays against a model and the reader; the reader against damage.

use super::Chain;
use super::overlay::{Named, Overlay};
use crate::device::{Device, MemoryDevice};
use crate::units::BLOCK;
use proptest::prelude::*;
use std::fs::File;
use std::path::Path;

const CLUSTER: u64 = 1 << super::overlay::CLUSTER_BITS;

/// Bytes that are the same in every run.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[6]).collect()
}

/// What is done to blocks.
#[derive(Clone, Debug)]
enum Op {
    Data(u64, u64),
    Zeros(u64, u64),
}

fn op(blocks: u64) -> impl Strategy<Value = Op> {
    let place = || (0..blocks, 1..40u64);
    prop_oneof![place().prop_map(|(at, n)| Op::Data(at, n)), place().prop_map(|(at, n)| Op::Zeros(at, n))]
}

/// Writes an overlay on `old`, in a folder beside it, and compares it with a model on the way. Returns the file.
fn write(folder: &Path, old: &[u8], len: u64, ops: &[Op]) -> Vec<u8> {
    let mut model = old.to_vec();
    model.resize(len as usize, 0);
    std::fs::write(folder.join("old"), old).unwrap();
    let device = MemoryDevice::new(old.to_vec(), false);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(folder.join("o.qcow2")).unwrap();
    let overlay = Overlay::new(&file, Path::new("o.qcow2"), &device, len);
    for (i, op) in ops.iter().enumerate() {
        let (Op::Data(at, n) | Op::Zeros(at, n)) = op;
        let bytes = (at * BLOCK).min(len) / BLOCK * BLOCK..((at + n) * BLOCK).min(len);
        let content = match op {
            Op::Data(..) => noise(i as u64 + 1, (bytes.end - bytes.start) as usize),
            Op::Zeros(..) => vec![0; (bytes.end - bytes.start) as usize],
        };
        model[bytes.start as usize..bytes.end as usize].copy_from_slice(&content);
        match op {
            Op::Data(..) => Device::write(&overlay, bytes.start, &content).unwrap(),
            Op::Zeros(..) => overlay.write_zeros(bytes.start, bytes.end - bytes.start).unwrap(),
        }
        let (from, to) = (bytes.start as usize / 3, model.len() - 5.min(model.len()) / 2);
        let mut seen = vec![1; to.saturating_sub(from)];
        Device::read(&overlay, from as u64, &mut seen).unwrap();
        assert!(seen == model[from..from + seen.len()], "while it is written");
    }
    overlay.finish(Some(Named { name: b"old", format: b"raw" })).unwrap();
    model.resize(overlay.size() as usize, 0);
    let chain = Chain::open(&folder.join("o.qcow2")).unwrap();
    assert_eq!((chain.len(), overlay.size()), (model.len() as u64, model.len() as u64));
    let mut seen = vec![1; model.len()];
    chain.read(0, &mut seen).unwrap();
    assert!(seen == model, "when it is done");
    check_refcounts(&std::fs::read(folder.join("o.qcow2")).unwrap());
    std::fs::read(folder.join("o.qcow2")).unwrap()
}

/// Every cluster of the file has one reference, and is referred to once.
fn check_refcounts(file: &[u8]) {
    let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
    let cluster = CLUSTER as usize;
    assert!(file.len().is_multiple_of(cluster));
    let mut seen = vec![0; file.len() / cluster];
    let mut refer = |at: u64| seen[at as usize / cluster] += 1;
    refer(0);
    let l1_entries = u32::from_be_bytes(file[36..40].try_into().unwrap()) as usize;
    let l1 = number(40);
    refer(l1);
    for table in (0..l1_entries).map(|i| number(l1 as usize + i * 8)).filter(|table| *table != 0) {
        refer(table);
        (0..8192).map(|i| number(table as usize + i * 8)).filter(|host| *host != 0).for_each(&mut refer);
    }
    let table = number(48);
    refer(table);
    for block in (0..8192).map(|i| number(table as usize + i * 8)).filter(|block| *block != 0) {
        refer(block);
        let counts = &file[block as usize..block as usize + cluster];
        let counted = counts.chunks(2).filter(|count| *count == [0, 1]).count();
        assert_eq!(counted, file.len() / cluster);
        assert!(counts[2 * counted..].iter().all(|byte| *byte == 0));
    }
    assert!(seen.iter().all(|references| *references == 1), "{seen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn it_reads_like_what_was_written(
        old_blocks in 0..100u64, blocks in 0..100u64, ends in (0..4096u64, 0..4096u64), cut in (any::<bool>(), any::<bool>()),
        ops in prop::collection::vec(op(100), 0..12),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let len = |blocks, cut, end| blocks * BLOCK + if cut { end } else { 0 };
        let old = noise(0, len(old_blocks, cut.0, ends.0) as usize);
        write(folder.path(), &old, len(blocks, cut.1, ends.1), &ops);
    }

    /// Whatever is in a file: no panic, no endless loop, and no read outside of it.
    #[test]
    fn damage_is_refused_or_read(places in prop::collection::vec((0..5usize, 0..0x400usize, any::<u8>()), 1..8), cut in 0..0x70000usize) {
        let folder = tempfile::tempdir().unwrap();
        let ops = [Op::Data(3, 30), Op::Zeros(40, 20), Op::Data(70, 1)];
        let mut file = write(folder.path(), &noise(0, 400_000), 90 * BLOCK, &ops);
        for (cluster, at, byte) in places {
            // The header, and behind the data: tables.
            let start = if cluster == 0 { 0 } else { file.len().saturating_sub(cluster * 65536) };
            file[start + at % 150] = byte;
        }
        file.truncate(file.len().saturating_sub(cut / 4 * usize::from(cut % 4 == 0)));
        let path = folder.path().join("damaged.qcow2");
        std::fs::write(&path, file).unwrap();
        if let Ok(chain) = Chain::open(&path) {
            let mut bytes = vec![0; chain.len().min(1 << 20) as usize];
            let _ = chain.read(0, &mut bytes);
            let _ = chain.read(chain.len() - bytes.len() as u64, &mut bytes);
            let _ = chain.is_hole(0, chain.len());
        }
    }
}

#[test]
fn zeros_take_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let tables = 5 * CLUSTER; // header, second level, first level, counts and their table
    let old = vec![7; 1 << 20];
    assert_eq!(write(folder.path(), &old, 1 << 20, &[Op::Zeros(0, 256)]).len() as u64, tables);
    assert_eq!(write(folder.path(), &[], 1 << 20, &[Op::Zeros(0, 100)]).len() as u64, tables);
    // One block: its neighbours come from the backing file.
    assert_eq!(write(folder.path(), &old, 1 << 20, &[Op::Data(20, 1)]).len() as u64, tables + CLUSTER);
    assert_eq!(write(folder.path(), &old, 1 << 20, &[]).len() as u64, tables - CLUSTER);
}

#[test]
fn disks_and_names_that_are_too_large_are_refused() {
    let (file, old) = (tempfile::tempfile().unwrap(), MemoryDevice::new(Vec::new(), false));
    let finish = |len, name: &[u8]| {
        Overlay::new(&file, Path::new("o"), &old, len)
            .finish(Some(Named { name, format: b"raw" }))
            .map_err(|e| e.to_string())
    };
    assert!(finish(1 << 52, b"old").unwrap_err().contains("2 PiB"));
    assert!(finish(1, &[b'a'; 1024]).unwrap_err().contains("too long"));
    assert!(finish(1 << 51, &[b'a'; 1023]).is_ok());
}
