//! The texts of all deflated data of an image, one behind the other, and where in the image everything in them stands.

use super::find::starts;
use crate::deflate::{Item, SILENT_AT, Stop, Unpacker};
use crate::delta::step::{Start, Step};
use crate::image::Image;
use crate::parallel;
use crate::units::BLOCK;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

/// Bits from one mark to the next, at least: what has to be unpacked to find a place.
const MARK_BITS: u64 = 8192;
/// Bits of a block of the image.
const BLOCK_BITS: u64 = BLOCK * 8;
/// Deflated data of fewer bytes are left as they are.
const LEAST: u64 = 256;
/// Bytes by which it is told what merely looks like the start of a stream.
const TRIAL: u64 = 2048;
/// More than the bits of a literal or match: 15 for each code, 5 and 13 extra.
const LONGEST: u64 = 64;
/// No block: behind the last one of a section.
const NONE: u32 = u32::MAX;

/// A place where an item begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In the image.
    pub bit: u64,
    /// In the texts.
    pub text: u64,
    /// The block that it is in.
    pub block: u32,
}

/// A compressed block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Where its header begins.
    pub header: Place,
    /// Where that ends.
    pub behind: Place,
}

/// Compressed blocks side by side.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// Their bits.
    pub bits: Range<u64>,
    /// Their text.
    pub text: Range<u64>,
    /// The whole bytes that they determine.
    pub bytes: Range<u64>,
}

/// What is known of an image's deflated data.
#[derive(Default)]
pub(super) struct Texts {
    /// All texts.
    pub bytes: Image,
    /// Ascending.
    pub sections: Vec<Section>,
    /// All blocks.
    pub blocks: Vec<Block>,
    /// Where blocks begin, where sections end, and some places between.
    marks: Vec<Place>,
    /// The items that reach over the end of a block of the image, or end there: from where, to where.
    edges: Vec<(Place, Place)>,
}

/// One stream, its places counted from 0 in the text.
#[derive(Default)]
struct Stream {
    text: Vec<u8>,
    sections: Vec<Section>,
    blocks: Vec<Block>,
    marks: Vec<Place>,
    edges: Vec<(Place, Place)>,
}

/// What finding deflated data may cost.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of one stream's text; the rest of it is left as it is.
    pub stream: usize,
    /// Bytes of all texts.
    pub all: u64,
    pub threads: usize,
}

/// Streams that are unpacked in one go.
const GROUP: usize = 8;

impl Texts {
    /// Unpacks what begins in `ranges` of an image. Texts are kept in a file without a name in `folder`.
    pub fn find(image: &[u8], ranges: &[Range<u64>], limits: Limits, folder: &Path) -> io::Result<Self> {
        let starts = starts(image, ranges, limits.threads, |start| Stream::may_begin(image, start));
        let mut file = BufWriter::new(tempfile::tempfile_in(folder)?);
        let mut texts = Self::default();
        // `behind` counts bits, as a stream that is broken off ends within a byte.
        let (mut len, mut behind) = (0u64, 0u64);
        for group in starts.chunks(GROUP) {
            let streams = parallel::map(group.len(), limits.threads, |i| {
                if group[i] * 8 < behind { Stream::default() } else { Stream::read(image, group[i], limits.stream) }
            });
            for stream in streams {
                // What is found within another stream is not one.
                if stream.sections.first().is_none_or(|first| first.bits.start < behind) {
                    continue;
                }
                behind = stream.sections.last().map_or(behind, |last| last.bits.end);
                file.write_all(&stream.text)?;
                len = texts.append(stream, len);
            }
            if len > limits.all {
                break;
            }
        }
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        texts.bytes = Image::of_file(file)?;
        Ok(texts)
    }

    /// Appends a stream whose text begins at `at`; returns where it ends.
    fn append(&mut self, stream: Stream, at: u64) -> u64 {
        let first = self.blocks.len() as u32;
        let placed = |place: Place| Place {
            text: place.text + at,
            block: if place.block == NONE { NONE } else { place.block + first },
            ..place
        };
        self.sections.extend(
            stream
                .sections
                .into_iter()
                .map(|section| Section { text: section.text.start + at..section.text.end + at, ..section }),
        );
        let both = |block: Block| Block { header: placed(block.header), behind: placed(block.behind) };
        self.blocks.extend(stream.blocks.into_iter().map(both));
        self.marks.extend(stream.marks.into_iter().map(placed));
        self.edges.extend(stream.edges.into_iter().map(|(from, to)| (placed(from), placed(to))));
        at + stream.text.len() as u64
    }

    /// The section that holds these bytes of the image.
    pub fn section_of(&self, bytes: &Range<u64>) -> Option<&Section> {
        let i = self.sections.partition_point(|section| section.bytes.end <= bytes.start);
        self.sections.get(i).filter(|section| section.bytes.start <= bytes.start && bytes.end <= section.bytes.end)
    }

    /// The last item that begins at `bit` or before, and where it ends; at an edge perhaps the one that ends there.
    fn item_at(&self, image: &[u8], bit: u64) -> Option<(Place, Place)> {
        let i = self.edges.partition_point(|(_, end)| end.bit < bit);
        if let Some(edge) = self.edges.get(i).filter(|(from, _)| from.bit <= bit) {
            return Some(*edge);
        }
        let i = self.marks.partition_point(|mark| mark.bit <= bit).checked_sub(1)?;
        let mut place = *self.marks.get(i)?;
        let mut unpacker = self.unpacker_at(image, place)?;
        let mut text = Vec::new();
        loop {
            text.clear();
            let (_, end) = unpacker.next(image, place.bit, &mut text).ok()?;
            let next = Place { bit: end, text: place.text + text.len() as u64, ..place };
            if end > bit {
                return Some((place, next));
            }
            place = next;
        }
    }

    fn unpacker_at(&self, image: &[u8], place: Place) -> Option<Unpacker> {
        let mut unpacker = Unpacker::new();
        let header = self.blocks.get(place.block as usize)?.header;
        if header.bit != place.bit {
            unpacker.next(image, header.bit, &mut Vec::new()).ok()?;
            unpacker.jump(true);
        }
        Some(unpacker)
    }

    /// The items that have bits in these bytes, which lie in one section: the first, and where the last ends.
    pub fn items_of(&self, image: &[u8], bytes: &Range<u64>) -> Option<(Place, Place)> {
        let section = self.section_of(bytes)?;
        let (first, _) = self.item_at(image, bytes.start * 8)?;
        let end_bit = (bytes.end * 8).min(section.bits.end);
        if end_bit == section.bits.end {
            return Some((first, Place { bit: end_bit, text: section.text.end, block: NONE }));
        }
        let (last, end) = self.item_at(image, end_bit)?;
        Some((first, if last.bit == end_bit { last } else { end }))
    }

    /// The header of a block, as text that makes no bits.
    pub fn silent_header(&self, block: u32) -> Option<Vec<u8>> {
        let Block { header, behind } = *self.blocks.get(block as usize)?;
        let mut text = self.bytes.bytes().get(header.text as usize..behind.text as usize)?.to_vec();
        *text.get_mut(SILENT_AT.0)? |= SILENT_AT.1;
        Some(text)
    }

    /// From where to unpack to get at this byte of the texts: the header of its block, unless that is more than `ahead`
    /// bytes before; then a place within the block.
    pub fn start_for(&self, text: u64, ahead: u64) -> Option<Place> {
        let mark = *self.marks.get(self.marks.partition_point(|mark| mark.text <= text).checked_sub(1)?)?;
        let header = self.blocks.get(mark.block as usize)?.header;
        Some(if text - header.text <= ahead { header } else { mark })
    }

    /// The step that unpacks the header alone of the block that is at this byte of the texts, unless the block begins there.
    pub fn header_apart(&self, text: u64) -> Option<Step> {
        let place = self.place(text)?;
        let Block { header, behind } = *self.blocks.get(place.block as usize)?;
        (header.bit != place.bit).then(|| unpack(header, behind.bit, behind.text - header.text, false))
    }

    /// Unpacks from the known place at `from` towards the one at `to`, within a section, as far as `most` bytes of the
    /// image reach; returns where in the texts it ends. `None` at the end.
    pub fn unpack_step(&self, from: u64, to: u64, most: u64) -> Option<(Step, u64)> {
        if from >= to {
            return None;
        }
        let first = self.place(from)?;
        let section = self.sections.get(self.sections.partition_point(|section| section.text.end <= from))?;
        let i = self.marks.partition_point(|mark| mark.text <= from);
        let fits =
            |mark: &&Place| mark.text <= to.min(section.text.end) && mark.bit.div_ceil(8) - first.bit / 8 <= most;
        let end = self.marks[i..].iter().take_while(fits).last()?;
        let inside = self.blocks.get(first.block as usize)?.header.bit != first.bit;
        Some((unpack(first, end.bit, end.text - from, inside), end.text))
    }

    /// The known place, not the end of a section, at this byte of the texts.
    fn place(&self, text: u64) -> Option<Place> {
        let i = self.marks.partition_point(|mark| mark.text <= text).checked_sub(1)?;
        self.marks.get(i).copied().filter(|mark| mark.text == text && mark.block != NONE)
    }

    /// The first known place at or behind this byte of the texts.
    pub fn mark_from(&self, text: u64) -> Option<Place> {
        // Where a section begins right behind another, the end comes first.
        self.marks.get(self.marks.partition_point(|mark| mark.text < text)).copied()
    }
}

/// Unpacks from a place up to bit `end`.
fn unpack(from: Place, end: u64, text_len: u64, inside: bool) -> Step {
    let byte = from.bit / 8;
    Step::unpack(byte, end.div_ceil(8) - byte, Start { bit: (from.bit % 8) as u8, inside }, text_len)
}

impl Stream {
    /// Unpacks the stream that begins at byte `start`, as far as there is one.
    fn read(image: &[u8], start: u64, most: usize) -> Self {
        let (mut stream, mut at) = (Self::default(), start * 8);
        while let Some(next) = stream.read_section(image, at, most) {
            at = next;
        }
        stream
    }

    /// Whether there is more than the beginning of a stream at byte `start`. Most of what only looks like one ends soon:
    /// this takes no memory for it.
    fn may_begin(image: &[u8], start: u64) -> bool {
        let (mut unpacker, mut at, mut trial) = (Unpacker::new(), start * 8, Vec::new());
        loop {
            trial.clear();
            match unpacker.next(image, at, &mut trial) {
                Ok((_, end)) if end >= (start + TRIAL) * 8 => return true,
                Ok((_, end)) => at = end,
                Err(stop) => return stop == Stop::Finished && at >= (start + LEAST) * 8,
            }
        }
    }

    /// Unpacks blocks from a header on; where compressed blocks go on behind one that is not compressed.
    fn read_section(&mut self, image: &[u8], start: u64, most: usize) -> Option<u64> {
        let (mut unpacker, mut at, mut item) = (Unpacker::new(), start, Item::End { last: false });
        let from = self.text.len();
        let kept = (self.blocks.len(), self.marks.len(), self.edges.len());
        let stop = loop {
            if self.text.len() >= most {
                break Stop::Malformed;
            }
            // Up to where there may be something to note, symbols are just unpacked.
            let mark = self.marks.last().map_or(0, |mark| mark.bit);
            let quiet = (mark + MARK_BITS).min((at / BLOCK_BITS + 1) * BLOCK_BITS) - LONGEST;
            if at < quiet && !matches!(item, Item::End { .. }) {
                match unpacker.run(image, at, (quiet, most), &mut self.text) {
                    Ok(next) => (item, at) = next,
                    Err(stop) => break stop,
                }
                continue;
            }
            let mut place = Place { bit: at, text: self.text.len() as u64, block: self.blocks.len() as u32 };
            let (next, end) = match unpacker.next(image, at, &mut self.text) {
                Ok(next) => next,
                Err(stop) => break stop,
            };
            let mut behind = Place { bit: end, text: self.text.len() as u64, ..place };
            if matches!(item, Item::End { .. }) {
                self.blocks.push(Block { header: place, behind });
                self.marks.push(place);
            } else {
                place.block -= 1;
                behind.block -= 1;
                if self.marks.last().is_some_and(|mark| at >= mark.bit + MARK_BITS) {
                    self.marks.push(place);
                }
            }
            if at / BLOCK_BITS != end / BLOCK_BITS {
                self.edges.push((place, behind));
            }
            (item, at) = (next, end);
        };
        let finished = stop == Stop::Finished;
        let padded = finished && image.get((at / 8) as usize).is_some_and(|byte| byte >> (at % 8) == 0);
        let bytes = start.div_ceil(8)..if padded { at.div_ceil(8) } else { at / 8 };
        let text = from as u64..self.text.len() as u64;
        if bytes.start + LEAST > bytes.end {
            self.text.truncate(from);
            self.blocks.truncate(kept.0);
            self.marks.truncate(kept.1);
            self.edges.truncate(kept.2);
        } else {
            self.marks.push(Place { bit: at, text: text.end, block: NONE });
            self.sections.push(Section { bits: start..at, text, bytes });
        }
        if stop == Stop::Stored { behind_stored(image, at) } else { None }
    }
}

/// The bit where the blocks go on behind one that is not compressed; `None` where it is the last, or not one.
fn behind_stored(image: &[u8], at: u64) -> Option<u64> {
    let byte = (at / 8) as usize;
    let last = image.get(byte)? >> (at % 8) & 1 == 1;
    let head = image.get((at + 3).div_ceil(8) as usize..)?.first_chunk::<4>()?;
    let len = u16::from_le_bytes([head[0], head[1]]);
    let right = len == !u16::from_le_bytes([head[2], head[3]]);
    let behind = ((at + 3).div_ceil(8) + 4 + u64::from(len)) * 8;
    (!last && right && behind < image.len() as u64 * 8).then_some(behind)
}
