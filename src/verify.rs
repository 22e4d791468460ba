//! `verify`: which image a target holds.

use crate::device::{Access, open_target};
use crate::error::{Error, exit};
use crate::misplaced::refuse_misplaced;
use crate::monitor::Monitor;
use crate::patch::{check_size, open_delta_telling};
use crate::target::{State, Verify, survey};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Says what a target holds, with regard to a delta. Writes nothing.
///
/// # Errors
/// Where the delta is refused or the target cannot be read.
pub fn verify(
    delta: &Path,
    target: &Path,
    how: Verify,
    memory_limit: u64,
    monitor: &dyn Monitor,
) -> Result<State, Error> {
    let never = AtomicBool::new(false); // a signal ends this verb at once
    let opened = open_delta_telling(delta, memory_limit, &never, monitor)?;
    let device = open_target(target, Access::Read)?;
    check_size(&*device, &opened.delta)?;
    let survey = survey(&*device, &opened.delta, &opened.order, how, &never, monitor);
    let state = survey.map_err(|e| e.untouched(delta))?.state;
    if matches!(state, State::Neither(_))
        && let Err(Error::Misplaced { why, .. }) = refuse_misplaced(&*device, &opened.delta, &opened.order.touched)
    {
        monitor.note(&why);
    }
    Ok(state)
}

/// The exit code that tells a state.
#[must_use]
pub fn exit_code(state: &State) -> u8 {
    match state {
        State::New => exit::DONE,
        State::Old => exit::OLD,
        State::Convertible { .. } => exit::CONVERTIBLE,
        State::Neither(_) => exit::NEITHER,
    }
}
