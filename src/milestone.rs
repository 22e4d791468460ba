//! How far the orders to the writers have been carried out, for those who must wait for one.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The writers, or who reads for the walk, have given up; the writers know why.
pub(crate) struct Gone;

/// Counts numbered orders, from 1, that may be done out of order.
pub(crate) struct Milestone {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// All orders up to this one are done.
    reached: u64,
    /// Later ones that are done as well.
    beyond: BTreeSet<u64>,
    abandoned: bool,
}

impl Milestone {
    /// Nothing done so far.
    pub fn new() -> Self {
        Self { state: Mutex::new(State::default()), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order is done.
    pub fn done(&self, number: u64) {
        let mut state = self.state();
        state.beyond.insert(number);
        while let next = state.reached + 1
            && state.beyond.remove(&next)
        {
            state.reached = next;
        }
        self.changed.notify_all();
    }

    /// No more orders will be done.
    pub fn abandon(&self) {
        self.state().abandoned = true;
        self.changed.notify_all();
    }

    /// Whether that is so.
    pub fn is_abandoned(&self) -> bool {
        self.state().abandoned
    }

    /// All orders up to this one are done.
    pub fn reached(&self) -> u64 {
        self.state().reached
    }

    /// Waits until all orders up to `number` are done. Returns whether they are: false if they never will.
    pub fn wait_for(&self, number: u64) -> bool {
        let mut state = self.state();
        while state.reached < number && !state.abandoned {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.reached >= number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_learns_when_all_before_are_done_or_never_will_be() {
        let milestone = Milestone::new();
        assert!(milestone.wait_for(0));
        std::thread::scope(|scope| {
            let third = scope.spawn(|| milestone.wait_for(3));
            let fifth = scope.spawn(|| milestone.wait_for(5));
            milestone.done(2);
            milestone.done(3);
            assert_eq!(milestone.reached(), 0);
            milestone.done(5);
            milestone.done(1);
            assert!(third.join().unwrap());
            assert_eq!(milestone.reached(), 3);
            milestone.abandon();
            assert!(!fifth.join().unwrap());
        });
    }
}
