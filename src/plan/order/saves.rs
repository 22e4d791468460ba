//! Saves: what to copy to scratch when nothing is ready, and in which order.

use super::super::BATCH_BLOCKS;
use super::{Action, Group, NONE, NeedScratch, State};
use std::collections::{HashMap, VecDeque};

/// So many times the scratch that is needed is looked at.
const CHOICE: usize = 4;

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

impl State<'_> {
    /// Saves for pieces that would otherwise wait long, up to what the leaves that are ready now offer.
    pub(super) fn save_ahead(&mut self, ahead: &[u32]) -> Result<(), NeedScratch> {
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

    /// The waiting piece with the fewest blocks to save. Pieces that read nothing in danger only wait for others.
    pub(super) fn cheapest_in_a_cycle(&mut self) -> Option<u32> {
        while let Some((key, piece)) = self.stuck.first().copied() {
            if self.outward[piece as usize] > 0 || self.own_blocks[piece as usize] > 0 {
                return Some(piece);
            }
            self.stuck.remove(&(key, piece));
        }
        None
    }

    /// The blocks of a piece that somebody still reads.
    pub(super) fn endangered(&self, piece: u32) -> Vec<u32> {
        let wanted =
            |d: &u32| self.group_of[*d as usize] == NONE && (self.foreign[*d as usize] > 0 || self.own[*d as usize]);
        self.blocks_of(piece).filter(wanted).collect()
    }

    /// Saves what keeps pieces from being written, as much as the free scratch allows, in a save of up to a batch. Whether
    /// there was anything to save.
    pub(super) fn save_some(&mut self) -> Result<bool, NeedScratch> {
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
    pub(super) fn note_neighbours(&mut self, piece: u32, readers: &mut HashMap<u32, u32>) {
        for read in self.reads_of(piece).collect::<Vec<u32>>() {
            let owner = self.pieces.owner[read as usize];
            if owner != piece && self.group_of[read as usize] == NONE && self.is_selfish[owner as usize] {
                let all = || self.blocks_of(owner).map(|d| self.foreign[d as usize]).sum();
                let left = readers.entry(owner).or_insert_with(all);
                *left = left.saturating_sub(1);
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
        if let Some(piece) = next_selfish(&mut self.alone, &self.is_selfish) {
            return Some((piece, Class::Alone));
        }
        while let Some(piece) = self.nearly.pop() {
            let waits = !self.taken[piece as usize] && self.need(piece) > 0 && !chosen.contains(&piece);
            if waits && self.around_when_written(piece) {
                return Some((piece, Class::Nearly));
            }
        }
        next_selfish(&mut self.selfish, &self.is_selfish).map(|piece| (piece, Class::Selfish))
    }

    fn put_back(&mut self, piece: u32, class: Class) {
        match class {
            Class::Alone => self.alone.push_front(piece),
            Class::Nearly => self.nearly.push(piece),
            Class::Selfish => self.selfish.push_front(piece),
        }
    }

    pub(super) fn note_alone(&mut self, piece: u32) {
        if self.is_selfish[piece as usize] && self.foreign_blocks[piece as usize] == 0 {
            self.alone.push_back(piece);
        }
    }

    /// Saves everything that somebody still reads of these pieces, as one group.
    pub(super) fn save(&mut self, chosen: &[u32]) -> Result<(), NeedScratch> {
        let blocks: Vec<u32> = chosen.iter().flat_map(|piece| self.endangered(*piece)).collect();
        if blocks.is_empty() {
            return Ok(());
        }
        if blocks.len() > self.pool.len() {
            let near = blocks.first().map_or(0, |d| self.pieces.block(*d));
            return Err(NeedScratch { blocks: blocks.len() as u64, near });
        }
        let slots = self.slots(blocks.len());
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
            self.is_selfish[*piece as usize] = false;
            let key = self.need(*piece);
            self.classify(*piece, Some(key));
        }
        Ok(())
    }

    /// Takes scratch for so many blocks, ascending: of what is free longest, but as much side by side as costs no barrier.
    /// Each stretch takes memory on the target.
    fn slots(&mut self, count: usize) -> Vec<u32> {
        let level = |slot: &u32| self.overwrite_level(*slot);
        let highest = self.pool.iter().take(count).map(level).max().unwrap_or(0);
        let more = self.pool.iter().take(CHOICE * count).skip(count).take_while(|slot| level(slot) <= highest).count();
        let mut slots: Vec<u32> = self.pool.drain(..count + more).collect();
        slots.sort_unstable();
        let mut borders = vec![0u32];
        for pair in slots.windows(2) {
            borders.push(borders.last().map_or(0, |sum| sum + u32::from(pair[0] + 1 != pair[1])));
        }
        let first = (0..=more).min_by_key(|first| borders[first + count - 1] - borders[*first]).unwrap_or(0);
        let rest = slots.split_off(first + count);
        let chosen = slots.split_off(first);
        slots.into_iter().chain(rest).rev().for_each(|slot| self.pool.push_front(slot));
        chosen
    }

    pub(super) fn save_block(&mut self, block: u32, slot: u32, number: u32, level: u32) {
        let d = block as usize;
        let owner = self.pieces.owner[d];
        let key = self.need(owner);
        self.group_of[d] = number;
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

/// Takes the first of these pieces that is still among the selfish.
fn next_selfish(list: &mut VecDeque<u32>, is_selfish: &[bool]) -> Option<u32> {
    while let Some(piece) = list.pop_front() {
        if is_selfish[piece as usize] {
            return Some(piece);
        }
    }
    None
}
