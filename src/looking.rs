//! The first look at a target of `patch`, and the check of the delta's order meanwhile: on a fast medium either takes about
//! as long as the other, and nothing is written before both are done.

use crate::blockset::BlockSet;
use crate::delta::check::CheckedOrder;
use crate::delta::{Delta, DeltaError};
use crate::device::{Access, Device, open_target};
use crate::disk::{ask, plan};
use crate::error::Error;
use crate::misplaced::refuse_misplaced;
use crate::monitor::Monitor;
use crate::outlet::input_name;
use crate::patch::{PatchOptions, check_size};
use crate::target::{Seen, Verify, read_whole};
use crate::undo::refuse_target;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::Instant;

type Checked = Result<CheckedOrder, DeltaError>;

/// An order that is being checked, or was.
pub(crate) enum Pending<'scope> {
    Running(ScopedJoinHandle<'scope, Checked>),
    Done(Box<Checked>),
}

impl<'scope> Pending<'scope> {
    /// Begins; where the system lets no thread be started, it is done then. Sets `refused` where the order breaks a rule.
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        refused: &'env AtomicBool,
        check: impl Fn() -> Checked + Copy + Send + 'scope,
    ) -> Self {
        let work = move || {
            let checked = check();
            refused.fetch_or(checked.is_err(), Ordering::Relaxed);
            checked
        };
        Builder::new().spawn_scoped(scope, work).map_or_else(|_| Self::Done(Box::new(work())), Self::Running)
    }

    /// The same, when it is known.
    pub fn settled(self) -> Self {
        Self::Done(Box::new(self.wait()))
    }

    /// Waits until it is known whether the order keeps the rules.
    pub fn wait(self) -> Checked {
        match self {
            Self::Running(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Done(checked) => *checked,
        }
    }
}

/// What is looked for, before the order must have been checked.
pub(crate) struct Look<'a> {
    pub delta: &'a Delta,
    /// For messages.
    pub delta_path: &'a Path,
    /// All blocks that the delta writes.
    pub touched: &'a BlockSet,
    pub options: &'a PatchOptions,
    /// The user wants to stop.
    pub stop: &'a AtomicBool,
    /// It is not worth while any more.
    pub over: &'a AtomicBool,
    pub monitor: &'a dyn Monitor,
}

/// What was found on a target; its state is yet to be told.
pub(crate) struct Looked {
    /// When the look began.
    pub start: Instant,
    /// Bytes of the target then.
    pub len: u64,
    /// `None` where it is not to be read as a whole, or only the order tells.
    pub seen: Option<Seen>,
}

impl Look<'_> {
    /// Opens the target, asks, and reads it.
    pub fn first(&self, target: &Path) -> Result<(Box<dyn Device>, Looked), Error> {
        let Self { delta, touched, options, stop, monitor, .. } = *self;
        if self.over.load(Ordering::Relaxed) {
            return Err(Error::Interrupted); // the refusal of the order is what counts
        }
        if let Some(label) = &delta.label {
            monitor.note(&format!("the delta is labelled: {label}"));
        }
        let access = if options.dry_run { Access::Inspect } else { Access::Write };
        if let Some(undo) = &options.undo {
            refuse_target(undo, target)?;
        }
        let device = open_target(target, access)?;
        device.warnings().iter().for_each(|warning| monitor.note(warning));
        refuse_misplaced(&*device, delta, touched)?;
        check_size(&*device, delta)?;
        if !options.dry_run {
            ask(&*device, &|| plan(delta, input_name(self.delta_path)), stop, monitor)?;
        }
        let looked = self.at(&*device)?;
        Ok((device, looked))
    }

    /// Reads a target that is open.
    pub fn at(&self, device: &dyn Device) -> Result<Looked, Error> {
        let Self { delta, touched, options, stop, over, monitor, .. } = *self;
        let start = Instant::now();
        check_size(device, delta)?;
        if !options.dry_run {
            monitor.phase("waiting for earlier writes", 0);
            device.sync()?; // the old image may still be on its way
        }
        let len = device.len();
        let seen = match options.verify {
            Verify::Touched => None,
            Verify::Full | Verify::All => {
                let seen = read_whole(device, delta, touched, stop, over, monitor);
                Some(seen.map_err(|e| e.untouched(input_name(self.delta_path)))?)
            }
        };
        Ok(Looked { start, len, seen })
    }
}
