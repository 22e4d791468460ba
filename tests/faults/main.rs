//! Faults that a library sees: every single operation on a target fails once, targets change under the run, the stick
//! with the delta fails. What is said of it is true, and the same command finishes when the fault is gone.

#[path = "../common/errors.rs"]
#[allow(dead_code)]
mod errors;
mod fickle;
mod meddled;
mod operations;
mod overlap;
mod stick;

use blkpatch::device::Device;
use blkpatch::diff::{DiffOptions, diff};
use blkpatch::error::Error;
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, PatchReport, open_delta, patch_device};
use blkpatch::target::Verify;
use std::path::Path;
use std::sync::atomic::AtomicBool;

const BLOCK: usize = 4096;

type Patched = Result<PatchReport, Error>;

fn patch(opened: &Opened, device: &dyn Device, verify: Verify) -> Patched {
    let options = PatchOptions { verify, ..PatchOptions::default() };
    patch_device(opened, Path::new("the.delta"), device, &options, &AtomicBool::new(false), &Silent)
}

/// Bytes that do not compress.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Swaps, so that there are saves; edits, zeros, and `more` bytes at the end.
fn pair(more: usize) -> (Vec<u8>, Vec<u8>) {
    let old = noise(1, 40 * BLOCK);
    let mut new = old.clone();
    for (a, b) in [(3, 20), (4, 21), (12, 30)] {
        new[a * BLOCK..(a + 1) * BLOCK].copy_from_slice(&old[b * BLOCK..(b + 1) * BLOCK]);
        new[b * BLOCK..(b + 1) * BLOCK].copy_from_slice(&old[a * BLOCK..(a + 1) * BLOCK]);
    }
    new[7 * BLOCK..9 * BLOCK].fill(0);
    new[33 * BLOCK + 5] ^= 1;
    new.extend(noise(2, more));
    (old, new)
}

fn delta_of(old: &[u8], new: &[u8]) -> (tempfile::TempDir, Opened) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("old"), old).expect("old");
    std::fs::write(path("new"), new).expect("new");
    diff(&path("old"), &path("new"), &path("delta"), &DiffOptions::default(), &Silent).expect("a delta");
    let opened = open_delta(&path("delta"), 1 << 30).expect("a good delta");
    (folder, opened)
}
