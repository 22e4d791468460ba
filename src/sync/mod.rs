//! `sync`: the image is at hand, and no delta: writes only the blocks of a target that differ from it.
//!
//! The image is taken in chunks of 1 MiB by a few threads ([`work`]), from a file, a device or a stream that may be
//! compressed ([`image`], [`stream`]). What differs is written at once ([`blocks`]); a sync follows, and what was written
//! is read back past the cache. Nothing needs to be remembered for a restart: what is right already is not written again.

mod blocks;
mod image;
mod keep;
mod record;
mod stream;
mod trouble;
mod work;

use crate::blockset::BlockSet;
use crate::device::{Access, Device, open_target, share_bytes, shared_storage};
use crate::disk::{ask, finish};
use crate::error::Error;
use crate::format::Format;
use crate::misplaced::{disk_has_room, odd_pair};
use crate::monitor::Monitor;
use crate::sweep::{Chunks, sweep};
use crate::target::SurveyError;
use crate::undo::refuse_target;
use crate::units::human;
use blocks::Written;
use image::{Image, refuse_stream};
use keep::sync_and_keep;
use record::{Complete, Recorder};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trouble::Trouble;
use work::{End, Observer, Work};

/// How to sync.
#[derive(Clone, Debug, Default)]
pub struct SyncOptions {
    /// Only count what differs.
    pub dry_run: bool,
    /// Where to keep a delta that takes the target back to what it held.
    pub undo: Option<PathBuf>,
    /// Where to keep a delta that does the same as this run to an identical target; also of a dry run.
    pub save_delta: Option<PathBuf>,
    /// The image's format.
    pub format: Format,
}

/// What `sync` did.
#[derive(Clone, Copy, Debug)]
pub struct SyncReport {
    /// The image's length: bytes that were compared.
    pub compared: u64,
    /// Bytes that differed, in whole blocks: all of them are written, unless this was a dry run.
    pub differing: u64,
    /// Length of a regular file before, if that is not the image's.
    pub resized_from: Option<u64>,
    /// Time taken.
    pub elapsed: Duration,
}

/// Makes a target hold an image, writing only what differs. `image` may be a file, a block device, a pipe, or `-` for
/// standard input, and files and streams may be compressed (gzip, xz, zstd, bzip2).
///
/// # Errors
/// [`Error`]; its exit code tells whether the target is untouched.
pub fn sync(
    image: &Path,
    target: &Path,
    options: &SyncOptions,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<SyncReport, Error> {
    let start = Instant::now();
    let end = End::new(stop);
    if options.undo.is_some() {
        refuse_stream(image)?;
    }
    let image = Image::open(image, options.format, &end, monitor)?;
    refuse_itself(&image, target)?;
    let files = [&options.undo, &options.save_delta];
    files.into_iter().flatten().try_for_each(|file| refuse_target(file, target))?;
    if image.len == Some(0) {
        return Err(image.empty());
    }
    let device = open_target(target, if options.dry_run { Access::Inspect } else { Access::Write })?;
    device.warnings().iter().for_each(|warning| monitor.note(warning));
    check_room(&image, &*device)?;
    if let Some(odd) = image.source.head().and_then(|head| odd_pair(&head, &image.name, &*device)) {
        monitor.note(&odd);
    }
    if !options.dry_run {
        ask(&*device, &|| intent(&image), stop, monitor)?;
    }
    let report = sync_device(&image, &*device, options, &end, monitor)?;
    if !options.dry_run {
        finish(&*device, report.differing > 0, monitor);
    }
    Ok(SyncReport { elapsed: start.elapsed(), ..report })
}

/// What is about to be done, for the question.
fn intent(image: &Image<'_>) -> Vec<(&'static str, String)> {
    let len = match (image.len, image.promised) {
        (Some(len), _) => format!("{} ({len} bytes)", human(len)),
        (_, Some(len)) => format!("compressed, at least {}", human(len)),
        _ => "length not known before it is read".into(),
    };
    vec![("image", image.name.clone()), ("", len), ("writes", "all blocks that differ from the image".into())]
}

/// An image must not be written over itself.
fn refuse_itself(image: &Image<'_>, target: &Path) -> Result<(), Error> {
    let Ok(meta) = std::fs::metadata(target) else { return Ok(()) }; // opening it will tell
    let how = image.metas().find_map(|image| shared_storage(image, &meta));
    let how =
        how.or_else(|| image.paths().any(|path| share_bytes(path, target)).then_some("they share bytes of a disk"));
    match how {
        None => Ok(()),
        Some(how) => Err(Error::Image {
            why: format!("{} cannot be written to {}: {how}", image.name, target.display()),
            next: "Check the names with 'lsblk'",
        }),
    }
}

fn sync_device(
    image: &Image<'_>,
    device: &dyn Device,
    options: &SyncOptions,
    end: &End<'_>,
    monitor: &dyn Monitor,
) -> Result<SyncReport, Error> {
    if options.undo.is_none() && options.save_delta.is_none() {
        let pass = Pass { image, device, dry_run: options.dry_run, only: None, grow: None, end, monitor };
        return pass.run(None).map(|(report, _)| report);
    }
    sync_and_keep(image, device, options, end, monitor)
}

/// One reading of the image.
struct Pass<'a> {
    image: &'a Image<'a>,
    device: &'a dyn Device,
    dry_run: bool,
    /// The only blocks that may be written.
    only: Option<&'a BlockSet>,
    /// The length that a file gets before anything is written; otherwise it grows with what is written.
    grow: Option<u64>,
    end: &'a End<'a>,
    monitor: &'a dyn Monitor,
}

impl<'a> Pass<'a> {
    /// Compares, and writes what differs; yields what `recorder` was given, also.
    fn run<'r>(&self, recorder: Option<&Recorder<'r>>) -> Result<(SyncReport, Vec<Complete<'r>>), Error> {
        let Self { image, device, dry_run, end, monitor, .. } = *self;
        let len_before = device.len();
        let room = (!device.resizable()).then_some(len_before);
        check_room(image, device)?;
        if !dry_run {
            monitor.phase("waiting for earlier writes", 0);
            device.sync()?; // what others wrote may still be on its way
        }
        device.forget_cache()?;
        monitor.phase(if dry_run { "comparing" } else { "comparing, writing" }, image.len.unwrap_or(0));
        let show = |offset: u64, image: &[u8], target: &[u8]| match recorder {
            Some(recorder) => recorder.chunk(offset, image, target, end),
            None => Ok(()),
        };
        let work = Work {
            source: &*image.source,
            image: &image.name,
            device,
            room,
            dry_run,
            recorder: recorder.map(|_| &show as &Observer<'_>),
            only: self.only,
            end,
            monitor,
            log: Default::default(),
            began: AtomicBool::new(false),
            differing: Default::default(),
            written: Default::default(),
        };
        let grown = self.grow.map_or(Ok(()), |len| {
            work.begin();
            Ok(device.set_len(len)?)
        });
        let done = grown.and_then(|()| work.run()).and_then(|()| image.unchanged());
        let compared = image.source.taken();
        if done.is_ok() && compared == 0 {
            return Err(image.empty());
        }
        let resize = (device.resizable() && len_before != compared).then_some(compared);
        // What a file is cut of must have been read before.
        let complete = done.and_then(|()| match recorder {
            Some(recorder) => recorder.finish(device, compared, end.stop, monitor),
            None => Ok(Vec::new()),
        });
        let (done, complete) = match complete {
            Ok(complete) => (Ok(()), complete),
            Err(trouble) => (Err(trouble), Vec::new()),
        };
        let done = settle(&work, done, resize.filter(|_| !dry_run), monitor);
        let written = work.began.load(Ordering::SeqCst).then(|| work.written.load(Ordering::Relaxed));
        done.map_err(|trouble| trouble.into_error(device.name(), written))?;
        let differing = work.differing.load(Ordering::Relaxed);
        let resized_from = resize.map(|_| len_before);
        Ok((SyncReport { compared, differing, resized_from, elapsed: Duration::ZERO }, complete))
    }
}

/// Checks what can be known before the image is read.
fn check_room(image: &Image<'_>, device: &dyn Device) -> Result<(), Error> {
    let room = (!device.resizable()).then(|| device.len());
    if let (Some(needed), Some(actual)) = (image.len, room)
        && needed > actual
        && let Some(why) = disk_has_room(device, needed)
    {
        return Err(Error::Image { why, next: "Check the names with 'lsblk'" });
    }
    if let (Some(needed), Some(actual)) = (image.len, room)
        && needed > actual
    {
        return Err(Error::TooSmall { name: device.name(), needed, actual });
    }
    if let (Some(promised), Some(actual)) = (image.promised, room)
        && promised > actual
    {
        let (image, target) = (&image.name, device.name());
        return Err(Error::Image {
            why: format!("{image} says that it unpacks to at least {promised} bytes, and {target} has {actual}"),
            next: "Use a larger target, or a smaller image",
        });
    }
    Ok(())
}

/// Makes durable what was written, and checks it; a regular file gets the image's length. A file that is too long is
/// cut last, when all the rest is known to be right.
fn settle(
    work: &Work<'_>,
    done: Result<(), Trouble>,
    resize: Option<u64>,
    monitor: &dyn Monitor,
) -> Result<(), Trouble> {
    let device = work.device;
    if let Err(trouble) = done {
        if work.began.load(Ordering::SeqCst) {
            let _ = device.sync(); // what came before is the failure to tell
        }
        return Err(trouble);
    }
    // Writing near the image's end may have made it longer already, but not if zeros follow.
    if let Some(len) = resize.filter(|len| device.len() < *len) {
        work.begin();
        device.set_len(len)?;
    }
    if work.began.load(Ordering::SeqCst) {
        monitor.phase("making it durable", 0);
        device.sync()?;
        let mut written = std::mem::take(&mut work.log().written);
        written.sort_unstable_by_key(|window| window.span().start);
        check(device, &written, monitor)?;
    }
    if let Some(len) = resize.filter(|len| device.len() > *len) {
        work.begin();
        device.set_len(len)?;
        device.sync()?;
    }
    Ok(())
}

/// Reads back what was written, past the cache.
fn check(device: &dyn Device, written: &[Written], monitor: &dyn Monitor) -> Result<(), Trouble> {
    device.forget_cache()?;
    let total = written.iter().map(|window| window.span().end - window.span().start).sum();
    monitor.phase("checking the result", total);
    let chunks = Chunks { count: written.len() as u64, chunk: |i: u64| written[i as usize].span() };
    let kept = |offset: u64, bytes: &mut [u8]| -> (Range<u64>, bool) {
        let window = written.partition_point(|window| window.span().start < offset);
        (offset..offset + bytes.len() as u64, written.get(window).is_some_and(|window| window.is_kept(bytes)))
    };
    let mut first = None;
    // Everything is written: a wish to stop changes nothing any more.
    let read = sweep(device, &chunks, &AtomicBool::new(false), kept, |(span, kept)| {
        monitor.advance(span.end - span.start);
        if !kept && first.is_none() {
            first = Some(span);
        }
    });
    match (read, first) {
        (Err(SurveyError::Device(e)), _) => Err(Trouble::Target(e)),
        (Err(SurveyError::Stop | SurveyError::Delta(_)), _) => Err(Trouble::Stop),
        (Ok(()), Some(span)) => Err(Trouble::Unkept(span)),
        (Ok(()), None) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
