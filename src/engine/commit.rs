//! The commit loop: one thread, one linear order, no lock in the domain.

use super::hot::{EvictionOrder, HotTable, State, Wake};
use super::{Answer, Call, EngineSettings, Refusal};
use crate::domain::{self, Catalog, Epoch, Inventory, InventoryId, View};
use crate::store::{CommitError, Key, Loaded, Recall, Reply, Store, StoreError, Transaction};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

pub(super) type Answering = oneshot::Sender<Result<Answer, Refusal>>;
pub(super) type Receivers = Result<Vec<watch::Receiver<State>>, Refusal>;
pub(super) type Watching = oneshot::Sender<Receivers>;

pub(super) enum Request {
    Mutate { call: Box<Call>, answer: Answering },
    Watch { ids: Vec<InventoryId>, answer: Watching },
}

/// What is handed from the commit thread to the runtime, once a batch: one wake-up for all of it.
#[derive(Default)]
struct Results {
    wakes: Vec<Wake>,
    answers: Vec<(Answering, Result<Answer, Refusal>)>,
    watches: Vec<(Watching, Receivers)>,
}

pub(super) fn spawn(
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    settings: EngineSettings,
    hot: Arc<HotTable>,
    mut requests: mpsc::Receiver<Request>,
) -> (oneshot::Receiver<()>, watch::Receiver<bool>) {
    let (results, handing_out) = mpsc::unbounded_channel();
    let (ended, has_ended) = oneshot::channel();
    let (failed, has_failed) = watch::channel(false);
    tokio::spawn(hand_out(handing_out, ended));
    let mut writer = Writer { store, catalog, hot, order: EvictionOrder::default(), failed, hot_max: settings.hot_max };
    let run = move || {
        let mut batch = Vec::new();
        while requests.blocking_recv_many(&mut batch, settings.batch_max) > 0 {
            // Unbounded, yet bounded: it holds no more than the callers that wait.
            if results.send(writer.run(batch.drain(..))).is_err() {
                break;
            }
        }
        // First the store is let go of, then the end is told: whoever waits for the end may open it again.
        drop(writer);
        drop(results);
    };
    let started = std::thread::Builder::new().name("commit".into()).spawn(run);
    // Without a thread every call is answered with `Stopped`, since its queue is gone.
    if let Err(error) = started {
        tracing::error!(%error, "the commit thread could not be started");
    }
    (has_ended, has_failed)
}

/// Runs in the runtime: wakes watchers and answers callers, in the order of the commits.
async fn hand_out(mut results: mpsc::UnboundedReceiver<Results>, ended: oneshot::Sender<()>) {
    while let Some(Results { wakes, answers, watches }) = results.recv().await {
        wakes.into_iter().for_each(Wake::wake);
        // Whoever has gone away in the meantime needs no answer.
        for (answer, result) in answers {
            let _ = answer.send(result);
        }
        for (answer, result) in watches {
            let _ = answer.send(result);
        }
    }
    let _ = ended.send(());
}

struct Writer {
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    hot: Arc<HotTable>,
    order: EvictionOrder,
    failed: watch::Sender<bool>,
    hot_max: usize,
}

impl Writer {
    fn run(&mut self, requests: impl Iterator<Item = Request>) -> Results {
        let (mut calls, mut watches) = (Vec::new(), Vec::new());
        for request in requests {
            match request {
                Request::Mutate { call, answer } => calls.push((*call, answer)),
                Request::Watch { ids, answer } => watches.push((ids, answer)),
            }
        }
        let recalled = if *self.failed.borrow() { Err(gave_up()) } else { self.load(&calls, &watches) };
        let (wakes, answers) = match &recalled {
            Ok(recalled) => self.mutate(&calls, recalled),
            Err(refusal) => (Vec::new(), calls.iter().map(|_| Err(refusal.clone())).collect()),
        };
        let watches = watches
            .into_iter()
            .map(|(ids, answer)| {
                let receivers = recalled.as_ref().map(|_| self.hot.receivers(&ids, &mut self.order));
                (answer, receivers.map_err(Clone::clone))
            })
            .collect();
        self.hot.evict(self.hot_max, &mut self.order);
        let answers = calls.into_iter().map(|(_, answer)| answer).zip(answers).collect();
        Results { wakes, answers, watches }
    }

    /// Makes every inventory that the batch needs hot, and tells what is known of its keys.
    fn load(
        &mut self,
        calls: &[(Call, Answering)],
        watches: &[(Vec<InventoryId>, Watching)],
    ) -> Result<Vec<Recall>, Refusal> {
        let of_calls = calls.iter().flat_map(|(call, _)| call.mutation.inventories());
        let of_watches = watches.iter().flat_map(|(ids, _)| ids);
        let mut seen = HashSet::new();
        let cold: Vec<InventoryId> =
            of_calls.chain(of_watches).filter(|id| seen.insert(*id) && !self.hot.contains(id)).cloned().collect();
        let keys: Vec<Key> = calls.iter().map(|(call, _)| call.key.clone()).collect();
        let Loaded { inventories, keys } = self.store.load(&cold, &keys).map_err(Refusal::Store)?;
        let found = cold.into_iter().zip(inventories).filter(|(_, state)| state.is_some());
        // Nobody watches a cold inventory: there is no one to wake.
        self.hot.publish(found, &mut self.order);
        Ok(keys)
    }

    /// Applies all calls in order, commits them together, publishes. An answer for each call.
    ///
    /// Rejections wait for the commit too: what refused them may be the work of a call before them in the batch.
    fn mutate(
        &mut self,
        calls: &[(Call, Answering)],
        recalled: &[Recall],
    ) -> (Vec<Wake>, Vec<Result<Answer, Refusal>>) {
        let mut batch = Batch::new(&self.hot);
        let answers: Vec<_> =
            calls.iter().zip(recalled).map(|((call, _), recalled)| batch.run(call, recalled, &self.catalog)).collect();
        if !batch.transactions.is_empty()
            && let Err(error) = self.store.commit(&batch.transactions)
        {
            let refusal = self.refusal(error);
            return (Vec::new(), calls.iter().map(|_| Err(refusal.clone())).collect());
        }
        let states = batch.states;
        (self.hot.publish(states.into_iter(), &mut self.order), answers)
    }

    fn refusal(&self, error: CommitError) -> Refusal {
        match error {
            CommitError::NotCommitted(error) => {
                tracing::warn!(%error, "a batch was not committed; nothing has changed");
                Refusal::Store(error)
            }
            CommitError::Unknown(error) => {
                // To go on could build upon what is not there: https://www.usenix.org/conference/atc20/presentation/rebello
                tracing::error!(%error, "the end of a commit is unknown; no more is written until a restart");
                self.failed.send_replace(true);
                Refusal::Unknown
            }
        }
    }
}

fn gave_up() -> Refusal {
    Refusal::Store(StoreError::Unavailable {
        detail: "the end of an earlier commit is unknown; the service has to be restarted".into(),
    })
}

/// The calls of one batch, applied to copies.
struct Batch<'a> {
    hot: &'a HotTable,
    /// What the batch has made of the inventories so far.
    states: HashMap<InventoryId, State>,
    transactions: Vec<Transaction>,
    by_key: HashMap<Key, usize>,
}

impl View for Batch<'_> {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        match self.states.get(id) {
            Some(state) => state.clone(),
            None => self.hot.state(id).flatten(),
        }
    }
}

impl<'a> Batch<'a> {
    fn new(hot: &'a HotTable) -> Self {
        Self { hot, states: HashMap::new(), transactions: Vec::new(), by_key: HashMap::new() }
    }

    fn run(&mut self, call: &Call, recalled: &Recall, catalog: &Catalog) -> Result<Answer, Refusal> {
        let in_this_batch = self.by_key.get(&call.key).map(|at| &self.transactions[*at]);
        let earlier = match (in_this_batch, recalled) {
            (Some(earlier), _) => Some((earlier.payload, &earlier.reply)),
            (None, Recall::Applied { payload, reply }) => Some((*payload, reply)),
            (None, Recall::Forgotten) => return Err(Refusal::KeyForgotten),
            (None, Recall::New) => None,
        };
        if let Some((payload, reply)) = earlier {
            let same = payload == call.payload;
            return if same { Ok(Answer { reply: reply.clone(), replayed: true }) } else { Err(Refusal::KeyReused) };
        }
        let effect = domain::apply(&call.mutation, catalog, &*self, &mut new_epoch).map_err(Refusal::Rejected)?;
        let versions = effect.touched.iter().map(|touched| touched.version.clone()).collect();
        let reply = Reply { outcomes: effect.outcomes, versions };
        for touched in effect.touched.iter().filter(|touched| !touched.changes.is_empty()) {
            self.states.insert(touched.version.id.clone(), touched.state.clone());
        }
        self.by_key.insert(call.key.clone(), self.transactions.len());
        let (key, payload, touched) = (call.key.clone(), call.payload, effect.touched);
        self.transactions.push(Transaction { key, payload, reply: reply.clone(), touched });
        Ok(Answer { reply, replayed: false })
    }
}

fn new_epoch() -> Epoch {
    loop {
        if let Some(epoch) = Epoch::new(fastrand::u32(..)) {
            return epoch;
        }
    }
}
