//! Orders as lists of batches: taken out of a delta, and written as one, also if they break rules.

use super::session::{Run, Subject};
use blkpatch::blockset::BlockSet;
use blkpatch::compare::View;
use blkpatch::delta::batch::BatchKind;
use blkpatch::delta::check::{check_order, check_order_waiving};
use blkpatch::delta::placement::Waived;
use blkpatch::delta::stream::{Compression, JOB};
use blkpatch::delta::writer::{DeltaWriter, Identity, NewBatch, WriteError};
use blkpatch::delta::{Delta, DeltaError};
use blkpatch::diff::{DiffOptions, diff_views};
use blkpatch::digest::ImageId;
use blkpatch::monitor::Silent;
use blkpatch::patch::Opened;
use std::sync::Arc;

/// A delta by the real planner, through the real checks.
pub fn diff(old: &[u8], new: &[u8]) -> Opened {
    let view = |bytes, data| View { bytes, data };
    let (old_data, new_data) = ([0..old.len() as u64], [0..new.len() as u64]);
    let options = DiffOptions { level: 1, threads: 1, memory: 1 << 20, ..DiffOptions::default() };
    let mut bytes = Vec::new();
    let (old, new) = (view(old, &old_data), view(new, &new_data));
    diff_views(old, new, &std::env::temp_dir(), &options, &Silent, &mut bytes).expect("diff");
    let delta = Delta::open(Arc::new(bytes), u64::MAX).expect("a delta that opens");
    let order = check_order(&delta).expect("a delta whose order is safe");
    Opened { delta, order }
}

/// Two images and an order between them.
#[derive(Clone, Debug)]
pub struct Order {
    pub old: Vec<u8>,
    pub new: Vec<u8>,
    pub batches: Vec<NewBatch>,
}

impl Order {
    /// As the planner makes it.
    pub fn planned(old: &[u8], new: &[u8]) -> Self {
        let Opened { delta, .. } = diff(old, new);
        let mut reader = delta.steps().expect("steps");
        let batch = |batch: &blkpatch::delta::batch::Batch| {
            let extents = delta.table.extents(batch).to_vec();
            let mut steps = Vec::new();
            if batch.kind == BatchKind::Data {
                reader.read_batch(&extents, &mut steps).expect("the steps of a batch");
            }
            let (save, zero) = (batch.kind == BatchKind::Save, batch.kind == BatchKind::Zero);
            let saved = delta.table.saved(batch).to_vec();
            NewBatch { save, zero, barrier: batch.barrier, extents, saved, steps }
        };
        let batches = delta.table.batches().iter().map(batch).collect();
        Self { old: old.to_vec(), new: new.to_vec(), batches }
    }

    /// Writes it as a delta whose digests are all right.
    fn write(&self, waived: Waived) -> Result<Vec<u8>, WriteError> {
        let mut touched = BlockSet::new();
        self.batches.iter().flat_map(|batch| &batch.extents).for_each(|extent| touched.insert(*extent));
        let mut prefix = self.old[..self.old.len().min(self.new.len())].to_vec();
        let end = prefix.len() as u64;
        for bytes in touched.extents().map(|extent| extent.bytes(end)).filter(|bytes| bytes.start < bytes.end) {
            prefix[bytes.start as usize..bytes.end as usize].fill(0);
        }
        let untouched = *blake3::hash(&prefix).as_bytes();
        let identity =
            Identity { old: Some(id(&self.old)), new: id(&self.new), untouched, region_log: 0, regions: Vec::new() };
        let fast = |_| Compression { level: 1, window_log: 20, threads: 1, job: JOB };
        let folder = std::env::temp_dir();
        let mut writer = DeltaWriter::new(&self.old, &self.new, &touched, &folder, fast).waiving(waived);
        self.batches.iter().try_for_each(|batch| writer.add(batch))?;
        let mut bytes = Vec::new();
        writer.finish(&identity, 1, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes, opens and checks it; the rules that are waived need not hold.
    pub fn open(&self, waived: Waived) -> Result<Opened, DeltaError> {
        let bytes = self.write(waived).map_err(|e| match e {
            WriteError::Plan(e) => e,
            WriteError::Io(e) => DeltaError::Io(e),
        })?;
        let delta = Delta::open(Arc::new(bytes), u64::MAX)?;
        let order = check_order_waiving(&delta, waived)?;
        Ok(Opened { delta, order })
    }

    /// The rule by which the real check refuses it; neither writer nor patcher may take it.
    pub fn broken_rule(&self, waived: Waived) -> Option<&'static str> {
        let rule = |result: Result<(), DeltaError>| match result {
            Ok(()) => None,
            Err(DeltaError::Rule { rule, .. }) => Some(rule),
            Err(e) => panic!("neither safe nor a broken rule: {e}"),
        };
        let by_writer = rule(self.open(&[]).map(drop));
        if let Ok(opened) = self.open(waived) {
            let by_patcher = rule(check_order(&opened.delta).map(drop));
            assert_eq!(by_writer, by_patcher, "writer and patcher judge differently");
        }
        by_writer
    }

    pub fn subject<'a>(&'a self, name: &'a str, opened: &'a Opened, run: Run) -> Subject<'a> {
        Subject { name, opened, old: &self.old, new: &self.new, resizable: false, run }
    }
}

fn id(bytes: &[u8]) -> ImageId {
    ImageId { len: bytes.len() as u64, crc: crc32fast::hash(bytes), blake3: *blake3::hash(bytes).as_bytes() }
}
