//! One stream of deflated data: told from what merely looks like one, unpacked, and cut off where another begins.

use super::find::Trial;
use crate::deflate::{Item, Stop, Unpacker, next_header};
use crate::units::BLOCK;
use std::ops::Range;

/// Bits from one mark to the next, at least: what has to be unpacked to find a place.
const MARK_BITS: u64 = 8192;
/// Bits of a block of the image.
const BLOCK_BITS: u64 = BLOCK * 8;
/// Deflated data of fewer bytes are left as they are.
const LEAST: u64 = 256;
/// Bytes by which it is told what merely looks like the start of a stream.
const TRIAL: u64 = 2048;
/// Bytes that are unpacked, at the most and as a rule, behind the place where a stream was broken off.
const NONSENSE: u64 = 128 << 10;
/// Bytes of text that are unpacked in one go where only the way counts.
const FOLLOWED: usize = 64 << 10;
/// Bytes of a stream that is worth a search for the rest of it where it breaks off.
const LONG: u64 = 64 << 10;
/// What reading the header of a block costs, in bytes that could be unpacked meanwhile: its codes become tables.
const HEADER_COST: u64 = 256;
/// What passing over a block that is not compressed costs, in the same.
const STORED_COST: u64 = 32;
/// Bits of a block, on the average, and how many blocks may be shorter. There are blocks of ten bits; where a stream is
/// made of these, what is to be known of it takes many times the memory of its bytes.
const BLOCK_LEAST: u64 = 256;
const BLOCKS_ANYWAY: u64 = 16;
/// More than the bits of a literal or match: 15 for each code, 5 and 13 extra.
const LONGEST: u64 = 64;
/// No block: behind the last one of a section.
pub(super) const NONE: u32 = u32::MAX;

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

/// One stream, its places counted from 0 in the text.
#[derive(Default)]
pub(super) struct Stream {
    pub text: Vec<u8>,
    pub sections: Vec<Section>,
    pub blocks: Vec<Block>,
    /// Where blocks begin, where sections end, and some places between.
    pub marks: Vec<Place>,
    /// The items that reach over the end of a block of the image, or end there: from where, to where.
    pub edges: Vec<(Place, Place)>,
    /// The bit at which it begins, whatever begins there.
    first: u64,
    /// Whether its last block ended.
    pub finished: bool,
    /// Bytes of the image that were unpacked, and what it cost to pass over others.
    pub read: u64,
    /// The bit up to which it was read, whatever came of it.
    pub passed: u64,
}

/// What comes of unpacking from the midst of what may be a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed {
    /// The bit up to which it is one: there it ends, or the next block begins. The first one where it seems to be none.
    pub end: u64,
    /// Bytes of text up to there.
    pub text: u64,
    /// What the way beyond cost, in bytes that could be unpacked meanwhile, and what many headers cost more than bytes.
    pub in_vain: u64,
}

impl Stream {
    /// Unpacks the stream that begins at bit `start`, as far as there is one, up to `most` bytes of text.
    pub fn read(image: &[u8], start: u64, most: usize) -> Self {
        let (mut stream, mut at) = (Self { first: start, ..Self::default() }, start);
        while let Some(next) = stream.read_section(image, at, most) {
            at = next;
        }
        stream
    }

    /// Whether there is more than the beginning of a stream at byte `start`. Most of what only looks like one ends soon:
    /// this takes no memory for it.
    pub fn attempt(image: &[u8], start: u64) -> Trial {
        let (mut unpacker, mut at, mut text, mut headers) = (Unpacker::new(), start * 8, Vec::new(), 1);
        let likely = loop {
            text.clear();
            match unpacker.next(image, at, &mut text) {
                Ok((item, end)) => {
                    at = end;
                    headers += u64::from(item == Item::Header);
                }
                Err(Stop::Stored) => match behind_stored(image, at) {
                    // Two bytes that are the complement of two others are as good as a header that can be read.
                    Some(behind) => (unpacker, at) = (Unpacker::new(), behind),
                    None => break false,
                },
                Err(stop) => break stop == Stop::Finished && at >= (start + LEAST) * 8,
            }
            if at >= (start + TRIAL) * 8 {
                break true;
            }
        };
        let end = at.div_ceil(8).clamp(start, start + TRIAL);
        Trial { likely, end, cost: end - start + headers * HEADER_COST }
    }

    /// Unpacks a stream that seems to go on with the block at bit `bit`, up to `most` bytes of text and the first block at or
    /// behind byte `until`, as far as can be relied on: each block is followed by another, or is the last.
    pub fn follow(image: &[u8], bit: u64, until: u64, most: u64) -> Followed {
        let (mut unpacker, mut at, mut text, mut headers) = (Unpacker::new(), bit, Vec::new(), 1);
        let (mut sure, mut unpacked) = ((bit, 0), 0);
        let finished = loop {
            // Where the stream is broken off, what lies there is unpacked, too.
            let nonsense = sure.0 + NONSENSE * 8;
            if sure.0 >= until * 8 || at >= nonsense || unpacked > most {
                break false;
            }
            text.clear();
            match unpacker.run(image, at, (nonsense, FOLLOWED), &mut text) {
                Ok((item, end)) => {
                    at = end;
                    unpacked += text.len() as u64;
                    headers += u64::from(item == Item::Header);
                    // Others than headers with codes of their own are too easily read into anything.
                    if matches!(item, Item::End { .. }) && next_header(image, at..at + 1, &mut 0).is_some() {
                        sure = if unpacked > most { sure } else { (at, unpacked) };
                    }
                }
                Err(Stop::Stored) => match behind_stored(image, at) {
                    Some(behind) => (unpacker, at) = (Unpacker::new(), behind),
                    None => break false,
                },
                Err(stop) => break stop == Stop::Finished,
            }
        };
        let (end, text) = if finished && unpacked <= most { (at, unpacked) } else { sure };
        let likely = end >= bit + LEAST * 8;
        let cost = ((at - bit) / 8).max(unpacked / 4) + headers * HEADER_COST;
        Followed { end: if likely { end } else { bit }, text, in_vain: cost - cost.min((end - bit) / 8) }
    }

    /// Whether it ends though nothing says so, after so much that what follows may lie elsewhere.
    pub fn breaks_off(&self, most: usize) -> bool {
        let bits = self.bits();
        !self.finished && self.text.len() < most && bits.end - bits.start >= LONG * 8
    }

    /// The bit at which it begins, and the one at which it ends; 0 where there is nothing.
    pub fn bits(&self) -> Range<u64> {
        let start = self.sections.first().map_or(0, |first| first.bits.start);
        start..self.sections.last().map_or(0, |last| last.bits.end)
    }

    /// Whether this stream, which begins within `other`, shows that the other one was broken off before, as what lies
    /// in pieces is: what follows is unpacked as well for a while, to no sense, and hides what begins there.
    pub fn breaks(&self, other: &Self) -> bool {
        let bits = self.bits();
        // Where blocks go on behind one that is not compressed and ends as if a header stood there, it is the same stream.
        let inside =
            other.sections.iter().any(|section| section.bits.start < bits.start && bits.start < section.bits.end);
        // A block that was the last of its stream ends in what follows, too, where it was broken off.
        let end = other.bits().end;
        let better = bits.end > end || self.finished && !other.finished;
        // Hardly anything but a stream can be unpacked for so long; were it none, little would be lost.
        let better = better || bits.end - bits.start >= TRIAL * 8 && end.saturating_sub(bits.start) <= NONSENSE * 8;
        inside && !bits.is_empty() && better
    }

    /// Takes off what lies behind bit `end`, and a little more, up to a known place.
    pub fn cut(&mut self, end: u64) {
        self.finished = false;
        let kept = self.sections.partition_point(|section| section.bits.start < end);
        if let Some(first) = self.sections.get(kept) {
            let start = Place { bit: first.bits.start, text: first.text.start, block: NONE };
            self.sections.truncate(kept);
            self.drop_from(start);
        }
        let Some(last) = self.sections.last_mut().filter(|last| last.bits.end > end) else { return };
        let marks = &self.marks[..self.marks.partition_point(|mark| mark.bit <= end)];
        let edges = &self.edges[..self.edges.partition_point(|(from, _)| from.bit <= end)];
        let edges = edges.iter().rev().take(2).flat_map(|(from, to)| [*from, *to]);
        let known = marks.last().copied().into_iter().chain(edges).filter(|place| place.bit <= end);
        let from = last.bits.start;
        let place = known.max_by_key(|place| place.bit).filter(|place| place.bit >= from);
        let place = place.unwrap_or(Place { bit: from, text: last.text.start, block: NONE });
        (last.bits.end, last.text.end, last.bytes.end) = (place.bit, place.text, place.bit / 8);
        if last.bytes.start + LEAST > last.bytes.end {
            let start = Place { bit: last.bits.start, text: last.text.start, block: NONE };
            self.sections.pop();
            self.drop_from(start);
        } else {
            self.drop_from(place);
            self.marks.push(Place { block: NONE, ..place });
        }
    }

    /// Forgets what lies at a place and behind it, in the image and in the text, and that belongs to no section.
    fn drop_from(&mut self, place: Place) {
        self.text.truncate(place.text as usize);
        self.blocks.truncate(self.blocks.partition_point(|block| block.header.bit < place.bit));
        self.marks.truncate(self.marks.partition_point(|mark| mark.bit < place.bit));
        self.edges.truncate(self.edges.partition_point(|(from, _)| from.bit < place.bit));
    }

    /// Unpacks blocks from a header on; where compressed blocks go on behind one that is not compressed.
    fn read_section(&mut self, image: &[u8], start: u64, most: usize) -> Option<u64> {
        let (mut unpacker, mut at, mut item) = (Unpacker::new(), start, Item::End { last: false });
        let from = self.text.len();
        let kept = (self.blocks.len(), self.marks.len(), self.edges.len());
        let stop = loop {
            let blocks = (self.blocks.len() as u64).saturating_sub(BLOCKS_ANYWAY);
            if self.text.len() >= most || blocks * BLOCK_LEAST > at - self.first {
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
        self.finished = stop == Stop::Finished;
        self.read += (at - start).div_ceil(8);
        let padded = self.finished && image.get((at / 8) as usize).is_some_and(|byte| byte >> (at % 8) == 0);
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
        let behind = if stop == Stop::Stored { behind_stored(image, at) } else { None };
        self.read += behind.map_or(0, |_| STORED_COST);
        self.passed = behind.unwrap_or(at);
        behind
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
