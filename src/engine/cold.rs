//! Reads that need the store. They run on blocking threads beside the commit loop, and neither waits for the other.

use super::delivery::{BatchResults, ReplyTo, ResultDelivery};
use super::hot::{ColdRead, HotTable};
use super::load::load_batch;
use super::probes::Probes;
use super::{EngineError, stopped_error};
use crate::domain::{Inventory, InventoryId};
use crate::store::{ListPage, ListQuery, Store, StoreError};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Maximum number of inventories that are read in one step.
const READ_BATCH_MAX: usize = 64;
/// Pause after a step of the thread that reads inventories, if reads arrive quickly. Those that arrive meanwhile share the next
/// step: a step costs a snapshot of the store and the waking of two threads, as much as tens of reads, and it takes CPU time
/// from the commit loop.
const STEP_PAUSE: Duration = Duration::from_millis(1);
/// Number of reads that must arrive in a pause so that the next step is followed by one too.
const PAUSE_READS_MIN: usize = 6;
/// Maximum number of requests in each queue.
const WAITING_MAX: usize = 1_024;

type ReadReply = ReplyTo<Option<Arc<Inventory>>>;

/// The requests that wait for a thread. One thread reads inventories and another one pages of lists, because a page takes
/// longer.
pub(super) struct ColdReads {
    store: Arc<dyn Store>,
    hot: Arc<HotTable>,
    hot_max: usize,
    runtimes: Arc<ResultDelivery>,
    /// The reason why the engine has stopped committing, if it has.
    failed: watch::Receiver<Option<StoreError>>,
    inventories: Mutex<ReadQueue>,
    pages: Mutex<ReadQueue>,
    /// Used by the thread that reads inventories.
    pauses: Mutex<StepPauses>,
}

#[derive(Default)]
struct ReadQueue {
    waiting: VecDeque<ReadRequest>,
    /// Whether a thread takes requests from the queue.
    has_reader: bool,
}

/// Decides after which steps to pause. Callers that wait for each reply before the next read are hardly delayed: they only
/// notice the probes.
#[derive(Debug, Default)]
struct StepPauses {
    are_used: bool,
    /// While pauses are not used, some steps are followed by one as a probe.
    probes: Probes,
}

impl StepPauses {
    /// Returns whether to pause after a step.
    fn must_pause(&mut self) -> bool {
        let must_probe = self.probes.must_probe();
        self.are_used || must_probe
    }

    /// Handles the end of a pause, after which `waiting` reads wait.
    fn handle_pause(&mut self, waiting: usize) {
        self.are_used = waiting >= PAUSE_READS_MIN;
        self.probes.handle_result(self.are_used);
    }
}

pub(super) enum ReadRequest {
    Inventory { read: ColdRead, reply: ReadReply },
    Page { query: ListQuery, reply: ReplyTo<ListPage> },
}

/// The two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadKind {
    Inventories,
    Pages,
}

impl ColdReads {
    pub fn new(
        store: Arc<dyn Store>,
        hot: Arc<HotTable>,
        hot_max: usize,
        runtimes: Arc<ResultDelivery>,
        failed: watch::Receiver<Option<StoreError>>,
    ) -> Self {
        let (inventories, pages, pauses) = Default::default();
        Self { store, hot, hot_max, runtimes, failed, inventories, pages, pauses }
    }

    /// Queues a request. Returns whether there was room. Must be called within a tokio runtime.
    pub fn enqueue(self: &Arc<Self>, request: ReadRequest) -> bool {
        let kind = request.kind();
        let mut queue = self.queue(kind).lock();
        if queue.waiting.len() >= WAITING_MAX {
            queue.waiting.retain(|request| !request.is_abandoned());
        }
        if queue.waiting.len() >= WAITING_MAX {
            return false;
        }
        queue.waiting.push_back(request);
        if !std::mem::replace(&mut queue.has_reader, true) {
            drop(queue);
            let reader = Reader { kind, reads: Some(self.clone()), _running: self.runtimes.running() };
            tokio::task::spawn_blocking(move || reader.run());
        }
        true
    }

    fn queue(&self, kind: ReadKind) -> &Mutex<ReadQueue> {
        match kind {
            ReadKind::Inventories => &self.inventories,
            ReadKind::Pages => &self.pages,
        }
    }

    /// Takes the requests of the next step. If none wait, the calling thread stops being the queue's reader.
    fn next_step(&self, kind: ReadKind) -> Vec<ReadRequest> {
        let requests_max = match kind {
            ReadKind::Inventories => READ_BATCH_MAX,
            ReadKind::Pages => 1,
        };
        let mut queue = self.queue(kind).lock();
        let mut requests = Vec::new();
        while requests.len() < requests_max {
            match queue.waiting.pop_front() {
                Some(request) if request.is_abandoned() => {}
                Some(request) => requests.push(request),
                None => break,
            }
        }
        queue.has_reader = !requests.is_empty();
        requests
    }

    /// Pauses after a step of reads if more of them share the next step then.
    fn pause(&self) {
        if self.pauses.lock().must_pause() {
            std::thread::sleep(STEP_PAUSE);
            let waiting = self.inventories.lock().waiting.len();
            self.pauses.lock().handle_pause(waiting);
        }
    }

    fn run(&self, requests: Vec<ReadRequest>) {
        let (mut results, mut reads) = (BatchResults::default(), Vec::new());
        for request in requests {
            match request {
                ReadRequest::Inventory { read, reply } => reads.push((read, reply)),
                ReadRequest::Page { query, reply } => {
                    let page = self.check_running().and_then(|()| self.store.list(&query).map_err(EngineError::Store));
                    results.add_page(reply, page);
                }
            }
        }
        if !reads.is_empty() {
            self.read(reads, &mut results);
        }
        self.runtimes.send(results);
    }

    fn read(&self, reads: Vec<(ColdRead, ReadReply)>, results: &mut BatchResults) {
        let ids: Vec<InventoryId> = reads.iter().map(|(read, _)| read.id().clone()).collect();
        let loaded = self.check_running().and_then(|()| load_batch(&*self.store, ids, &[]));
        let (states, unreadable) = match loaded {
            Ok((states, loaded)) => (states, Ok(loaded)),
            Err(error) => (Vec::new(), Err(error)),
        };
        let mut states = states.into_iter().peekable();
        for (read, reply) in reads {
            // The states are in the order of the ids, without those that could not be read. If an id occurs twice, perhaps
            // only one of the attempts succeeded: its state is skipped here, so that it does not hide those after it.
            let found = states.next_if(|loaded| loaded.id == *read.id());
            let checked = unreadable.as_ref().map_err(Clone::clone);
            let state = match checked.and_then(|loaded| loaded.check_readable(std::iter::once(read.id()))) {
                Ok(()) => self.hot.end_read(read, found, || self.check_running()),
                Err(error) => Err(error),
            };
            results.add_read(reply, state);
        }
        self.hot.evict_between_batches(self.hot_max);
    }

    /// After a commit with an unknown outcome, the store may have states that are not durable.
    fn check_running(&self) -> Result<(), EngineError> {
        if self.failed.borrow().is_some() { Err(stopped_error()) } else { Ok(()) }
    }
}

impl ReadRequest {
    fn kind(&self) -> ReadKind {
        match self {
            Self::Inventory { .. } => ReadKind::Inventories,
            Self::Page { .. } => ReadKind::Pages,
        }
    }

    /// Returns whether the caller no longer waits.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Inventory { reply, .. } => reply.sender.is_closed(),
            Self::Page { reply, .. } => reply.sender.is_closed(),
        }
    }
}

/// A thread that takes requests from one queue until none wait.
struct Reader {
    kind: ReadKind,
    /// `None` once the thread has stopped being the reader of its queue.
    reads: Option<Arc<ColdReads>>,
    /// Dropped last, because a caller that waits for the end of the engine may reopen the store.
    _running: mpsc::Sender<Infallible>,
}

impl Reader {
    fn run(mut self) {
        while let Some(reads) = &self.reads {
            let requests = reads.next_step(self.kind);
            if requests.is_empty() {
                self.reads = None;
                return;
            }
            reads.run(requests);
            if self.kind == ReadKind::Inventories {
                reads.pause();
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The thread panicked, or its runtime ended before it ran.
        if let Some(reads) = self.reads.take() {
            reads.queue(self.kind).lock().has_reader = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hot::StagedState;
    use super::super::load::LoadedInventory;
    use super::*;
    use crate::domain::{Contents, Epoch, LayoutId, Revision};
    use std::collections::HashMap;

    /// Revisions of the inventories; without an entry, an inventory does not exist.
    type States = HashMap<usize, u64>;

    const INVENTORIES: usize = 4;
    const HOT_MAX: usize = 1;

    /// A model of the commit loop and of reads, each of which runs in several steps that interleave at random.
    #[derive(Default)]
    struct World {
        hot: HotTable,
        /// The durable states.
        store: States,
        /// All published states of each inventory, oldest first; `None` while it does not exist.
        published: [Vec<Option<u64>>; INVENTORIES],
        batch: Option<BatchInFlight>,
        reads: Vec<ReadInFlight>,
        revision: u64,
    }

    struct BatchInFlight {
        ids: Vec<usize>,
        is_committed: bool,
    }

    struct ReadInFlight {
        number: usize,
        cold: ColdRead,
        /// The number of states that were published when the read began.
        published: usize,
        /// What the store returned.
        found: Option<Option<u64>>,
    }

    fn id(number: usize) -> InventoryId {
        InventoryId::new(&format!("inv-{number}")).unwrap()
    }

    fn inventory(number: usize, revision: u64) -> Arc<Inventory> {
        Arc::new(Inventory {
            id: id(number),
            owner: None,
            layout: LayoutId::new("chest").unwrap(),
            epoch: Epoch::new(1).unwrap(),
            contents: Contents::new(1, Revision(revision), &[]),
        })
    }

    fn loaded(inventory: Option<Arc<Inventory>>) -> Option<LoadedInventory> {
        let id = inventory.as_ref()?.id.clone();
        Some(LoadedInventory { id, inventory, head: None })
    }

    fn revision(inventory: Option<Arc<Inventory>>) -> Option<u64> {
        inventory.map(|inventory| inventory.contents.revision().0)
    }

    impl World {
        fn begin_batch(&mut self, random: &mut fastrand::Rng) {
            let ids: Vec<usize> = (0..INVENTORIES).filter(|_| random.bool()).collect();
            let needed: Vec<InventoryId> = ids.iter().map(|number| id(*number)).collect();
            let cold = self.hot.begin_batch(needed.iter());
            let loaded = cold.into_iter().map(|id| {
                let number = (0..INVENTORIES).find(|number| self::id(*number) == id).unwrap();
                let inventory = self.store.get(&number).map(|revision| inventory(number, *revision));
                LoadedInventory { id, inventory, head: None }
            });
            let loaded: Vec<LoadedInventory> = loaded.collect();
            self.hot.insert_loaded(loaded);
            self.batch = Some(BatchInFlight { ids, is_committed: false });
        }

        fn commit(&mut self, ids: &[usize], random: &mut fastrand::Rng) {
            for number in ids {
                self.revision += 1;
                match random.u8(..3) {
                    0 => drop(self.store.remove(number)),
                    _ => drop(self.store.insert(*number, self.revision)),
                }
            }
        }

        fn end_batch(&mut self, batch: &BatchInFlight) {
            if batch.is_committed {
                let state = |number: usize| self.store.get(&number).map(|revision| inventory(number, *revision));
                let staged = batch.ids.iter().map(|number| (id(*number), StagedState::new(state(*number))));
                self.hot.publish(staged);
                for number in &batch.ids {
                    self.published[*number].push(self.store.get(number).copied());
                }
            }
            self.hot.evict(HOT_MAX);
        }

        fn step_batch(&mut self, random: &mut fastrand::Rng) {
            match self.batch.take() {
                None => self.begin_batch(random),
                Some(BatchInFlight { ids, is_committed: false }) if random.u8(..8) > 0 => {
                    self.commit(&ids, random);
                    self.batch = Some(BatchInFlight { ids, is_committed: true });
                }
                // It was not committed, or it was and is published now.
                Some(batch) => self.end_batch(&batch),
            }
        }

        fn begin_read(&mut self, number: usize) {
            match self.hot.read_or_begin(&id(number)) {
                Ok(state) => {
                    assert_eq!(Some(&revision(state)), self.published[number].last(), "a hot state is current")
                }
                Err(cold) => {
                    let published = self.published[number].len();
                    self.reads.push(ReadInFlight { number, cold, published, found: None });
                }
            }
        }

        fn step_read(&mut self, index: usize) {
            let mut read = self.reads.swap_remove(index);
            match read.found {
                None => {
                    read.found = Some(self.store.get(&read.number).copied());
                    self.reads.push(read);
                }
                Some(found) => {
                    let found = found.map(|revision| inventory(read.number, revision));
                    let state = self.hot.end_read(read.cold, loaded(found), || Ok::<(), ()>(())).unwrap();
                    let current_at_some_time = &self.published[read.number][read.published - 1..];
                    assert!(
                        current_at_some_time.contains(&revision(state)),
                        "a state that was current during the read"
                    );
                    self.hot.evict_between_batches(HOT_MAX);
                }
            }
        }

        /// Checks that every state in the table is the newest that was published.
        fn check(&self) {
            for number in 0..INVENTORIES {
                if let Some(state) = self.hot.inventory(&id(number)) {
                    assert_eq!(Some(&revision(state)), self.published[number].last());
                }
            }
            for number in self.batch.iter().flat_map(|batch| &batch.ids) {
                assert!(self.hot.contains(&id(*number)), "a batch in flight keeps its entries");
            }
        }
    }

    #[test]
    fn a_slow_read_never_returns_or_inserts_a_state_that_is_too_old_or_not_published() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut world = World { published: std::array::from_fn(|_| vec![None]), ..World::default() };
            for _ in 0..300 {
                match random.u8(..3) {
                    0 => world.step_batch(&mut random),
                    1 => world.begin_read(random.usize(..INVENTORIES)),
                    _ if world.reads.is_empty() => {}
                    _ => world.step_read(random.usize(..world.reads.len())),
                }
                world.check();
            }
        }
    }

    #[test]
    fn the_state_of_a_read_is_inserted_only_if_nothing_was_removed_meanwhile() {
        let hot = HotTable::default();
        let begin = || hot.read_or_begin(&id(0)).unwrap_err();
        let end = |read| hot.end_read(read, loaded(Some(inventory(0, 5))), || Ok::<(), ()>(())).unwrap();
        let (slow, quick) = (begin(), begin());
        assert_eq!(revision(end(quick)), Some(5));
        assert!(hot.contains(&id(0)));
        // A commit changes the inventory, and eviction removes it.
        hot.publish([(id(0), StagedState::new(Some(inventory(0, 6))))].into_iter());
        hot.evict(0);
        hot.evict(0);
        assert!(!hot.contains(&id(0)));
        end(slow);
        assert!(!hot.contains(&id(0)), "the old state is not inserted");
    }

    #[test]
    fn a_read_that_ends_after_the_engine_has_failed_inserts_nothing() {
        let hot = HotTable::default();
        let read = hot.read_or_begin(&id(0)).unwrap_err();
        assert_eq!(hot.end_read(read, loaded(Some(inventory(0, 5))), || Err("failed")), Err("failed"));
        assert!(!hot.contains(&id(0)));
    }

    #[test]
    fn pauses_follow_most_steps_only_while_reads_arrive_quickly() {
        const STEPS: usize = 10_000;
        let mut pauses = StepPauses::default();
        for (waiting, shares) in [(1, 0.0..=0.01), (10, 0.95..=1.0), (5, 0.0..=0.01)] {
            let mut paused = 0;
            for _ in 0..STEPS {
                if pauses.must_pause() {
                    paused += 1;
                    pauses.handle_pause(waiting);
                }
            }
            assert!(shares.contains(&(paused as f64 / STEPS as f64)), "{waiting} waiting: {paused} pauses");
        }
    }
}
