//! blkpatch: parse, run, exit code.

mod allocator;
mod ask;
mod bug;
mod cli;
mod json;
mod progress;
mod report;
mod terminal;

use blkpatch::diff::{DiffOptions, diff, diff_signature};
use blkpatch::error::{Error, exit};
use blkpatch::export::{ExportOptions, export};
use blkpatch::info::info;
use blkpatch::patch::{PatchOptions, patch};
use blkpatch::sign::sign;
use blkpatch::signature::Shape;
use blkpatch::slot::{SlotOptions, patch_slot};
use blkpatch::sync::{SyncOptions, sync};
use blkpatch::target::Verify;
use blkpatch::verify::{exit_code, verify};
use clap::Parser;
use cli::{Cli, DiffFrom, PatchArgs, Verb, VerifyArg};
use json::Failure;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use terminal::Terminal;

fn main() -> ExitCode {
    allocator::return_freed_memory();
    bug::watch();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => e.exit(), // wrong usage: 2
        Err(help) => return show(&help),
    };
    let writes = matches!(cli.verb, Verb::Patch(_) | Verb::Sync(_));
    if let Some(e) = cli.two_outputs() {
        e.exit();
    }
    let terminal = Arc::new(Terminal::new(&cli));
    let writing = terminal.writing_flag();
    let bug = |what| Err(Error::Bug { what, written: writing.load(Ordering::SeqCst) });
    match bug::caught(|| run(cli, &terminal)).unwrap_or_else(bug) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            // What concerns other files than the target is found before that is written.
            let other = writes && matches!(e, Error::Io { .. } | Error::Unusable { .. } | Error::Qcow2 { .. });
            let message = format!("{e}{}", if other { "\nNothing was written." } else { "" });
            terminal.failure(e.exit_code(), &Failure::of(&e, message));
            ExitCode::from(e.exit_code())
        }
    }
}

/// Help, or the version, which go to standard output.
fn show(help: &clap::Error) -> ExitCode {
    match help.print().and_then(|()| std::io::stdout().flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            report::complain(&format!("blkpatch: {}", Error::Unsaid { source, written: false }));
            ExitCode::from(exit::REFUSED)
        }
        _ => ExitCode::SUCCESS,
    }
}

fn run(cli: Cli, terminal: &Arc<Terminal>) -> Result<u8, Error> {
    let monitor: &Terminal = terminal;
    match cli.verb {
        Verb::Diff(args) => {
            let mut options = DiffOptions { level: args.level, memory: args.memory, ..DiffOptions::default() };
            options.label = args.label.clone();
            options.threads = args.threads.map_or(options.threads, |n| n as usize);
            options.formats = args.formats();
            let (from, new) = args.inputs().unwrap_or_else(|e| e.exit());
            let done = match from {
                DiffFrom::Image(old) => diff(old, new, &args.output, &options, monitor),
                DiffFrom::Signature(signature) => diff_signature(signature, new, &args.output, &options, monitor),
            };
            let done = terminal.after(done)?;
            report::diff(terminal, &args.output, &done)?;
            Ok(exit::DONE)
        }
        Verb::Sign(args) => {
            let shape = Shape { block_len: args.block, strong_len: args.strong };
            let threads = DiffOptions::default().threads;
            let done = sign(&args.image, &args.output, shape, args.format.format(), threads, monitor);
            let done = terminal.after(done)?;
            report::sign(terminal, &args.output, &done)?;
            Ok(exit::DONE)
        }
        Verb::Patch(args) => {
            match &args.old {
                Some(old) => run_slot(&args, old, terminal)?,
                None => run_patch(&args, terminal)?,
            }
            Ok(exit::DONE)
        }
        Verb::Sync(args) => {
            let stop = stop_on_signal(terminal, SYNC_STOPPED);
            let (undo, save_delta) = (args.undo, args.save_delta);
            let options = SyncOptions { dry_run: args.dry_run, format: args.format.format(), undo, save_delta };
            let done = terminal.after(sync(&args.image, &args.target, &options, &stop, monitor))?;
            report::sync(terminal, &args.target, &done, options.dry_run)?;
            Ok(exit::DONE)
        }
        Verb::Export(args) => {
            let options = ExportOptions { format: args.format.format(), memory_limit: args.memory_limit };
            let done = terminal.after(export(&args.delta, &args.old, &args.output, &options, monitor))?;
            report::export(terminal, &args.output, &done)?;
            Ok(exit::DONE)
        }
        Verb::Verify(args) => {
            let how = verify_mode(args.verify);
            let state = terminal.after(verify(&args.delta, &args.target, how, args.memory_limit, monitor))?;
            report::state(terminal, &args.target, &state, how)?;
            Ok(exit_code(&state))
        }
        Verb::Info(args) => {
            report::info(terminal, &terminal.after(info(&args.delta, monitor))?)?;
            Ok(exit::DONE)
        }
    }
}

fn run_patch(args: &PatchArgs, terminal: &Arc<Terminal>) -> Result<(), Error> {
    let stop = stop_on_signal(terminal, PATCH_STOPPED);
    let (verify, dry_run) = (verify_mode(args.verify), args.dry_run);
    let options = PatchOptions { verify, dry_run, memory_limit: args.memory_limit, undo: args.undo.clone() };
    let done = terminal.after(patch(&args.delta, &args.target, &options, &stop, &**terminal))?;
    report::patch(terminal, &args.target, &done, dry_run, verify)?;
    Ok(())
}

fn run_slot(args: &PatchArgs, old: &Path, terminal: &Arc<Terminal>) -> Result<(), Error> {
    let stop = stop_on_signal(terminal, SLOT_STOPPED);
    let options = SlotOptions { dry_run: args.dry_run, memory_limit: args.memory_limit };
    let done = terminal.after(patch_slot(&args.delta, old, &args.target, &options, &stop, &**terminal))?;
    report::slot(terminal, &args.target, old, &done)?;
    Ok(())
}

fn verify_mode(arg: VerifyArg) -> Verify {
    match arg {
        VerifyArg::All => Verify::All,
        VerifyArg::Full => Verify::Full,
        VerifyArg::Touched => Verify::Touched,
    }
}

/// What to say when a second signal ends `patch` after writing began.
const PATCH_STOPPED: &str = "The target is between the old and the new image. Run the same command again, with this same \
                             delta file, to finish";
/// The same for `patch --old`.
const SLOT_STOPPED: &str =
    "The target holds only a part of the new image; OLD is as it was. Run the same command again to finish";
/// The same for `sync`.
const SYNC_STOPPED: &str =
    "The target holds neither what it held before nor the image. Run the same command again to finish";

/// SIGINT and SIGTERM stop at the next safe point; a second one ends the program at once, and says `unfinished` if
/// anything was written.
fn stop_on_signal(terminal: &Arc<Terminal>, unfinished: &'static str) -> Arc<AtomicBool> {
    let (writing, stop) = (terminal.writing_flag(), terminal.stop_flag());
    let (asked, terminal) = (Arc::clone(&stop), Arc::clone(terminal));
    // Where handlers or a thread cannot be had, a signal ends the program at once, which is safe as well.
    if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) {
        let _ = std::thread::Builder::new().spawn(move || {
            for _ in signals.forever() {
                if asked.swap(true, Ordering::SeqCst) {
                    let begun = writing.load(Ordering::SeqCst);
                    let state = if begun { unfinished } else { "Nothing was written." };
                    let code = if begun { exit::STOPPED } else { exit::REFUSED };
                    terminal.failure(code, &Failure::at_once(format!("stopped at once.\n{state}"), begun));
                    std::process::exit(code.into());
                }
            }
        });
    }
    stop
}
