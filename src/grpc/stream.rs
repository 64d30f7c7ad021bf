//! The streams of `SubscribeInventory`, which the transport polls. A frame is computed when it is polled, with the
//! current rollout. A slow reader therefore gets its frames later, with fewer bytes in total.
//!
//! A stream is a plain state machine: it holds no future and no timer. Its schedule, the engine and its player's sync
//! limit wake it.

use super::read_authorization::ReadAuthorization;
use super::shadow::{Shadow, ShadowFrame, Verification};
use super::stream_schedule::{ScheduledStream, StreamSchedule};
use super::sync_limiter::{NoPermit, PlayerStream, SyncLimiter};
use crate::domain::{InventoryId, PlayerId};
use crate::engine::{WakeLevel, WatchedInventories};
use crate::identity::AuthError;
use crate::live_rollout::LiveRollout;
use crate::statistics::{StreamStatistics, SyncKind};
use crate::status;
use crate::sync::{
    Bucket, Frame, FrameBody, Moment, PublishedState, Rollout, StreamMode, SubscribeOptions, Subscription,
    SubscriptionTooLarge, SyncTrigger, TraceContext,
};
use crate::telemetry::{FrameSent, FrameTelemetry};
use crate::transport::{DrainSignal, DrainWaiter};
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use crate::wire::{frame_bytes, v1};
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;
use tonic::Status;

/// What all streams of a server share.
pub struct StreamContext {
    pub rollout: LiveRollout,
    pub statistics: Arc<StreamStatistics>,
    pub telemetry: FrameTelemetry,
    pub limiter: SyncLimiter,
    pub schedule: StreamSchedule,
    /// The origin of the times of all streams.
    pub start: Instant,
}

/// The parameters of a new stream.
pub struct StreamParameters {
    pub watched: WatchedInventories,
    pub options: SubscribeOptions,
    pub authorization: ReadAuthorization,
    /// The rollout bucket of the stream's player.
    pub bucket: Bucket,
    /// The player whose sync limit applies to the stream; `None` if it is not limited.
    pub limited_player: Option<PlayerId>,
    pub drain_signal: DrainSignal,
    /// The trace context of the stream's call, if it is traced.
    pub trace: Option<TraceContext>,
}

/// Why a stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
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

impl From<StreamEnd> for Status {
    fn from(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Draining => status::draining(),
            StreamEnd::Unauthenticated(error) => status::unauthenticated(error),
            StreamEnd::TooLarge(too_large) => status::subscription_too_large(too_large),
        }
    }
}

type States = Vec<Arc<PublishedState>>;

/// An open stream. It ends with UNAVAILABLE when the server drains or the connection is old, with UNAUTHENTICATED when
/// the reader's token is no longer valid, and with RESOURCE_EXHAUSTED when its inventories are too large for one
/// stream. Otherwise, it does not end.
pub struct FrameStream {
    context: Arc<StreamContext>,
    watched: WatchedInventories,
    subscription: Subscription,
    authorization: ReadAuthorization,
    bucket: Bucket,
    /// The rollout whose settings the subscription has.
    rollout: Arc<Rollout>,
    /// The stream in the queue of its player.
    limit: Option<Box<PlayerStream>>,
    drain: DrainWaiter,
    schedule: ScheduledStream,
    rare: Option<Box<RareState>>,
    /// Whether the stream was polled before. The first poll only lets the response head be written.
    was_polled: bool,
}

/// State that few streams have; boxed, so that the others are small.
#[derive(Default)]
struct RareState {
    /// The shadow, if the stream is in shadow mode.
    shadow: Option<Shadow>,
    /// The trace context of the stream's call, if it is traced.
    trace: Option<TraceContext>,
}

impl FrameStream {
    /// Opens a stream of the current runtime.
    pub fn open(context: Arc<StreamContext>, parameters: StreamParameters) -> Self {
        let StreamParameters { watched, options, authorization, bucket, limited_player, drain_signal, trace } =
            parameters;
        let rollout = context.rollout.current();
        let StreamMode { sync, shadow } = rollout.mode_for(bucket);
        let shadow = shadow.map(|settings| Shadow::new(settings, options.clone()));
        let has_rare_state = shadow.is_some() || trace.is_some();
        let stream = Self {
            watched,
            subscription: Subscription::new(context.rollout.share_settings(sync), options),
            authorization,
            bucket,
            rollout,
            limit: limited_player.map(|player| Box::new(context.limiter.open(player))),
            drain: DrainWaiter::new(drain_signal),
            schedule: context.schedule.add(),
            rare: has_rare_state.then(|| Box::new(RareState { shadow, trace })),
            was_polled: false,
            context,
        };
        stream.context.statistics.start_stream();
        stream
    }

    /// Returns the next message with its gRPC prefix once it is due. Do not poll again after an error.
    ///
    /// The first poll is always pending, so that the connection writes the response head first. The send buffer of an HTTP/2
    /// connection never shrinks. If a client opens many streams at once, the head and the first frame of each would be in
    /// it together, and it would be twice as large.
    pub fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, StreamEnd>> {
        if !std::mem::replace(&mut self.was_polled, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // `poll_wait` also takes a change, which the next round handles.
        let mut has_changed = false;
        loop {
            self.authorization.check()?;
            self.apply_rollout();
            // From here on, every change is noticed.
            self.watched.set_wake_level(WakeLevel::Any);
            has_changed |= self.watched.poll_changed(context).is_ready();
            let now = self.context.start.elapsed();
            let mut not_before = self.context.start;
            // A stream that must end sends only what is already due: further changes must not keep it open.
            if self.poll_timeout(now) <= now || (has_changed && !self.drain.must_end()) {
                let states = self.states();
                if has_changed {
                    self.handle_states(&states);
                }
                self.poll_shadow(now, &states)?;
                match self.poll_frame(now, &states, context)? {
                    Ok(Some(frame)) => {
                        let bytes = encode(&frame, &states);
                        self.count_frame(&frame, bytes.len() as u64, &states);
                        return Poll::Ready(Ok(bytes));
                    }
                    Ok(None) => {}
                    Err(NoPermit(until)) => not_before = until,
                }
            } else if let Some(limit) = &mut self.limit {
                // A changed rollout may have made the frame due later.
                limit.leave();
            }
            self.drain.set_waker(context.waker());
            if self.drain.must_end() {
                return Poll::Ready(Err(StreamEnd::Draining));
            }
            if self.poll_wait(now, not_before, context).is_pending() {
                return Poll::Pending;
            }
            has_changed = true;
        }
    }

    /// Waits for the next due time, but not before `not_before`, and for changes that can make the stream due earlier.
    fn poll_wait(&mut self, now: Moment, not_before: Instant, context: &mut Context<'_>) -> Poll<()> {
        let due = (self.context.start + self.subscription.poll_timeout(now)).max(not_before);
        let shadow = self.shadow().map(|shadow| self.context.start + shadow.poll_timeout(now));
        let others = [shadow, self.authorization.deadline(), self.drain.deadline()].into_iter().flatten();
        self.schedule.wake_at(others.fold(due, Instant::min), context.waker());
        let level = match self.subscription.waits_for(now) {
            // The shadow has other due times than the stream.
            _ if self.shadow().is_some() => WakeLevel::Any,
            SyncTrigger::None => WakeLevel::Any,
            SyncTrigger::Echo => WakeLevel::Echo,
            SyncTrigger::News => WakeLevel::News,
            SyncTrigger::Correction | SyncTrigger::Initial => WakeLevel::Correction,
        };
        self.watched.set_wake_level(level);
        self.watched.poll_changed(context)
    }

    /// Returns the frame that is due and for which the player has a permit.
    fn poll_frame(
        &mut self,
        now: Moment,
        states: &States,
        context: &Context<'_>,
    ) -> Result<Result<Option<Frame>, NoPermit>, SubscriptionTooLarge> {
        if self.subscription.poll_timeout(now) > now {
            // A change that was due may have become unnecessary while the stream waited for a permit.
            if let Some(limit) = &mut self.limit {
                limit.leave();
            }
            return Ok(Ok(None));
        }
        let Some(limit) = &mut self.limit else { return self.subscription.poll_frame(now, || states).map(Ok) };
        let mut too_large = None;
        let polled = limit.poll_send(self.rollout.syncs_per_second, context.waker(), || {
            self.subscription.poll_frame(now, || states).unwrap_or_else(|error| {
                too_large = Some(error);
                None
            })
        });
        too_large.map_or(Ok(polled), Err)
    }

    fn shadow(&self) -> Option<&Shadow> {
        self.rare.as_ref()?.shadow.as_ref()
    }

    fn shadow_mut(&mut self) -> Option<&mut Shadow> {
        self.rare.as_mut()?.shadow.as_mut()
    }

    /// Returns a consistent snapshot of the newest states, as the reader may see them.
    fn states(&self) -> States {
        self.subscription.access().visible(self.watched.states())
    }

    fn handle_states(&mut self, states: &States) {
        self.subscription.handle_states(states);
        if let Some(shadow) = self.shadow_mut() {
            shadow.handle_states(states);
        }
    }

    fn poll_timeout(&self, now: Moment) -> Moment {
        let due = self.subscription.poll_timeout(now);
        self.shadow().map_or(due, |shadow| due.min(shadow.poll_timeout(now)))
    }

    /// Applies a changed rollout from the next frame on.
    fn apply_rollout(&mut self) {
        let Some(rollout) = self.context.rollout.changed_since(&self.rollout) else { return };
        let StreamMode { sync, shadow } = rollout.mode_for(self.bucket);
        self.rollout = rollout;
        self.subscription.handle_settings(self.context.rollout.share_settings(sync));
        match (shadow, self.shadow_mut()) {
            (None, None) => {}
            (None, Some(_)) => self.rare.get_or_insert_default().shadow = None,
            (Some(settings), Some(shadow)) => shadow.handle_settings(settings),
            (Some(settings), None) => {
                let shadow = Shadow::join(settings, self.subscription.options(), &self.states());
                self.rare.get_or_insert_default().shadow = Some(shadow);
            }
        }
    }

    fn poll_shadow(&mut self, now: Moment, states: &States) -> Result<(), SubscriptionTooLarge> {
        let Some(shadow) = self.shadow_mut() else { return Ok(()) };
        let Some(ShadowFrame { message, verification }) = shadow.poll_message(now, states)? else {
            return Ok(());
        };
        let statistics = &self.context.statistics;
        if !message.changes.is_empty() {
            statistics.add_shadow_computed((message.encoded_len() + MESSAGE_PREFIX_BYTES) as u64);
        }
        statistics.add_shadow_checks(verification.mismatches, verification.unverified);
        if verification.mismatches > 0 {
            let Verification { mismatches, unverified } = verification;
            let inventories = self.ids_in(&message).join(", ");
            tracing::error!(
                mismatches,
                unverified,
                inventories,
                "shadow mode: a frame would have given the reader a wrong state"
            );
        }
        Ok(())
    }

    /// Returns the ids of the inventories in a message.
    fn ids_in(&self, message: &v1::SubscribeInventoryResponse) -> Vec<&str> {
        let marks = message.marks.iter().map(|mark| mark.watch);
        let watches = message.changes.iter().map(|change| change.watch).chain(marks);
        watches.filter_map(|watch| self.watched.ids().get(watch as usize)).map(InventoryId::as_str).collect()
    }

    fn count_frame(&mut self, frame: &Frame, bytes: u64, states: &States) {
        let statistics = &self.context.statistics;
        if !frame.is_sync() {
            statistics.add_quiet(bytes);
        } else {
            let kind = kind_of(frame);
            statistics.add_sync(kind, frame.trigger, bytes);
            self.record_sync(frame, kind, bytes);
            if self.shadow().is_some() {
                statistics.add_shadow_sent(bytes);
            }
        }
        if frame.trigger == SyncTrigger::Initial {
            let full_bytes = states.iter().map(|state| state.full_bytes(frame_bytes::full_body_bytes));
            statistics.add_immediate_full(1, frame_bytes::initial_bytes(full_bytes) as u64);
        }
        self.count_immediate_fulls(states);
    }

    fn record_sync(&self, frame: &Frame, kind: SyncKind, bytes: u64) {
        let Frame { trigger, stale_since, traced, .. } = *frame;
        let inventories = frame.changed.len() + frame.absent.len();
        self.context.telemetry.record_frame(&FrameSent {
            kind,
            trigger,
            bytes,
            inventories,
            stale_since,
            traced,
            call: self.rare.as_ref().and_then(|rare| rare.trace),
        });
    }

    /// Counts the messages and bytes of immediate full syncs for the revisions since the last call.
    fn count_immediate_fulls(&mut self, states: &States) {
        let (mut syncs, mut bytes) = (0, 0);
        for (position, revisions) in self.subscription.take_revisions_passed() {
            syncs = syncs.max(revisions);
            let full_bytes = states.get(position).and_then(|state| state.full_bytes(frame_bytes::full_body_bytes));
            bytes += revisions * full_bytes.map_or(0, |bytes| frame_bytes::change_bytes(position, bytes)) as u64;
        }
        if syncs > 0 {
            self.context.statistics.add_immediate_full(syncs, bytes + syncs * MESSAGE_PREFIX_BYTES as u64);
        }
    }
}

impl Drop for FrameStream {
    fn drop(&mut self) {
        self.context.statistics.end_stream();
        // Immediate full syncs would also have sent correct predictions and pending changes.
        let states = self.states();
        self.handle_states(&states);
        self.count_immediate_fulls(&states);
    }
}

fn kind_of(frame: &Frame) -> SyncKind {
    let is_full = |body: &FrameBody| matches!(body, FrameBody::Full { .. });
    if frame.changed.iter().any(|(_, part)| is_full(&part.body)) { SyncKind::Full } else { SyncKind::Delta }
}

/// Encodes a frame that was computed from `states`. Readers at the same step share the encoding.
fn encode(frame: &Frame, states: &States) -> Bytes {
    if let ([(0, part)], true, [state, ..]) = (frame.changed.as_slice(), frame.is_only_changes(), states.as_slice()) {
        let shared = state.shared_encoding(part.body, || Arc::from(&*frame_bytes::encode(frame)));
        return shared.map_or_else(|| frame_bytes::encode(frame), Bytes::from_owner);
    }
    frame_bytes::encode(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_stream_is_small() {
        let bytes = size_of::<FrameStream>();
        assert!(bytes <= 232, "{bytes} bytes: with its permit it fits into 256, a size class of the allocator");
    }
}
