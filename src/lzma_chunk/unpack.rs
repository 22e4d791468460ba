//! From a chunk to its text.

use super::model::{Match, Model, Packet};
use super::range::Reader;
use super::{COMPRESSED, HEADER, KINDS, MATCH_MOST, Malformed, NEW_PROPERTIES, begin};
use crate::varint;

/// Bytes that a text may have, at the most, before it shows that there are too many: some numbers.
pub const TEXT_BEYOND: usize = 32;

/// Appends the text of compressed chunks that follow each other to `text`. The first resets the dictionary.
///
/// # Errors
/// [`Malformed`], or what takes more than `most` bytes of text; `text` may have up to [`TEXT_BEYOND`] more then.
pub fn unpack(chunks: &[u8], most: usize, text: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut unpacker, mut rest) = (Unpacker::default(), chunks);
    let end = text.len().saturating_add(most);
    while !rest.is_empty() {
        let used = unpacker.next(rest, end.saturating_sub(text.len()), text)?;
        rest = rest.get(used..).ok_or(Malformed)?;
    }
    Ok(())
}

/// Unpacks chunk after chunk.
#[derive(Debug, Default)]
pub struct Unpacker {
    model: Option<Box<Model>>,
}

impl Unpacker {
    /// Appends the text of the chunk that these bytes begin with, and returns how many it has.
    ///
    /// # Errors
    /// As [`unpack`]; the unpacker is of no use then.
    pub fn next(&mut self, bytes: &[u8], most: usize, text: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut rest = bytes;
        self.chunk(&mut rest, most, text).ok_or(Malformed)?;
        Ok(bytes.len() - rest.len())
    }

    fn chunk(&mut self, rest: &mut &[u8], most: usize, text: &mut Vec<u8>) -> Option<()> {
        let most = text.len().checked_add(most)?;
        let (&[control, high, low, ref packed @ ..], others) = rest.split_first_chunk::<HEADER>()?;
        *rest = others;
        let reset = control.checked_sub(COMPRESSED)? >> 5;
        let properties = if reset >= NEW_PROPERTIES { Some(*rest.split_off_first()?) } else { None };
        let packed = rest.split_off(..=usize::from(u16::from_be_bytes(*packed)))?;
        let model = begin(&mut self.model, reset, properties)?;
        let less_one = usize::from(control & 31) << 16 | usize::from(high) << 8 | usize::from(low);
        text.push(reset);
        text.extend(properties);
        varint::put(text, less_one as u64);
        let end = model.content_end(less_one + 1)?;
        let mut reader = Reader::new(packed)?;
        packets(model, &mut reader, end, most, text)?;
        reader.is_done().then_some(())
    }
}

/// Appends packets until `end` bytes of content are there.
fn packets(model: &mut Model, reader: &mut Reader<'_>, end: usize, most: usize, text: &mut Vec<u8>) -> Option<()> {
    let mut from = model.content.len();
    while model.content.len() < end {
        let Packet::Match(found) = model.packet(reader, Packet::Literal(0))? else { continue };
        put_literals(&model.content[from..], most, text)?;
        model.follow(found, end)?;
        put_match(found, text);
        from = model.content.len();
    }
    if from < end {
        put_literals(&model.content[from..], most, text)?;
    }
    (text.len() <= most).then_some(())
}

fn put_literals(literals: &[u8], most: usize, text: &mut Vec<u8>) -> Option<()> {
    if text.len().checked_add(literals.len())? > most {
        return None;
    }
    varint::put(text, literals.len() as u64);
    text.extend_from_slice(literals);
    Some(())
}

fn put_match(found: Match, text: &mut Vec<u8>) {
    debug_assert!(found.len <= MATCH_MOST);
    let len = found.len.saturating_sub(2);
    varint::put(text, (KINDS * len + found.kind).into());
    if found.kind == 0 {
        varint::put(text, found.distance.into());
    }
}
