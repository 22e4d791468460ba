//! Every single operation on a target fails once, in turn.

use crate::{BLOCK, delta_of, noise, pair, patch};
use blkpatch::device::{Device, DeviceError, MemoryDevice};
use blkpatch::error::exit;
use blkpatch::target::Verify;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// How much of what was to be written is there after a failure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Landed {
    Nothing,
    /// Sectors by turns.
    Some,
    All,
}

#[derive(Default)]
struct State {
    /// Operations so far.
    operations: usize,
    /// What stood where something was written since the last sync, by sector.
    unsynced: BTreeMap<u64, Vec<u8>>,
    /// The operation that failed.
    failed: Option<&'static str>,
    /// Whether that has returned.
    over: bool,
    /// Operations that began to change the device since then.
    changed_since: usize,
}

/// A device of which one operation fails. A sync that fails loses what it was to make durable, as disks do.
struct Flaky<'a> {
    inner: &'a MemoryDevice,
    fails: usize,
    landed: Landed,
    writes_only: bool,
    state: Mutex<State>,
}

impl<'a> Flaky<'a> {
    fn new(inner: &'a MemoryDevice, fails: usize, landed: Landed) -> Self {
        Self { inner, fails, landed, writes_only: false, state: Mutex::default() }
    }

    /// Only writes count.
    fn failing_write(inner: &'a MemoryDevice, fails: usize) -> Self {
        Self { writes_only: true, ..Self::new(inner, fails, Landed::Some) }
    }

    fn failed(&self) -> Option<&'static str> {
        self.state.lock().unwrap().failed
    }

    /// Counts an operation; an error if it is the one.
    fn operation(&self, operation: &'static str, offset: u64, len: u64) -> Result<(), DeviceError> {
        let mut state = self.state.lock().unwrap();
        state.operations += usize::from(!self.writes_only || operation == "writing");
        let changes = !matches!(operation, "reading" | "dropping the cache of" | "syncing");
        state.changed_since += usize::from(state.over && changes);
        if state.operations != self.fails || state.failed.is_some() || self.writes_only && operation != "writing" {
            return Ok(());
        }
        state.failed = Some(operation);
        state.over = operation != "writing";
        let source = io::Error::from_raw_os_error(5);
        Err(DeviceError { operation, name: self.name(), offset, len, source })
    }

    /// Puts back what was not durable.
    fn lose(&self) {
        let unsynced = std::mem::take(&mut self.state.lock().unwrap().unsynced);
        for (i, (offset, sector)) in unsynced.into_iter().enumerate() {
            let lost = self.landed == Landed::Nothing || self.landed == Landed::Some && i % 2 == 0;
            if lost && offset + sector.len() as u64 <= self.inner.len() {
                self.inner.write(offset, &sector).unwrap();
            }
        }
    }
}

impl Device for Flaky<'_> {
    fn name(&self) -> String {
        "/dev/flaky".into()
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn resizable(&self) -> bool {
        self.inner.resizable()
    }
    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.operation("resizing", len, 0)?;
        self.inner.set_len(len)
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.operation("reading", offset, buffer.len() as u64)?;
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let result = self.operation("writing", offset, data.len() as u64);
        for (i, sector) in data.chunks(512).enumerate() {
            let at = offset + i as u64 * 512;
            if result.is_ok() || self.landed == Landed::All || self.landed == Landed::Some && i % 2 == 1 {
                let mut before = vec![0; sector.len()];
                self.inner.read(at, &mut before)?;
                self.state.lock().unwrap().unsynced.entry(at).or_insert(before);
                self.inner.write(at, sector)?;
            }
        }
        self.state.lock().unwrap().over |= result.is_err();
        result
    }
    fn write_zeros(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.write(offset, &vec![0; len as usize])
    }
    fn reserve(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.operation("reserving space in", offset, len)
    }
    fn sync(&self) -> Result<(), DeviceError> {
        match self.operation("syncing", 0, 0) {
            Ok(()) => self.state.lock().unwrap().unsynced.clear(),
            Err(e) => {
                self.lose();
                return Err(e);
            }
        }
        Ok(())
    }
    fn forget_cache(&self) -> Result<(), DeviceError> {
        self.operation("dropping the cache of", 0, 0)
    }
}

/// Lets each operation of a run fail in turn; returns what failed how often.
fn every_operation_fails(
    old: &[u8],
    new: &[u8],
    resizable: bool,
    verify: Verify,
    landed: Landed,
) -> BTreeMap<&'static str, usize> {
    let (_folder, opened) = delta_of(old, new);
    let counts = &opened.delta.route.counts;
    assert!(counts.scratch_blocks > 0 && counts.barriers > 1, "this pair is to be hard: {counts:?}");
    let mut seen = BTreeMap::new();
    for fails in 1.. {
        let mut content = old.to_vec();
        content.resize(if resizable { old.len() } else { old.len().max(new.len()) }, 7);
        let inner = MemoryDevice::new(content.clone(), resizable);
        let device = Flaky::new(&inner, fails, landed);
        let result = patch(&opened, &device, verify);
        let Some(operation) = device.failed() else {
            result.expect("nothing failed");
            return seen;
        };
        *seen.entry(operation).or_insert(0) += 1;
        let said = format!("operation {fails} ({operation}), {verify:?}, {landed:?}");
        let e = match result {
            // A read of several sources at once is tried again for each of them.
            Ok(_) if operation == "reading" && inner.contents()[..new.len()] == *new => continue,
            Ok(_) => panic!("{said}: success"),
            Err(e) => e,
        };
        let text = e.to_string();
        assert!(
            text.contains("/dev/flaky") && text.contains(operation) && text.contains("os error 5"),
            "{said}: {text}"
        );
        assert!(text.contains("the same command"), "{said}: {text}");
        if operation != "reading" {
            // Where reading fails, what was prepared before may still be written. Two batches are written at a time: when
            // a write fails, another one may be about to begin.
            let changed = device.state.lock().unwrap().changed_since;
            assert!(changed <= usize::from(operation == "writing"), "{said}: {changed} changes after the failure");
        }
        assert_eq!(text.contains("Nothing was written"), e.exit_code() == exit::REFUSED, "{said}: {text}");
        match e.exit_code() {
            exit::REFUSED => assert!(inner.contents() == content, "{said}: {text}, and yet it was written"),
            code => assert_eq!(code, exit::STOPPED, "{said}: {text}"),
        }
        patch(&opened, &inner, verify).unwrap_or_else(|e| panic!("{said}: run again: {e}"));
        assert!(inner.contents()[..new.len()] == *new, "{said}: another image");
        assert_eq!(inner.contents().len(), if resizable { new.len() } else { content.len() }, "{said}");
    }
    seen
}

#[test]
fn every_operation_fails_once() {
    let (short, long) = pair(3 * BLOCK + 77);
    let (same_old, same_new) = pair(0);
    for landed in [Landed::Nothing, Landed::Some, Landed::All] {
        for verify in [Verify::Full, Verify::All, Verify::Touched] {
            let seen = every_operation_fails(&same_old, &same_new, false, verify, landed);
            for operation in ["reading", "writing", "syncing", "dropping the cache of"] {
                assert!(seen.get(operation).is_some_and(|n| *n >= 2), "{operation}: {seen:?}");
            }
            every_operation_fails(&short, &long, false, verify, landed);
            let seen = every_operation_fails(&short, &long, true, verify, landed);
            assert!(seen["resizing"] == 1 && seen.contains_key("reserving space in"), "{seen:?}");
            let seen = every_operation_fails(&long, &short, true, verify, landed);
            assert_eq!(seen["resizing"], 1, "{seen:?}");
        }
    }
}

/// Halves that trade places through ample scratch, a MiB at a time: more is read of what an earlier batch writes than there are
/// threads that read.
#[test]
fn a_failed_write_ends_the_run_also_where_many_reads_wait_for_it() {
    let half = 1600 * BLOCK;
    let (first, second) = (noise(3, half), noise(4, half));
    let zeros = vec![0; 2 * half];
    let old = [&first[..], &second, &zeros].concat();
    let new = [&second[123..], &first, &second[..123], &zeros].concat();
    let (_folder, opened) = delta_of(&old, &new);
    let scratch = opened.delta.route.counts.scratch_blocks;
    assert!(scratch > 1000, "{scratch} blocks of scratch");
    let (ended, end) = mpsc::channel();
    let runs = std::thread::spawn(move || {
        for fails in 1.. {
            let inner = MemoryDevice::new(old.clone(), false);
            let device = Flaky::failing_write(&inner, fails);
            let result = patch(&opened, &device, Verify::Full);
            if device.failed().is_none() {
                break;
            }
            let text = result.map(|_| ()).expect_err("a failed write").to_string();
            let _ = ended.send((fails, text));
            patch(&opened, &inner, Verify::Full).unwrap_or_else(|e| panic!("write {fails}: run again: {e}"));
            assert!(inner.contents() == new, "write {fails}: another image");
        }
    });
    let mut writes = 0;
    loop {
        match end.recv_timeout(Duration::from_secs(60)) {
            Ok((fails, text)) => {
                assert!(text.contains("writing") && text.contains("os error 5"), "write {fails}: {text}");
                writes = fails;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("a run that hangs, behind write {writes}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    runs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(writes > 20, "{writes} writes failed");
}
