//! Reads the steps of batches from their columns (spec, chapter 6), and checks each of them.

use super::DeltaError;
use super::coding::Coding;
use super::header::Kind;
use super::pack::Streams;
use super::step::{
    BATCH_TEXT, NEW_TEXT, OLD_TEXT, PACKED_MOST, Prediction, SKIP_MOST, Space, Start, Step, StepKind, UNPACK_MOST,
};
use super::stream::StreamReader;
use crate::units::Extent;

/// Bounds that a step must keep.
#[derive(Clone, Copy, Debug)]
pub struct StepBounds {
    /// Bytes of the old image; the largest offset there is where it is unknown.
    pub old_len: u64,
    /// Bytes of the new image.
    pub new_len: u64,
    /// Steps in a batch.
    pub batch_steps: u32,
    /// The header's incompatible features: which compressed data there may be steps of.
    pub features: u64,
}

impl StepBounds {
    /// Whether there may be steps of this kind.
    fn allow(&self, kind: StepKind) -> bool {
        match kind.coding() {
            Some(coding) => self.features & coding.feature() > 0,
            None => !kind.is_text() || self.features > 0,
        }
    }

    /// The numbers of those, in words.
    fn allowed(&self, text: bool) -> String {
        if text {
            return "8 to 10 in a text".into();
        }
        let kinds = StepKind::ALL.into_iter().filter(|kind| kind.coding().is_some() && self.allow(*kind));
        kinds.fold("0 to 5".into(), |all: String, kind| format!("{all}, {}", kind as u8))
    }
}

/// The old text of a batch while its steps are read.
#[derive(Default)]
struct OldText {
    /// Bytes of it.
    len: u64,
    /// Whether the next unpack step adds to it; else a new one begins.
    open: bool,
    /// Whether anything was unpacked in the batch.
    begun: bool,
}

/// Reads the steps of data batches, in order.
pub struct StepReader {
    kinds: StreamReader,
    lengths: StreamReader,
    sources: StreamReader,
    prediction: Prediction,
    bounds: StepBounds,
    /// Of the steps of the batch so far: see [`BATCH_TEXT`].
    text_bytes: u64,
}

impl StepReader {
    /// Opens the step columns of a route.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn open(streams: &Streams, bounds: StepBounds) -> Result<Self, DeltaError> {
        Ok(Self {
            kinds: streams.open(Kind::StepKinds)?,
            lengths: streams.open(Kind::StepLengths)?,
            sources: streams.open(Kind::StepSources)?,
            prediction: Prediction::default(),
            bounds,
            text_bytes: 0,
        })
    }

    /// Reads the steps that tile the extents of the next data batch.
    ///
    /// # Errors
    /// Anything that is not as the spec says.
    pub fn read_batch(&mut self, extents: &[Extent], steps: &mut Vec<Step>) -> Result<(), DeltaError> {
        steps.clear();
        self.text_bytes = 0;
        let mut old_text = OldText::default();
        for extent in extents {
            let bytes = extent.bytes(self.bounds.new_len);
            let mut dst = bytes.start;
            while dst < bytes.end {
                let step = self.step(dst, bytes.end - dst, &mut old_text)?;
                self.push(step, steps)?;
                if step.kind.packs() {
                    self.text_steps(&old_text, steps)?;
                }
                dst += if step.kind.unpacks() { 0 } else { step.len };
            }
        }
        Ok(())
    }

    fn push(&mut self, step: Step, steps: &mut Vec<Step>) -> Result<(), DeltaError> {
        if steps.len() >= self.bounds.batch_steps as usize {
            return Err(DeltaError::field("steps of a batch", steps.len() as u64 + 1, "at most batch_steps"));
        }
        self.text_bytes += step.text_bytes();
        if self.text_bytes > BATCH_TEXT {
            return Err(DeltaError::field(
                "bytes of texts in a batch",
                self.text_bytes,
                format!("at most {BATCH_TEXT}"),
            ));
        }
        steps.push(step);
        Ok(())
    }

    fn kind(&mut self, text: bool) -> Result<StepKind, DeltaError> {
        let mut number = [0u8];
        self.kinds.fill(&mut number)?;
        let kind = StepKind::ALL.get(usize::from(number[0])).copied();
        let fits = |kind: &StepKind| kind.is_text() == text && self.bounds.allow(*kind);
        kind.filter(fits).ok_or_else(|| DeltaError::field("step kind", number[0].into(), self.bounds.allowed(text)))
    }

    /// The length of a step where there is `room`.
    fn length(&mut self, room: u64) -> Result<u64, DeltaError> {
        match self.lengths.varint()? {
            0 => Ok(room),
            len if len < room => Ok(len),
            len => Err(DeltaError::field("step length", len, format!("0, or 1 to {}", room - 1))),
        }
    }

    /// A number of the step lengths from 1 to `most`.
    fn number(&mut self, what: &'static str, most: u64) -> Result<u64, DeltaError> {
        let number = self.lengths.varint()?;
        if (1..=most).contains(&number) {
            return Ok(number);
        }
        let allowed = if most > 0 { format!("1 to {most}") } else { "none, as there is no room".into() };
        Err(DeltaError::field(what, number, allowed))
    }

    fn step(&mut self, dst: u64, room: u64, old_text: &mut OldText) -> Result<Step, DeltaError> {
        let kind = self.kind(false)?;
        if kind.unpacks() {
            return self.unpack_step(kind, dst, old_text);
        }
        let len = self.length(room)?;
        if kind.packs() {
            old_text.open = false;
            return self.pack_step(kind, dst, len);
        }
        let Some(space) = kind.space() else { return Ok(Step { kind, dst, len, src: 0 }) };
        let src = self.source(space, dst, len)?;
        Ok(Step { kind, dst, len, src })
    }

    fn source(&mut self, space: Space, dst: u64, len: u64) -> Result<u64, DeltaError> {
        let coded = self.sources.signed()?;
        // That a new source is there already is for the order to say, see [P-9].
        let limit = if space == Space::Old { self.bounds.old_len } else { self.bounds.new_len };
        let src = self.prediction.decode(space, dst, coded);
        src.filter(|src| src.checked_add(len).is_some_and(|end| end <= limit)).ok_or_else(|| {
            DeltaError::field("step source", src.unwrap_or(u64::MAX), format!("{len} bytes before {limit}"))
        })
    }

    fn pack_step(&mut self, kind: StepKind, dst: u64, len: u64) -> Result<Step, DeltaError> {
        let skip = self.lengths.varint()?;
        let Some(Coding::Whole(coding)) = kind.coding() else {
            return match u32::try_from(skip) {
                Ok(bits) if skip < SKIP_MOST => Ok(Step::deflate(dst, len, bits)),
                _ => Err(DeltaError::field("bits to skip", skip, format!("below {SKIP_MOST}"))),
            };
        };
        if skip.checked_add(len).is_none_or(|end| end > PACKED_MOST) {
            let most = PACKED_MOST.saturating_sub(len);
            return Err(DeltaError::field("bytes to skip", skip, format!("at most {most}, and {len} bytes follow")));
        }
        Ok(Step::pack_whole(coding, dst, len, skip))
    }

    fn unpack_step(&mut self, kind: StepKind, dst: u64, old_text: &mut OldText) -> Result<Step, DeltaError> {
        let len = self.number("bytes to unpack", UNPACK_MOST)?;
        let whole = match kind.coding() {
            Some(Coding::Whole(coding)) => Some(coding),
            _ => None,
        };
        let number = if whole.is_some() { 0 } else { self.lengths.varint()? };
        if number > 15 || number & 1 == 1 && !old_text.begun {
            return Err(DeltaError::field("start of unpacking", number, "below 16, and even in a batch's first"));
        }
        if !std::mem::replace(&mut old_text.open, true) {
            old_text.len = 0;
        }
        old_text.begun |= whole.is_none();
        let text_len = self.number("bytes of text", OLD_TEXT - old_text.len)?;
        old_text.len += text_len;
        let src = self.source(Space::Old, dst, len)?;
        Ok(match whole {
            Some(coding) => Step::unpack_whole(coding, src, len, text_len),
            None => Step::unpack(src, len, Start { bit: (number >> 1) as u8, inside: number & 1 == 1 }, text_len),
        })
    }

    /// The steps that make a new text.
    fn text_steps(&mut self, old_text: &OldText, steps: &mut Vec<Step>) -> Result<(), DeltaError> {
        let end = self.number("bytes of new text", NEW_TEXT)?;
        let (mut dst, mut displacement) = (0, 0i64);
        while dst < end {
            let kind = self.kind(true)?;
            let len = self.length(end - dst)?;
            let mut src = 0;
            if kind != StepKind::TextLiteral {
                let moved = displacement.checked_add(self.sources.signed()?);
                let there = moved
                    .and_then(|moved| dst.checked_add_signed(moved))
                    .filter(|src| src.checked_add(len).is_some_and(|end| end <= old_text.len));
                src = there.ok_or_else(|| {
                    DeltaError::field("text source", there.unwrap_or(u64::MAX), format!("before {}", old_text.len))
                })?;
                displacement = moved.unwrap_or_default();
            }
            self.push(Step::text(kind, dst, len, src), steps)?;
            dst += len;
        }
        Ok(())
    }

    /// Checks that all columns have been read to their ends.
    ///
    /// # Errors
    /// Left-over bytes.
    pub fn finish(self) -> Result<(), DeltaError> {
        self.kinds.finish()?;
        self.lengths.finish()?;
        self.sources.finish()
    }
}
