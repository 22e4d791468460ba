//! Compressed data through `diff` and `patch`.

use super::{BLOCK, Rng, Scene, assert_same};
use blkpatch::delta::step::StepKind;
use blkpatch::device::MemoryDevice;
use blkpatch::diff::{DiffOptions, diff};
use blkpatch::info::{Info, info};
use blkpatch::monitor::Silent;
use blkpatch::patch::{PatchOptions, open_delta, patch_device};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// What `info` says of the delta between two images, which lies in the scene.
pub fn made(scene: &Scene, old: &[u8], new: &[u8], threads: usize) -> Info {
    let (old, new, delta) = (scene.write("old", old), scene.write("new", new), scene.path("delta"));
    let formats = (blkpatch::format::Format::Raw, blkpatch::format::Format::Raw);
    let options = DiffOptions { threads, formats, ..DiffOptions::default() };
    diff(&old, &new, &delta, &options, &Silent).unwrap_or_else(|e| panic!("diff fails: {e}"));
    info(&delta, &Silent).unwrap_or_else(|e| panic!("the delta is refused: {e}"))
}

/// Diffs, patches in memory, compares.
pub fn round_trip(old: &[u8], new: &[u8]) -> Info {
    let scene = Scene::new();
    let told = made(&scene, old, new, 2);
    let opened = open_delta(&scene.path("delta"), 64 << 20).unwrap_or_else(|e| panic!("the delta is refused: {e}"));
    let mut start = old.to_vec();
    start.resize(old.len().max(new.len()).next_multiple_of(BLOCK), 0);
    let device = MemoryDevice::new(start, false);
    let (stop, options) = (AtomicBool::new(false), PatchOptions::default());
    patch_device(&opened, Path::new("delta"), &device, &options, &stop, &Silent)
        .unwrap_or_else(|e| panic!("patch: {e}"));
    assert_same(&device.contents()[..new.len()], new, "the patched device");
    told
}

/// The same of an archive of these members, two of which change their places, and some bytes of which are damaged: by which
/// of 65,536 parts of it they begin, and by what they change.
pub fn round_trip_of_members<M>(
    mut members: Vec<M>,
    archive: impl Fn(&[M], u64) -> Vec<u8>,
    swaps: u64,
    damage: &[(u16, u8)],
) {
    let old = archive(&members, 0);
    let (count, mut rng) = (members.len(), Rng::new(swaps));
    members.swap(rng.below(count), rng.below(count));
    let mut new = archive(&members, 2);
    for (at, by) in damage {
        let at = usize::from(*at) * new.len() / 65_536;
        new[at] ^= by;
    }
    round_trip(&old, &new);
}

/// Bytes of the new image that steps of a kind make.
pub fn bytes_of(told: &Info, kind: StepKind) -> u64 {
    told.steps.iter().find(|step| step.kind == kind.name()).map_or(0, |step| step.bytes)
}
