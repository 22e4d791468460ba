//! The schedule: which piece goes when, and what is saved to scratch.
//!
//! Where piece j would destroy what piece i reads, i goes first (Burns, Long, Stockmeyer, "In-Place Reconstruction of
//! Version Differences"). Pieces become ready when nobody reads their old content any more. Where none is ready, the
//! blocks in danger of the piece that needs fewest are copied to scratch. Scratch are blocks of leaves: ready pieces
//! that read nothing anybody overwrites; they wait until the end. Levels make one sync serve many batches: an action's
//! level is the number of barriers that stand before it.

use super::elsewhere::{Detour, Elsewhere, added, join};
use super::pieces::Pieces;
use super::{BATCH_BLOCKS, BATCH_STEPS, SOURCE_BLOCKS};
use crate::units::{Extent, blocks_touched, merge_extents};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;

const NONE: u32 = u32::MAX;
/// Rounds of ready pieces that a piece waits for readers that could take a detour. They may well get their turn, and a
/// detour costs a few bytes; but who waits for this piece waits as long.
const PATIENCE: u64 = 4;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a piece.
    Piece(u32),
    /// Copy dense blocks to scratch: (old block, scratch block), one to one.
    Save(Vec<(u32, u32)>),
}

/// All actions with their levels.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// (level, action), in an order that is safe.
    pub actions: Vec<(u32, Action)>,
    /// Number of levels.
    pub levels: u64,
    /// Blocks written to scratch.
    pub saved_blocks: u64,
    /// Blocks that could be scratch from the start: of leaves that nobody reads.
    pub free_at_start: u64,
    /// Bytes that are read where the new image has them: ascending.
    pub detours: Vec<Detour>,
    /// What these add to the steps and source blocks of pieces, at the most.
    pub added: HashMap<u32, (usize, u64)>,
}

/// There is not enough scratch.
#[derive(Clone, Copy, Debug)]
pub struct NeedScratch {
    /// Blocks that would do.
    pub blocks: u64,
    /// A block that could be made free by turning it into a literal.
    pub near: u64,
}

/// A save: it stands or falls as one.
struct Group {
    /// Pairs of a saved block and a piece that still has to read it.
    pending: u32,
    /// What was saved, and where: both ascending.
    blocks: Vec<u32>,
    slots: Vec<u32>,
    level: u32,
    /// Level from which its scratch may be overwritten.
    free_level: u32,
}

/// What waits for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halfway {
    /// A piece, to be written.
    Piece(u32),
    /// A save, to give back its scratch.
    Group(u32),
}

/// Pieces to save for, by who reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Nobody else.
    Alone,
    /// Others who can be led around it as soon as it is written.
    Nearly,
    /// Others.
    Selfish,
}

struct State<'a> {
    pieces: &'a Pieces,
    elsewhere: &'a Elsewhere<'a>,
    /// Pieces that read each dense block, as ranges of `reader_list`.
    reader_start: Vec<u32>,
    reader_list: Vec<u32>,
    /// Readers at home that have not run, the owner excepted.
    foreign: Vec<u32>,
    /// Whether the owner itself reads the block at home.
    own: Vec<bool>,
    /// The group that saved the block.
    group_of: Vec<u32>,
    /// The slot that the block was saved to.
    slot_of: Vec<u32>,
    /// The last group that a scratch block served.
    guest: Vec<u32>,
    /// Level from which the block may be overwritten by R2.
    free_level: Vec<u32>,
    /// By piece: blocks with foreign readers; blocks read by the piece itself; blocks read of others.
    foreign_blocks: Vec<u32>,
    own_blocks: Vec<u32>,
    outward: Vec<u32>,
    done: Vec<bool>,
    /// Whether it has left the queue: it is done, or a leaf that is held.
    taken: Vec<bool>,
    /// The level of pieces that are done.
    level_of: Vec<u32>,
    /// The level of pieces that take detours is at least this.
    not_before: HashMap<u32, u32>,
    /// (piece, dense block) where the piece takes a detour.
    around: HashSet<(u32, u32)>,
    /// What some readers need no longer, with the round in which that was, but others still do.
    halfway: VecDeque<(u64, Halfway)>,
    round: u64,
    queued: Vec<bool>,
    ready: VecDeque<u32>,
    /// Pieces that only wait for saves of what they read themselves.
    selfish: VecDeque<u32>,
    /// Those of them that nobody else reads, apart from blocks that they read themselves.
    alone: VecDeque<u32>,
    /// Waiting pieces of which some reader has read what it needs, but others have not: the last one last.
    nearly: Vec<u32>,
    /// Whether a piece is among the selfish.
    is_selfish: Vec<bool>,
    /// All other waiting pieces, by the number of blocks to save.
    stuck: BTreeSet<(u32, u32)>,
    leaves: Vec<u32>,
    pool: VecDeque<u32>,
    groups: Vec<Group>,
    schedule: Schedule,
}

/// Orders the pieces. What is in danger in the pieces `ahead` is saved before anything else, as far as there is
/// scratch, so that they need not wait for those who read it.
pub fn schedule(pieces: &Pieces, ahead: &[u32], elsewhere: &Elsewhere<'_>) -> Result<Schedule, NeedScratch> {
    let mut state = State::new(pieces, elsewhere);
    let leaves = state.ready.iter().filter(|piece| state.outward[**piece as usize] == 0);
    let free = leaves.flat_map(|piece| &pieces.list[*piece as usize].extents).map(|extent| extent.count).sum();
    state.schedule.free_at_start = free;
    state.save_ahead(ahead)?;
    loop {
        while !state.ready.is_empty() {
            state.run_round();
        }
        if state.free_halfway(0) {
        } else if !state.save_some()? {
            break;
        }
    }
    let leaves = std::mem::take(&mut state.leaves);
    leaves.into_iter().for_each(|leaf| state.run(leaf));
    let mut schedule = state.schedule;
    join(&mut schedule.detours);
    schedule.levels = schedule.actions.iter().map(|(level, _)| u64::from(*level) + 1).max().unwrap_or(0);
    Ok(schedule)
}

/// The part of the offered zero scratch that saves really use.
pub fn used_scratch(pieces: &Pieces, schedule: &Schedule, offered: &[Extent]) -> Vec<Extent> {
    let mut used = Vec::new();
    for (_, action) in &schedule.actions {
        let Action::Save(pairs) = action else { continue };
        for (_, slot) in pairs {
            let block = pieces.block(*slot);
            let i = offered.partition_point(|e| e.end() <= block);
            if offered.get(i).is_some_and(|e| e.start <= block) {
                used.push(Extent { start: block, count: 1 });
            }
        }
    }
    merge_extents(&mut used);
    used
}

impl<'a> State<'a> {
    fn new(pieces: &'a Pieces, elsewhere: &'a Elsewhere<'a>) -> Self {
        let (blocks, count) = (pieces.blocks(), pieces.list.len());
        let mut state = Self {
            pieces,
            elsewhere,
            reader_start: vec![0; blocks + 1],
            reader_list: Vec::new(),
            foreign: vec![0; blocks],
            own: vec![false; blocks],
            group_of: vec![NONE; blocks],
            slot_of: vec![NONE; blocks],
            guest: vec![NONE; blocks],
            free_level: vec![0; blocks],
            foreign_blocks: vec![0; count],
            own_blocks: vec![0; count],
            outward: vec![0; count],
            done: vec![false; count],
            taken: vec![false; count],
            level_of: vec![0; count],
            not_before: HashMap::new(),
            around: HashSet::new(),
            halfway: VecDeque::new(),
            round: 0,
            queued: vec![false; count],
            ready: VecDeque::new(),
            selfish: VecDeque::new(),
            alone: VecDeque::new(),
            nearly: Vec::new(),
            is_selfish: vec![false; count],
            stuck: BTreeSet::new(),
            leaves: Vec::new(),
            pool: VecDeque::new(),
            groups: Vec::new(),
            schedule: Schedule::default(),
        };
        state.list_readers();
        state.classify_all();
        state
    }

    /// Saves for pieces that would otherwise wait long, up to what the leaves that are ready now offer.
    fn save_ahead(&mut self, ahead: &[u32]) -> Result<(), NeedScratch> {
        if ahead.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.ready);
        for piece in waiting {
            if self.outward[piece as usize] == 0 {
                self.run_or_hold(piece);
            } else {
                self.ready.push_back(piece);
            }
        }
        let (mut chosen, mut blocks) = (Vec::new(), 0);
        for piece in ahead {
            let need = self.endangered(*piece).len();
            if blocks + need > self.pool.len() {
                break;
            }
            if blocks + need > BATCH_BLOCKS as usize {
                self.save(&std::mem::take(&mut chosen))?;
                blocks = 0;
            }
            chosen.push(*piece);
            blocks += need;
        }
        self.save(&chosen)
    }

    fn list_readers(&mut self) {
        let pieces = self.pieces;
        for read in pieces.list.iter().flat_map(|piece| &piece.reads) {
            self.reader_start[*read as usize + 1] += 1;
        }
        for i in 1..self.reader_start.len() {
            self.reader_start[i] += self.reader_start[i - 1];
        }
        self.reader_list = vec![0; self.reader_start.last().copied().unwrap_or(0) as usize];
        let mut at = self.reader_start.clone();
        for (reader, piece) in (0u32..).zip(&pieces.list) {
            for read in &piece.reads {
                let (read, place) = (*read as usize, &mut at[*read as usize]);
                self.reader_list[*place as usize] = reader;
                *place += 1;
                let owner = pieces.owner[read];
                if owner == reader {
                    self.own[read] = true;
                    self.own_blocks[owner as usize] += 1;
                } else {
                    self.foreign[read] += 1;
                    self.foreign_blocks[owner as usize] += u32::from(self.foreign[read] == 1);
                    self.outward[reader as usize] += 1;
                }
            }
        }
    }

    fn classify_all(&mut self) {
        for piece in 0..self.pieces.list.len() as u32 {
            self.classify(piece, None);
        }
    }

    /// The waiting piece with the fewest blocks to save. Pieces that read nothing in danger only wait for others.
    fn cheapest_in_a_cycle(&mut self) -> Option<u32> {
        while let Some((key, piece)) = self.stuck.first().copied() {
            if self.outward[piece as usize] > 0 || self.own_blocks[piece as usize] > 0 {
                return Some(piece);
            }
            self.stuck.remove(&(key, piece));
        }
        None
    }

    fn need(&self, piece: u32) -> u32 {
        // Blocks that are read both by the piece itself and by others are counted twice: good enough to compare.
        self.foreign_blocks[piece as usize] + self.own_blocks[piece as usize]
    }

    /// Puts a waiting piece into the list that fits what it waits for; `before` is its key in `stuck`.
    fn classify(&mut self, piece: u32, before: Option<u32>) {
        if let Some(key) = before {
            self.stuck.remove(&(key, piece));
        }
        let i = piece as usize;
        if self.done[i] || self.queued[i] {
            return;
        }
        if self.need(piece) == 0 {
            self.queued[i] = true;
            self.ready.push_back(piece);
        } else if self.own_blocks[i] > 0 && self.mostly_own(piece) {
            self.queued[i] = true;
            self.is_selfish[i] = true;
            self.selfish.push_back(piece);
            self.note_alone(piece);
        } else {
            self.stuck.insert((self.need(piece), piece));
        }
    }

    /// Whether (nearly) all that must be saved must be saved in any case, as the piece itself reads it.
    fn mostly_own(&self, piece: u32) -> bool {
        let i = piece as usize;
        if self.foreign_blocks[i] == 0 {
            return true;
        }
        // Worth counting only where the sums leave it open.
        if self.own_blocks[i] < 8 {
            return false;
        }
        let foreign_only = self.blocks_of(piece).filter(|d| self.foreign[*d as usize] > 0 && !self.own[*d as usize]);
        foreign_only.count() * 16 <= self.own_blocks[i] as usize
    }

    fn blocks_of(&self, piece: u32) -> impl Iterator<Item = u32> + use<'a> {
        let pieces = self.pieces;
        pieces.list[piece as usize].extents.iter().flat_map(|e| pieces.dense(*e))
    }

    /// Runs what is ready now.
    fn run_round(&mut self) {
        self.round += 1;
        for _ in 0..self.ready.len() {
            let Some(piece) = self.ready.pop_front() else { break };
            self.run_or_hold(piece);
        }
        self.free_halfway(PATIENCE);
    }

    fn run_or_hold(&mut self, piece: u32) {
        if std::mem::replace(&mut self.taken[piece as usize], true) {
            return; // it was put into the queue twice: what it waited for was saved ahead
        }
        let reads_scratch = self.reads_of(piece).any(|d| self.group_of[d as usize] != NONE);
        if self.outward[piece as usize] > 0 || reads_scratch {
            return self.run(piece);
        }
        self.leaves.push(piece);
        let end = self.pieces.whole_end;
        let free: Vec<u32> = self.blocks_of(piece).filter(|d| self.pieces.block(*d) < end).collect();
        self.pool.extend(free);
    }

    /// The written blocks that a piece reads in the old image.
    fn reads_of(&self, piece: u32) -> impl Iterator<Item = u32> {
        let direct = !self.not_before.contains_key(&piece);
        let reads = self.pieces.list[piece as usize].reads.iter().copied();
        reads.filter(move |read| direct || !self.around.contains(&(piece, *read)))
    }

    fn run(&mut self, piece: u32) {
        let reads: Vec<u32> = self.reads_of(piece).collect();
        let mut level = self.blocks_of(piece).map(|d| self.overwrite_level(d)).max().unwrap_or(0);
        level = level.max(self.not_before.get(&piece).copied().unwrap_or(0));
        for read in &reads {
            let group = self.group_of[*read as usize];
            if group != NONE {
                level = level.max(self.groups[group as usize].level);
            }
        }
        self.done[piece as usize] = true;
        self.level_of[piece as usize] = level;
        for read in reads {
            self.read_done(read, piece, level);
        }
        self.schedule.actions.push((level, Action::Piece(piece)));
    }

    /// The first level at which R2 and R3 let the block be overwritten.
    fn overwrite_level(&self, dense: u32) -> u32 {
        let guest = self.guest[dense as usize];
        let by_guest = if guest == NONE { 0 } else { self.groups[guest as usize].free_level };
        self.free_level[dense as usize].max(by_guest)
    }

    fn read_done(&mut self, read: u32, reader: u32, level: u32) {
        let d = read as usize;
        let group = self.group_of[d];
        if group != NONE {
            self.groups[group as usize].free_level = self.groups[group as usize].free_level.max(level + 1);
            self.leave_group(group);
            return self.note_halfway(Halfway::Group(group));
        }
        self.free_level[d] = self.free_level[d].max(level + 1);
        let owner = self.pieces.owner[d];
        if owner != reader {
            let key = self.need(owner);
            self.foreign[d] -= 1;
            if self.foreign[d] == 0 {
                self.foreign_blocks[owner as usize] -= 1;
                self.classify(owner, Some(key));
                self.note_alone(owner);
            }
            if self.foreign_blocks[owner as usize] > 0 && self.nearly.last() != Some(&owner) {
                self.nearly.push(owner);
            }
            self.note_halfway(Halfway::Piece(owner));
        }
    }

    /// One reader less needs what was saved.
    fn leave_group(&mut self, group: u32) {
        let group = &mut self.groups[group as usize];
        group.pending -= 1;
        if group.pending == 0 {
            self.pool.extend(&group.slots);
        }
    }

    fn waits(&self, what: Halfway) -> bool {
        match what {
            Halfway::Piece(piece) => self.foreign_blocks[piece as usize] > 0,
            Halfway::Group(group) => self.groups[group as usize].pending > 0,
        }
    }

    fn note_halfway(&mut self, what: Halfway) {
        if self.waits(what) && self.halfway.back() != Some(&(self.round, what)) {
            self.halfway.push_back((self.round, what));
        }
    }

    /// Leads the readers around what has been halfway free for so many rounds, where that sets it free. Whether there was
    /// such a thing.
    fn free_halfway(&mut self, patience: u64) -> bool {
        let mut freed = false;
        while let Some((round, what)) = self.halfway.front().copied()
            && round + patience <= self.round
        {
            self.halfway.pop_front();
            freed |= self.waits(what) && self.lead_around(what);
        }
        freed
    }

    /// Leads all that must be led around a piece so that it can be written, or only waits for what it reads itself; or
    /// around what was saved.
    fn lead_around(&mut self, what: Halfway) -> bool {
        let waiting: Vec<u32> = match what {
            Halfway::Piece(piece) => self.endangered(piece).into_iter().filter(|d| !self.own[*d as usize]).collect(),
            Halfway::Group(group) => self.groups[group as usize].blocks.clone(),
        };
        let mut found = Vec::new();
        for d in &waiting {
            for i in self.reader_start[*d as usize]..self.reader_start[*d as usize + 1] {
                let reader = self.reader_list[i as usize];
                if self.done[reader as usize] || self.around.contains(&(reader, *d)) {
                    continue;
                }
                let Some(detours) = self.detours(reader, *d, NONE) else { return false };
                found.push((reader, *d, detours));
            }
        }
        if found.is_empty() {
            return false;
        }
        let key = if let Halfway::Piece(piece) = what { self.need(piece) } else { 0 };
        for (reader, d, detours) in found {
            self.take(reader, &detours);
            self.schedule.detours.extend(detours);
            self.around.insert((reader, d));
            match what {
                Halfway::Piece(piece) => {
                    self.outward[reader as usize] -= 1;
                    self.foreign[d as usize] -= 1;
                    self.foreign_blocks[piece as usize] -= u32::from(self.foreign[d as usize] == 0);
                }
                Halfway::Group(group) => self.leave_group(group),
            }
        }
        if let Halfway::Piece(piece) = what {
            self.classify(piece, Some(key));
            self.note_alone(piece);
            self.nearly.push(piece);
        }
        true
    }

    /// Whether all who still read a piece can be led around it once it is written.
    fn around_when_written(&self, piece: u32) -> bool {
        self.endangered(piece).into_iter().all(|d| {
            let readers = self.reader_start[d as usize]..self.reader_start[d as usize + 1];
            readers.into_iter().map(|i| self.reader_list[i as usize]).all(|reader| {
                let reads = reader != piece && !self.done[reader as usize] && !self.around.contains(&(reader, d));
                !reads || self.detours(reader, d, piece).is_some()
            })
        })
    }

    /// The detours of a reader around a block, if there are, and its batch can bear them, when what has been written is
    /// written and another piece, too.
    fn detours(&self, reader: u32, dense: u32, too: u32) -> Option<Vec<Detour>> {
        let piece = &self.pieces.list[reader as usize];
        let written = |bytes: Range<u64>| self.written(&bytes, reader, too).is_some();
        let detours = self.elsewhere.around(piece, self.pieces.block(dense), written)?;
        let ((steps, blocks), had) = (added(&detours), self.schedule.added.get(&reader).copied().unwrap_or_default());
        let fits =
            piece.steps + had.0 + steps <= BATCH_STEPS && piece.source_blocks + had.1 + blocks <= SOURCE_BLOCKS;
        fits.then_some(detours)
    }

    /// The level behind which bytes of the new image can be read by another piece, if they have been written.
    fn written(&self, bytes: &Range<u64>, reader: u32, too: u32) -> Option<u32> {
        let blocks = blocks_touched(bytes);
        let (mut count, mut level) = (0, 0);
        for d in self.pieces.dense(blocks) {
            let owner = self.pieces.owner[d as usize];
            if owner == reader || !(self.done[owner as usize] || owner == too) {
                return None;
            }
            level = level.max(self.level_of[owner as usize] + 1);
            count += 1;
        }
        (count == blocks.count).then_some(level)
    }

    /// The reader takes these detours.
    fn take(&mut self, reader: u32, detours: &[Detour]) {
        let level = detours.iter().filter_map(|d| self.written(&(d.src..d.src + d.len), reader, NONE)).max().unwrap_or(0);
        let not_before = self.not_before.entry(reader).or_default();
        *not_before = level.max(*not_before);
        let (steps, blocks) = added(detours);
        let sum = self.schedule.added.entry(reader).or_default();
        *sum = (sum.0 + steps, sum.1 + blocks);
    }

    /// The blocks of a piece that somebody still reads.
    fn endangered(&self, piece: u32) -> Vec<u32> {
        let wanted =
            |d: &u32| self.group_of[*d as usize] == NONE && (self.foreign[*d as usize] > 0 || self.own[*d as usize]);
        self.blocks_of(piece).filter(wanted).collect()
    }

    /// Saves what keeps pieces from being written, as much as the free scratch allows, in a save of up to a batch. Whether
    /// there was anything to save.
    fn save_some(&mut self) -> Result<bool, NeedScratch> {
        let (mut chosen, mut blocks, mut first) = (Vec::new(), 0, None);
        // How often others that are not chosen read pieces that the chosen ones read.
        let mut readers: HashMap<u32, u32> = HashMap::new();
        while let Some((piece, class)) = self.next_to_save(&chosen) {
            let need = self.endangered(piece).len();
            let full = blocks + need > BATCH_BLOCKS as usize || blocks + need > self.pool.len();
            // A save is over when all of it has been read: nobody who waits long shall keep the scratch of the others.
            if !chosen.is_empty() && (full || first != Some(class)) {
                self.put_back(piece, class);
                break;
            }
            first = Some(class);
            self.is_selfish[piece as usize] = false;
            chosen.push(piece);
            blocks += need;
            self.note_neighbours(piece, &mut readers);
        }
        if chosen.is_empty() {
            chosen.extend(self.cheapest_in_a_cycle());
        }
        self.save(&chosen)?;
        Ok(!chosen.is_empty())
    }

    /// Selfish pieces that only chosen pieces read are alone, too, when `piece` has been chosen.
    fn note_neighbours(&mut self, piece: u32, readers: &mut HashMap<u32, u32>) {
        for read in self.reads_of(piece).collect::<Vec<u32>>() {
            let owner = self.pieces.owner[read as usize];
            if owner != piece && self.group_of[read as usize] == NONE && self.is_selfish[owner as usize] {
                let all = || self.blocks_of(owner).map(|d| self.foreign[d as usize]).sum();
                let left = readers.entry(owner).or_insert_with(all);
                *left -= 1;
                if *left == 0 {
                    self.alone.push_back(owner);
                }
            }
        }
    }

    /// The next piece to save for, behind those that have been chosen.
    ///
    /// Where what moves a little way overlaps itself, all pieces are selfish, and each but the last is read by the next.
    /// From the last one on, scratch is free again as soon as what was saved there is written.
    fn next_to_save(&mut self, chosen: &[u32]) -> Option<(u32, Class)> {
        let is_selfish = &self.is_selfish;
        let next = |list: &mut VecDeque<u32>| {
            while list.front().is_some_and(|piece| !is_selfish[*piece as usize]) {
                list.pop_front();
            }
            list.pop_front()
        };
        if let Some(piece) = next(&mut self.alone) {
            return Some((piece, Class::Alone));
        }
        let rest = next(&mut self.selfish);
        while let Some(piece) = self.nearly.pop() {
            let waits = !self.taken[piece as usize] && self.need(piece) > 0 && !chosen.contains(&piece);
            if waits && self.around_when_written(piece) {
                self.selfish.extend(rest);
                self.selfish.rotate_right(usize::from(rest.is_some()));
                return Some((piece, Class::Nearly));
            }
        }
        rest.map(|piece| (piece, Class::Selfish))
    }

    fn put_back(&mut self, piece: u32, class: Class) {
        match class {
            Class::Alone => self.alone.push_front(piece),
            Class::Nearly => self.nearly.push(piece),
            Class::Selfish => self.selfish.push_front(piece),
        }
    }

    fn note_alone(&mut self, piece: u32) {
        if self.is_selfish[piece as usize] && self.foreign_blocks[piece as usize] == 0 {
            self.alone.push_back(piece);
        }
    }

    /// Saves everything that somebody still reads of these pieces, as one group.
    fn save(&mut self, chosen: &[u32]) -> Result<(), NeedScratch> {
        let blocks: Vec<u32> = chosen.iter().flat_map(|piece| self.endangered(*piece)).collect();
        if blocks.is_empty() {
            return Ok(());
        }
        if blocks.len() > self.pool.len() {
            let near = blocks.first().map_or(0, |d| self.pieces.block(*d));
            return Err(NeedScratch { blocks: blocks.len() as u64, near });
        }
        let mut slots: Vec<u32> = self.pool.drain(..blocks.len()).collect();
        slots.sort_unstable();
        let level = slots.iter().map(|slot| self.overwrite_level(*slot)).max().unwrap_or(0);
        let number = self.groups.len() as u32;
        let mut pairs = Vec::with_capacity(blocks.len());
        let mut sorted = blocks;
        sorted.sort_unstable();
        let (blocks, places) = (sorted.clone(), slots.clone());
        self.groups.push(Group { pending: 0, blocks, slots: places, level, free_level: level + 1 });
        for (block, slot) in sorted.into_iter().zip(slots) {
            self.save_block(block, slot, number, level);
            pairs.push((block, slot));
        }
        self.schedule.saved_blocks += pairs.len() as u64;
        self.schedule.actions.push((level, Action::Save(pairs)));
        for piece in chosen {
            self.queued[*piece as usize] = false;
            let key = self.need(*piece);
            self.classify(*piece, Some(key));
        }
        Ok(())
    }

    fn save_block(&mut self, block: u32, slot: u32, number: u32, level: u32) {
        let d = block as usize;
        let owner = self.pieces.owner[d];
        let key = self.need(owner);
        self.group_of[d] = number;
        self.slot_of[d] = slot;
        self.guest[slot as usize] = number;
        self.free_level[d] = self.free_level[d].max(level + 1);
        self.free_level[slot as usize] = self.free_level[slot as usize].max(level + 1);
        let readers = self.reader_start[d] as usize..self.reader_start[d + 1] as usize;
        for i in readers {
            let reader = self.reader_list[i] as usize;
            if self.around.contains(&(reader as u32, block)) {
                continue;
            }
            if !self.done[reader] {
                self.groups[number as usize].pending += 1;
                if reader as u32 != owner {
                    self.outward[reader] -= 1;
                }
            } else if self.level_of[reader] >= level {
                // It ran at home in this simulation, but stands behind the save in the order, and so reads the copy.
                let group = &mut self.groups[number as usize];
                group.free_level = group.free_level.max(self.level_of[reader] + 1);
            }
        }
        if self.foreign[d] > 0 {
            self.foreign[d] = 0;
            self.foreign_blocks[owner as usize] -= 1;
        }
        if self.own[d] {
            self.own[d] = false;
            self.own_blocks[owner as usize] -= 1;
        }
        self.stuck.remove(&(key, owner));
        if !self.queued[owner as usize] && !self.done[owner as usize] && self.need(owner) > 0 {
            self.stuck.insert((self.need(owner), owner));
        }
    }
}
