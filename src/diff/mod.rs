//! `diff`: two images in, one delta out. Every decision is made here and written down in the delta.

mod find;
mod signature;
mod write;

pub(crate) use write::check_delta;
pub use write::window_log;

use crate::compare::{Comparison, View, compare, compare_sharing, identify};
use crate::delta::label::Label;
use crate::delta::writer::{NewTexts, WriteError};
use crate::digest::ImageId;
use crate::error::Error;
use crate::format::Format;
use crate::image::Image;
use crate::monitor::Monitor;
use crate::opening::{Opening, open_image, open_pair};
use crate::outlet::{Outlet, unpack_folder};
use crate::plan::Recipe;
use crate::sign::read_signature;
use crate::signature::SignatureFile;
use find::{Found, find_batches, plan_recipe};
use signature::{Told, clipped, known_old, known_ranges, match_signature};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use write::{Draft, write_delta};

/// What `diff` may cost.
#[derive(Clone, Debug)]
pub struct DiffOptions {
    /// 1 (fast) to 9 (smallest); 6 is the default.
    pub level: u32,
    /// Threads, at least 1. The delta does not depend on it.
    pub threads: usize,
    /// Bytes of memory for the index of the old image, or for its signature and the index of that.
    pub memory: u64,
    /// What the delta says about itself.
    pub label: Option<Label>,
    /// The formats of the old and of the new image.
    pub formats: (Format, Format),
}

impl Default for DiffOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(64));
        Self { level: 6, threads, memory: 512 << 20, formats: Default::default(), label: None }
    }
}

impl DiffOptions {
    /// How to open images for this output.
    fn opening<'a>(&self, folder: &'a Path, monitor: &'a dyn Monitor) -> Opening<'a> {
        Opening { folder, threads: self.threads, monitor }
    }
}

/// What `diff` did.
#[derive(Clone, Debug)]
pub struct DiffReport {
    /// The old image; `None` where only a bare signature of it is known.
    pub old: Option<ImageId>,
    /// The new image.
    pub new: ImageId,
    /// Blocks that differ at equal offsets.
    pub changed_blocks: u64,
    /// Bytes of the delta.
    pub delta_len: u64,
    /// Bytes of the new image compressed on its own, where the delta is large enough for the question to arise.
    pub alone_len: Option<u64>,
}

/// Makes a delta that turns `old` into `new`. `output` appears only when it is complete.
///
/// # Errors
/// Unreadable images, or an output that cannot be written.
pub fn diff(
    old_path: &Path,
    new_path: &Path,
    output: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
) -> Result<DiffReport, Error> {
    let folder = unpack_folder(Some(output));
    let how = options.opening(&folder, monitor);
    let (old_image, new_image) = open_pair([(old_path, options.formats.0), (new_path, options.formats.1)], how)?;
    let (old, new) = (View::of(&old_image), View::of(&new_image));
    let inputs = [(&old_image, old_path), (&new_image, new_path)];
    publish(output, &inputs, new, options, monitor, |folder, out| {
        let shared = new_image.shared_with(&old_image);
        let comparison = compare_sharing(old, new, shared, options.threads, monitor);
        diff_compared(old, new, &comparison, folder, options, monitor, out)?;
        Ok(comparison)
    })
}

/// Makes a delta from the signature of the old image, and the new image. `output` appears only when it is complete.
///
/// # Errors
/// An unusable signature, an unreadable image, or an output that cannot be written.
pub fn diff_signature(
    signature_path: &Path,
    new_path: &Path,
    output: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
) -> Result<DiffReport, Error> {
    let refused = |source| Error::Signature { path: signature_path.to_owned(), source };
    let signature = read_signature(signature_path, options.memory)?;
    let folder = unpack_folder(Some(output));
    let new_image = open_image(new_path, options.formats.1, options.opening(&folder, monitor))?;
    let new = View::of(&new_image);
    monitor.phase("matching", 0);
    let told = match_signature(&signature, new, options).map_err(refused)?;
    let inputs = [(&new_image, new_path)];
    let mut report = publish(output, &inputs, new, options, monitor, |folder, out| {
        write_from_signature(&signature, told, new, folder, options, monitor, out)
    })?;
    report.old = signature.image;
    Ok(report)
}

/// Writes a delta into a file that gets its name only when everything is right. `inputs` must not change meanwhile.
fn publish(
    output: &Path,
    inputs: &[(&Image, &Path)],
    new: View<'_>,
    options: &DiffOptions,
    monitor: &dyn Monitor,
    make: impl FnOnce(&Path, &mut BufWriter<&File>) -> Result<Comparison, WriteError>,
) -> Result<DiffReport, Error> {
    let outlet = Outlet::new(output, inputs.iter().flat_map(|(image, path)| image.files().chain([*path])))?;
    let (output, file) = (outlet.name(), outlet.create()?);
    let failed = |source: WriteError| match source {
        WriteError::Io(source) => Error::Io { doing: "write", path: output.to_owned(), source },
        WriteError::Plan(_) => Error::Write(source),
    };
    let mut out = BufWriter::new(file.file());
    let comparison = make(outlet.folder(), &mut out).map_err(failed)?;
    out.flush().map_err(Error::io("write", output))?;
    drop(out);
    monitor.phase("checking the delta", 0);
    let delta_len = check_delta(file.file()).map_err(|e| failed(WriteError::Plan(e)))?;
    let ids = [comparison.old, comparison.new];
    for ((image, path), id) in inputs.iter().rev().zip(ids.into_iter().rev()) {
        // A device does not tell whether it was written.
        if image.changed_since(path).unwrap_or_else(|| identify(View::of(image), options.threads) != id) {
            let why = "changed while it was read: the delta would be wrong, and was not written; try again";
            return Err(Error::Unusable { path: (*path).to_owned(), why });
        }
    }
    outlet.finish(file)?;
    let report = DiffReport {
        old: Some(comparison.old),
        new: comparison.new,
        changed_blocks: crate::units::count_blocks(&comparison.changed),
        delta_len,
        alone_len: alone_len(new, delta_len, options).map_err(Error::io("read", inputs[inputs.len() - 1].1))?,
    };
    Ok(report)
}

/// Compares, matches, plans and writes a delta to `out`; long columns are spooled in `spool_dir`.
///
/// # Errors
/// A failure to write.
pub fn diff_views(
    old: View<'_>,
    new: View<'_>,
    spool_dir: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
    out: &mut impl Write,
) -> Result<Comparison, WriteError> {
    let comparison = compare(old, new, options.threads, monitor);
    diff_compared(old, new, &comparison, spool_dir, options, monitor, out)?;
    Ok(comparison)
}

/// Matches, plans and writes a delta.
fn diff_compared(
    old: View<'_>,
    new: View<'_>,
    comparison: &Comparison,
    spool_dir: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let Found { batches, recoding } = find_batches(old, new, comparison, spool_dir, options, monitor)?;
    let texts = recoding.as_ref().map(|recoding| recoding as &(dyn NewTexts + Sync));
    let old_id = Some(comparison.old);
    let draft = Draft { old: old.bytes, unchanged: old, new, old_id, batches: &batches, texts };
    write_delta(&draft, comparison, spool_dir, options, monitor, out)
}

/// Plans and writes a delta from what a signature told.
fn write_from_signature(
    signature: &SignatureFile,
    told: Told,
    new: View<'_>,
    spool_dir: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
    out: &mut impl Write,
) -> Result<Comparison, WriteError> {
    let Told { runs, comparison } = told;
    monitor.phase("planning", 0);
    let known = known_ranges(&runs);
    let old = Image::of_file(known_old(&runs, new.bytes, spool_dir)?)?;
    let mut batches = plan_recipe(Recipe::new(runs), old.bytes(), comparison.old.len, new, &comparison);
    batches.iter_mut().filter(|batch| batch.save).for_each(|save| save.saved = clipped(&save.saved, &known));
    let old_id = signature.image;
    let draft = Draft { old: old.bytes(), unchanged: new, new, old_id, batches: &batches, texts: None };
    write_delta(&draft, &comparison, spool_dir, options, monitor, out)?;
    Ok(comparison)
}

/// Bytes of the new image compressed on its own, if the delta is more than a fifth of its data.
fn alone_len(new: View<'_>, delta_len: u64, options: &DiffOptions) -> std::io::Result<Option<u64>> {
    let data: u64 = new.data.iter().map(|r| r.end - r.start).sum();
    if delta_len < (64 << 10) || delta_len < data / 5 {
        return Ok(None);
    }
    let mut encoder = zstd::Encoder::new(CountBytes::default(), 3)?;
    encoder.multithread(options.threads as u32)?;
    for range in new.data {
        encoder.write_all(&new.bytes[range.start as usize..range.end as usize])?;
    }
    Ok(Some(encoder.finish()?.0))
}

#[derive(Default)]
struct CountBytes(u64);

impl Write for CountBytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
