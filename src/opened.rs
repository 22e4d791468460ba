//! Opens a delta, from a file or from standard input, and checks all of it.

use crate::delta::check::{CheckedOrder, check_order};
use crate::delta::{Delta, DeltaError};
use crate::error::Error;
use crate::monitor::{Monitor, Silent};
use crate::outlet::{input_name, is_standard};
use crate::patient::Patient;
use crate::spool::{Spooled, spool};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A delta whose order keeps the rules.
#[derive(Debug)]
pub struct Opened {
    /// The delta.
    pub delta: Delta,
    /// What its order implies.
    pub order: CheckedOrder,
}

/// Opens a delta, `-` from standard input, and checks all of it.
///
/// # Errors
/// [`Error::Delta`], or a file that cannot be read.
pub fn open_delta(path: &Path, memory_limit: u64) -> Result<Opened, Error> {
    open_delta_telling(path, memory_limit, &AtomicBool::new(false), &Silent)
}

/// The same, unless `stop` comes; `monitor` learns where a delta from standard input is kept.
pub(crate) fn open_delta_telling(
    path: &Path,
    memory_limit: u64,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Opened, Error> {
    read_delta(path, memory_limit, stop, monitor).map_err(|e| unless_stopped(e, stop))
}

/// Whatever failed when `stop` came, it was that wish.
pub(crate) fn unless_stopped(e: Error, stop: &AtomicBool) -> Error {
    if stop.load(Ordering::Relaxed) { Error::Interrupted } else { e }
}

fn read_delta(path: &Path, memory_limit: u64, stop: &AtomicBool, monitor: &dyn Monitor) -> Result<Opened, Error> {
    let delta = read_all_but_order(path, memory_limit, stop, monitor)?;
    let order = check_order(&delta).map_err(|e| refused(path, e))?;
    Ok(Opened { delta, order })
}

/// The refusal of a delta.
pub(crate) fn refused(path: &Path, source: DeltaError) -> Error {
    Error::Delta { path: input_name(path).to_owned(), source }
}

/// Opens a delta, and checks all of it but whether its order keeps the rules.
pub(crate) fn read_all_but_order(
    path: &Path,
    memory_limit: u64,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<Delta, Error> {
    monitor.phase(if is_standard(path) { "reading the delta" } else { "checking the delta" }, 0);
    let file = if is_standard(path) {
        let Spooled { file, len, folder } = spool(standard_input(stop)?, input_name(path))?;
        let folder = folder.display();
        monitor.note(&format!("the delta, {len} bytes, is kept in {folder} until this program ends"));
        monitor.phase("checking the delta", 0);
        file
    } else {
        crate::image::storage_kind(path)?;
        File::open(path).map_err(Error::io("open", path))?
    };
    Delta::open_until(Arc::new(file), memory_limit, stop).map_err(|e| refused(path, e))
}

/// Standard input; a read that waits ends when `stop` comes.
fn standard_input(stop: &AtomicBool) -> Result<impl Read, Error> {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let file = File::from(input.map_err(Error::io("open", input_name(Path::new("-"))))?);
    Ok(Patient { file, is_over: || stop.load(Ordering::Relaxed) })
}
