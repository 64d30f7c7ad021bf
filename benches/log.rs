//! Measures the log: bytes on disk for each sealed mutation, and how long it takes to look back. Mutations of inventories of 36
//! slots go through the engine into the embedded store, whose key window is short, so that sealing runs meanwhile. Run with
//! `cargo bench --bench log`. These variables change the sizes (defaults in parentheses):
//!
//! - `SLOTCAST_BENCH_INVENTORIES` (10000), `SLOTCAST_BENCH_MUTATIONS` (1000000), `SLOTCAST_BENCH_BATCH` (128)

use slotcast::catalog_file::default_catalog;
use slotcast::domain::{
    Attributes, Caller, Count, Fingerprint, IdempotencyKey, InventoryId, ItemRef, LayoutId, Mutation, Operation,
    Revision, Slot, Stack, UnresolvedOperation,
};
use slotcast::engine::{Engine, EngineSettings, MutationRequest};
use slotcast::store::ScopedKey;
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::history::{PastState, PastTarget};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY_WINDOW: Duration = Duration::from_secs(2);
/// One mutation in so many changes the first inventory.
const FIRST_EVERY: usize = 50;
/// Number of times that each query is repeated; the median counts.
const REPEATS: usize = 21;

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let size = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (inventories, mutations, batch) = (
        size("SLOTCAST_BENCH_INVENTORIES", 10_000),
        size("SLOTCAST_BENCH_MUTATIONS", 1_000_000),
        size("SLOTCAST_BENCH_BATCH", 128),
    );
    let path = folder.path().join("log.db");
    let (begin, skipped) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    // The clock skips the last key window, so that everything is due at once.
    let is_skipped = skipped.clone();
    let clock =
        move || begin.elapsed() + if is_skipped.load(Ordering::SeqCst) { 2 * KEY_WINDOW } else { Duration::ZERO };
    let settings = EmbeddedSettings { key_window: KEY_WINDOW, clock: Arc::new(clock), ..EmbeddedSettings::default() };
    let store = Arc::new(EmbeddedStore::open(&path, settings).expect("the store opens"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let engine = Engine::start(store.clone(), Arc::new(default_catalog()), EngineSettings::default()).0;
        let mut load = Load { engine, random: fastrand::Rng::with_seed(1), inventories };
        load.create().await;
        let start = Instant::now();
        load.run(mutations, batch).await;
        println!("{mutations} mutations in {:.1} s", start.elapsed().as_secs_f64());
        load.delete_last().await;
    });
    skipped.store(true, Ordering::SeqCst);
    store.fold().expect("everything is sealed");
    let statistics = store.statistics();
    println!(
        "{} blocks of {} bytes, {:.1} bytes a mutation; {} journal rows left",
        statistics.log_blocks,
        statistics.log_bytes,
        statistics.log_bytes as f64 / mutations as f64,
        statistics.journal_rows
    );
    queries(&store, inventories);
    drop(runtime);
    Arc::into_inner(store).expect("the engine has ended").close().expect("the store closes");
    println!("{:.1} bytes on disk a mutation", log_bytes_on_disk(&path) as f64 / mutations as f64);
}

fn queries(store: &EmbeddedStore, inventories: usize) {
    let first = id(0);
    let newest = store.changes(&first, None, 1).expect("it is read").expect("it exists");
    let revision = newest.records[0].entries[0].version.revision;
    println!("{first} is at revision {}", revision.0);
    report("newest 100 changes of it", || {
        let page = store.changes(&first, None, 100).expect("it is read").expect("it exists");
        assert_eq!(page.records.len(), 100);
    });
    let mut number = 0;
    report("newest 100 changes of another inventory", || {
        number += 1;
        let page = store.changes(&id(number), None, 100).expect("it is read").expect("it exists");
        assert!(!page.records.is_empty());
    });
    for back in [100, 1_000, 10_000, revision.0 - 1] {
        let target = PastTarget::Revision { epoch: None, revision: Revision(revision.0.saturating_sub(back).max(1)) };
        report(&format!("its state {back} revisions back"), || {
            let found = store.state_at(&first, target).expect("it is read");
            assert!(matches!(found, Some(PastState::Found { .. })), "{found:?}");
        });
    }
    report("the history of a deleted inventory", || {
        let page = store.changes(&id(inventories - 1), None, 100).expect("it is read").expect("it is found");
        assert!(page.records.len() > 1);
    });
}

/// Prints the median of several runs.
fn report(what: &str, mut run: impl FnMut()) {
    let mut times: Vec<Duration> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("{what}: {:.2} ms", times[REPEATS / 2].as_secs_f64() * 1e3);
}

/// The pages that the blocks and segments take.
fn log_bytes_on_disk(path: &Path) -> u64 {
    let connection = rusqlite::Connection::open(path).expect("it opens");
    let number = |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    let used = || number("page_count").expect("a number") - number("freelist_count").expect("a number");
    let before = used();
    connection.execute_batch("DELETE FROM blocks; DELETE FROM segments").expect("they are deleted");
    (before - used()).unsigned_abs() * 4096
}

struct Load {
    engine: Engine,
    random: fastrand::Rng,
    inventories: usize,
}

impl Load {
    /// Creates inventories of 36 slots, of which 20 are taken.
    async fn create(&mut self) {
        let stacks: Vec<(Slot, Stack<ItemRef>)> = (0..20).map(|slot| (Slot(slot), stack("stone", 32))).collect();
        let create = |number| Operation::Create {
            id: id(number),
            owner: None,
            layout: LayoutId::new("player").expect("a name"),
            stacks: stacks.clone(),
        };
        for first in (0..self.inventories).step_by(1_000) {
            let numbers = first..self.inventories.min(first + 1_000);
            self.mutate_all(numbers.map(create).collect()).await;
        }
    }

    /// Adds or removes a few items of a random inventory in each mutation.
    async fn run(&mut self, mutations: usize, batch: usize) {
        for done in (0..mutations).step_by(batch) {
            let operations = (done..mutations.min(done + batch)).map(|number| {
                let inventory = if number % FIRST_EVERY == 0 { 0 } else { self.random.usize(1..self.inventories) };
                let Stack { item, count, attributes } = stack("stone", self.random.u32(1..4));
                if self.random.bool() {
                    Operation::Add { id: id(inventory), item, attributes, count, allow_partial: true }
                } else {
                    Operation::Remove { id: id(inventory), item, attributes: None, count }
                }
            });
            let operations = operations.collect();
            self.mutate_all(operations).await;
        }
    }

    async fn delete_last(&mut self) {
        self.mutate_all(vec![Operation::Delete { id: id(self.inventories - 1) }]).await;
    }

    /// Sends mutations at once and waits for their replies.
    async fn mutate_all(&mut self, operations: Vec<UnresolvedOperation>) {
        let requests: Vec<MutationRequest> = operations.into_iter().map(|operation| self.request(operation)).collect();
        let engine = &self.engine;
        let replies = futures_util::future::join_all(requests.into_iter().map(|request| engine.mutate(request))).await;
        let failed = replies.iter().find_map(|reply| reply.as_ref().err());
        assert!(failed.is_none(), "every mutation is applied: {failed:?}");
    }

    fn request(&mut self, operation: UnresolvedOperation) -> MutationRequest {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        let random = self.random.u128(..).to_le_bytes()[..10].try_into().expect("ten bytes");
        let uuid = uuid::Builder::from_unix_timestamp_millis(now.as_millis() as u64, &random).into_uuid();
        let caller = format!("game-server-{}", self.random.u32(1..9));
        MutationRequest {
            key: ScopedKey {
                caller: Caller::new(&caller).expect("a name"),
                key: IdempotencyKey::new(&uuid.to_string()).expect("a name"),
            },
            payload: Fingerprint(self.random.u64(..)),
            mutation: Mutation { operations: vec![operation], expected: vec![] },
            session: None,
            predicted: vec![],
            reason: ["", "loot", "trade"][self.random.usize(..3)].into(),
            trace: None,
        }
    }
}

/// An id of 23 bytes.
fn id(number: usize) -> InventoryId {
    InventoryId::new(&format!("player/{number:011}/main")).expect("a name")
}

fn stack(item: &str, count: u32) -> Stack<ItemRef> {
    Stack { item: ItemRef::Id(item.into()), count: Count::new(count).expect("not 0"), attributes: Attributes::NONE }
}
