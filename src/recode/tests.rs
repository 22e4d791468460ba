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
    fn new() -> Self {
        let before = vec![0x55; 1234];
        let old = [packed(4000, 9), packed(40_000, 0)].concat();
        let new = [before, packed(40_000, 1), packed(500, 1)].concat();
        let data = [&old, &new].map(|bytes| std::iter::once(0..bytes.len() as u64).collect());
        Self { old, new, data }
    }

    /// With everything a literal before.
    fn recoded(&self) -> (Recoding<'_>, Vec<Run>) {
        let runs = [Run { dst: 0, len: self.new.len() as u64, source: Source::Literal }];
        let old = View { bytes: &self.old, data: &self.data[0] };
        let new = View { bytes: &self.new, data: &self.data[1] };
        let options = matcher::Options { memory: 1 << 26, threads: 2, level: 6 };
        recode(old, new, &runs, &options, Path::new("/tmp")).unwrap().unwrap()
    }
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
        made.extend(pack(&text, skip, step.len as usize).unwrap());
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
    let deflate: u64 = runs.iter().filter(|run| run.source == Source::Deflate).map(|run| run.len).sum();
    assert!(deflate > images.new.len() as u64 - 1234 - 100, "{deflate} of {}", images.new.len());
    let mut at = 0;
    for run in runs {
        assert_eq!(run.dst, at);
        at += run.len;
    }
    assert_eq!(at, images.new.len() as u64);
}

#[test]
fn where_there_are_no_literals_nothing_is_looked_for() {
    let images = Images::new();
    let view = View { bytes: &images.new, data: &images.data[1] };
    let runs = [Run { dst: 0, len: view.len(), source: Source::Copy { src: 0 } }];
    assert!(recode(view, view, &runs, &matcher::Options::default(), Path::new("/none")).unwrap().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    /// Any stretch comes out right, and reads nothing but what its blocks read by themselves: the planner relies on it.
    #[test]
    fn any_stretch_can_be_made_by_itself(from in 0u64..100_000, len in 1u64..100_000) {
        let images = Images::new();
        let (recoding, runs) = images.recoded();
        for run in runs.iter().filter(|run| run.source == Source::Deflate) {
            let (start, end) = (run.dst.max(from), (run.dst + run.len).min(from + len));
            if start >= end {
                continue;
            }
            let mut steps = Vec::new();
            recoding.steps(start..end, &mut steps);
            prop_assert!(make(&images, &recoding, &steps) == images.new[start as usize..end as usize]);
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
    }
}
