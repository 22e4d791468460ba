//! Steps of deflated data.

use super::{DeltaWriter, FLUSH, WriteError, slice};
use crate::deflate::pack;
use crate::delta::DeltaError;
use crate::delta::header::Kind;
use crate::delta::step::{Space, Step, StepKind};
use crate::units::Extent;
use crate::varint;
use std::ops::Range;

/// Knows the text of the new image's deflated data.
pub trait NewTexts {
    /// The text whose bits, without as many of the first as the second value says, are these bytes; `None` where they are
    /// not deflated data.
    fn text(&self, bytes: Range<u64>) -> Option<(Vec<u8>, u32)>;
}

impl DeltaWriter<'_> {
    /// Adds an unpack step that stands where the new image's byte `at` is next.
    pub(super) fn add_unpack(&mut self, step: &Step, at: u64) -> Result<(), WriteError> {
        self.deflate = true;
        let (old, (start, text_len)) = (self.old, step.unpacked());
        self.old_texts.unpack(step, |source| {
            let there = slice(old, &(step.src..step.src + step.len));
            let ends = DeltaError::Malformed("a source behind the old image's end");
            source.copy_from_slice(Some(there).filter(|there| there.len() == source.len()).ok_or(ends)?);
            Ok(())
        })?;
        self.column(Kind::StepKinds).push(step.kind as u8);
        for number in [step.len, start.number(), text_len] {
            varint::put(self.column(Kind::StepLengths), number);
        }
        let coded = self.prediction.encode(Space::Old, at, step.src);
        varint::put_signed(self.column(Kind::StepSources), coded);
        Ok(())
    }

    /// Adds a deflate step, which makes `made`, and the steps of its text.
    pub(super) fn add_deflate(
        &mut self,
        step: &Step,
        parts: &[Step],
        extents: &[Extent],
        made: &[u8],
    ) -> Result<(), WriteError> {
        self.deflate = true;
        let wrong = || DeltaError::Malformed("a text that is not that of the new image's bytes");
        let texts = self.new_texts.and_then(|texts| texts.text(step.dst..step.dst + step.len));
        let is_right = |(text, skip): &(Vec<u8>, u32)| {
            u64::from(*skip) == step.src && pack(text, *skip, made.len()).is_ok_and(|bytes| bytes == made)
        };
        let (text, skip) = texts.filter(is_right).ok_or_else(wrong)?;
        self.put_kind_and_length(step, extents);
        varint::put(self.column(Kind::StepLengths), skip.into());
        varint::put(self.column(Kind::StepLengths), text.len() as u64);
        let mut displacement = 0i64;
        for part in parts {
            let end = (part.dst + part.len) as usize;
            let made = text.get(part.dst as usize..end).ok_or(DeltaError::Malformed("a step behind its text"))?;
            self.column(Kind::StepKinds).push(part.kind as u8);
            varint::put(self.column(Kind::StepLengths), if end == text.len() { 0 } else { part.len });
            if part.kind == StepKind::TextLiteral {
                self.column(Kind::Literals).extend_from_slice(made);
                continue;
            }
            let moved = part.src.wrapping_sub(part.dst).cast_signed();
            varint::put_signed(self.column(Kind::StepSources), moved.wrapping_sub(displacement));
            displacement = moved;
            let base = self.old_texts.get(part)?;
            if part.kind.adds() {
                let base = base.to_vec();
                self.add_differences(part, made, &base);
            } else if base != made {
                return Err(wrong().into()); // here, and not on the target
            }
        }
        self.old_texts.close();
        self.flush(FLUSH)
    }
}
