//! Ring 2 (see ARCHITECTURE.md): the only writer, and the states that it publishes.
//!
//! [`Engine`] is a handle to a commit loop on its own thread. The loop takes all waiting mutations as a batch, applies
//! each in order to copies, commits the whole batch durably, and only then publishes the new states and replies. If the
//! commit fails, the copies are dropped and nothing has changed.

mod batch;
mod cold;
mod commit;
mod delivery;
mod hot;
mod load;
mod outcome;
mod probes;
mod waker;
mod watched;
mod window;

pub use batch::new_epoch;
pub use waker::WakeLevel;
pub use watched::WatchedInventories;

use crate::domain::{
    Caller, Catalog, Digest, Fingerprint, Inventory, InventoryId, Rejection, SessionId, UnresolvedMutation,
    UnresolvedReference, Version,
};
use crate::statistics::{CommitCounters, EngineStatistics};
use crate::store::{ListPage, ListQuery, Reply, ScopedKey, Store, StoreError};
use crate::sync::TraceContext;
use crate::telemetry::CommitTelemetry;
use cold::{ColdReads, ReadRequest};
use commit::{EngineRequest, WatchRequest};
use delivery::{ReplyTo, ResultDelivery};
use hot::HotTable;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Limits and telemetry of the engine.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Maximum number of requests that wait for the commit loop: mutations, watches and corrections.
    pub queue_max: usize,
    /// How long a caller waits for a place in a full queue, or for a read of the store, before it gets
    /// [`EngineError::QueueFull`].
    pub queue_wait: Duration,
    /// Maximum number of mutations in one batch.
    pub batch_max: usize,
    /// Maximum number of inventories in memory; watched inventories may exceed it.
    pub hot_max: usize,
    /// Records metrics and spans of commits; disabled by default.
    pub telemetry: CommitTelemetry,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            queue_max: 8_192,
            queue_wait: Duration::from_secs(1),
            batch_max: 1_024,
            hot_max: 100_000,
            telemetry: CommitTelemetry::default(),
        }
    }
}

/// The digests that a session expects after its mutation.
pub type PredictedDigests = Vec<(InventoryId, Digest)>;

/// A mutation with its idempotency key and its context.
#[derive(Debug, Clone)]
pub struct MutationRequest {
    pub key: ScopedKey,
    /// The fingerprint of the operations and guards as sent; a retry with another one is refused.
    pub payload: Fingerprint,
    /// Names are resolved when the mutation runs; a retry does not resolve them.
    pub mutation: UnresolvedMutation,
    /// The session that sends the mutation, as named on its subscription.
    pub session: Option<SessionId>,
    /// The digests that the session expects; empty if it predicted nothing.
    pub predicted: PredictedDigests,
    /// Why the caller makes the change; sent in notices.
    pub reason: Arc<str>,
    /// The trace context of the call, if it is traced.
    pub trace: Option<TraceContext>,
}

/// The reply to a committed mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutationReply {
    pub reply: Reply,
    /// Whether an earlier attempt already applied the mutation; `reply` is then its stored reply.
    pub replayed: bool,
    /// Whether the session predicted digests and all of them match.
    pub prediction_confirmed: bool,
}

/// Why a request failed. This attempt applied nothing, unless the error is [`EngineError::CommitUnknown`]; after
/// [`EngineError::KeyExpired`], an earlier attempt may have applied the mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    Rejected(Rejection),
    /// The mutation names an item, a recipe or a layout that is not in the catalog.
    UnresolvedReference(UnresolvedReference),
    /// The key was already used with another payload.
    KeyReused,
    /// The key is older than the remembered keys; its mutation may have been applied.
    KeyExpired,
    /// The timestamp in the key is too far ahead of this machine's clock.
    KeyFromTheFuture {
        ahead_ms: u64,
    },
    QueueFull {
        retry_after: Duration,
    },
    Store(StoreError),
    /// The outcome of the commit is unknown. Retry with the same key to learn it.
    CommitUnknown,
    /// The commit loop has stopped.
    Stopped,
}

/// A handle to the commit loop and the published states.
#[derive(Clone)]
pub struct Engine {
    queue: mpsc::Sender<EngineRequest>,
    hot: Arc<HotTable>,
    cold_reads: Arc<ColdReads>,
    catalog: Arc<Catalog>,
    counters: Arc<CommitCounters>,
    runtimes: Arc<ResultDelivery>,
    settings: EngineSettings,
}

/// A handle to the thread of the commit loop.
pub struct CommitLoop {
    /// Closes when the thread has ended and all results are delivered.
    ended: mpsc::Receiver<Infallible>,
    failed: watch::Receiver<Option<StoreError>>,
    stopped: watch::Receiver<Option<StoreError>>,
}

impl Engine {
    /// Starts the commit loop. Must be called within a tokio runtime, which delivers the results of the requests from
    /// all threads that [`Self::attach_runtime`] was not called on.
    pub fn start(store: Arc<dyn Store>, catalog: Arc<Catalog>, settings: EngineSettings) -> (Self, CommitLoop) {
        let (queue, requests) = mpsc::channel(settings.queue_max);
        let hot = Arc::new(HotTable::default());
        let counters = Arc::new(CommitCounters::default());
        let stopped = store.stopped();
        let (runtimes, ended) = ResultDelivery::start();
        let failed = commit::spawn(
            store.clone(),
            catalog.clone(),
            settings.clone(),
            hot.clone(),
            counters.clone(),
            runtimes.clone(),
            requests,
        );
        let cold_reads = ColdReads::new(store, hot.clone(), settings.hot_max, runtimes.clone(), failed.clone());
        let cold_reads = Arc::new(cold_reads);
        let engine = Self { queue, hot, cold_reads, catalog, counters, runtimes, settings };
        (engine, CommitLoop { ended, failed, stopped })
    }

    /// Delivers the replies to requests from the current thread, and the wake-ups of subscriptions that it opens, in the
    /// current runtime. Call it once on the thread of each `current_thread` runtime that uses the engine, so that a
    /// batch wakes each runtime at most once. Must be called within that runtime.
    pub fn attach_runtime(&self) {
        self.runtimes.attach();
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Executes a mutation. Idempotent under retries with the same key. A queued mutation runs even if the caller drops
    /// the future.
    pub fn mutate(
        &self,
        request: MutationRequest,
    ) -> impl Future<Output = Result<MutationReply, EngineError>> + Send + use<'_> {
        // Boxed before the future is created, which would otherwise contain the whole request; many calls wait at the same
        // time.
        let request = Box::new(request);
        async move {
            let (reply, received) = self.reply();
            if let Err(error) = self.enqueue(EngineRequest::Mutate { request, reply }).await {
                let failed = Err(error);
                // The commit loop counts every queued mutation, whether or not the caller still waits.
                self.counters.add_mutation(outcome::mutation_outcome(&failed));
                return failed;
            }
            received.await.map_err(|_| EngineError::Stopped)?
        }
    }

    /// Returns the current state of an inventory, including every mutation acknowledged before the call.
    pub async fn read(&self, id: &InventoryId) -> Result<Option<Arc<Inventory>>, EngineError> {
        match self.hot.read_or_begin(id) {
            Ok(known) => Ok(known),
            Err(read) => self.read_cold(|reply| ReadRequest::Inventory { read, reply }).await,
        }
    }

    /// Makes the session's streams that watch an inventory immediately send its full state. Returns the current
    /// version, or `None` if the inventory does not exist.
    pub async fn correct(
        &self,
        session: SessionId,
        caller: Caller,
        id: InventoryId,
    ) -> Result<Option<Version>, EngineError> {
        let Some(current) = self.read(&id).await? else { return Ok(None) };
        self.enqueue(EngineRequest::Correct { session, caller, id }).await?;
        Ok(Some(current.version()))
    }

    /// Watches inventories, in the order of `ids`. An inventory that does not exist has no state yet. Changes by
    /// `session` are less urgent for the watcher than other changes; see [`WakeLevel`].
    pub async fn watch(
        &self,
        ids: Vec<InventoryId>,
        session: Option<SessionId>,
    ) -> Result<WatchedInventories, EngineError> {
        let (reply, received) = self.reply();
        self.enqueue(EngineRequest::Watch { request: WatchRequest { ids, session }, reply }).await?;
        received.await.map_err(|_| EngineError::Stopped)?
    }

    /// Returns a page of inventories, including every mutation acknowledged before the call.
    pub async fn list(&self, query: ListQuery) -> Result<ListPage, EngineError> {
        self.read_cold(|reply| ReadRequest::Page { query, reply }).await
    }

    /// Returns the commit statistics since the start and the current queue length.
    pub fn statistics(&self) -> EngineStatistics {
        self.statistics_reader().read()
    }

    /// Returns a reader of the statistics that does not keep the commit loop running.
    pub fn statistics_reader(&self) -> EngineStatisticsReader {
        EngineStatisticsReader { queue: self.queue.downgrade(), hot: self.hot.clone(), counters: self.counters.clone() }
    }

    async fn read_cold<T>(&self, request: impl FnOnce(ReplyTo<T>) -> ReadRequest) -> Result<T, EngineError> {
        let (reply, received) = self.reply();
        let retry_after = self.settings.queue_wait;
        if !self.cold_reads.enqueue(request(reply)) {
            return Err(EngineError::QueueFull { retry_after });
        }
        let waited = tokio::time::timeout(retry_after, received).await;
        waited.map_err(|_| EngineError::QueueFull { retry_after })?.map_err(|_| EngineError::Stopped)?
    }

    fn reply<T>(&self) -> (ReplyTo<T>, oneshot::Receiver<Result<T, EngineError>>) {
        let (sender, received) = oneshot::channel();
        (ReplyTo { runtime: self.runtimes.current(), sender }, received)
    }

    async fn enqueue(&self, request: EngineRequest) -> Result<(), EngineError> {
        let permit = match self.queue.try_reserve() {
            Ok(permit) => permit,
            Err(mpsc::error::TrySendError::Closed(())) => return Err(EngineError::Stopped),
            // Boxed, because it is rare and larger than the rest of the future.
            Err(mpsc::error::TrySendError::Full(())) => Box::pin(self.reserve_place()).await?,
        };
        permit.send(request);
        Ok(())
    }

    /// Waits for a place in the full queue, at most `queue_wait`.
    async fn reserve_place(&self) -> Result<mpsc::Permit<'_, EngineRequest>, EngineError> {
        let retry_after = self.settings.queue_wait;
        let waited = tokio::time::timeout(retry_after, self.queue.reserve()).await;
        waited.map_err(|_| EngineError::QueueFull { retry_after })?.map_err(|_| EngineError::Stopped)
    }
}

/// Reads the engine's statistics, even after the engine has stopped.
#[derive(Clone)]
pub struct EngineStatisticsReader {
    queue: mpsc::WeakSender<EngineRequest>,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
}

impl EngineStatisticsReader {
    /// Returns the statistics since the start, and the current queue length and number of hot inventories.
    pub fn read(&self) -> EngineStatistics {
        let capacity = self.queue.upgrade().map(|queue| (queue.max_capacity(), queue.capacity()));
        let (queue_max, free) = capacity.unwrap_or_default();
        EngineStatistics {
            hot_inventories: self.hot.len() as u64,
            queue: (queue_max - free) as u64,
            queue_max: queue_max as u64,
            ..self.counters.read()
        }
    }
}

impl CommitLoop {
    /// Waits until the engine stops committing, because the outcome of a commit is unknown or the store has stopped,
    /// and returns the reason.
    pub async fn wait_for_failure(&mut self) -> StoreError {
        tokio::select! {
            failure = first_failure(&mut self.failed) => failure,
            failure = first_failure(&mut self.stopped) => failure,
        }
    }

    /// Returns the reason if the engine has stopped committing.
    pub fn failure(&self) -> Option<StoreError> {
        self.failed.borrow().clone().or_else(|| self.stopped.borrow().clone())
    }

    /// Waits until all queued requests are done. Returns only after every [`Engine`] was dropped.
    pub async fn join(mut self) {
        // Nothing is ever sent.
        self.ended.recv().await;
    }
}

/// Returns the error of requests that need the store after the outcome of a commit was unknown.
fn stopped_error() -> EngineError {
    EngineError::Store(StoreError::Unavailable {
        detail: "the outcome of an earlier commit is unknown; restart the server".into(),
    })
}

async fn first_failure(failure: &mut watch::Receiver<Option<StoreError>>) -> StoreError {
    if let Ok(failed) = failure.wait_for(Option::is_some).await
        && let Some(failure) = failed.clone()
    {
        return failure;
    }
    // The sender was dropped without a failure.
    std::future::pending().await
}
