//! Every single bit flipped, and every length cut short: refused, and the target untouched.

mod common;

use blkpatch::delta::check::check_order;
use blkpatch::delta::{Delta, DeltaError};
use common::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Small deltas: name and bytes.
fn small_deltas() -> Vec<(&'static str, Vec<u8>)> {
    let old = random(61, 12 * BLOCK);
    // Edits, a copy, a swap, zeros, another length.
    let mut new = old.clone();
    new[block(2)][..40].copy_from_slice(&random(62, 40));
    new[block(5)].copy_from_slice(&old[block(9)]);
    new[block(9)].copy_from_slice(&old[block(5)]);
    new[block(7)].fill(0);
    new.extend(random(63, 300));
    let whole = Scene::with_delta(&old, &new);
    let nothing = Scene::with_delta(&old, &old);
    let good = fs::read(testdata("good-example.delta")).unwrap();
    vec![("good-example", good), ("edits", whole.read("delta")), ("no change", nothing.read("delta"))]
}

/// What a patcher does before it opens the target.
fn check(bytes: Vec<u8>) -> Result<(), DeltaError> {
    let delta = Delta::open(Arc::new(bytes), 1 << 30)?;
    check_order(&delta).map(drop)
}

#[test]
fn every_bit_counts() {
    for (name, bytes) in small_deltas() {
        check(bytes.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let e = check(flipped).err().unwrap_or_else(|| panic!("{name}: bit {bit} does not count"));
            // Nothing behind the magic and the length is looked at before its digest.
            let seen = matches!(
                e,
                DeltaError::Damaged { .. }
                    | DeltaError::NotADelta
                    | DeltaError::TextMode
                    | DeltaError::WrongLength { .. }
            );
            assert!(seen || (64..96).contains(&bit), "{name}: bit {bit}: {e}");
        }
    }
}

#[test]
fn every_length_counts() {
    for (name, bytes) in small_deltas() {
        for len in 0..bytes.len() {
            let e = check(bytes[..len].to_vec()).err().unwrap_or_else(|| panic!("{name}: cut to {len} bytes"));
            let expected = if len < 12 { "not a blkpatch delta" } else { "it is cut short" };
            assert!(e.to_string().contains(expected), "{name}: cut to {len} bytes: {e}");
        }
        for more in [1, 7, 512, 4096] {
            for byte in [0, 0xFF] {
                let e = check([&bytes[..], &vec![byte; more]].concat()).expect_err("bytes at the end");
                assert!(e.to_string().contains("something was appended"), "{name}: {more} bytes more: {e}");
            }
        }
    }
}

#[test]
fn the_program_refuses_them_and_leaves_the_target_alone() {
    let scene = Scene::new();
    let good = fs::read(testdata("good-example.delta")).unwrap();
    let target = scene.write("target", &fs::read(testdata("good-example.old")).unwrap());
    let before = Unwritten::look(&target);
    let refused = |bytes: &[u8], what: &str| {
        let said = run(&[&"patch", &scene.write("delta", bytes), &target]);
        assert_eq!(said.code, 1, "{what}: {said:?}");
        assert!(said.err.contains("Nothing was written"), "{what}: {said:?}");
        before.still(&target);
    };
    // All of the fixed header and two section entries, and one bit of every byte behind them.
    let bits = (0..200 * 8).chain((200..good.len()).map(|i| i * 8 + i % 8));
    for bit in bits {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped, &format!("bit {bit}"));
    }
    for len in (0..good.len()).step_by(scaled(7, 1)) {
        refused(&good[..len], &format!("cut to {len} bytes"));
    }
    run(&[&"patch", &scene.write("delta", &good), &target]).code(0);
    assert_same(&scene.read("target"), &fs::read(testdata("good-example.new")).unwrap(), "the whole delta");
}
