//! The schedule: which piece goes when, and what is saved to scratch.
//!
//! Where piece j would destroy what piece i reads, i goes first (Burns, Long, Stockmeyer, "In-Place Reconstruction of
//! Version Differences"). Pieces become ready when nobody reads their old content any more. Where none is ready, the
//! readers of some may be led around them ([`detours`]); else blocks in danger are copied to scratch ([`saves`]). Scratch
//! are blocks of leaves: ready pieces that read nothing anybody overwrites; they wait until the end. Levels make one sync
//! serve many batches: an action's level is the number of barriers that stand before it.

mod detours;
mod saves;

use super::elsewhere::{Detour, Elsewhere, join};
use super::pieces::Pieces;
use crate::units::{Extent, merge_extents};
use detours::{Halfway, PATIENCE};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

const NONE: u32 = u32::MAX;

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
    /// Those of them that nobody else reads, or only such that are saved for first.
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
        if !state.free_halfway(0) && !state.save_some()? {
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
}
