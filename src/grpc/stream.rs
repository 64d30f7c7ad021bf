//! The body of `SubscribeInventory`: pulled by the transport, never pushed. A frame is computed when it is polled, so a
//! slow reader just gets it later and smaller. How, the rollout says at that very moment.

use super::codec::MESSAGE_PREFIX_BYTES;
use super::convert::frame;
use super::permit::{Denied, Permit};
use super::shadow::{Computed, Shadow};
use super::{status, v1};
use crate::domain::{Inventory, SessionId};
use crate::engine::Watched;
use crate::middleware::FrameAge;
use crate::statistics::{FrameKind, OpenStream, StreamStatistics};
use crate::sync::frame::full_frame;
use crate::sync::{Bucket, Frame, FrameBody, FullReason, Moment, Rollout, StreamMode, Subscription, Waiting, Wishes};
use crate::telemetry::{FrameSent, FrameTelemetry};
use crate::transport::Closing;
use futures_util::stream::{self, Stream};
use prost::Message;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// What a stream is opened with.
pub struct Opening {
    pub watched: Watched,
    pub wishes: Wishes,
    pub permit: Permit,
    /// Where its player is among all.
    pub bucket: Bucket,
    pub rollout: watch::Receiver<Arc<Rollout>>,
    pub statistics: Arc<StreamStatistics>,
    pub closing: Closing,
    pub telemetry: FrameTelemetry,
    /// Told how old what a frame tells is.
    pub age: FrameAge,
    /// The moment that all streams count from.
    pub start: Instant,
}

/// Why a stream ends.
enum End {
    Draining,
    Denied(Denied),
}

impl From<Denied> for End {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

pub struct FrameStream {
    watched: Watched,
    subscription: Subscription,
    /// The new way, while the old way is sent.
    shadow: Option<Box<Shadow>>,
    session: Option<SessionId>,
    notices: bool,
    permit: Permit,
    bucket: Bucket,
    rollout: watch::Receiver<Arc<Rollout>>,
    statistics: Arc<StreamStatistics>,
    closing: Closing,
    telemetry: FrameTelemetry,
    age: FrameAge,
    start: Instant,
    _open: OpenStream,
}

impl FrameStream {
    pub fn open(opening: Opening) -> Self {
        let Opening { watched, wishes, permit, bucket, mut rollout, statistics, telemetry, age, closing, start } =
            opening;
        let StreamMode { sync, shadow } = rollout.borrow_and_update().settings_for(bucket);
        let (session, notices) = (wishes.session.clone(), wishes.notices);
        let shadow = shadow.map(|settings| Box::new(Shadow::new(settings, wishes.clone())));
        let subscription = Subscription::new(sync, wishes);
        let _open = statistics.open();
        Self {
            watched,
            subscription,
            shadow,
            session,
            notices,
            permit,
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

    /// Ends with UNAVAILABLE when the service does, and with UNAUTHENTICATED or PERMISSION_DENIED when its reader may read no
    /// longer; never otherwise.
    pub fn into_stream(self) -> impl Stream<Item = Result<v1::SubscribeInventoryResponse, Status>> + Send + 'static {
        stream::unfold(Some(self), async |state| {
            let mut this = state?;
            match this.next().await {
                Ok(message) => Some((Ok(message), Some(this))),
                Err(End::Draining) => Some((Err(status::draining()), None)),
                Err(End::Denied(denied)) => Some((Err(status::denied(denied)), None)),
            }
        })
    }

    /// The next message, as soon as one is due.
    async fn next(&mut self) -> Result<v1::SubscribeInventoryResponse, End> {
        loop {
            self.permit.check()?;
            self.follow_rollout();
            let now = self.start.elapsed();
            self.poll_shadow(now);
            if let Some(frame) = self.poll_frame(now)? {
                let message = frame::message(&frame);
                self.count(&frame, bytes(&message));
                return Ok(message);
            }
            let due = self.permit.look_by(self.start + self.poll_timeout(now));
            let changed = tokio::select! {
                biased;
                () = self.closing.wait() => return Err(End::Draining),
                () = self.watched.changed() => true,
                () = self.permit.changed() => false,
                Ok(()) = self.rollout.changed() => {
                    // It is looked at above.
                    self.rollout.mark_changed();
                    false
                }
                () = tokio::time::sleep_until(due) => false,
            };
            if changed {
                self.handle_states()?;
            }
        }
    }

    /// The frame that is due, unless something in it is not its reader's any more.
    fn poll_frame(&mut self, now: Moment) -> Result<Option<Frame>, Denied> {
        let Self { watched, permit, subscription, .. } = self;
        let mut seen = Ok(());
        let mut frame = subscription.poll_frame(now, || {
            let states = watched.states();
            seen = seen.and(permit.see(&states));
            states
        });
        seen?;
        if let Some(frame) = &mut frame {
            permit.keep_own(frame);
        }
        Ok(frame)
    }

    fn handle_states(&mut self) -> Result<(), Denied> {
        let states = self.watched.states();
        self.permit.see(&states)?;
        self.subscription.handle_states(&states);
        if let Some(shadow) = &mut self.shadow {
            shadow.handle_states(&states);
        }
        Ok(())
    }

    fn poll_timeout(&self, now: Moment) -> Moment {
        let due = self.subscription.poll_timeout(now);
        self.shadow.as_ref().map_or(due, |shadow| due.min(shadow.poll_timeout(now)))
    }

    /// What has changed holds from the next frame on.
    fn follow_rollout(&mut self) {
        // An error would mean that nobody can change it any more.
        if !self.rollout.has_changed().unwrap_or(false) {
            return;
        }
        let StreamMode { sync, shadow } = self.rollout.borrow_and_update().settings_for(self.bucket);
        self.subscription.handle_settings(sync);
        match (shadow, &mut self.shadow) {
            (None, shadow) => *shadow = None,
            (Some(settings), Some(shadow)) => shadow.handle_settings(settings),
            (Some(settings), none @ None) => {
                let (session, notices) = (self.session.clone(), self.notices);
                let wishes = Wishes { session, notices, ..Wishes::default() };
                *none = Some(Box::new(Shadow::join(settings, wishes, &self.watched.states())));
            }
        }
    }

    fn poll_shadow(&mut self, now: Moment) {
        let Some(shadow) = &mut self.shadow else { return };
        let Some(Computed { message, checked }) = shadow.poll_message(now, || self.watched.states()) else { return };
        if !message.changes.is_empty() {
            self.statistics.add_shadow_computed(bytes(&message));
        }
        self.statistics.add_shadow_checks(checked.mismatches, checked.unverified);
        if checked.mismatches > 0 {
            tracing::error!(
                ?checked,
                ?message,
                "the new way would have left a reader with something else than there is"
            );
        }
    }

    fn count(&mut self, frame: &Frame, bytes: u64) {
        let is_full = |body: &FrameBody| matches!(body, FrameBody::Full { .. });
        if frame.changed.is_empty() && frame.deleted.is_empty() {
            self.statistics.add_quiet(bytes);
        } else {
            let full = frame.changed.iter().any(|(_, part)| is_full(&part.body));
            let kind = if full { FrameKind::Full } else { FrameKind::Delta };
            self.statistics.add_sync(kind, frame.trigger, bytes);
            self.tell(frame, kind, bytes);
            if self.shadow.is_some() {
                self.statistics.add_shadow_sent(bytes);
            }
        }
        if frame.trigger == Waiting::Initial {
            let states = self.watched.states();
            let present = states.iter().enumerate().filter_map(|(at, state)| Some((at, state.inventory.as_deref()?)));
            let parts: u64 = present.map(|(at, inventory)| full_bytes(at, inventory)).sum();
            let mark = v1::SubscribeInventoryResponse { caught_up: true, ..Default::default() };
            self.statistics.add_immediate_full(1, parts + self::bytes(&mark));
        }
        self.count_passed();
    }

    fn tell(&self, frame: &Frame, kind: FrameKind, bytes: u64) {
        let Frame { trigger, since, caused, .. } = *frame;
        let inventories = frame.changed.len() + frame.deleted.len();
        self.age.set(self.telemetry.sent(&FrameSent { kind, trigger, bytes, inventories, since, caused }));
    }

    /// What immediate full syncs would have sent for the revisions since the last time.
    fn count_passed(&mut self) {
        let mut passed = self.subscription.take_passed().peekable();
        if passed.peek().is_none() {
            return;
        }
        let states = self.watched.states();
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
        // What was predicted rightly, or waited, would have been sent; not what its reader may not read.
        if self.handle_states().is_ok() {
            self.count_passed();
        }
    }
}

fn bytes(message: &v1::SubscribeInventoryResponse) -> u64 {
    (message.encoded_len() + MESSAGE_PREFIX_BYTES) as u64
}

/// What all slots of an inventory take in a message.
fn full_bytes(position: usize, inventory: &Inventory) -> u64 {
    let part = full_frame(inventory.epoch, &inventory.contents, FullReason::DeltaOff);
    let frame = Frame { changed: vec![(position, part)], ..Frame::default() };
    frame::message(&frame).encoded_len() as u64
}
