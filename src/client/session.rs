//! A session that applies its own changes immediately: the public interface of [`crate::sync::Mirror`], with a stream
//! and calls.

use super::outbox::{self, QueuedMutation};
use super::session_state::{self, SessionState, SharedSession};
use super::stream::ReconnectingStream;
use super::{Rpc, new_mutation_context};
use crate::domain::{Catalog, Contents, InventoryId, KeyTag, Rejection};
use crate::sync::mirror::PENDING_MAX;
use crate::sync::{Mirror, PredictError, Prediction};
use crate::wire::v1;
use crate::wire::v1::operation::Operation;
use crate::wire::{FieldViolation, reply, request};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;
use uuid::Uuid;

/// Inventories that a session follows, and how it makes calls.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The inventories, 1 to 64, without duplicates; the session's methods refer to them by index. An inventory that
    /// does not exist or may not be read is absent until that changes.
    pub ids: Vec<String>,
    /// Id of the session on its stream and its calls, 1 to 128 bytes. Two sessions must not use the same id at the same
    /// time.
    pub session: String,
    /// Whether to receive notices: the kind, caller and reason of each change.
    pub notices: bool,
    /// Maximum number of calls in flight, at least 1. With 1, the server sees calls in the order in which they were
    /// applied, at most one per round trip. With more, concurrent calls may be reordered and their predictions may
    /// fail; that costs a full frame, never an item.
    pub in_flight_max: usize,
    /// Timeout of one attempt of a call.
    pub attempt_timeout: Duration,
    /// How long to retry a call with the same key before its outcome is reported as unknown. Must be less than the time
    /// for which the server remembers keys.
    pub retry_timeout: Duration,
}

impl SessionOptions {
    /// Creates the options of a new session over these inventories: one call in flight, 5 s per attempt, retries for 10
    /// minutes.
    pub fn new(ids: Vec<String>) -> Self {
        let (session, notices) = (Uuid::now_v7().to_string(), false);
        let (attempt_timeout, retry_timeout) = (Duration::from_secs(5), Duration::from_secs(600));
        Self { ids, session, notices, in_flight_max: 1, attempt_timeout, retry_timeout }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("invalid mutation: {0}")]
    Invalid(FieldViolation),
    /// The rules reject the mutation in the current view; it was not sent.
    #[error("rejected: {0}")]
    Rejected(Rejection),
    #[error("{PENDING_MAX} mutations are pending, which is the maximum; wait until some are settled")]
    TooManyPending,
    #[error("the session has ended; its last event has the reason")]
    Ended,
}

/// A mutation that was sent and whose outcome is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingMutation {
    /// Idempotency key of the mutation; events refer to it.
    pub key: String,
    /// Whether the view already contains the change. If not, the mutation creates or deletes an inventory or touches
    /// one that this session does not follow; a frame from the server will contain the change.
    pub predicted: bool,
}

/// An event of a session. Inventories are identified by their index in [`SessionOptions::ids`].
#[derive(Debug, Clone)]
pub enum SessionEvent {
    /// The stream is open; reported again after each [`SessionEvent::Disconnected`].
    Connected,
    /// The stream was lost and is being opened again. Changes can be applied in the meantime.
    Disconnected,
    /// The view has changed for another reason than an applied mutation: a change by others, or a correction.
    Changed {
        index: usize,
    },
    /// The mutation is applied and durable. `outcomes` has the result of each operation as the server reports it.
    Confirmed {
        key: String,
        outcomes: Vec<v1::OperationOutcome>,
        as_predicted: bool,
    },
    /// The mutation was not applied: the rules rejected it, or the call failed permanently. The view no longer contains
    /// it.
    Failed {
        key: String,
        status: Status,
    },
    /// The outcome is unknown: retries took too long, the key has expired, or the caller lost its authorization after
    /// an attempt. The mutation may or may not have been applied. The view falls back to the confirmed state.
    OutcomeUnknown {
        key: String,
        status: Status,
    },
    /// A prediction was wrong and was replaced by the state of the server. Occasional corrections are normal.
    Corrected {
        index: usize,
    },
    /// A confirmed state was wrong, which indicates a bug. The session reports it to the server and repairs the state.
    Desync {
        index: usize,
    },
    Notice(v1::Notice),
    /// This many events before the next one were dropped because they were not read in time.
    Dropped {
        events: u64,
    },
    /// The stream cannot be opened or cannot continue (not allowed, too many slots together). This is the last event.
    Ended {
        status: Status,
    },
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Number of frames with changes, including the initial frames.
    pub syncs: u64,
    /// Size of all received messages in bytes, including the 5-byte prefix of each.
    pub bytes: u64,
    pub fulls: u64,
    /// Number of full frames that corrected a prediction; included in `fulls`.
    pub corrections: u64,
    pub deltas: u64,
    /// Number of revisions that the server did not send because they had been predicted, as derived from later frames.
    pub skipped: u64,
    pub desyncs: u64,
    pub reconnects: u64,
}

/// Inventories that the session follows and changes with immediate effect.
///
/// [`Self::apply`] applies a change to [`Self::view`] before it returns and makes the call in the background. The
/// session retries a call whose reply was lost with the same key until the outcome is known, and then reports
/// [`SessionEvent::Confirmed`] or [`SessionEvent::Failed`]; after a failure the view no longer contains the change. If
/// the server reaches another state than predicted, it sends that state and the view follows. [`Self::next_event`]
/// reports all events; reading them is optional.
///
/// Mutations are sent in the order in which they were applied, with at most [`SessionOptions::in_flight_max`] in
/// flight. Dropping the session discards mutations that were not sent yet; wait for [`Self::settled`] first.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use slotcast::client::{Client, SessionOptions};
/// use slotcast::wire::v1::{DropItem, SlotQuantity, operation::Operation};
///
/// let client = Client::new("http://127.0.0.1:7400", "lobby-server")?;
/// let session = client.session(SessionOptions::new(vec!["steve".into()]), client.catalog().await?)?;
/// session.caught_up().await?;
/// let one = SlotQuantity { slot: 0, count: Some(1) };
/// session.apply(Operation::Drop(DropItem { inventory_id: "steve".into(), from: Some(one) }))?;
/// println!("{:?}", session.view(0));
/// # Ok(())
/// # }
/// ```
pub struct Session {
    shared: Arc<SharedSession>,
    outbox: mpsc::Sender<QueuedMutation>,
    catalog: Arc<Catalog>,
    _tasks: JoinSet<()>,
}

impl Session {
    pub(super) fn start(rpc: Rpc, options: SessionOptions, catalog: Arc<Catalog>) -> Result<Self, SessionError> {
        let id = |id: &String| request::inventory_id("ids", id);
        let ids: Result<Vec<InventoryId>, FieldViolation> = options.ids.iter().map(id).collect();
        request::session("session", &options.session).map_err(SessionError::Invalid)?;
        let mirror = Mirror::new(ids.map_err(SessionError::Invalid)?, catalog.clone());
        let shared = Arc::new(SharedSession::new(rpc.clone(), options.session.clone(), mirror));
        let stream = ReconnectingStream::new(rpc, options.ids.clone(), options.session.clone(), options.notices);
        // At most `PENDING_MAX` calls are open, so the queue always has room.
        let (outbox, queue) = mpsc::channel(PENDING_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(session_state::read(shared.clone(), stream));
        tasks.spawn(outbox::run(shared.clone(), queue, options));
        Ok(Self { shared, outbox, catalog, _tasks: tasks })
    }

    /// Applies one operation immediately.
    pub fn apply(&self, operation: Operation) -> Result<PendingMutation, SessionError> {
        self.transact(vec![operation], "")
    }

    /// Applies 1 to 128 operations immediately and atomically. `reason`, at most 256 bytes, appears in logs and
    /// notices.
    pub fn transact(&self, operations: Vec<Operation>, reason: &str) -> Result<PendingMutation, SessionError> {
        let message = |operation| v1::Operation { operation: Some(operation) };
        let operations: Vec<v1::Operation> = operations.into_iter().map(message).collect();
        let mut context = v1::MutationContext { reason: reason.to_owned(), ..new_mutation_context() };
        let mutation = request::mutation_reason(&context).and_then(|()| {
            let key = request::idempotency_key(&context)?;
            let single = operations.len() == 1;
            let named = request::mutation(&context, &operations, single)?;
            let unknown = |unknown| request::unknown_name(&request::name_paths(&operations), single, &unknown);
            Ok((KeyTag::of(&key), named.resolve(&self.catalog).map_err(unknown)?))
        });
        let (tag, mutation) = mutation.map_err(SessionError::Invalid)?;
        let key = context.idempotency_key.clone();
        // The lock ensures that mutations are sent in the order in which the view applies them.
        let mut state = self.shared.lock();
        if state.ended {
            return Err(SessionError::Ended);
        }
        if state.unresolved >= PENDING_MAX {
            return Err(SessionError::TooManyPending);
        }
        let predicted = match state.mirror.predict(tag, mutation) {
            Ok(Prediction::Made(digests)) => {
                let digest = |(id, digest): &(InventoryId, _)| v1::PredictedDigest {
                    inventory_id: id.to_string(),
                    digest: Some(reply::digest(*digest)),
                };
                context.predicted = digests.iter().map(digest).collect();
                context.session.clone_from(&self.shared.session);
                true
            }
            Ok(Prediction::Impossible) => false,
            Err(PredictError::Rejected(rejection)) => return Err(SessionError::Rejected(rejection)),
            Err(PredictError::Full) => return Err(SessionError::TooManyPending),
        };
        let call = QueuedMutation::new(v1::TransactRequest { context: Some(context), operations });
        if self.outbox.try_send(call).is_err() {
            state.mirror.handle_failure(tag);
            return Err(SessionError::TooManyPending);
        }
        state.unresolved += 1;
        Ok(PendingMutation { key, predicted })
    }

    /// Returns whether the inventory is absent: it does not exist, was deleted, or may not be read. The session keeps
    /// following an absent inventory; [`SessionEvent::Changed`] reports when it becomes present or absent.
    pub fn is_absent(&self, index: usize) -> bool {
        self.shared.lock().mirror.is_absent(index)
    }

    /// Returns the contents of an inventory including the session's own pending changes, or `None` before the first
    /// frame and while the inventory is absent.
    pub fn view(&self, index: usize) -> Option<Contents> {
        self.shared.lock().mirror.view(index).cloned()
    }

    /// Returns the newest state that the server is known to have had.
    pub fn confirmed(&self, index: usize) -> Option<Contents> {
        self.shared.lock().mirror.confirmed(index).map(|inventory| inventory.contents.clone())
    }

    /// Returns the number of mutations whose outcome is not known yet.
    pub fn pending(&self) -> usize {
        let state = self.shared.lock();
        state.unresolved.max(state.mirror.pending())
    }

    pub fn counts(&self) -> SessionCounts {
        let state = self.shared.lock();
        SessionCounts { desyncs: state.mirror.desyncs(), ..state.counts }
    }

    /// Waits for the next event; returns `None` after [`SessionEvent::Ended`]. Cancel safe.
    pub async fn next_event(&self) -> Option<SessionEvent> {
        self.shared.wait_for(|state| state.next_event().map(Some).or(state.ended.then_some(None))).await
    }

    /// Waits until the first state of every inventory has arrived or the inventory is reported absent.
    pub async fn caught_up(&self) -> Result<(), SessionError> {
        let caught_up = |state: &mut SessionState| state.caught_up.then_some(Ok(()));
        self.shared.wait_for(|state| caught_up(state).or(state.ended.then_some(Err(SessionError::Ended)))).await
    }

    /// Waits until the outcome of every mutation is known.
    pub async fn settled(&self) -> Result<(), SessionError> {
        let settled =
            |state: &mut SessionState| (state.unresolved == 0 && state.mirror.pending() == 0).then_some(Ok(()));
        self.shared.wait_for(|state| settled(state).or(state.ended.then_some(Err(SessionError::Ended)))).await
    }

    /// Requests a full state of an inventory, for a game that notices an error in it. Counts as a desync.
    pub fn resync(&self, index: usize) {
        let mut state = self.shared.lock();
        let update = state.mirror.handle_desync(index);
        self.shared.push_update(&mut state, &update);
    }
}
