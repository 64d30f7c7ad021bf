//! The rollout in effect, shared by all streams and services and changeable at run time.

use crate::sync::{OutOfBounds, Rollout, SyncSettings};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The rollout in effect; clones share it. A stream reads it for each frame that it computes, so a change applies from
/// its next frame.
#[derive(Debug, Clone)]
pub struct LiveRollout {
    rollout: watch::Sender<Arc<Rollout>>,
    /// The settings of open streams, which streams with the same settings share.
    settings: Arc<Mutex<Vec<Arc<SyncSettings>>>>,
}

impl LiveRollout {
    pub fn new(rollout: Rollout) -> Self {
        Self { rollout: watch::Sender::new(Arc::new(rollout)), settings: Arc::default() }
    }

    pub fn current(&self) -> Arc<Rollout> {
        self.rollout.borrow().clone()
    }

    /// Returns the current rollout if it is not `seen`.
    pub fn changed_since(&self, seen: &Arc<Rollout>) -> Option<Arc<Rollout>> {
        let current = self.rollout.borrow();
        (!Arc::ptr_eq(&current, seen)).then(|| current.clone())
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<Rollout>> {
        self.rollout.subscribe()
    }

    /// Returns these settings in memory that all streams with the same settings share.
    pub fn share_settings(&self, settings: SyncSettings) -> Arc<SyncSettings> {
        // A panic never leaves the list partly changed.
        let mut shared = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settings) = shared.iter().find(|other| ***other == settings) {
            return settings.clone();
        }
        shared.retain(|settings| Arc::strong_count(settings) > 1);
        let settings = Arc::new(settings);
        shared.push(settings.clone());
        settings
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
        let changed = self.rollout.send_if_modified(|current| match next(current) {
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
        let (mut subscriber, clone) = (live.subscribe(), live.clone());
        let set =
            |value| live.change("me", "a test", |current| current.with_values([(RolloutField::SyncsPerSecond, value)]));
        set(1_001).expect_err("1,001 is out of bounds");
        set(10).expect("10 is within bounds");
        assert!(!subscriber.has_changed().expect("the sender is open"), "10 was the value before");
        set(3).expect("3 is within bounds");
        assert!(subscriber.has_changed().expect("the sender is open"));
        let seen = subscriber.borrow_and_update().clone();
        assert_eq!((seen.syncs_per_second, clone.current().syncs_per_second), (3, 3));
        assert!(clone.changed_since(&seen).is_none());
    }

    #[test]
    fn streams_with_the_same_settings_share_them_and_unused_settings_are_removed() {
        let live = LiveRollout::default();
        let first = live.share_settings(SyncSettings::default());
        assert!(Arc::ptr_eq(&first, &live.share_settings(SyncSettings::default())));
        drop(first);
        let second = live.share_settings(SyncSettings::immediate_full());
        assert_eq!(live.settings.lock().expect("no panic")[..], [second]);
    }
}
