//! `info`: what a delta is, what it touches, and what applying it takes.

use crate::delta::header::{Codec, Kind};
use crate::delta::step::StepKind;
use crate::digest::{ImageId, hex};
use crate::error::Error;
use crate::monitor::Monitor;
use crate::patch::{Opened, open_delta_telling};
use crate::target::touched_parts;
use crate::units::{BLOCK, PART};
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Everything `info` says; with `--json` as it stands here.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Format version.
    pub format_version: u16,
    /// What its maker says about it.
    pub label: Option<String>,
    /// Bytes of the delta file.
    pub delta_bytes: u64,
    /// The old image, where it is known.
    pub old: Option<ImageInfo>,
    /// The new image.
    pub new: ImageInfo,
    /// Blocks of 4096 bytes that get their final content.
    pub changed_blocks: u64,
    /// Blocks written to scratch before.
    pub scratch_blocks: u64,
    /// Bytes written in all, scratch included.
    pub written_bytes: u64,
    /// Bytes that batches read as sources, in whole blocks.
    pub source_bytes: u64,
    /// Bytes read back at the end by `--verify full`.
    pub read_back_bytes: u64,
    /// Batches.
    pub batches: u64,
    /// Saves among the batches: copies to scratch.
    pub saves: u64,
    /// Syncs between batches.
    pub barriers: u64,
    /// Bytes of memory that `patch` needs at the most.
    pub memory_bytes: u64,
    /// Steps by kind.
    pub steps: Vec<StepInfo>,
    /// Sections of the file.
    pub sections: Vec<SectionInfo>,
}

/// An image's identity.
#[derive(Clone, Debug, Serialize)]
pub struct ImageInfo {
    /// Length in bytes.
    pub bytes: u64,
    /// CRC-32, eight hexadecimal digits.
    pub crc32: String,
    /// BLAKE3, as `b3sum` prints it.
    pub blake3: String,
}

/// The steps of a kind.
#[derive(Clone, Debug, Serialize)]
pub struct StepInfo {
    /// As in table 6.1 of the format.
    pub kind: &'static str,
    /// How many.
    pub count: u64,
    /// Bytes they make.
    pub bytes: u64,
}

/// A section of the file.
#[derive(Clone, Debug, Serialize)]
pub struct SectionInfo {
    /// What it holds.
    pub name: &'static str,
    /// Bytes in the file.
    pub stored_bytes: u64,
    /// Bytes after decompression.
    pub raw_bytes: u64,
    /// log2 of the decompressor's window, 0 where nothing is compressed.
    pub window_log: u8,
}

impl From<ImageId> for ImageInfo {
    fn from(id: ImageId) -> Self {
        Self { bytes: id.len, crc32: format!("{:08x}", id.crc), blake3: hex(&id.blake3) }
    }
}

/// Memory that a delta may announce to be looked at: more than any sound delta needs.
const MEMORY_LIMIT: u64 = 8 << 30;

/// Reads and checks a delta and says what it is.
///
/// # Errors
/// Where the delta is refused.
pub fn info(path: &Path, monitor: &dyn Monitor) -> Result<Info, Error> {
    Ok(describe(&open_delta_telling(path, MEMORY_LIMIT, &AtomicBool::new(false), monitor)?))
}

fn describe(opened: &Opened) -> Info {
    let Opened { delta, order } = opened;
    let counts = &delta.route.counts;
    let steps = StepKind::ALL.into_iter().map(StepKind::name).zip(order.steps.iter().zip(order.step_bytes));
    let sections = delta.header.sections.iter().map(|section| SectionInfo {
        name: section.kind.map_or("unknown", Kind::name),
        stored_bytes: section.stored_len,
        raw_bytes: section.raw_len,
        window_log: if let Codec::Zstd { window_log } = section.codec { window_log } else { 0 },
    });
    let saves = delta.table.batches().iter().filter(|b| b.kind == crate::delta::batch::BatchKind::Save).count();
    let final_bytes: u64 =
        order.touched.extents().map(|e| e.bytes(delta.header.new.len)).map(|r| r.end - r.start).sum();
    Info {
        format_version: crate::delta::header::VERSION,
        label: delta.label.as_ref().map(ToString::to_string),
        delta_bytes: delta.file_len,
        old: delta.route.old.map(ImageInfo::from),
        new: delta.header.new.into(),
        changed_blocks: counts.final_blocks,
        scratch_blocks: counts.scratch_blocks,
        written_bytes: final_bytes + counts.scratch_blocks * BLOCK,
        source_bytes: order.source_blocks * BLOCK,
        read_back_bytes: (touched_parts(order).len() as u64 * PART).min(delta.header.new.len),
        batches: counts.batches,
        saves: saves as u64,
        barriers: counts.barriers,
        memory_bytes: delta.memory(),
        steps: steps.map(|(kind, (count, bytes))| StepInfo { kind, count: *count, bytes }).collect(),
        sections: sections.collect(),
    }
}
