//! The threads that compare and write: each takes the next chunk, reads the target there, writes what differs.

use super::blocks::{Differing, Written, pieces};
use super::image::{Piece, Source};
use super::trouble::Trouble;
use crate::blockset::BlockSet;
use crate::device::{AlignedBuffer, Device};
use crate::digest::ZERO_PART;
use crate::monitor::Monitor;
use crate::sweep::{CHUNK, read_padded, threads};
use crate::units::{PART, blocks_touched};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

// A hole's chunk is answered from a part of zeros.
const _: () = assert!(CHUNK <= PART);

/// Whether everybody is to end: the user wants it, or something failed.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub stop: &'a AtomicBool,
    failed: AtomicBool,
}

impl<'a> End<'a> {
    pub fn new(stop: &'a AtomicBool) -> Self {
        Self { stop, failed: AtomicBool::new(false) }
    }

    pub fn is_over(&self) -> bool {
        self.asked() || self.failed.load(Ordering::Relaxed)
    }

    /// Whether the user wants it.
    pub fn asked(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Ends the others where a thread panics: they would wait for its chunk for ever.
struct EndOnPanic<'a>(&'a End<'a>);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Takes an offset, a chunk of the image there, and as many bytes of the target.
pub(super) type Observer<'a> = dyn Fn(u64, &[u8], &[u8]) -> Result<(), Trouble> + Sync + 'a;

/// What the threads share.
pub(super) struct Work<'a> {
    pub source: &'a dyn Source,
    /// For messages.
    pub image: &'a str,
    pub device: &'a dyn Device,
    /// Bytes that fit; `None` where it can grow.
    pub room: Option<u64>,
    pub dry_run: bool,
    /// Who is shown every chunk, of the image and of the target, before anything of it is written.
    pub recorder: Option<&'a Observer<'a>>,
    /// The only blocks that may be written.
    pub only: Option<&'a BlockSet>,
    pub end: &'a End<'a>,
    pub monitor: &'a dyn Monitor,
    pub log: Mutex<Log>,
    /// Whether writing has begun.
    pub began: AtomicBool,
    /// Bytes that differ, and those of them that are written.
    pub differing: AtomicU64,
    pub written: AtomicU64,
}

/// What the threads leave behind.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// What was written, in any order.
    pub written: Vec<Written>,
    trouble: Option<Trouble>,
    /// Whether the end of the image was seen.
    complete: bool,
}

impl Work<'_> {
    /// Compares, and writes what differs, to the end of the image; all that was begun is finished also where it fails.
    pub fn run(&self) -> Result<(), Trouble> {
        std::thread::scope(|scope| {
            for _ in 1..threads() {
                // One thread does it all where the system lets no more be started.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || self.work());
            }
            self.work();
        });
        let mut log = self.log();
        match log.trouble.take() {
            Some(trouble) => Err(trouble),
            None if log.complete => Ok(()),
            None => Err(Trouble::Stop),
        }
    }

    pub fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let _others = EndOnPanic(self.end);
        let (mut image, mut target) = (AlignedBuffer::default(), AlignedBuffer::default());
        while !self.end.is_over() {
            let done = self.source.next(&mut image).and_then(|piece| match piece {
                Some(piece) => self.chunk(piece, &image, &mut target).map(|()| true),
                None => Ok(false),
            });
            match done {
                Ok(true) => {}
                Ok(false) => {
                    self.log().complete = true;
                    return;
                }
                // The first failure counts: others may follow from it.
                Err(e) => {
                    self.log().trouble.get_or_insert(e);
                    self.end.failed.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    fn chunk(&self, piece: Piece, image: &[u8], target: &mut AlignedBuffer) -> Result<(), Trouble> {
        let Piece { offset, len, hole } = piece;
        if self.room.is_some_and(|room| room - offset.min(room) < len as u64) {
            let (image, target) = (self.image.to_owned(), self.device.name());
            return Err(Trouble::TooLong { image, target, len: self.room.unwrap_or(0) });
        }
        let image = if hole { &ZERO_PART[..len] } else { image };
        if hole && self.is_empty(offset, len as u64) {
            self.record(offset, image, image)?;
        } else {
            target.resize(len);
            read_padded(self.device, offset, target)?;
            self.record(offset, image, target)?;
            let differing = Differing::between(image, target);
            if !differing.is_empty() {
                self.write(offset, image, &differing)?;
            }
        }
        self.monitor.advance(len as u64);
        Ok(())
    }

    fn record(&self, offset: u64, image: &[u8], target: &[u8]) -> Result<(), Trouble> {
        self.recorder.map_or(Ok(()), |recorder| recorder(offset, image, target))
    }

    /// Whether the target is known to be zeros there without reading it, also because a file yet has to grow.
    fn is_empty(&self, offset: u64, len: u64) -> bool {
        self.device.is_hole(offset, len) || (self.room.is_none() && self.device.len() <= offset)
    }

    fn write(&self, offset: u64, image: &[u8], differing: &Differing) -> Result<(), Trouble> {
        for run in differing.runs(image.len()) {
            self.differing.fetch_add(run.len() as u64, Ordering::Relaxed);
            if self.dry_run {
                continue;
            }
            let bytes = offset + run.start as u64..offset + run.end as u64;
            if self.only.is_some_and(|only| only.runs_in(blocks_touched(&bytes)).any(|(_, inside)| !inside)) {
                let (image, target) = (self.image.to_owned(), self.device.name());
                return Err(Trouble::Inconstant { image, target, bytes });
            }
            self.begin();
            for (piece, zeros) in pieces(&image[run.clone()]) {
                let (start, end) = (run.start + piece.start, run.start + piece.end);
                let (at, len) = (offset + start as u64, piece.len() as u64);
                if zeros {
                    self.device.write_zeros(at, len)?;
                } else {
                    self.device.write(at, &image[start..end])?;
                }
                self.written.fetch_add(len, Ordering::Relaxed);
            }
        }
        if !self.dry_run {
            self.log().written.extend(Written::of(offset, image, differing));
        }
        Ok(())
    }

    /// To be called before anything about the target is changed.
    pub fn begin(&self) {
        if !self.began.swap(true, Ordering::SeqCst) {
            self.monitor.writing();
        }
    }
}
