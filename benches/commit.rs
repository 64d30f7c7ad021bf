//! Measures the commit path without a network: batches of `AddItem` to inventories of 36 slots, through the engine and
//! the embedded store. Run with `cargo bench --bench commit`, or under callgrind with `--separate-threads=yes` to count
//! the instructions of the commit thread: the difference of two runs with different numbers of batches is the cost of
//! the batches alone. These variables change the sizes (defaults in parentheses):
//!
//! - `SLOTCAST_BENCH_INVENTORIES` (10000), `SLOTCAST_BENCH_BATCHES` (200), `SLOTCAST_BENCH_BATCH` (128)

use slotcast::catalog_file::default_catalog;
use slotcast::domain::{
    Attributes, Caller, Count, Fingerprint, IdempotencyKey, InventoryId, ItemRef, LayoutId, Mutation, Operation, Slot,
    Stack, UnresolvedOperation,
};
use slotcast::engine::{Engine, EngineSettings, MutationRequest};
use slotcast::store::ScopedKey;
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let size = |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (inventories, batches, batch) = (
        size("SLOTCAST_BENCH_INVENTORIES", 10_000),
        size("SLOTCAST_BENCH_BATCHES", 200),
        size("SLOTCAST_BENCH_BATCH", 128),
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let engine = start(folder.path(), inventories).await;
        let before = engine.statistics();
        let start = Instant::now();
        add_items(&engine, inventories, batches, batch).await;
        let took = start.elapsed();
        let commits = engine.statistics().commits - before.commits;
        let mutations = batches * batch;
        println!(
            "{mutations} mutations in {commits} commits: {:.2} us each",
            took.as_secs_f64() * 1e6 / mutations as f64
        );
    });
}

/// Starts an engine over a new store with inventories of 36 slots, of which 20 are taken.
async fn start(folder: &Path, inventories: usize) -> Engine {
    let store = EmbeddedStore::open(&folder.join("commit.db"), EmbeddedSettings::default()).expect("the store opens");
    let engine = Engine::start(Arc::new(store), Arc::new(default_catalog()), EngineSettings::default()).0;
    let mut random = fastrand::Rng::with_seed(1);
    let stacks: Vec<(Slot, Stack<ItemRef>)> = (0..20).map(|slot| (Slot(slot), stack("stone", 1))).collect();
    for first in (0..inventories).step_by(1_000) {
        let create = |number| Operation::Create {
            id: id(number),
            owner: None,
            layout: LayoutId::new("player").expect("a name"),
            stacks: stacks.clone(),
        };
        mutate_all(&engine, (first..inventories.min(first + 1_000)).map(create), &mut random).await;
    }
    engine
}

/// Adds one item to a random inventory in each mutation.
async fn add_items(engine: &Engine, inventories: usize, batches: usize, batch: usize) {
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..batches {
        let numbers: Vec<usize> = (0..batch).map(|_| random.usize(..inventories)).collect();
        let add = |number| {
            let Stack { item, count, attributes } = stack("stone", 1);
            Operation::Add { id: id(number), item, attributes, count, allow_partial: false }
        };
        mutate_all(engine, numbers.into_iter().map(add), &mut random).await;
    }
}

/// Sends mutations at once and waits for their replies.
async fn mutate_all(
    engine: &Engine,
    operations: impl Iterator<Item = UnresolvedOperation>,
    random: &mut fastrand::Rng,
) {
    let requests: Vec<MutationRequest> = operations.map(|operation| request(operation, random)).collect();
    let replies = futures_util::future::join_all(requests.into_iter().map(|request| engine.mutate(request))).await;
    assert!(replies.iter().all(Result::is_ok), "every mutation is applied");
}

fn request(operation: UnresolvedOperation, random: &mut fastrand::Rng) -> MutationRequest {
    let uuid = uuid::Builder::from_unix_timestamp_millis(
        1_700_000_000_000,
        &random.u128(..).to_le_bytes()[..10].try_into().expect("ten bytes"),
    );
    let key = IdempotencyKey::new(&Uuid::to_string(&uuid.into_uuid())).expect("a name");
    MutationRequest {
        key: ScopedKey { caller: Caller::new("bench").expect("a name"), key },
        payload: Fingerprint(random.u64(..)),
        mutation: Mutation { operations: vec![operation], expected: vec![] },
        session: None,
        predicted: vec![],
        reason: "".into(),
        trace: None,
    }
}

fn id(number: usize) -> InventoryId {
    InventoryId::new(&format!("player-{number}")).expect("a name")
}

fn stack(item: &str, count: u32) -> Stack<ItemRef> {
    Stack { item: ItemRef::Id(item.into()), count: Count::new(count).expect("not 0"), attributes: Attributes::NONE }
}
