//! What the program says on the terminal. Data goes to standard output, everything else to standard error.

use crate::json;
use crate::terminal::Terminal;
use blkpatch::diff::DiffReport;
use blkpatch::error::{Error, exit};
use blkpatch::export::ExportReport;
use blkpatch::info::{ImageInfo, Info};
use blkpatch::monitor::Monitor;
use blkpatch::outlet::output_name;
use blkpatch::patch::{PatchReport, describe};
use blkpatch::sign::SignReport;
use blkpatch::slot::{Outcome, SlotReport};
use blkpatch::sync::SyncReport;
use blkpatch::target::{State, Verify};
use blkpatch::units::{BLOCK, human};
use blkpatch::verify::exit_code;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

/// Writes a line to standard error. That nobody listens is no reason to stop what is being done to a disk.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes data to standard output; a reader that has gone away has seen enough.
///
/// # Errors
/// Where it cannot be written, as on a full disk: who asked for it does not have it.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}

/// What `diff` did.
pub fn diff(terminal: &Terminal, output: &Path, done: &DiffReport) -> Result<(), Error> {
    if let Some(alone) = done.alone_len.filter(|alone| done.delta_len >= *alone) {
        terminal.note(&format!(
            "the new image compressed on its own would take {alone} bytes: these images have little in common, and \
             shipping the whole image is no larger"
        ));
    }
    let text = format!(
        "{}: {} bytes; {} of {} blocks change ({} of {})",
        output_name(output).display(),
        done.delta_len,
        done.changed_blocks,
        done.new.len.div_ceil(BLOCK),
        human(done.changed_blocks * BLOCK),
        human(done.new.len)
    );
    terminal.result(exit::DONE, json::Diff::of(output, done), &text)
}

/// What `sign` did.
pub fn sign(terminal: &Terminal, output: &Path, done: &SignReport) -> Result<(), Error> {
    let len = human(done.image.len);
    let text = format!("{}: {} bytes, of an image of {len}", output_name(output).display(), done.signature_len);
    terminal.result(exit::DONE, json::Sign::of(output, done), &text)
}

/// What `patch` did.
pub fn patch(
    terminal: &Terminal,
    target: &Path,
    done: &PatchReport,
    dry_run: bool,
    verify: Verify,
) -> Result<(), Error> {
    let name = target.display();
    let text = match (&done.before, dry_run) {
        (State::New, true) => format!("{name} already holds the new image: nothing would be written"),
        (State::New, false) if done.patched => format!("{name} held the new image, only its length was put right"),
        (State::New, false) => format!("{name} already holds the new image: nothing was written"),
        (_, true) => format!(
            "{name} can be patched: up to {} blocks ({}) would be written",
            done.planned_blocks,
            human(done.planned_blocks * BLOCK)
        ),
        (_, false) => format!(
            "{name} now holds the new image, {}: {} blocks, {} bytes written ({} to scratch) \
             in {} batches and {} syncs, {:.1} s",
            match verify {
                Verify::Touched => "what was written checked by reading it back (nothing else was looked at)",
                Verify::Full | Verify::All => "checked by reading it back",
            },
            done.walked.written.div_ceil(BLOCK),
            done.walked.written,
            done.walked.scratch,
            done.walked.batches,
            done.walked.syncs,
            done.elapsed.as_secs_f64()
        ),
    };
    terminal.result(exit::DONE, json::Patch::of(target, done, dry_run), &text)
}

/// What `export` did.
pub fn export(terminal: &Terminal, output: &Path, done: &ExportReport) -> Result<(), Error> {
    let what = match &done.backing {
        Some(backing) => format!("an overlay on {}", backing.display()),
        None => "a qcow2 image without a backing file, as OLD is compressed,".to_owned(),
    };
    let text = format!(
        "{}: {} bytes, {what} that shows the new image ({}), checked by reading it back, {:.1} s",
        output.display(),
        done.overlay_len,
        human(done.new.len),
        done.elapsed.as_secs_f64()
    );
    terminal.result(exit::DONE, json::Export::of(output, done), &text)
}

/// What `sync` did.
pub fn sync(terminal: &Terminal, path: &Path, done: &SyncReport, dry_run: bool) -> Result<(), Error> {
    let target = path.display();
    let (compared, blocks, bytes) = (done.compared, done.differing.div_ceil(BLOCK), done.differing);
    let length = match (done.resized_from, dry_run) {
        (None, _) => String::new(),
        (Some(len), true) => format!(", its length would be set from {len} to {compared} bytes"),
        (Some(len), false) => format!(", its length was set from {len} to {compared} bytes"),
    };
    let all = format!("{compared} bytes compared");
    let time = format!("{:.1} s", done.elapsed.as_secs_f64());
    let text = match (bytes, dry_run) {
        (0, _) if done.resized_from.is_some() => format!("{target} differs only in its length: {all}{length}"),
        (0, true) => format!("{target} already holds the image: {all}, nothing would be written"),
        (0, false) => format!("{target} already holds the image: {all}, nothing was written, {time}"),
        (_, true) => format!("{target} differs: {all}, {blocks} blocks, {bytes} bytes would be written{length}"),
        (_, false) => format!(
            "{target} now holds the image, checked by reading it back: {all}, {blocks} blocks, {bytes} bytes \
             written{length}, {time}"
        ),
    };
    terminal.result(exit::DONE, json::Sync::of(path, done, dry_run), &text)
}

/// What `patch --old` did.
pub fn slot(terminal: &Terminal, target: &Path, old: &Path, done: &SlotReport) -> Result<(), Error> {
    let name = target.display();
    let text = match done.outcome {
        Outcome::UpToDate => format!("{name} already holds the new image: nothing was written"),
        Outcome::Possible { most } => format!(
            "{name} can be made the new image: up to {} blocks ({}) would be written",
            most.div_ceil(BLOCK),
            human(most)
        ),
        Outcome::Built { written } => format!(
            "{name} now holds the new image, checked by reading it back: {} blocks, {written} bytes written, {:.1} s",
            written.div_ceil(BLOCK),
            done.elapsed.as_secs_f64()
        ),
    };
    terminal.result(exit::DONE, json::Slot::of(target, old, done), &text)
}

/// What `verify` found: one word on standard output, the explanation on standard error.
pub fn state(terminal: &Terminal, path: &Path, state: &State, verify: Verify) -> Result<(), Error> {
    let target = path.display();
    let text = match state {
        State::New => format!("{target} holds the new image"),
        State::Old => format!("{target} holds the old image"),
        State::Convertible { done: 0 } if verify == Verify::Touched => {
            format!("{target} can be patched: all that the delta reads is as it should be (nothing else was looked at)")
        }
        State::Convertible { done: 0 } => {
            format!("{target} can be patched: what differs from the old image is overwritten anyway")
        }
        State::Convertible { done } => {
            format!("{target} is between the old and the new image ({done} batches done): run 'patch' to finish")
        }
        State::Neither(mismatch) => {
            let (place, hint) = describe(mismatch);
            format!("{target}: {place}.\n{hint}")
        }
    };
    if !terminal.json() {
        terminal.print(&format!("{}\n", json::word(state)))?;
    }
    terminal.result(exit_code(state), json::Verified::of(path, state), &text)
}

/// What a delta is.
pub fn info(terminal: &Terminal, info: &Info) -> Result<(), Error> {
    if terminal.json() {
        return terminal.result(exit::DONE, info, "");
    }
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = describe_info(info, &mut text);
    terminal.print(&text)
}

fn describe_info(info: &Info, out: &mut String) -> std::fmt::Result {
    writeln!(out, "delta, format version {}: {} bytes", info.format_version, info.delta_bytes)?;
    if let Some(label) = &info.label {
        writeln!(out, "label    {label}")?;
    }
    match &info.old {
        Some(old) => describe_image("old", old, out)?,
        None => writeln!(out, "old  unknown (made from a signature)")?,
    }
    describe_image("new", &info.new, out)?;
    let blocks = info.changed_blocks + info.scratch_blocks;
    writeln!(out, "writes   {blocks} blocks ({} bytes in all)", info.written_bytes)?;
    writeln!(out, "         {} of them to scratch, in {} saves", info.scratch_blocks, info.saves)?;
    writeln!(out, "order    {} batches, {} barriers", info.batches, info.barriers)?;
    writeln!(out, "reads    {} bytes of sources", info.source_bytes)?;
    writeln!(out, "memory   {} at the most", human(info.memory_bytes))?;
    for step in info.steps.iter().filter(|step| step.count > 0) {
        writeln!(out, "steps    {:12} {:>10} make {:>14} bytes", step.kind, step.count, step.bytes)?;
    }
    for s in &info.sections {
        writeln!(out, "section  {:16} {:>12} bytes, {:>12} raw", s.name, s.stored_bytes, s.raw_bytes)?;
    }
    Ok(())
}

fn describe_image(name: &str, image: &ImageInfo, out: &mut String) -> std::fmt::Result {
    writeln!(out, "{name}  {} bytes ({})", image.bytes, human(image.bytes))?;
    writeln!(out, "     CRC-32 {}", image.crc32)?;
    writeln!(out, "     BLAKE3 {}", image.blake3)
}
