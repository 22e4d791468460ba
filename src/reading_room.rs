//! Reads the sources of batches by threads that read ahead of the walk.

use crate::delta::placement::Sources;
use crate::device::{Device, DeviceError};
use crate::milestone::{Gone, Milestone};
use crate::sources::{Page, SourceBuffer};
use crate::units::Extent;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

/// Pages that are read at the same time: hides what each read waits.
pub(crate) const READERS: usize = 4;

/// A page that is to be read.
pub(crate) struct ReadJob {
    page: Page,
    /// Its number within its batch.
    number: usize,
    /// Orders that must have been carried out before: they write blocks that the batch reads.
    after: u64,
    /// Where it goes then.
    loaded: Sender<(usize, Result<Page, DeviceError>)>,
}

/// Does jobs, on a device that ends at byte `end`, until there are no more. Those that wait for what will not happen are let go
/// of, all of them: somebody waits for each.
pub(crate) fn read_jobs(device: &dyn Device, end: u64, jobs: &Mutex<Receiver<ReadJob>>, written: &Milestone) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(ReadJob { mut page, number, after, loaded }) = job else { return };
        if !written.wait_for(after) || written.is_abandoned() {
            continue;
        }
        let result = page.load(device, end);
        let _ = loaded.send((number, result.map(|()| page))); // the other side may have given up
    }
}

/// The pages of a batch that are being read.
pub(crate) struct Loading {
    count: usize,
    loaded: Receiver<(usize, Result<Page, DeviceError>)>,
}

impl Loading {
    /// Has pages read when `after` orders have been carried out.
    ///
    /// # Errors
    /// Where nobody reads any more.
    pub fn start(pages: Vec<Page>, after: u64, to_read: &Sender<ReadJob>) -> Result<Self, Gone> {
        let (to_load, loaded) = channel();
        let count = pages.len();
        for (number, page) in pages.into_iter().enumerate() {
            to_read.send(ReadJob { page, number, after, loaded: to_load.clone() }).map_err(|_| Gone)?;
        }
        Ok(Self { count, loaded })
    }

    /// Pages that were read.
    #[cfg(test)]
    pub fn done(pages: Vec<Page>) -> Self {
        let (to_load, loaded) = channel();
        let count = pages.len();
        pages.into_iter().enumerate().for_each(|(number, page)| to_load.send((number, Ok(page))).unwrap_or(()));
        Self { count, loaded }
    }

    /// Waits for all of them; `Gone` where they will not come.
    ///
    /// # Errors
    /// What the device said of one of them.
    pub fn wait(self) -> Result<Result<SourceBuffer, Gone>, DeviceError> {
        let mut pages: Vec<(usize, Page)> = Vec::with_capacity(self.count);
        while pages.len() < self.count {
            let Ok((number, page)) = self.loaded.recv() else { return Ok(Err(Gone)) };
            pages.push((number, page?));
        }
        pages.sort_unstable_by_key(|(number, _)| *number);
        Ok(Ok(SourceBuffer::new(pages.into_iter().map(|(_, page)| page).collect())))
    }
}

/// What is being read for a walk.
pub(crate) struct ReadingRoom<'a> {
    to_read: Sender<ReadJob>,
    written: &'a Milestone,
    /// Orders that write, with their numbers from 1, that may not be carried out yet.
    underway: VecDeque<(u64, &'a [Extent])>,
    orders: u64,
}

impl<'a> ReadingRoom<'a> {
    pub fn new(to_read: Sender<ReadJob>, written: &'a Milestone) -> Self {
        Self { to_read, written, underway: VecDeque::new(), orders: 0 }
    }

    /// Has the sources of a batch read into pages, when all orders so far that write them are done.
    pub fn request(&mut self, sources: &Sources, pages: Vec<Page>) -> Result<Loading, Gone> {
        let clash = |(_, extents): &&(u64, &[Extent])| have_common(extents, &sources.blocks);
        let after = self.underway.iter().rev().find(clash).map_or(0, |(number, _)| *number);
        Loading::start(pages, after, &self.to_read)
    }

    /// An order will be handed over that writes `extents`.
    pub fn note_order(&mut self, extents: &'a [Extent]) {
        self.orders += 1;
        self.underway.push_back((self.orders, extents));
        let reached = self.written.reached();
        while self.underway.front().is_some_and(|(number, _)| *number <= reached) {
            self.underway.pop_front();
        }
    }
}

/// Whether two lists of extents, both ascending, have a block in common.
fn have_common(mut a: &[Extent], mut b: &[Extent]) -> bool {
    while let ([x, rest_a @ ..], [y, rest_b @ ..]) = (a, b) {
        if x.end() <= y.start {
            a = rest_a;
        } else if y.end() <= x.start {
            b = rest_b;
        } else {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;
    use crate::sources::divide;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn who_waits_for_pages_learns_that_they_will_not_come() {
        let (to_read, jobs) = channel();
        let (jobs, written) = (Arc::new(Mutex::new(jobs)), Arc::new(Milestone::new()));
        let blocks = [Extent { start: 0, count: 1000 }];
        let pages = divide(&blocks, || Ok::<_, Gone>(Page::allocated())).unwrap_or_default();
        assert!(pages.len() > 2 * READERS);
        let loading = Loading::start(pages, 3, &to_read).ok().unwrap();
        // Not in a scope: a test that fails must not wait for them.
        for _ in 0..READERS {
            let (jobs, written) = (Arc::clone(&jobs), Arc::clone(&written));
            std::thread::spawn(move || {
                read_jobs(&MemoryDevice::new(vec![0; 4_096_000], false), 4_096_000, &jobs, &written)
            });
        }
        let (to_tell, told) = channel();
        std::thread::spawn(move || to_tell.send(matches!(loading.wait(), Ok(Err(Gone)))));
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "they are still to come");
        written.abandon();
        assert_eq!(told.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
}
