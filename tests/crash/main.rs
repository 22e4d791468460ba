//! Nothing is lost: the real checks, judgement and walk on a simulated disk whose power goes at any moment, also
//! while recovering. Over pairs that need every kind of scratch. And the proof that this would be noticed: each rule
//! of the order and of the walk, broken on purpose, loses data here.
//!
//! Ordinary run: about 100,000 crash states. `BLKPATCH_CRASH_STATES=10000000 cargo test --release --test crash` for
//! the long one. With `-- --nocapture` it says what was hit, and how often the broken rules lost data.

#[path = "../common/deflated.rs"]
mod deflated;
mod disk;
mod mutants;
mod mutate;
mod orders;
mod pairs;
mod recoveries;
#[path = "../common/rng.rs"]
mod rng;
mod session;
mod sketch;
mod undo;

use blkpatch::delta::step::{Space, Step, StepKind};
use blkpatch::target::Verify;
use blkpatch::units::{BLOCK, count_blocks};
use disk::Disk;
use session::{End, Session, States, Subject, patch};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// States between two lines of progress.
const PROGRESS: u64 = 1_000_000;

fn wanted_states() -> u64 {
    std::env::var("BLKPATCH_CRASH_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

/// Crashes pairs until all workers together have seen `wanted` states.
fn work(seed: u64, wanted: u64, seen: &AtomicU64, start: Instant) -> States {
    let mut session = Session::new(seed);
    let mut round = 0;
    while seen.load(Ordering::Relaxed) < wanted {
        let compressed = pairs::compressed(session.random.next(), round);
        for pair in pairs::all(session.random.next(), round).into_iter().chain(compressed) {
            let opened = orders::diff(&pair.old, &pair.new);
            let pairs::Pair { name, old, new, resizable } = &pair;
            let subject = Subject { name, opened: &opened, old, new, resizable: *resizable, run: patch };
            let before = session.states.all;
            session.crash_all_over(&subject, 250).unwrap_or_else(|loss| panic!("round {round}: {loss}"));
            let now = session.states.all - before;
            let total = seen.fetch_add(now, Ordering::Relaxed) + now;
            if total / PROGRESS > (total - now) / PROGRESS {
                let rate = total as f64 / start.elapsed().as_secs_f64();
                eprintln!("{total} of {wanted} crash states, {rate:.0} a second");
            }
        }
        round += 1;
    }
    session.states
}

#[test]
fn nothing_is_lost_whenever_the_power_goes() {
    let (wanted, seen, start) = (wanted_states(), &AtomicU64::new(0), Instant::now());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let mut total = States::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (1..=threads).map(|worker| scope.spawn(move || work(0xB10C * worker, wanted, seen, start))).collect();
        workers.into_iter().for_each(|worker| total += worker.join().expect("a worker found a loss"));
    });
    println!("{total}, nothing lost; {:.0} a second", total.all as f64 / start.elapsed().as_secs_f64());
    assert!(total.all >= wanted);
}

/// Every subset of the unsynced sectors of a small update, at every moment.
#[test]
fn every_subset_of_unsynced_sectors_is_survived() {
    let pair = pairs::swap_two_blocks();
    let opened = orders::diff(&pair.old, &pair.new);
    let pairs::Pair { name, old, new, resizable } = &pair;
    let subject = Subject { name, opened: &opened, old, new, resizable: *resizable, run: patch };
    let disk = subject.fresh();
    subject.finish(&disk, Verify::Full).expect("patch");
    let mut states = 0u64;
    for at in 0..=disk.operations() {
        let disk = subject.fresh();
        disk.light_fuse(Some(at));
        let end = patch(&opened, &disk, Verify::Full);
        assert!(!matches!(end, End::Lost(_)), "crash at {at}: {end:?}");
        let unsynced = disk.unsynced().min(10);
        for subset in 0..1u32 << unsynced {
            let back: Disk = disk.power_up(|i| i >= 10 || subset >> i & 1 == 1);
            subject.finish(&back, Verify::Full).unwrap_or_else(|loss| panic!("crash at {at}, {subset:b}: {loss}"));
            states += 1;
        }
    }
    println!("{states} crash states, every subset, nothing lost");
}

/// The pairs have the planner use scratch in all the ways it knows; else the above would prove little.
#[test]
fn the_pairs_need_every_kind_of_scratch() {
    let mut counts = BTreeMap::from([("saves of several blocks", 0), ("saves of parts of blocks", 0)]);
    counts.extend([
        ("scratch used again", 0),
        ("zero scratch", 0),
        ("no scratch", 0),
        ("no scratch, as the new is read", 0),
    ]);
    let mut count = |kind, is_so: bool| *counts.entry(kind).or_default() += u32::from(is_so);
    for pair in (0..8).flat_map(|round| pairs::all(0x5C7A + round, round)) {
        let batches = orders::Order::planned(&pair.old, &pair.new).batches;
        let saves: Vec<_> = batches.iter().filter(|batch| batch.save).collect();
        let mut scratch: Vec<u64> =
            saves.iter().flat_map(|save| &save.extents).flat_map(|e| e.start..e.end()).collect();
        scratch.sort_unstable();
        let is_zero = |block: &u64| {
            let bytes = *block as usize * pairs::BLOCK..(*block as usize + 1) * pairs::BLOCK;
            let mut images = [&pair.old, &pair.new].into_iter();
            images.all(|image| image.get(bytes.clone()).is_some_and(|block| block.iter().all(|byte| *byte == 0)))
        };
        count("zero scratch", scratch.iter().any(is_zero));
        count("saves of several blocks", saves.iter().any(|save| count_blocks(&save.extents) > 1));
        let whole = |range: &Range<u64>| range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK);
        count("saves of parts of blocks", saves.iter().any(|save| !save.saved.iter().all(whole)));
        count("no scratch", saves.is_empty() && !batches.is_empty());
        let is_new = |step: &Step| step.kind.space() == Some(Space::New);
        count("no scratch, as the new is read", batches.iter().flat_map(|batch| &batch.steps).any(is_new));
        let all = scratch.len();
        scratch.dedup();
        count("scratch used again", scratch.len() < all);
    }
    for (pair, kind) in pairs::compressed(1, 0).iter().zip([StepKind::Deflate, StepKind::PackZstd, StepKind::PackLzma])
    {
        let steps = orders::Order::planned(&pair.old, &pair.new).batches.into_iter().flat_map(|batch| batch.steps);
        counts.insert(kind.name(), steps.filter(|step| step.kind == kind).count() as u32);
    }
    println!("orders with: {counts:?}");
    assert!(counts.values().all(|count| *count > 0), "{counts:?}");
}
