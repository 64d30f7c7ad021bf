//! The response body of `SubscribeInventory`, which the transport polls. A frame is computed when it is polled, with
//! the current rollout. A slow reader therefore gets its frames later, with fewer bytes in total.

use super::read_authorization::ReadAuthorization;
use super::shadow::{Shadow, ShadowFrame, Verification};
use crate::domain::{Inventory, InventoryId};
use crate::engine::WatchedInventories;
use crate::identity::AuthError;
use crate::statistics::{OpenStreamGuard, StreamStatistics, SyncKind};
use crate::status;
use crate::sync::frame::full_frame;
use crate::sync::{
    Bucket, Frame, FrameAge, FrameBody, FullReason, InventoryFrame, Moment, PublishedState, Rollout, StreamMode,
    SubscribeOptions, Subscription, SubscriptionTooLarge, SyncTrigger,
};
use crate::telemetry::{FrameSent, FrameTelemetry};
use crate::transport::DrainSignal;
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use crate::wire::{frame, v1};
use futures_util::stream::{self, Stream};
use prost::Message;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// The parameters of a new stream.
pub struct StreamParameters {
    pub watched: WatchedInventories,
    pub options: SubscribeOptions,
    pub authorization: ReadAuthorization,
    /// The rollout bucket of the stream's player.
    pub bucket: Bucket,
    pub rollout: watch::Receiver<Arc<Rollout>>,
    pub statistics: Arc<StreamStatistics>,
    pub closing: DrainSignal,
    pub telemetry: FrameTelemetry,
    /// Set to the age of the changes in each frame.
    pub age: FrameAge,
    /// The origin of the times of all streams.
    pub start: Instant,
}

/// Why a stream ends.
enum StreamEnd {
    Draining,
    Unauthenticated(AuthError),
    TooLarge(SubscriptionTooLarge),
}

impl From<AuthError> for StreamEnd {
    fn from(error: AuthError) -> Self {
        Self::Unauthenticated(error)
    }
}

impl From<SubscriptionTooLarge> for StreamEnd {
    fn from(too_large: SubscriptionTooLarge) -> Self {
        Self::TooLarge(too_large)
    }
}

/// The inventories that a stream watches, as far as its reader may read them.
struct VisibleInventories {
    watched: WatchedInventories,
    options: SubscribeOptions,
}

impl VisibleInventories {
    /// Returns a consistent snapshot of the newest states, as the reader may see them.
    fn states(&self) -> Vec<Arc<PublishedState>> {
        self.options.access.visible(self.watched.states())
    }

    /// Returns the ids of the inventories in a message.
    fn ids_in(&self, message: &v1::SubscribeInventoryResponse) -> Vec<&str> {
        let marks = message.marks.iter().map(|mark| mark.watch);
        let watches = message.changes.iter().map(|change| change.watch).chain(marks);
        watches.filter_map(|watch| self.watched.ids().get(watch as usize)).map(InventoryId::as_str).collect()
    }
}

pub struct FrameStream {
    inventories: VisibleInventories,
    subscription: Subscription,
    /// The shadow, if the stream is in shadow mode.
    shadow: Option<Box<Shadow>>,
    authorization: ReadAuthorization,
    bucket: Bucket,
    rollout: watch::Receiver<Arc<Rollout>>,
    statistics: Arc<StreamStatistics>,
    closing: DrainSignal,
    telemetry: FrameTelemetry,
    age: FrameAge,
    start: Instant,
    _open: OpenStreamGuard,
}

impl FrameStream {
    pub fn open(parameters: StreamParameters) -> Self {
        let StreamParameters {
            watched,
            options,
            authorization,
            bucket,
            mut rollout,
            statistics,
            telemetry,
            age,
            closing,
            start,
        } = parameters;
        let StreamMode { sync, shadow } = rollout.borrow_and_update().mode_for(bucket);
        let shadow = shadow.map(|settings| Box::new(Shadow::new(settings, options.clone())));
        let subscription = Subscription::new(sync, options.clone());
        let _open = statistics.open();
        Self {
            inventories: VisibleInventories { watched, options },
            subscription,
            shadow,
            authorization,
            bucket,
            rollout,
            statistics,
            telemetry,
            age,
            closing,
            start,
            _open,
        }
    }

    /// Returns the stream of messages. The stream ends with UNAVAILABLE when the server drains or the connection is
    /// old, with UNAUTHENTICATED when the reader's token is no longer valid, and with RESOURCE_EXHAUSTED when the
    /// inventories have become too large for one stream. Otherwise, the stream does not end.
    pub fn into_stream(self) -> impl Stream<Item = Result<v1::SubscribeInventoryResponse, Status>> + Send + 'static {
        stream::unfold(Some(self), async |state| {
            let mut this = state?;
            match this.next().await {
                Ok(message) => Some((Ok(message), Some(this))),
                Err(StreamEnd::Draining) => Some((Err(status::draining()), None)),
                Err(StreamEnd::Unauthenticated(error)) => Some((Err(status::unauthenticated(error)), None)),
                Err(StreamEnd::TooLarge(too_large)) => Some((Err(status::subscription_too_large(too_large)), None)),
            }
        })
    }

    /// Waits until a message is due and returns it.
    async fn next(&mut self) -> Result<v1::SubscribeInventoryResponse, StreamEnd> {
        loop {
            self.authorization.check()?;
            self.apply_rollout();
            let now = self.start.elapsed();
            self.poll_shadow(now)?;
            let inventories = &self.inventories;
            if let Some(frame) = self.subscription.poll_frame(now, || inventories.states())? {
                let message = frame::encode_frame(&frame);
                self.count_frame(&frame, message_bytes(&message));
                return Ok(message);
            }
            let due = self.authorization.next_check(self.start + self.poll_timeout(now));
            let changed = tokio::select! {
                biased;
                () = self.closing.wait() => return Err(StreamEnd::Draining),
                () = self.inventories.watched.changed() => true,
                () = self.authorization.changed() => false,
                Ok(()) = self.rollout.changed() => {
                    // `apply_rollout` reads the new rollout in the next iteration.
                    self.rollout.mark_changed();
                    false
                }
                () = tokio::time::sleep_until(due) => false,
            };
            if changed {
                self.update_states();
            }
        }
    }

    fn update_states(&mut self) {
        let states = self.inventories.states();
        self.subscription.handle_states(&states);
        if let Some(shadow) = &mut self.shadow {
            shadow.handle_states(&states);
        }
    }

    fn poll_timeout(&self, now: Moment) -> Moment {
        let due = self.subscription.poll_timeout(now);
        self.shadow.as_ref().map_or(due, |shadow| due.min(shadow.poll_timeout(now)))
    }

    /// Applies a changed rollout from the next frame on.
    fn apply_rollout(&mut self) {
        // An error means that the sender was dropped and the rollout cannot change any more.
        if !self.rollout.has_changed().unwrap_or(false) {
            return;
        }
        let StreamMode { sync, shadow } = self.rollout.borrow_and_update().mode_for(self.bucket);
        self.subscription.handle_settings(sync);
        match (shadow, &mut self.shadow) {
            (None, shadow) => *shadow = None,
            (Some(settings), Some(shadow)) => shadow.handle_settings(settings),
            (Some(settings), shadow @ None) => {
                let options = self.inventories.options.clone();
                *shadow = Some(Box::new(Shadow::join(settings, options, &self.inventories.states())));
            }
        }
    }

    fn poll_shadow(&mut self, now: Moment) -> Result<(), SubscriptionTooLarge> {
        let Some(shadow) = &mut self.shadow else { return Ok(()) };
        let inventories = &self.inventories;
        let Some(ShadowFrame { message, verification }) = shadow.poll_message(now, || inventories.states())? else {
            return Ok(());
        };
        if !message.changes.is_empty() {
            self.statistics.add_shadow_computed(message_bytes(&message));
        }
        self.statistics.add_shadow_checks(verification.mismatches, verification.unverified);
        if verification.mismatches > 0 {
            let Verification { mismatches, unverified } = verification;
            let inventories = self.inventories.ids_in(&message).join(", ");
            tracing::error!(
                mismatches,
                unverified,
                inventories,
                "shadow mode: a frame would have given the reader a wrong state"
            );
        }
        Ok(())
    }

    fn count_frame(&mut self, frame: &Frame, bytes: u64) {
        let is_full = |body: &FrameBody| matches!(body, FrameBody::Full { .. });
        if !frame.is_sync() {
            self.statistics.add_quiet(bytes);
        } else {
            let full = frame.changed.iter().any(|(_, part)| is_full(&part.body));
            let kind = if full { SyncKind::Full } else { SyncKind::Delta };
            self.statistics.add_sync(kind, frame.trigger, bytes);
            self.record_sync(frame, kind, bytes);
            if self.shadow.is_some() {
                self.statistics.add_shadow_sent(bytes);
            }
        }
        if frame.trigger == SyncTrigger::Initial {
            self.statistics.add_immediate_full(1, self.initial_bytes());
        }
        self.count_immediate_fulls();
    }

    fn record_sync(&self, frame: &Frame, kind: SyncKind, bytes: u64) {
        let Frame { trigger, stale_since, traced, .. } = *frame;
        let inventories = frame.changed.len() + frame.absent.len();
        self.age.set(self.telemetry.record_frame(&FrameSent {
            kind,
            trigger,
            bytes,
            inventories,
            stale_since,
            traced,
        }));
    }

    /// Returns the size of the first message if every change were an immediate full sync, in bytes.
    fn initial_bytes(&self) -> u64 {
        let mut first = Frame { caught_up: true, ..Frame::default() };
        for (position, state) in self.inventories.states().iter().enumerate() {
            match &state.inventory {
                Some(inventory) => first.changed.push((position, all_slots(inventory))),
                None => first.absent.push(position),
            }
        }
        message_bytes(&frame::encode_frame(&first))
    }

    /// Counts the messages and bytes of immediate full syncs for the revisions since the last call.
    fn count_immediate_fulls(&mut self) {
        let mut passed = self.subscription.take_revisions_passed().peekable();
        if passed.peek().is_none() {
            return;
        }
        let states = self.inventories.states();
        let (mut syncs, mut bytes) = (0, 0);
        for (position, revisions) in passed {
            syncs = syncs.max(revisions);
            let inventory = states.get(position).and_then(|state| state.inventory.as_deref());
            bytes += revisions * inventory.map_or(0, |inventory| full_bytes(position, inventory));
        }
        self.statistics.add_immediate_full(syncs, bytes + syncs * MESSAGE_PREFIX_BYTES as u64);
    }
}

impl Drop for FrameStream {
    fn drop(&mut self) {
        // Immediate full syncs would also have sent correct predictions and pending changes.
        self.update_states();
        self.count_immediate_fulls();
    }
}

fn message_bytes(message: &v1::SubscribeInventoryResponse) -> u64 {
    (message.encoded_len() + MESSAGE_PREFIX_BYTES) as u64
}

/// Returns the size of all slots of an inventory in a message, in bytes.
fn full_bytes(position: usize, inventory: &Inventory) -> u64 {
    let frame = Frame { changed: vec![(position, all_slots(inventory))], ..Frame::default() };
    frame::encode_frame(&frame).encoded_len() as u64
}

fn all_slots(inventory: &Inventory) -> InventoryFrame {
    full_frame(inventory.epoch, &inventory.contents, FullReason::DeltaOff)
}
