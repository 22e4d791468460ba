use super::*;
use crate::deflate::{Item, Unpacker};
use crate::delta::batch::{BatchKind, BatchTable};
use crate::delta::memory::UNPACKERS;
use crate::delta::step::{Start, StepKind};
use crate::delta::text::OldTexts;
use crate::device::MemoryDevice;
use crate::planner::Planned;
use crate::reading_room::Loading;
use crate::sources::SourceBuffer;
use crate::units::{BLOCK, Extent};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Deflated data, and an unpack step for each of its texts: each of one to three items.
fn stream() -> (Vec<u8>, Vec<Step>) {
    let content: Vec<u8> = (0..30_000u32).flat_map(|i| (i * i / 7 % 1000).to_string().into_bytes()).collect();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(&content).unwrap();
    let bytes = encoder.finish().unwrap();
    let (mut unpacker, mut text, mut at, mut steps) = (Unpacker::new(), Vec::new(), 0, Vec::new());
    let mut from = (0, 0, false);
    while let Ok((item, next)) = unpacker.next(&bytes, at, &mut text) {
        at = next;
        let ends = matches!(item, Item::End { .. });
        if ends || steps.len() % 3 == 0 || text.len() > from.1 + 200 {
            let (bit, start, inside): (u64, usize, bool) = from;
            let (first, end) = (bit / 8, at.div_ceil(8));
            let start_at = Start { bit: (bit % 8) as u8, inside };
            steps.push(Step::unpack(first, end - first, start_at, (text.len() - start) as u64));
            from = (at, text.len(), !ends);
        }
    }
    (bytes, steps)
}

/// The texts of batches, unpacked ahead.
fn ahead(bytes: &[u8], batches: Vec<Vec<Step>>) -> Vec<Result<Vec<u8>, DeltaError>> {
    let mut image = bytes.to_vec();
    image.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    let (len, device) = (image.len() as u64, MemoryDevice::new(image, false));
    let mut table = BatchTable::default();
    table.push(BatchKind::Data, false, &[], &[], (0, 0));
    let ((to_load, plans), (to_make, loaded), (to_plan, used)) = (channel(), channel(), channel());
    let ((to_use, texts), (to_unpack, reuse)) = (channel(), channel());
    let count = batches.len();
    for steps in batches {
        let mut sources = SourceBuffer::default();
        sources.load(&device, &[Extent { start: 0, count: len / BLOCK }], len).unwrap();
        let pieces = steps.iter().filter(|step| step.kind.space().is_some()).map(|step| (step.src, step.len)).collect();
        let planned = Planned { index: 0, batch: &table.batches()[0], redo: true, steps: steps.into(), pieces };
        to_load.send(Ok((planned, Some(Loading::done(sources.into_pages()))))).unwrap();
    }
    drop(to_load);
    let unpacking = Arc::new(Mutex::new(Unpacking::new(plans, to_make, to_plan, reuse)));
    let mut coming = Coming::new(texts, to_unpack);
    let found = std::thread::scope(|scope| {
        for _ in 0..UNPACKERS {
            let (unpacking, to_use) = (Arc::clone(&unpacking), to_use.clone());
            scope.spawn(move || unpack_texts(&unpacking, &to_use));
        }
        drop((unpacking, to_use));
        let mut found = Vec::new();
        while let Ok(batch) = loaded.recv() {
            let batch = batch.unwrap();
            coming.start_batch();
            let mut fetch = batch.fetch(0);
            for step in &batch.planned.steps {
                if step.kind.unpacks() {
                    let text = coming.unpack(step, &mut fetch).map(|()| coming.text.clone());
                    let failed = text.is_err();
                    found.push(text);
                    if failed {
                        drop((coming, loaded));
                        return found;
                    }
                } else {
                    coming.close();
                }
            }
        }
        found
    });
    // What they took comes back, and who waits for it does not for ever.
    let back = used.iter().count();
    assert!(back == count || found.iter().any(Result::is_err) && back < count);
    found
}

/// The same, one after another.
fn one_by_one(bytes: &[u8], batches: &[Vec<Step>]) -> Vec<Vec<u8>> {
    let mut texts = OldTexts::default();
    let mut found = Vec::new();
    for steps in batches {
        texts.start_batch();
        for step in steps {
            if step.kind.unpacks() {
                let source = &bytes[step.src as usize..(step.src + step.len) as usize];
                texts
                    .unpack(step, |target| {
                        target.copy_from_slice(source);
                        Ok(())
                    })
                    .unwrap();
                let whole = Step::text(StepKind::TextCopy, 0, step.unpacked().1, 0);
                found.push(texts.get(&whole).unwrap().to_vec());
            } else {
                texts.close();
            }
        }
    }
    found
}

/// Each step's text is used before the next one's.
fn apart(steps: &[Step]) -> Vec<Step> {
    steps.iter().flat_map(|step| [*step, Step::deflate(0, 1, 0)]).collect()
}

#[test]
fn texts_come_in_order_whether_or_not_they_need_the_codes_of_those_before() {
    let (bytes, steps) = stream();
    assert!(steps.len() > 30 && steps.iter().any(|step| step.unpacked().0.inside));
    let dependent = apart(&steps);
    assert!(!all_stand_alone(&dependent));
    let first = apart(&steps[..1]);
    assert!(all_stand_alone(&first));
    let batches: Vec<Vec<Step>> = [vec![dependent.clone()], vec![first; 30], vec![dependent]].concat();
    let found: Vec<Vec<u8>> = ahead(&bytes, batches.clone()).into_iter().map(Result::unwrap).collect();
    assert_eq!(found, one_by_one(&bytes, &batches));
}

#[test]
fn long_and_short_texts_come_in_order() {
    let (bytes, steps) = stream();
    // All begin at the first header.
    let of = |count: usize| {
        let len = steps[..count].iter().map(|step| step.unpacked().1).sum();
        Step::unpack(0, bytes.len() as u64, steps[0].unpacked().0, len)
    };
    let all: Vec<Step> = (0..60).map(|i| if i % 2 == 0 { of(steps.len()) } else { of(1) }).collect();
    assert!(all_stand_alone(&apart(&all)));
    let batches = vec![apart(&all), apart(&all[1..])];
    let found: Vec<Vec<u8>> = ahead(&bytes, batches.clone()).into_iter().map(Result::unwrap).collect();
    assert_eq!(found, one_by_one(&bytes, &batches));
}

#[test]
fn one_that_cannot_be_unpacked_ends_it_at_its_place() {
    let (bytes, steps) = stream();
    let good = apart(&steps[..1]);
    let mut wrong = steps[0];
    wrong.dst += 5000 << 4; // more than there is
    let batches = [vec![good.clone(); 5], vec![apart(&[wrong])], vec![good; 20]].concat();
    let found = ahead(&bytes, batches);
    assert_eq!(found.len(), 6);
    assert!(found[..5].iter().all(Result::is_ok) && found[5].is_err());
}

#[test]
fn texts_that_exist_at_a_time_are_not_too_many_bytes() {
    let (to_unpack, reuse) = channel();
    let mut room = Room { spare: Vec::new(), reuse, out: 0, whole: false };
    let (small, large) = (SHARE - 5, SHARE + ITEM_MOST + 5);
    let mut taken = std::collections::VecDeque::new();
    for len in [small, small, large, small, small, small, small, small, large, large, small] {
        loop {
            let held: usize = taken.iter().chain(&room.spare).map(Vec::capacity).sum();
            assert!(held <= OLD_TEXT as usize + SHARES * ITEM_MOST, "{held}");
            // It waits for room, or takes it at once.
            let waits = if len > SHARE || taken.iter().any(|text: &Vec<u8>| text.capacity() > 2 * SHARE) {
                !taken.is_empty()
            } else {
                taken.len() == SHARES
            };
            if !waits {
                break;
            }
            to_unpack.send(taken.pop_front().unwrap()).unwrap();
            room.take_back().unwrap();
        }
        let text = room.take(len).unwrap();
        assert!(text.capacity() >= len);
        taken.push_back(text);
    }
    drop(to_unpack);
    room.out = SHARES;
    room.spare.clear();
    assert!(room.take(small).is_none(), "nobody gives any back");
}

#[test]
fn an_answer_is_given_in_a_panic_too() {
    let (to_use, texts) = channel();
    let panics = || {
        let _answer = Answer { texts: &to_use, number: 7, text: Ok(Vec::new()) };
        panic!("as it happens");
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert!(matches!(texts.recv_timeout(Duration::from_secs(60)), Ok((7, Ok(_)))));
}

#[test]
fn where_a_batch_cannot_be_loaded_both_threads_end() {
    let ((to_load, plans), (to_make, loaded), (to_plan, used)) = (channel(), channel(), channel());
    let ((to_use, _texts), (_to_unpack, reuse)) = (channel(), channel());
    to_load.send(Err(WalkError::Stop)).unwrap();
    let unpacking = Arc::new(Mutex::new(Unpacking::new(plans, to_make, to_plan, reuse)));
    for _ in 0..UNPACKERS {
        let (unpacking, to_use) = (Arc::clone(&unpacking), to_use.clone());
        std::thread::spawn(move || unpack_texts(&unpacking, &to_use));
    }
    drop(unpacking);
    assert!(matches!(loaded.recv_timeout(Duration::from_secs(60)), Ok(Err(WalkError::Stop))));
    // Who plans still waits for memory, and learns that none will come.
    assert!(matches!(used.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected)));
    drop(to_load);
}
