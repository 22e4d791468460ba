//! What `--json` prints: one object, described by spec/cli.schema.json and spec/cli.md.

use blkpatch::diff::DiffReport;
use blkpatch::error::Error;
use blkpatch::export::ExportReport;
use blkpatch::info::ImageInfo;
use blkpatch::outlet::output_name;
use blkpatch::patch::{PatchReport, describe};
use blkpatch::sign::SignReport;
use blkpatch::slot::{Outcome, SlotReport};
use blkpatch::sync::SyncReport;
use blkpatch::target::State;
use serde::Serialize;
use std::path::Path;

/// The schema's version: a larger one takes something away or changes what it means; additions keep it.
const SCHEMA: u32 = 1;

/// What every object has, and what the verb adds.
#[derive(Debug, Serialize)]
struct Document<'a, T> {
    schema: u32,
    verb: &'a str,
    exit_code: u8,
    notes: &'a [String],
    #[serde(flatten)]
    rest: T,
}

/// The whole text of a document.
pub fn document(verb: &str, exit_code: u8, notes: &[String], rest: impl Serialize) -> String {
    let document = Document { schema: SCHEMA, verb, exit_code, notes, rest };
    // It holds nothing that cannot be written as JSON.
    serde_json::to_string_pretty(&document).map_or_else(|e| format!("{{\"error\": \"{e}\"}}\n"), |text| text + "\n")
}

/// What a failed run adds.
#[derive(Debug, Serialize)]
pub struct Failure {
    error: ErrorInfo,
}

#[derive(Debug, Serialize)]
struct ErrorInfo {
    code: &'static str,
    message: String,
    target_written: bool,
}

impl Failure {
    /// For people.
    pub fn message(&self) -> &str {
        &self.error.message
    }

    /// Without its name.
    pub fn error(&self) -> &impl Serialize {
        &self.error
    }

    /// Of an error.
    pub fn of(error: &Error, message: String) -> Self {
        Self { error: ErrorInfo { code: error.code(), message, target_written: error.target_written() } }
    }

    /// Of a run that a second signal ended.
    pub fn at_once(message: String, target_written: bool) -> Self {
        let code = if target_written { "stopped" } else { "interrupted" };
        Self { error: ErrorInfo { code, message, target_written } }
    }
}

/// What `diff` adds.
#[derive(Debug, Serialize)]
pub struct Diff {
    delta: String,
    delta_bytes: u64,
    old: Option<ImageInfo>,
    new: ImageInfo,
    changed_blocks: u64,
    new_alone_bytes: Option<u64>,
}

impl Diff {
    /// Of its report.
    pub fn of(output: &Path, done: &DiffReport) -> Self {
        Self {
            delta: output_name(output).display().to_string(),
            delta_bytes: done.delta_len,
            old: done.old.map(ImageInfo::from),
            new: done.new.into(),
            changed_blocks: done.changed_blocks,
            new_alone_bytes: done.alone_len,
        }
    }
}

/// What `sign` adds.
#[derive(Debug, Serialize)]
pub struct Sign {
    signature: String,
    signature_bytes: u64,
    image: ImageInfo,
}

impl Sign {
    /// Of its report.
    pub fn of(output: &Path, done: &SignReport) -> Self {
        let signature = output_name(output).display().to_string();
        Self { signature, signature_bytes: done.signature_len, image: done.image.into() }
    }
}

/// What `export` adds.
#[derive(Debug, Serialize)]
pub struct Export {
    overlay: String,
    overlay_bytes: u64,
    backing: Option<String>,
    new: ImageInfo,
    seconds: f64,
}

impl Export {
    /// Of its report.
    pub fn of(output: &Path, done: &ExportReport) -> Self {
        Self {
            overlay: output.display().to_string(),
            overlay_bytes: done.overlay_len,
            backing: done.backing.as_ref().map(|backing| backing.display().to_string()),
            new: done.new.into(),
            seconds: done.elapsed.as_secs_f64(),
        }
    }
}

/// What `patch` adds.
#[derive(Debug, Serialize)]
pub struct Patch {
    target: String,
    dry_run: bool,
    state_before: &'static str,
    target_written: bool,
    planned_blocks: u64,
    written_bytes: u64,
    scratch_bytes: u64,
    batches: u64,
    syncs: u64,
    seconds: f64,
}

impl Patch {
    /// Of its report.
    pub fn of(target: &Path, done: &PatchReport, dry_run: bool) -> Self {
        Self {
            target: target.display().to_string(),
            dry_run,
            state_before: word(&done.before),
            target_written: done.patched,
            planned_blocks: if done.before == State::New { 0 } else { done.planned_blocks },
            written_bytes: done.walked.written,
            scratch_bytes: done.walked.scratch,
            batches: done.walked.batches,
            syncs: done.walked.syncs,
            seconds: done.elapsed.as_secs_f64(),
        }
    }
}

/// What `patch --old` adds.
#[derive(Debug, Serialize)]
pub struct Slot {
    target: String,
    old: String,
    dry_run: bool,
    outcome: &'static str,
    target_written: bool,
    written_bytes: u64,
    seconds: f64,
}

impl Slot {
    /// Of its report.
    pub fn of(target: &Path, old: &Path, done: &SlotReport) -> Self {
        let (outcome, written_bytes) = match done.outcome {
            Outcome::Built { written } => ("built", written),
            Outcome::UpToDate => ("up-to-date", 0),
            Outcome::Possible { .. } => ("possible", 0),
        };
        Self {
            target: target.display().to_string(),
            old: old.display().to_string(),
            dry_run: outcome == "possible",
            outcome,
            target_written: outcome == "built",
            written_bytes,
            seconds: done.elapsed.as_secs_f64(),
        }
    }
}

/// What `sync` adds.
#[derive(Debug, Serialize)]
pub struct Sync {
    target: String,
    dry_run: bool,
    target_written: bool,
    image_bytes: u64,
    differing_bytes: u64,
    written_bytes: u64,
    resized_from: Option<u64>,
    seconds: f64,
}

impl Sync {
    /// Of its report.
    pub fn of(target: &Path, done: &SyncReport, dry_run: bool) -> Self {
        Self {
            target: target.display().to_string(),
            dry_run,
            target_written: !dry_run && (done.differing > 0 || done.resized_from.is_some()),
            image_bytes: done.compared,
            differing_bytes: done.differing,
            written_bytes: if dry_run { 0 } else { done.differing },
            resized_from: done.resized_from,
            seconds: done.elapsed.as_secs_f64(),
        }
    }
}

/// What `verify` adds.
#[derive(Debug, Serialize)]
pub struct Verified {
    target: String,
    state: &'static str,
    batches_done: Option<u64>,
    place: Option<String>,
    hint: Option<String>,
}

impl Verified {
    /// Of what it found.
    pub fn of(target: &Path, state: &State) -> Self {
        let batches_done = if let State::Convertible { done } = state { Some(*done) } else { None };
        let (place, hint) = if let State::Neither(mismatch) = state { Some(describe(mismatch)) } else { None }.unzip();
        Self { target: target.display().to_string(), state: word(state), batches_done, place, hint }
    }
}

/// A state in one word, as `verify` prints it.
pub fn word(state: &State) -> &'static str {
    match state {
        State::New => "new",
        State::Old => "old",
        State::Convertible { .. } => "convertible",
        State::Neither(_) => "neither",
    }
}
