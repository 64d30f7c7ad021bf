//! Inventories that show one's own changes at once: the face of [`crate::sync::Mirror`], with a stream and calls beneath.

use super::outbox::{self, Call};
use super::shared::{self, Shared, State};
use super::stream::Stream;
use super::{Rpc, fresh_context};
use crate::domain::{Catalog, Contents, InventoryId, KeyTag, RejectionCause};
use crate::grpc::convert::{Invalid, reply, request};
use crate::grpc::v1;
use crate::grpc::v1::operation::Operation;
use crate::sync::mirror::PENDING_MAX;
use crate::sync::{Mirror, PredictError, Prediction};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;
use uuid::Uuid;

/// What a session follows, and how it calls.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The inventories, 1 to 64, each once; the session's methods name them by their position here. One that does
    /// not exist, or may not be read, is absent until it does.
    pub ids: Vec<String>,
    /// Names the session on its stream and its calls, 1 to 128 bytes. No other session may have it at the same time.
    pub session: String,
    /// Be told what kind of changes there were, by whom and why.
    pub notices: bool,
    /// Calls under way at once, at least 1. With 1 the service sees them in the order in which they were applied, at most
    /// one a round trip. With more, two that leave together may change places, and a prediction fails for it: that costs
    /// a full frame, never an item.
    pub in_flight_max: usize,
    /// How long one try of a call may take.
    pub try_timeout: Duration,
    /// How long a call is tried again, with the same key, before its end is given up as unknown. Less than the time for
    /// which the service remembers keys.
    pub retry_for: Duration,
}

impl SessionOptions {
    /// A new session over these inventories: one call at a time, 5 s a try, tried again for 10 minutes.
    pub fn new(ids: Vec<String>) -> Self {
        let (session, notices) = (Uuid::now_v7().to_string(), false);
        let (try_timeout, retry_for) = (Duration::from_secs(5), Duration::from_secs(600));
        Self { ids, session, notices, in_flight_max: 1, try_timeout, retry_for }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("malformed: {0}")]
    Malformed(Invalid),
    /// By the rules, given what is shown: it was not even sent.
    #[error("refused: {0}")]
    Refused(RejectionCause),
    #[error("{PENDING_MAX} mutations wait for their end; wait for some of them")]
    Full,
    #[error("the session has ended, as its last event said")]
    Ended,
}

/// A mutation that is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its idempotency key, by which events name it.
    pub key: String,
    /// The view shows it already. If not, it touches what this session does not follow, or creates or deletes an
    /// inventory: then the service's frame will show it.
    pub shown: bool,
}

/// Inventories are named by their position in [`SessionOptions::ids`].
#[derive(Debug, Clone)]
pub enum Event {
    /// The stream is there; again after each [`Event::Disconnected`].
    Connected,
    /// It was lost, and is being opened again. Changes can be applied meanwhile.
    Disconnected,
    /// The view is another, but for a change just applied: by somebody else, or by a correction.
    Changed {
        position: usize,
    },
    /// Applied and durable. What each operation did is as the service says.
    Confirmed {
        key: String,
        outcomes: Vec<v1::OperationOutcome>,
        as_predicted: bool,
    },
    /// Refused; the view no longer shows it.
    Refused {
        key: String,
        status: Status,
    },
    /// Given up, or too late to ask: whether it was applied is not known. The view shows what the service has.
    Unknown {
        key: String,
        status: Status,
    },
    /// What was predicted was wrong, and was replaced by what the service has. To be expected now and then.
    Corrected {
        position: usize,
    },
    /// What was believed to be confirmed was wrong: a bug somewhere. It is reported, and heals by itself.
    Desync {
        position: usize,
    },
    Notice(v1::Notice),
    /// This many events before the next one were left out, since nobody asked for them.
    Missed {
        events: u64,
    },
    /// The stream cannot be opened, or not go on (not allowed, too many slots together). The last event.
    Ended {
        status: Status,
    },
}

/// What has come in since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Frames with changes, initial ones included.
    pub syncs: u64,
    /// All messages as sent, each with its 5-byte prefix.
    pub bytes: u64,
    pub fulls: u64,
    /// Of these, full frames that corrected a prediction.
    pub corrections: u64,
    pub deltas: u64,
    /// Revisions that no frame was needed for, because they had been predicted, as later frames told.
    pub skipped: u64,
    pub desyncs: u64,
    pub reconnects: u64,
}

/// Inventories that are followed, and changed at once.
///
/// [`Self::apply`] shows a change in [`Self::view`] before it returns, and makes the call in the background; a call whose
/// answer was lost is made again with the same key until its end is known. Then an event tells it: `Confirmed`, or
/// `Refused`, and then the view falls back by itself. When the service comes to another state than was predicted it sends
/// that, and the view follows. [`Self::next_event`] tells whatever happens; nobody has to listen.
///
/// Mutations leave in the order in which they were applied, [`SessionOptions::in_flight_max`] at a time. Dropping the
/// session ends it: what has not left yet never will. Wait for [`Self::settled`] first.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use slotcast::client::{Client, SessionOptions};
/// use slotcast::grpc::v1::{DropItem, operation::Operation};
///
/// let client = Client::new("http://127.0.0.1:7400", "lobby-server")?;
/// let session = client.session(SessionOptions::new(vec!["steve".into()]), client.catalog().await?)?;
/// session.caught_up().await?;
/// session.apply(Operation::Drop(DropItem { inventory_id: "steve".into(), slot: 0, count: Some(1) }))?;
/// println!("{:?}", session.view(0));
/// # Ok(())
/// # }
/// ```
pub struct Session {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Call>,
    catalog: Arc<Catalog>,
    _tasks: JoinSet<()>,
}

impl Session {
    pub(super) fn start(rpc: Rpc, options: SessionOptions, catalog: Arc<Catalog>) -> Result<Self, SessionError> {
        let id = |id: &String| request::inventory_id("ids", id);
        let ids: Result<Vec<InventoryId>, Invalid> = options.ids.iter().map(id).collect();
        request::session("session", &options.session).map_err(SessionError::Malformed)?;
        let mirror = Mirror::new(ids.map_err(SessionError::Malformed)?, catalog.clone());
        let shared = Arc::new(Shared::new(rpc.clone(), options.session.clone(), mirror));
        let stream = Stream::new(rpc, options.ids.clone(), options.session.clone(), options.notices);
        // No more calls are open than this, so there is always room.
        let (outbox, queue) = mpsc::channel(PENDING_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(shared::read(shared.clone(), stream));
        tasks.spawn(outbox::run(shared.clone(), queue, options));
        Ok(Self { shared, outbox, catalog, _tasks: tasks })
    }

    /// Applies one operation at once.
    pub fn apply(&self, operation: Operation) -> Result<Applied, SessionError> {
        self.transact(vec![operation], "")
    }

    /// Applies 1 to 128 operations at once, all or none. `reason`, at most 256 bytes, is for logs and notices.
    pub fn transact(&self, operations: Vec<Operation>, reason: &str) -> Result<Applied, SessionError> {
        let wire = |operation| v1::Operation { operation: Some(operation) };
        let operations: Vec<v1::Operation> = operations.into_iter().map(wire).collect();
        let mut context = v1::MutationContext { reason: reason.to_owned(), ..fresh_context() };
        let mutation = request::idempotency_key(&context).and_then(|key| {
            let single = operations.len() == 1;
            let named = request::mutation(&context, &operations, single)?;
            let unknown = |unknown| request::unknown_name(&request::name_paths(&operations), single, &unknown);
            Ok((KeyTag::of(&key), named.resolve(&self.catalog).map_err(unknown)?))
        });
        let (tag, mutation) = mutation.map_err(SessionError::Malformed)?;
        let key = context.idempotency_key.clone();
        // Under the lock, so that mutations leave in the order in which they are shown.
        let mut state = self.shared.lock();
        if state.ended {
            return Err(SessionError::Ended);
        }
        if state.open >= PENDING_MAX {
            return Err(SessionError::Full);
        }
        let shown = match state.mirror.predict(tag, mutation) {
            Ok(Prediction::Made(predicted)) => {
                let digest = |(id, digest): &(InventoryId, _)| v1::PredictedDigest {
                    inventory_id: id.to_string(),
                    digest: Some(reply::digest(*digest)),
                };
                context.predicted = predicted.iter().map(digest).collect();
                context.session.clone_from(&self.shared.session);
                true
            }
            Ok(Prediction::Impossible) => false,
            Err(PredictError::Rejected(rejection)) => return Err(SessionError::Refused(rejection.cause)),
            Err(PredictError::Full) => return Err(SessionError::Full),
        };
        let call = Call::new(v1::TransactRequest { context: Some(context), operations });
        if self.outbox.try_send(call).is_err() {
            state.mirror.handle_failure(tag);
            return Err(SessionError::Full);
        }
        state.open += 1;
        Ok(Applied { key, shown })
    }

    /// Whether the service has told that there is no such inventory, or none that may be read. It is followed all the same;
    /// [`Event::Changed`] tells when it is there, and when it is absent again.
    pub fn is_absent(&self, position: usize) -> bool {
        self.shared.lock().mirror.is_absent(position)
    }

    /// What an inventory holds, one's own changes included; none before the first frame and while it is absent.
    pub fn view(&self, position: usize) -> Option<Contents> {
        self.shared.lock().mirror.view(position).cloned()
    }

    /// What the service is known to have had last.
    pub fn confirmed(&self, position: usize) -> Option<Contents> {
        self.shared.lock().mirror.confirmed(position).map(|inventory| inventory.contents.clone())
    }

    /// How many mutations wait for their end.
    pub fn pending(&self) -> usize {
        let state = self.shared.lock();
        state.open.max(state.mirror.pending())
    }

    pub fn counts(&self) -> SessionCounts {
        let state = self.shared.lock();
        SessionCounts { desyncs: state.mirror.desyncs(), ..state.counts }
    }

    /// Waits for the next event; none after [`Event::Ended`]. Safe to drop and call again.
    pub async fn next_event(&self) -> Option<Event> {
        self.shared.wait_for(|state| state.next_event().map(Some).or(state.ended.then_some(None))).await
    }

    /// Waits until every inventory's first state is there, or is told to be absent.
    pub async fn caught_up(&self) -> Result<(), SessionError> {
        let wanted = |state: &mut State| state.caught_up.then_some(Ok(()));
        self.shared.wait_for(|state| wanted(state).or(state.ended.then_some(Err(SessionError::Ended)))).await
    }

    /// Waits until no mutation waits for its end.
    pub async fn settled(&self) -> Result<(), SessionError> {
        let wanted = |state: &mut State| (state.open == 0 && state.mirror.pending() == 0).then_some(Ok(()));
        self.shared.wait_for(|state| wanted(state).or(state.ended.then_some(Err(SessionError::Ended)))).await
    }

    /// Has an inventory sent whole: for a game that sees that something is wrong with it. Counts as a desync.
    pub fn resync(&self, position: usize) {
        let mut state = self.shared.lock();
        let shown = state.mirror.handle_desync(position);
        self.shared.tell(&mut state, &shown);
    }
}
