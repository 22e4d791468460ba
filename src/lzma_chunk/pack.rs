//! From a text to chunks.

use super::model::{Match, Model, Packet};
use super::range::Writer;
use super::{COMPRESSED, CONTENT_MOST, HEADER, KINDS, MATCH_MOST, Malformed, NEW_PROPERTIES, RESET_ALL, begin};
use crate::varint;

/// Bytes that may be made, at the most, before it shows that there are too many.
pub const BEYOND: usize = 16;

/// Appends the chunks that a text stands for, up to `most` bytes, to `out`.
///
/// # Errors
/// [`Malformed`], or what takes more bytes; `out` may have up to [`BEYOND`] more then.
pub fn pack(text: &[u8], most: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut model, mut rest) = (None, text);
    let end = out.len().saturating_add(most);
    while !rest.is_empty() {
        pack_chunk(&mut rest, &mut model, end, out).filter(|()| out.len() <= end).ok_or(Malformed)?;
    }
    Ok(())
}

fn pack_chunk(rest: &mut &[u8], model: &mut Option<Box<Model>>, end: usize, out: &mut Vec<u8>) -> Option<()> {
    let reset = *rest.split_off_first().filter(|reset| **reset <= RESET_ALL)?;
    let properties = if reset >= NEW_PROPERTIES { Some(*rest.split_off_first()?) } else { None };
    let model = begin(model, reset, properties)?;
    let less_one = usize::try_from(varint::take(rest)?).ok().filter(|less_one| *less_one < CONTENT_MOST)?;
    let content_end = model.content_end(less_one + 1)?;
    let start = out.len();
    out.extend([COMPRESSED | reset << 5 | (less_one >> 16) as u8, (less_one >> 8) as u8, less_one as u8, 0, 0]);
    out.extend(properties);
    let packed_start = out.len();
    let mut writer = Writer::new(out, end);
    while model.content.len() < content_end {
        let count =
            usize::try_from(varint::take(rest)?).ok().filter(|count| *count <= content_end - model.content.len())?;
        for byte in rest.split_off(..count)? {
            model.packet(&mut writer, Packet::Literal(*byte))?;
        }
        if model.content.len() < content_end {
            let found = get_match(rest)?;
            model.packet(&mut writer, Packet::Match(found))?;
            model.follow(found, content_end)?;
        }
    }
    writer.finish()?;
    let packed = u16::try_from((out.len() - packed_start).checked_sub(1)?).ok()?;
    out.get_mut(start + HEADER - 2..start + HEADER)?.copy_from_slice(&packed.to_be_bytes());
    Some(())
}

fn get_match(rest: &mut &[u8]) -> Option<Match> {
    let said = u32::try_from(varint::take(rest)?).ok()?;
    let (kind, len) = (said % KINDS, said / KINDS);
    let distance = if kind == 0 { u32::try_from(varint::take(rest)?).ok()? } else { 0 };
    let len = match kind {
        1 => Some(1).filter(|_| len == 0)?,
        _ => Some(len + 2).filter(|len| *len <= MATCH_MOST)?,
    };
    Some(Match { kind, len, distance })
}
