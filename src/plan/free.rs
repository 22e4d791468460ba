//! Which blocks become literals where the target has nothing else for scratch: those of which that costs least.

use super::recipe::{Recipe, source_of};
use super::whole_blocks;
use crate::matcher::Source;
use crate::units::{BLOCK, Extent, blocks_touched, merge_extents};
use std::ops::Range;

/// What a byte of deflated data costs as a literal, in others: those compress.
const DEFLATED: u64 = 4;
/// The per cent of what blocks side by side cost below which scattered ones are chosen.
const CLEARLY: u64 = 75;

/// For each changed block the bytes that become literals where it is made free: what it is made of, and what is made of it.
struct Costs {
    /// The changed blocks, each extent with the number of blocks before it.
    extents: Vec<(Extent, usize)>,
    bytes: Vec<u64>,
}

impl Costs {
    fn of(recipe: &Recipe<'_>, new_len: u64) -> Self {
        let mut count = 0;
        let changed = recipe.segments(new_len).into_iter().map(|(extent, _)| {
            count += extent.count as usize;
            (extent, count - extent.count as usize)
        });
        let extents: Vec<(Extent, usize)> = changed.collect();
        let mut costs = Self { extents, bytes: vec![0; count] };
        for run in recipe.runs() {
            let made = run.dst..run.dst + run.len;
            match source_of(run) {
                Some(source) => {
                    costs.add(&made, 1);
                    costs.add(&source, 1);
                }
                None if run.source == Source::Recoded => {
                    costs.add(&made, DEFLATED);
                    for extent in recipe.reads_deflated(run) {
                        costs.add(&(extent.start * BLOCK..extent.end() * BLOCK), DEFLATED);
                    }
                }
                None => {}
            }
        }
        costs
    }

    /// Adds so much for each of these bytes to the block that it lies in.
    fn add(&mut self, bytes: &Range<u64>, each: u64) {
        let blocks = blocks_touched(bytes);
        let first = self.extents.partition_point(|(extent, _)| extent.end() <= blocks.start);
        for (extent, before) in &self.extents[first..] {
            let common = extent.intersect(&blocks);
            if common.count == 0 {
                break;
            }
            for block in common.start..common.end() {
                let (start, end) = ((block * BLOCK).max(bytes.start), ((block + 1) * BLOCK).min(bytes.end));
                let sum = &mut self.bytes[before + (block - extent.start) as usize];
                *sum = sum.saturating_add((end - start) * each);
            }
        }
    }

    /// Whole blocks that are not free yet, with what each costs: from `near` on, and then those before.
    fn not_free(&self, near: u64, new_len: u64) -> Vec<(u64, u64)> {
        let blocks = self.extents.iter().flat_map(|(extent, _)| extent.start..extent.end());
        let costs = blocks.zip(self.bytes.iter().copied());
        let mut found: Vec<(u64, u64)> =
            costs.filter(|(block, bytes)| *block < whole_blocks(new_len) && *bytes > 0).collect();
        let before = found.partition_point(|(block, _)| *block < near);
        found.rotate_left(before);
        found
    }

    /// So many of these: side by side, as those are written and saved in long stretches, unless others cost clearly less.
    fn choose(&self, near: u64, count: u64, new_len: u64) -> Vec<Extent> {
        let mut side_by_side = self.not_free(near, new_len);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(side_by_side.len());
        let mut cheapest = side_by_side.clone();
        if count < cheapest.len() {
            cheapest.select_nth_unstable_by_key(count, |(block, bytes)| (*bytes, *block));
        }
        cheapest.truncate(count);
        side_by_side.truncate(count);
        let sum = |blocks: &[(u64, u64)]| blocks.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
        let scattered = sum(&cheapest).saturating_mul(100) < sum(&side_by_side).saturating_mul(CLEARLY);
        let chosen = if scattered { cheapest } else { side_by_side };
        let mut extents = chosen.into_iter().map(|(start, _)| Extent { start, count: 1 }).collect();
        merge_extents(&mut extents);
        extents
    }
}

impl Recipe<'_> {
    /// Makes so many more changed blocks free for scratch: literals themselves, and read by nobody. The block `near` is
    /// another one.
    pub fn make_free(&mut self, near: u64, count: u64, new_len: u64) {
        let mut free = Costs::of(self, new_len).choose(near, count, new_len);
        // It may be the short last one, which cannot be scratch but need not be saved either, then.
        free.push(Extent { start: near, count: 1 });
        merge_extents(&mut free);
        self.avoid_sources(&free);
        self.make_literal(&free);
        self.freed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matcher::Run;

    const LEN: u64 = 40 * BLOCK;

    /// Every block is that `shift` further on, but for `literals`, blocks of which all but 96 bytes are literal.
    fn recipe(shift: u64, literals: &[u64]) -> Recipe<'static> {
        let mut runs = Vec::new();
        for block in 0..40 {
            let (dst, src) = (block * BLOCK, (block + shift) % 40 * BLOCK);
            let literal = if literals.contains(&block) { BLOCK - 96 } else { 0 };
            runs.push(Run { dst, len: literal, source: Source::Literal });
            runs.push(Run { dst: dst + literal, len: BLOCK - literal, source: Source::Copy { src: src + literal } });
        }
        runs.retain(|run| run.len > 0);
        Recipe::new(runs)
    }

    fn freed(recipe: &Recipe<'_>, near: u64, count: u64) -> Vec<(u64, u64)> {
        let chosen = Costs::of(recipe, LEN).choose(near, count, LEN);
        chosen.into_iter().map(|extent| (extent.start, extent.count)).collect()
    }

    #[test]
    fn blocks_side_by_side_are_made_free_where_all_cost_the_same() {
        assert_eq!(freed(&recipe(3, &[]), 10, 4), [(10, 4)]);
        assert_eq!(freed(&recipe(3, &[]), 38, 4), [(0, 2), (38, 2)]);
        assert_eq!(freed(&recipe(3, &[]), 5, 99), [(0, 40)]);
    }

    #[test]
    fn blocks_that_are_nearly_free_are_made_so_wherever_they_lie() {
        // What block 20 is made of is read by nobody else, and the like.
        assert_eq!(freed(&recipe(1, &[20, 21, 30, 31]), 0, 2), [(21, 1), (31, 1)]);
        // One is not worth it.
        assert_eq!(freed(&recipe(1, &[20, 21]), 0, 8), [(0, 8)]);
    }

    #[test]
    fn what_is_free_reads_nothing_and_is_read_by_nobody() {
        let mut recipe = recipe(1, &[20, 21]);
        recipe.make_free(7, 1, LEN);
        recipe.make_free(7, 1, LEN);
        let free = [7, 21];
        for run in recipe.runs() {
            let Some(source) = source_of(run) else { continue };
            assert!(!free.contains(&(run.dst / BLOCK)) && !free.contains(&(source.start / BLOCK)), "{run:?}");
        }
        assert!(
            !freed(&recipe, 0, 40)
                .iter()
                .any(|(start, count)| free.iter().any(|b| (*start..start + count).contains(b)))
        );
    }

    #[test]
    fn what_was_made_free_is_a_piece_of_its_own() {
        let mut recipe = recipe(1, &[]);
        let alone = |recipe: &Recipe<'_>| {
            let pieces = super::super::pieces::cut(recipe, &[], LEN, 16);
            pieces.list.iter().any(|piece| piece.extents == [Extent { start: 6, count: 2 }] && piece.reads.is_empty())
        };
        // Block 6 is made of block 7, and so becomes literal as well.
        assert!(!alone(&recipe));
        recipe.make_free(7, 1, LEN);
        assert!(alone(&recipe));
    }
}
