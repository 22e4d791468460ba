//! Steps: how the bytes of a data batch are made (spec, chapter 6). Sources are logical: offsets in the old or the new
//! image, wherever those bytes currently lie.

use super::coding::{Coding, Whole};

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
    /// Makes nothing itself: the text of zstd's blocks of the old image, for the next step that packs.
    UnpackZstd = 11,
    /// Bytes of the zstd blocks that a new text stands for, which the steps of the three kinds above make, right behind this one.
    PackZstd = 12,
    /// As [`StepKind::UnpackZstd`], of LZMA2's chunks.
    UnpackLzma = 13,
    /// As [`StepKind::PackZstd`], of LZMA2's chunks.
    PackLzma = 14,
}

impl StepKind {
    /// All kinds, by number.
    pub const ALL: [Self; 15] = [
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
        Self::UnpackLzma,
        Self::PackLzma,
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
            Self::UnpackLzma => "unpack-lzma",
            Self::PackLzma => "pack-lzma",
        }
    }

    /// Whether it reads the old image, the new one, or neither.
    #[must_use]
    pub fn space(self) -> Option<Space> {
        match self {
            Self::Copy | Self::Add | Self::Unpack | Self::UnpackZstd | Self::UnpackLzma => Some(Space::Old),
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
        matches!(self, Self::Unpack | Self::UnpackZstd | Self::UnpackLzma)
    }

    /// Whether it makes compressed bytes of a new text.
    #[must_use]
    pub fn packs(self) -> bool {
        matches!(self, Self::Deflate | Self::PackZstd | Self::PackLzma)
    }

    /// Which data it unpacks or packs; `None` where it does neither.
    #[must_use]
    pub fn coding(self) -> Option<Coding> {
        match self {
            Self::Unpack | Self::Deflate => Some(Coding::Deflate),
            Self::UnpackZstd | Self::PackZstd => Some(Coding::Whole(Whole::Zstd)),
            Self::UnpackLzma | Self::PackLzma => Some(Coding::Whole(Whole::Lzma)),
            _ => None,
        }
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
/// [`Step::unpack`], [`Step::unpack_whole`], [`Step::deflate`], [`Step::pack_whole`] and [`Step::text`].
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
/// Most bytes of the blocks or chunks that a new text stands for.
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

    /// Unpacks `text_len` bytes of text from whole blocks or chunks, `len` bytes at `src`. They stand in `dst` as in
    /// [`Step::unpack`].
    #[must_use]
    pub fn unpack_whole(coding: Whole, src: u64, len: u64, text_len: u64) -> Self {
        let kind = match coding {
            Whole::Zstd => StepKind::UnpackZstd,
            Whole::Lzma => StepKind::UnpackLzma,
        };
        Self { kind, dst: text_len << 4, len, src }
    }

    /// Makes `len` bytes at `dst`: those of the blocks or chunks of a new text, without the first `skip`, which stand in `src`.
    #[must_use]
    pub fn pack_whole(coding: Whole, dst: u64, len: u64, skip: u64) -> Self {
        let kind = match coding {
            Whole::Zstd => StepKind::PackZstd,
            Whole::Lzma => StepKind::PackLzma,
        };
        Self { kind, dst, len, src: skip }
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
