//! Crashing and recovering, again and again.

use super::disk::{Cut, Disk};
use super::rng::Rng;
use blkpatch::error::exit;
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, patch_device};
use blkpatch::target::Verify;
use std::fmt;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Crashes nested into each other.
const DEPTH: u32 = 3;

/// How a run ended.
#[derive(Debug)]
pub enum End {
    Done,
    /// Refused, or stopped so that the same command resumes.
    Stopped(String),
    Lost(String),
}

/// Patches a disk, first run or not.
pub type Run = fn(&Opened, &Disk, Verify) -> End;

/// The real thing.
pub fn patch(opened: &Opened, disk: &Disk, verify: Verify) -> End {
    run_patch(opened, disk, PatchOptions { verify, ..PatchOptions::default() })
}

fn run_patch(opened: &Opened, disk: &Disk, options: PatchOptions) -> End {
    match patch_device(opened, Path::new("delta"), disk, &options, &AtomicBool::new(false), &Silent) {
        Ok(_) => End::Done,
        Err(e) if matches!(e.exit_code(), exit::REFUSED | exit::STOPPED) => End::Stopped(e.to_string()),
        Err(e) => End::Lost(e.to_string()),
    }
}

/// What is crashed.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub name: &'a str,
    pub opened: &'a Opened,
    pub old: &'a [u8],
    pub new: &'a [u8],
    /// Patched as a file (grows and shrinks) or as a device.
    pub resizable: bool,
    pub run: Run,
}

/// A loss, as words.
pub type Loss = String;

impl Subject<'_> {
    /// A disk with the old image.
    pub fn fresh(&self) -> Disk {
        let mut content = self.old.to_vec();
        if !self.resizable {
            content.resize(self.old.len().max(self.new.len()), 0xA5); // nothing is known behind the old image
        }
        Disk::new(content, self.resizable)
    }

    /// Must end well and leave the new image.
    pub fn finish(&self, disk: &Disk, verify: Verify) -> Result<(), Loss> {
        match (self.run)(self.opened, disk, verify) {
            End::Done if disk.contents()[..self.new.len()] == *self.new => Ok(()),
            End::Done => Err(format!("{}: wrong content", self.name)),
            End::Stopped(why) | End::Lost(why) => Err(format!("{}: cannot recover: {why}", self.name)),
        }
    }

    /// As [`Self::fresh`], but sometimes a final batch finds other content than that of the old image, even its own,
    /// where nobody reads it: the spec calls that convertible.
    pub fn start(&self, random: &mut Rng) -> Disk {
        let disk = self.fresh();
        let batches = self.opened.delta.table.batches();
        if random.below(4) > 0 || batches.is_empty() {
            return disk;
        }
        let mut content = disk.contents();
        let other = if random.below(2) == 0 { self.new.to_vec() } else { random.bytes(self.new.len()) };
        for extent in self.opened.delta.table.extents(&batches[random.below(batches.len())]) {
            let bytes = extent.bytes(content.len().min(other.len()) as u64);
            let bytes = bytes.start as usize..bytes.end as usize;
            if let (Some(target), Some(source)) = (content.get_mut(bytes.clone()), other.get(bytes)) {
                target.copy_from_slice(source);
            }
        }
        let changed = Disk::new(content, self.resizable);
        let looking = PatchOptions { dry_run: true, ..PatchOptions::default() };
        if matches!(run_patch(self.opened, &changed, looking), End::Done) { changed } else { disk }
    }
}

/// Crash states, by what the power loss prevented.
#[derive(Clone, Copy, Debug, Default)]
pub struct States {
    pub all: u64,
    saves: u64,
    finals: u64,
    syncs: u64,
    reads: u64,
}

impl AddAssign for States {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.saves += other.saves;
        self.finals += other.finals;
        self.syncs += other.syncs;
        self.reads += other.reads;
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { all, saves, finals, syncs, reads } = self;
        let rest = all - saves - finals - syncs - reads;
        write!(f, "{all} crash states (within a save {saves}, within a final batch {finals}, before a sync {syncs}, ")?;
        write!(f, "while reading {reads}, elsewhere {rest})")
    }
}

/// What a test counts and draws from.
#[derive(Debug)]
pub struct Session {
    pub random: Rng,
    pub states: States,
}

impl Session {
    pub fn new(seed: u64) -> Self {
        Self { random: Rng::new(seed), states: States::default() }
    }

    /// Crashes at operation `at` of a run on `disk`, keeps a subset of what was unsynced, and recovers, with further
    /// crashes on the way.
    pub fn crash(&mut self, subject: &Subject<'_>, disk: &Disk, at: usize) -> Result<(), Loss> {
        self.crash_in(subject, disk, at, DEPTH)
    }

    fn crash_in(&mut self, subject: &Subject<'_>, disk: &Disk, at: usize, depth: u32) -> Result<(), Loss> {
        disk.light_fuse(Some(at));
        let verify = if self.random.below(4) == 0 { Verify::Touched } else { Verify::Full };
        if let End::Lost(why) = (subject.run)(subject.opened, disk, verify) {
            return Err(format!("{}: a crash at {at} must not be final: {why}", subject.name));
        }
        self.count(subject, disk);
        let back = disk.power_up(landed(&mut self.random));
        if depth > 1 && self.random.below(3) == 0 {
            // How long recovery takes from here is found by running it on a copy.
            let copy = back.power_up(|_| true);
            subject.finish(&copy, Verify::Full)?;
            let at = self.random.below(copy.operations() + 1);
            return self.crash_in(subject, &back, at, depth - 1);
        }
        subject.finish(&back, verify).map_err(|loss| format!("{loss} (crash at {at})"))
    }

    fn count(&mut self, subject: &Subject<'_>, disk: &Disk) {
        let states = &mut self.states;
        states.all += 1;
        match disk.cut() {
            // Scratch holds old bytes, until its final content comes.
            Some(Cut::Write(at, sector)) if subject.new.get(at..at + sector.len()) == Some(&sector) => {
                states.finals += 1
            }
            Some(Cut::Write(..)) => states.saves += 1,
            Some(Cut::Sync) => states.syncs += 1,
            Some(Cut::Read) => states.reads += 1,
            Some(Cut::Resize) | None => {}
        }
    }

    /// Crashes at up to `most` operations of a run, all of them if there are no more.
    pub fn crash_all_over(&mut self, subject: &Subject<'_>, most: usize) -> Result<(), Loss> {
        let disk = subject.fresh();
        subject.finish(&disk, Verify::Full)?;
        let operations = disk.operations();
        for i in 0..most.min(operations + 1) {
            let at = if most > operations { i } else { self.random.below(operations + 1) };
            let disk = subject.start(&mut self.random);
            self.crash(subject, &disk, at)?;
        }
        Ok(())
    }
}

/// Which of the unsynced sectors landed: none, all, or any.
fn landed(random: &mut Rng) -> impl FnMut(usize) -> bool + use<> {
    let style = random.below(4);
    let mut random = Rng::new(random.next());
    move |_| match style {
        0 => false,
        1 => true,
        _ => random.below(2) == 0,
    }
}
