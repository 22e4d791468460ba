//! `patch --undo`: before the first write, a delta of literals keeps what will be overwritten (spec, section 8.10).
//!
//! It reads nothing from the target, so it applies to the image before, to the image after, and to every state between.

use crate::apply::WalkError;
use crate::blockset::BlockSet;
use crate::delta::DeltaError;
use crate::delta::batch::BatchKind;
use crate::delta::literal::LiteralWriter;
use crate::device::{Device, share_bytes};
use crate::error::Error;
use crate::monitor::Monitor;
use crate::outlet::is_standard;
use crate::patch::{Opened, PatchOptions, open_delta_telling};
use crate::save::{DeltaFile, Rest, SaveError, identify, keep, threads};
use crate::target::{State, Survey, Verify, survey};
use crate::traces::has_traces;
use crate::units::{BLOCK, Extent, blocks_in, human};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The undo delta must not lie on what it is to restore.
pub(crate) fn refuse_target(file: &Path, target: &Path) -> Result<(), Error> {
    let refuse = |why| Err(Error::Unusable { path: file.to_owned(), why });
    if is_standard(file) {
        return refuse("cannot go to standard output: it must be durable before the first write");
    }
    if share_bytes(file, target) {
        return refuse("lies on the target itself, or would: give it a place on another disk");
    }
    match std::fs::metadata(file) {
        Ok(meta) if !meta.is_file() => refuse("is not a file: give it a name that is free"),
        _ => Ok(()),
    }
}

/// A patch that is about to begin, and is to be undone some day.
pub(crate) struct Undo<'a> {
    pub opened: &'a Opened,
    /// For messages.
    pub delta_path: &'a Path,
    pub device: &'a dyn Device,
    pub survey: &'a Survey,
    /// The length that the target gets while it is patched, if that can change.
    pub working: Option<u64>,
    pub options: &'a PatchOptions,
    pub file: &'a Path,
    pub stop: &'a AtomicBool,
    pub monitor: &'a dyn Monitor,
}

impl Undo<'_> {
    /// Makes sure that the undo delta is there, and durable, before the first write.
    pub fn prepare(&self) -> Result<(), Error> {
        let new_len = self.opened.delta.header.new.len;
        if self.survey.state == State::New && self.working.is_none_or(|_| self.device.len() == new_len) {
            self.monitor
                .note(&format!("nothing is overwritten: {} is not needed, and not written", self.file.display()));
            return Ok(());
        }
        let begun = self.has_begun()?;
        if std::fs::symlink_metadata(self.file).is_ok() {
            return self.look_at_existing(begun);
        }
        if begun {
            return self.refuse(
                "cannot be made any more: an interrupted run has overwritten some of what it should hold. Run the \
                 command without '--undo' to finish, or name the undo delta that the interrupted run made",
            );
        }
        if self.working.is_some_and(|working| working > self.device.len().max(new_len)) {
            return self.refuse(
                "cannot be made: the target is a file that has neither the length of the old nor of the new image. \
                 Give it the old image's length first, or leave out '--undo'",
            );
        }
        if self.options.dry_run {
            return Ok(());
        }
        self.make()
    }

    fn refuse(&self, why: &'static str) -> Result<(), Error> {
        Err(Error::Unusable { path: self.file.to_owned(), why })
    }

    /// Whether an interrupted run has written something, as far as it can be told: zeros that serve as scratch are there
    /// from the start, and blocks of which no one is complete look like what a mount has changed.
    fn has_begun(&self) -> Result<bool, Error> {
        let Opened { delta, .. } = self.opened;
        let table = &delta.table;
        match self.survey.state {
            State::New => return Ok(true),
            State::Old | State::Neither(_) => return Ok(false),
            State::Convertible { .. } => {}
        }
        // Where the old image is not known, batches may write what is there anyway; then only saves tell.
        let known = delta.route.old.is_some();
        let mut scratch = BlockSet::new();
        let saves = table.batches().iter().filter(|batch| batch.kind == BatchKind::Save);
        saves.flat_map(|batch| table.extents(batch)).for_each(|extent| scratch.insert(*extent));
        let mut done = table.batches().iter().zip(&self.survey.redo).filter(|(_, redo)| !**redo);
        let shows = done.any(|(batch, _)| {
            let mut runs = table.extents(batch).iter().flat_map(|extent| scratch.runs_in(*extent));
            let changed = batch.kind != BatchKind::Zero || runs.any(|(_, is_scratch)| !is_scratch);
            changed && (known || batch.kind == BatchKind::Save)
        });
        if shows || !known {
            return Ok(shows);
        }
        has_traces(self.device, self.opened, self.stop).map_err(|e| match e {
            WalkError::Stop => Error::Interrupted,
            WalkError::Device(e) => e.into(),
            e => Error::Unreliable { name: self.device.name(), why: e.to_string() },
        })
    }

    /// The longer of the delta's images.
    fn longest(&self) -> u64 {
        let delta = &self.opened.delta;
        delta.header.new.len.max(delta.route.old.map_or(0, |old| old.len))
    }

    /// The length of the image before: of a file that can change its length its own; of any other target that of the
    /// longer image, so that all that is overwritten lies in it.
    fn before_len(&self) -> u64 {
        if self.working.is_some() { self.device.len() } else { self.longest() }
    }

    /// A file that is there already is kept if it is an undo delta of this patch and this target. Else it stays as it is,
    /// too: nothing is overwritten silently.
    fn look_at_existing(&self, begun: bool) -> Result<(), Error> {
        let other =
            "exists, and is not the undo delta of this patch on this target: give another name, or move it away";
        let undo = match open_delta_telling(self.file, self.options.memory_limit, self.stop, self.monitor) {
            Ok(undo) => undo,
            Err(e @ (Error::Interrupted | Error::Delta { source: DeltaError::Memory { .. }, .. })) => return Err(e),
            Err(_) => return self.refuse(other),
        };
        if !self.fits(&undo) {
            return self.refuse(other);
        }
        let state = survey(self.device, &undo.delta, &undo.order, Verify::Full, self.stop, self.monitor)
            .map_err(|e| e.untouched(self.file))?
            .state;
        match (&state, begun) {
            (State::Neither(_), _) => self.refuse(other),
            // Nothing was overwritten yet, and it would bring back something else.
            (State::Old | State::Convertible { .. }, false) => self.refuse(
                "exists, and would bring back something else than this target holds: give another name. (If a run that \
                 made it was interrupted, leave out '--undo' to finish; the file still goes back)",
            ),
            _ => {
                let (file, id) = (self.file.display(), undo.delta.header.new);
                let hex = crate::digest::hex(&id.blake3);
                self.monitor.note(&format!("{file} is kept: it goes back to the image with BLAKE3 {hex}"));
                Ok(())
            }
        }
    }

    /// Whether a delta goes back from the new image, reads nothing, and holds all that this patch overwrites.
    fn fits(&self, undo: &Opened) -> bool {
        let Opened { delta, order } = self.opened;
        let len = undo.delta.header.new.len;
        let lens_fit = if self.working.is_some() { len <= self.longest() } else { len == self.longest() };
        let reads_nothing = undo.order.source_blocks == 0 && undo.delta.route.counts.scratch_blocks == 0;
        let end = Extent { start: 0, count: blocks_in(len) };
        let mut written = order.touched.extents().map(|extent| extent.intersect(&end));
        undo.delta.route.old == Some(delta.header.new)
            && lens_fit
            && reads_nothing
            && written.all(|extent| undo.order.touched.runs_in(extent).all(|(_, kept)| kept))
    }

    /// The blocks that the undo delta writes: what the patch overwrites of the image before, and what it cuts off.
    fn blocks(&self, before_len: u64) -> BlockSet {
        let new_len = self.opened.delta.header.new.len;
        let all = Extent { start: 0, count: blocks_in(before_len) };
        let mut blocks = BlockSet::new();
        self.opened.order.touched.extents().for_each(|extent| blocks.insert(extent.intersect(&all)));
        if before_len > new_len {
            let start = new_len / BLOCK;
            blocks.insert(Extent { start, count: all.count - start });
        }
        // A file that only grows: one block more, or nothing would tell that it was patched, and may be cut again.
        if blocks.is_empty() && before_len > 0 {
            blocks.insert(Extent { start: all.count - 1, count: 1 });
        }
        blocks
    }

    fn make(&self) -> Result<(), Error> {
        let (delta, stop, monitor) = (&self.opened.delta, self.stop, self.monitor);
        let before_len = self.before_len();
        let blocks = self.blocks(before_len);
        let output = DeltaFile::create(self.file)?;
        let rest_len = before_len.min(delta.header.new.len);
        let (before, rest) = match self.known(before_len, rest_len, &blocks) {
            Some(known) => known,
            None => identify(self.device, before_len, rest_len, &blocks, stop, monitor)
                .map_err(|e| e.untouched(self.delta_path))?,
        };
        let nothing = BlockSet::new();
        let mut writer = LiteralWriter::new(&nothing, output.folder(), threads());
        keep(self.device, &blocks, before_len, &mut writer, stop, monitor).map_err(|e| match e {
            SaveError::Survey(e) => e.untouched(self.delta_path),
            SaveError::Write(e) => DeltaFile::failed(self.file, e),
        })?;
        let len = output.finish(writer, delta.header.new, before, rest)?;
        let (file, target) = (self.file.display(), self.device.name());
        if self.survey.state != State::Old && delta.route.old.is_some() {
            let hex = crate::digest::hex(&before.blake3);
            monitor.note(&format!(
                "what {target} holds is not exactly the old image (it was mounted, or a run without '--undo' began): \
                 {file} goes back to just that, BLAKE3 {hex}"
            ));
        }
        let size = human(len);
        monitor.note(&format!("{file} ({size}) keeps what is overwritten: 'blkpatch patch {file} {target}' goes back"));
        Ok(())
    }

    /// The digests of the image before and of the rest, where the survey has just found them right.
    fn known(&self, before_len: u64, rest_len: u64, blocks: &BlockSet) -> Option<(crate::digest::ImageId, Rest)> {
        let route = &self.opened.delta.route;
        let old = route.old.filter(|old| self.survey.state == State::Old && old.len == before_len)?;
        let prefix = Extent { start: 0, count: blocks_in(rest_len) };
        let within = |set: &BlockSet| -> Vec<Extent> {
            set.extents().map(|extent| extent.intersect(&prefix)).filter(|extent| extent.count > 0).collect()
        };
        let same = rest_len == route.untouched_len && within(blocks) == within(&self.opened.order.touched);
        same.then(|| (old, Rest::of(route)))
    }
}
