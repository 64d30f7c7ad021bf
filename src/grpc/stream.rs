//! The body of `SubscribeInventory`: pulled by the transport, never pushed. A frame is computed when it is polled, so a
//! slow reader just gets it later and smaller.

use super::convert::frame;
use super::{status, v1};
use crate::engine::Watched;
use crate::sync::{Frame, Subscription};
use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

pub struct FrameStream {
    pub watched: Watched,
    pub subscription: Subscription,
    /// Becomes true when the service ends.
    pub draining: watch::Receiver<bool>,
    /// The moment that all streams count from.
    pub start: Instant,
}

impl FrameStream {
    /// Ends with UNAVAILABLE when the service does; never otherwise.
    pub fn into_stream(self) -> impl Stream<Item = Result<v1::SubscribeInventoryResponse, Status>> + Send + 'static {
        stream::unfold(Some(self), async |state| {
            let mut this = state?;
            match this.next().await {
                Some(frame) => Some((Ok(frame::message(&frame)), Some(this))),
                None => Some((Err(status::draining()), None)),
            }
        })
    }

    /// The next frame, as soon as one is due; none when the service ends.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            let now = self.start.elapsed();
            if let Some(frame) = self.subscription.poll_frame(now, || self.watched.states()) {
                return Some(frame);
            }
            let due = self.start + self.subscription.poll_timeout(now);
            tokio::select! {
                biased;
                _ = self.draining.wait_for(|draining| *draining) => return None,
                () = self.watched.changed() => self.subscription.handle_states(&self.watched.states()),
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }
}
