//! Where the bytes of the old and the new image lie while the order advances, and whether the order keeps the rules
//! R1 to R4 (spec, chapter 7). Writer, checker and patcher all follow the order with this one piece.

use super::DeltaError;
use super::batch::{Batch, BatchKind, BatchTable};
use super::step::{Space, Step};
use crate::blockset::BlockSet;
use crate::units::{BLOCK, Extent, block_of, blocks_touched, merge_extents, merge_ranges};
use std::collections::BTreeMap;
use std::ops::Range;

/// Old blocks that lie in scratch.
#[derive(Clone, Copy, Debug)]
struct Moved {
    count: u64,
    scratch: u64,
    save: u32,
}

/// A save whose scratch nobody has overwritten yet.
#[derive(Clone, Debug)]
struct Live {
    /// The old bytes that it holds; the rest of its blocks is zero.
    ranges: Vec<Range<u64>>,
    old: Vec<u64>,
    scratch: Vec<u64>,
    last_read: Option<u64>,
}

/// What a batch reads, physically.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The blocks it reads, R_k: ascending, merged.
    pub blocks: Vec<Extent>,
    /// The bytes of them that no earlier batch writes, which the source CRC covers: ascending, merged.
    pub home: Vec<Range<u64>>,
    /// The saves it reads, by batch number: ascending.
    pub saves: Vec<u32>,
}

/// A piece of a source: `len` bytes at byte `physical` of the target.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Byte offset on the target.
    pub physical: u64,
    /// Bytes.
    pub len: u64,
    /// The save whose scratch it lies in.
    save: Option<u32>,
    /// Whether some batch has produced it.
    produced: bool,
}

/// Follows an order batch by batch.
#[derive(Clone, Debug)]
pub struct Placement<'a> {
    touched: &'a BlockSet,
    written: BlockSet,
    finals: BlockSet,
    /// Blocks read or written since the last barrier.
    inflight: BlockSet,
    epoch: u64,
    /// Old blocks in scratch, by first old block.
    moved: BTreeMap<u64, Moved>,
    /// Scratch extents of live saves, by first block: count and save.
    scratch: BTreeMap<u64, (u64, u32)>,
    live: BTreeMap<u32, Live>,
    waived: Waived,
}

/// Rules that are not enforced, by name. Only the crash test has any: it shows that orders which break them lose data.
#[doc(hidden)]
pub type Waived = &'static [&'static str];

impl<'a> Placement<'a> {
    /// All blocks that any batch of the order writes.
    #[must_use]
    pub fn touched(&self) -> &'a BlockSet {
        self.touched
    }

    /// Before the first batch; `touched` are all blocks that any batch of the order writes.
    #[must_use]
    pub fn new(touched: &'a BlockSet) -> Self {
        Self {
            touched,
            written: BlockSet::new(),
            finals: BlockSet::new(),
            inflight: BlockSet::new(),
            epoch: 0,
            moved: BTreeMap::new(),
            scratch: BTreeMap::new(),
            live: BTreeMap::new(),
            waived: &[],
        }
    }

    /// The same, with some rules not enforced: for the crash test only.
    #[doc(hidden)]
    #[must_use]
    pub fn waiving(self, waived: Waived) -> Self {
        Self { waived, ..self }
    }

    /// Cuts a logical range into pieces by where they lie, and calls `piece` with each in order.
    ///
    /// # Errors
    /// The first block whose bytes are no longer, or not yet, there.
    pub fn locate(&self, space: Space, range: Range<u64>, mut piece: impl FnMut(Piece)) -> Result<(), u64> {
        let mut at = range.start;
        while at < range.end {
            let next = match space {
                Space::Old => self.locate_old(at, range.end)?,
                Space::New => self.locate_new(at, range.end)?,
            };
            at += next.len;
            piece(next);
        }
        Ok(())
    }

    fn locate_old(&self, at: u64, end: u64) -> Result<Piece, u64> {
        let block = block_of(at);
        if let Some((start, moved)) = self.moved.range(..=block).next_back()
            && block < start + moved.count
        {
            let len = end.min((start + moved.count) * BLOCK) - at;
            let ranges = self.live.get(&moved.save).map_or(&[][..], |live| &live.ranges);
            let i = ranges.partition_point(|range| range.end <= at);
            if ranges.get(i).is_none_or(|range| range.start > at || range.end < at + len) {
                return Err(block); // these bytes of the block were not saved
            }
            let physical = (moved.scratch + (block - start)) * BLOCK + at % BLOCK;
            return Ok(Piece { physical, len, save: Some(moved.save), produced: true });
        }
        let end = self.moved.range(block + 1..).next().map_or(end, |(start, _)| end.min(start * BLOCK));
        match self.written.first_in(blocks_touched(&(at..end))) {
            Some(lost) => Err(lost),
            None => Ok(Piece { physical: at, len: end - at, save: None, produced: false }),
        }
    }

    fn locate_new(&self, at: u64, end: u64) -> Result<Piece, u64> {
        let Some((run, touched)) = self.touched.runs_in(blocks_touched(&(at..end))).next() else {
            return Err(block_of(at));
        };
        let end = end.min(run.end() * BLOCK);
        if touched {
            let mut runs = self.finals.runs_in(run);
            if let Some((missing, _)) = runs.find(|(_, present)| !present) {
                return Err(missing.start);
            }
        }
        Ok(Piece { physical: at, len: end - at, save: None, produced: touched })
    }

    /// What a data batch reads.
    ///
    /// # Errors
    /// The first block whose bytes are no longer, or not yet, there.
    pub fn sources(&self, steps: &[Step]) -> Result<Sources, u64> {
        self.sources_in_pieces(steps, |_| ())
    }

    /// The same, and calls `each` with the pieces of every step that reads, in order.
    ///
    /// # Errors
    /// As [`Placement::sources`].
    pub fn sources_in_pieces(&self, steps: &[Step], mut each: impl FnMut(&Piece)) -> Result<Sources, u64> {
        let mut sources = Sources::default();
        for step in steps {
            let Some(space) = step.kind.space() else { continue };
            self.locate(space, step.src..step.src + step.len, |piece| {
                each(&piece);
                sources.add(piece);
            })?;
        }
        Ok(sources.merged())
    }

    /// What a save reads. Its sources must be at home.
    ///
    /// # Errors
    /// The first block that is not.
    pub fn save_sources(&self, ranges: &[Range<u64>]) -> Result<Sources, u64> {
        let mut sources = Sources::default();
        let mut away = None;
        for range in ranges {
            self.locate(Space::Old, range.clone(), |piece| {
                if piece.produced {
                    away = away.or(Some(block_of(piece.physical)));
                }
                sources.add(piece);
            })?;
        }
        match away {
            Some(block) => Err(block),
            None => Ok(sources.merged()),
        }
    }

    /// Checks the rules for batch number `index`, which reads `sources`, and moves on behind it. Returns the saves
    /// whose scratch it is the first to overwrite.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn advance(
        &mut self,
        index: u64,
        table: &BatchTable,
        batch: &Batch,
        sources: &Sources,
    ) -> Result<Vec<u32>, DeltaError> {
        let waived = self.waived;
        let keep = |rule, broken_at: Option<u64>| match broken_at {
            Some(block) if !waived.contains(&rule) => Err(DeltaError::Rule { rule, batch: index, block }),
            _ => Ok(()),
        };
        if batch.barrier {
            self.inflight.clear();
            self.epoch += 1;
        }
        let extents = table.extents(batch);
        let mut writes = BlockSet::new();
        extents.iter().for_each(|extent| writes.insert(*extent));
        keep("R1", sources.blocks.iter().find_map(|extent| writes.first_in(*extent)))?;
        for extent in extents {
            keep("R2", self.inflight.first_in(*extent))?;
            keep("R4", self.finals.first_in(*extent))?;
        }
        let (overwritten, needed) = self.overwrite(extents);
        keep("R3", needed)?;
        // A save stands or falls as one: who overwrites part of it must not read another part of it.
        let read_too = overwritten.iter().any(|save| sources.saves.contains(save));
        keep("R3", extents.first().filter(|_| read_too).map(|extent| extent.start))?;
        for save in &sources.saves {
            if let Some(live) = self.live.get_mut(save) {
                live.last_read = Some(self.epoch);
            }
        }
        for extent in extents {
            self.written.insert(*extent);
            self.inflight.insert(*extent);
            if batch.kind != BatchKind::Save {
                self.finals.insert(*extent);
            }
        }
        // Only blocks that are ever written matter to R2; a claim to read far away must not cost memory.
        for (run, _) in sources.blocks.iter().flat_map(|e| self.touched.runs_in(*e)).filter(|(_, touched)| *touched) {
            self.inflight.insert(run);
        }
        if batch.kind == BatchKind::Save {
            let index = u32::try_from(index).map_err(|_| DeltaError::Malformed("more than 2^32 batches"))?;
            self.add_save(index, table, batch)?;
        }
        Ok(overwritten)
    }

    /// R3: a save's scratch may be overwritten only when all who read it are durable. Then the save is over, whole.
    /// Returns the saves that end here, and a block of one that somebody may still need.
    fn overwrite(&mut self, extents: &[Extent]) -> (Vec<u32>, Option<u64>) {
        let (mut hit, mut needed) = (Vec::new(), None);
        if self.scratch.is_empty() {
            return (hit, needed);
        }
        for extent in extents {
            let before = self.scratch.range(..extent.start).next_back();
            let within = self.scratch.range(extent.start..extent.end());
            for (start, (count, save)) in before.into_iter().chain(within) {
                let scratch = Extent { start: *start, count: *count };
                if scratch.intersect(extent).count == 0 {
                    continue;
                }
                if self.live.get(save).and_then(|live| live.last_read).is_some_and(|epoch| epoch >= self.epoch) {
                    needed = needed.or(Some(scratch.start.max(extent.start)));
                }
                hit.push(*save);
            }
        }
        hit.sort_unstable();
        hit.dedup();
        for save in &hit {
            if let Some(live) = self.live.remove(save) {
                live.old.iter().for_each(|start| {
                    self.moved.remove(start);
                });
                live.scratch.iter().for_each(|start| {
                    self.scratch.remove(start);
                });
            }
        }
        (hit, needed)
    }

    /// Pairs the old blocks of a save with its scratch blocks, both ascending.
    fn add_save(&mut self, index: u32, table: &BatchTable, batch: &Batch) -> Result<(), DeltaError> {
        let old = saved_blocks(table.saved(batch));
        let scratch = table.extents(batch);
        let ranges = table.saved(batch).to_vec();
        let mut live = Live { ranges, old: Vec::new(), scratch: Vec::new(), last_read: None };
        pair_extents(&old, scratch, |old, scratch, count| {
            self.moved.insert(old, Moved { count, scratch, save: index });
            self.scratch.insert(scratch, (count, index));
            live.old.push(old);
            live.scratch.push(scratch);
        })
        .ok_or(DeltaError::Malformed("a save with more or fewer scratch blocks than blocks to save"))?;
        self.live.insert(index, live);
        Ok(())
    }

    /// Checks what can only be said behind the last batch: R4, every block that was written has its final content.
    ///
    /// # Errors
    /// R4, with the number of batches as the batch.
    pub fn finish(&self, batches: u64) -> Result<(), DeltaError> {
        if self.waived.contains(&"R4") {
            return Ok(());
        }
        for extent in self.written.extents() {
            if let Some((run, _)) = self.finals.runs_in(extent).find(|(_, is_final)| !is_final) {
                return Err(DeltaError::Rule { rule: "R4", batch: batches, block: run.start });
            }
        }
        Ok(())
    }

    /// The first of these blocks that has no final write yet.
    #[must_use]
    pub fn first_unwritten(&self, extent: Extent) -> Option<u64> {
        self.finals.runs_in(extent).find(|(_, is_final)| !is_final).map(|(run, _)| run.start)
    }
}

/// The old blocks that hold the saved ranges: ascending, merged.
#[must_use]
pub fn saved_blocks(ranges: &[Range<u64>]) -> Vec<Extent> {
    let mut blocks = ranges.iter().map(blocks_touched).collect();
    merge_extents(&mut blocks);
    blocks
}

/// Walks two lists of extents of the same number of blocks side by side: (first of a, first of b, count).
/// `None` where the numbers differ.
pub fn pair_extents(a: &[Extent], b: &[Extent], mut pair: impl FnMut(u64, u64, u64)) -> Option<()> {
    let (mut a, mut b) = (a.iter().copied(), b.iter().copied());
    let (mut left, mut right) = (a.next(), b.next());
    while let (Some(l), Some(r)) = (left, right) {
        let count = l.count.min(r.count);
        pair(l.start, r.start, count);
        let rest = |e: Extent| Extent { start: e.start + count, count: e.count - count };
        left = if l.count > count { Some(rest(l)) } else { a.next() };
        right = if r.count > count { Some(rest(r)) } else { b.next() };
    }
    (left.is_none() && right.is_none()).then_some(())
}

impl Sources {
    fn add(&mut self, piece: Piece) {
        let bytes = piece.physical..piece.physical + piece.len;
        let blocks = blocks_touched(&bytes);
        // Neighbours merge at once, which keeps the lists short for the usual runs.
        match self.blocks.last_mut() {
            Some(last) if blocks.start >= last.start && blocks.start <= last.end() => {
                last.count = last.count.max(blocks.end() - last.start);
            }
            _ => self.blocks.push(blocks),
        }
        if !piece.produced {
            match self.home.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => self.home.push(bytes),
            }
        }
        if let Some(save) = piece.save
            && self.saves.last() != Some(&save)
        {
            self.saves.push(save);
        }
    }

    fn merged(mut self) -> Self {
        merge_extents(&mut self.blocks);
        merge_ranges(&mut self.home);
        self.saves.sort_unstable();
        self.saves.dedup();
        self
    }

    /// Bytes read, in whole blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        crate::units::count_blocks(&self.blocks).saturating_mul(BLOCK)
    }
}
