//! State that a session shares with its two tasks: the reader of the stream and the sender of calls.

use super::Rpc;
use super::outbox::QueuedMutation;
use super::session::{SessionCounts, SessionEvent};
use super::stream::ReconnectingStream;
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
const REPAIR_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct SharedSession {
    pub rpc: Rpc,
    /// Id of the session on the stream and on calls.
    pub session: String,
    state: Mutex<SessionState>,
    changed: Notify,
    reopen: Notify,
}

pub(super) struct SessionState {
    pub mirror: Mirror,
    events: VecDeque<SessionEvent>,
    dropped: u64,
    /// Number of calls whose outcome is not known.
    pub unresolved: usize,
    pub counts: SessionCounts,
    connected: bool,
    /// The stream assumes predictions that the mirror has dropped, so its messages are ignored until it is opened
    /// again.
    reopening: bool,
    pub caught_up: bool,
    pub ended: bool,
}

/// Reads the stream until it fails with an error that no retry can fix, or the session is dropped.
pub(super) async fn read(shared: Arc<SharedSession>, mut stream: ReconnectingStream) {
    loop {
        let message = tokio::select! {
            biased;
            () = shared.reopen.notified() => {
                stream.reopen_now();
                Ok(None)
            }
            message = stream.next(|| shared.lock().resume_cursors()) => message,
        };
        match message {
            Ok(Some(message)) => shared.handle_message(&message),
            Ok(None) => shared.handle_lost(),
            Err(status) => return shared.handle_end(status),
        }
    }
}

impl SharedSession {
    pub fn new(rpc: Rpc, session: String, mirror: Mirror) -> Self {
        let state = SessionState {
            mirror,
            events: VecDeque::new(),
            dropped: 0,
            unresolved: 0,
            counts: SessionCounts::default(),
            connected: false,
            reopening: false,
            caught_up: false,
            ended: false,
        };
        Self { rpc, session, state: Mutex::new(state), changed: Notify::new(), reopen: Notify::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, SessionState> {
        // The mirror never exposes partial states, so a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the state after each event until `check` returns a value.
    pub async fn wait_for<T>(&self, mut check: impl FnMut(&mut SessionState) -> Option<T>) -> T {
        loop {
            // Register before the check, so that no later event is dropped.
            let changed = self.changed.notified();
            let found = check(&mut self.lock());
            match found {
                Some(found) => return found,
                None => changed.await,
            }
        }
    }

    pub fn handle_reply(self: &Arc<Self>, call: &QueuedMutation, reply: v1::TransactResponse) {
        let receipt = reply.receipt.unwrap_or_default();
        let versions: Vec<_> = receipt.inventories.iter().filter_map(frame::decode_version).collect();
        let mut state = self.lock();
        let update = tag(call).map(|tag| state.mirror.handle_reply(tag, &versions)).unwrap_or_default();
        let as_predicted = receipt.prediction_confirmed;
        self.end(
            &mut state,
            &update,
            SessionEvent::Confirmed { key: call.key().into(), outcomes: reply.outcomes, as_predicted },
        );
    }

    pub fn handle_error(self: &Arc<Self>, call: &QueuedMutation, status: Status) {
        let expired = status
            .get_details_error_info()
            .is_some_and(|info| info.reason == ErrorReason::IdempotencyKeyExpired.name());
        // These codes judge the caller and do not reveal the outcome of the key.
        let outcome_not_revealed =
            matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented);
        if expired || call.uncertain && outcome_not_revealed {
            return self.handle_unknown(call, status);
        }
        let mut state = self.lock();
        let update = tag(call).map(|tag| state.mirror.handle_failure(tag)).unwrap_or_default();
        self.end(&mut state, &update, SessionEvent::Failed { key: call.key().into(), status });
    }

    pub fn handle_unknown(self: &Arc<Self>, call: &QueuedMutation, status: Status) {
        let mut state = self.lock();
        let update = tag(call).map(|tag| state.mirror.handle_failure(tag)).unwrap_or_default();
        // If the call was applied, the stream assumes the prediction that was just dropped. A new stream starts from
        // the confirmed state.
        state.reopening = true;
        self.reopen.notify_one();
        self.end(&mut state, &update, SessionEvent::OutcomeUnknown { key: call.key().into(), status });
    }

    /// Queues the events of a mirror update, and starts a repair for each desync that the mirror found.
    pub fn push_update(self: &Arc<Self>, state: &mut SessionState, update: &MirrorUpdate) {
        update.corrected.iter().for_each(|index| state.push(SessionEvent::Corrected { index: *index }));
        update.changed.iter().for_each(|index| state.push(SessionEvent::Changed { index: *index }));
        for index in update.desyncs.iter().copied() {
            state.push(SessionEvent::Desync { index });
            tracing::warn!(
                session = self.session,
                index,
                "the confirmed state differs from the server; reporting a desync"
            );
            tokio::spawn(self.clone().repair(index));
        }
        self.changed.notify_waiters();
    }

    fn end(self: &Arc<Self>, state: &mut SessionState, update: &MirrorUpdate, event: SessionEvent) {
        state.unresolved -= 1;
        state.push(event);
        self.push_update(state, update);
    }

    fn handle_message(self: &Arc<Self>, message: &v1::SubscribeInventoryResponse) {
        let mut state = self.lock();
        state.counts.bytes += (message.encoded_len() + MESSAGE_PREFIX_BYTES) as u64;
        if state.reopening {
            return;
        }
        if !std::mem::replace(&mut state.connected, true) {
            state.push(SessionEvent::Connected);
        }
        let mirror = &state.mirror;
        let decoded = frame::decode_frame(message, &mirror.ids(), |index| mirror.last_sent(index));
        state.counts.handle(&decoded.frame);
        let mut update = state.mirror.handle_frame(&decoded.frame);
        for index in decoded.malformed {
            update.desyncs.extend(state.mirror.handle_desync(index).desyncs);
        }
        message.notices.iter().for_each(|notice| state.push(SessionEvent::Notice(notice.clone())));
        state.caught_up |= message.caught_up;
        self.push_update(&mut state, &update);
    }

    fn handle_lost(&self) {
        let mut state = self.lock();
        state.counts.reconnects += 1;
        if std::mem::replace(&mut state.connected, false) {
            state.push(SessionEvent::Disconnected);
        }
        self.changed.notify_waiters();
    }

    fn handle_end(&self, status: Status) {
        let mut state = self.lock();
        state.push(SessionEvent::Ended { status });
        state.ended = true;
        self.changed.notify_waiters();
    }

    /// Reports a desync, so that the server sends a full state. If the report fails or no full state arrives in time,
    /// opens the stream again.
    async fn repair(self: Arc<Self>, index: usize) {
        let Some(request) = self.desync_report(index) else { return };
        let mut rpc = self.rpc.clone();
        let reported = tokio::time::timeout(REPAIR_TIMEOUT, rpc.report_desync(request)).await;
        if matches!(reported, Ok(Ok(_))) {
            let repaired = self.wait_for(|state| (!state.mirror.is_desynced(index)).then_some(()));
            if tokio::time::timeout(REPAIR_TIMEOUT, repaired).await.is_ok() {
                return;
            }
        }
        self.lock().reopening = true;
        self.reopen.notify_one();
    }

    fn desync_report(&self, index: usize) -> Option<v1::ReportDesyncRequest> {
        let state = self.lock();
        let have = state.mirror.confirmed(index);
        Some(v1::ReportDesyncRequest {
            session: self.session.clone(),
            have: Some(v1::InventoryVersion {
                inventory_id: state.mirror.ids().get(index)?.to_string(),
                epoch: have.map(|have| have.epoch).map_or(0, Epoch::get),
                revision: have.map_or(Revision(0), |have| have.contents.revision()).0,
                digest: have.map(|have| reply::digest(have.contents.digest())),
            }),
        })
    }
}

/// Returns the key tag of a call, or `None` if the call predicted nothing and the mirror does not track it.
fn tag(call: &QueuedMutation) -> Option<KeyTag> {
    let context = call.request.context.as_ref().filter(|context| !context.predicted.is_empty())?;
    IdempotencyKey::new(&context.idempotency_key).ok().map(|key| KeyTag::of(&key))
}

impl SessionState {
    pub fn next_event(&mut self) -> Option<SessionEvent> {
        match std::mem::take(&mut self.dropped) {
            0 => self.events.pop_front(),
            events => Some(SessionEvent::Dropped { events }),
        }
    }

    fn push(&mut self, event: SessionEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.dropped += 1;
        }
        self.events.push_back(event);
    }

    fn resume_cursors(&mut self) -> Vec<Option<crate::sync::Cursor>> {
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
