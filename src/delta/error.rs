//! Why a delta is refused. All of these are found before the target is written.

use crate::units::Extent;
use std::io;

/// A delta that cannot be used, with the numbers that show why.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The file could not be read.
    #[error("cannot read it: {0}")]
    Io(#[source] io::Error),
    /// The magic bytes are missing.
    #[error(
        "it is not a blkpatch delta: check the names and their order; a delta that was packed must be unpacked first"
    )]
    NotADelta,
    /// The magic bytes show that a transfer changed line ends.
    #[error("it was damaged by a text-mode transfer; copy it again in binary mode")]
    TextMode,
    /// It ends early, or has bytes behind its end.
    #[error("it is {actual} bytes long but its header says {expected}: {}",
        if actual < expected { "it is cut short; copy it again" } else { "something was appended to it; copy it again" })]
    WrongLength {
        /// Bytes the header accounts for.
        expected: u64,
        /// Bytes the file has.
        actual: u64,
    },
    /// A digest does not fit: the file is damaged.
    #[error("it is damaged: the {what} does not match its digest; copy it again")]
    Damaged {
        /// Header or section.
        what: &'static str,
    },
    /// It was made by a newer blkpatch.
    #[error("it needs a newer blkpatch than this one ({what}): update blkpatch")]
    Newer {
        /// Version, feature bits or section kind.
        what: String,
    },
    /// A field is out of its range.
    #[error("it is malformed: {field} is {value}, allowed is {allowed}; make it anew")]
    Field {
        /// The field's name in the spec.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        allowed: String,
    },
    /// A structure is not as the spec says.
    #[error("it is malformed: {0}; make it anew")]
    Malformed(&'static str),
    /// A compressed stream cannot be read: it is malformed, or the medium with the delta failed.
    #[error("its {stream} stream cannot be read: {why}; copy it again, or make it anew")]
    Stream {
        /// The section's name.
        stream: &'static str,
        /// What happened.
        why: String,
    },
    /// The order breaks one of the rules that make a restart safe.
    #[error("it is unsafe to apply: batch {batch} breaks rule {rule} at block {block}; make it anew")]
    Rule {
        /// `R1` to `R4`, or `source` for a read of bytes that are no longer there; of a writer also `tiling`: steps that do
        /// not make the extents one byte behind the other, or (then the batch is that behind the last) no batch that makes
        /// the block, which changes.
        rule: &'static str,
        /// The batch's number, from 0.
        batch: u64,
        /// The first block concerned.
        block: u64,
    },
    /// A batch writes outside the image.
    #[error("it is malformed: batch {batch} has blocks {} to {} but the image ends at block {end}; make it anew", .extent.start, .extent.end())]
    OutOfRange {
        /// The batch's number, from 0.
        batch: u64,
        /// The blocks.
        extent: Extent,
        /// One past the last block allowed.
        end: u64,
    },
    /// It needs more memory than the user allows.
    #[error("it needs {needed} bytes of memory, more than the limit of {limit}; raise it with --memory-limit")]
    Memory {
        /// Bytes it announces.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

impl DeltaError {
    /// A field that is out of range.
    pub(crate) fn field(field: &'static str, value: u64, allowed: impl Into<String>) -> Self {
        Self::Field { field, value, allowed: allowed.into() }
    }
}
