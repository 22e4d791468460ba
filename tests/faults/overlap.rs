//! What two writers and two readers may do at the same time: a sync finds no write under way, what an earlier batch
//! writes is read only then, and whatever happens to the writers, the run ends.

use crate::{BLOCK, delta_of, noise, patch};
use blkpatch::device::{Device, DeviceError, MemoryDevice};
use blkpatch::error::exit;
use blkpatch::patch::Opened;
use blkpatch::target::Verify;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a device does that is not quick and good.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Quirk {
    /// Writes are slow by turns, beginning with the first or the second, and land at their end.
    Slow(usize),
    /// This sync fails; those behind it succeed.
    Sync(usize),
    /// Two writes that are under way at the same time both panic.
    Panic,
}

struct Odd {
    inner: MemoryDevice,
    quirk: Quirk,
    writes: AtomicUsize,
    under_way: AtomicUsize,
    syncs: AtomicUsize,
    syncing: AtomicBool,
    overlaps: AtomicUsize,
}

impl Odd {
    fn new(content: Vec<u8>, quirk: Quirk) -> Self {
        let [writes, under_way, syncs, overlaps] = Default::default();
        let inner = MemoryDevice::new(content, false);
        Self { inner, quirk, writes, under_way, syncs, syncing: AtomicBool::new(false), overlaps }
    }
}

impl Device for Odd {
    fn name(&self) -> String {
        "odd".into()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let number = self.writes.fetch_add(1, Ordering::SeqCst);
        match self.quirk {
            Quirk::Slow(first) if number % 2 == first => std::thread::sleep(Duration::from_millis(8)),
            Quirk::Panic => {
                let start = Instant::now();
                while self.under_way.load(Ordering::SeqCst) < 2 && start.elapsed() < Duration::from_secs(5) {
                    std::thread::yield_now();
                }
                panic!("a write panics, as it is to");
            }
            _ => {}
        }
        self.overlaps.fetch_add(usize::from(self.syncing.load(Ordering::SeqCst)), Ordering::SeqCst);
        let result = self.inner.write(offset, data);
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        result
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.write(offset, &vec![0; len as usize])
    }
    fn sync(&self) -> Result<(), DeviceError> {
        let number = self.syncs.fetch_add(1, Ordering::SeqCst) + 1;
        self.syncing.store(true, Ordering::SeqCst);
        self.overlaps.fetch_add(self.under_way.load(Ordering::SeqCst), Ordering::SeqCst);
        if self.quirk == Quirk::Sync(number) {
            let source = io::Error::from_raw_os_error(5);
            return Err(DeviceError { operation: "syncing", name: self.name(), offset: 0, len: 0, source });
        }
        std::thread::sleep(Duration::from_millis(1));
        self.syncing.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Everything moves, some of it a little: several stretches, each of several batches.
fn moved() -> (Vec<u8>, Vec<u8>, Opened) {
    let old = noise(5, 2500 * BLOCK);
    let mut new = old.clone();
    new[..1200 * BLOCK].rotate_left(BLOCK + 100);
    new[1200 * BLOCK..].rotate_left(400 * BLOCK);
    new[600 * BLOCK..640 * BLOCK].fill(0);
    let (_folder, opened) = delta_of(&old, &new);
    let counts = &opened.delta.route.counts;
    assert!(counts.barriers > 1 && counts.batches > counts.barriers + 2, "{counts:?}");
    (old, new, opened)
}

#[test]
fn a_sync_finds_no_write_under_way_and_what_is_written_late_is_read_late() {
    let (old, new, opened) = moved();
    for first in [0, 1] {
        let device = Odd::new(old.clone(), Quirk::Slow(first));
        patch(&opened, &device, Verify::Full).unwrap_or_else(|e| panic!("slow {first}: {e}"));
        assert_eq!(device.overlaps.into_inner(), 0, "slow {first}: writes under way during a sync");
        assert!(device.inner.contents() == new, "slow {first}");
    }
}

/// After a sync that failed, the success of another one means nothing: there is none.
#[test]
fn no_sync_follows_one_that_failed() {
    let (old, _, opened) = moved();
    let mut fails = 1;
    loop {
        let device = Odd::new(old.clone(), Quirk::Sync(fails));
        let Err(e) = patch(&opened, &device, Verify::Full) else { break };
        assert!(fails > 1 || e.exit_code() == exit::REFUSED, "{e}");
        assert_eq!(device.syncs.into_inner(), fails, "sync {fails} fails: {e}");
        fails += 1;
    }
    assert!(fails > 4, "{fails}");
}

#[test]
fn writers_that_panic_end_the_run() {
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        let (old, _, opened) = moved();
        let device = Odd::new(old, Quirk::Panic);
        let run = || patch(&opened, &device, Verify::Full).is_ok();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let _ = ended.send((result, device.writes.into_inner()));
    });
    let (result, writes) = end.recv_timeout(Duration::from_secs(60)).expect("a run that hangs");
    assert!(result.is_err() && writes == 2, "the panic is passed on, {writes} writes");
}
