//! Steps: how the bytes of a data batch are made (spec, chapter 6). Sources are logical: offsets in the old or the new
//! image, wherever those bytes currently lie.

use super::DeltaError;
use super::header::Kind;
use super::pack::Streams;
use super::stream::StreamReader;
use crate::units::Extent;

/// What a step does. The numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StepKind {
    /// Bytes from the literals.
    Literal = 0,
    /// Bytes of the old image.
    Copy = 1,
    /// Bytes of the old image, differences added.
    Add = 2,
    /// Zeros.
    Zero = 3,
    /// Bytes of the new image that were produced before, or are the same in the old image.
    CopyNew = 4,
    /// The same, differences added.
    AddNew = 5,
    /// Makes nothing itself: the text of deflated bytes of the old image, for the next [`StepKind::Deflate`].
    Unpack = 6,
    /// The deflated bytes of a new text, which the steps of the three kinds below make, right behind this one.
    Deflate = 7,
    /// Bytes of the new text from the literals.
    TextLiteral = 8,
    /// Bytes of the old text.
    TextCopy = 9,
    /// Bytes of the old text, differences added.
    TextAdd = 10,
    /// Makes nothing itself: the text of zstd's blocks of the old image, for the next [`StepKind::PackZstd`].
    UnpackZstd = 11,
    /// Bytes of the zstd blocks that a new text stands for, which the steps of the three kinds above make, right behind this one.
    PackZstd = 12,
}

impl StepKind {
    /// All kinds, by number.
    pub const ALL: [Self; 13] = [
        Self::Literal,
        Self::Copy,
        Self::Add,
        Self::Zero,
        Self::CopyNew,
        Self::AddNew,
        Self::Unpack,
        Self::Deflate,
        Self::TextLiteral,
        Self::TextCopy,
        Self::TextAdd,
        Self::UnpackZstd,
        Self::PackZstd,
    ];

    /// As the spec calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Literal => "literal",
            Self::Copy => "copy",
            Self::Add => "add",
            Self::Zero => "zero",
            Self::CopyNew => "copy-new",
            Self::AddNew => "add-new",
            Self::Unpack => "unpack",
            Self::Deflate => "deflate",
            Self::TextLiteral => "text-literal",
            Self::TextCopy => "text-copy",
            Self::TextAdd => "text-add",
            Self::UnpackZstd => "unpack-zstd",
            Self::PackZstd => "pack-zstd",
        }
    }

    /// Whether it reads the old image, the new one, or neither.
    #[must_use]
    pub fn space(self) -> Option<Space> {
        match self {
            Self::Copy | Self::Add | Self::Unpack | Self::UnpackZstd => Some(Space::Old),
            Self::CopyNew | Self::AddNew => Some(Space::New),
            _ => None,
        }
    }

    /// Whether differences are added.
    #[must_use]
    pub fn adds(self) -> bool {
        matches!(self, Self::Add | Self::AddNew | Self::TextAdd)
    }

    /// Whether its bytes stand in the literals.
    #[must_use]
    pub fn is_literal(self) -> bool {
        matches!(self, Self::Literal | Self::TextLiteral)
    }

    /// Whether it makes bytes of a text, not of the image.
    #[must_use]
    pub fn is_text(self) -> bool {
        matches!(self, Self::TextLiteral | Self::TextCopy | Self::TextAdd)
    }

    /// Whether it adds to the old text.
    #[must_use]
    pub fn unpacks(self) -> bool {
        matches!(self, Self::Unpack | Self::UnpackZstd)
    }

    /// Whether it makes compressed bytes of a new text.
    #[must_use]
    pub fn packs(self) -> bool {
        matches!(self, Self::Deflate | Self::PackZstd)
    }

    /// Whether it makes bytes of the image: then only do `dst` and `len` say where, and how many.
    #[must_use]
    pub fn makes(self) -> bool {
        !self.unpacks() && !self.is_text()
    }

    /// Whether it has to do with compressed data: only in deltas whose header says so.
    #[must_use]
    pub fn recodes(self) -> bool {
        self as u8 >= Self::Unpack as u8
    }
}

/// Which image a logical offset means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The old image.
    Old,
    /// The new image.
    New,
}

/// One step: `len` bytes of the new image from `dst`. What is different with the kinds of compressed data is said at
/// [`Step::unpack`], [`Step::unpack_zstd`], [`Step::deflate`], [`Step::pack_zstd`] and [`Step::text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// First byte, in the new image.
    pub dst: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// First source byte; 0 for steps that read nothing.
    pub src: u64,
}

/// Most bytes of the old text that a deflate step may use.
pub const OLD_TEXT: u64 = 1 << 20;
/// Most bytes of a new text.
pub const NEW_TEXT: u64 = 128 << 10;
/// Most bytes that one unpack step reads.
pub const UNPACK_MOST: u64 = 256 << 10;
/// Most bytes of texts in a batch, and of what is unpacked: bounds the time and the memory that its steps take, as they
/// may unpack the same bytes again and again.
pub const BATCH_TEXT: u64 = 16 << 20;
/// Most bits of a new text's first item that do not belong to the step: those of a header, and some to spare.
pub const SKIP_MOST: u64 = 1 << 16;
/// Most bytes of the zstd blocks that a new text stands for.
pub const PACKED_MOST: u64 = 256 << 10;

/// Where an unpack step begins, in its first byte and in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Bit of the first source byte, 0 to 7.
    pub bit: u8,
    /// Whether the codes are those of the header that was unpacked last; else a header begins here.
    pub inside: bool,
}

impl Start {
    /// As it stands in the delta.
    #[must_use]
    pub fn number(self) -> u64 {
        u64::from(self.bit) << 1 | u64::from(self.inside)
    }
}

impl Step {
    /// Unpacks `text_len` bytes of text from `len` bytes at `src`. They stand in `dst`, with `start`.
    #[must_use]
    pub fn unpack(src: u64, len: u64, start: Start, text_len: u64) -> Self {
        Self { kind: StepKind::Unpack, dst: text_len << 4 | start.number(), len, src }
    }

    /// Where an unpack step starts, and the bytes of text that it yields.
    #[must_use]
    pub fn unpacked(&self) -> (Start, u64) {
        (Start { bit: (self.dst >> 1 & 7) as u8, inside: self.dst & 1 == 1 }, self.dst >> 4)
    }

    /// Makes `len` bytes at `dst`: the bits of a new text without the first `skip`, which stand in `src`.
    #[must_use]
    pub fn deflate(dst: u64, len: u64, skip: u32) -> Self {
        Self { kind: StepKind::Deflate, dst, len, src: skip.into() }
    }

    /// Unpacks `text_len` bytes of text from zstd's blocks, `len` bytes at `src`. They stand in `dst` as in [`Step::unpack`].
    #[must_use]
    pub fn unpack_zstd(src: u64, len: u64, text_len: u64) -> Self {
        Self { kind: StepKind::UnpackZstd, dst: text_len << 4, len, src }
    }

    /// Makes `len` bytes at `dst`: those of the zstd blocks of a new text, without the first `skip`, which stand in `src`.
    #[must_use]
    pub fn pack_zstd(dst: u64, len: u64, skip: u64) -> Self {
        Self { kind: StepKind::PackZstd, dst, len, src: skip }
    }

    /// What counts for [`BATCH_TEXT`]: the bytes unpacked and their text, or the bytes made of a new text.
    #[must_use]
    pub fn text_bytes(&self) -> u64 {
        match self.kind {
            kind if kind.unpacks() => self.len + self.unpacked().1,
            kind if kind.is_text() => self.len,
            _ => 0,
        }
    }

    /// Makes `len` bytes of the new text, at `dst` in it, of the old text from `src` on.
    #[must_use]
    pub fn text(kind: StepKind, dst: u64, len: u64, src: u64) -> Self {
        Self { kind, dst, len, src }
    }
}

/// The displacement (source minus destination) that the next source is predicted from, one for each space.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prediction {
    old: i64,
    new: i64,
}

impl Prediction {
    fn of(&mut self, space: Space) -> &mut i64 {
        match space {
            Space::Old => &mut self.old,
            Space::New => &mut self.new,
        }
    }

    /// What is written for a source; the prediction follows.
    pub fn encode(&mut self, space: Space, dst: u64, src: u64) -> i64 {
        let displacement = src.wrapping_sub(dst).cast_signed();
        let last = std::mem::replace(self.of(space), displacement);
        displacement.wrapping_sub(last)
    }

    /// The source that was written; `None` where it lies outside 0 to 2^63 - 1.
    pub fn decode(&mut self, space: Space, dst: u64, coded: i64) -> Option<u64> {
        let displacement = self.of(space).checked_add(coded)?;
        *self.of(space) = displacement;
        dst.checked_add_signed(displacement).filter(|src| *src <= i64::MAX as u64)
    }
}

/// Bounds that a step must keep.
#[derive(Clone, Copy, Debug)]
pub struct StepBounds {
    /// Bytes of the old image; the largest offset there is where it is unknown.
    pub old_len: u64,
    /// Bytes of the new image.
    pub new_len: u64,
    /// Steps in a batch.
    pub batch_steps: u32,
    /// Whether there may be steps of deflated data.
    pub deflate: bool,
    /// Whether there may be steps of zstd's blocks.
    pub zstd: bool,
}

impl StepBounds {
    /// Whether there may be steps of this kind.
    fn allow(&self, kind: StepKind) -> bool {
        match kind {
            StepKind::Unpack | StepKind::Deflate => self.deflate,
            StepKind::UnpackZstd | StepKind::PackZstd => self.zstd,
            kind => !kind.is_text() || self.deflate || self.zstd,
        }
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
        let range = match (text, self.bounds.deflate, self.bounds.zstd) {
            (true, _, _) => "8 to 10 in a text",
            (false, true, true) => "0 to 7, 11 or 12",
            (false, true, false) => "0 to 7",
            (false, false, true) => "0 to 5, 11 or 12",
            (false, false, false) => "0 to 5",
        };
        let fits = |kind: &StepKind| kind.is_text() == text && self.bounds.allow(*kind);
        kind.filter(fits).ok_or_else(|| DeltaError::field("step kind", number[0].into(), range))
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
        let fits = (1..=most).contains(&number);
        if fits { Ok(number) } else { Err(DeltaError::field(what, number, format!("1 to {most}"))) }
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
        if kind == StepKind::Deflate {
            return match u32::try_from(skip) {
                Ok(bits) if skip < SKIP_MOST => Ok(Step::deflate(dst, len, bits)),
                _ => Err(DeltaError::field("bits to skip", skip, format!("below {SKIP_MOST}"))),
            };
        }
        if skip.checked_add(len).is_none_or(|end| end > PACKED_MOST) {
            let most = PACKED_MOST.saturating_sub(len);
            return Err(DeltaError::field("bytes to skip", skip, format!("at most {most}, and {len} bytes follow")));
        }
        Ok(Step::pack_zstd(dst, len, skip))
    }

    fn unpack_step(&mut self, kind: StepKind, dst: u64, old_text: &mut OldText) -> Result<Step, DeltaError> {
        let len = self.number("bytes to unpack", UNPACK_MOST)?;
        let zstd = kind == StepKind::UnpackZstd;
        let number = if zstd { 0 } else { self.lengths.varint()? };
        if number > 15 || number & 1 == 1 && !old_text.begun {
            return Err(DeltaError::field("start of unpacking", number, "below 16, and even in a batch's first"));
        }
        if !std::mem::replace(&mut old_text.open, true) {
            old_text.len = 0;
        }
        old_text.begun |= !zstd;
        let text_len = self.number("bytes of text", OLD_TEXT - old_text.len)?;
        old_text.len += text_len;
        let src = self.source(Space::Old, dst, len)?;
        if zstd {
            return Ok(Step::unpack_zstd(src, len, text_len));
        }
        Ok(Step::unpack(src, len, Start { bit: (number >> 1) as u8, inside: number & 1 == 1 }, text_len))
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
