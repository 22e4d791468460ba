//! Updates a disk image in place on its device by shipping only what changed.
#![deny(missing_docs, unsafe_code)]

mod ahead;
pub mod apply;
pub mod blockset;
pub mod codes;
pub mod compare;
#[cfg(test)]
#[path = "../tests/common/compressible.rs"]
mod compressible;
pub mod deflate;
pub mod delta;
pub mod device;
pub mod diff;
pub mod digest;
mod disk;
pub mod error;
pub mod export;
pub mod format;
pub mod image;
pub mod info;
pub mod judge;
mod looking;
pub mod lzma_chunk;
mod maker;
pub mod matcher;
#[cfg(test)]
#[path = "../tests/common/errors.rs"]
#[allow(dead_code)]
mod message_rows;
mod milestone;
mod misplaced;
pub mod monitor;
mod opened;
mod opening;
pub mod outlet;
pub mod output;
pub mod packed;
mod parallel;
pub mod patch;
mod patient;
pub mod plan;
mod planner;
pub mod qcow2;
mod reading;
mod reading_room;
mod recode;
pub mod resume;
mod save;
mod scribe;
pub mod sign;
pub mod signature;
mod signature_index;
pub mod slot;
mod sources;
mod sparse;
pub mod spool;
mod sweep;
pub mod sync;
pub mod target;
mod traces;
mod undo;
pub mod units;
mod untouched;
pub mod varint;
pub mod verify;
pub mod zero_groups;
pub mod zstd_block;
