//! `export`: writes a delta as a qcow2 overlay on the old image, so that the new one can be tried in QEMU before any disk
//! is touched. The old image is only read, and checked first.
//!
//! All old bytes are at home here, so that saves and barriers have nothing to protect: batches are taken in order only
//! because their columns are (spec, chapter 6).

use crate::apply::WalkError;
use crate::delta::batch::{Batch, BatchKind};
use crate::delta::placement::Sources;
use crate::delta::step::{Space, Step, StepReader};
use crate::delta::{Delta, DeltaError};
use crate::device::{Access, AlignedBuffer, Device, open_target};
use crate::diff::{check_output, real_output};
use crate::digest::{ImageId, ZERO_PART, is_zero};
use crate::error::Error;
use crate::maker::Maker;
use crate::monitor::Monitor;
use crate::output::{Output, folder_of};
use crate::patch::{DEFAULT_MEMORY_LIMIT, open_delta};
use crate::qcow2::overlay::{Named, Overlay};
use crate::qcow2::{Chain, Format, file_is_qcow2};
use crate::sources::SourceBuffer;
use crate::target::reread_all;
use crate::units::{BLOCK, Extent, PART, blocks_touched, merge_extents};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How to export.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// The old image's format, which is noted in the overlay.
    pub format: Format,
    /// Bytes of memory that the delta may announce.
    pub memory_limit: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { format: Format::Auto, memory_limit: DEFAULT_MEMORY_LIMIT }
    }
}

/// What `export` did.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// The new image.
    pub new: ImageId,
    /// Bytes of the overlay.
    pub overlay_len: u64,
    /// The old image, as the overlay names it.
    pub backing: PathBuf,
    /// Time taken.
    pub elapsed: Duration,
}

/// Writes an overlay on `old` that shows the new image. `output` appears only when it is complete and was read back.
///
/// # Errors
/// A delta that cannot be used, an `old` that is not its old image, or an output that cannot be written.
pub fn export(
    delta_path: &Path,
    old_path: &Path,
    output: &Path,
    options: &ExportOptions,
    monitor: &dyn Monitor,
) -> Result<ExportReport, Error> {
    let start = Instant::now();
    let opened = open_delta(delta_path, options.memory_limit)?;
    let delta = &opened.delta;
    let old = Old::open(old_path, options.format, monitor)?;
    let output = &real_output(output)?;
    check_output(output, old.files.iter().map(PathBuf::as_path).chain([old_path, delta_path]))?;
    old.check(delta, delta_path, monitor)?;
    let folder = folder_of(output);
    let name = backing_name(old_path, folder)?;
    let file = Output::create_in(folder).map_err(Error::io("create a file in", folder))?;
    let overlay = Overlay::new(file.file(), output, &*old.device, delta.header.new.len);
    let failed = |e: &dyn std::fmt::Display| Error::NotMade { path: output.to_owned(), why: e.to_string() };
    build(delta, &*old.device, &overlay, monitor).map_err(|e| failed(&e))?;
    overlay.finish(Named { name: &name, format: old.format }).map_err(|e| failed(&e))?;
    check_result(file.file(), output, old_path, &old, delta, monitor)?;
    let overlay_len = file.file().metadata().map_err(Error::io("write", output))?.len();
    file.finish(output).map_err(Error::io("create", output))?;
    let backing = PathBuf::from(OsStr::from_bytes(&name));
    Ok(ExportReport { new: delta.header.new, overlay_len, backing, elapsed: start.elapsed() })
}

/// The old image.
struct Old {
    device: Box<dyn Device>,
    format: &'static [u8],
    /// All files that are read.
    files: Vec<PathBuf>,
}

impl Old {
    fn open(path: &Path, format: Format, monitor: &dyn Monitor) -> Result<Self, Error> {
        if !file_is_qcow2(path, format)? {
            let device = open_target(path, Access::Read)?;
            return Ok(Self { device, format: b"raw", files: vec![path.to_owned()] });
        }
        let chain = Chain::open(path)?;
        if let Some(note) = chain.note() {
            monitor.note(&note);
        }
        let files = chain.members().map(|member| member.path.clone()).collect();
        Ok(Self { device: Box::new(chain), format: b"qcow2", files })
    }

    /// Makes sure that it is the delta's old image, all of it.
    fn check(&self, delta: &Delta, delta_path: &Path, monitor: &dyn Monitor) -> Result<(), Error> {
        let Some(expected) = delta.route.old else {
            let why = "it does not say what its old image is, so that OLD cannot be checked";
            return Err(Error::Unusable { path: delta_path.to_owned(), why });
        };
        let (device, name) = (&*self.device, self.device.name());
        if device.len() < expected.len {
            return Err(Error::TooSmall { name, needed: expected.len, actual: device.len() });
        }
        monitor.phase("checking OLD", expected.len);
        let read = reread_all(device, expected.len, monitor).map_err(|e| e.untouched(delta_path))?;
        match read.finish() {
            Some(found) if found == expected => Ok(()),
            found => Err(wrong_old(name, found, expected, delta.header.new)),
        }
    }
}

/// The refusal of an OLD that holds something else.
fn wrong_old(name: String, found: Option<ImageId>, expected: ImageId, new: ImageId) -> Error {
    let len = expected.len;
    let place = match found {
        Some(found) if found.crc != expected.crc => {
            format!("the CRC-32 of its first {len} bytes is {:08x} instead of {:08x}", found.crc, expected.crc)
        }
        _ => format!("the BLAKE3 of its first {len} bytes differs"),
    };
    let hint = if found == Some(new) {
        "It holds the new image; an overlay is made on the old one"
    } else {
        "Check that this is the right OLD and the right delta ('blkpatch info' shows the old image's digests)"
    };
    Error::Neither { name, place, hint: hint.into() }
}

/// How the overlay names the old image: by its bare name where both lie in one folder, so that they can be moved together,
/// and else by its whole path.
fn backing_name(old: &Path, folder: &Path) -> Result<Vec<u8>, Error> {
    let real = |folder: &Path| folder.canonicalize().map_err(Error::io("find the folder", folder));
    let (old_folder, folder) = (real(folder_of(old))?, real(folder)?);
    let why = "has no name that an overlay could use";
    let name = old.file_name().ok_or_else(|| Error::Unusable { path: old.to_owned(), why })?;
    let path = match old_folder == folder {
        // Before a colon QEMU would see a protocol.
        true if name.as_bytes().contains(&b':') => Path::new(".").join(name),
        true => PathBuf::from(name),
        false => old_folder.join(name),
    };
    Ok(path.into_os_string().as_bytes().to_vec())
}

/// Reads the overlay as any other reader would.
fn check_result(
    file: &std::fs::File,
    output: &Path,
    old_path: &Path,
    old: &Old,
    delta: &Delta,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let not_made = |why: String| Error::NotMade { path: output.to_owned(), why };
    let new = delta.header.new;
    monitor.phase("checking the result", new.len);
    let file = file.try_clone().map_err(Error::io("read", output))?;
    let chain = Chain::on(file, output, old_path, old.format == b"qcow2")?;
    let found = reread_all(&chain, new.len, monitor).map_err(|e| not_made(e.to_string()))?.finish();
    if found == Some(new) {
        return Ok(());
    }
    let (found, expected) = (found.map_or(0, |found| found.crc), new.crc);
    Err(not_made(format!(
        "reading it back gives CRC-32 {found:08x} instead of {expected:08x}; the medium may be failing, or something has \
         written to OLD meanwhile"
    )))
}

/// Makes all that the final batches write, in order, on a target that shows the old image.
fn build(delta: &Delta, old: &dyn Device, target: &dyn Device, monitor: &dyn Monitor) -> Result<(), WalkError> {
    monitor.phase("making what changes", delta.route.counts.final_blocks.saturating_mul(BLOCK));
    let mut builder = Builder {
        delta,
        old,
        target,
        steps: delta.steps()?,
        maker: Maker::new(delta)?,
        step_list: Vec::new(),
        from_old: SourceBuffer::new(old.len()),
        from_new: SourceBuffer::new(target.len()),
        output: AlignedBuffer::default(),
        there: vec![0; PART as usize],
    };
    for (index, batch) in (0u64..).zip(delta.table.batches()) {
        match batch.kind {
            BatchKind::Save => {}
            BatchKind::Zero => builder.zero(delta.table.extents(batch))?,
            BatchKind::Data => builder.data(index, batch)?,
        }
        monitor.advance(delta.table.written_bytes(batch, delta.header.new.len));
    }
    Ok(())
}

struct Builder<'a> {
    delta: &'a Delta,
    old: &'a dyn Device,
    target: &'a dyn Device,
    steps: StepReader,
    maker: Maker,
    step_list: Vec<Step>,
    /// What a batch reads of the old image, and of the new one.
    from_old: SourceBuffer,
    from_new: SourceBuffer,
    output: AlignedBuffer,
    /// What the target shows before it is written.
    there: Vec<u8>,
}

impl Builder<'_> {
    fn data(&mut self, index: u64, batch: &Batch) -> Result<(), WalkError> {
        let (table, new_len) = (&self.delta.table, self.delta.header.new.len);
        let extents = table.extents(batch);
        self.steps.read_batch(extents, &mut self.step_list)?;
        self.from_old.load(self.old, &sources(&self.step_list, Space::Old))?;
        // What no batch writes is the same in the old image, which the target shows there.
        self.from_new.load(self.target, &sources(&self.step_list, Space::New))?;
        let mut output = std::mem::take(&mut self.output);
        output.resize(table.written_bytes(batch, new_len) as usize);
        let (old, new) = (&self.from_old, &self.from_new);
        self.maker.make(&self.step_list, &mut output, |step, target| {
            let from = if step.kind.space() == Some(Space::Old) { old } else { new };
            from.copy(step.src, target).ok_or(DeltaError::Malformed("a step reads what its batch does not announce"))
        })?;
        if crc32fast::hash(&output) != batch.crc {
            let offset = extents.first().map_or(0, |extent| extent.start * BLOCK);
            return Err(WalkError::WrongResult { batch: index, offset });
        }
        let mut rest = &output[..];
        for bytes in extents.iter().map(|extent| extent.bytes(new_len)) {
            let (now, later) = rest.split_at((bytes.end - bytes.start) as usize);
            self.put(bytes.start, now)?;
            rest = later;
        }
        self.output = output;
        Ok(())
    }

    fn zero(&mut self, extents: &[Extent]) -> Result<(), WalkError> {
        for bytes in extents.iter().map(|extent| extent.bytes(self.delta.header.new.len)) {
            for at in (bytes.start..bytes.end).step_by(PART as usize) {
                self.put(at, &ZERO_PART[..(bytes.end - at).min(PART) as usize])?;
            }
        }
        Ok(())
    }

    /// Writes the blocks that differ from what the target shows.
    fn put(&mut self, offset: u64, want: &[u8]) -> Result<(), WalkError> {
        for (at, want) in (offset..).step_by(PART as usize).zip(want.chunks(PART as usize)) {
            let there = &mut self.there[..want.len()];
            self.target.read(at, there)?;
            let mut from = 0;
            while from < want.len() {
                let (what, len) = next_run(&there[from..], &want[from..]);
                let (start, bytes) = (at + from as u64, &want[from..from + len]);
                match what {
                    Some(true) => self.target.write_zeros(start, len as u64)?,
                    Some(false) => self.target.write(start, bytes)?,
                    None => {}
                }
                from += len;
            }
        }
        Ok(())
    }
}

/// Whether the next blocks differ, and then whether they are to be zeros; and how many bytes of them are alike in that.
fn next_run(there: &[u8], want: &[u8]) -> (Option<bool>, usize) {
    let kind = |(there, want): (&[u8], &[u8])| (there != want).then(|| is_zero(want));
    let mut blocks = there.chunks(BLOCK as usize).zip(want.chunks(BLOCK as usize)).map(kind);
    let first = blocks.next().flatten();
    let run = 1 + blocks.take_while(|kind| *kind == first).count();
    (first, want.len().min(run * BLOCK as usize))
}

/// The blocks that steps read of one image.
fn sources(steps: &[Step], space: Space) -> Sources {
    let read = steps.iter().filter(|step| step.kind.space() == Some(space));
    let mut blocks: Vec<Extent> = read.map(|step| blocks_touched(&(step.src..step.src + step.len))).collect();
    merge_extents(&mut blocks);
    Sources { blocks, ..Sources::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_beside_its_base_names_it_barely() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("sub")).unwrap();
        let name = |old: &str, to: &str| {
            let name = backing_name(&folder.join(old), &folder.join(to)).unwrap();
            String::from_utf8(name).unwrap()
        };
        assert_eq!(name("old.img", ""), "old.img");
        assert_eq!(name("sub/../old.img", "."), "old.img");
        assert_eq!(name("a:b.img", ""), "./a:b.img");
        assert_eq!(name("old.img", "sub"), folder.join("old.img").to_str().unwrap());
        assert_eq!(name("sub/a:b", ""), folder.join("sub/a:b").to_str().unwrap());
        assert!(backing_name(Path::new(".."), &folder).is_err());
    }
}
