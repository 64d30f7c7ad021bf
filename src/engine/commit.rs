//! The commit loop: a single thread that applies mutations in one linear order, so the domain needs no locks.

use super::batch::Batch;
use super::delivery::{BatchResults, ReplyTo, ResultDelivery, RuntimeIndex};
use super::hot::{HotTable, PendingWakes};
use super::load::{LoadedBatch, load_batch, needed_inventories};
use super::outcome::{commit_failure, mutation_outcome};
use super::waker::SubscriptionWaker;
use super::window::CommitWindow;
use super::{EngineError, EngineSettings, MutationReply, MutationRequest, WatchedInventories, stopped_error};
use crate::domain::{Caller, Catalog, Inventory, InventoryId, SessionId};
use crate::statistics::CommitCounters;
use crate::store::log::ChainHead;
use crate::store::{CommitError, MutationRecord, ScopedKey, Store, StoreError};
use crate::sync::ChangeRecord;
use crate::telemetry::{CommitSpan, CommitTelemetry};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// A request in the queue of the commit loop.
pub(super) enum EngineRequest {
    Mutate { request: Box<MutationRequest>, reply: ReplyTo<MutationReply> },
    Watch { request: WatchRequest, reply: ReplyTo<WatchedInventories> },
    Correct { session: SessionId, caller: Caller, id: InventoryId },
}

/// A request for a subscription.
pub(super) struct WatchRequest {
    pub ids: Vec<InventoryId>,
    /// The session of the subscription, whose changes are less urgent than those of others.
    pub session: Option<SessionId>,
}

/// Maximum number of times that the commit thread yields while the queue grows.
const YIELDS_MAX: usize = 3;

/// Size of the records of a batch from which it is committed although mutations are left, in bytes. A record has the states of
/// the inventories that it creates and deletes, up to 1 MiB each.
const BATCH_BYTES_MAX: usize = 32 << 20;

type QueuedMutation = (Box<MutationRequest>, ReplyTo<MutationReply>);

/// Starts the commit thread. The returned receiver receives the reason if it stops committing.
pub(super) fn spawn(
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    settings: EngineSettings,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
    runtimes: Arc<ResultDelivery>,
    mut requests: mpsc::Receiver<EngineRequest>,
) -> watch::Receiver<Option<StoreError>> {
    let (failure_sender, failed) = watch::channel(None);
    let EngineSettings { batch_max, hot_max, telemetry, .. } = settings;
    let mut thread = CommitThread { store, catalog, hot, counters, telemetry, failed: failure_sender, hot_max };
    let run = move || {
        let (mut batch, mut window) = (Vec::new(), CommitWindow::default());
        while let Some(first) = requests.blocking_recv() {
            batch.push(first);
            let_batch_grow(&requests, batch_max, &mut window);
            // Requests that find a place while the batch is taken are for the next one.
            let further_max = batch_max.min(requests.max_capacity()).saturating_sub(1);
            for _ in 0..requests.len().min(further_max) {
                batch.extend(requests.try_recv());
            }
            if !runtimes.send(thread.run(batch.drain(..))) {
                break;
            }
        }
        // Drop the store before signalling the end, because a caller that waits for the end may reopen the store.
        drop(thread);
        drop(runtimes);
    };
    let started = std::thread::Builder::new().name("commit".into()).spawn(run);
    // Without the thread, the queue is closed and every request gets `Stopped`.
    if let Err(error) = started {
        tracing::error!(%error, "cannot start the commit thread");
    }
    failed
}

/// Waits while more requests for the batch arrive: larger batches cost less for each mutation.
///
/// Lets other threads run first, which read requests on the same core. They take one turn each, so that the thread goes
/// on at once if no other one has work.
fn let_batch_grow(requests: &mpsc::Receiver<EngineRequest>, batch_max: usize, window: &mut CommitWindow) {
    let mut queued = requests.len();
    for _ in 0..YIELDS_MAX {
        std::thread::yield_now();
        let before = std::mem::replace(&mut queued, requests.len());
        if queued == before || queued >= batch_max {
            break;
        }
    }
    while let Some(wait) = window.poll_wait(requests.len()) {
        std::thread::sleep(wait);
    }
}

/// The state of the commit thread.
struct CommitThread {
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
    telemetry: CommitTelemetry,
    /// The reason why the thread stopped committing, if it did.
    failed: watch::Sender<Option<StoreError>>,
    hot_max: usize,
}

impl CommitThread {
    fn run(&mut self, requests: impl Iterator<Item = EngineRequest>) -> BatchResults {
        let (mut mutations, mut watches, mut corrections) = (Vec::new(), Vec::new(), Vec::new());
        for request in requests {
            match request {
                EngineRequest::Mutate { request, reply } => mutations.push((request, reply)),
                EngineRequest::Watch { request, reply } => watches.push((request, reply)),
                EngineRequest::Correct { session, caller, id } => corrections.push((session, caller, id)),
            }
        }
        let spans = self.trace(&mut mutations);
        let loaded =
            if self.failed.borrow().is_some() { Err(stopped_error()) } else { self.load(&mutations, &watches) };
        let (wakes, replies) = match &loaded {
            Ok(loaded) => self.mutate(&mutations, loaded),
            Err(error) => (PendingWakes::new(), mutations.iter().map(|_| Err(error.clone())).collect()),
        };
        replies.iter().for_each(|reply| self.counters.add_mutation(mutation_outcome(reply)));
        for (index, span) in spans {
            span.end(replies.len(), mutation_outcome(&replies[index]));
        }
        let mut results = BatchResults::default();
        results.add_wakes(wakes);
        for (session, caller, id) in corrections {
            let correction = |inventory: &Inventory| ChangeRecord::correction(session, caller, inventory);
            results.add_wakes(self.hot.add_record(&id, correction));
        }
        for ((request, reply), result) in mutations.into_iter().zip(replies) {
            results.add_mutation_reply(reply, result, request);
        }
        for (request, reply) in watches {
            let checked =
                loaded.as_ref().map_err(Clone::clone).and_then(|loaded| loaded.check_readable(request.ids.iter()));
            let watched = checked.map(|()| self.watch(request, reply.runtime));
            results.add_watch(reply, watched);
        }
        self.hot.evict(self.hot_max);
        results
    }

    /// Watches inventories that are hot or do not exist.
    fn watch(&mut self, WatchRequest { ids, session }: WatchRequest, runtime: RuntimeIndex) -> WatchedInventories {
        let waker = Arc::new(SubscriptionWaker::new(session, runtime));
        self.hot.subscribe(&ids, &waker);
        WatchedInventories::new(self.hot.clone(), ids, waker)
    }

    /// Starts a span for each traced request and returns it with the request's index. The span becomes the parent of
    /// the request's changes.
    fn trace(&self, mutations: &mut [QueuedMutation]) -> Vec<(usize, CommitSpan)> {
        let mut spans = Vec::new();
        for (index, (request, _)) in mutations.iter_mut().enumerate() {
            if let Some(span) = request.trace.take().and_then(|trace| self.telemetry.start_span(trace)) {
                request.trace = Some(span.trace_context());
                spans.push((index, span));
            }
        }
        spans
    }

    /// Loads every inventory that the batch needs and that is not hot into the hot table, and looks up the batch's
    /// keys.
    fn load(
        &mut self,
        mutations: &[QueuedMutation],
        watches: &[(WatchRequest, ReplyTo<WatchedInventories>)],
    ) -> Result<LoadedBatch, EngineError> {
        let of_mutations = mutations.iter().flat_map(|(request, _)| needed_inventories(request));
        let of_watches = watches.iter().flat_map(|(request, _)| &request.ids);
        let cold = self.hot.begin_batch(of_mutations.chain(of_watches));
        let keys: Vec<ScopedKey> = mutations.iter().map(|(request, _)| request.key.clone()).collect();
        let (inventories, loaded) = load_batch(&*self.store, cold, &keys)?;
        self.hot.insert_loaded(inventories);
        Ok(loaded)
    }

    /// Applies all mutations in order, commits them together and publishes the states; if their records are very large, in
    /// several parts. Returns a reply for each mutation.
    ///
    /// Rejections also wait for the commit, because an earlier mutation of the same batch may have caused them.
    fn mutate(
        &mut self,
        mutations: &[QueuedMutation],
        loaded: &LoadedBatch,
    ) -> (PendingWakes, Vec<Result<MutationReply, EngineError>>) {
        let mut batch = Batch::new(&self.hot, mutations.len());
        let mut replies = Vec::with_capacity(mutations.len());
        let mut wakes = PendingWakes::new();
        // The mutations whose replies wait for the next commit.
        let mut uncommitted = 0;
        for ((request, _), status) in mutations.iter().zip(&loaded.key_statuses) {
            let status = loaded.runnable_key_status(request, status);
            replies.push(status.and_then(|status| batch.run(request, status, &self.catalog)));
            if replies.len() < mutations.len() && batch.uncommitted_bytes() < BATCH_BYTES_MAX {
                continue;
            }
            match self.commit(batch.uncommitted_records()) {
                Ok(heads) => wakes.extend(self.hot.publish(batch.publish(&heads))),
                Err(error) => {
                    let error = self.engine_error(error);
                    replies.truncate(uncommitted);
                    replies.resize_with(mutations.len(), || Err(error.clone()));
                    break;
                }
            }
            uncommitted = replies.len();
        }
        (wakes, replies)
    }

    /// Makes the mutations durable as one batch, and counts the result.
    fn commit(&self, mutation_records: &[MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        if mutation_records.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let committed = self.store.commit(mutation_records);
        match &committed {
            Ok(_) => {
                let latency = start.elapsed();
                self.counters.add_commit(mutation_records.len(), latency);
                // OpenTelemetry cannot read a histogram from counters: it has no observable histogram.
                self.telemetry.record_commit(mutation_records.len(), latency);
            }
            Err(error) => self.counters.add_failure(commit_failure(error)),
        }
        committed
    }

    /// Logs a failed commit. If its outcome is unknown, stops all further commits.
    fn engine_error(&self, error: CommitError) -> EngineError {
        match error {
            CommitError::NotCommitted(error) => {
                tracing::warn!(%error, "commit failed; nothing has changed");
                EngineError::Store(error)
            }
            CommitError::Unknown(error) => {
                // Later commits could depend on a lost one:
                // https://www.usenix.org/conference/atc20/presentation/rebello
                tracing::error!(%error, "commit outcome unknown; no more commits until a restart");
                self.failed.send_replace(Some(error));
                EngineError::CommitUnknown
            }
        }
    }
}
