//! Updates a disk image in place on its device by shipping only what changed.
#![deny(missing_docs, unsafe_code)]

pub mod apply;
pub mod blockset;
pub mod compare;
pub mod delta;
pub mod device;
pub mod diff;
mod diff_signature;
pub mod digest;
pub mod error;
pub mod image;
pub mod info;
pub mod judge;
pub mod matcher;
pub mod monitor;
pub mod output;
mod parallel;
pub mod patch;
pub mod plan;
pub mod resume;
mod save;
mod scribe;
pub mod sign;
pub mod signature;
mod sources;
mod sweep;
pub mod sync;
pub mod target;
mod undo;
pub mod units;
mod untouched;
pub mod varint;
pub mod verify;
