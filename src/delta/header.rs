//! The header: identity of the new image, limits, and the list of sections (spec, chapter 3).

use super::{DeltaError, Fields};
use crate::digest::ImageId;

/// First bytes of every delta. 0x89 and CR LF Ctrl-Z LF show damage by text-mode transfers, as in PNG.
pub const MAGIC: [u8; 8] = [0x89, b'B', b'P', b'D', 0x0D, 0x0A, 0x1A, 0x0A];
/// Format version.
pub const VERSION: u16 = 1;
/// Bytes of the header before the section list.
pub const FIXED_LEN: usize = 96;
/// Bytes of a section entry.
pub const ENTRY_LEN: usize = 56;
/// Bytes of the digest that closes the header.
pub const DIGEST_LEN: usize = 32;
/// The longest header that is read, in bytes.
pub const MAX_HEADER_LEN: u32 = 1 << 20;
/// Incompatible feature: steps may unpack and make deflated data.
pub const DEFLATE: u64 = 1;
/// Incompatible feature: steps may unpack and make zstd's blocks.
pub const ZSTD: u64 = 1 << 1;
/// Incompatible feature: steps may unpack and make LZMA2's chunks.
pub const LZMA: u64 = 1 << 2;
/// Incompatible features that this version knows.
pub const KNOWN_INCOMPATIBLE: u64 = DEFLATE | ZSTD | LZMA;
/// The `route` field of a section that belongs to no route.
pub const NO_ROUTE: u16 = 0xFFFF;
/// Section flag: a reader that does not know the kind must refuse the delta.
pub const FLAG_CRITICAL: u16 = 1;

/// What a section holds. The numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Kind {
    /// One old image: its identity, the untouched digest and the counts. Stored as is.
    Route = 1,
    /// The order: batches, saves, barriers.
    Batches = 2,
    /// A byte a step: what kind it is.
    StepKinds = 3,
    /// A varint a step: its length.
    StepLengths = 4,
    /// A zigzag varint for every step that reads: its source.
    StepSources = 5,
    /// Varints: bytes without a difference before each field that has one.
    DifferenceGaps = 6,
    /// Varints: by how much the fields differ, or which guess of it is right.
    DifferenceValues = 7,
    /// The bytes of the literal steps.
    Literals = 8,
    /// All of the above in one.
    Pack = 9,
    /// A line of text for people. Belongs to no route, and is not critical.
    Label = 10,
}

impl Kind {
    /// All kinds that belong to a route, in the order in which the sections stand in a file.
    pub const ALL: [Self; 9] = [
        Self::Route,
        Self::Batches,
        Self::StepKinds,
        Self::StepLengths,
        Self::StepSources,
        Self::DifferenceGaps,
        Self::DifferenceValues,
        Self::Literals,
        Self::Pack,
    ];
    /// The columns that hold the steps.
    pub const COLUMNS: [Self; 6] = [
        Self::StepKinds,
        Self::StepLengths,
        Self::StepSources,
        Self::DifferenceGaps,
        Self::DifferenceValues,
        Self::Literals,
    ];
    /// All kinds but the pack: what a pack holds.
    pub const STREAMS: [Self; 8] = [
        Self::Route,
        Self::Batches,
        Self::StepKinds,
        Self::StepLengths,
        Self::StepSources,
        Self::DifferenceGaps,
        Self::DifferenceValues,
        Self::Literals,
    ];

    /// The name used in messages and in the spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Batches => "batch table",
            Self::StepKinds => "step kinds",
            Self::StepLengths => "step lengths",
            Self::StepSources => "step sources",
            Self::DifferenceGaps => "difference gaps",
            Self::DifferenceValues => "difference values",
            Self::Literals => "literals",
            Self::Pack => "pack",
            Self::Label => "label",
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::Label]).find(|kind| *kind as u16 == number)
    }
}

/// How a section's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Stored,
    /// One zstd frame (RFC 8878) with a window of at most 2^`window_log` bytes.
    Zstd {
        /// 10 to 27.
        window_log: u8,
    },
}

/// One section, as the header lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds; `None` for a kind this version does not know and may skip.
    pub kind: Option<Kind>,
    /// The route it belongs to, or [`NO_ROUTE`].
    pub route: u16,
    /// How it is stored.
    pub codec: Codec,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub stored_len: u64,
    /// Bytes after decompression.
    pub raw_len: u64,
    /// BLAKE3 of the bytes in the file.
    pub blake3: [u8; 32],
}

/// Upper bounds that the writer promises and the patcher enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that a data or save batch writes.
    pub batch_bytes: u32,
    /// Bytes that a batch reads, in whole blocks.
    pub source_bytes: u32,
    /// Steps of a batch.
    pub batch_steps: u32,
    /// Bytes of memory that patching takes (spec, chapter 9).
    pub memory: u64,
}

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Incompatible features, of [`KNOWN_INCOMPATIBLE`]: which compressed data steps may unpack and make.
    pub features: u64,
    /// Feature bits that a reader may ignore.
    pub compatible: u64,
    /// Length and digests of the new image.
    pub new: ImageId,
    /// The limits.
    pub limits: Limits,
    /// The sections, in file order.
    pub sections: Vec<Section>,
}

/// The length that the first 12 bytes of a file announce for its header.
///
/// # Errors
/// Not a delta, or a length no header has.
pub fn announced_len(start: &[u8; 12]) -> Result<u32, DeltaError> {
    if start[..8] != MAGIC {
        // What the usual line-end translations make of the magic.
        let mangled = start[1..4] == MAGIC[1..4] || start[..3] == MAGIC[1..4];
        return Err(if mangled { DeltaError::TextMode } else { DeltaError::NotADelta });
    }
    let len = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
    let least = (FIXED_LEN + DIGEST_LEN) as u32;
    if (least..=MAX_HEADER_LEN).contains(&len) {
        Ok(len)
    } else {
        Err(DeltaError::field("header_len", len.into(), format!("{least} to {MAX_HEADER_LEN}")))
    }
}

impl Header {
    /// Bytes of the header in the file.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        FIXED_LEN + self.sections.len() * ENTRY_LEN + DIGEST_LEN
    }

    /// The header as it stands in the file. Sections of unknown kind cannot be written and are left out by readers.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.extend(MAGIC);
        out.extend((self.encoded_len() as u32).to_le_bytes());
        out.extend(VERSION.to_le_bytes());
        out.extend((self.sections.len() as u16).to_le_bytes());
        out.extend(self.features.to_le_bytes());
        out.extend(self.compatible.to_le_bytes());
        out.extend(self.new.len.to_le_bytes());
        out.extend(self.new.crc.to_le_bytes());
        out.extend(self.limits.batch_bytes.to_le_bytes());
        out.extend(self.limits.source_bytes.to_le_bytes());
        out.extend(self.limits.batch_steps.to_le_bytes());
        out.extend(self.limits.memory.to_le_bytes());
        out.extend(self.new.blake3);
        for section in &self.sections {
            let (codec, window_log) = match section.codec {
                Codec::Stored => (0u8, 0u8),
                Codec::Zstd { window_log } => (1, window_log),
            };
            out.extend(section.kind.map_or(0, |kind| kind as u16).to_le_bytes());
            out.extend(if section.kind == Some(Kind::Label) { 0 } else { FLAG_CRITICAL }.to_le_bytes());
            out.extend(section.route.to_le_bytes());
            out.extend([codec, window_log]);
            out.extend(section.stored_len.to_le_bytes());
            out.extend(section.raw_len.to_le_bytes());
            out.extend(section.blake3);
        }
        let digest = blake3::hash(&out);
        out.extend(digest.as_bytes());
        out
    }

    /// Reads a header. `bytes` is exactly as long as [`announced_len`] said.
    ///
    /// # Errors
    /// Damage, a newer format, or fields out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self, DeltaError> {
        let body_len = bytes.len().saturating_sub(DIGEST_LEN);
        let (body, digest) = bytes.split_at(body_len);
        if blake3::hash(body).as_bytes() != digest {
            return Err(DeltaError::Damaged { what: "header" });
        }
        let mut fields = Fields(body);
        let _ = (fields.take::<8>(), fields.u32());
        let version = fields.u16();
        if version != VERSION {
            return Err(DeltaError::Newer { what: format!("format version {version}, known is {VERSION}") });
        }
        let count = usize::from(fields.u16());
        let features = fields.u64();
        let incompatible = features & !KNOWN_INCOMPATIBLE;
        if incompatible != 0 {
            return Err(DeltaError::Newer { what: format!("incompatible feature bits {incompatible:#x}") });
        }
        if body_len != FIXED_LEN + count * ENTRY_LEN {
            return Err(DeltaError::field("section_count", count as u64, "as many as header_len has room for"));
        }
        let compatible = fields.u64();
        let (len, crc) = (fields.u64(), fields.u32());
        let (batch_bytes, source_bytes, batch_steps) = (fields.u32(), fields.u32(), fields.u32());
        let limits = Limits { batch_bytes, source_bytes, batch_steps, memory: fields.u64() };
        check_len("new_len", len)?;
        let new = ImageId { len, crc, blake3: fields.take() };
        let mut offset = bytes.len() as u64;
        let mut sections = Vec::with_capacity(count);
        for _ in 0..count {
            let section = decode_entry(&mut fields, offset)?;
            offset += section.stored_len;
            sections.push(section);
        }
        Ok(Self { features, compatible, new, limits, sections })
    }

    /// Bytes of the whole delta file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.sections.last().map_or(self.encoded_len() as u64, |s| s.offset + s.stored_len)
    }

    /// The section of that kind and route.
    #[must_use]
    pub fn section(&self, kind: Kind, route: u16) -> Option<&Section> {
        self.sections.iter().find(|s| s.kind == Some(kind) && s.route == route)
    }
}

/// Lengths of images fit a signed 64-bit number, as file offsets do.
pub(crate) fn check_len(field: &'static str, len: u64) -> Result<(), DeltaError> {
    if len > i64::MAX as u64 { Err(DeltaError::field(field, len, "at most 2^63 - 1")) } else { Ok(()) }
}

fn decode_entry(fields: &mut Fields<'_>, offset: u64) -> Result<Section, DeltaError> {
    let (number, flags, route) = (fields.u16(), fields.u16(), fields.u16());
    let (codec, window_log) = (fields.u8(), fields.u8());
    let (stored_len, raw_len) = (fields.u64(), fields.u64());
    let blake3 = fields.take();
    // A label at an odd place says nothing, but is no reason to refuse a delta.
    let kind = Kind::from_number(number).filter(|kind| *kind != Kind::Label || route == NO_ROUTE && codec == 0);
    if flags & !FLAG_CRITICAL != 0 {
        return Err(DeltaError::Newer { what: format!("section flags {flags:#x}") });
    }
    if kind.is_none() && flags & FLAG_CRITICAL != 0 {
        return Err(DeltaError::Newer { what: format!("section kind {number}") });
    }
    if offset.checked_add(stored_len).is_none() {
        return Err(DeltaError::field("stored_len", stored_len, "a sum of lengths below 2^64"));
    }
    let codec = match (codec, window_log) {
        (0, 0) if raw_len == stored_len => Codec::Stored,
        (0, _) => return Err(DeltaError::field("raw_len", raw_len, "equal to stored_len where nothing is compressed")),
        (1, 10..=27) => Codec::Zstd { window_log },
        (1, _) => return Err(DeltaError::field("window_log", window_log.into(), "10 to 27")),
        // An unknown section is skipped, so its codec does not matter.
        _ if kind.is_none() => Codec::Stored,
        _ => return Err(DeltaError::Newer { what: format!("codec {codec}") }),
    };
    Ok(Section { kind, route, codec, offset, stored_len, raw_len, blake3 })
}
