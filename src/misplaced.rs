//! Whether the image of a whole disk is about to meet a partition, or the reverse: told from sizes and from a few batches,
//! before anything is read at length.

use crate::blockset::BlockSet;
use crate::delta::Delta;
use crate::delta::batch::BatchKind;
use crate::delta::placement::Placement;
use crate::device::table::{TABLE_LEN, Table};
use crate::device::{AlignedBuffer, Device, DeviceError};
use crate::digest::is_zero;
use crate::error::Error;
use crate::judge::sources_in_turn;
use crate::units::{BLOCK, PART, human};
use std::ops::Range;

/// Batches that are tried at each place, and those that are looked at to find them.
const SAMPLES: usize = 4;
const LOOKED_AT: usize = 64;
/// Source bytes of a batch that is tried, at the most.
const SAMPLE_BYTES: u64 = 2 << 20;

/// What a batch reads, and what it leaves.
struct Sample {
    sources: Vec<Range<u64>>,
    source_crc: u32,
    extents: Vec<Range<u64>>,
    crc: u32,
}

/// Whether the samples are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// They are: the old image, the new one, or a state between.
    For,
    /// They are not: it is none of these.
    Against,
    /// Nothing can be told.
    None,
}

/// A place where the image may lie instead.
struct Elsewhere<'a> {
    name: String,
    device: &'a dyn Device,
    start: u64,
}

/// Refuses a partition where the delta was made for its disk, a disk where it was made for one of its partitions, and a
/// partition where it was made for another one. Reads at most a few MiB for each place. `touched` are all blocks that
/// the delta writes; its order need not be checked yet.
///
/// # Errors
/// [`Error::Misplaced`], or a device that cannot be read.
pub(crate) fn refuse_misplaced(device: &dyn Device, delta: &Delta, touched: &BlockSet) -> Result<(), Error> {
    if device.place().is_none() {
        return Ok(());
    }
    let Ok(samples) = samples(delta, touched) else { return Ok(()) }; // a delta that cannot be read, the next who reads will tell
    if evidence(device, 0, &samples)? == Evidence::For {
        return Ok(());
    }
    let table = table_of(device);
    let found = elsewhere(device, table.as_ref())
        .into_iter()
        .find(|place| evidence(place.device, place.start, &samples).is_ok_and(|found| found == Evidence::For));
    if let Some(found) = found {
        let why = format!("the image that this delta is for lies on {}", found.name);
        return Err(Error::Misplaced { name: device.name(), why });
    }
    match disk_has_room(device, delta.header.new.len.max(old_len(delta))) {
        Some(why) => Err(Error::Misplaced { name: device.name(), why }),
        None => Ok(()),
    }
}

/// Says so where a partition is too small for an image of `needed` bytes, but its disk is not.
pub(crate) fn disk_has_room(device: &dyn Device, needed: u64) -> Option<String> {
    let (name, len, part) = (device.name(), device.len(), device.place()?.part_of.as_ref()?);
    device.whole_disk().filter(|disk| len < needed && disk.len() >= needed).map(|disk| {
        format!(
            "the image has {needed} bytes, and {name}, partition {} of {}, is too small with {len}: only the whole disk \
             has room for it",
            part.number,
            disk.name(),
        )
    })
}

/// What the sizes alone suggest, for the refusal of a target that holds something else; if anything.
pub(crate) fn suspicion(device: &dyn Device, delta: &Delta) -> Option<String> {
    let place = device.place()?;
    let lens = [old_len(delta), delta.header.new.len];
    let known =
        place.partitions.iter().find(|part| lens.contains(&part.len)).map(|part| part.path.display().to_string());
    let known = known.filter(|name| *name != device.name()).or_else(|| {
        let table = table_of(device)?;
        let part = table.partitions.iter().find(|part| lens.contains(&part.len))?;
        Some(format!("partition {}", part.number))
    });
    known.map(|name| format!("It may be made for a partition: {name} has just the image's length"))
}

/// 0 where it is not known.
fn old_len(delta: &Delta) -> u64 {
    delta.route.old.map_or(0, |old| old.len)
}

/// The partition table that a disk begins with, if it can be read.
pub(crate) fn table_of(device: &dyn Device) -> Option<Table> {
    let mut head = AlignedBuffer::new(usize::try_from(device.len()).unwrap_or(usize::MAX).min(TABLE_LEN));
    device.read(0, &mut head).ok()?;
    Table::parse(&head, device.place().map_or(512, |place| place.sector))
}

/// Where else on the same disk an image may lie.
fn elsewhere<'a>(device: &'a dyn Device, table: Option<&Table>) -> Vec<Elsewhere<'a>> {
    let Some(place) = device.place() else { return Vec::new() };
    let own = place.part_of.as_ref().map(|part| part.start);
    let disk = if own.is_some() { device.whole_disk() } else { Some(device) };
    let Some(disk) = disk else { return Vec::new() };
    let whole = own.map(|_| Elsewhere { name: format!("the whole disk {}", disk.name()), device: disk, start: 0 });
    let known = place.partitions.iter().map(|part| (part.path.display().to_string(), part.start));
    // A partition that only the table tells of.
    let told = table.filter(|_| own.is_none()).into_iter().flat_map(|table| &table.partitions);
    let told = told.filter(|part| place.partitions.iter().all(|known| known.start != part.start));
    let told = told.map(|part| (format!("its partition {} (at byte {})", part.number, part.start), part.start));
    let parts = known.chain(told).filter(|(_, start)| Some(*start) != own && *start > 0);
    whole.into_iter().chain(parts.map(|(name, start)| Elsewhere { name, device: disk, start })).collect()
}

/// The first batches that read something which is there before and that is not much.
fn samples(delta: &Delta, touched: &BlockSet) -> Result<Vec<Sample>, crate::delta::DeltaError> {
    let mut found = Vec::new();
    let mut placement = Placement::new(touched);
    let (mut reader, mut steps) = (delta.steps()?, Vec::new());
    for (index, batch) in (0u64..).zip(delta.table.batches()).take(LOOKED_AT) {
        let sources = sources_in_turn(delta, &mut placement, &mut reader, &mut steps, (index, batch))?;
        let bytes: u64 = sources.home.iter().map(|range| range.end - range.start).sum();
        // A save may be undone when nobody needs it any more.
        if batch.kind == BatchKind::Data && (1..=SAMPLE_BYTES).contains(&bytes) {
            let extents = delta.table.extents(batch).iter().map(|e| e.bytes(delta.header.new.len)).collect();
            found.push(Sample { sources: sources.home, source_crc: batch.source_crc, extents, crc: batch.crc });
        }
        if found.len() == SAMPLES {
            break;
        }
    }
    Ok(found)
}

/// Whether the image may lie `start` bytes into a device: each batch must be done, or what it reads be there.
fn evidence(device: &dyn Device, start: u64, samples: &[Sample]) -> Result<Evidence, DeviceError> {
    let mut evidence = Evidence::None;
    for sample in samples {
        let (sources, content) = crc_at(device, start, &sample.sources)?;
        let there = sources == Some(sample.source_crc);
        if !there && crc_at(device, start, &sample.extents)?.0 != Some(sample.crc) {
            return Ok(Evidence::Against);
        }
        if content || !there {
            evidence = Evidence::For; // zeros are everywhere
        }
    }
    Ok(evidence)
}

/// The CRC-32 of some ranges, `None` where they are not within the device; and whether they hold more than zeros.
fn crc_at(device: &dyn Device, start: u64, ranges: &[Range<u64>]) -> Result<(Option<u32>, bool), DeviceError> {
    let end = ranges.last().map_or(Some(0), |range| start.checked_add(range.end));
    let room = match end {
        Some(end) if end <= device.len() => device.len() - start,
        _ => return Ok((None, false)),
    };
    let (mut hasher, mut content) = (crc32fast::Hasher::new(), false);
    let (mut buffer, mut window) = (AlignedBuffer::default(), 0..0);
    for (i, range) in ranges.iter().enumerate() {
        let mut at = range.start;
        while at < range.end {
            if at >= window.end {
                window = window_at(at, &ranges[i..], room);
                buffer.resize((window.end - window.start) as usize);
                device.read(start + window.start, &mut buffer)?;
            }
            let end = range.end.min(window.end);
            let bytes = &buffer[(at - window.start) as usize..(end - window.start) as usize];
            hasher.update(bytes);
            content |= !is_zero(bytes);
            at = end;
        }
    }
    Ok((Some(hasher.finalize()), content))
}

/// What to read at once from `at` on, which lies in the first of the ranges: whole blocks, all of which are wanted in
/// part, as a read of its own for each range would take longer than all the rest.
fn window_at(at: u64, ranges: &[Range<u64>], room: u64) -> Range<u64> {
    let first = at - at % BLOCK;
    let mut end = first;
    for range in ranges {
        if range.start.max(at) > end.max(at) {
            break;
        }
        end = range.end.next_multiple_of(BLOCK);
    }
    first..end.min(first + PART).min(room)
}

/// What is odd about writing an image that begins with `head` to a device; not an error, as a disk may hold anything.
pub(crate) fn odd_pair(head: &[u8], image: &str, device: &dyn Device) -> Option<String> {
    let place = device.place()?;
    let of_disk = Table::parse(head, place.sector).is_some();
    match (&place.part_of, of_disk) {
        (Some(part), true) => Some(format!(
            "{image} begins with a partition table, as the image of a whole disk does, and {} is only partition {} of {}",
            device.name(),
            part.number,
            part.disk.display()
        )),
        (None, false) => table_of(device).map(|table| {
            format!(
                "{image} begins with no partition table, and {} has one ({}) with {} partitions ({} in all), which is \
                 overwritten: was a partition meant?",
                device.name(),
                table.kind(),
                table.partitions.len(),
                human(table.partitions.iter().map(|part| part.len).fold(0, u64::saturating_add)),
            )
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryDevice;

    #[test]
    fn ranges_count_byte_by_byte_wherever_the_image_begins() {
        let bytes: Vec<u8> = (0..3 * PART).map(|i| (i / 7 + i / 4096) as u8).collect();
        let ranges =
            [3..5, 9..4096, 4096..4097, 8191..8200, 20_000..20_001, 30_000..2 * PART + 77, 3 * PART - 512..3 * PART];
        for start in [0, 512, 4096 * 3 + 1024] {
            let device = MemoryDevice::new([vec![9; start], bytes.clone()].concat(), false);
            for count in 0..=ranges.len() {
                let wanted: Vec<u8> =
                    ranges[..count].iter().flat_map(|r| &bytes[r.start as usize..r.end as usize]).copied().collect();
                assert_eq!(
                    crc_at(&device, start as u64, &ranges[..count]).unwrap(),
                    (Some(crc32fast::hash(&wanted)), wanted.iter().any(|byte| *byte != 0))
                );
            }
        }
        let device = MemoryDevice::new(vec![0; 9000], false);
        assert_eq!(crc_at(&device, 0, &[0..9000]).unwrap(), (Some(crc32fast::hash(&[0; 9000])), false));
        assert_eq!(crc_at(&device, 1, &[0..1, 8999..9000]).unwrap(), (None, false));
    }
}
