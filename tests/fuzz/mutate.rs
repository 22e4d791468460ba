//! Mutations of a delta's bytes. All but a few keep the file's digests right, so that they reach the parsers behind.

use crate::common::Rng;
use crate::frames;
use crate::model::{Model, Section, number};
use blkpatch::delta::header::Kind;
use blkpatch::delta::route::FIXED_LEN as ROUTE_LEN;
use blkpatch::varint;

/// Fields of the header: offset and size.
const HEADER: [(usize, usize); 10] =
    [(12, 2), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 4), (52, 4), (56, 8), (64, 8)];
/// Fields of a section entry, without lengths and digest.
const ENTRY: [(usize, usize); 5] = [(0, 2), (2, 2), (4, 2), (6, 1), (7, 1)];
/// Fields of the route.
const ROUTE: [(usize, usize); 15] = [
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 8),
    (48, 8),
    (56, 8),
    (88, 8),
    (96, 8),
    (104, 8),
    (112, 8),
    (120, 8),
    (128, 8),
    (136, 8),
    (144, 4),
    (148, 4),
];

/// A number that has surprised programs before, or one close to `near`.
pub fn extreme(rng: &mut Rng, near: u64) -> u64 {
    let bit = 1u64 << rng.below(64);
    match rng.below(12) {
        0 => 0,
        1 => 1,
        2 => u64::MAX - rng.below(3) as u64,
        3 => i64::MAX as u64 - rng.below(3) as u64,
        4 => bit,
        5 => bit - 1,
        6 => bit.wrapping_add(near),
        7 => near.wrapping_add(1),
        8 => near.wrapping_sub(1),
        9 => near ^ bit,
        10 => rng.below(100) as u64,
        _ => rng.next() >> rng.below(64),
    }
}

fn set_field(bytes: &mut [u8], (at, size): (usize, usize), rng: &mut Rng) {
    if let Some(field) = bytes.get_mut(at..at + size) {
        let value = extreme(rng, number(field));
        field.copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// Changes a delta in one way; `other` lends sections.
pub fn mutate(model: &mut Model, other: &Model, rng: &mut Rng) {
    match rng.below(20) {
        0 => set_field(&mut model.fixed, HEADER[rng.below(HEADER.len())], rng),
        1 => {
            let at = 12 + rng.below(model.fixed.len() - 12);
            model.fixed[at] ^= 1 << rng.below(8);
        }
        2 | 3 => {
            if let Some(section) = pick(model, rng) {
                set_field(&mut section.entry, ENTRY[rng.below(ENTRY.len())], rng);
            }
        }
        4 | 5 => {
            if let Some(section) = model.section(Kind::Route) {
                set_field(&mut section.stored, ROUTE[rng.below(ROUTE.len())], rng);
                resize_some(&mut section.stored, ROUTE_LEN, rng);
            }
        }
        6 => sections(model, other, rng),
        7 => {
            if let Some(section) = pick(model, rng) {
                let lengths = (section.stored.len() as u64, number(&section.entry[16..24]));
                match rng.below(2) {
                    0 => section.lies = Some(extreme(rng, lengths.0)),
                    _ => section.set_raw_len(extreme(rng, lengths.1)),
                }
            }
        }
        8 => {
            if let Some(section) = pick(model, rng) {
                bytes(&mut section.stored, rng);
            }
        }
        9 => {
            let len = rng.below(3);
            model.tail = rng.bytes(len);
        }
        10 | 11 => {
            if let Some(section) = pick(model, rng) {
                frames::repack(section, rng);
            }
        }
        _ => {
            if let Some(section) = pick(model, rng) {
                column(section, rng);
            }
        }
    }
}

fn pick<'a>(model: &'a mut Model, rng: &mut Rng) -> Option<&'a mut Section> {
    let n = model.sections.len();
    model.sections.get_mut(rng.below(n))
}

fn resize_some(bytes: &mut Vec<u8>, least: usize, rng: &mut Rng) {
    if rng.below(8) == 0 {
        bytes.resize(least - 2 + rng.below(8), rng.next() as u8);
    }
}

/// Swaps, doubles, removes, empties or borrows sections.
fn sections(model: &mut Model, other: &Model, rng: &mut Rng) {
    let n = model.sections.len();
    if n == 0 {
        return;
    }
    let (i, j) = (rng.below(n), rng.below(n));
    match rng.below(7) {
        0 => model.sections.swap(i, j),
        1 => {
            let copy = model.sections[i].clone();
            model.sections.insert(j, copy);
        }
        2 => drop(model.sections.remove(i)),
        3 => model.sections[i].store(Vec::new()),
        4 => {
            // A section of another kind under this one's name.
            let (kind, mut copy) = (model.sections[i].entry[..2].to_vec(), model.sections[j].clone());
            copy.entry[..2].copy_from_slice(&kind);
            model.sections[i] = copy;
        }
        _ => {
            // The same section of another delta.
            let kind = model.sections[i].kind();
            if let Some(borrowed) = other.sections.iter().find(|section| section.kind() == kind) {
                model.sections[i] = borrowed.clone();
            }
        }
    }
}

/// Changes a column's bytes and compresses them again, with right lengths.
fn column(section: &mut Section, rng: &mut Rng) {
    let Some(mut raw) = section.raw() else { return };
    for _ in 0..=rng.below(2) {
        bytes(&mut raw, rng);
    }
    if !section.is_packed() {
        return section.store(raw);
    }
    let (len, window_log) = (raw.len() as u64, section.entry[7].clamp(10, 27));
    section.store_packed(frames::pack(&raw, window_log, rng), len, window_log);
}

/// Changes bytes somewhere: what stands there may be varints, kinds, checksums, data.
fn bytes(raw: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.below(raw.len() + 1);
    let end = (at + 1 + rng.below(16)).min(raw.len());
    match rng.below(9) {
        0 | 1 if at < raw.len() => raw[at] ^= 1 << rng.below(8),
        2 if at < raw.len() => raw[at] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0x7F, 0x80, 0xFF][rng.below(14)],
        3 => {
            // A varint in place of one, or between two.
            let mut number = Vec::new();
            varint::put(&mut number, extreme(rng, 0));
            let old = raw[at..].iter().position(|byte| *byte < 0x80).map_or(0, |n| n + 1) * rng.below(2);
            raw.splice(at..at + old, number);
        }
        4 => drop(raw.splice(at..at, rng.bytes(end - at))),
        5 => drop(raw.drain(at..end)),
        6 => {
            let again = raw[at..end].to_vec();
            raw.splice(at..at, again);
        }
        7 => raw.truncate(at),
        _ => {
            let to = rng.below(raw.len() + 1).min(raw.len() - (end - at));
            raw.copy_within(at..end, to);
        }
    }
}
