//! Where chains of pieces that wait for each other are cut: what is in danger there is saved before anything else.
//!
//! What moves a little way makes long chains, as each piece waits for those that read it. A chain that is cut in n places
//! takes an n-th of the barriers, and the price is a few blocks of scratch at each cut, until all is done.

use super::BARRIER_BLOCKS;
use super::order::{Action, Schedule};
use super::pieces::Pieces;
use crate::units::count_blocks;
use std::iter::successors;

/// Steps between cuts that are tried where there is scratch for them; none is shorter than the last.
const STEPS: [u32; 2] = [24, 12];
const SHORTEST: u32 = STEPS[STEPS.len() - 1];
/// From so many pieces on, only cuts are tried for which all scratch is taken: trying takes time.
const MANY_PIECES: usize = 1 << 18;

/// A way to cut: `width` levels in every `step`.
///
/// What moves by whole blocks waits for one level; what moves by other distances reads two neighbours, and only two
/// levels side by side cut all that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Levels from one cut to the next.
    step: u32,
    /// Levels cut out.
    width: u32,
}

impl Cut {
    fn at(self, level: u32) -> bool {
        level >= self.step && level % self.step < self.width
    }

    /// Blocks to save, of those that the pieces of each level write.
    fn blocks(self, by_level: &[u64]) -> u64 {
        (0u32..).zip(by_level).filter(|(level, _)| self.at(*level)).map(|(_, blocks)| blocks).sum()
    }

    /// The pieces of a schedule to save ahead.
    pub fn pieces(self, schedule: &Schedule) -> Vec<u32> {
        let here = |(level, action): &(u32, Action)| match action {
            Action::Piece(piece) if self.at(*level) => Some(*piece),
            _ => None,
        };
        schedule.actions.iter().filter_map(here).collect()
    }
}

/// The cuts worth trying, with the blocks to save for each: as often as pays, and as often as there is scratch for.
/// `more` is the number of blocks that could be scratch besides, up to a wanted number.
pub fn worth_trying(pieces: &Pieces, schedule: &Schedule, more: impl Fn(u64) -> u64) -> Vec<(Cut, u64)> {
    let by_level = blocks_by_level(pieces, schedule);
    let levels = u32::try_from(by_level.len()).unwrap_or(u32::MAX);
    if levels <= SHORTEST {
        return Vec::new(); // without a look for scratch, which takes time
    }
    // Saving costs at least so much: where that is more than all barriers, there is nothing to win.
    let pays = u64::from(levels).saturating_mul(BARRIER_BLOCKS);
    let all = schedule.free_at_start + more(pays.min(by_level.iter().sum()));
    let often: &[u32] = if pieces.list.len() < MANY_PIECES { &STEPS } else { &[] };
    let mut found: Vec<(Cut, u64)> = Vec::new();
    for width in [1, 2] {
        // Half of the scratch where other saves need some, too.
        let fitting = [all, all / 2].map(|most| fitting(&by_level, width, most));
        let often = often.iter().map(|step| Cut { step: *step, width });
        for cut in often.chain(fitting).chain(cheapest(&by_level, width, all)) {
            let blocks = cut.blocks(&by_level);
            if cut.step < levels && (1..pays).contains(&blocks) && blocks <= all && found.iter().all(|(c, _)| *c != cut)
            {
                found.push((cut, blocks));
            }
        }
    }
    found
}

/// How many blocks the pieces of each level write.
fn blocks_by_level(pieces: &Pieces, schedule: &Schedule) -> Vec<u64> {
    let mut blocks = vec![0; usize::try_from(schedule.levels).unwrap_or(0)];
    for (level, action) in &schedule.actions {
        if let (Action::Piece(piece), Some(sum)) = (action, blocks.get_mut(*level as usize)) {
            *sum += count_blocks(&pieces.list[*piece as usize].extents);
        }
    }
    blocks
}

/// The cut with the shortest step, of that width, that saves at most `most` blocks.
fn fitting(by_level: &[u64], width: u32, most: u64) -> Cut {
    let (mut low, mut high) = (SHORTEST, u32::try_from(by_level.len()).unwrap_or(u32::MAX).max(SHORTEST));
    // That fewer cuts save less is nearly always so, which is enough.
    while low < high {
        let step = low + (high - low) / 2;
        if (Cut { step, width }).blocks(by_level) <= most { high = step } else { low = step + 1 }
    }
    Cut { step: low, width }
}

/// The cut that should cost least of those that save at most `most` blocks: what is saved is written twice, scratch and
/// its zeros, and as many barriers stay as one chain has levels.
fn cheapest(by_level: &[u64], width: u32, most: u64) -> Option<Cut> {
    let levels = u32::try_from(by_level.len()).unwrap_or(u32::MAX);
    let steps = successors(Some(SHORTEST), |step| step.checked_mul(2)).take_while(|step| *step < levels);
    let cuts = steps.map(|step| Cut { step, width }).map(|cut| (cut, cut.blocks(by_level)));
    let cost = |(cut, blocks): &(Cut, u64)| blocks.saturating_mul(2) + u64::from(cut.step) * BARRIER_BLOCKS;
    cuts.filter(|(_, blocks)| *blocks <= most).min_by_key(cost).map(|(cut, _)| cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_step_that_fits_is_found() {
        let by_level = vec![3; 1000];
        let cut = fitting(&by_level, 2, 60);
        assert_eq!((cut.blocks(&by_level), cut.step), (60, 91)); // at 91, 182, …, 910
        assert!(Cut { step: 90, width: 2 }.blocks(&by_level) > 60);
        assert_eq!(fitting(&by_level, 1, u64::MAX).step, 12);
        assert_eq!(fitting(&by_level, 1, 0).step, 1000);
    }
}
