//! Finite state entropy (RFC 8878, 4.1.1): tables from their descriptions, and both ways through them.

/// A state of a table: what it stands for, and the bits that make the next one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    pub symbol: u8,
    pub bits: u8,
    /// What those bits are added to.
    pub base: u16,
}

/// A table of states.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Bits of a state.
    pub log: u32,
    pub cells: Vec<Cell>,
    /// The states that stand for each symbol, ascending, one symbol's behind the other's.
    states: Vec<u16>,
    /// For each symbol, where its states are.
    ranges: Vec<Range>,
}

/// The states of a symbol.
#[derive(Clone, Copy, Debug)]
struct Range {
    /// Where they begin in the list, and how many they are.
    first: u16,
    count: u16,
    /// In the upper half of this number plus a state's and the table's size stand the bits from this symbol to that state.
    bits: u32,
}

impl Range {
    fn new(first: u16, count: u16, log: u32) -> Self {
        // States are told by numbers from the size of the table up to twice that; their first bits, as many as make it at
        // least `count`, and less than twice `count`, tell which of the symbol's states it is, and the others are written.
        // So it is one bit less below the place where the most bits would make it too small.
        let most = log - count.saturating_sub(1).checked_ilog2().unwrap_or(0);
        let turn = if count == 1 { 1 << log } else { u32::from(count) << most };
        Self { first, count, bits: (most << 16).wrapping_sub(turn) }
    }
}

impl Table {
    /// From how many states each symbol has; -1 is one of the last ones (RFC 8878, 4.1.1). `None` where that does not add up.
    pub fn new(counts: &[i16], log: u32) -> Option<Self> {
        let size = 1usize << log;
        let total: usize = counts.iter().map(|count| usize::from(count.unsigned_abs())).sum();
        if total != size || counts.len() > 256 {
            return None;
        }
        let mut cells = vec![Cell::default(); size];
        let mut high = size;
        for (symbol, _) in (0..=u8::MAX).zip(counts).filter(|(_, count)| **count == -1) {
            high -= 1;
            cells[high].symbol = symbol;
        }
        let (step, mut at) = ((size >> 1) + (size >> 3) + 3, 0);
        for (symbol, count) in (0..=u8::MAX).zip(counts) {
            for _ in 0..(*count).max(0) {
                cells[at].symbol = symbol;
                at = (at + step) % size;
                while at >= high && high > 0 {
                    at = (at + step) % size;
                }
            }
        }
        let (mut ranges, mut sum) = (Vec::with_capacity(counts.len()), 0);
        for count in counts {
            ranges.push(Range::new(sum, count.unsigned_abs(), log));
            sum += count.unsigned_abs();
        }
        let mut states = vec![0; size];
        let mut seen = vec![0u16; counts.len()];
        for (state, cell) in (0u16..).zip(&mut cells) {
            let symbol = usize::from(cell.symbol);
            let Range { first, count, .. } = ranges[symbol];
            let rank = seen[symbol];
            states[usize::from(first + rank)] = state;
            let number = count + rank;
            cell.bits = (log - number.ilog2()) as u8;
            cell.base = ((usize::from(number) << cell.bits) - size) as u16;
            seen[symbol] += 1;
        }
        Some(Self { log, cells, states, ranges })
    }

    /// Of one symbol, which takes no bits.
    pub fn of_one(symbol: u8) -> Self {
        let cell = Cell { symbol, bits: 0, base: 0 };
        let mut ranges = vec![Range::new(0, 0, 0); usize::from(symbol)];
        ranges.push(Range::new(0, 1, 0));
        Self { log: 0, cells: vec![cell], states: vec![0], ranges }
    }

    /// Which of the states of a symbol this is.
    pub fn rank(&self, state: u16) -> Option<u16> {
        let Range { first, count, .. } = *self.ranges.get(usize::from(self.cells.get(usize::from(state))?.symbol))?;
        let states = self.states.get(usize::from(first)..usize::from(first + count))?;
        states.binary_search(&state).ok().map(|rank| rank as u16)
    }

    /// The state of a symbol with this rank.
    pub fn state(&self, symbol: u8, rank: u64) -> Option<u16> {
        let Range { first, count, .. } = *self.ranges.get(usize::from(symbol))?;
        let rank = u16::try_from(rank).ok().filter(|rank| *rank < count)?;
        self.states.get(usize::from(first + rank)).copied()
    }

    /// The state of a symbol from which `next` follows, and the bits that say so: their value and number.
    #[inline(always)]
    pub fn before(&self, symbol: u8, next: u16) -> Option<(u16, u64, u32)> {
        let range = self.ranges.get(usize::from(symbol)).filter(|range| range.count > 0)?;
        let place = u32::from(next) + self.cells.len() as u32;
        let bits = place.wrapping_add(range.bits) >> 16;
        let rank = (place >> bits).checked_sub(range.count.into())?;
        let state = *self.states.get(usize::from(range.first) + rank as usize)?;
        Some((state, (place & ((1 << bits) - 1)).into(), bits))
    }
}

/// Reads the description of a table (RFC 8878, 4.1.1) of at most `symbols` symbols and states of at most `most` bits.
/// Returns it, and the bytes that it takes.
pub(super) fn describe(bytes: &[u8], symbols: usize, most: u32) -> Option<(Table, usize)> {
    let mut bits = Forward { bytes, at: 0 };
    let log = bits.take(4)? + 5;
    if log > most {
        return None;
    }
    let mut counts: Vec<i16> = Vec::with_capacity(symbols);
    let mut left = (1i32 << log) + 1;
    while left > 1 && counts.len() < symbols {
        // Up to `left` values: those below `low` take a bit less.
        let width = left.ilog2() + 1;
        let half = 1i32 << (width - 1);
        let low = 2 * half - 1 - left;
        let short = bits.look(width - 1) as i32;
        let value = if short < low {
            bits.at += width as usize - 1;
            short
        } else {
            let value = bits.take(width)? as i32;
            if value >= half { value - low } else { value }
        };
        let count = value - 1;
        left -= count.abs();
        counts.push(count as i16);
        if count == 0 {
            loop {
                let more = bits.take(2)?;
                counts.resize(counts.len() + more as usize, 0);
                if more < 3 {
                    break;
                }
                if counts.len() > symbols {
                    return None;
                }
            }
        }
    }
    let used = bits.at.div_ceil(8);
    if left != 1 || counts.len() > symbols || used > bytes.len() {
        return None;
    }
    Some((Table::new(&counts, log)?, used))
}

/// Bits in the order of bytes.
struct Forward<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Forward<'_> {
    /// The next bits, at most 16; zeros behind the end.
    fn look(&self, bits: u32) -> u32 {
        let byte = |i: usize| u32::from(self.bytes.get(self.at / 8 + i).copied().unwrap_or(0));
        (byte(0) | byte(1) << 8 | byte(2) << 16) >> (self.at % 8) & ((1 << bits) - 1)
    }

    fn take(&mut self, bits: u32) -> Option<u32> {
        let value = self.look(bits);
        self.at += bits as usize;
        (self.at <= self.bytes.len() * 8).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_through_a_table_goes_back_the_same_way() {
        for counts in [vec![4i16, 3, 2, -1, 0, 5, 1, 16], vec![1, 31], vec![32], vec![-1; 32]] {
            let table = Table::new(&counts, 5).unwrap();
            for (state, cell) in (0u16..).zip(&table.cells) {
                assert_eq!(table.state(cell.symbol, table.rank(state).unwrap().into()), Some(state));
                for bits in 0..1u16 << cell.bits {
                    let back = table.before(cell.symbol, cell.base + bits);
                    assert_eq!(back, Some((state, bits.into(), cell.bits.into())), "{counts:?}");
                }
            }
            assert_eq!(table.before(counts.len() as u8, 0), None);
        }
        assert!(Table::new(&[5, 5], 4).is_none());
    }
}
