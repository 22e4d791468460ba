//! Reads many parts of a device by several threads, each of which also works on what it has read; results in order.

use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::target::SurveyError;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// Threads beside those that the processors can run: while some work on what they have read, others wait for the
/// medium.
const WAITING: usize = 2;
/// Threads at most: more would only make a slow medium seek.
const MOST_THREADS: usize = 4;
/// How many chunks a thread may be ahead of the slowest one: bounds the results that wait for their turn.
const AHEAD: u64 = 64;

/// What to read: `count` chunks, of which the i-th is `chunk(i)`.
pub(crate) struct Chunks<F> {
    pub count: u64,
    pub chunk: F,
}

/// Bytes that are read at once when a whole image is read.
pub(crate) const CHUNK: u64 = 1 << 20;

/// All of `[0, len)`.
pub(crate) fn whole(len: u64) -> Chunks<impl Fn(u64) -> Range<u64> + Sync> {
    Chunks { count: len.div_ceil(CHUNK), chunk: move |i: u64| i * CHUNK..len.min((i + 1) * CHUNK) }
}

/// Threads that read and work.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).saturating_add(WAITING).min(MOST_THREADS)
}

/// Reads every chunk, lets `work` make something of it, on any thread, and gives that to `take`, in order. Behind the
/// end of a target that can grow, zeros follow: that is what growing it yields.
pub(crate) fn sweep<T: Send, F: Fn(u64) -> Range<u64> + Sync>(
    device: &dyn Device,
    chunks: &Chunks<F>,
    stop: &AtomicBool,
    work: impl Fn(u64, &mut [u8]) -> T + Sync,
    mut take: impl FnMut(T),
) -> Result<(), SurveyError> {
    let threads = threads();
    if chunks.count <= 1 {
        return sweep_few(device, chunks, stop, work, take); // threads would cost more than they win
    }
    let (next, taken, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (to_take, results) = sync_channel::<(u64, Result<T, DeviceError>)>(threads);
    let work = &work;
    std::thread::scope(|scope| {
        let mut started = 0;
        for _ in 0..threads {
            let to_take = to_take.clone();
            let (next, taken, over) = (&next, &taken, &over);
            let reader = move || {
                let _end = EndAll(over);
                let mut buffer = AlignedBuffer::default();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    while i > taken.load(Ordering::Relaxed) + AHEAD && !over.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(1)); // another thread waits for a slow sector
                    }
                    if i >= chunks.count || over.load(Ordering::Relaxed) {
                        return;
                    }
                    let range = (chunks.chunk)(i);
                    buffer.resize((range.end - range.start) as usize);
                    let result = read_padded(device, range.start, &mut buffer).map(|()| work(range.start, &mut buffer));
                    let failed = result.is_err();
                    if to_take.send((i, result)).is_err() || failed {
                        return;
                    }
                }
            };
            started += usize::from(std::thread::Builder::new().spawn_scoped(scope, reader).is_ok());
        }
        if started == 0 {
            return sweep_few(device, chunks, stop, work, take); // the system lets no thread be started
        }
        let _end = EndAll(&over);
        drop(to_take);
        let mut waiting = BTreeMap::new();
        let mut due = 0;
        let mut result = Ok(());
        'all: for (i, done) in &results {
            waiting.insert(i, done);
            while let Some(done) = waiting.remove(&due) {
                match done {
                    _ if stop.load(Ordering::Relaxed) => result = Err(SurveyError::Stop),
                    Err(e) => result = Err(e.into()),
                    Ok(done) => take(done),
                }
                if result.is_err() {
                    break 'all;
                }
                due += 1;
                taken.store(due, Ordering::Relaxed);
            }
        }
        // The readers notice that nobody listens, and end.
        over.store(true, Ordering::Relaxed);
        drop(results);
        result
    })
}

/// Ends all readers when one of them, or who takes their results, panics: nobody must wait for the others for ever.
struct EndAll<'a>(&'a AtomicBool);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The same without threads.
fn sweep_few<T, F: Fn(u64) -> Range<u64>>(
    device: &dyn Device,
    chunks: &Chunks<F>,
    stop: &AtomicBool,
    work: impl Fn(u64, &mut [u8]) -> T,
    mut take: impl FnMut(T),
) -> Result<(), SurveyError> {
    let mut buffer = AlignedBuffer::default();
    for i in 0..chunks.count {
        if stop.load(Ordering::Relaxed) {
            return Err(SurveyError::Stop);
        }
        let range = (chunks.chunk)(i);
        buffer.resize((range.end - range.start) as usize);
        read_padded(device, range.start, &mut buffer)?;
        take(work(range.start, &mut buffer));
    }
    Ok(())
}

/// Fills a buffer; zeros behind the end of a target that can grow, and without reading where it has a hole.
pub(crate) fn read_padded(device: &dyn Device, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
    let there = if device.resizable() { device.len().saturating_sub(offset) } else { u64::MAX };
    let (head, tail) = buffer.split_at_mut(buffer.len().min(usize::try_from(there).unwrap_or(usize::MAX)));
    tail.fill(0);
    if head.is_empty() {
        return Ok(());
    }
    if device.is_hole(offset, head.len() as u64) {
        head.fill(0);
        return Ok(());
    }
    device.read(offset, head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    #[test]
    fn everything_is_read_once_and_taken_in_order() {
        let len = 7 * CHUNK + 1234;
        let bytes: Vec<u8> = (0..len).map(|i| (i / CHUNK) as u8 + 1).collect();
        let device = MemoryDevice::new(bytes, false);
        let mut seen = Vec::new();
        let work = |offset: u64, data: &mut [u8]| (offset, data.len() as u64, data[0]);
        sweep(&device, &whole(len), &AtomicBool::new(false), work, |found| seen.push(found)).unwrap();
        let expected: Vec<_> = (0..8).map(|i| (i * CHUNK, if i < 7 { CHUNK } else { 1234 }, i as u8 + 1)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_failure_or_a_stop_ends_it() {
        let device = MemoryDevice::new(vec![0; 3 * CHUNK as usize], false);
        let mut taken = 0;
        let result = sweep(&device, &whole(5 * CHUNK), &AtomicBool::new(false), |_, _| (), |()| taken += 1);
        assert!(matches!(result, Err(SurveyError::Device(e)) if e.offset == 3 * CHUNK) && taken == 3);
        let result = sweep(&device, &whole(CHUNK), &AtomicBool::new(true), |_, _| (), |()| ());
        assert!(matches!(result, Err(SurveyError::Stop)));
    }
}
