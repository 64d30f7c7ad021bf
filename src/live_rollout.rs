//! The rollout in effect, shared by all streams and services and changeable at run time.

use crate::sync::{OutOfBounds, Rollout};
use std::sync::Arc;
use tokio::sync::watch;

/// The rollout in effect; clones share it. A stream reads it for each frame that it computes, so a change applies from
/// its next frame.
#[derive(Debug, Clone)]
pub struct LiveRollout(watch::Sender<Arc<Rollout>>);

impl LiveRollout {
    pub fn new(rollout: Rollout) -> Self {
        Self(watch::Sender::new(Arc::new(rollout)))
    }

    pub fn current(&self) -> Arc<Rollout> {
        self.0.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<Rollout>> {
        self.0.subscribe()
    }

    /// Returns a function that returns the current maximum number of syncs per second and player; 0 is unlimited.
    pub fn syncs_per_second(&self) -> impl Fn() -> u32 + Clone + Send + Sync + 'static {
        let live = self.clone();
        move || live.0.borrow().syncs_per_second
    }

    /// Atomically replaces the rollout with the result of `next`, logs who changed it and why, and returns the rollout
    /// that is then in effect.
    ///
    /// # Errors
    ///
    /// The error of `next`; nothing has changed then.
    pub fn change(
        &self,
        changed_by: &str,
        reason: &str,
        next: impl FnOnce(&Rollout) -> Result<Rollout, Vec<OutOfBounds>>,
    ) -> Result<Arc<Rollout>, Vec<OutOfBounds>> {
        let mut problems = None;
        let changed = self.0.send_if_modified(|current| match next(current) {
            Ok(next) if next == **current => false,
            Ok(next) => {
                *current = Arc::new(next);
                true
            }
            Err(found) => {
                problems = Some(found);
                false
            }
        });
        if let Some(problems) = problems {
            return Err(problems);
        }
        let current = self.current();
        tracing::info!(changed_by, reason, changed, rollout = %current, "rollout updated");
        Ok(current)
    }
}

impl Default for LiveRollout {
    fn default() -> Self {
        Self::new(Rollout::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::RolloutField;

    #[test]
    fn every_clone_sees_a_change_and_a_rejected_change_wakes_no_subscriber() {
        let live = LiveRollout::default();
        let (mut subscriber, limit) = (live.subscribe(), live.clone().syncs_per_second());
        let set =
            |value| live.change("me", "a test", |current| current.with_values([(RolloutField::SyncsPerSecond, value)]));
        set(1_001).expect_err("1,001 is out of bounds");
        set(10).expect("10 is within bounds");
        assert!(!subscriber.has_changed().expect("the sender is open"), "10 was the value before");
        set(3).expect("3 is within bounds");
        assert!(subscriber.has_changed().expect("the sender is open"));
        assert_eq!((subscriber.borrow_and_update().syncs_per_second, limit()), (3, 3));
    }
}
