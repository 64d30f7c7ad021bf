//! The waker of a subscription: one for all of its inventories.

use crate::domain::PredictionOutcome;
use crate::domain::SessionId;
use crate::sync::ChangeRecord;
use futures_util::task::AtomicWaker;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

/// How urgent a change is for a subscription, and the least urgent change that wakes it.
///
/// A stream that waits for a due time sets with [`super::WatchedInventories::set_wake_level`] which changes can still
/// move that time. Less urgent changes are only marked as pending: the stream finds them when it reads the states next.
/// The levels are ascending: a subscription at one level is woken by changes of this level and of all later ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum WakeLevel {
    /// Any change. As the level of a change: one that concerns only the history of the inventory, which is a correct
    /// prediction of the subscription's own session, or a correction for another session.
    #[default]
    Any = 0,
    /// A change by the subscription's own session that it did not predict.
    Echo = 1,
    /// A change by another session, or by a caller without a session.
    News = 2,
    /// A change that no subscription may miss: a wrong prediction of its own session, a correction for it, the creation
    /// or the deletion of the inventory, and the last change before the oldest unread change record could be lost.
    Correction = 3,
}

/// Wakes one subscription when one of its inventories has changed.
///
/// The publisher marks the change as pending while it holds the write lock of the hot table under which the new state
/// becomes visible, and wakes the subscription after the lock is released. Both flags are in one atomic, so there is an order between a
/// pending change and a new level: either the publisher sees the level, or the next poll sees the change.
#[derive(Debug)]
pub(super) struct SubscriptionWaker {
    session: Option<SessionId>,
    /// The runtime that wakes the subscription.
    pub runtime: super::delivery::RuntimeIndex,
    waker: AtomicWaker,
    /// One bit for each level of the pending changes, and the wake level in the bits from [`LEVEL_SHIFT`] on.
    state: AtomicU8,
}

const LEVEL_SHIFT: u8 = 4;
const PENDING: u8 = (1 << LEVEL_SHIFT) - 1;

/// Returns the pending changes that demand a wake-up, as bits.
fn demanding(state: u8) -> u8 {
    let level = state >> LEVEL_SHIFT;
    (state & PENDING) >> level
}

impl SubscriptionWaker {
    pub fn new(session: Option<SessionId>, runtime: super::delivery::RuntimeIndex) -> Self {
        Self { session, runtime, waker: AtomicWaker::new(), state: AtomicU8::new(0) }
    }

    /// Marks a change as pending. Returns whether [`Self::wake`] must be called: the change has the wake level, and no
    /// earlier one that is still pending has it.
    pub fn add_pending(&self, level: WakeLevel) -> bool {
        let bit = 1 << (level as u8);
        let before = self.state.fetch_or(bit, Ordering::AcqRel);
        demanding(before) == 0 && demanding(before | bit) != 0
    }

    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Sets the level from the next poll on.
    pub fn set_level(&self, level: WakeLevel) {
        // Only the subscription sets the level, so it does not change between these two lines.
        let before = self.state.load(Ordering::Relaxed) & !PENDING;
        self.state.fetch_xor(before ^ ((level as u8) << LEVEL_SHIFT), Ordering::AcqRel);
    }

    /// Forgets the pending changes.
    pub fn take_pending(&self) {
        self.state.fetch_and(!PENDING, Ordering::AcqRel);
    }

    /// Returns `Ready` if a change of the wake level is pending, and forgets all pending changes.
    pub fn poll_pending(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_due() {
            self.waker.register(context.waker());
            if !self.is_due() {
                return Poll::Pending;
            }
        }
        self.take_pending();
        Poll::Ready(())
    }

    /// Returns the level of a change with these records for the subscription.
    pub fn level_of(&self, records: &[ChangeRecord]) -> WakeLevel {
        records.iter().map(|record| self.level_of_record(record)).max().unwrap_or(WakeLevel::Correction)
    }

    fn level_of_record(&self, record: &ChangeRecord) -> WakeLevel {
        let is_own = self.session.is_some() && record.session == self.session;
        match (record.outcome, is_own) {
            (PredictionOutcome::Correction | PredictionOutcome::Mispredicted, true) => WakeLevel::Correction,
            (PredictionOutcome::Confirmed, true) | (PredictionOutcome::Correction, false) => WakeLevel::Any,
            (PredictionOutcome::Unpredicted, true) => WakeLevel::Echo,
            (
                PredictionOutcome::Unpredicted | PredictionOutcome::Confirmed | PredictionOutcome::Mispredicted,
                false,
            ) => WakeLevel::News,
        }
    }

    fn is_due(&self) -> bool {
        demanding(self.state.load(Ordering::Acquire)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::delivery::RuntimeIndex;
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Wake, Waker};

    const LEVELS: [WakeLevel; 4] = [WakeLevel::Any, WakeLevel::Echo, WakeLevel::News, WakeLevel::Correction];

    #[derive(Default)]
    struct CountedWakes(AtomicUsize);

    impl Wake for CountedWakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waker() -> SubscriptionWaker {
        SubscriptionWaker::new(None, RuntimeIndex::default())
    }

    fn poll(waker: &SubscriptionWaker) -> bool {
        waker.poll_pending(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_change_wakes_from_its_level_on_and_is_pending_below_it() {
        for level in LEVELS {
            for change in LEVELS {
                let waker = waker();
                waker.set_level(level);
                assert!(!poll(&waker));
                assert_eq!((waker.add_pending(change), poll(&waker)), (change >= level, change >= level));
                waker.set_level(WakeLevel::Any);
                assert_eq!(poll(&waker), change < level, "a lower level finds what was pending");
                assert!(!poll(&waker));
            }
        }
    }

    #[test]
    fn further_changes_wake_only_after_the_first_was_seen() {
        let waker = waker();
        waker.set_level(WakeLevel::News);
        assert!(!waker.add_pending(WakeLevel::Echo));
        assert!(waker.add_pending(WakeLevel::News));
        assert!(!waker.add_pending(WakeLevel::Correction));
        assert!(poll(&waker) && !poll(&waker));
        assert!(waker.add_pending(WakeLevel::News));
        waker.take_pending();
        assert!(!poll(&waker), "the subscription has read the states");
    }

    #[test]
    fn the_last_registered_task_is_woken() {
        let (waker, wakes) = (waker(), Arc::new(CountedWakes::default()));
        assert!(waker.poll_pending(&mut Context::from_waker(&Waker::from(wakes.clone()))).is_pending());
        assert!(waker.add_pending(WakeLevel::Echo));
        waker.wake();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(poll(&waker));
    }
}
