//! Steps of deflated data.

use super::{DeltaWriter, FLUSH, WriteError, slice};
use crate::delta::DeltaError;
use crate::delta::coding::Coding;
use crate::delta::header::Kind;
use crate::delta::step::{Space, Step, StepKind};
use crate::delta::text::pack_new;
use crate::units::Extent;
use crate::varint;
use std::ops::Range;

/// Knows the text of the new image's deflated data.
pub trait NewTexts {
    /// The text whose bits (of deflated data) or bytes (of zstd's blocks), without as many of the first as the second value
    /// says, are these bytes; `None` where they are neither.
    fn text(&self, bytes: Range<u64>) -> Option<(Vec<u8>, u32)>;
}

impl DeltaWriter<'_> {
    /// Adds an unpack step that stands where the new image's byte `at` is next.
    pub(super) fn add_unpack(&mut self, step: &Step, at: u64) -> Result<(), WriteError> {
        let coding = step.kind.coding();
        self.features |= coding.map_or(0, Coding::feature);
        let (old, (start, text_len)) = (self.old, step.unpacked());
        self.old_texts.unpack(step, |source| {
            let there = slice(old, &(step.src..step.src + step.len));
            let ends = DeltaError::Malformed("a source behind the old image's end");
            source.copy_from_slice(Some(there).filter(|there| there.len() == source.len()).ok_or(ends)?);
            Ok(())
        })?;
        self.column(Kind::StepKinds).push(step.kind as u8);
        let start = (coding == Some(Coding::Deflate)).then(|| start.number());
        for number in [Some(step.len), start, Some(text_len)].into_iter().flatten() {
            varint::put(self.column(Kind::StepLengths), number);
        }
        let coded = self.prediction.encode(Space::Old, at, step.src);
        varint::put_signed(self.column(Kind::StepSources), coded);
        Ok(())
    }

    /// Adds a step that makes `made` of a new text, and the steps of that.
    pub(super) fn add_packed(
        &mut self,
        step: &Step,
        parts: &[Step],
        extents: &[Extent],
        made: &[u8],
    ) -> Result<(), WriteError> {
        self.features |= step.kind.coding().map_or(0, Coding::feature);
        let wrong = || DeltaError::Malformed("a text that is not that of the new image's bytes");
        let texts = self.new_texts.and_then(|texts| texts.text(step.dst..step.dst + step.len));
        let is_right = |(text, skip): &(Vec<u8>, u32)| {
            let mut bytes = vec![0; made.len()];
            u64::from(*skip) == step.src && pack_new(step, text, &mut Vec::new(), &mut bytes).is_ok() && bytes == made
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blockset::BlockSet;
    use crate::deflate::Unpacker;
    use crate::delta::step::Start;
    use crate::delta::stream::{Compression, JOB};
    use crate::delta::writer::NewBatch;

    struct Whole(Vec<u8>);

    impl NewTexts for Whole {
        fn text(&self, _: Range<u64>) -> Option<(Vec<u8>, u32)> {
            Some((self.0.clone(), 0))
        }
    }

    /// On the target it would be found only after writing had begun.
    #[test]
    fn a_copy_of_other_bytes_of_a_text_is_refused() {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
        std::io::Write::write_all(&mut encoder, b"some words, and some other words").unwrap();
        let image = encoder.finish().unwrap();
        let (mut unpacker, mut at, mut text) = (Unpacker::new(), 0, Vec::new());
        while let Ok((_, next)) = unpacker.next(&image, at, &mut text) {
            at = next;
        }
        let (len, text_len) = (image.len() as u64, text.len() as u64);
        let texts = Whole(text);
        // A batch must not write what it reads.
        let (block, extents) = (4096, vec![Extent { start: 1, count: 1 }]);
        let mut new = image.clone();
        new.resize(block as usize, 0);
        new.extend(&image);
        for (src, right) in [(6, true), (7, false)] {
            let steps = vec![
                Step::unpack(0, len, Start { bit: 0, inside: false }, text_len),
                Step::deflate(block, len, 0),
                Step::text(StepKind::TextCopy, 0, 6, 0),
                Step::text(StepKind::TextCopy, 6, 4, src),
                Step::text(StepKind::TextCopy, 10, text_len - 10, 10),
            ];
            let mut touched = BlockSet::new();
            touched.insert(extents[0]);
            let compression = |_| Compression { level: 1, window_log: 18, threads: 1, job: JOB };
            let folder = std::env::temp_dir();
            let writer = DeltaWriter::new(&image, &new, &touched, &folder, compression);
            let batch = NewBatch { extents: extents.clone(), steps, ..NewBatch::default() };
            assert_eq!(writer.with_texts(Some(&texts)).add(&batch).is_ok(), right, "from {src}");
        }
    }
}
