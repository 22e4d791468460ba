//! `diff`: two images in, one delta out. Every decision is made here and written down in the delta.

use crate::compare::{Comparison, View, compare, compare_sharing, identify};
use crate::delta::check::check_order;
use crate::delta::header::Kind;
use crate::delta::label::Label;
use crate::delta::route::region_log;
use crate::delta::stream::{Compression, JOB};
use crate::delta::writer::{DeltaWriter, Identity, NewBatch, NewTexts, WriteError};
use crate::delta::{Delta, DeltaError};
use crate::diff_signature::{Told, clipped, known_old, known_ranges, match_signature};
use crate::digest::ImageId;
use crate::error::Error;
use crate::format::Format;
use crate::image::Image;
use crate::matcher;
use crate::monitor::Monitor;
use crate::opening::{Opening, open_image, open_pair};
use crate::outlet::{Outlet, unpack_folder};
use crate::plan::{self, Images, Recipe, copy_repeats, volatile_blocks};
use crate::recode::{Recoding, recode};
use crate::sign::read_signature;
use crate::signature::SignatureFile;
use crate::units::{BLOCK, Extent, merge_extents};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// log2 of the windows: the target needs that much memory for each column. Measured on the pair `release`, half the window
/// for the literals costs 0.25 %, and twice as much gains 0.08 % (on `squashfs`: nothing); the columns of the steps hardly
/// repeat over a distance.
#[must_use]
pub fn window_log(kind: Kind) -> u8 {
    match kind {
        Kind::Literals => 21,
        Kind::DifferenceValues => 20,
        Kind::DifferenceGaps => 19,
        _ => 18,
    }
}

/// Deltas shorter than this do without the region table: 256 bytes are too much of them.
const REGIONS_FROM: usize = 64 << 10;

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

/// Where the output really goes: what a symbolic link names, so that the link is not replaced by a file.
pub(crate) fn real_output(output: &Path) -> Result<PathBuf, Error> {
    if !std::fs::symlink_metadata(output).is_ok_and(|meta| meta.is_symlink()) {
        return Ok(output.to_owned());
    }
    let real = output.canonicalize().map_err(Error::io("follow the link", output))?;
    if output.starts_with("/dev") || output.starts_with("/proc") {
        return Err(Error::Unusable { path: output.to_owned(), why: "the output must be a file that can be replaced" });
    }
    Ok(real)
}

/// An output that is one of the inputs, a directory or a device would be destroyed or useless.
pub(crate) fn check_output<'a>(output: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<(), Error> {
    let Ok(meta) = std::fs::metadata(output) else { return Ok(()) };
    let unusable = |why| Err(Error::Unusable { path: output.to_owned(), why });
    if !meta.is_file() {
        return unusable("the output must be a file, not a directory or a device");
    }
    let same = |input: &Path| matches!((input.canonicalize(), output.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if inputs.any(same) {
        return unusable("the output would overwrite an input; give it another name");
    }
    Ok(())
}

/// Batches, and what the deflated data in them are made of.
struct Found<'a> {
    batches: Vec<NewBatch>,
    recoding: Option<Recoding<'a>>,
}

/// Matches and plans.
fn find_batches<'a>(
    old: View<'a>,
    new: View<'a>,
    comparison: &Comparison,
    spool_dir: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
) -> std::io::Result<Found<'a>> {
    let changed: Vec<Range<u64>> = comparison.changed.iter().map(|e| e.bytes(new.len())).collect();
    monitor.phase("matching", changed.iter().map(|r| r.end - r.start).sum());
    let DiffOptions { memory, threads, level, .. } = *options;
    let matching = matcher::Options { memory, threads, level, revise: true };
    // Not the holes that the file system tells: they may change while nobody writes.
    let old_data: Vec<Range<u64>> = bridged(&comparison.old_data).map(|e| e.bytes(old.len())).collect();
    let done = |bytes| monitor.advance(bytes);
    let mut runs = matcher::find_runs_telling(old.bytes, &old_data, new.bytes, &changed, &matching, &done);
    monitor.phase("matching deflated data", 0);
    let recoded = recode(old, new, &runs, &matching, spool_dir)?;
    let recoding = recoded.map(|(recoding, recoded)| {
        runs = recoded;
        recoding
    });
    monitor.phase("planning", 0);
    let recipe = Recipe::new(runs);
    let recipe = match &recoding {
        Some(recoding) => recipe.recoding(recoding),
        None => recipe,
    };
    let batches = plan_recipe(recipe, old.bytes, old.len(), new, comparison);
    Ok(Found { batches, recoding })
}

/// Plans a recipe that copies from `old`, of which zeros up to `zeros_to` may serve as scratch where they stay as they are.
fn plan_recipe(
    mut recipe: Recipe<'_>,
    old: &[u8],
    zeros_to: u64,
    new: View<'_>,
    comparison: &Comparison,
) -> Vec<NewBatch> {
    recipe.avoid_sources(&volatile_blocks(old, &recipe.source_blocks()));
    let cheap: Vec<Extent> = recipe
        .self_references()
        .into_iter()
        .filter(|block| is_cheap_literal(block_bytes(new.bytes, *block)))
        .map(|start| Extent { start, count: 1 })
        .collect();
    recipe.make_literal(&merged(cheap));
    let zeros = |wanted| zero_blocks(new, zeros_to.min(new.len()), &comparison.changed, wanted);
    let same = |a: u64, b: u64, len: u64| {
        let there = old.get(a as usize..(a + len) as usize);
        there.is_some() && there == new.bytes.get(b as usize..(b + len) as usize)
    };
    let images = Images { old_len: old.len() as u64, new_len: new.len(), same: &same };
    copy_repeats(plan::plan(&recipe, &images, zeros).batches, old, new.bytes)
}

/// Extents with short gaps between them closed: matches may run across a few zero blocks.
fn bridged(extents: &[Extent]) -> impl Iterator<Item = Extent> + '_ {
    const GAP: u64 = 16;
    let mut rest = extents.iter().copied().peekable();
    std::iter::from_fn(move || {
        let mut extent = rest.next()?;
        while let Some(next) = rest.next_if(|next| next.start - extent.end() <= GAP) {
            extent.count = next.end() - extent.start;
        }
        Some(extent)
    })
}

fn merged(mut extents: Vec<Extent>) -> Vec<Extent> {
    merge_extents(&mut extents);
    extents
}

fn block_bytes(image: &[u8], block: u64) -> &[u8] {
    let start = ((block * BLOCK) as usize).min(image.len());
    &image[start..(start + BLOCK as usize).min(image.len())]
}

/// Whether a block costs next to nothing as a literal, as most of it are runs of one byte (a bitmap, for one), so that it need not go through scratch.
fn is_cheap_literal(block: &[u8]) -> bool {
    block.iter().zip(block.iter().skip(1)).filter(|(byte, next)| byte != next).count() <= 64
}

/// Unchanged whole blocks below `limit` that are zero in both images, up to `wanted`; holes first, as they cost no look.
fn zero_blocks(new: View<'_>, limit: u64, changed: &[Extent], wanted: u64) -> Vec<Extent> {
    let (mut found, mut left) = (Vec::new(), wanted);
    let mut at = 0;
    for extent in changed.iter().copied().chain([Extent { start: limit / BLOCK, count: 0 }]) {
        for block in at..extent.start.min(limit / BLOCK) {
            if left == 0 {
                break;
            }
            let bytes = block * BLOCK..(block + 1) * BLOCK;
            if new.is_hole(&bytes) || block_bytes(new.bytes, block).iter().all(|byte| *byte == 0) {
                found.push(Extent { start: block, count: 1 });
                left -= 1;
            }
        }
        at = at.max(extent.end());
    }
    merged(found)
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

/// What a delta is made of.
struct Draft<'a> {
    /// The old image, as far as batches read it.
    old: &'a [u8],
    /// An image that is the old one where that does not change.
    unchanged: View<'a>,
    new: View<'a>,
    old_id: Option<ImageId>,
    batches: &'a [NewBatch],
    texts: Option<&'a (dyn NewTexts + Sync)>,
}

fn write_delta(
    draft: &Draft<'_>,
    comparison: &Comparison,
    spool_dir: &Path,
    options: &DiffOptions,
    monitor: &dyn Monitor,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let mut touched = crate::blockset::BlockSet::new();
    draft.batches.iter().flat_map(|batch| &batch.extents).for_each(|extent| touched.insert(*extent));
    monitor.phase("hashing", 0);
    let log = region_log(comparison.old.len.min(comparison.new.len));
    let (untouched, regions) = comparison.untouched(draft.unchanged, &touched, log, options.threads);
    let blocks = |batch: &NewBatch| batch.extents.iter().map(|extent| extent.count).sum::<u64>();
    monitor.phase("compressing", draft.batches.iter().map(blocks).sum::<u64>() * BLOCK);
    let level = zstd_level(options.level, Kind::StepKinds);
    let compression = |kind| Compression {
        level: zstd_level(options.level, kind),
        window_log: window_log(kind),
        threads: options.threads as u32,
        job: JOB,
    };
    let writer = DeltaWriter::new(draft.old, draft.new.bytes, &touched, spool_dir, compression);
    let mut writer = writer.labelled(options.label.clone()).with_texts(draft.texts);
    draft.batches.iter().try_for_each(|batch| {
        monitor.advance(blocks(batch) * BLOCK);
        writer.add(batch)
    })?;
    let mut identity = Identity { old: draft.old_id, new: comparison.new, untouched, region_log: log, regions };
    if writer.stored_estimate() < REGIONS_FROM {
        (identity.region_log, identity.regions) = (0, Vec::new());
    }
    if identity.regions.is_empty() {
        identity.region_log = 0;
    }
    writer.finish(&identity, level, out)?;
    Ok(())
}

/// zstd's level for each of ours. Literals may be long (those that a signature leaves over, for one, are five times as
/// long as those of a whole comparison), and nearly all the time goes there: one level less takes a tenth of it off for
/// 0.1 % of the bytes.
fn zstd_level(level: u32, kind: Kind) -> i32 {
    match level {
        0..=1 => 3,
        2..=3 => 9,
        4..=5 => 15,
        6..=8 if kind == Kind::Literals => 18,
        _ => 19,
    }
}

/// Reads the finished delta as `patch` will, with the same checks.
pub(crate) fn check_delta(file: &File) -> Result<u64, DeltaError> {
    let file = file.try_clone().map_err(DeltaError::Io)?;
    let delta = Delta::open(Arc::new(file), u64::MAX)?;
    check_order(&delta)?;
    Ok(delta.file_len)
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
