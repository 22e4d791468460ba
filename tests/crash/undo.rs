//! Undo deltas: whenever the power goes in the midst of a patch, the undo delta goes straight back; and while it is
//! applied the power may go as well.

use super::disk::Disk;
use super::orders;
use super::pairs::{self, Pair};
use super::rng::Rng;
use super::session::{Session, Subject, patch};
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, open_delta, patch_device};
use blkpatch::target::Verify;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Patches a disk with `--undo`; the undo delta.
fn patched(opened: &Opened, disk: &Disk, folder: &Path) -> Opened {
    let file = folder.join("undo");
    let options = PatchOptions { undo: Some(file.clone()), ..PatchOptions::default() };
    patch_device(opened, Path::new("delta"), disk, &options, &AtomicBool::new(false), &Silent).expect("patch --undo");
    let undo = open_delta(&file, 64 << 20).expect("the undo delta");
    std::fs::remove_file(&file).unwrap();
    undo
}

#[test]
fn the_way_back_is_open_whenever_the_power_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(0x0d0);
    let mut between = 0;
    for Pair { name, old, new, resizable } in (0..2).flat_map(|round| pairs::all(0xBAC + round, round)) {
        let opened = orders::diff(&old, &new);
        let there = Subject { name: &name, opened: &opened, old: &old, new: &new, resizable, run: patch };
        let disk = there.fresh();
        let before = disk.contents();
        if opened.order.touched.is_empty() || old.is_empty() {
            continue; // nothing is overwritten
        }
        let undo = patched(&opened, &disk, folder.path());
        let operations = disk.operations();
        let back_len = undo.delta.header.new.len as usize;
        assert_eq!(blake3::hash(&before[..back_len]).as_bytes(), &undo.delta.header.new.blake3, "{name}");
        // It keeps the rules of every delta.
        let back = Subject { opened: &undo, old: &new, new: &before[..back_len], ..there };
        session.crash_all_over(&back, 40).unwrap_or_else(|loss| panic!("back: {loss}"));
        // From every place of the way there.
        for _ in 0..60 {
            let disk = there.fresh();
            disk.light_fuse(Some(session.random.below(operations + 1)));
            let _ = patch(&opened, &disk, Verify::Full);
            let mut random = Rng::new(session.random.next());
            let disk = disk.power_up(|_| random.below(2) == 0);
            between += u32::from(disk.contents() != before);
            back.finish(&disk, Verify::Full).unwrap_or_else(|loss| panic!("straight back: {loss}"));
            assert!(disk.contents() == before, "{name}: not all of what was there came back");
        }
    }
    println!("{between} times straight back from between; {}", session.states);
    assert!(between > 500, "only {between} crashes left anything to undo");
}
