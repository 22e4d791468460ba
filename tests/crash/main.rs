//! Nothing is lost: the real checks, judgement and walk on a simulated disk whose power goes at any moment, also
//! while recovering. Over pairs that need every kind of scratch.
//!
//! Ordinary run: about 100,000 crash states. `BLKPATCH_CRASH_STATES=10000000 cargo test --release --test crash` for
//! the long one.

mod disk;
mod pairs;

use blkpatch::compare::View;
use blkpatch::delta::Delta;
use blkpatch::delta::check::check_order;
use blkpatch::diff::{DiffOptions, diff_views};
use blkpatch::error::{Error, exit};
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, patch_device};
use blkpatch::target::Verify;
use disk::{Disk, Random};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Crashes nested into each other.
const DEPTH: u32 = 3;

fn make_delta(old: &[u8], new: &[u8]) -> Opened {
    let view = |bytes, data| View { bytes, data };
    let (old_data, new_data) = ([0..old.len() as u64], [0..new.len() as u64]);
    let options = DiffOptions { level: 1, threads: 1, memory: 1 << 20 };
    let mut bytes = Vec::new();
    let (old, new) = (view(old, &old_data), view(new, &new_data));
    diff_views(old, new, &std::env::temp_dir(), &options, &Silent, &mut bytes).expect("diff");
    let delta = Delta::open(Arc::new(bytes), u64::MAX).expect("a delta that opens");
    let order = check_order(&delta).expect("a delta whose order is safe");
    Opened { delta, order }
}

fn run(opened: &Opened, disk: &Disk, verify: Verify) -> Result<(), Error> {
    let options = PatchOptions { verify, ..PatchOptions::default() };
    patch_device(opened, Path::new("delta"), disk, &options, &AtomicBool::new(false), &Silent).map(drop)
}

/// What a test counts and draws from.
struct Session {
    random: Random,
    states: u64,
}

impl Session {
    /// Crashes at operation `at` of a run on `disk`, keeps a subset of what was unsynced, and recovers, with further
    /// crashes on the way.
    fn crash(&mut self, opened: &Opened, disk: &Disk, new: &[u8], at: u64, depth: u32, what: &str) {
        disk.light_fuse(Some(at));
        let verify = if self.random.below(4) == 0 { Verify::Touched } else { Verify::Full };
        if let Err(e) = run(opened, disk, verify) {
            assert!(matches!(e.exit_code(), exit::REFUSED | exit::STOPPED), "{what}: a crash must not be final: {e}");
        }
        let style = self.random.below(4);
        let mut random = Random(self.random.next());
        let back = disk.power_up(|_| match style {
            0 => false,
            1 => true,
            _ => random.below(2) == 0,
        });
        self.states += 1;
        if depth > 1 && self.random.below(3) == 0 {
            // How long recovery takes from here is found by running it on a copy.
            let copy = back.power_up(|_| true);
            run(opened, &copy, Verify::Full).unwrap_or_else(|e| panic!("{what}: cannot recover: {e}"));
            let at = self.random.below(copy.operations() + 1);
            return self.crash(opened, &back, new, at, depth - 1, what);
        }
        run(opened, &back, verify).unwrap_or_else(|e| panic!("{what}: cannot recover from a crash at {at}: {e}"));
        assert!(back.contents()[..new.len()] == *new, "{what}: wrong content after recovery");
    }

    /// Crashes at up to `most` operations of a run, all of them if there are no more.
    fn crash_all_over(&mut self, case: &pairs::Pair, most: u64) {
        let opened = make_delta(&case.old, &case.new);
        let fresh = || {
            let mut content = case.old.clone();
            if !case.resizable {
                content.resize(case.old.len().max(case.new.len()), 0xA5); // nothing is known behind the old image
            }
            Disk::new(content, case.resizable)
        };
        let disk = fresh();
        run(&opened, &disk, Verify::Full).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert!(disk.contents()[..case.new.len()] == case.new, "{}: wrong content", case.name);
        let operations = disk.operations();
        for i in 0..most.min(operations + 1) {
            let at = if most > operations { i } else { self.random.below(operations + 1) };
            self.crash(&opened, &fresh(), &case.new, at, DEPTH, &case.name);
        }
    }
}

fn wanted_states() -> u64 {
    std::env::var("BLKPATCH_CRASH_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

#[test]
fn nothing_is_lost_whenever_the_power_goes() {
    let wanted = wanted_states();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()) as u64;
    let total: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let mut session = Session { random: Random(0xB10C * (worker + 1)), states: 0 };
                    let mut round = 0;
                    while session.states < wanted.div_ceil(threads) {
                        for case in pairs::all(session.random.next(), round) {
                            session.crash_all_over(&case, 250);
                        }
                        round += 1;
                    }
                    session.states
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker found a loss")).sum()
    });
    println!("{total} crash states, nothing lost");
    assert!(total >= wanted);
}

/// Every subset of the unsynced sectors of a small update, at every moment.
#[test]
fn every_subset_of_unsynced_sectors_is_survived() {
    let case = pairs::swap_two_blocks();
    let opened = make_delta(&case.old, &case.new);
    let disk = Disk::new(case.old.clone(), case.resizable);
    run(&opened, &disk, Verify::Full).expect("patch");
    let mut states = 0u64;
    for at in 0..=disk.operations() {
        let disk = Disk::new(case.old.clone(), case.resizable);
        disk.light_fuse(Some(at));
        let _ = run(&opened, &disk, Verify::Full);
        let unsynced = disk.unsynced().min(10);
        for subset in 0..1u32 << unsynced {
            let back = disk.power_up(|i| i >= 10 || subset >> i & 1 == 1);
            run(&opened, &back, Verify::Full).unwrap_or_else(|e| panic!("crash at {at}, sectors {subset:b}: {e}"));
            assert!(back.contents() == case.new, "crash at {at}, sectors {subset:b}: wrong content");
            states += 1;
        }
    }
    println!("{states} crash states, every subset, nothing lost");
}
