//! `spec/format.md` is the format: its tables, limits and example must be what the code does.

use blkpatch::delta::Delta;
use blkpatch::delta::batch::{BatchKind, BatchTable, HEAD_BARRIER};
use blkpatch::delta::check::check_order;
use blkpatch::delta::header::{self, Codec, Header, Kind, Limits, Section};
use blkpatch::delta::memory::{Footprint, Memory};
use blkpatch::delta::route::{self, Counts, Route};
use blkpatch::delta::step::{self, Space, StepKind};
use blkpatch::delta::{difference, pack};
use blkpatch::device::MemoryDevice;
use blkpatch::digest::ImageId;
use blkpatch::monitor::Silent;
use blkpatch::patch::{Opened, PatchOptions, patch_device};
use blkpatch::target::State;
use blkpatch::units::{BLOCK, Extent};
use blkpatch::{lzma_chunk, zstd_block};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn spec() -> String {
    fs::read_to_string(root().join("spec/format.md")).unwrap()
}

/// The rows of a table, heading left out, each cut into its trimmed cells.
fn table(number: &str) -> Vec<Vec<String>> {
    let text = spec();
    let mark = format!("**Table {number}:");
    assert_eq!(text.matches(&mark).count(), 1, "table {number}");
    let lines = text[text.find(&mark).unwrap()..].lines().skip(1).skip_while(|line| line.is_empty());
    let rows: Vec<Vec<String>> = lines
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "table {number} has no rows");
    rows
}

/// The names in a table by their numbers, from its first two columns.
fn numbered(number: &str) -> Vec<(u64, String)> {
    table(number).iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect()
}

/// The fields of fixed place and size: name, offset, size. Checks that they leave no gap and end at `end`.
fn fields(number: &str, end: usize) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    for row in table(number) {
        let (Ok(offset), Ok(size)) = (row[0].parse::<usize>(), row[1].parse::<usize>()) else { continue };
        assert_eq!(offset, at, "table {number}: {} does not follow the field before it", row[2]);
        at += size;
        found.push((row[2].clone(), offset, size));
    }
    assert_eq!(at, end, "table {number} ends elsewhere");
    found
}

/// Compares the fields of a structure with what the table says.
fn check_fields(number: &str, bytes: &[u8], end: usize, expected: &[(&str, &[u8])]) {
    let fields = fields(number, end);
    let names: Vec<&str> = fields.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "table {number}");
    for ((name, offset, size), (_, value)) in fields.iter().zip(expected) {
        assert_eq!(&bytes[*offset..offset + size], *value, "table {number}: {name}");
    }
}

fn image(seed: u8, len: u64) -> ImageId {
    ImageId { len, crc: u32::from_le_bytes([seed; 4]), blake3: [seed.wrapping_add(1); 32] }
}

fn section(kind: Kind, codec: Codec) -> Section {
    let (offset, stored_len) = (0, 0x0102_0304);
    Section { kind: Some(kind), route: 0, codec, offset, stored_len, raw_len: stored_len, blake3: [7; 32] }
}

fn a_header() -> Header {
    let limits = Limits { batch_bytes: 0x2122_2324, source_bytes: 0x3132_3334, batch_steps: 77, memory: 1 << 40 };
    let sections = vec![section(Kind::Route, Codec::Stored), section(Kind::Literals, Codec::Zstd { window_log: 19 })];
    Header { features: header::KNOWN_INCOMPATIBLE, compatible: 0x5152, new: image(9, 5_000_000_000), limits, sections }
}

fn a_route(regions: Vec<u32>) -> Route {
    let counts = Counts {
        batches: 1_000_001,
        extents: 1_000_002,
        save_ranges: 1_000_003,
        save_reads: 1_000_004,
        barriers: 1_000_005,
        scratch_blocks: 1_000_006,
        final_blocks: 1_000_007,
    };
    let region_log = if regions.is_empty() { 0 } else { 20 };
    Route { old: Some(image(3, 3 << 20)), untouched_len: 3 << 20, untouched: [8; 32], counts, region_log, regions }
}

#[test]
fn header_fields_lie_where_table_3_1_says() {
    let header = a_header();
    let bytes = header.encode();
    let limits = header.limits;
    check_fields(
        "3.1",
        &bytes,
        header::FIXED_LEN,
        &[
            ("magic", &header::MAGIC),
            ("header_len", &(bytes.len() as u32).to_le_bytes()),
            ("version", &header::VERSION.to_le_bytes()),
            ("section_count", &2u16.to_le_bytes()),
            ("incompatible", &header::KNOWN_INCOMPATIBLE.to_le_bytes()),
            ("compatible", &header.compatible.to_le_bytes()),
            ("new_len", &header.new.len.to_le_bytes()),
            ("new_crc", &header.new.crc.to_le_bytes()),
            ("batch_bytes", &limits.batch_bytes.to_le_bytes()),
            ("source_bytes", &limits.source_bytes.to_le_bytes()),
            ("batch_steps", &limits.batch_steps.to_le_bytes()),
            ("memory", &limits.memory.to_le_bytes()),
            ("new_blake3", &header.new.blake3),
        ],
    );
    let rows = table("3.1");
    let magic: Vec<String> = header::MAGIC.iter().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(rows[0][3], magic.join(" "));
    assert_eq!(rows[2][3], header::VERSION.to_string());
    let [.., sections, digest] = &rows[..] else { panic!("table 3.1 is too short") };
    let list = format!("{}·section_count", header::ENTRY_LEN);
    assert_eq!((&sections[0], &sections[1]), (&header::FIXED_LEN.to_string(), &list));
    assert_eq!((&digest[0], &digest[1]), (&format!("{} + {list}", header::FIXED_LEN), &header::DIGEST_LEN.to_string()));
    let body = bytes.len() - header::DIGEST_LEN;
    assert_eq!(&bytes[body..], blake3::hash(&bytes[..body]).as_bytes());
}

#[test]
fn section_entries_lie_where_table_3_2_says() {
    let header = a_header();
    let bytes = header.encode();
    for (i, (codec, window_log)) in [(0u8, 0u8), (1, 19)].into_iter().enumerate() {
        let section = &header.sections[i];
        let start = header::FIXED_LEN + i * header::ENTRY_LEN;
        check_fields(
            "3.2",
            &bytes[start..],
            header::ENTRY_LEN,
            &[
                ("kind", &(section.kind.unwrap() as u16).to_le_bytes()),
                ("flags", &header::FLAG_CRITICAL.to_le_bytes()),
                ("route", &section.route.to_le_bytes()),
                ("codec", &[codec]),
                ("window_log", &[window_log]),
                ("stored_len", &section.stored_len.to_le_bytes()),
                ("raw_len", &section.raw_len.to_le_bytes()),
                ("blake3", &section.blake3),
            ],
        );
    }
    assert_eq!(numbered("3.4"), [(0, "stored".to_owned()), (1, "zstd".to_owned())]);
}

#[test]
fn route_fields_lie_where_table_4_1_says() {
    let regions = vec![0x0a0b_0c0d, 0x1a1b_1c1d, 0x2a2b_2c2d];
    let route = a_route(regions.clone());
    let bytes = route.encode();
    let (old, counts) = (route.old.unwrap(), route.counts);
    check_fields(
        "4.1",
        &bytes,
        route::FIXED_LEN,
        &[
            ("flags", &route::FLAG_OLD_KNOWN.to_le_bytes()),
            ("old_crc", &old.crc.to_le_bytes()),
            ("old_len", &old.len.to_le_bytes()),
            ("old_blake3", &old.blake3),
            ("untouched_len", &route.untouched_len.to_le_bytes()),
            ("untouched", &route.untouched),
            ("batches", &counts.batches.to_le_bytes()),
            ("extents", &counts.extents.to_le_bytes()),
            ("save_ranges", &counts.save_ranges.to_le_bytes()),
            ("save_reads", &counts.save_reads.to_le_bytes()),
            ("barriers", &counts.barriers.to_le_bytes()),
            ("scratch_blocks", &counts.scratch_blocks.to_le_bytes()),
            ("final_blocks", &counts.final_blocks.to_le_bytes()),
            ("region_log", &20u32.to_le_bytes()),
            ("region_count", &3u32.to_le_bytes()),
        ],
    );
    let tail: Vec<u8> = regions.iter().flat_map(|crc| crc.to_le_bytes()).collect();
    assert_eq!(&bytes[route::FIXED_LEN..], tail);
    let rows = table("4.1");
    let last = rows.last().unwrap();
    assert_eq!((last[0].as_str(), last[1].as_str()), (route::FIXED_LEN.to_string().as_str(), "4·region_count"));
    assert_eq!(Route::decode(&bytes, 3 << 20).unwrap(), route);
}

#[test]
fn numbers_and_names_of_kinds_are_those_of_the_tables() {
    let kinds: Vec<(u64, String)> = Kind::ALL.iter().map(|kind| (*kind as u64, kind.name().to_owned())).collect();
    assert_eq!(numbered("3.3"), kinds);
    assert_eq!(numbered("3.5"), [(Kind::Label as u64, Kind::Label.name().to_owned())]);

    let steps = table("6.1");
    assert_eq!(steps.len(), StepKind::ALL.len());
    for (kind, row) in StepKind::ALL.into_iter().zip(steps) {
        let name = kind.name();
        let reads = match kind.space() {
            None => "–",
            Some(Space::Old) => "old",
            Some(Space::New) => "new",
        };
        let adds = if kind.adds() { "yes" } else { "no" };
        assert_eq!(row[..4], [(kind as u8).to_string().as_str(), name, reads, adds]);
    }

    let batches = [
        (BatchKind::Data, "data", "final"),
        (BatchKind::Save, "save", "temporary"),
        (BatchKind::Zero, "zero", "final"),
    ];
    for (row, (kind, name, class)) in table("5.3").iter().zip(batches) {
        assert_eq!(row[..3], [(kind as u8).to_string().as_str(), name, class]);
    }
    assert_eq!(table("5.3").len(), batches.len());
}

#[test]
fn a_batch_is_encoded_as_tables_5_1_to_5_4_say() {
    let mut table = BatchTable::default();
    let extent = |start, count| Extent { start, count };
    table.push(BatchKind::Save, false, &[extent(5, 2), extent(300, 1)], &[8192..8200, 16384..20485], (1, 2));
    table.push(BatchKind::Data, true, &[extent(2, 1)], &[], (3, 4));
    table.push(BatchKind::Zero, true, &[extent(300, 1)], &[], (0, 0));
    let save = [
        &[0x01, 2, 10, 2, 0xa5, 0x02, 1][..], // head, count, 5 - 0, 2, 300 - 7 = 293, 1
        &[2, 0x80, 0x80, 0x01, 8, 0xf8, 0x3f, 0x85, 0x20], // count, 8192 - 0, 8, 16384 - 8200 = 8184, 4101
        &[1, 0, 0, 0, 2, 0, 0, 0],
    ]
    .concat();
    let data = [4, 1, 0xd5, 0x04, 1, 3, 0, 0, 0, 4, 0, 0, 0]; // 2 - 301 = -299, as 597
    let zero = [6, 1, 0xd2, 0x04, 1]; // 300 - 3 = 297, as 594
    assert_eq!(table.encode(), [&save[..], &data, &zero].concat());
}

#[test]
fn constants_are_those_of_table_9_1() {
    let code: BTreeMap<&str, u64> = [
        ("block", BLOCK),
        ("header_fixed", header::FIXED_LEN as u64),
        ("entry", header::ENTRY_LEN as u64),
        ("digest", header::DIGEST_LEN as u64),
        ("header_least", (header::FIXED_LEN + header::DIGEST_LEN) as u64),
        ("header_most", header::MAX_HEADER_LEN.into()),
        ("no_route", header::NO_ROUTE.into()),
        ("critical", header::FLAG_CRITICAL.into()),
        ("window_log_least", window_logs().0.into()),
        ("window_log_most", window_logs().1.into()),
        ("route_fixed", route::FIXED_LEN as u64),
        ("old_known", route::FLAG_OLD_KNOWN.into()),
        ("regions_most", route::MAX_REGIONS.into()),
        ("region_log_least", route::region_log(1).into()),
        ("barrier_bit", HEAD_BARRIER.into()),
        ("varint_most", blkpatch::varint::MAX_VARINT as u64),
        ("version", header::VERSION.into()),
        ("pack_most", pack::PACK_MOST),
        ("pack_window_log_most", pack::PACK_WINDOW_LOG.into()),
        ("field", difference::FIELD as u64),
        ("lists", difference::LISTS as u64),
        ("guesses", difference::GUESSES as u64),
        ("target_log", difference::TARGET_LOG.into()),
        ("deflate", header::DEFLATE),
        ("zstd", header::ZSTD),
        ("lzma", header::LZMA),
        ("unpack_most", step::UNPACK_MOST),
        ("old_text_most", step::OLD_TEXT),
        ("new_text_most", step::NEW_TEXT),
        ("skip_end", step::SKIP_MOST),
        ("batch_text_most", step::BATCH_TEXT),
        ("literals_most", zstd_block::CONTENT_MOST as u64),
        ("content_most", lzma_chunk::CONTENT_MOST as u64),
        ("packed_most", step::PACKED_MOST),
    ]
    .into();
    let rows = table("9.1");
    let text: BTreeMap<&str, u64> = rows.iter().map(|row| (row[0].as_str(), row[1].parse().unwrap())).collect();
    assert_eq!(text, code);
}

/// The smallest and the largest window that a header may announce, found by trying.
fn window_logs() -> (u8, u8) {
    let accepted = |window_log: &u8| {
        let mut header = a_header();
        header.sections = vec![section(Kind::Literals, Codec::Zstd { window_log: *window_log })];
        Header::decode(&header.encode()).is_ok()
    };
    let all: Vec<u8> = (0..=u8::MAX).filter(accepted).collect();
    (all[0], all[all.len() - 1])
}

#[test]
fn the_memory_needed_is_the_sum_of_table_9_2() {
    let (mut header, route) = (a_header(), a_route(Vec::new()));
    header.sections.push(section(Kind::Pack, Codec::Stored));
    let (limits, counts) = (header.limits, route.counts);
    let footprint = Footprint { pages: 31, nodes: 1234, live: 567, parts: 8910 };
    let times: BTreeMap<&str, u64> = [
        ("1", 1),
        ("sections of the route, table 3.3, with codec 0", 2),
        ("sections of the route, table 3.3, with codec 1", 1),
        ("packs of the route", 1),
        ("batch_bytes", limits.batch_bytes.into()),
        ("source_bytes", limits.source_bytes.into()),
        ("batch_steps", limits.batch_steps.into()),
        ("recoded", 1),
        ("whole", 1),
        ("batches", counts.batches),
        ("extents", counts.extents),
        ("save_ranges", counts.save_ranges),
        ("save_reads", counts.save_reads),
        ("live", footprint.live),
        ("parts", footprint.parts),
        ("pages", footprint.pages),
        ("nodes", footprint.nodes),
    ]
    .into();
    let rows = table("9.2");
    let names: BTreeSet<&str> = rows.iter().map(|row| row[1].as_str()).collect();
    assert_eq!(names, times.keys().copied().collect(), "the terms of table 9.2");
    let mut sums = BTreeMap::from([("always", 0u64), ("looking", 0), ("writing", 0)]);
    for row in &rows {
        let bytes: u64 = row[0].parse().unwrap_or_else(|_| {
            assert_eq!(row[0], "2^window_log + 524288");
            (1 << 19) + 524_288
        });
        *sums.get_mut(row[2].as_str()).expect("one of the three") += bytes * times[row[1].as_str()];
    }
    header.limits.memory = 0;
    let sum = sums["always"] + sums["looking"].max(sums["writing"]);
    assert_eq!(sum, Memory::new(&header, &route, 0).with(footprint).bytes());
    // And where looking takes more.
    let footprint = Footprint { parts: footprint.parts + 1_000_000_000, ..footprint };
    let sum = sums["always"] + sums["looking"] + 24 * 1_000_000_000;
    assert_eq!(sum, Memory::new(&header, &route, 0).with(footprint).bytes());
}

/// `[X-1]` and the like in a text, with whether it stands in bold: there it is defined.
fn requirements(text: &str) -> Vec<(char, u32, bool)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices('[') {
        let rest = &text[at + 1..];
        let Some((inside, _)) = rest.split_once(']') else { continue };
        let Some((letter, number)) = inside.split_once('-') else { continue };
        let mut letters = letter.chars();
        if let (Some(letter @ 'A'..='Z'), None, Ok(number)) = (letters.next(), letters.next(), number.parse()) {
            found.push((letter, number, text[..at].ends_with("**")));
        }
    }
    found
}

#[test]
fn requirements_are_numbered_without_gaps_and_citations_lead_somewhere() {
    let all = requirements(&spec());
    let mut defined: BTreeMap<char, Vec<u32>> = BTreeMap::new();
    for (letter, number, _) in all.iter().filter(|(.., bold)| *bold) {
        defined.entry(*letter).or_default().push(*number);
    }
    for (letter, numbers) in &defined {
        let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
        assert_eq!(numbers, &expected, "the requirements [{letter}-…], in the order in which they stand");
    }
    let check = |(letter, number, _): &(char, u32, bool), place: &Path| {
        let known = defined.get(letter).is_some_and(|numbers| numbers.contains(number));
        assert!(known, "{} cites [{letter}-{number}], which spec/format.md does not have", place.display());
    };
    all.iter().for_each(|citation| check(citation, Path::new("spec/format.md")));
    for folder in ["src", "tests"] {
        for file in rust_files(&root().join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            let comments = text.lines().filter_map(|line| line.split_once("//")).map(|(_, comment)| comment);
            comments.flat_map(requirements).filter(|r| defined.contains_key(&r.0)).for_each(|r| check(&r, &file));
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// The images of chapter 11.1, made from its words.
fn example_images() -> (Vec<u8>, Vec<u8>) {
    let mut r = 1u32;
    let mut next = || {
        r = r.wrapping_mul(1_103_515_245).wrapping_add(12345);
        (r >> 16) as u8
    };
    let old: Vec<u8> = (0..5 * 4096 + 1000).map(|_| next()).collect();
    let mut new = old.clone();
    new[4096..8192].copy_from_slice(&old[8192..12288]);
    new[8192..12288].copy_from_slice(&old[4096..8192]);
    new[12288..20480].fill(0);
    new[20480..].copy_from_slice(&old[..1000]);
    for at in [100, 116, 132] {
        new[20480 + at] = new[20480 + at].wrapping_add(5);
    }
    let text = b"blkpatch writes only the blocks that change.";
    new[20480 + 400..][..text.len()].copy_from_slice(text);
    (old, new)
}

/// The bytes of the dump in chapter 11.3; each line must stand at its offset.
fn example_dump() -> Vec<u8> {
    let text = spec();
    let (_, rest) = text.split_once("<!-- example-dump:begin -->").unwrap();
    let (dump, _) = rest.split_once("<!-- example-dump:end -->").unwrap();
    let mut bytes = Vec::new();
    for line in dump.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_hexdigit())) {
        let (offset, rest) = line.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset, 16).unwrap(), bytes.len(), "{line}");
        let hex: String = rest.chars().take(47).collect();
        bytes.extend(hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

#[test]
fn the_example_is_a_delta_that_does_what_chapter_11_says() {
    let bytes = example_dump();
    let (old, new) = example_images();
    for (name, content) in [("old", &old), ("new", &new), ("delta", &bytes)] {
        let path = root().join("testdata").join(format!("good-example.{name}"));
        match fs::read(&path) {
            Ok(file) => assert_eq!(&file, content, "{} differs from chapter 11", path.display()),
            Err(_) => eprintln!("{} is missing: 'spec/example.py update' makes it", path.display()),
        }
    }
    let delta = Delta::open(Arc::new(bytes), u64::MAX).unwrap();
    let text = spec();
    let crc = |image: &[u8]| format!("CRC-32 is 0x{:08X}", crc32fast::hash(image));
    assert!(text.contains(&crc(&old)) && text.contains(&crc(&new)), "{} {}", crc(&old), crc(&new));
    let order = check_order(&delta).unwrap();
    let opened = Opened { delta, order };
    let counts = opened.delta.route.counts;
    assert_eq!((counts.batches, counts.barriers, counts.scratch_blocks, counts.final_blocks), (3, 2, 2, 5));

    let run = |content: Vec<u8>| {
        let device = MemoryDevice::new(content, true);
        let (options, stop) = (PatchOptions::default(), AtomicBool::new(false));
        let report = patch_device(&opened, Path::new("example"), &device, &options, &stop, &Silent).unwrap();
        assert_eq!(device.contents(), new);
        report
    };
    assert_eq!(run(old.clone()).before, State::Old);
    assert_eq!(run(new.clone()).before, State::New);

    // Chapter 11.4: after batch 1, block 1 is new, block 2 old, block 5 a mixture.
    let mut target = old.clone();
    target.copy_within(4096..12288, 12288);
    target[4096..8192].copy_from_slice(&new[4096..8192]);
    target[20992..].copy_from_slice(&new[20992..]);
    let report = run(target.clone());
    assert_eq!(report.before, State::Convertible { done: 1 });
    assert_eq!((report.walked.batches, report.walked.scratch), (2, 0));

    // In batch 3: the save's scratch is half gone, but nobody needs it any more.
    target[4096..12288].copy_from_slice(&new[4096..12288]);
    target[20480..].copy_from_slice(&new[20480..]);
    target[12288..16384].fill(0);
    let report = run(target);
    assert_eq!(report.before, State::Convertible { done: 2 });
    assert_eq!(report.walked.batches, 1);
}

#[test]
fn signatures_are_as_their_spec_says() {
    use blkpatch::signature::{
        BLOCK_LEAST, BLOCK_LEN, MAGIC, STRONG_LEN, STRONG_MOST, Shape, TRAILER, TRAILER_MAGIC, trailer_len,
    };
    let text = include_str!("../spec/signature.md");
    let fields =
        text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()?.trim().parse::<usize>().ok());
    assert_eq!(fields.sum::<usize>(), TRAILER, "the table of the trailer");
    let magic = String::from_utf8_lossy(TRAILER_MAGIC);
    for said in [
        format!("the number {MAGIC:#010x}"),
        format!("`{}` and a line feed", magic.trim_end()),
        format!("from {BLOCK_LEAST} and strong checksums of 1 to {STRONG_MOST} bytes"),
        format!("take blocks of {BLOCK_LEN} bytes and {STRONG_LEN} bytes of strong"),
    ] {
        assert!(text.contains(&said), "spec/signature.md does not say: {said}");
    }
    for strong_len in 1..=STRONG_MOST {
        let shape = Shape { block_len: 4096, strong_len };
        let len = trailer_len(shape);
        assert!(len >= TRAILER && len.is_multiple_of(shape.entry()) && len - TRAILER < shape.entry());
    }
}
