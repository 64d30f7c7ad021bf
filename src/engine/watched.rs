//! The inventories that one subscription watches.

use super::hot::HotTable;
use crate::domain::InventoryId;
use crate::sync::PublishedState;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::watch;

/// Watches a list of inventories. Until it is dropped, their entries stay in the hot table, even if an inventory does
/// not exist.
#[derive(Debug)]
pub struct WatchedInventories {
    hot: Arc<HotTable>,
    ids: Vec<InventoryId>,
    /// One receiver for each of `ids`.
    receivers: Vec<watch::Receiver<Arc<PublishedState>>>,
}

impl WatchedInventories {
    pub(super) fn new(
        hot: Arc<HotTable>,
        ids: Vec<InventoryId>,
        receivers: Vec<watch::Receiver<Arc<PublishedState>>>,
    ) -> Self {
        Self { hot, ids, receivers }
    }

    /// Returns the ids of the watched inventories, in the requested order.
    pub fn ids(&self) -> &[InventoryId] {
        &self.ids
    }

    /// Returns a consistent snapshot of the newest states, in the requested order.
    pub fn states(&self) -> Vec<Arc<PublishedState>> {
        self.hot.snapshot(&self.receivers)
    }

    /// Waits until at least one state may have changed since the last call.
    ///
    /// Cancel safe: if the future is dropped, the next call sees the change.
    pub async fn changed(&mut self) {
        if let [one] = self.receivers.as_mut_slice() {
            // The table keeps the sender while the inventory is watched.
            let _ = one.changed().await;
            return;
        }
        let mut waits: Vec<Pin<Box<dyn Future<Output = _> + Send + '_>>> = Vec::with_capacity(self.receivers.len());
        for receiver in &mut self.receivers {
            waits.push(Box::pin(receiver.changed()));
        }
        poll_fn(|context| {
            // Polls every receiver, so that simultaneous changes count as one.
            let polled = waits.iter_mut().map(|wait| wait.as_mut().poll(context).is_ready());
            if polled.fold(false, |any, ready| any | ready) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for WatchedInventories {
    fn drop(&mut self) {
        self.hot.release(&self.ids, std::mem::take(&mut self.receivers));
    }
}
