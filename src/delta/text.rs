//! The old text of a batch: what its unpack steps yield (spec, sections 6.6 to 6.8).

use super::DeltaError;
use super::coding::{BEYOND, Coding, TEXT_BEYOND, Whole};
use super::step::{OLD_TEXT, PACKED_MOST, Step, UNPACK_MOST};
use crate::deflate::{Unpacker, pack};

/// Does unpack steps.
#[derive(Debug, Default)]
pub struct TextUnpacker {
    unpacker: Unpacker,
    source: Vec<u8>,
}

impl TextUnpacker {
    /// A batch begins.
    pub fn start_batch(&mut self) {
        self.unpacker = Unpacker::new();
    }

    /// Does an unpack step, which appends to `text`; up to [`ITEM_MOST`] bytes more than the step says may be appended where
    /// that fails. `fetch` fills in the bytes that it reads.
    ///
    /// # Errors
    /// What `fetch` says, or a source that does not yield what the step says.
    pub fn unpack(
        &mut self,
        step: &Step,
        fetch: impl FnOnce(&mut [u8]) -> Result<(), DeltaError>,
        text: &mut Vec<u8>,
    ) -> Result<(), DeltaError> {
        // Once: growing would take up to twice as much as is announced.
        self.source.clear();
        self.source.reserve_exact(UNPACK_MOST as usize);
        self.source.resize(step.len as usize, 0);
        fetch(&mut self.source)?;
        let (start, len) = step.unpacked();
        let end = text.len() + len as usize;
        if let Some(Coding::Whole(coding)) = step.kind.coding() {
            let right = coding.unpack(&self.source, len as usize, text) && text.len() == end;
            return if right { Ok(()) } else { Err(DeltaError::Malformed(not_these(coding))) };
        }
        self.unpacker.jump(start.inside);
        let mut at = u64::from(start.bit);
        while text.len() < end {
            let next = self.unpacker.run(&self.source, at, (u64::MAX, end), text);
            (_, at) = next.map_err(|_| DeltaError::Malformed("what is to be unpacked is not deflated data"))?;
        }
        if text.len() > end {
            return Err(DeltaError::Malformed("what is to be unpacked does not end where it should"));
        }
        Ok(())
    }
}

/// Old texts, one after another.
#[derive(Debug, Default)]
pub struct OldTexts {
    unpacker: TextUnpacker,
    text: Vec<u8>,
    /// Whether the next unpack step adds to the text; else a new one begins.
    open: bool,
}

impl OldTexts {
    /// A batch begins.
    pub fn start_batch(&mut self) {
        self.unpacker.start_batch();
        self.open = false;
        self.text.clear();
    }

    /// Does an unpack step; `fetch` fills in the bytes that it reads.
    ///
    /// # Errors
    /// What `fetch` says, or a source that does not yield what the step says.
    pub fn unpack(
        &mut self,
        step: &Step,
        fetch: impl FnOnce(&mut [u8]) -> Result<(), DeltaError>,
    ) -> Result<(), DeltaError> {
        if !std::mem::replace(&mut self.open, true) {
            self.text.clear();
        }
        self.text.reserve_exact((OLD_TEXT as usize + ITEM_MOST).saturating_sub(self.text.len()));
        self.unpacker.unpack(step, fetch, &mut self.text)
    }

    /// The bytes of the old text that a step reads.
    ///
    /// # Errors
    /// Where they are not there.
    pub fn get(&self, step: &Step) -> Result<&[u8], DeltaError> {
        part_of(&self.text, step)
    }

    /// The text was used: the next unpack step begins a new one.
    pub fn close(&mut self) {
        self.open = false;
    }
}

/// The bytes of an old text that a step reads.
///
/// # Errors
/// Where they are not there.
pub fn part_of<'a>(text: &'a [u8], step: &Step) -> Result<&'a [u8], DeltaError> {
    let (start, end) = (step.src as usize, (step.src + step.len) as usize);
    text.get(start..end).ok_or(DeltaError::Malformed("a step reads behind the end of a text"))
}

/// More than the bytes of the longest item, a header, and what the text of blocks may have beyond.
pub const ITEM_MOST: usize = if TEXT_BEYOND > 512 { TEXT_BEYOND } else { 512 };

fn not_these(coding: Whole) -> &'static str {
    match coding {
        Whole::Zstd => "what is to be unpacked is not zstd's blocks",
        Whole::Lzma => "what is to be unpacked is not LZMA2's chunks",
    }
}

/// Makes the bytes of a step of its new text; `packed` is memory for that.
///
/// # Errors
/// Where it is not a text, or one of too few bytes.
pub fn pack_new(step: &Step, text: &[u8], packed: &mut Vec<u8>, target: &mut [u8]) -> Result<(), DeltaError> {
    let Some(Coding::Whole(coding)) = step.kind.coding() else {
        return pack(text, step.src as u32, target)
            .map_err(|_| DeltaError::Malformed("a text that cannot be deflated"));
    };
    packed.clear();
    packed.reserve_exact(PACKED_MOST as usize + BEYOND);
    let right = coding.pack(text, PACKED_MOST as usize, packed);
    let made = packed.get(step.src as usize..(step.src + step.len) as usize);
    match made.filter(|made| right && made.len() == target.len()) {
        Some(made) => target.copy_from_slice(made),
        None => return Err(DeltaError::Malformed("a text that stands for no blocks, or for too few")),
    }
    Ok(())
}
