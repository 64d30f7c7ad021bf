//! The commit loop: a single thread that applies mutations in one linear order, so the domain needs no locks.

use super::hot::{EvictionOrder, HotTable, Staged, Wake};
use super::statistics::{self, CommitCounters};
use super::{EngineError, EngineSettings, MutationReply, MutationRequest, WatchedInventories};
use crate::domain::{
    self, Caller, Catalog, Effect, Epoch, Inventory, InventoryId, InventoryLookup, KeyTag, SessionId, Touched,
};
use crate::store::{CommitError, Key, KeyStatus, Loaded, Reply, Store, StoreError, Transaction};
use crate::sync::{ChangeKind, ChangeRecord, MutationContext};
use crate::telemetry::{CommitSpan, CommitTelemetry};
use std::collections::{HashMap, HashSet};
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
    wakes: Vec<Wake>,
    replies: Vec<(ReplySender, Result<MutationReply, EngineError>)>,
    watches: Vec<(WatchSender, Result<WatchedInventories, EngineError>)>,
}

pub(super) fn spawn(
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    settings: EngineSettings,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
    mut requests: mpsc::Receiver<EngineRequest>,
) -> (oneshot::Receiver<()>, watch::Receiver<Option<StoreError>>) {
    let (results, handing_out) = mpsc::unbounded_channel();
    let (ended, has_ended) = oneshot::channel();
    let (failed, has_failed) = watch::channel(None);
    tokio::spawn(hand_out(handing_out, ended));
    let order = EvictionOrder::default();
    let EngineSettings { batch_max, hot_max, telemetry, .. } = settings;
    let mut writer = Writer { store, catalog, hot, counters, telemetry, order, failed, hot_max };
    let run = move || {
        let mut batch = Vec::new();
        while requests.blocking_recv_many(&mut batch, batch_max) > 0 {
            // The channel is unbounded, but its size is limited by the number of waiting callers.
            if results.send(writer.run(batch.drain(..))).is_err() {
                break;
            }
        }
        // Drop the store before signalling the end, because a caller that waits for the end may reopen the store.
        drop(writer);
        drop(results);
    };
    let started = std::thread::Builder::new().name("commit".into()).spawn(run);
    // Without the thread, the queue is closed and every request gets `Stopped`.
    if let Err(error) = started {
        tracing::error!(%error, "cannot start the commit thread");
    }
    (has_ended, has_failed)
}

/// Runs in the runtime: wakes watchers and sends replies, in commit order.
async fn hand_out(mut results: mpsc::UnboundedReceiver<BatchResults>, ended: oneshot::Sender<()>) {
    while let Some(BatchResults { wakes, replies, watches }) = results.recv().await {
        wakes.into_iter().for_each(Wake::wake);
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
struct Writer {
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    hot: Arc<HotTable>,
    counters: Arc<CommitCounters>,
    telemetry: CommitTelemetry,
    order: EvictionOrder,
    /// Set when the writer stops committing: the reason.
    failed: watch::Sender<Option<StoreError>>,
    hot_max: usize,
}

impl Writer {
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
        replies.iter().for_each(|reply| self.counters.add_mutation(statistics::outcome(reply)));
        for (at, span) in spans {
            span.end(replies.len(), statistics::outcome(&replies[at]));
        }
        for (session, caller, id) in corrections {
            wakes.extend(self.hot.record(&id, |inventory| ChangeRecord::correction(session, caller, inventory)));
        }
        let watches = watches
            .into_iter()
            .map(|(ids, reply)| {
                let readable = loaded.as_ref().map_err(Clone::clone).and_then(|loaded| loaded.check(ids.iter()));
                (reply, readable.map(|()| self.watch(ids)))
            })
            .collect();
        self.hot.evict(self.hot_max, &mut self.order);
        let replies = mutations.into_iter().map(|(_, reply)| reply).zip(replies).collect();
        BatchResults { wakes, replies, watches }
    }

    fn watch(&mut self, ids: Vec<InventoryId>) -> WatchedInventories {
        let receivers = self.hot.receivers(&ids, &mut self.order);
        WatchedInventories::new(self.hot.clone(), ids, receivers)
    }

    /// Starts a span for each traced request and returns it with the request's index. The span becomes the parent of
    /// the request's changes.
    fn trace(&self, mutations: &mut [(MutationRequest, ReplySender)]) -> Vec<(usize, CommitSpan)> {
        let mut spans = Vec::new();
        for (at, (request, _)) in mutations.iter_mut().enumerate() {
            if let Some(span) = request.trace.take().and_then(|trace| self.telemetry.begin(trace)) {
                request.trace = Some(span.cause());
                spans.push((at, span));
            }
        }
        spans
    }

    /// Loads every cold inventory that the batch needs into the hot table, and looks up the batch's keys.
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
        let keys: Vec<Key> = mutations.iter().map(|(request, _)| request.key.clone()).collect();
        let (found, loaded) = match self.store.load(&cold, &keys) {
            Ok(Loaded { inventories, keys }) => {
                let loaded = LoadedBatch { recalls: keys.into_iter().map(Ok).collect(), unreadable: HashMap::new() };
                (cold.into_iter().zip(inventories).collect(), loaded)
            }
            Err(StoreError::Corrupt { .. } | StoreError::Unavailable { .. }) => load_singly(&*self.store, cold, &keys)?,
            Err(error @ StoreError::Full { .. }) => return Err(EngineError::Store(error)),
        };
        let staged = |(id, inventory)| (id, Staged::new(inventory));
        // A cold inventory has no watchers to wake.
        self.hot.publish(found.into_iter().map(staged), &mut self.order);
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
    ) -> (Vec<Wake>, Vec<Result<MutationReply, EngineError>>) {
        let mut batch = Batch::new(&self.hot);
        let replies: Vec<_> = mutations
            .iter()
            .zip(&loaded.recalls)
            .map(|((request, _), recalled)| batch.run(request, loaded.recall(request, recalled)?, &self.catalog))
            .collect();
        if !batch.transactions.is_empty()
            && let Err(error) = self.commit(&batch.transactions)
        {
            let error = self.engine_error(error);
            return (Vec::new(), mutations.iter().map(|_| Err(error.clone())).collect());
        }
        let staged = batch.staged;
        (self.hot.publish(staged.into_iter(), &mut self.order), replies)
    }

    fn commit(&self, transactions: &[Transaction]) -> Result<(), CommitError> {
        let began = Instant::now();
        let committed = self.store.commit(transactions);
        match &committed {
            Ok(()) => {
                let took = began.elapsed();
                self.counters.add_commit(transactions.len(), took);
                self.telemetry.record(transactions.len(), took);
            }
            Err(error) => self.counters.add_failure(error),
        }
        committed
    }

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

/// The results of the store's lookups for one batch.
struct LoadedBatch {
    /// The idempotency lookup of each mutation.
    recalls: Vec<Result<KeyStatus, StoreError>>,
    /// Inventories that the store cannot read. Only requests that need one of them fail.
    unreadable: HashMap<InventoryId, StoreError>,
}

impl LoadedBatch {
    fn check<'a>(&self, mut ids: impl Iterator<Item = &'a InventoryId>) -> Result<(), EngineError> {
        if self.unreadable.is_empty() {
            return Ok(());
        }
        ids.find_map(|id| self.unreadable.get(id)).map_or(Ok(()), |error| Err(EngineError::Store(error.clone())))
    }

    /// Returns the lookup of a request's key. A retry needs only the stored reply, so unreadable inventories do not
    /// fail it.
    fn recall<'a>(
        &self,
        request: &MutationRequest,
        recalled: &'a Result<KeyStatus, StoreError>,
    ) -> Result<&'a KeyStatus, EngineError> {
        let recalled = recalled.as_ref().map_err(|error| EngineError::Store(error.clone()))?;
        match recalled {
            KeyStatus::Applied { .. } | KeyStatus::Expired | KeyStatus::TooFarAhead { .. } => {}
            KeyStatus::New => self.check(needed_inventories(request))?,
        }
        Ok(recalled)
    }
}

/// Returns every inventory that a mutation may read.
fn needed_inventories(request: &MutationRequest) -> impl Iterator<Item = &InventoryId> {
    request.mutation.inventories().chain(request.predicted.iter().map(|(id, _)| id))
}

type Found = Vec<(InventoryId, Option<Arc<Inventory>>)>;

/// Maximum number of failed reads in one batch before the whole batch fails; each failed read may take the disk a
/// while.
const FAILED_READS_MAX: usize = 8;

/// Loads inventories and keys one by one after a batch load failed, so that an unreadable one fails only its own
/// requests.
fn load_singly(store: &dyn Store, ids: Vec<InventoryId>, keys: &[Key]) -> Result<(Found, LoadedBatch), EngineError> {
    let mut batch = LoadedBatch { recalls: Vec::with_capacity(keys.len()), unreadable: HashMap::new() };
    let mut found = Vec::with_capacity(ids.len());
    let mut failed_reads = 0;
    let mut may_go_on = |error: &StoreError| {
        failed_reads += usize::from(!matches!(error, StoreError::Corrupt { .. }));
        failed_reads < FAILED_READS_MAX
    };
    for id in ids {
        match store.load(std::slice::from_ref(&id), &[]) {
            Ok(loaded) => found.push((id, loaded.inventories.into_iter().flatten().next())),
            Err(error) if may_go_on(&error) => {
                tracing::error!(%id, %error, "cannot read an inventory; requests that need it fail");
                batch.unreadable.insert(id, error);
            }
            Err(error) => return Err(EngineError::Store(error)),
        }
    }
    for key in keys {
        match store.load(&[], std::slice::from_ref(key)) {
            Ok(loaded) => batch.recalls.extend(loaded.keys.into_iter().map(Ok)),
            Err(error) if may_go_on(&error) => batch.recalls.push(Err(error)),
            Err(error) => return Err(EngineError::Store(error)),
        }
    }
    Ok((found, batch))
}

fn stopped_error() -> EngineError {
    EngineError::Store(StoreError::Unavailable {
        detail: "the outcome of an earlier commit is unknown; restart the service".into(),
    })
}

/// The mutations of one batch, applied to copies.
struct Batch<'a> {
    hot: &'a HotTable,
    /// The states of the inventories that the batch has changed so far.
    staged: HashMap<InventoryId, Staged>,
    transactions: Vec<Transaction>,
    by_key: HashMap<Key, usize>,
}

impl InventoryLookup for Batch<'_> {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        match self.staged.get(id) {
            Some(staged) => staged.inventory.clone(),
            None => self.hot.inventory(id).flatten(),
        }
    }
}

impl<'a> Batch<'a> {
    fn new(hot: &'a HotTable) -> Self {
        Self { hot, staged: HashMap::new(), transactions: Vec::new(), by_key: HashMap::new() }
    }

    fn run(
        &mut self,
        request: &MutationRequest,
        recalled: &KeyStatus,
        catalog: &Catalog,
    ) -> Result<MutationReply, EngineError> {
        let ran = self.recall(request, recalled).unwrap_or_else(|| self.apply(request, catalog));
        if ran.is_err() {
            request.predicted.iter().for_each(|(id, _)| self.record_correction(request, id));
        }
        ran
    }

    /// Returns the reply to a mutation whose key is already known, or `None` if the key is new.
    fn recall(&self, request: &MutationRequest, recalled: &KeyStatus) -> Option<Result<MutationReply, EngineError>> {
        let in_this_batch = self.by_key.get(&request.key).map(|at| &self.transactions[*at]);
        let (payload, reply) = match (in_this_batch, recalled) {
            (Some(earlier), _) => (earlier.payload, &earlier.reply),
            (None, KeyStatus::Applied { payload, reply }) => (*payload, reply),
            (None, KeyStatus::Expired) => return Some(Err(EngineError::KeyExpired)),
            (None, KeyStatus::TooFarAhead { ahead_ms }) => {
                return Some(Err(EngineError::KeyFromTheFuture { ahead_ms: *ahead_ms }));
            }
            (None, KeyStatus::New) => return None,
        };
        if payload != request.payload {
            return Some(Err(EngineError::KeyReused));
        }
        Some(Ok(MutationReply { reply: reply.clone(), replayed: true, prediction_confirmed: false }))
    }

    fn apply(&mut self, request: &MutationRequest, catalog: &Catalog) -> Result<MutationReply, EngineError> {
        let mutation = request.mutation.resolve(catalog).map_err(EngineError::UnknownName)?;
        let effect = domain::apply(&mutation, catalog, &*self, &mut new_epoch).map_err(EngineError::Rejected)?;
        let context = context(request);
        let current = |id: &InventoryId| self.inventory(id).map(|inventory| inventory.contents.digest());
        let prediction_confirmed = context.is_confirmed(&effect, current);
        let Effect { outcomes, touched } = effect;
        for one in &touched {
            if let Some(record) = context.record(one, prediction_confirmed) {
                self.stage(request, one, record);
            }
        }
        if !prediction_confirmed {
            context.untouched(&touched).for_each(|id| self.record_correction(request, id));
        }
        let versions = touched.iter().map(|touched| touched.version.clone()).collect();
        let reply = Reply { outcomes, versions };
        self.by_key.insert(request.key.clone(), self.transactions.len());
        let (key, payload) = (request.key.clone(), request.payload);
        self.transactions.push(Transaction { key, payload, reply: reply.clone(), touched });
        Ok(MutationReply { reply, replayed: false, prediction_confirmed })
    }

    fn stage(&mut self, request: &MutationRequest, touched: &Touched, record: ChangeRecord) {
        let staged = self.staged.entry(touched.version.id.clone()).or_insert_with(|| Staged::new(None));
        staged.inventory.clone_from(&touched.state);
        staged.trace = request.trace.or(staged.trace);
        staged.records.push(record);
    }

    /// Makes the session's streams send a full state of an inventory that the session predicted wrongly.
    fn record_correction(&mut self, request: &MutationRequest, id: &InventoryId) {
        let (Some(session), Some(inventory)) = (&request.session, self.inventory(id)) else { return };
        let record = ChangeRecord::correction(session.clone(), request.key.caller.clone(), &inventory);
        let unchanged = || Staged::new(Some(inventory));
        self.staged.entry(id.clone()).or_insert_with(unchanged).records.push(record);
    }
}

fn context(request: &MutationRequest) -> MutationContext<'_> {
    MutationContext {
        session: request.session.as_ref(),
        predicted: &request.predicted,
        key: KeyTag::of(&request.key.key),
        caller: &request.key.caller,
        kind: ChangeKind::of(&request.mutation),
        reason: &request.reason,
    }
}

/// Returns a new random epoch.
pub fn new_epoch() -> Epoch {
    loop {
        if let Some(epoch) = Epoch::new(fastrand::u32(..)) {
            return epoch;
        }
    }
}
