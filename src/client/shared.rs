//! State that a session shares with its two tasks: the reader of the stream and the sender of calls.

use super::Rpc;
use super::outbox::Call;
use super::session::{Event, SessionCounts};
use super::stream::Stream;
use crate::domain::{Epoch, IdempotencyKey, KeyTag, Revision};
use crate::sync::{FrameBody, FullReason, Mirror, MirrorUpdate};
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use crate::wire::{ErrorReason, v1};
use crate::wire::{frame, reply};
use prost::Message;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Maximum number of queued events; beyond that, the oldest are dropped and counted.
const EVENTS_MAX: usize = 1_024;
/// How long to wait for the reply to a desync report, and then for the full frame, before the stream is opened again.
const HEAL_LIMIT: Duration = Duration::from_secs(3);

pub(super) struct Shared {
    pub rpc: Rpc,
    /// Id of the session on the stream and on calls.
    pub session: String,
    state: Mutex<State>,
    happened: Notify,
    reopen: Notify,
}

pub(super) struct State {
    pub mirror: Mirror,
    events: VecDeque<Event>,
    missed: u64,
    /// Number of calls whose outcome is not known.
    pub open: usize,
    pub counts: SessionCounts,
    connected: bool,
    /// The stream assumes predictions that the mirror has dropped, so its messages are ignored until it is opened
    /// again.
    reopening: bool,
    pub caught_up: bool,
    pub ended: bool,
}

/// Reads the stream until it fails with an error that no retry can fix, or the session is dropped.
pub(super) async fn read(shared: Arc<Shared>, mut stream: Stream) {
    loop {
        let message = tokio::select! {
            biased;
            () = shared.reopen.notified() => {
                stream.close();
                Ok(None)
            }
            message = stream.next(|| shared.lock().connecting()) => message,
        };
        match message {
            Ok(Some(message)) => shared.handle_message(&message),
            Ok(None) => shared.handle_lost(),
            Err(status) => return shared.handle_end(status),
        }
    }
}

impl Shared {
    pub fn new(rpc: Rpc, session: String, mirror: Mirror) -> Self {
        let state = State {
            mirror,
            events: VecDeque::new(),
            missed: 0,
            open: 0,
            counts: SessionCounts::default(),
            connected: false,
            reopening: false,
            caught_up: false,
            ended: false,
        };
        Self { rpc, session, state: Mutex::new(state), happened: Notify::new(), reopen: Notify::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // The mirror never exposes partial states, so a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the state after each event until `look` returns a value.
    pub async fn wait_for<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            // Register before the check, so that no later event is missed.
            let happened = self.happened.notified();
            let found = look(&mut self.lock());
            match found {
                Some(found) => return found,
                None => happened.await,
            }
        }
    }

    pub fn handle_reply(self: &Arc<Self>, call: &Call, answer: v1::TransactResponse) {
        let receipt = answer.receipt.unwrap_or_default();
        let versions: Vec<_> = receipt.inventories.iter().filter_map(frame::read_version).collect();
        let mut state = self.lock();
        let shown = tag(call).map(|tag| state.mirror.handle_reply(tag, &versions)).unwrap_or_default();
        let as_predicted = receipt.prediction_confirmed;
        self.end(
            &mut state,
            &shown,
            Event::Confirmed { key: call.key().into(), outcomes: answer.outcomes, as_predicted },
        );
    }

    pub fn handle_refusal(self: &Arc<Self>, call: &Call, status: Status) {
        let expired = status
            .get_details_error_info()
            .is_some_and(|info| info.reason == ErrorReason::IdempotencyKeyExpired.name());
        // These codes judge the caller and do not reveal the outcome of the key.
        let not_judged = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented);
        if expired || call.uncertain && not_judged {
            return self.handle_unknown(call, status);
        }
        let mut state = self.lock();
        let shown = tag(call).map(|tag| state.mirror.handle_failure(tag)).unwrap_or_default();
        self.end(&mut state, &shown, Event::Refused { key: call.key().into(), status });
    }

    pub fn handle_unknown(self: &Arc<Self>, call: &Call, status: Status) {
        let mut state = self.lock();
        let shown = tag(call).map(|tag| state.mirror.handle_failure(tag)).unwrap_or_default();
        // If the call was applied, the stream assumes the prediction that was just dropped. A new stream starts from
        // the confirmed state.
        state.reopening = true;
        self.reopen.notify_one();
        self.end(&mut state, &shown, Event::Unknown { key: call.key().into(), status });
    }

    /// Queues the events of a mirror update, and starts a repair for each desync that the mirror found.
    pub fn tell(self: &Arc<Self>, state: &mut State, shown: &MirrorUpdate) {
        shown.corrected.iter().for_each(|position| state.push(Event::Corrected { position: *position }));
        shown.changed.iter().for_each(|position| state.push(Event::Changed { position: *position }));
        for position in shown.desyncs.iter().copied() {
            state.push(Event::Desync { position });
            tracing::warn!(session = self.session, position, "what was confirmed is wrong; it is reported");
            tokio::spawn(self.clone().heal(position));
        }
        self.happened.notify_waiters();
    }

    fn end(self: &Arc<Self>, state: &mut State, shown: &MirrorUpdate, event: Event) {
        state.open -= 1;
        state.push(event);
        self.tell(state, shown);
    }

    fn handle_message(self: &Arc<Self>, message: &v1::SubscribeInventoryResponse) {
        let mut state = self.lock();
        state.counts.bytes += (message.encoded_len() + MESSAGE_PREFIX_BYTES) as u64;
        if state.reopening {
            return;
        }
        if !std::mem::replace(&mut state.connected, true) {
            state.push(Event::Connected);
        }
        let mirror = &state.mirror;
        let read = frame::read(message, &mirror.ids(), |position| mirror.last_sent(position));
        state.counts.handle(&read.frame);
        let mut shown = state.mirror.handle_frame(&read.frame);
        for position in read.unreadable {
            shown.desyncs.extend(state.mirror.handle_desync(position).desyncs);
        }
        message.notices.iter().for_each(|notice| state.push(Event::Notice(notice.clone())));
        state.caught_up |= message.caught_up;
        self.tell(&mut state, &shown);
    }

    fn handle_lost(&self) {
        let mut state = self.lock();
        state.counts.reconnects += 1;
        if std::mem::replace(&mut state.connected, false) {
            state.push(Event::Disconnected);
        }
        self.happened.notify_waiters();
    }

    fn handle_end(&self, status: Status) {
        let mut state = self.lock();
        state.push(Event::Ended { status });
        state.ended = true;
        self.happened.notify_waiters();
    }

    /// Reports a desync, so that the service sends a full state. If the report fails or no full state arrives in time,
    /// opens the stream again.
    async fn heal(self: Arc<Self>, position: usize) {
        let Some(request) = self.report(position) else { return };
        let mut rpc = self.rpc.clone();
        let reported = tokio::time::timeout(HEAL_LIMIT, rpc.report_desync(request)).await;
        if matches!(reported, Ok(Ok(_))) {
            let healed = self.wait_for(|state| (!state.mirror.is_desynced(position)).then_some(()));
            if tokio::time::timeout(HEAL_LIMIT, healed).await.is_ok() {
                return;
            }
        }
        self.lock().reopening = true;
        self.reopen.notify_one();
    }

    fn report(&self, position: usize) -> Option<v1::ReportDesyncRequest> {
        let state = self.lock();
        let have = state.mirror.confirmed(position);
        Some(v1::ReportDesyncRequest {
            session: self.session.clone(),
            have: Some(v1::InventoryVersion {
                inventory_id: state.mirror.ids().get(position)?.to_string(),
                epoch: have.map(|have| have.epoch).map_or(0, Epoch::get),
                revision: have.map_or(Revision(0), |have| have.contents.revision()).0,
                digest: have.map(|have| reply::digest(have.contents.digest())),
            }),
        })
    }
}

/// Returns the key tag of a call, or `None` if the call predicted nothing and the mirror does not track it.
fn tag(call: &Call) -> Option<KeyTag> {
    let context = call.request.context.as_ref().filter(|context| !context.predicted.is_empty())?;
    IdempotencyKey::new(&context.idempotency_key).ok().map(|key| KeyTag::of(&key))
}

impl State {
    pub fn next_event(&mut self) -> Option<Event> {
        match std::mem::take(&mut self.missed) {
            0 => self.events.pop_front(),
            events => Some(Event::Missed { events }),
        }
    }

    fn push(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.missed += 1;
        }
        self.events.push_back(event);
    }

    fn connecting(&mut self) -> Vec<Option<crate::sync::Cursor>> {
        self.reopening = false;
        self.mirror.handle_connecting()
    }
}

impl SessionCounts {
    fn handle(&mut self, frame: &crate::sync::Frame) {
        self.syncs += u64::from(frame.is_sync());
        for (_, part) in &frame.changed {
            match part.body {
                FrameBody::Full { reason, .. } => {
                    self.fulls += 1;
                    self.corrections += u64::from(reason == FullReason::Correction);
                }
                FrameBody::Delta { last_sent, base, .. } => {
                    self.deltas += 1;
                    self.skipped += base.0 - last_sent.0;
                }
            }
        }
    }
}
