//! The old texts of the batches ahead, unpacked by threads of their own while those before them are used.
//!
//! Unpacking and packing take most of the time in which compressed data are made, about half each. The texts that exist at a
//! time have together no more bytes than one may have, so that this takes hardly more memory than one after another.

#[cfg(test)]
mod tests;

use crate::apply::WalkError;
use crate::delta::DeltaError;
use crate::delta::coding::Coding;
use crate::delta::step::{OLD_TEXT, Step};
use crate::delta::text::{ITEM_MOST, TextUnpacker, part_of};
use crate::maker::{Fetch, Texts};
use crate::planner::{Loaded, Plan, Used};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

/// Texts that may exist at a time if none has more bytes than this part of what one may have.
const SHARES: usize = 4;
const SHARE: usize = OLD_TEXT as usize / SHARES;

/// A text and its number, as it comes.
pub(crate) type Numbered = (u64, Result<Vec<u8>, DeltaError>);

/// Where those who unpack get what is next: batch after batch, whose sources are waited for, and which are handed on then.
pub(crate) struct Unpacking<'a> {
    plans: Receiver<Result<Plan<'a>, WalkError>>,
    loaded: Sender<Result<Arc<Loaded<'a>>, WalkError>>,
    /// Where batches that are done with leave what they have taken.
    used: Sender<Used>,
    room: Room,
    /// The number of the next text.
    number: u64,
    current: Option<Current<'a>>,
    /// For texts that need the codes of those before them.
    unpacker: TextUnpacker,
    /// All is done, or something failed: nobody goes on.
    over: bool,
}

/// A batch that has more texts.
struct Current<'a> {
    batch: Arc<Loaded<'a>>,
    /// The steps and the pieces of its sources that are not dealt with yet.
    steps: Range<usize>,
    piece: usize,
    stand_alone: bool,
}

/// A text that is to be unpacked into this memory.
struct Job<'a> {
    number: u64,
    batch: Arc<Loaded<'a>>,
    steps: Range<usize>,
    piece: usize,
    memory: Vec<u8>,
    stand_alone: bool,
}

impl<'a> Unpacking<'a> {
    /// Memory of texts comes back through `reuse`.
    pub fn new(
        plans: Receiver<Result<Plan<'a>, WalkError>>,
        loaded: Sender<Result<Arc<Loaded<'a>>, WalkError>>,
        used: Sender<Used>,
        reuse: Receiver<Vec<u8>>,
    ) -> Self {
        let room = Room { spare: Vec::new(), reuse, out: 0, whole: false };
        Self { plans, loaded, used, room, number: 0, current: None, unpacker: TextUnpacker::default(), over: false }
    }

    /// The next text, when there is room for it; `None` where there is none, or nobody wants it.
    fn next(&mut self) -> Option<Job<'a>> {
        let next = if self.over { None } else { self.next_job() };
        self.over = next.is_none();
        next
    }

    fn next_job(&mut self) -> Option<Job<'a>> {
        let mut current = match self.current.take() {
            Some(current) => current,
            None => self.next_batch()?,
        };
        let all = &current.batch.planned.steps;
        let steps = next_text(all, current.steps.clone()).unwrap_or_default();
        let len =
            all[steps.clone()].iter().filter(|step| step.kind.unpacks()).map(|step| step.unpacked().1 as usize).sum();
        let mut fetch = current.batch.fetch(current.piece);
        all[current.steps.start..steps.start].iter().for_each(|step| fetch.pass(step));
        let piece = fetch.at();
        all[steps.clone()].iter().for_each(|step| fetch.pass(step));
        (current.piece, current.steps.start) = (fetch.at(), steps.end);
        let memory = self.room.take(len)?;
        let (batch, number, stand_alone) = (Arc::clone(&current.batch), self.number, current.stand_alone);
        self.number += 1;
        let more = next_text(all, current.steps.clone()).is_some();
        self.current = more.then_some(current);
        Some(Job { number, batch, steps, piece, memory, stand_alone })
    }

    /// Hands on all batches up to the next one that has texts.
    fn next_batch(&mut self) -> Option<Current<'a>> {
        loop {
            let planned = self.plans.recv().ok()?;
            let loaded = planned.and_then(|plan| Loaded::wait(plan, self.used.clone()).map(Arc::new));
            let batch = loaded.as_ref().ok().map(Arc::clone);
            self.loaded.send(loaded).ok()?;
            let batch = batch?;
            let steps = &batch.planned.steps;
            let all = 0..steps.len();
            if batch.planned.redo && next_text(steps, all.clone()).is_some() {
                self.unpacker = TextUnpacker::default();
                let stand_alone = all_stand_alone(steps);
                return Some(Current { steps: all, piece: 0, stand_alone, batch });
            }
        }
    }
}

/// Of these steps, those from the first that unpacks up to that which first uses what it and others unpack.
fn next_text(steps: &[Step], within: Range<usize>) -> Option<Range<usize>> {
    let rest = steps.get(within.clone())?;
    let first = rest.iter().position(|step| step.kind.unpacks())?;
    let count = rest[first..].iter().take_while(|step| !step.kind.packs()).count();
    Some(within.start + first..within.start + first + count)
}

/// Whether no text needs the codes of one before it: writers have no use for that, but it is allowed (6.6 of the spec).
fn all_stand_alone(steps: &[Step]) -> bool {
    let mut at = 0;
    while let Some(text) = next_text(steps, at..steps.len()) {
        at = text.end;
        let mut deflated =
            steps[text].iter().filter(|step| step.kind.unpacks() && step.kind.coding() == Some(Coding::Deflate));
        if deflated.next().is_some_and(|first| first.unpacked().0.inside) {
            return false;
        }
    }
    true
}

impl Job<'_> {
    /// Unpacks it, and lets go of the batch.
    fn unpack(self, unpacker: &mut TextUnpacker) -> Result<Vec<u8>, DeltaError> {
        let (mut text, mut fetch) = (self.memory, self.batch.fetch(self.piece));
        text.clear();
        for step in &self.batch.planned.steps[self.steps] {
            if step.kind.unpacks() {
                unpacker.unpack(step, |source| fetch.fill(step, source), &mut text)?;
            } else {
                fetch.pass(step);
            }
        }
        Ok(text)
    }
}

/// Unpacks texts until there are no more, or nobody wants them.
pub(crate) fn unpack_texts(unpacking: &Mutex<Unpacking<'_>>, texts: &Sender<Numbered>) {
    let mut own = TextUnpacker::default();
    loop {
        // After a panic a batch may be missing: no other is handed on.
        let Ok(mut shared) = unpacking.lock() else { return };
        let Some(job) = shared.next() else { return };
        let mut answer = Answer { texts, number: job.number, text: Ok(Vec::new()) };
        if job.stand_alone {
            drop(shared);
            own.start_batch();
            answer.text = job.unpack(&mut own);
        } else {
            own = TextUnpacker::default(); // no more memory than for each thread's own
            answer.text = job.unpack(&mut shared.unpacker);
        }
    }
}

/// The answer to a job: is given also in a panic, as somebody waits for it.
struct Answer<'a> {
    texts: &'a Sender<Numbered>,
    number: u64,
    text: Result<Vec<u8>, DeltaError>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let text = std::mem::replace(&mut self.text, Ok(Vec::new()));
        let _ = self.texts.send((self.number, text)); // nobody may want it any more
    }
}

/// The memory for texts.
struct Room {
    spare: Vec<Vec<u8>>,
    reuse: Receiver<Vec<u8>>,
    /// Texts that are somewhere else.
    out: usize,
    /// Whether that is one that may take all.
    whole: bool,
}

impl Room {
    /// Memory for a text of `len` bytes, when there is; `None` where there will be none.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        self.whole |= len > SHARE;
        if self.whole {
            while self.out > 0 {
                self.take_back()?;
            }
            self.whole = len > SHARE;
        }
        if self.whole {
            self.spare.clear();
            self.out = 1;
            return Some(Vec::with_capacity(OLD_TEXT as usize + ITEM_MOST));
        }
        while self.spare.is_empty() && self.out == SHARES {
            self.take_back()?;
        }
        self.out += 1;
        Some(self.spare.pop().unwrap_or_else(|| Vec::with_capacity(SHARE + ITEM_MOST)))
    }

    fn take_back(&mut self) -> Option<()> {
        let memory = self.reuse.recv().ok()?;
        self.out = self.out.saturating_sub(1);
        if is_share(&memory) {
            self.spare.push(memory);
        }
        Some(())
    }
}

/// Whether this is memory for a text that may have only a share.
fn is_share(memory: &Vec<u8>) -> bool {
    (SHARE..=SHARE + ITEM_MOST).contains(&memory.capacity())
}

/// The old texts as they come.
pub(crate) struct Coming {
    texts: Receiver<Numbered>,
    reuse: Sender<Vec<u8>>,
    /// Those that came before their turn.
    early: BTreeMap<u64, Result<Vec<u8>, DeltaError>>,
    /// The number of the next one.
    due: u64,
    text: Vec<u8>,
    /// Whether the steps of this text are not over.
    open: bool,
}

impl Coming {
    /// Before the first.
    pub fn new(texts: Receiver<Numbered>, reuse: Sender<Vec<u8>>) -> Self {
        Self { texts, reuse, early: BTreeMap::new(), due: 0, text: Vec::new(), open: false }
    }

    /// A batch begins.
    pub fn start_batch(&mut self) {
        self.close();
        self.give_back();
    }

    fn give_back(&mut self) {
        let before = std::mem::take(&mut self.text);
        if before.capacity() > 0 {
            let _ = self.reuse.send(before); // who unpacks may have done all
        }
    }
}

impl Texts for Coming {
    /// Waits for the text that it is the first step of.
    fn unpack(&mut self, step: &Step, fetch: &mut impl Fetch) -> Result<(), DeltaError> {
        fetch.pass(step);
        if std::mem::replace(&mut self.open, true) {
            return Ok(());
        }
        self.give_back();
        let text = loop {
            if let Some(text) = self.early.remove(&self.due) {
                break text;
            }
            match self.texts.recv() {
                Ok((number, text)) => self.early.insert(number, text),
                // Who unpacks ends early only in a panic, which is found when it is waited for.
                Err(_) => break Ok(Vec::new()),
            };
        };
        self.due += 1;
        self.text = text?;
        Ok(())
    }

    fn get(&self, step: &Step) -> Result<&[u8], DeltaError> {
        part_of(&self.text, step)
    }

    fn close(&mut self) {
        self.open = false;
    }
}
