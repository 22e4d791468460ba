use super::*;
use crate::deflate::pack;
use crate::delta::step::{NEW_TEXT, OLD_TEXT, Step, StepKind};
use crate::delta::text::OldTexts;
use crate::delta::writer::NewTexts;
use crate::plan::Recode;
use crate::units::BLOCK;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::LazyLock;
use stream::Stream;

/// A gzip file of lines, of which some differ between editions.
fn packed(count: u32, edition: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    for i in 0..count {
        let (a, b) = (i.wrapping_mul(2_654_435_761) >> 20, i.wrapping_mul(40_503) >> 7);
        let changed = if i % 61 == 7 { edition } else { 0 };
        writeln!(encoder, "entry {a} of the table: {b}, state {changed}").unwrap();
    }
    encoder.finish().unwrap()
}

struct Images {
    old: Vec<u8>,
    new: Vec<u8>,
    /// The ranges of each that are data.
    data: [Vec<Range<u64>>; 2],
}

impl Images {
    fn of(old: Vec<u8>, new: Vec<u8>) -> Self {
        let data = [&old, &new].map(|bytes| std::iter::once(0..bytes.len() as u64).collect());
        Self { old, new, data }
    }

    fn new() -> Self {
        let before = vec![0x55; 1234];
        let old = [packed(4000, 9), packed(40_000, 0)].concat();
        let new = [before, packed(40_000, 1), packed(500, 1)].concat();
        Self::of(old, new)
    }

    /// Many files, each in two pieces that do not lie side by side.
    fn in_pieces() -> Self {
        let [(old, _), (new, _)] = [0, 1].map(pieces);
        Self::of(old, new)
    }

    /// A large file, whole in the old image and in two pieces, the second of which comes first, in the new one.
    fn turned_round() -> Self {
        let [old, mut new] = [0, 1].map(|edition| packed(100_000, edition));
        new.rotate_left(300 << 10);
        Self::of(old, new)
    }

    /// With everything a literal before.
    fn recoded(&self) -> (Recoding<'_>, Vec<Run>) {
        let runs = [Run { dst: 0, len: self.new.len() as u64, source: Source::Literal }];
        let old = View { bytes: &self.old, data: &self.data[0] };
        let new = View { bytes: &self.new, data: &self.data[1] };
        let options = matcher::Options { memory: 1 << 26, threads: 2, ..matcher::Options::default() };
        recode_deflate(old, new, &runs, &options, Path::new("/tmp")).unwrap().unwrap()
    }
}

/// Files in pieces of whole blocks: first all beginnings, then all ends. Also where the files begin.
fn pieces(edition: u32) -> (Vec<u8>, Vec<u64>) {
    let block = BLOCK as usize;
    let (mut heads, mut tails, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..16 {
        let mut file = packed(2000 + i * 300, edition);
        file.resize(file.len().next_multiple_of(block), 0);
        let (head, tail) = file.split_at(file.len() / (2 + i as usize % 3) / block * block);
        starts.push(heads.len() as u64);
        heads.extend_from_slice(head);
        tails.extend_from_slice(tail);
    }
    heads.extend(tails);
    (heads, starts)
}

fn texts(image: &[u8]) -> Texts {
    let limits = Limits { stream: 1 << 26, all: u64::MAX, threads: 2 };
    let all = [0..image.len() as u64];
    let search = Search { starts: &all, midst: &all, always: false };
    Texts::find(image, search, limits, Path::new("/tmp")).unwrap()
}

/// What is unpacked behind the place where a stream is broken off does not hide what begins there.
#[test]
fn streams_that_are_broken_off_hide_no_others() {
    let (image, files) = pieces(0);
    let found = texts(&image);
    // A header of gzip without a name has ten bytes.
    let missed: Vec<&u64> =
        files.iter().filter(|file| !found.sections.iter().any(|section| section.bytes.start == *file + 10)).collect();
    assert!(missed.is_empty(), "{missed:?} of {files:?}");
    assert!(found.sections.is_sorted_by(|one, other| one.bits.end <= other.bits.start));
    assert!(found.read < image.len() as u64 * 3, "{} of {}", found.read, image.len());
}

/// Of a large file in pieces that lie apart and in another order, nearly everything is found; and nothing is looked for
/// where no stream is broken off.
#[test]
fn the_pieces_of_a_file_are_found_wherever_they_lie() {
    let mut file = packed(150_000, 0);
    file.resize(file.len().next_multiple_of(BLOCK as usize), 0);
    let third = file.len() / 3 / BLOCK as usize * BLOCK as usize;
    let other = vec![b'x'; 1 << 16];
    let [one, two, three] = [&file[..third], &file[third..2 * third], &file[2 * third..]];
    let image = [three, &other, one, &other, two, &other].concat();
    let found = texts(&image);
    let covered: u64 = found.sections.iter().map(|section| section.bytes.end - section.bytes.start).sum();
    // The rest of a block that is broken off is lost, and what is behind it may be nonsense.
    assert!(covered > (file.len() - (64 << 10)) as u64, "{covered} of {}", file.len());
    assert!(found.pieces && found.sections.is_sorted_by(|one, other| one.bits.end <= other.bits.start));
    let alone = [two, &other].concat();
    assert!(texts(&alone).sections.is_empty());
    assert!(!texts(&file).pieces);
}

/// Eight bytes that, again and again, are headers of zlib behind which fixed codes can be read without end: where many
/// streams overlap, not all of them are unpacked.
#[test]
fn overlapping_streams_are_not_unpacked_again_and_again() {
    let region = [0x78, 0x9c, 0x6a, 0x4d, 0x52, 0x97, 0xf4, 0x0a].repeat(1 << 15);
    let between: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let image = [region, between].concat().repeat(64);
    let (found, len) = (texts(&image), image.len() as u64);
    assert!(found.sections.len() >= 64, "{} streams", found.sections.len());
    assert!(found.read < len * 3, "{} bytes of {len} were unpacked", found.read);
}

/// Headers of zlib, each with a block that is not compressed and that ends where the next one's begins: all that begin
/// at any of them lead to the end.
#[test]
fn chains_of_blocks_that_are_not_compressed_are_not_followed_again_and_again() {
    let len = 2050u16;
    let [low, high] = (len - 5).to_le_bytes();
    let mut link = vec![0x78, 0x01, 0, low, high, !low, !high];
    link.resize(len.into(), 0);
    let image = link.repeat(8000);
    let (found, len) = (texts(&image), image.len() as u64);
    assert!(found.sections.is_empty() && found.read > 0);
    assert!(found.read < len * 3, "{} for {len} bytes", found.read);
}

/// Where what is not compressed ends as if a header stood there, the stream goes on, and no other begins.
#[test]
fn a_stream_that_seems_to_begin_again_is_one() {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::new(6));
    (0..3000).for_each(|i| writeln!(encoder, "line {}", i * 7919 % 5000).unwrap());
    encoder.flush().unwrap();
    let first = encoder.get_ref().clone();
    let (mut stored, mut second) = (vec![0x55; 5000], first.clone());
    stored.extend([0x78, 0x9c]);
    second.truncate(first.len() - 4); // what a flush leaves
    let len = (stored.len() as u16).to_le_bytes();
    let between = [&[0u8][..], &len, &len.map(|byte| !byte), &stored].concat();
    for before in [&first[..], &[]] {
        let image = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], before, &between, &second].concat();
        let found = texts(&image);
        assert_eq!(found.sections.len(), 1 + usize::from(!before.is_empty()));
        let text: u64 = found.sections.iter().map(|section| section.text.end - section.text.start).sum();
        assert_eq!(found.bytes.bytes().len() as u64, text, "nothing in the texts that is nowhere in the image");
    }
}

/// Blocks with fixed codes and nothing in them take ten bits.
#[test]
fn streams_of_very_many_blocks_are_left_alone() {
    let image = [&[0x78, 0x9c][..], &[0x02, 0x08, 0x20, 0x80, 0x00].repeat(100_000)].concat();
    assert!(Stream::attempt(&image, 2).likely);
    let blocks = texts(&image).blocks.len();
    assert!(blocks < image.len() / 100, "{blocks} blocks in {} bytes", image.len());
}

/// The bytes that steps make, of which the literals are those of the new texts.
fn make(images: &Images, recoding: &Recoding<'_>, steps: &[Step]) -> Vec<u8> {
    let (mut made, mut rest, mut old) = (Vec::new(), steps, OldTexts::default());
    old.start_batch();
    while let [step, others @ ..] = rest {
        rest = others;
        if step.kind == StepKind::Unpack {
            let source = &images.old[step.src as usize..][..step.len as usize];
            let fetch = |buffer: &mut [u8]| {
                buffer.copy_from_slice(source);
                Ok(())
            };
            old.unpack(step, fetch).unwrap();
            continue;
        }
        assert_eq!(step.kind, StepKind::Deflate);
        let (text, skip) = recoding.text(step.dst..step.dst + step.len).unwrap();
        assert!(u64::from(skip) == step.src && text.len() as u64 <= NEW_TEXT);
        let mut filled = 0;
        while let [part, others @ ..] = rest
            && part.kind.is_text()
        {
            rest = others;
            assert_eq!(part.dst, filled);
            filled += part.len;
            if part.kind != StepKind::TextLiteral {
                let (found, wanted) = (old.get(part).unwrap(), &text[part.dst as usize..filled as usize]);
                assert!(part.kind == StepKind::TextAdd || found == wanted);
            }
        }
        assert_eq!(filled, text.len() as u64);
        let start = made.len();
        made.resize(start + step.len as usize, 0);
        pack(&text, skip, &mut made[start..]).unwrap();
        old.close();
    }
    made
}

fn sources(steps: &[Step]) -> BTreeSet<u64> {
    let unpack = steps.iter().filter(|step| step.kind == StepKind::Unpack);
    unpack.flat_map(|step| step.src / BLOCK..=(step.src + step.len - 1) / BLOCK).collect()
}

#[test]
fn deflated_data_are_found_and_chosen() {
    let images = Images::new();
    let (_, runs) = images.recoded();
    let deflate: u64 = runs.iter().filter(|run| run.source == Source::Recoded).map(|run| run.len).sum();
    assert!(deflate > images.new.len() as u64 - 1234 - 100, "{deflate} of {}", images.new.len());
    let mut at = 0;
    for run in runs {
        assert_eq!(run.dst, at);
        at += run.len;
    }
    assert_eq!(at, images.new.len() as u64);
}

/// Behind a break data are made from old ones, too; also where the beginning is nowhere in the new image, or the old one.
#[test]
fn pieces_behind_a_break_are_chosen() {
    let both = Images::turned_round();
    let end = both.new.len() - (300 << 10);
    let end_alone = Images::of(both.old.clone(), both.new[..end].to_vec());
    let end_of_both = Images::of(both.old[200 << 10..].to_vec(), both.new[..end].to_vec());
    for images in [both, end_alone, end_of_both] {
        let (_, runs) = images.recoded();
        let deflate: u64 = runs.iter().filter(|run| run.source == Source::Recoded).map(|run| run.len).sum();
        assert!(deflate > images.new.len() as u64 - (64 << 10), "{deflate} of {}", images.new.len());
    }
}

#[test]
fn where_there_are_no_literals_nothing_is_looked_for() {
    let images = Images::new();
    let view = View { bytes: &images.new, data: &images.data[1] };
    let runs = [Run { dst: 0, len: view.len(), source: Source::Copy { src: 0 } }];
    assert!(recode(view, view, &runs, &matcher::Options::default(), Path::new("/none")).unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_stretch_can_be_made_by_itself(from in 0u64..100_000, len in 1u64..100_000) {
        static IMAGES: LazyLock<Images> = LazyLock::new(Images::new);
        check_stretch(&IMAGES, from, len)?;
    }

    #[test]
    fn any_stretch_of_files_in_pieces_can_be_made(from in 0u64..200_000, len in 1u64..100_000) {
        static IMAGES: LazyLock<Images> = LazyLock::new(Images::in_pieces);
        check_stretch(&IMAGES, from, len)?;
    }

    #[test]
    fn any_stretch_of_a_file_in_another_order_can_be_made(from in 0u64..900_000, len in 1u64..100_000) {
        static IMAGES: LazyLock<Images> = LazyLock::new(Images::turned_round);
        check_stretch(&IMAGES, from, len)?;
    }
}

/// Any stretch comes out right, and reads nothing but what its blocks read by themselves: the planner relies on it.
fn check_stretch(images: &Images, from: u64, len: u64) -> Result<(), TestCaseError> {
    let (recoding, runs) = images.recoded();
    for run in runs.iter().filter(|run| run.source == Source::Recoded) {
        let (start, end) = (run.dst.max(from), (run.dst + run.len).min(from + len));
        if start >= end {
            continue;
        }
        let mut steps = Vec::new();
        recoding.steps(start..end, &mut steps);
        prop_assert!(make(images, &recoding, &steps) == images.new[start as usize..end as usize]);
        let mut parts = BTreeSet::new();
        let mut at = start;
        while at < end {
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            let mut steps = Vec::new();
            recoding.steps(at..next, &mut steps);
            let text: u64 = steps.iter().filter(|s| s.kind == StepKind::Unpack).map(|s| s.unpacked().1).sum();
            prop_assert!(text <= OLD_TEXT);
            parts.extend(sources(&steps));
            at = next;
        }
        prop_assert!(sources(&steps).is_subset(&parts));
    }
    Ok(())
}

/// Runs lie where something changes: in front of a range, in its midst and behind it there may be none.
#[test]
fn ranges_are_replaced_only_where_there_are_runs() {
    let run = |dst, len, source| Run { dst, len, source };
    let literal = |dst, len| run(dst, len, Source::Literal);
    let recoded = |dst, len| run(dst, len, Source::Recoded);
    let runs = [literal(0, 4), literal(10, 5), run(15, 5, Source::Copy { src: 7 }), literal(30, 10), literal(50, 10)];
    let cases: [(&[Range<u64>], &[Run]); 6] = [
        (std::slice::from_ref(&(8..20)), &[literal(0, 4), recoded(10, 10), literal(30, 10), literal(50, 10)]),
        (
            std::slice::from_ref(&(12..35)),
            &[literal(0, 4), literal(10, 2), recoded(12, 8), recoded(30, 5), literal(35, 5), literal(50, 10)],
        ),
        (
            std::slice::from_ref(&(2..17)),
            &[
                literal(0, 2),
                recoded(2, 2),
                recoded(10, 7),
                run(17, 3, Source::Copy { src: 9 }),
                literal(30, 10),
                literal(50, 10),
            ],
        ),
        (std::slice::from_ref(&(20..50)), &[literal(0, 4), literal(10, 5), runs[2], recoded(30, 10), literal(50, 10)]),
        (&[30..35, 35..60], &[literal(0, 4), literal(10, 5), runs[2], recoded(30, 5), recoded(35, 5), recoded(50, 10)]),
        (&[4..10, 20..30], &runs),
    ];
    for (ranges, expected) in cases {
        assert_eq!(replaced(&runs, ranges, Source::Recoded), expected, "{ranges:?}");
    }
}

/// Magics that lead to the same chunk do not have it unpacked again.
#[test]
fn a_chunk_is_unpacked_once() {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
    encoder.write_all(&vec![7; 100_000]).unwrap();
    let stream = encoder.finish().unwrap();
    // The magics of ten others, whose headers end where the right one does.
    let mut image = Vec::new();
    for i in (1..=10u8).rev() {
        let place = image.len();
        image.extend(b"\xfd7zXZ\0......");
        image.push(4 * i + stream[12]);
        image.resize(place + 16, 0);
    }
    image.extend(&stream);
    let limits = Limits { stream: 1 << 17, all: u64::MAX, threads: 2 };
    let wanted = |_: &Range<u64>| true;
    let grouping = frames::Grouping { coding: Whole::Lzma, most: 1 << 17, wanted: &wanted, new: true };
    let all = 0..image.len() as u64;
    let units = frames::Units::find(&image, std::slice::from_ref(&all), grouping, limits, Path::new("/tmp")).unwrap();
    assert_eq!(units.list.len(), 1);
    let chunks = frames::blocks(&image, Whole::Lzma, &(0..11).map(|i| 16 * i).collect::<Vec<usize>>());
    assert_eq!((chunks.len(), chunks[0].len()), (1, 1));
}

/// Units of one coding that share bytes with those of another are not chosen.
#[test]
fn units_of_two_codings_do_not_overlap() {
    let image = |edition: u8| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(&crate::compressible::CONTENT[..60_000]).unwrap();
        encoder.write_all(&[edition; 3]).unwrap();
        encoder.write_all(&crate::compressible::CONTENT[60_000..100_000]).unwrap();
        encoder.finish().unwrap()
    };
    let images = Images::of(image(0), image(1));
    let runs = [Run { dst: 0, len: images.new.len() as u64, source: Source::Literal }];
    let old = View { bytes: &images.old, data: &images.data[0] };
    let new = View { bytes: &images.new, data: &images.data[1] };
    let options = matcher::Options { memory: 1 << 26, threads: 2, ..matcher::Options::default() };
    let recode = |others: &[WholeRecoding]| {
        recode_whole(Whole::Lzma, old, new, (&runs, others), &options, Path::new("/tmp")).unwrap()
    };
    let (recoding, _) = recode(&[]).expect("it is chosen where nothing else is");
    assert!(recode(&[recoding]).is_none());
}
