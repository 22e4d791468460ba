//! What LZMA says, packet by packet, and with which probabilities: one model for reading and writing.

use super::CONTENT_MOST;
use super::range::{Coder, HALF};

/// What a packet says besides a literal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// 0: at a distance of its own; 1: one byte at the last distance; 2 to 5: at one of the last four distances.
    pub kind: u32,
    /// Bytes.
    pub len: u32,
    /// Less one; of kind 0 only.
    pub distance: u32,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Literal(u8),
    Match(Match),
}

/// Kinds of matches.
pub(super) const KINDS: u32 = 6;
const STATES: usize = 12;
const POSITIONS: usize = 16;
/// From this state on the packet before was not a literal.
const AFTER_MATCH: usize = 7;
/// Fewest bytes of a match.
const LEN_LEAST: u32 = 2;

/// Probabilities of lengths.
#[derive(Clone, Debug)]
struct Lengths {
    choice: [u16; 2],
    low: [[u16; 8]; POSITIONS],
    middle: [[u16; 8]; POSITIONS],
    high: [u16; 256],
}

impl Lengths {
    const NEW: Self =
        Self { choice: [HALF; 2], low: [[HALF; 8]; POSITIONS], middle: [[HALF; 8]; POSITIONS], high: [HALF; 256] };

    fn code(&mut self, coder: &mut impl Coder, position: usize, len: u32) -> Option<u32> {
        let value = len.wrapping_sub(LEN_LEAST);
        if coder.bit(&mut self.choice[0], u32::from(value >= 8))? == 0 {
            return Some(LEN_LEAST + tree(coder, &mut self.low[position], 3, value)?);
        }
        if coder.bit(&mut self.choice[1], u32::from(value >= 16))? == 0 {
            return Some(LEN_LEAST + 8 + tree(coder, &mut self.middle[position], 3, value.wrapping_sub(8))?);
        }
        Some(LEN_LEAST + 16 + tree(coder, &mut self.high, 8, value.wrapping_sub(16))?)
    }
}

/// A number of so many bits, the first one first, each with the probability that those before it choose.
#[inline(always)]
fn tree(coder: &mut impl Coder, probabilities: &mut [u16], bits: u32, value: u32) -> Option<u32> {
    let mut node = 1;
    for i in (0..bits).rev() {
        node = node << 1 | coder.bit(probabilities.get_mut(node as usize)?, value >> i & 1)?;
    }
    Some(node - (1 << bits))
}

/// The same, the last bit first.
#[inline(always)]
fn reverse_tree(coder: &mut impl Coder, probabilities: &mut [u16], bits: u32, value: u32) -> Option<u32> {
    let (mut node, mut sum) = (1, 0);
    for i in 0..bits {
        let bit = coder.bit(probabilities.get_mut(node as usize)?, value >> i & 1)?;
        node = node << 1 | bit;
        sum |= bit << i;
    }
    Some(sum)
}

/// How many bits of the place and of the byte before choose the probabilities of a literal, and of the place those of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Properties {
    byte_bits: u32,
    literal_bits: u32,
    bits: u32,
}

impl Properties {
    /// From their byte; `None` where LZMA2 does not allow them.
    pub fn of(byte: u8) -> Option<Self> {
        let byte = u32::from(byte);
        let of = Self { byte_bits: byte % 9, literal_bits: byte / 9 % 5, bits: byte / 45 };
        (of.bits < 5 && of.byte_bits + of.literal_bits <= 4).then_some(of)
    }
}

/// The model, and what was said up to now.
#[derive(Clone, Debug)]
pub(super) struct Model {
    properties: Properties,
    /// What the packets stand for, since the dictionary was emptied.
    pub content: Vec<u8>,
    state: usize,
    /// The last distances, less one each.
    distances: [u32; 4],
    is_match: [[u16; POSITIONS]; STATES],
    is_repeated: [u16; STATES],
    is_other: [[u16; STATES]; 3],
    is_long: [[u16; POSITIONS]; STATES],
    slots: [[u16; 64]; 4],
    special: [u16; 128],
    align: [u16; 16],
    lengths: Lengths,
    repeated_lengths: Lengths,
    literals: Vec<u16>,
}

impl Model {
    pub fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(content: Vec<u8>) -> Self {
        Self {
            properties: Properties::default(),
            content,
            state: 0,
            distances: [0; 4],
            is_match: [[HALF; POSITIONS]; STATES],
            is_repeated: [HALF; STATES],
            is_other: [[HALF; STATES]; 3],
            is_long: [[HALF; POSITIONS]; STATES],
            slots: [[HALF; 64]; 4],
            special: [HALF; 128],
            align: [HALF; 16],
            lengths: Lengths::NEW,
            repeated_lengths: Lengths::NEW,
            literals: Vec::new(),
        }
    }

    /// How many bytes of content there are after a chunk of so many; `None` where that is too many. Makes room for them.
    pub fn content_end(&mut self, len: usize) -> Option<usize> {
        let end = self.content.len().checked_add(len).filter(|end| *end <= CONTENT_MOST)?;
        // Once: growing would take up to twice as much.
        self.content.reserve_exact(CONTENT_MOST - self.content.len());
        Some(end)
    }

    /// Forgets everything but the content.
    pub fn reset(&mut self, properties: Properties) {
        let content = std::mem::take(&mut self.content);
        let mut literals = std::mem::take(&mut self.literals);
        literals.clear();
        literals.resize(0x300 << (properties.byte_bits + properties.literal_bits), HALF);
        *self = Self { properties, content, literals, ..Self::with(Vec::new()) };
    }

    /// Forgets everything but the content and the properties.
    pub fn reset_state(&mut self) {
        self.reset(self.properties);
    }

    /// The next packet: writes `packet`, or reads one in its place.
    #[inline(always)]
    pub fn packet(&mut self, coder: &mut impl Coder, packet: Packet) -> Option<Packet> {
        let position = self.content.len() & ((1 << self.properties.bits) - 1);
        let state = self.state;
        let is_match = u32::from(matches!(packet, Packet::Match(_)));
        if coder.bit(&mut self.is_match[state][position], is_match)? == 0 {
            let Packet::Literal(byte) = packet else { return None };
            return self.literal(coder, byte).map(Packet::Literal);
        }
        let wanted = match packet {
            Packet::Match(wanted) => wanted,
            Packet::Literal(_) => Match::default(),
        };
        self.other(coder, position, wanted).map(Packet::Match)
    }

    #[inline(always)]
    fn literal(&mut self, coder: &mut impl Coder, byte: u8) -> Option<u8> {
        let Properties { byte_bits, literal_bits, .. } = self.properties;
        let place = self.content.len() & ((1 << literal_bits) - 1);
        let before = usize::from(self.content.last().copied().unwrap_or(0)) >> (8 - byte_bits);
        let probabilities =
            self.literals.get_mut(0x300 * ((place << byte_bits) + before)..)?.first_chunk_mut::<0x300>()?;
        let (byte, mut node) = (u32::from(byte), 1);
        if self.state >= AFTER_MATCH {
            let at = self.content.len().checked_sub(self.distances[0] as usize + 1)?;
            let (mut other, mut offset) = (u32::from(*self.content.get(at)?), 0x100);
            for i in (0..8).rev() {
                other <<= 1;
                let same = other & offset;
                let bit = coder.bit(&mut probabilities[(offset + same + node) as usize & 0x3ff], byte >> i & 1)?;
                node = node << 1 | bit;
                offset &= if bit == 1 { same } else { !same };
            }
        } else {
            for i in (0..8).rev() {
                node = node << 1 | coder.bit(&mut probabilities[node as usize & 0xff], byte >> i & 1)?;
            }
        }
        self.content.push(node as u8);
        self.state = match self.state {
            0..4 => 0,
            state @ 4..10 => state - 3,
            state => state - 6,
        };
        Some(node as u8)
    }

    fn other(&mut self, coder: &mut impl Coder, position: usize, wanted: Match) -> Option<Match> {
        let state = self.state;
        let after_match = usize::from(state >= AFTER_MATCH);
        let kind = self.kind(coder, position, wanted.kind)?;
        let mut found = Match { kind, len: 1, distance: 0 };
        match kind {
            0 => {
                found.len = self.lengths.code(coder, position, wanted.len)?;
                found.distance = self.distance(coder, found.len, wanted.distance)?;
                self.distances.rotate_right(1);
                self.distances[0] = found.distance;
                self.state = [7, 10][after_match];
            }
            1 => self.state = [9, 11][after_match],
            which => {
                self.distances.get_mut(..which as usize - 1)?.rotate_right(1);
                found.len = self.repeated_lengths.code(coder, position, wanted.len)?;
                self.state = [8, 11][after_match];
            }
        }
        Some(found)
    }

    fn kind(&mut self, coder: &mut impl Coder, position: usize, kind: u32) -> Option<u32> {
        let state = self.state;
        if coder.bit(&mut self.is_repeated[state], u32::from(kind > 0))? == 0 {
            return Some(0);
        }
        if coder.bit(&mut self.is_other[0][state], u32::from(kind > 2))? == 0 {
            return Some(1 + coder.bit(&mut self.is_long[state][position], u32::from(kind == 2))?);
        }
        if coder.bit(&mut self.is_other[1][state], u32::from(kind > 3))? == 0 {
            return Some(3);
        }
        Some(4 + coder.bit(&mut self.is_other[2][state], u32::from(kind > 4))?)
    }

    fn distance(&mut self, coder: &mut impl Coder, len: u32, distance: u32) -> Option<u32> {
        // Two bits, and how many stand behind them; below 4 the distance itself.
        let slot = match distance {
            0..4 => distance,
            _ => (2 * distance.ilog2()) | (distance >> (distance.ilog2() - 1) & 1),
        };
        let list = (len - LEN_LEAST).min(3) as usize;
        let slot = tree(coder, &mut self.slots[list], 6, slot)?;
        if slot < 4 {
            return Some(slot);
        }
        let bits = (slot >> 1) - 1;
        let base = (2 | slot & 1) << bits;
        let rest = distance.wrapping_sub(base);
        if slot < 14 {
            let from = (base - slot) as usize;
            return Some(base + reverse_tree(coder, self.special.get_mut(from..)?, bits, rest)?);
        }
        let high = coder.even(rest >> 4 & ((1 << (bits - 4)) - 1), bits - 4)?;
        let low = reverse_tree(coder, &mut self.align, 4, rest & 15)?;
        // This one ends a stream of LZMA; LZMA2 has none.
        Some(base + (high << 4) + low).filter(|distance| *distance < u32::MAX)
    }

    /// Appends what a match stands for; `None` where it begins before the content, or there would be more than `most` bytes.
    pub fn follow(&mut self, found: Match, most: usize) -> Option<()> {
        let end = self.content.len().checked_add(found.len as usize).filter(|end| *end <= most)?;
        let from = self.content.len().checked_sub(self.distances[0] as usize + 1)?;
        if from + found.len as usize <= self.content.len() {
            self.content.extend_from_within(from..from + found.len as usize);
            return Some(());
        }
        for at in from.. {
            if self.content.len() == end {
                break;
            }
            self.content.push(*self.content.get(at)?);
        }
        Some(())
    }
}
