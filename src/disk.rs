//! What `patch` and `sync` say of a disk: before they write, for the question, and when all is done.

use crate::delta::Delta;
use crate::device::table::file_system_label;
use crate::device::{AlignedBuffer, Device};
use crate::error::Error;
use crate::misplaced::table_of;
use crate::monitor::{Intent, Monitor};
use crate::units::{BLOCK, human};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Partitions that are listed at the most.
const LISTED: usize = 12;

/// What a device is, for the question: what it is called, how large it is, and what lies on it.
pub(crate) fn facts(device: &dyn Device) -> Vec<(&'static str, String)> {
    let mut facts = vec![("target", device.name())];
    let Some(place) = device.place() else { return facts };
    if let Some(part) = &place.part_of {
        facts.push(("", format!("partition {} of {}", part.number, part.disk.display())));
    }
    let model = if place.model.is_empty() { "model unknown" } else { &place.model };
    facts.push(("device", model.to_owned()));
    if !place.serial.is_empty() {
        facts.push(("serial", place.serial.clone()));
    }
    facts.push(("size", format!("{} ({} bytes)", human(device.len()), device.len())));
    let label = |start| label_at(device, start).map_or(String::new(), |label| format!(" '{label}'"));
    match table_of(device) {
        Some(table) => {
            let listed = table.partitions.iter().take(LISTED);
            let lines = listed.map(|part| format!("{part}{}", label(part.start)));
            let more = table.partitions.len().saturating_sub(LISTED);
            let more = (more > 0).then(|| format!("and {more} more"));
            let names = std::iter::once("holds").chain(std::iter::repeat(""));
            facts.extend(names.zip(lines.chain(more)));
        }
        None => facts.push(("holds", format!("no partition table{}", label(0)))),
    }
    facts
}

/// The label of a file system, if it can be read and has one.
fn label_at(device: &dyn Device, start: u64) -> Option<String> {
    let mut head = AlignedBuffer::new(4096);
    device.read(start, &mut head).ok()?;
    file_system_label(&head)
}

/// Asks before a block device is written; `rest` is what else there is to know. Files are not asked about. To be called
/// before the target is read at length, which may take minutes: nobody should have to wait for a question, and what is
/// found then can only lead to a refusal.
///
/// # Errors
/// Where the user does not want it, or wants to stop.
pub(crate) fn ask(
    device: &dyn Device,
    rest: &dyn Fn() -> Vec<(&'static str, String)>,
    stop: &AtomicBool,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let intent = || Intent { target: device.name(), facts: [facts(device), rest()].concat() };
    if device.place().is_none() || monitor.confirm(&intent) {
        return Ok(());
    }
    Err(if stop.load(Ordering::Relaxed) { Error::Interrupted } else { Error::Declined })
}

/// What `patch` would do with a delta, for the question.
pub(crate) fn plan(delta: &Delta, path: &Path) -> Vec<(&'static str, String)> {
    let counts = &delta.route.counts;
    let blocks = counts.final_blocks + counts.scratch_blocks;
    let image = |len: u64, crc: u32| format!("{} ({len} bytes), CRC-32 {crc:08x}", human(len));
    let old = delta.route.old.map_or("unknown".into(), |old| image(old.len, old.crc));
    let label = delta.label.as_ref().map(|label| ("label", label.to_string()));
    let mut facts = vec![("delta", path.display().to_string())];
    facts.extend(label);
    facts.extend([
        ("old", old),
        ("new", image(delta.header.new.len, delta.header.new.crc)),
        ("writes", format!("up to {blocks} blocks, {}, if it holds the old image", human(blocks * BLOCK))),
    ]);
    facts
}

/// When a disk holds what it should: makes the kernel read a new partition table, and tells of a GPT that is made for a
/// smaller disk.
pub(crate) fn finish(device: &dyn Device, written: bool, monitor: &dyn Monitor) {
    let Some(place) = device.place().filter(|place| place.part_of.is_none()) else { return };
    let Some(table) = table_of(device) else { return };
    let name = device.name();
    if written && let Err(e) = device.reread_partitions() {
        monitor.note(&format!(
            "the kernel goes on with the partitions of {name} that it knew ({e}): unplug it and plug it in again, or run \
             'blockdev --rereadpt {name}'"
        ));
    }
    let last = device.len().saturating_sub(place.sector);
    if let Some(backup) = table.backup.filter(|backup| *backup != last) {
        monitor.note(&format!(
            "the partition table (GPT) of {name} has its backup at byte {backup}, not in the last sector (at byte {last}): \
             it was made for a disk of another size. It works as it is. 'sgdisk -e {name}' moves it; but then {name} is no \
             longer exactly the image, and a later delta may refuse it"
        ));
    }
}
