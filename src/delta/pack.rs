//! Where the streams of a route lie: in sections of their own or, in a small delta, together in one, the pack (spec,
//! section 3.3).

use super::DeltaError;
use super::header::{Codec, Header, Kind, Section};
use super::stream::{ReadAt, StreamReader};
use crate::varint;
use std::sync::Arc;

/// The most bytes of a pack after decompression.
pub const PACK_MOST: u64 = 64 << 10;
/// The largest window of a pack: as its memory is needed before the limits are known, it is small.
pub const PACK_WINDOW_LOG: u8 = 17;
/// Bytes of memory that a pack takes beside its decompressor: its contents, and a buffer for each stream.
pub(super) const PACK_MEMORY: u64 = PACK_MOST + Kind::STREAMS.len() as u64 * (128 << 10);

/// The streams of one route.
#[derive(Clone)]
pub struct Streams {
    source: Arc<dyn ReadAt>,
    sections: Vec<Section>,
}

impl Streams {
    /// Finds the streams of `route`; what is packed is unpacked.
    ///
    /// # Errors
    /// A pack that is malformed, or not alone.
    pub fn of(source: &Arc<dyn ReadAt>, header: &Header, route: u16) -> Result<Self, DeltaError> {
        let own = header.sections.iter().filter(|s| s.route == route && s.kind.is_some());
        let sections: Vec<Section> = own.cloned().collect();
        match header.section(Kind::Pack, route) {
            None => Ok(Self { source: Arc::clone(source), sections }),
            Some(_) if sections.len() > 1 => Err(DeltaError::Malformed("a route with a pack has other sections")),
            Some(pack) => unpack(source, pack),
        }
    }

    /// The section of that kind, as if it stood by itself.
    #[must_use]
    pub fn section(&self, kind: Kind) -> Option<&Section> {
        self.sections.iter().find(|s| s.kind == Some(kind))
    }

    /// Where the bytes of the sections lie.
    #[must_use]
    pub fn source(&self) -> &Arc<dyn ReadAt> {
        &self.source
    }

    /// The stream of that kind, from its start.
    ///
    /// # Errors
    /// Where a decompressor cannot be set up.
    pub fn open(&self, kind: Kind) -> Result<StreamReader, DeltaError> {
        StreamReader::open(&self.source, self.section(kind), kind.name())
    }
}

/// Reads a pack into memory; its streams become sections there.
fn unpack(source: &Arc<dyn ReadAt>, pack: &Section) -> Result<Streams, DeltaError> {
    if pack.raw_len > PACK_MOST {
        return Err(DeltaError::field("raw_len of a pack", pack.raw_len, format!("at most {PACK_MOST}")));
    }
    if let Codec::Zstd { window_log } = pack.codec
        && window_log > PACK_WINDOW_LOG
    {
        return Err(DeltaError::field("window_log of a pack", window_log.into(), format!("10 to {PACK_WINDOW_LOG}")));
    }
    let mut stream = StreamReader::open(source, Some(pack), Kind::Pack.name())?;
    let mut bytes = vec![0; pack.raw_len as usize];
    stream.fill(&mut bytes)?;
    stream.finish()?;
    let mut rest = bytes.as_slice();
    let mut lens = [0u64; Kind::STREAMS.len()];
    for len in &mut lens {
        *len = varint::get(&mut rest).map_err(|e| super::stream::varint_error(Kind::Pack.name(), e))?;
    }
    if lens.iter().copied().try_fold(0, u64::checked_add) != Some(rest.len() as u64) {
        return Err(DeltaError::Malformed("the lengths in the pack do not add up to its own"));
    }
    let mut offset = (bytes.len() - rest.len()) as u64;
    let mut sections = Vec::with_capacity(lens.len());
    for (kind, len) in Kind::STREAMS.into_iter().zip(lens).filter(|(_, len)| *len > 0) {
        let (kind, codec, blake3) = (Some(kind), Codec::Stored, [0; 32]);
        sections.push(Section { kind, route: pack.route, codec, offset, stored_len: len, raw_len: len, blake3 });
        offset += len;
    }
    Ok(Streams { source: Arc::new(bytes), sections })
}

/// The contents of a pack. `streams` are those of [`Kind::STREAMS`].
pub(super) fn pack(streams: &[Vec<u8>; Kind::STREAMS.len()]) -> Vec<u8> {
    let mut out = Vec::new();
    streams.iter().for_each(|stream| varint::put(&mut out, stream.len() as u64));
    streams.iter().for_each(|stream| out.extend(stream));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(raw: Vec<u8>, codec: Codec, raw_len: u64) -> Result<Streams, DeltaError> {
        let stored_len = raw.len() as u64;
        let section =
            Section { kind: Some(Kind::Pack), route: 0, codec, offset: 0, stored_len, raw_len, blake3: [0; 32] };
        let source: Arc<dyn ReadAt> = Arc::new(raw);
        unpack(&source, &section)
    }

    fn some_streams() -> [Vec<u8>; Kind::STREAMS.len()] {
        [vec![1; 152], vec![2; 300], vec![], vec![4], vec![], vec![], vec![], vec![8; 9]]
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let raw = pack(&some_streams());
        let len = raw.len() as u64;
        let streams = open(raw, Codec::Stored, len).unwrap();
        for (kind, bytes) in Kind::STREAMS.into_iter().zip(some_streams()) {
            assert_eq!(streams.section(kind).map_or(0, |s| s.raw_len), bytes.len() as u64);
            let mut stream = streams.open(kind).unwrap();
            let mut found = vec![0; bytes.len()];
            stream.fill(&mut found).unwrap();
            stream.finish().unwrap();
            assert_eq!(found, bytes);
        }
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let raw = pack(&some_streams());
        for change in [-1i32, 1] {
            let mut raw = raw.clone();
            let at = raw.len();
            if change < 0 {
                raw.truncate(at - 1)
            } else {
                raw.push(0)
            }
            let len = raw.len() as u64;
            assert!(open(raw, Codec::Stored, len).is_err());
        }
        // Their sum leaves 64 bits.
        let mut raw = Vec::new();
        (0..Kind::STREAMS.len()).for_each(|_| varint::put(&mut raw, u64::MAX));
        let len = raw.len() as u64;
        assert!(open(raw, Codec::Stored, len).is_err());
        assert!(open(vec![0; 5], Codec::Stored, 5).is_err());
    }

    #[test]
    fn a_pack_that_is_too_large_is_refused_before_anything_is_reserved() {
        for (codec, raw_len) in [(Codec::Stored, PACK_MOST + 1), (Codec::Zstd { window_log: 18 }, 100)] {
            assert!(matches!(open(vec![0; 100], codec, raw_len), Err(DeltaError::Field { .. })));
        }
    }
}
