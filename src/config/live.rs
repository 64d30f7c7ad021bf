//! The current rollout settings, shared by all streams and services.

use crate::sync::{OutOfBounds, Rollout};
use std::sync::Arc;
use tokio::sync::watch;

/// Clones share the settings. A stream reads them for each frame that it computes, so a change applies from its next
/// frame.
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

    /// Atomically replaces the current settings with the result of `next`, and logs who changed them and why.
    pub fn change(
        &self,
        who: &str,
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
        tracing::info!(who, reason, changed, rollout = %current, "the rollout was set");
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
    fn a_change_is_seen_by_every_clone_and_one_that_is_refused_wakes_nobody() {
        let live = LiveRollout::default();
        let (mut watching, limit) = (live.subscribe(), live.clone().syncs_per_second());
        let set = |value| live.change("me", "a test", |current| current.with([(RolloutField::SyncsPerSecond, value)]));
        set(1_001).expect_err("it is out of bounds");
        set(10).expect("it is what it was");
        assert!(!watching.has_changed().expect("it is open"));
        set(3).expect("it is within bounds");
        assert!(watching.has_changed().expect("it is open"));
        assert_eq!((watching.borrow_and_update().syncs_per_second, limit()), (3, 3));
    }
}
