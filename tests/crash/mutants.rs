//! Each rule broken on purpose, one at a time: data must be lost. First the real checks must refuse the order, by the
//! rule that it breaks; its sound twin must lose nothing under the same treatment.

use super::mutate::{loosen, merge, planned, write_early};
use super::orders::Order;
use super::recoveries::{barriers_skipped, judged_in_advance, saves_by_content_only, sound};
use super::rng::Rng;
use super::session::{Loss, Run, Session, Subject, patch};
use super::sketch::Make::{self, From, LikeOld, Literal};
use super::sketch::Sketch;
use blkpatch::delta::placement::Waived;
use blkpatch::target::Verify;

/// A sound order, and one that breaks a rule (the same, where it is the recovery that is broken).
struct Twins {
    sound: Order,
    broken: Order,
}

/// A way to break something.
struct Mutant {
    name: &'static str,
    /// The rule that the order breaks, and no other.
    waived: Waived,
    run: Run,
    make: fn(&mut Rng) -> Twins,
    /// Crash states within which data must be lost.
    bound: u64,
}

/// Crash states for each order that is made.
const PER_ORDER: u64 = 20;
/// Crash states for each mutant, at least: for the rate.
const LEAST: u64 = 600;

impl Mutant {
    /// Crashes until data is lost, and a few times more; panics if it is not, or if the sound twin loses any.
    fn must_lose(&self) {
        let mut session = Session::new(0xBAD);
        let (mut states, mut losses, mut first) = (0u64, 0u64, None);
        while states < LEAST || (losses == 0 && states < self.bound) {
            let twins = (self.make)(&mut session.random);
            assert_eq!(twins.broken.broken_rule(self.waived), self.waived.first().copied(), "{}", self.name);
            let opened = twins.broken.open(self.waived).expect("an order that breaks no other rule");
            let subject = twins.broken.subject(self.name, &opened, self.run);
            for loss in crashes(&mut session, &subject, PER_ORDER).into_iter().filter_map(Result::err) {
                first.get_or_insert(loss);
                losses += 1;
            }
            states += PER_ORDER;
            let opened = twins.sound.open(&[]).expect("a sound order");
            let run = if self.waived.is_empty() { sound } else { patch };
            let subject = twins.sound.subject("sound twin", &opened, run);
            crashes(&mut session, &subject, PER_ORDER / 4).into_iter().for_each(|result| result.expect(self.name));
        }
        println!("{}: {losses} losses in {states} crash states; the first: {first:?}", self.name);
        assert!(losses > 0, "{}: nothing was lost in {states} crash states", self.name);
    }
}

/// Crashes runs at random moments. Without a crash the order must do its work, sound or not.
fn crashes(session: &mut Session, subject: &Subject<'_>, count: u64) -> Vec<Result<(), Loss>> {
    let disk = subject.fresh();
    subject.finish(&disk, Verify::Full).expect("without a crash");
    let operations = disk.operations();
    let mut crash = |_| {
        let disk = subject.start(&mut session.random);
        let at = session.random.below(operations + 1);
        session.crash(subject, &disk, at)
    };
    (0..count).map(&mut crash).collect()
}

/// A planned order, and what it becomes when it is changed until it breaks just this rule.
fn changed(random: &mut Rng, waived: Waived, change: fn(&mut Order, &mut Rng)) -> Twins {
    for _ in 0..1000 {
        let sound = planned(random);
        for _ in 0..10 {
            let mut broken = sound.clone();
            change(&mut broken, random);
            if broken.broken_rule(waived) == waived.first().copied() && broken.open(waived).is_ok() {
                return Twins { sound, broken };
            }
        }
    }
    panic!("no planned order could be changed so that it breaks {waived:?}");
}

fn same(sound: Order) -> Twins {
    Twins { broken: sound.clone(), sound }
}

/// A planned order with at least one save.
fn with_saves(random: &mut Rng) -> Twins {
    loop {
        let order = planned(random);
        if order.batches.iter().any(|batch| batch.save) {
            return same(order);
        }
    }
}

/// Half-written, a batch that reads what it writes cannot be done again.
fn reads_what_it_writes(random: &mut Rng) -> Twins {
    let sound = Sketch::new(random, 2, &[]).save(&[0], &[1]).barrier().data(&[(0, From(0))]).barrier();
    let sound = sound.data(&[(1, Literal)]).order();
    let broken = Sketch::new(random, 2, &[]).data(&[(0, From(0))]).data(&[(1, Literal)]).order();
    Twins { sound, broken }
}

/// Block 0 is overwritten while the copy that block 1 gets of it is still in flight.
fn overtakes_its_reader(random: &mut Rng) -> Twins {
    let sketch = Sketch::new(random, 2, &[]).data(&[(1, From(0))]);
    let sound = sketch.clone().barrier().data(&[(0, Literal)]).order();
    Twins { sound, broken: sketch.data(&[(0, Literal)]).order() }
}

/// The other block of a save is overwritten while its reader is still in flight.
fn overtakes_another_reader(random: &mut Rng) -> Twins {
    let sketch = Sketch::new(random, 4, &[]).save(&[0, 1], &[2, 3]).barrier().data(&[(1, From(1))]);
    let sketch = sketch.barrier().data(&[(0, From(0))]);
    let sound = sketch.clone().barrier().data(&[(2, Literal), (3, Literal)]).order();
    let broken = sketch.data(&[(3, Literal)]).barrier().data(&[(2, Literal)]).order();
    Twins { sound, broken }
}

/// A batch overwrites one block of a save while it reads another.
fn overwrites_the_save_it_reads(random: &mut Rng) -> Twins {
    let mut twin = |reader: u64, rest: &[(u64, Make)]| {
        let sketch = Sketch::new(random, 5, &[]).save(&[0, 1], &[2, 3]).barrier().data(&[(1, From(1))]);
        sketch.barrier().data(&[(reader, From(0))]).barrier().data(rest).order()
    };
    let sound = twin(4, &[(0, Literal), (2, Literal), (3, Literal)]);
    Twins { sound, broken: twin(3, &[(0, Literal), (2, Literal), (4, Literal)]) }
}

/// A save of several blocks whose readers, and what overwrites its scratch, come in random order with barriers at
/// random. (The planner's orders for small pairs offer no place where R3 alone could be broken.)
fn random_readers(random: &mut Rng) -> Twins {
    loop {
        let count = 2 + random.below(4) as u64;
        let (saved, scratch): (Vec<u64>, Vec<u64>) = ((0..count).collect(), (count..2 * count).collect());
        let start = Sketch::new(random, 2 * count as usize, &[]).save(&saved, &scratch);
        let mut blocks: Vec<u64> = random.permutation(count as usize).into_iter().map(|block| block as u64).collect();
        let sound = blocks.iter().fold(start.clone(), |sketch, block| sketch.barrier().data(&[(*block, From(*block))]));
        let ends: Vec<(u64, Make)> = scratch.iter().map(|block| (*block, Literal)).collect();
        let sound = sound.barrier().data(&ends).order();
        for block in scratch {
            let reader = blocks.iter().position(|reader| reader + count == block).expect("each block has its reader");
            blocks.insert(reader + 1 + random.below(blocks.len() - reader), block);
        }
        let broken = blocks.iter().enumerate().fold(start, |sketch, (i, block)| {
            let sketch = if i == 0 || random.below(2) == 0 { sketch.barrier() } else { sketch };
            sketch.data(&[(*block, if *block < count { From(*block) } else { Literal })])
        });
        let broken = broken.order();
        if broken.broken_rule(R3) == Some("R3") && broken.open(R3).is_ok() {
            return Twins { sound, broken };
        }
    }
}

/// Block 1 gets its final content, serves as scratch, and gets it again.
fn scratch_after_final(random: &mut Rng) -> Twins {
    let mut twin = |early: &[(u64, Make)]| {
        let sketch = Sketch::new(random, 4, &[]).data(early).barrier().data(&[(0, Literal)]).save(&[2], &[1]);
        sketch.barrier().data(&[(2, From(2))]).barrier().data(&[(1, Literal)]).order()
    };
    Twins { sound: twin(&[(3, From(0))]), broken: twin(&[(1, From(0)), (3, From(0))]) }
}

/// Behind the barrier after the readers of a save its scratch may be overwritten, and what it saved is gone.
fn save_that_ends(random: &mut Rng) -> Twins {
    let sketch = Sketch::new(random, 2, &[]).save(&[0], &[1]).barrier().data(&[(0, From(0))]).barrier();
    same(sketch.data(&[(1, Literal)]).order())
}

/// Block 3 is zero in both images and serves as scratch: it is intact before it is used.
fn blank_scratch(random: &mut Rng) -> Twins {
    let sketch = Sketch::new(random, 4, &[3]).data(&[(0, Literal)]).save(&[2], &[3]).barrier();
    same(sketch.data(&[(2, From(2))]).barrier().zero(3).order())
}

/// What is saved to block 1 is also what it shall hold in the end: its final batch is done as soon as the save is. The
/// barrier before it is that of the batch behind, too.
fn shared_barrier(random: &mut Rng) -> Twins {
    let sketch = Sketch::new(random, 4, &[]).save(&[0], &[1]).barrier().data(&[(0, From(0))]).data(&[(3, From(2))]);
    same(sketch.barrier().data(&[(1, LikeOld(0))]).data(&[(2, Literal)]).order())
}

const R1: Waived = &["R1"];
const R2: Waived = &["R2"];
const R3: Waived = &["R3"];
const R4: Waived = &["R4"];

fn must_lose(name: &'static str, waived: Waived, run: Run, make: fn(&mut Rng) -> Twins) {
    Mutant { name, waived, run, make, bound: 40_000 }.must_lose();
}

#[test]
fn an_order_that_breaks_r1_loses_data() {
    must_lose("R1, smallest", R1, patch, reads_what_it_writes);
    must_lose("R1, planned orders with batches merged", R1, patch, |random| changed(random, R1, merge));
}

#[test]
fn an_order_that_breaks_r2_loses_data() {
    must_lose("R2, smallest", R2, patch, overtakes_its_reader);
    must_lose("R2, planned orders with barriers dropped", R2, patch, |random| changed(random, R2, loosen));
}

#[test]
fn an_order_that_breaks_r3_loses_data() {
    must_lose("R3, smallest", R3, patch, overtakes_another_reader);
    must_lose("R3 for the reader itself, smallest", R3, patch, overwrites_the_save_it_reads);
    must_lose("R3, random readers of a save", R3, patch, random_readers);
}

#[test]
fn an_order_that_breaks_r4_loses_data() {
    must_lose("R4, smallest", R4, patch, scratch_after_final);
    must_lose("R4, planned orders with batches mixed", R4, patch, |random| changed(random, R4, write_early));
}

#[test]
fn a_recovery_that_forgets_the_readers_of_saves_loses_data() {
    must_lose("saves by content, smallest", &[], saves_by_content_only, save_that_ends);
    must_lose("saves by content, planned orders", &[], saves_by_content_only, with_saves);
}

#[test]
fn a_recovery_that_judges_in_advance_loses_data() {
    must_lose("judged in advance, smallest", &[], judged_in_advance, blank_scratch);
    must_lose("judged in advance, planned orders", &[], judged_in_advance, with_saves);
}

#[test]
fn a_recovery_that_skips_barriers_loses_data() {
    must_lose("barriers skipped, smallest", &[], barriers_skipped, shared_barrier);
    must_lose("barriers skipped, planned orders", &[], barriers_skipped, with_saves);
}

/// R4's other half, scratch that never gets its final content, loses it without any crash.
#[test]
fn scratch_without_a_final_write_is_refused_and_loses_data() {
    let random = &mut Rng::new(4);
    let order = Sketch::new(random, 2, &[]).save(&[0], &[1]).barrier().data(&[(0, From(0))]).order();
    assert_eq!(order.broken_rule(R4), Some("R4"));
    let opened = order.open(R4).expect("an order that breaks no other rule");
    let subject = order.subject("scratch left behind", &opened, patch);
    subject.finish(&subject.fresh(), Verify::Full).expect_err("the scratch block is not what it shall be");
}
