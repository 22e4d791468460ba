//! The golden files of testdata/ and their verdicts: what a patcher in any language must accept and refuse.
//!
//! `BLKPATCH_BLESS=1 cargo test --test golden` makes the bad and unsupported files again from good-example.delta.

use blkpatch::delta::Delta;
use blkpatch::delta::batch::{BatchKind, BatchTable};
use blkpatch::delta::header::{Codec, DEFLATE, FIXED_LEN, Header, Kind, NO_ROUTE, Section, ZSTD};
use blkpatch::delta::route::Counts;
use blkpatch::delta::step::StepKind;
use blkpatch::units::Extent;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn good() -> Vec<u8> {
    std::fs::read(testdata().join("good-example.delta")).expect("testdata/good-example.delta")
}

/// (file, what the message must say)
const REFUSED: [(&str, &str); 34] = [
    ("bad-magic.delta", "not a blkpatch delta"),
    ("bad-text-mode.delta", "text-mode transfer"),
    ("bad-header-bit.delta", "the header does not match its digest"),
    ("bad-section-bit.delta", "the pack does not match its digest"),
    ("bad-truncated.delta", "cut short"),
    ("bad-appended.delta", "something was appended"),
    ("bad-header-length.delta", "header_len"),
    ("bad-rule-r1.delta", "rule R1"),
    ("bad-rule-r2.delta", "rule R2"),
    ("bad-rule-r3.delta", "rule R3"),
    ("bad-rule-r4.delta", "rule R4"),
    ("bad-source-gone.delta", "rule source"),
    ("bad-outside.delta", "the image ends at block"),
    ("bad-source-range.delta", "step source"),
    ("bad-counts.delta", "final_blocks"),
    ("bad-left-over.delta", "left over"),
    ("bad-difference.delta", "difference value"),
    ("bad-pack-lengths.delta", "the lengths in the pack"),
    ("bad-pack-alone.delta", "a route with a pack has other sections"),
    ("bad-deflate-bit.delta", "step kind"),
    ("bad-text-kind.delta", "step kind"),
    ("bad-text-length.delta", "bytes of new text"),
    ("bad-text-source.delta", "text source"),
    ("bad-unpack-start.delta", "start of unpacking"),
    ("bad-zstd-bit.delta", "step kind"),
    ("bad-zstd-skip.delta", "bytes to skip"),
    ("bad-zstd-unpack.delta", "bytes to unpack"),
    ("bad-zstd-text.delta", "bytes of text"),
    ("bad-lzma-bit.delta", "step kind"),
    ("bad-lzma-skip.delta", "bytes to skip"),
    ("unsupported-version.delta", "newer blkpatch"),
    ("unsupported-feature.delta", "newer blkpatch"),
    ("unsupported-section.delta", "newer blkpatch"),
    ("unsupported-codec.delta", "newer blkpatch"),
];

/// A delta taken apart, so that it can be put together wrong with all digests right.
struct Parts {
    header: Header,
    route: blkpatch::delta::route::Route,
    table: BatchTable,
    columns: Vec<(Kind, Vec<u8>)>,
}

impl Parts {
    fn of(bytes: &[u8]) -> Self {
        let delta = Delta::open(Arc::new(bytes.to_vec()), u64::MAX).expect("the good example opens");
        let mut columns = Vec::new();
        for kind in Kind::COLUMNS {
            let Some(section) = delta.streams.section(kind) else { continue };
            let mut raw = vec![0; section.raw_len as usize];
            let mut stream = delta.streams.open(kind).expect("a stream");
            stream.fill(&mut raw).expect("its bytes");
            columns.push((kind, raw));
        }
        Self { header: delta.header, route: delta.route, table: delta.table, columns }
    }

    /// Replaces the order; the counts follow.
    fn with_batches(mut self, batches: &[TestBatch]) -> Self {
        let mut table = BatchTable::default();
        let mut counts = Counts { save_reads: self.route.counts.save_reads, ..Counts::default() };
        for batch in batches {
            table.push(batch.kind, batch.barrier, &batch.extents, &batch.saved, (batch.crc, batch.source_crc));
            let blocks: u64 = batch.extents.iter().map(|e| e.count).sum();
            counts.batches += 1;
            counts.extents += batch.extents.len() as u64;
            counts.save_ranges += batch.saved.len() as u64;
            counts.barriers += u64::from(batch.barrier);
            match batch.kind {
                BatchKind::Save => counts.scratch_blocks += blocks,
                _ => counts.final_blocks += blocks,
            }
        }
        (self.table, self.route.counts) = (table, counts);
        self
    }

    fn batches(&self) -> Vec<TestBatch> {
        let of = |batch: &blkpatch::delta::batch::Batch| TestBatch {
            kind: batch.kind,
            barrier: batch.barrier,
            extents: self.table.extents(batch).to_vec(),
            saved: self.table.saved(batch).to_vec(),
            crc: batch.crc,
            source_crc: batch.source_crc,
        };
        self.table.batches().iter().map(of).collect()
    }

    fn column(&mut self, kind: Kind) -> &mut Vec<u8> {
        &mut self.columns.iter_mut().find(|(k, _)| *k == kind).expect("a column").1
    }

    fn assemble(&self) -> Vec<u8> {
        let mut parts = vec![(Kind::Route, self.route.encode()), (Kind::Batches, self.table.encode())];
        parts.extend(self.columns.iter().cloned());
        with_sections(&self.header, &parts)
    }
}

/// A delta of sections that are stored as they are, with right digests.
fn with_sections(header: &Header, parts: &[(Kind, Vec<u8>)]) -> Vec<u8> {
    let mut header = header.clone();
    header.sections.clear();
    for (kind, bytes) in parts {
        let len = bytes.len() as u64;
        let blake3 = *blake3::hash(bytes).as_bytes();
        let (kind, codec) = (Some(*kind), Codec::Stored);
        let route = if kind == Some(Kind::Label) { NO_ROUTE } else { 0 };
        header.sections.push(Section { kind, route, codec, offset: 0, stored_len: len, raw_len: len, blake3 });
    }
    let mut out = header.encode();
    parts.iter().for_each(|(_, bytes)| out.extend(bytes));
    out
}

/// The good example with a label, in sections.
fn labelled(text: &[u8]) -> Vec<u8> {
    let parts = Parts::of(&good());
    let mut sections = vec![(Kind::Route, parts.route.encode()), (Kind::Batches, parts.table.encode())];
    sections.extend(parts.columns.iter().cloned().chain([(Kind::Label, text.to_vec())]));
    with_sections(&parts.header, &sections)
}

#[derive(Clone)]
struct TestBatch {
    kind: BatchKind,
    barrier: bool,
    extents: Vec<Extent>,
    saved: Vec<std::ops::Range<u64>>,
    crc: u32,
    source_crc: u32,
}

/// Makes the header's digest right again after `change`.
fn with_header(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = good();
    change(&mut bytes);
    let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let digest = blake3::hash(&bytes[..len - 32]);
    bytes[len - 32..len].copy_from_slice(digest.as_bytes());
    bytes
}

fn edited(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = Parts::of(&good());
    change(&mut parts);
    parts.assemble()
}

/// Where each varint of a column begins.
fn numbers(column: &[u8]) -> Vec<usize> {
    let ends = column.iter().enumerate().filter(|(_, byte)| **byte < 0x80).map(|(i, _)| i + 1);
    std::iter::once(0).chain(ends).collect()
}

/// How many step lengths stand before the first step of a kind: unpack and those that pack have three, others that unpack two,
/// others one.
fn lengths_before(parts: &mut Parts, kind: StepKind) -> usize {
    let kinds = parts.column(Kind::StepKinds).iter().take_while(|k| **k != kind as u8);
    kinds.map(|k| [1, 1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 2, 3, 2, 3][usize::from(*k)]).sum()
}

/// Replaces a number of the first step of a kind among the step lengths.
fn with_length(parts: &mut Parts, kind: StepKind, which: usize, number: &[u8]) {
    let i = lengths_before(parts, kind) + which;
    let lengths = parts.column(Kind::StepLengths);
    let at = numbers(lengths);
    lengths.splice(at[i]..at[i + 1], number.iter().copied()).for_each(drop);
}

/// The good example of this name, changed.
fn other_edited(name: &str, change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = Parts::of(&std::fs::read(testdata().join(name)).expect(name));
    change(&mut parts);
    parts.assemble()
}

fn deflate_edited(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    other_edited("good-deflate.delta", change)
}

fn lzma_edited(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    other_edited("good-lzma.delta", change)
}

fn zstd_edited(change: impl FnOnce(&mut Parts)) -> Vec<u8> {
    other_edited("good-zstd.delta", change)
}

fn reordered(change: impl FnOnce(&mut Vec<TestBatch>)) -> Vec<u8> {
    let parts = Parts::of(&good());
    let mut batches = parts.batches();
    change(&mut batches);
    parts.with_batches(&batches).assemble()
}

fn make(name: &str) -> Vec<u8> {
    let mut plain = good();
    let header_len = u32::from_le_bytes(plain[8..12].try_into().unwrap()) as usize;
    let save = |batches: &[TestBatch]| batches.iter().position(|b| b.kind == BatchKind::Save).expect("a save");
    match name {
        "bad-magic.delta" => plain[..8].copy_from_slice(b"PK\x03\x04data"),
        "bad-text-mode.delta" => drop(plain.remove(4)), // CR LF became LF
        "bad-header-bit.delta" => plain[40] ^= 1,
        "bad-section-bit.delta" => {
            let delta = Delta::open(Arc::new(plain.clone()), u64::MAX).expect("good");
            plain[delta.header.section(Kind::Pack, 0).expect("a pack").offset as usize] ^= 0x10;
        }
        "bad-truncated.delta" => plain.truncate(plain.len() - 1),
        "bad-appended.delta" => plain.push(0),
        "bad-header-length.delta" => plain[8..12].copy_from_slice(&7u32.to_le_bytes()),
        // The save writes its copy over what it copies.
        "bad-rule-r1.delta" => {
            return reordered(|b| {
                let s = save(b);
                let first = b[s].saved[0].start / 4096;
                let count = b[s].extents.iter().map(|e| e.count).sum();
                b[s].extents = vec![Extent { start: first, count }];
            });
        }
        "bad-rule-r2.delta" => return reordered(|b| b.iter_mut().for_each(|batch| batch.barrier = false)),
        // A block gets its final content twice.
        "bad-rule-r4.delta" => {
            return reordered(|b| {
                if let Some(e) = b.last_mut().and_then(|batch| batch.extents.last_mut()) {
                    e.count += 1;
                }
            });
        }
        "bad-rule-r3.delta" => return split_data(true),
        "bad-source-gone.delta" => return split_data(false),
        "bad-outside.delta" => {
            return reordered(|b| {
                if let Some(e) = b.last_mut().and_then(|batch| batch.extents.last_mut()) {
                    e.start += 1000;
                }
            });
        }
        "bad-source-range.delta" => {
            return edited(|p| p.column(Kind::StepSources).splice(0..1, [0xff, 0xff, 0x7f]).for_each(drop));
        }
        "bad-counts.delta" => return edited(|p| p.route.counts.final_blocks += 1),
        "bad-left-over.delta" => return edited(|p| p.column(Kind::Literals).push(0)),
        // 2^32 + 4, the first number that is no value.
        "bad-difference.delta" => {
            return edited(|p| {
                p.column(Kind::DifferenceValues).splice(0..1, [0x84, 0x80, 0x80, 0x80, 0x10]).for_each(drop)
            });
        }
        "bad-pack-lengths.delta" => {
            let delta = Delta::open(Arc::new(plain.clone()), u64::MAX).expect("good");
            let pack = delta.header.section(Kind::Pack, 0).expect("a pack").offset as usize;
            let mut bytes = plain[pack..].to_vec();
            bytes[7] += 1;
            return with_sections(&delta.header, &[(Kind::Pack, bytes)]);
        }
        "bad-pack-alone.delta" => {
            let delta = Delta::open(Arc::new(plain.clone()), u64::MAX).expect("good");
            let pack = delta.header.section(Kind::Pack, 0).expect("a pack").offset as usize;
            return with_sections(
                &delta.header,
                &[(Kind::Route, delta.route.encode()), (Kind::Pack, plain[pack..].to_vec())],
            );
        }
        "bad-deflate-bit.delta" => return deflate_edited(|p| p.header.features = 0),
        // A text-literal where no deflate stands before it.
        "bad-text-kind.delta" => return deflate_edited(|p| p.column(Kind::StepKinds)[0] = 8),
        "bad-text-length.delta" => {
            return deflate_edited(|p| with_length(p, StepKind::Deflate, 2, &[0x81, 0x80, 0x08]));
        }
        "bad-text-source.delta" => {
            return deflate_edited(|p| {
                let kinds = p.column(Kind::StepKinds).iter().take_while(|kind| ![9, 10].contains(*kind));
                let i = kinds.filter(|kind| ![0, 3, 7, 8].contains(*kind)).count();
                let sources = p.column(Kind::StepSources);
                let at = numbers(sources);
                sources.splice(at[i]..at[i + 1], [0x80, 0x80, 0x80, 0x08]).for_each(drop);
            });
        }
        "bad-unpack-start.delta" => {
            return deflate_edited(|p| with_length(p, StepKind::Unpack, 1, &[1]));
        }
        "bad-zstd-bit.delta" => return zstd_edited(|p| p.header.features = DEFLATE),
        // 262,144 bytes, and more that follow; one byte too many; none.
        "bad-zstd-skip.delta" => {
            return zstd_edited(|p| with_length(p, StepKind::PackZstd, 1, &[0x80, 0x80, 0x10]));
        }
        "bad-zstd-unpack.delta" => {
            return zstd_edited(|p| with_length(p, StepKind::UnpackZstd, 0, &[0x81, 0x80, 0x10]));
        }
        "bad-lzma-bit.delta" => return lzma_edited(|p| p.header.features = DEFLATE | ZSTD),
        "bad-lzma-skip.delta" => return lzma_edited(|p| with_length(p, StepKind::PackLzma, 1, &[0x80, 0x80, 0x10])),
        "bad-zstd-text.delta" => return zstd_edited(|p| with_length(p, StepKind::UnpackZstd, 1, &[0])),
        "good-sections.delta" => return Parts::of(&plain).assemble(),
        "good-label.delta" => return labelled("golden example 1 → 2".as_bytes()),
        "good-label-unshown.delta" => return labelled(b"\x1b[2Jgolden"),
        "unsupported-version.delta" => return with_header(|b| b[12..14].copy_from_slice(&2u16.to_le_bytes())),
        "unsupported-feature.delta" => return with_header(|b| b[16] |= 0x80),
        "unsupported-section.delta" => return with_header(|b| b[FIXED_LEN] = 99),
        "unsupported-codec.delta" => return with_header(|b| b[FIXED_LEN + 6] = 7),
        other => panic!("no recipe for {other}"),
    }
    assert!(header_len < plain.len() + 2);
    plain
}

/// The data batch of the example cut in two, block by block. With the save: one block of its scratch is overwritten
/// while the reader of the other one need not be durable. Without it: the second half's source is gone.
fn split_data(with_save: bool) -> Vec<u8> {
    let mut parts = Parts::of(&good());
    let mut batches = parts.batches();
    let of = |kind: BatchKind| batches.iter().position(|b| b.kind == kind).expect("the example has all kinds");
    let (save, data, zero) = (of(BatchKind::Save), of(BatchKind::Data), of(BatchKind::Zero));
    assert_eq!((save, data, zero), (0, 1, 2), "the example's order");
    let (first, second) = (batches[data].extents[0].start, batches[data].extents[0].start + 1);
    let scratch = batches[save].extents[0];
    let one = |start| Extent { start, count: 1 };
    let other = |start| TestBatch { extents: vec![one(start)], barrier: false, ..batches[data].clone() };
    let mut rest = other(second);
    rest.extents.extend_from_slice(&batches[data].extents[1..]);
    let reader = TestBatch { barrier: true, ..other(first) };
    // The first data block reads the copy of the second, which is the save's second block; its first goes.
    let zeros = |start| TestBatch { extents: vec![one(start)], barrier: false, ..batches[zero].clone() };
    batches = if with_save {
        vec![batches[save].clone(), reader, zeros(scratch.start), rest, zeros(scratch.start + 1)]
    } else {
        parts.route.counts.save_reads = 0;
        let rest = TestBatch { barrier: true, ..rest };
        vec![TestBatch { barrier: false, ..reader }, rest, zeros(scratch.start), zeros(scratch.start + 1)]
    };
    // The first step now ends with its extent, which is written as 0.
    parts.column(Kind::StepLengths).splice(0..2, [0]).for_each(drop);
    parts.with_batches(&batches).assemble()
}

fn blkpatch(args: &[&std::ffi::OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blkpatch")).args(args).output().expect("the program runs")
}

#[test]
fn every_golden_file_gets_its_verdict() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("target.img");
    let old = |name: &str| std::fs::read(testdata().join(name)).expect(name);
    let (example, deflate) = (old("good-example.old"), old("good-deflate.old"));
    let (zstd, lzma) = (old("good-zstd.old"), old("good-lzma.old"));
    for (name, message) in REFUSED {
        let of = |words: &[&str]| words.iter().any(|word| name.starts_with(&format!("bad-{word}-")));
        let old = match name {
            "bad-text-mode.delta" => &example,
            _ if of(&["deflate", "text", "unpack"]) => &deflate,
            _ if of(&["zstd"]) => &zstd,
            _ if of(&["lzma"]) => &lzma,
            _ => &example,
        };
        let path = testdata().join(name);
        if std::env::var_os("BLKPATCH_BLESS").is_some() {
            std::fs::write(&path, make(name)).expect("testdata is writable");
        }
        std::fs::write(&target, old).expect("target");
        for verb in ["patch", "verify"] {
            let out = blkpatch(&[verb.as_ref(), path.as_ref(), target.as_ref()]);
            let text = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(1), "{verb} {name}: {text}");
            assert!(text.contains(message), "{verb} {name} must say '{message}', says: {text}");
            assert!(text.contains("Nothing was written"), "{verb} {name}: {text}");
        }
        assert_eq!(&std::fs::read(&target).expect("target"), old, "{name} must leave the target alone");
    }
    // Nothing in testdata without a verdict.
    for entry in std::fs::read_dir(testdata()).expect("testdata") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let known = REFUSED.iter().any(|(n, _)| *n == name) || name.starts_with("good-");
        assert!(known, "testdata/{name} has no verdict");
    }
}

#[test]
fn the_good_examples_turn_old_into_new() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("target.img");
    // The same delta in a pack, and in sections.
    for name in ["good-example.delta", "good-sections.delta", "good-label.delta", "good-label-unshown.delta"] {
        let delta = testdata().join(name);
        if name != "good-example.delta" && std::env::var_os("BLKPATCH_BLESS").is_some() {
            std::fs::write(&delta, make(name)).expect("testdata is writable");
        }
        std::fs::copy(testdata().join("good-example.old"), &target).expect("old");
        let out = blkpatch(&["patch".as_ref(), delta.as_ref(), target.as_ref()]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{said}");
        assert_eq!(said.contains("golden example 1 → 2"), name == "good-label.delta", "{said}");
        assert!(!said.contains('\x1b'), "{said}");
        assert_eq!(std::fs::read(&target).unwrap(), std::fs::read(testdata().join("good-example.new")).unwrap());
    }
}

/// Made once, by compressors that need not make the same again.
fn make_compressed_example(folder: &Path, name: &str) {
    let lines = |edition: u32| {
        let mut lines = Vec::new();
        for i in 0..1200u32 {
            // LZMA sees through the simpler numbers.
            let mixed = if name == "lzma" { i.wrapping_mul(40_503).wrapping_add(7).wrapping_pow(3) } else { i };
            let number = mixed.wrapping_mul(2_654_435_761) >> if name == "lzma" { 14 } else { 18 };
            writeln!(lines, "entry {number} of the table, state {}", if i % 299 == 7 { edition } else { 0 }).unwrap();
        }
        lines
    };
    let gzip = |content: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    // Two frames, whose blocks have sequences, and literals that are coded.
    let zstd = |content: &[u8]| {
        content.chunks(20_000).flat_map(|part| zstd::bulk::compress(part, 9).unwrap()).collect::<Vec<u8>>()
    };
    let xz = |content: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let image = |edition: u32| {
        let packed = match name {
            "zstd" => zstd(&lines(edition)),
            "lzma" => xz(&lines(edition)),
            _ => gzip(&lines(edition)),
        };
        let mut image = [&b"golden"[..], &vec![b'.'; 94 + 1500 * edition as usize], &packed].concat();
        image.resize(10 * 4096, 0);
        image
    };
    let paths = ["old", "new", "delta"].map(|end| folder.join(format!("good-{name}.{end}")));
    std::fs::write(&paths[0], image(0)).expect("testdata is writable");
    std::fs::write(&paths[1], image(1)).expect("testdata is writable");
    let options = blkpatch::diff::DiffOptions::default();
    blkpatch::diff::diff(&paths[0], &paths[1], &paths[2], &options, &blkpatch::monitor::Silent).expect("a delta");
}

#[test]
fn the_compressed_examples_turn_old_into_new() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("target.img");
    for (name, unpack, pack) in
        [("deflate", "unpack", "deflate"), ("zstd", "unpack-zstd", "pack-zstd"), ("lzma", "unpack-lzma", "pack-lzma")]
    {
        let file = |end: &str| testdata().join(format!("good-{name}.{end}"));
        if !file("delta").exists() && std::env::var_os("BLKPATCH_BLESS").is_some() {
            make_compressed_example(&testdata(), name);
        }
        std::fs::copy(file("old"), &target).expect("old");
        let out = blkpatch(&["info".as_ref(), file("delta").as_ref()]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        for kind in [unpack, pack, "text-literal", "text-copy", "text-add"] {
            assert!(said.contains(&format!("steps    {kind}")), "{name}, {kind}: {said}");
        }
        let out = blkpatch(&["patch".as_ref(), file("delta").as_ref(), target.as_ref()]);
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read(&target).unwrap(), std::fs::read(file("new")).unwrap());
    }
}
