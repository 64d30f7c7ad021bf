//! The commit loop: a single thread that applies mutations in one linear order, so the domain needs no locks.

use super::batch::Batch;
use super::hot::{EvictionOrder, HotTable, PendingWake, StagedState};
use super::load::{LoadedBatch, load_batch, needed_inventories};
use super::outcome::{commit_failure, mutation_outcome};
use super::{EngineError, EngineSettings, MutationReply, MutationRequest, WatchedInventories};
use crate::domain::{Caller, Catalog, InventoryId, SessionId};
use crate::statistics::CommitCounters;
use crate::store::{CommitError, MutationRecord, ScopedKey, Store, StoreError};
use crate::sync::ChangeRecord;
use crate::telemetry::{CommitSpan, CommitTelemetry};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

pub(super) type ReplySender = oneshot::Sender<Result<MutationReply, EngineError>>;
pub(super) type WatchSender = oneshot::Sender<Result<WatchedInventories, EngineError>>;

/// A request in the queue of the commit loop.
pub(super) enum EngineRequest {
    Mutate { request: Box<MutationRequest>, reply: ReplySender },
    Watch { ids: Vec<InventoryId>, reply: WatchSender },
    Correct { session: SessionId, caller: Caller, id: InventoryId },
}

/// The results of one batch, sent from the commit thread to the runtime in one message, so that the batch needs one
/// wake-up.
#[derive(Default)]
struct BatchResults {
    wakes: Vec<PendingWake>,
    replies: Vec<(ReplySender, Result<MutationReply, EngineError>)>,
    watches: Vec<(WatchSender, Result<WatchedInventories, EngineError>)>,
}

/// Starts the commit thread. Returns two receivers: the first resolves when the thread ends, the second receives the
/// reason if it stops committing.
pub(super) fn spawn(
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    settings: EngineSettings,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
    mut requests: mpsc::Receiver<EngineRequest>,
) -> (oneshot::Receiver<()>, watch::Receiver<Option<StoreError>>) {
    let (results, received_results) = mpsc::unbounded_channel();
    let (end_sender, ended) = oneshot::channel();
    let (failure_sender, failed) = watch::channel(None);
    tokio::spawn(deliver(received_results, end_sender));
    let order = EvictionOrder::default();
    let EngineSettings { batch_max, hot_max, telemetry, .. } = settings;
    let mut thread = CommitThread { store, catalog, hot, counters, telemetry, order, failed: failure_sender, hot_max };
    let run = move || {
        let mut batch = Vec::new();
        while requests.blocking_recv_many(&mut batch, batch_max) > 0 {
            // The channel is unbounded, but its size is limited by the number of waiting callers.
            if results.send(thread.run(batch.drain(..))).is_err() {
                break;
            }
        }
        // Drop the store before signalling the end, because a caller that waits for the end may reopen the store.
        drop(thread);
        drop(results);
    };
    let started = std::thread::Builder::new().name("commit".into()).spawn(run);
    // Without the thread, the queue is closed and every request gets `Stopped`.
    if let Err(error) = started {
        tracing::error!(%error, "cannot start the commit thread");
    }
    (ended, failed)
}

/// Runs in the runtime: wakes watchers and sends replies, in commit order.
async fn deliver(mut results: mpsc::UnboundedReceiver<BatchResults>, ended: oneshot::Sender<()>) {
    while let Some(BatchResults { wakes, replies, watches }) = results.recv().await {
        wakes.into_iter().for_each(PendingWake::wake);
        // A send fails only if the caller no longer waits.
        for (reply, result) in replies {
            let _ = reply.send(result);
        }
        for (reply, result) in watches {
            let _ = reply.send(result);
        }
    }
    let _ = ended.send(());
}

/// The state of the commit thread.
struct CommitThread {
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
    telemetry: CommitTelemetry,
    order: EvictionOrder,
    /// The reason why the thread stopped committing, if it did.
    failed: watch::Sender<Option<StoreError>>,
    hot_max: usize,
}

impl CommitThread {
    fn run(&mut self, requests: impl Iterator<Item = EngineRequest>) -> BatchResults {
        let (mut mutations, mut watches, mut corrections) = (Vec::new(), Vec::new(), Vec::new());
        for request in requests {
            match request {
                EngineRequest::Mutate { request, reply } => mutations.push((*request, reply)),
                EngineRequest::Watch { ids, reply } => watches.push((ids, reply)),
                EngineRequest::Correct { session, caller, id } => corrections.push((session, caller, id)),
            }
        }
        let spans = self.trace(&mut mutations);
        let loaded =
            if self.failed.borrow().is_some() { Err(stopped_error()) } else { self.load(&mutations, &watches) };
        let (mut wakes, replies) = match &loaded {
            Ok(loaded) => self.mutate(&mutations, loaded),
            Err(error) => (Vec::new(), mutations.iter().map(|_| Err(error.clone())).collect()),
        };
        replies.iter().for_each(|reply| self.counters.add_mutation(mutation_outcome(reply)));
        for (index, span) in spans {
            span.end(replies.len(), mutation_outcome(&replies[index]));
        }
        for (session, caller, id) in corrections {
            wakes.extend(self.hot.add_record(&id, |inventory| ChangeRecord::correction(session, caller, inventory)));
        }
        let watches = watches
            .into_iter()
            .map(|(ids, reply)| {
                let checked =
                    loaded.as_ref().map_err(Clone::clone).and_then(|loaded| loaded.check_readable(ids.iter()));
                (reply, checked.map(|()| self.watch(ids)))
            })
            .collect();
        self.hot.evict(self.hot_max, &mut self.order);
        let replies = mutations.into_iter().map(|(_, reply)| reply).zip(replies).collect();
        BatchResults { wakes, replies, watches }
    }

    /// Watches inventories that are hot or do not exist.
    fn watch(&mut self, ids: Vec<InventoryId>) -> WatchedInventories {
        let receivers = self.hot.subscribe(&ids, &mut self.order);
        WatchedInventories::new(self.hot.clone(), ids, receivers)
    }

    /// Starts a span for each traced request and returns it with the request's index. The span becomes the parent of
    /// the request's changes.
    fn trace(&self, mutations: &mut [(MutationRequest, ReplySender)]) -> Vec<(usize, CommitSpan)> {
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
        mutations: &[(MutationRequest, ReplySender)],
        watches: &[(Vec<InventoryId>, WatchSender)],
    ) -> Result<LoadedBatch, EngineError> {
        let of_mutations = mutations.iter().flat_map(|(request, _)| needed_inventories(request));
        let of_watches = watches.iter().flat_map(|(ids, _)| ids);
        let mut seen = HashSet::new();
        let cold: Vec<InventoryId> =
            of_mutations.chain(of_watches).filter(|id| seen.insert(*id) && !self.hot.contains(id)).cloned().collect();
        let keys: Vec<ScopedKey> = mutations.iter().map(|(request, _)| request.key.clone()).collect();
        let (inventories, loaded) = load_batch(&*self.store, cold, &keys)?;
        let staged = |(id, inventory)| (id, StagedState::new(inventory));
        // An inventory that was not hot has no watchers to wake.
        self.hot.publish(inventories.into_iter().map(staged), &mut self.order);
        Ok(loaded)
    }

    /// Applies all mutations in order, commits them together and publishes the states. Returns a reply for each
    /// mutation.
    ///
    /// Rejections also wait for the commit, because an earlier mutation of the same batch may have caused them.
    fn mutate(
        &mut self,
        mutations: &[(MutationRequest, ReplySender)],
        loaded: &LoadedBatch,
    ) -> (Vec<PendingWake>, Vec<Result<MutationReply, EngineError>>) {
        let mut batch = Batch::new(&self.hot);
        let replies: Vec<_> = mutations
            .iter()
            .zip(&loaded.key_statuses)
            .map(|((request, _), status)| {
                batch.run(request, loaded.runnable_key_status(request, status)?, &self.catalog)
            })
            .collect();
        if !batch.mutation_records.is_empty()
            && let Err(error) = self.commit(&batch.mutation_records)
        {
            let error = self.engine_error(error);
            return (Vec::new(), mutations.iter().map(|_| Err(error.clone())).collect());
        }
        let staged = batch.staged;
        (self.hot.publish(staged.into_iter(), &mut self.order), replies)
    }

    /// Makes the mutations durable as one batch, and counts the result.
    fn commit(&self, mutation_records: &[MutationRecord]) -> Result<(), CommitError> {
        let start = Instant::now();
        let committed = self.store.commit(mutation_records);
        match &committed {
            Ok(()) => {
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

fn stopped_error() -> EngineError {
    EngineError::Store(StoreError::Unavailable {
        detail: "the outcome of an earlier commit is unknown; restart the server".into(),
    })
}
