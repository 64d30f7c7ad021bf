//! Ring 2: the one writer, and what it publishes.
//!
//! [`Engine`] is a handle to a commit loop on a thread of its own. The loop takes all waiting mutations as a batch,
//! applies each in order to copies, commits the batch durably at once, and only then publishes the new states and
//! answers. If the commit fails the copies are dropped: nothing happened.

mod commit;
mod hot;
mod statistics;
mod watched;

pub use commit::new_epoch;
pub use hot::HotTable;
pub use statistics::EngineStatistics;
pub use watched::WatchedInventories;

use crate::domain::{
    Caller, Catalog, Digest, Fingerprint, Inventory, InventoryId, NamedMutation, Rejection, SessionId, UnknownName,
    Version,
};
use crate::statistics::EngineCounts;
use crate::store::{Key, ListQuery, Reply, Store, StoreError};
use crate::sync::TraceContext;
use crate::telemetry::CommitTelemetry;
use commit::EngineRequest;
use statistics::CommitCounters;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Mutations and cold reads that may wait for the commit loop.
    pub queue_max: usize,
    /// How long a caller waits for a place in the queue before it is refused.
    pub queue_wait: Duration,
    /// Mutations committed together at most.
    pub batch_max: usize,
    /// Inventories kept in memory; more only while they are watched.
    pub hot_max: usize,
    /// Where commits are measured and traced; nowhere by default.
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

/// What digests are to be afterwards.
pub type PredictedDigests = Vec<(InventoryId, Digest)>;

/// A mutation as it comes in: what to do, and how to recognise it when it comes again.
#[derive(Debug, Clone)]
pub struct MutationRequest {
    pub key: Key,
    pub payload: Fingerprint,
    /// Its names are looked up when it runs, and not at all when it is a retry.
    pub mutation: NamedMutation,
    /// Who asks for it, as named on a stream.
    pub session: Option<SessionId>,
    /// What that session expects the digests to be afterwards; empty: it has predicted nothing.
    pub predicted: PredictedDigests,
    /// For those who want to be told why.
    pub reason: Arc<str>,
    /// The call's own span, if it is traced.
    pub trace: Option<TraceContext>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutationReply {
    pub reply: Reply,
    /// The mutation had been applied before; this is the reply of then.
    pub replayed: bool,
    /// Digests were predicted, and all of them are right.
    pub prediction_confirmed: bool,
}

/// Why a call was not carried out. Only [`EngineError::CommitUnknown`] leaves open whether it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    Rejected(Rejection),
    /// The catalog does not have an item, a recipe or a layout that the mutation names.
    UnknownName(UnknownName),
    /// The key was used before with another payload.
    KeyReused,
    /// The key is older than what is remembered; it may have been applied.
    KeyExpired,
    /// The time in the key lies further ahead of this machine's clock than can be remembered now.
    KeyFromTheFuture {
        ahead_ms: u64,
    },
    QueueFull {
        retry_after: Duration,
    },
    Store(StoreError),
    /// The commit's end is not known; a retry with the same key tells.
    CommitUnknown,
    /// The commit loop has ended.
    Stopped,
}

#[derive(Clone)]
pub struct Engine {
    queue: mpsc::Sender<EngineRequest>,
    hot: Arc<HotTable>,
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    counters: Arc<CommitCounters>,
    settings: EngineSettings,
}

/// The commit loop's thread.
pub struct CommitLoop {
    ended: oneshot::Receiver<()>,
    failed: watch::Receiver<Option<StoreError>>,
    stopped: watch::Receiver<Option<StoreError>>,
}

impl Engine {
    /// Starts the commit loop. Needs a tokio runtime, in which answers are handed out.
    pub fn start(store: Arc<dyn Store>, catalog: Arc<Catalog>, settings: EngineSettings) -> (Self, CommitLoop) {
        let (queue, requests) = mpsc::channel(settings.queue_max);
        let hot = Arc::new(HotTable::default());
        let counters = Arc::new(CommitCounters::default());
        let stopped = store.stopped();
        let (ended, failed) =
            commit::spawn(store.clone(), catalog.clone(), settings.clone(), hot.clone(), counters.clone(), requests);
        (Self { queue, hot, store, catalog, counters, settings }, CommitLoop { ended, failed, stopped })
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Carries a mutation out, once however often it is called with the same key. Once queued it runs to its end even if
    /// the caller goes away.
    pub async fn mutate(&self, request: MutationRequest) -> Result<MutationReply, EngineError> {
        let (reply, received) = oneshot::channel();
        if let Err(refusal) = self.enqueue(EngineRequest::Mutate { request: Box::new(request), reply }).await {
            let refused = Err(refusal);
            // Whatever is queued is counted by the loop, whether the caller still waits or not.
            self.counters.add_mutation(statistics::outcome(&refused));
            return refused;
        }
        received.await.map_err(|_| EngineError::Stopped)?
    }

    /// The current state of an inventory; sees every mutation acknowledged before.
    pub async fn read(&self, id: &InventoryId) -> Result<Option<Arc<Inventory>>, EngineError> {
        if let Some(known) = self.hot.inventory(id) {
            return Ok(known);
        }
        let watched = self.watch(vec![id.clone()]).await?;
        Ok(watched.states().into_iter().next().and_then(|state| state.inventory.clone()))
    }

    /// Has the streams of a session that follow an inventory sent all its slots at once. Gives back what is there.
    pub async fn correct(
        &self,
        session: SessionId,
        caller: Caller,
        id: InventoryId,
    ) -> Result<Option<Version>, EngineError> {
        let current = self.read(&id).await?.map(|inventory| inventory.version());
        self.enqueue(EngineRequest::Correct { session, caller, id }).await?;
        Ok(current)
    }

    /// Inventories to follow, in the order asked for. Those that are not there have no state yet.
    pub async fn watch(&self, ids: Vec<InventoryId>) -> Result<WatchedInventories, EngineError> {
        let (reply, received) = oneshot::channel();
        self.enqueue(EngineRequest::Watch { ids, reply }).await?;
        received.await.map_err(|_| EngineError::Stopped)?
    }

    /// A page of inventories; sees every mutation acknowledged before.
    pub async fn list(&self, query: ListQuery) -> Result<Vec<Arc<Inventory>>, EngineError> {
        let store = self.store.clone();
        let listed = tokio::task::spawn_blocking(move || store.list(&query)).await;
        listed.map_err(|_| EngineError::Stopped)?.map_err(EngineError::Store)
    }

    /// What was committed since the start, and what waits now.
    pub fn statistics(&self) -> EngineStatistics {
        let queue_max = self.queue.max_capacity() as u64;
        EngineStatistics {
            hot_inventories: self.hot.len() as u64,
            queue: queue_max - self.queue.capacity() as u64,
            queue_max,
            ..self.counters.read()
        }
    }

    /// A way to read counts that does not keep the commit loop from ending.
    pub fn counts_reader(&self) -> EngineCountsReader {
        EngineCountsReader { queue: self.queue.downgrade(), hot: self.hot.clone(), counters: self.counters.clone() }
    }

    async fn enqueue(&self, request: EngineRequest) -> Result<(), EngineError> {
        let place = match self.queue.try_reserve() {
            Ok(place) => place,
            Err(mpsc::error::TrySendError::Closed(())) => return Err(EngineError::Stopped),
            Err(mpsc::error::TrySendError::Full(())) => {
                let retry_after = self.settings.queue_wait;
                let waited = tokio::time::timeout(retry_after, self.queue.reserve()).await;
                waited.map_err(|_| EngineError::QueueFull { retry_after })?.map_err(|_| EngineError::Stopped)?
            }
        };
        place.send(request);
        Ok(())
    }
}

/// Reads what the engine counts, for as long as anybody likes.
#[derive(Clone)]
pub struct EngineCountsReader {
    queue: mpsc::WeakSender<EngineRequest>,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
}

impl EngineCountsReader {
    pub fn counts(&self) -> EngineCounts {
        let queue_max = self.queue.upgrade().map(|queue| (queue.max_capacity(), queue.capacity()));
        let (queue_max, free) = queue_max.unwrap_or_default();
        EngineCounts {
            hot_inventories: self.hot.len() as u64,
            queue: (queue_max - free) as u64,
            queue_max: queue_max as u64,
            ..self.counters.counts()
        }
    }
}

impl CommitLoop {
    /// Returns the reason once nothing is committed any more: the end of a commit is unknown, or the store has stopped.
    pub async fn failed(&mut self) -> StoreError {
        tokio::select! {
            failure = first_failure(&mut self.failed) => failure,
            failure = first_failure(&mut self.stopped) => failure,
        }
    }

    /// The reason, if nothing is committed any more.
    pub fn failure(&self) -> Option<StoreError> {
        self.failed.borrow().clone().or_else(|| self.stopped.borrow().clone())
    }

    /// Waits until everything queued is done; every [`Engine`] has to be dropped for that.
    pub async fn ended(self) {
        // An error means that the thread is gone, which is what is waited for.
        let _ = self.ended.await;
    }
}

async fn first_failure(failure: &mut watch::Receiver<Option<StoreError>>) -> StoreError {
    if let Ok(failed) = failure.wait_for(Option::is_some).await
        && let Some(failure) = failed.clone()
    {
        return failure;
    }
    // Whoever could have failed has ended without.
    std::future::pending().await
}
