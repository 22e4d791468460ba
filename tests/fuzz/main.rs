//! Deltas made by mutation, their digests repaired: none makes the patcher panic, write outside the image, take more
//! memory than announced, or end with a wrong image and a success.
//!
//! Ordinary run: some seconds. `BLKPATCH_FUZZ_SECONDS=600 cargo test --release --test fuzz -- --nocapture` for the long
//! one; `BLKPATCH_FUZZ_FROM=n` begins at mutant n, to see one again; `BLKPATCH_FUZZ_SAVE=file` keeps the mutant there.

#[path = "../common/mod.rs"]
mod common;
mod frames;
mod model;
mod mutate;
mod orders;
mod seeds;
mod target;

use blkpatch::delta::Delta;
use blkpatch::delta::check::check_order;
use blkpatch::error::exit;
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, patch_device};
use blkpatch::target::Verify;
use common::{BLOCK, Rng};
use model::Model;
use seeds::Seed;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use target::Target;

/// Mutants of an ordinary run.
const ORDINARY: u64 = 20_000;
/// What a mutant may announce, and what else the process may take: code, stacks, this test's own data.
const MEMORY: u64 = 64 << 20;
const BESIDES: u64 = 256 << 20;

fn setting(name: &str) -> Option<u64> {
    std::env::var(format!("BLKPATCH_FUZZ_{name}")).ok()?.parse().ok()
}

/// A mutant, and the pair it comes from.
fn mutant(seeds: &[Seed], number: u64) -> (Vec<u8>, &Seed, Rng) {
    // Not the number itself: the generators of neighbours would run into each other.
    let mut rng = Rng::new(Rng::new(number).next());
    let seed = &seeds[rng.below(seeds.len())];
    let other = &seeds[rng.below(seeds.len())];
    let (Some(mut model), Some(other)) = (Model::of(&seed.delta), Model::of(&other.delta)) else {
        // No header to take apart: the bytes themselves.
        let mut bytes = seed.delta.clone();
        let at = rng.below(bytes.len());
        bytes[at] ^= 1 << rng.below(8);
        return (bytes, seed, rng);
    };
    if rng.below(3) == 0 {
        orders::mutate(&mut model, &seed.delta, &mut rng);
    }
    for _ in 0..rng.below(4) {
        mutate::mutate(&mut model, &other, &mut rng);
    }
    (model.assemble(), seed, rng)
}

/// What stands on the target: the old image, the new one, something between, something else.
fn content(seed: &Seed, rng: &mut Rng) -> Vec<u8> {
    let mut content = if rng.below(6) == 0 { seed.new.clone() } else { seed.old.clone() };
    if rng.below(3) == 0 {
        content.resize(content.len().max(seed.new.len()), 0);
        for block in 0..content.len().div_ceil(BLOCK) {
            let at = block * BLOCK..((block + 1) * BLOCK).min(content.len());
            if rng.below(2) == 0
                && let Some(new) = seed.new.get(at.clone())
            {
                content[at].copy_from_slice(new);
            }
        }
    }
    if rng.below(5) == 0 && !content.is_empty() {
        let at = rng.below(content.len());
        content[at] ^= 1 << rng.below(8);
    }
    content
}

/// Treats a mutant as `patch` does; says what became of it.
fn apply(bytes: Vec<u8>, seed: &Seed, rng: &mut Rng) -> &'static str {
    let Ok(delta) = Delta::open(Arc::new(bytes), MEMORY) else { return "refused at once" };
    let Ok(order) = check_order(&delta) else { return "refused for its order" };
    let new = delta.header.new;
    let opened = Opened { delta, order };
    let resizable = rng.below(2) == 0;
    let mut before = content(seed, rng);
    if !resizable {
        let least = before.len().max(seed.new.len());
        before.resize(least + rng.below(3) * BLOCK, 0xEE);
    }
    let verify = [Verify::Full, Verify::Full, Verify::All, Verify::Touched][rng.below(4)];
    let options = PatchOptions { verify, ..PatchOptions::default() };
    let device = Target::new(before.clone(), resizable, new.len);
    let stop = AtomicBool::new(rng.below(50) == 0);
    match patch_device(&opened, Path::new("mutant"), &device, &options, &stop, &Silent) {
        Ok(done) => {
            let after = device.contents();
            let image = usize::try_from(new.len).ok().and_then(|len| after.get(..len)).expect("a whole image");
            let right = crc32fast::hash(image) == new.crc && *blake3::hash(image).as_bytes() == new.blake3;
            assert!(right || verify == Verify::Touched, "a wrong image, called a success by {verify:?}");
            if !resizable {
                let behind = (image.len() / BLOCK * BLOCK).max(seed.new.len()).min(after.len());
                assert!(after[behind..] == before[behind..], "changed behind the image");
            }
            if done.patched { "patched" } else { "up to date" }
        }
        Err(e) => match e.exit_code() {
            exit::REFUSED => {
                assert!(!device.was_written() && device.contents() == before, "written, and yet: {e}");
                "refused for the target"
            }
            exit::STOPPED => "stopped",
            exit::DAMAGED => "damaged",
            code => panic!("exit code {code}: {e}"),
        },
    }
}

/// Tries mutants, in a process of its own; writes the number of each to a file before it is tried.
fn work() {
    let progress =
        std::env::var_os("BLKPATCH_FUZZ_PROGRESS").map(|path| std::fs::File::create(path).expect("progress"));
    let seeds = seeds::seeds();
    let begun = Instant::now();
    let mut seen = BTreeMap::new();
    let mut number = setting("FROM").unwrap_or(0);
    let first = number;
    let enough = |n: u64| match setting("SECONDS") {
        Some(seconds) => begun.elapsed() >= Duration::from_secs(seconds),
        None => n >= ORDINARY,
    };
    while !enough(number - first) {
        if let Some(file) = &progress {
            file.write_all_at(&number.to_le_bytes(), 0).expect("progress");
        }
        let (bytes, seed, mut rng) = mutant(&seeds, number);
        if let Some(path) = std::env::var_os("BLKPATCH_FUZZ_SAVE") {
            std::fs::write(path, &bytes).expect("the mutant");
        }
        *seen.entry(apply(bytes, seed, &mut rng)).or_insert(0u64) += 1;
        number += 1;
    }
    eprintln!("{} mutants in {} s: {seen:?}", number - first, begun.elapsed().as_secs());
    if number - first >= ORDINARY {
        for outcome in ["refused at once", "refused for its order", "refused for the target", "patched", "stopped"] {
            assert!(seen.get(outcome).is_some_and(|n| *n > 10), "hardly any mutant was {outcome}");
        }
    }
}

#[test]
fn mutants_do_no_harm() {
    if std::env::var_os("BLKPATCH_FUZZ_PROGRESS").is_some() {
        return work();
    }
    let folder = tempfile::tempdir().expect("a folder");
    let progress = folder.path().join("progress");
    let at = || std::fs::read(&progress).map_or(0, |bytes| model::number(&bytes));
    // The limit is on addresses, so no spare arenas for threads.
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v \"$0\" && exec \"$@\"", &((MEMORY + BESIDES) >> 10).to_string()])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "mutants_do_no_harm", "--nocapture", "--test-threads", "1"])
        .env("BLKPATCH_FUZZ_PROGRESS", &progress)
        .env("MALLOC_ARENA_MAX", "1")
        .env("TMPDIR", folder.path())
        .spawn()
        .expect("this program again");
    let (mut last, mut since) = (u64::MAX, Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
        if at() != last {
            (last, since) = (at(), Instant::now());
        } else if since.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            let _ = child.wait();
            panic!("mutant {last} does not end; see it again with BLKPATCH_FUZZ_FROM={last}");
        }
    };
    assert!(status.success(), "mutant {0}: {status}; see it again with BLKPATCH_FUZZ_FROM={0}", at());
}
