//! What can go wrong, said so that a person knows what happened, where, whether anything was written, and what to do.

use crate::delta::DeltaError;
use crate::delta::writer::WriteError;
use crate::device::{DeviceError, OpenError};
use crate::qcow2::Qcow2Error;
use crate::signature::SignatureError;
use crate::units::human;
use std::io;
use std::path::PathBuf;

/// Exit codes of the program (README, 'Exit codes').
pub mod exit {
    /// Done, or already up to date.
    pub const DONE: u8 = 0;
    /// Refused or failed; the target is untouched.
    pub const REFUSED: u8 = 1;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// Stopped after writing began; the same command with the same delta resumes.
    pub const STOPPED: u8 = 3;
    /// The target is damaged; only a full write helps.
    pub const DAMAGED: u8 = 4;
    /// `verify`: the target holds the old image.
    pub const OLD: u8 = 10;
    /// `verify`: neither image, but patching gives the new one.
    pub const CONVERTIBLE: u8 = 11;
    /// `verify`: neither image.
    pub const NEITHER: u8 = 12;
}

/// A failure of a verb.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file other than the target cannot be used.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried: `read`, `create`, …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// An input that holds no image, or an output that would destroy something.
    #[error("{path}: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The delta is refused.
    #[error("cannot use the delta {path}: {source}\nNothing was written.")]
    Delta {
        /// The delta.
        path: PathBuf,
        /// Why.
        #[source]
        source: DeltaError,
    },
    /// The signature is refused.
    #[error("cannot use the signature {path}: {source}")]
    Signature {
        /// The signature.
        path: PathBuf,
        /// Why.
        #[source]
        source: SignatureError,
    },
    /// The qcow2 image is refused.
    #[error("cannot read the qcow2 image {path}: {source}")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Qcow2Error,
    },
    /// The delta could not be made.
    #[error("cannot make the delta: {0}")]
    Write(#[from] WriteError),
    /// The target cannot be opened.
    #[error("{0}\nNothing was written.")]
    Open(#[from] OpenError),
    /// The target has no room for the images.
    #[error(
        "{name} is too small: it has {actual} bytes, the image needs {needed}.\nNothing was written. Check that it is the \
        right one ('lsblk -b' lists devices with their bytes), or use a larger one"
    )]
    TooSmall {
        /// The target.
        name: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        actual: u64,
    },
    /// A partition where a whole disk was meant, or the reverse.
    #[error("{name} is not what this delta was made for: {why}.\nCheck the names with 'lsblk'. Nothing was written.")]
    Misplaced {
        /// The target.
        name: String,
        /// What tells so, and where the image lies.
        why: String,
    },
    /// The user was asked, and does not want it.
    #[error("not done, as you wish.\nNothing was written.")]
    Declined,
    /// The target holds something else.
    #[error("{name} does not hold the image that this delta starts from: {place}.\n{hint}\nNothing was written.")]
    Neither {
        /// The target.
        name: String,
        /// What differs, and where.
        place: String,
        /// Likely cause and what to do.
        hint: String,
    },
    /// The target failed before anything was written.
    #[error("{}.\nNothing was written. {}, then run the same command again", .0, .0.advice())]
    Device(#[from] DeviceError),
    /// What the target returns, or the delta itself, contradicts the checks that came before.
    #[error("{name}: {why}.\nNothing was written. Try again; if it happens again, the medium or the delta is bad")]
    Unreliable {
        /// The target.
        name: String,
        /// What was found.
        why: String,
    },
    /// The user asked to stop before anything was written.
    #[error("interrupted.\nNothing was written. Run the same command again when you like")]
    Interrupted,
    /// Stopped after writing began.
    #[error(
        "{name}: stopped {written}: {why}.\nThe target is between the old and the new image. \
        Run the same command again, with this same delta file, to finish"
    )]
    Stopped {
        /// The target.
        name: String,
        /// How much had been written, for people.
        written: String,
        /// Why.
        why: String,
    },
    /// The image, or what it holds, failed before anything was written.
    #[error("{why}.\nNothing was written. {next}")]
    Image {
        /// What happened, and where.
        why: String,
        /// What to do.
        next: &'static str,
    },
    /// `sync` stopped after writing began.
    #[error("{name}: stopped {written}: {why}.\nThe target holds neither what it held before nor the image. {next}")]
    Unfinished {
        /// The target.
        name: String,
        /// How much had been written, for people.
        written: String,
        /// Why.
        why: String,
        /// What to do.
        next: &'static str,
    },
    /// Building the new image beside the old one stopped after writing began.
    #[error(
        "{name}: stopped {written}: {why}.\nIt holds only a part of the new image; OLD is as it was. \
        Run the same command again to finish"
    )]
    SlotUnfinished {
        /// The target.
        name: String,
        /// How much had been written, for people.
        written: String,
        /// Why.
        why: String,
    },
    /// A new image could not be made as a file.
    #[error("cannot make {path}: {why}.\nNo such file was made; one that was there is as it was.")]
    NotMade {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// `sync` is done, but not what was to be kept of it.
    #[error("{name} holds the image now, checked by reading it back, but no delta was kept: {source}")]
    Unsaved {
        /// The target.
        name: String,
        /// Why.
        source: Box<Error>,
    },
    /// All is done, but what came of it cannot be told.
    #[error("cannot write the result to standard output: {source}.\n{}", told(*written))]
    Unsaid {
        /// The system's error.
        #[source]
        source: io::Error,
        /// Whether this run has written to the target, which then is right.
        written: bool,
    },
    /// A mistake in this program.
    #[error(
        "internal error: {what}.\n{}\nThis is a bug in blkpatch: please report it, with this message and what \
        'blkpatch --version' prints",
        if *written { "The target may be written in part: run the same command again to finish." } else { "Nothing was written." }
    )]
    Bug {
        /// What was found, and where in the program.
        what: String,
        /// Whether the target may have been written.
        written: bool,
    },
    /// The target cannot be made right by this delta any more.
    #[error(
        "{name} is damaged: {why}.\nThis delta cannot repair it: write the full new image, with 'blkpatch sync IMAGE \
        {name}' or dd"
    )]
    Damaged {
        /// The target.
        name: String,
        /// What was found.
        why: String,
        /// Whether this run has written to it.
        written: bool,
    },
}

impl Error {
    /// A file that cannot be used.
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// A failure after `written` bytes were written to the target.
    pub(crate) fn stopped(name: String, written: u64, why: &dyn std::fmt::Display) -> Self {
        Self::Stopped { name, written: so_far(written), why: why.to_string() }
    }

    /// A failure after `written` bytes where the old image lies elsewhere, and is as it was.
    pub(crate) fn slot_unfinished(name: String, written: u64, why: &dyn std::fmt::Display) -> Self {
        Self::SlotUnfinished { name, written: so_far(written), why: why.to_string() }
    }

    /// A failure of `sync` after `written` bytes were written to the target.
    pub(crate) fn unfinished(name: String, written: u64, why: String, next: &'static str) -> Self {
        Self::Unfinished { name, written: so_far(written), why, next }
    }

    /// The program's exit code for this failure.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Stopped { .. } | Self::Unfinished { .. } | Self::SlotUnfinished { .. } | Self::Unsaved { .. } => {
                exit::STOPPED
            }
            Self::Unsaid { written: true, .. } | Self::Bug { written: true, .. } => exit::STOPPED,
            Self::Damaged { .. } => exit::DAMAGED,
            _ => exit::REFUSED,
        }
    }
}

/// What to say where the work is done, and the result cannot be printed.
fn told(written: bool) -> &'static str {
    if written {
        "The target holds what it should, checked by reading it back; the same command, run again, says so"
    } else {
        "No target was written; a file that was made is complete"
    }
}

/// How much had been written, for people.
fn so_far(written: u64) -> String {
    match written {
        0 => "as writing began".into(),
        bytes => format!("after {} had been written", human(bytes)),
    }
}
