//! The inventories that one subscription watches.

use super::hot::HotTable;
use super::waker::{SubscriptionWaker, WakeLevel};
use crate::domain::InventoryId;
use crate::sync::PublishedState;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Watches a list of inventories. Until it is dropped, their entries stay in the hot table, even if an inventory does
/// not exist.
#[derive(Debug)]
pub struct WatchedInventories {
    hot: Arc<HotTable>,
    ids: Box<[InventoryId]>,
    /// Registered in the entry of each of `ids`.
    waker: Arc<SubscriptionWaker>,
}

impl WatchedInventories {
    pub(super) fn new(hot: Arc<HotTable>, ids: Vec<InventoryId>, waker: Arc<SubscriptionWaker>) -> Self {
        Self { hot, ids: ids.into(), waker }
    }

    /// Returns the ids of the watched inventories, in the requested order.
    pub fn ids(&self) -> &[InventoryId] {
        &self.ids
    }

    /// Returns a consistent snapshot of the newest states, in the requested order.
    pub fn states(&self) -> Vec<Arc<PublishedState>> {
        self.hot.snapshot(&self.ids)
    }

    /// Waits until at least one state may have changed since the last call; see [`Self::poll_changed`].
    ///
    /// Cancel safe: if the future is dropped, the next call sees the change.
    pub async fn changed(&mut self) {
        poll_fn(|context| self.poll_changed(context)).await;
    }

    /// Returns `Ready` if, since it last returned `Ready` or [`Self::mark_unchanged`] was called, at least one state may
    /// have changed by a change of the wake level. Otherwise, the task is woken by the next such change.
    pub fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.waker.poll_pending(context)
    }

    /// Sets the least urgent change that makes [`Self::poll_changed`] return `Ready`, from its next call on. The level
    /// is [`WakeLevel::Any`] until it is set.
    pub fn set_wake_level(&mut self, level: WakeLevel) {
        self.waker.set_level(level);
    }

    /// Treats all changes so far as seen. Call it before [`Self::states`] if the states are read for another reason
    /// than a change, such as a due time.
    pub fn mark_unchanged(&mut self) {
        self.waker.take_pending();
    }
}

impl Drop for WatchedInventories {
    fn drop(&mut self) {
        self.hot.release(&self.ids, &self.waker);
    }
}
