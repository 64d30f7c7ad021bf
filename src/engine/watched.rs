//! The inventories that one subscription follows.

use super::hot::HotTable;
use crate::domain::InventoryId;
use crate::sync::PublishedState;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::watch;

/// Until it is dropped, none of them is evicted, also not one that does not exist.
#[derive(Debug)]
pub struct WatchedInventories {
    hot: Arc<HotTable>,
    ids: Vec<InventoryId>,
    /// Of each of `ids`.
    receivers: Vec<watch::Receiver<PublishedState>>,
}

impl WatchedInventories {
    pub(super) fn new(
        hot: Arc<HotTable>,
        ids: Vec<InventoryId>,
        receivers: Vec<watch::Receiver<PublishedState>>,
    ) -> Self {
        Self { hot, ids, receivers }
    }

    /// The newest states, all of one moment, in the order asked for.
    pub fn states(&self) -> Vec<PublishedState> {
        self.hot.snapshot(&self.receivers)
    }

    /// Returns when at least one of them may have changed since the last time.
    ///
    /// Safe to drop and call again: a change that was seen by nobody is seen by the next call.
    pub async fn changed(&mut self) {
        if let [one] = self.receivers.as_mut_slice() {
            // The sender lives in the table for as long as it is watched.
            let _ = one.changed().await;
            return;
        }
        let mut waits: Vec<Pin<Box<dyn Future<Output = _> + Send + '_>>> = Vec::with_capacity(self.receivers.len());
        for receiver in &mut self.receivers {
            waits.push(Box::pin(receiver.changed()));
        }
        poll_fn(|context| {
            // Each is polled, so that several changes at once are one.
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
