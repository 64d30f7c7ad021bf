//! The commit loop over the real store: races, retries, cancellation, failed commits, back-pressure.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "common/faulty_store.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod faulty_store;

use faulty_store::{Fault, FaultyStore};
use slotcast::catalog_file::default_catalog;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Caller, Catalog, Count, Fingerprint, IdempotencyKey, Inventory, InventoryId, ItemName, LayoutId,
    Mutation, NamedOperation, Operation, RejectionCause, Slot, Stack,
};
use slotcast::engine::{Engine, EngineError, EngineSettings, MutationReply, MutationRequest};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::{CommitError, Key, ListQuery, Loaded, Store, StoreError, Transaction};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tempfile::TempDir;

struct World {
    folder: TempDir,
    engine: Engine,
    catalog: Arc<Catalog>,
}

fn open(folder: &Path) -> EmbeddedStore {
    EmbeddedStore::open(&folder.join("slotcast.db"), EmbeddedSettings::default()).unwrap()
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (engine, catalog) = start(Arc::new(store), EngineSettings::default());
    World { folder, engine, catalog }
}

fn start(store: Arc<dyn Store>, settings: EngineSettings) -> (Engine, Arc<Catalog>) {
    let catalog = Arc::new(default_catalog());
    (Engine::start(store, catalog.clone(), settings).0, catalog)
}

fn id(name: &str) -> InventoryId {
    InventoryId::new(name).unwrap()
}

fn count(count: u32) -> Count {
    Count::new(count).unwrap()
}

fn call(key: &str, operation: NamedOperation) -> MutationRequest {
    let key = Key { caller: Caller::new("test").unwrap(), key: IdempotencyKey::new(key).unwrap() };
    let payload = Fingerprint::of(format!("{operation:?}").as_bytes());
    let mutation = Mutation { operations: vec![operation], expected: vec![] };
    MutationRequest { key, payload, mutation, session: None, predicted: vec![], reason: "".into(), trace: None }
}

fn fresh(operation: NamedOperation) -> MutationRequest {
    call(&uuid::Uuid::now_v7().to_string(), operation)
}

impl World {
    fn stack(&self, item: &str, n: u32) -> Stack<ItemName> {
        Stack { item: ItemName::Id(item.into()), count: count(n), attributes: Attributes::NONE }
    }

    /// A chest with this many stones in its first slot.
    async fn chest(&self, name: &str, stones: u32) {
        let stacks = if stones > 0 { vec![(Slot(0), self.stack("stone", stones))] } else { vec![] };
        let layout = LayoutId::new("chest").unwrap();
        let create = Operation::Create { id: id(name), owner: None, layout, stacks };
        self.engine.mutate(fresh(create)).await.unwrap();
    }

    fn transfer(&self, from: &str, to: &str, n: u32) -> NamedOperation {
        let item = ItemName::Code(self.catalog.item("stone").unwrap().code);
        let what = TransferSource::Item { item, attributes: None, count: count(n) };
        Operation::Transfer { from: id(from), what, to: id(to), to_slot: None, allow_partial: false }
    }

    fn add(&self, to: &str, n: u32) -> NamedOperation {
        let Stack { item, count, attributes } = self.stack("stone", n);
        Operation::Add { id: id(to), item, attributes, count, allow_partial: false }
    }

    async fn held(&self, name: &str) -> u32 {
        held(self.engine.read(&id(name)).await.unwrap().as_deref())
    }

    async fn revision(&self, name: &str) -> u64 {
        self.engine.read(&id(name)).await.unwrap().map_or(0, |inventory| inventory.contents.revision().0)
    }
}

fn held(inventory: Option<&Inventory>) -> u32 {
    inventory.map_or(0, |inventory| inventory.contents.stacks().map(|(_, stack)| stack.count.get()).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn case_18_transfers_against_each_other_never_deadlock_and_conserve() {
    let world = world();
    world.chest("a", 60).await;
    world.chest("b", 60).await;
    let tasks = (0..10_000).map(|n| {
        let (from, to) = if n % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let (engine, call) = (world.engine.clone(), fresh(world.transfer(from, to, 1)));
        tokio::spawn(async move { engine.mutate(call).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(_) => {}
            Err(EngineError::Rejected(rejection)) => {
                assert!(matches!(rejection.cause, RejectionCause::NotEnough { .. }), "{rejection:?}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(world.held("a").await + world.held("b").await, 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_19_a_ring_of_transfers_conserves() {
    let world = world();
    for name in ["a", "b", "c"] {
        world.chest(name, 30).await;
    }
    let ring = [("a", "b"), ("b", "c"), ("c", "a")];
    let tasks = (0..3_000).map(|n| {
        let (from, to) = ring[n % 3];
        let (engine, call) = (world.engine.clone(), fresh(world.transfer(from, to, 1 + n as u32 % 5)));
        tokio::spawn(async move { engine.mutate(call).await.is_ok() })
    });
    let mut done = 0;
    for task in tasks.collect::<Vec<_>>() {
        done += u32::from(task.await.unwrap());
    }
    assert!(done > 100, "{done}");
    assert_eq!(world.held("a").await + world.held("b").await + world.held("c").await, 90);
}

#[tokio::test]
async fn case_20_two_trades_for_one_stack_have_one_winner() {
    let world = world();
    for (name, stones) in [("shop", 10), ("ann", 0), ("bob", 0)] {
        world.chest(name, stones).await;
    }
    let (ann, bob) = tokio::join!(
        world.engine.mutate(fresh(world.transfer("shop", "ann", 10))),
        world.engine.mutate(fresh(world.transfer("shop", "bob", 10))),
    );
    assert!(ann.is_ok() ^ bob.is_ok(), "{ann:?} {bob:?}");
    assert_eq!((world.held("shop").await, world.held("ann").await + world.held("bob").await), (0, 10));
}

#[tokio::test]
async fn case_21_a_receiver_that_fills_up_meanwhile_changes_neither_side() {
    let world = world();
    world.chest("from", 64).await;
    world.chest("to", 0).await;
    let (filled, transferred) = tokio::join!(
        world.engine.mutate(fresh(world.add("to", 27 * 64))),
        world.engine.mutate(fresh(world.transfer("from", "to", 64))),
    );
    filled.unwrap();
    let Err(EngineError::Rejected(rejection)) = transferred else { panic!("{transferred:?}") };
    assert!(matches!(rejection.cause, RejectionCause::NoRoom { room: 0, .. }), "{rejection:?}");
    assert_eq!((world.held("from").await, world.revision("from").await), (64, 1));
    assert_eq!((world.held("to").await, world.revision("to").await), (27 * 64, 2));
}

#[tokio::test]
async fn case_22_a_deletion_during_a_transfer_is_all_or_nothing() {
    let world = world();
    for round in 0..50 {
        let (from, to) = (format!("from-{round}"), format!("to-{round}"));
        world.chest(&from, 10).await;
        world.chest(&to, 0).await;
        let transfer = world.engine.mutate(fresh(world.transfer(&from, &to, 10)));
        let delete = world.engine.mutate(fresh(Operation::Delete { id: id(&to) }));
        let (transferred, deleted) =
            if round % 2 == 0 { tokio::join!(transfer, delete) } else { swap(tokio::join!(delete, transfer)) };
        deleted.unwrap();
        let left = if transferred.is_ok() { 0 } else { 10 };
        assert_eq!(world.held(&from).await, left, "what was not transferred is still there");
        assert_eq!(world.engine.read(&id(&to)).await, Ok(None));
    }
}

fn swap<A, B>((a, b): (A, B)) -> (B, A) {
    (b, a)
}

#[tokio::test]
async fn case_25_case_30_a_call_cancelled_at_any_await_happens_wholly_or_not_at_all() {
    let world = world();
    world.chest("a", 60).await;
    world.chest("b", 0).await;
    for polls in 0..6 {
        let call = fresh(world.transfer("a", "b", 1));
        {
            let mut future = std::pin::pin!(world.engine.mutate(call.clone()));
            let mut context = Context::from_waker(Waker::noop());
            for _ in 0..polls {
                if let Poll::Ready(answer) = future.as_mut().poll(&mut context) {
                    answer.unwrap();
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(world.held("a").await + world.held("b").await, 60);
        let retried = world.engine.mutate(call).await.unwrap();
        assert_eq!(retried.replayed, polls > 0, "once it was queued it runs, and the retry tells so");
        assert_eq!(world.held("b").await, polls + 1);
    }
}

#[tokio::test]
async fn case_26_the_same_key_in_flight_and_after_a_restart_gets_the_same_reply() {
    let world = world();
    world.chest("a", 0).await;
    let call = fresh(world.add("a", 5));
    let (one, other) = tokio::join!(world.engine.mutate(call.clone()), world.engine.mutate(call.clone()));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.replayed, other.replayed), (false, true));
    assert_eq!(one.reply, other.reply);

    let World { folder, engine, .. } = world;
    let store = restart(engine, folder.path()).await;
    let (engine, _) = start(store, EngineSettings::default());
    assert_eq!(engine.mutate(call.clone()).await, Ok(MutationReply { replayed: true, ..one }));
    let other_payload = MutationRequest { payload: Fingerprint(1), ..call };
    assert_eq!(engine.mutate(other_payload).await, Err(EngineError::KeyReused));
    assert_eq!(held(engine.read(&id("a")).await.unwrap().as_deref()), 5);
}

/// The store opened again, once the engine has let go of it.
async fn restart(engine: Engine, folder: &Path) -> Arc<EmbeddedStore> {
    drop(engine);
    let path = folder.join("slotcast.db");
    for _ in 0..500 {
        match EmbeddedStore::open(&path, EmbeddedSettings::default()) {
            Ok(store) => return Arc::new(store),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("the engine does not let go of the store");
}

#[tokio::test]
async fn a_key_from_the_future_is_refused() {
    let world = world();
    world.chest("a", 0).await;
    let next_year = call("0265b0c0-0000-7000-8000-000000000000", world.add("a", 1));
    assert!(matches!(world.engine.mutate(next_year).await, Err(EngineError::KeyFromTheFuture { .. })));
    assert_eq!(world.held("a").await, 0);
}

#[tokio::test]
async fn case_44_a_full_disk_refuses_mutations_serves_reads_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slotcast.db");
    let settings = EmbeddedSettings { bytes_max: Some(512 * 1024), ..EmbeddedSettings::default() };
    let store = EmbeddedStore::open(&path, settings).unwrap();
    let (engine, catalog) = start(Arc::new(store), EngineSettings::default());
    let world = World { folder, engine, catalog };
    let mut chests = 0;
    let refused = loop {
        let stacks = (0..27).map(|slot| (Slot(slot), world.stack("stone", 64))).collect();
        let layout = LayoutId::new("chest").unwrap();
        let create = Operation::Create { id: id(&format!("chest-{chests}")), owner: None, layout, stacks };
        match world.engine.mutate(fresh(create)).await {
            Ok(_) => chests += 1,
            Err(refusal) => break refusal,
        }
        assert!(chests < 100_000, "it never gets full");
    };
    assert!(matches!(refused, EngineError::Store(StoreError::Full { .. })), "{refused:?}");
    assert!(chests > 10, "{chests}");
    assert_eq!(world.held("chest-0").await, 27 * 64, "reads go on");
    assert_eq!(world.engine.read(&id(&format!("chest-{chests}"))).await, Ok(None), "nothing of it is there");

    let World { folder, engine, catalog } = world;
    let store = restart(engine, folder.path()).await;
    let (engine, _) = start(store, EngineSettings::default());
    let world = World { folder, engine, catalog };
    assert_eq!(world.held("chest-0").await, 27 * 64);
    world.chest("one more", 1).await;
    assert_eq!(world.held("one more").await, 1);
}

fn faulty() -> (TempDir, Arc<FaultyStore<EmbeddedStore>>) {
    let folder = tempfile::tempdir().unwrap();
    let store = FaultyStore::new(open(folder.path()));
    (folder, Arc::new(store))
}

fn away() -> StoreError {
    StoreError::Unavailable { detail: "as the test says".into() }
}

#[tokio::test]
async fn a_commit_that_fails_changes_nothing_and_is_seen_by_nobody() {
    let (folder, store) = faulty();
    let (engine, catalog) = start(store.clone(), EngineSettings::default());
    let world = World { folder, engine, catalog };
    world.chest("a", 10).await;
    world.chest("b", 0).await;
    let mut watched = world.engine.watch(vec![id("a"), id("b")]).await.unwrap();
    let before = watched.states();
    store.fail_next_commit(Fault::NotCommitted(away()));
    let call = fresh(world.transfer("a", "b", 10));
    assert_eq!(world.engine.mutate(call.clone()).await, Err(EngineError::Store(away())));
    assert_eq!(watched.states(), before);
    assert_eq!((world.held("a").await, world.held("b").await), (10, 0));

    let answer = world.engine.mutate(call).await.unwrap();
    assert!(!answer.replayed, "the first try left no trace");
    watched.changed().await;
    assert_eq!((world.held("a").await, world.held("b").await), (0, 10));
}

#[tokio::test]
async fn case_45_after_a_commit_of_unknown_end_nothing_more_is_written() {
    let (folder, store) = faulty();
    let catalog = Arc::new(default_catalog());
    let (engine, mut commit_loop) = Engine::start(store.clone(), catalog.clone(), EngineSettings::default());
    let world = World { folder, engine, catalog };
    world.chest("a", 10).await;
    store.fail_next_commit(Fault::UnknownAfter(away()));
    assert_eq!(world.engine.mutate(fresh(world.add("a", 1))).await, Err(EngineError::CommitUnknown));
    commit_loop.failed().await;
    let after = world.engine.mutate(fresh(world.add("a", 1))).await;
    assert!(matches!(after, Err(EngineError::Store(StoreError::Unavailable { .. }))), "{after:?}");
    assert_eq!(world.held("a").await, 10, "what was durable is still read");
}

#[tokio::test]
async fn inventories_that_do_not_exist_leave_nothing_in_memory_once_nobody_watches_them_or_has_read_them() {
    let world = world();
    world.chest("a", 10).await;
    let hot = || world.engine.statistics().hot_inventories;
    let missing = |first: u32| (first..first + 64).map(|n| id(&format!("missing-{n}"))).collect::<Vec<_>>();
    let (one, other) = (world.engine.watch(missing(0)).await.unwrap(), world.engine.watch(missing(32)).await.unwrap());
    assert_eq!(hot(), 1 + 96);
    drop(one);
    assert_eq!(hot(), 1 + 64, "those that are still watched stay");
    let mut created = world.engine.watch(vec![id("missing-40")]).await.unwrap();
    world.chest("missing-40", 3).await;
    created.changed().await;
    assert!(created.states()[0].inventory.is_some() && other.states()[8].inventory.is_some());
    drop((created, other));
    assert_eq!(hot(), 2, "what exists by now stays");
    world.engine.mutate(fresh(Operation::Delete { id: id("missing-40") })).await.unwrap();
    assert_eq!(world.engine.read(&id("missing-40")).await.unwrap(), None);
    for n in 0..50 {
        assert_eq!(world.engine.read(&id(&format!("never-{n}"))).await.unwrap(), None);
    }
    assert_eq!((hot(), world.held("a").await), (1, 10));
}

/// A store whose commits wait until the other end of the channel is gone.
struct Gated {
    inner: EmbeddedStore,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl Store for Gated {
    fn load(&self, ids: &[InventoryId], keys: &[Key]) -> Result<Loaded, StoreError> {
        self.inner.load(ids, keys)
    }

    fn commit(&self, batch: &[Transaction]) -> Result<(), CommitError> {
        while self.gate.lock().unwrap().recv().is_ok() {}
        self.inner.commit(batch)
    }

    fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Inventory>>, StoreError> {
        self.inner.list(query)
    }
}

/// Case 48. One batch of four: only the call on the damaged inventory fails, and a retry of one that was applied to it
/// before is still answered.
#[tokio::test]
async fn case_48_a_damaged_inventory_refuses_only_the_calls_that_need_it() {
    let World { folder, engine, catalog } = world();
    let world = World { folder, engine, catalog };
    world.chest("good", 1).await;
    world.chest("bad", 1).await;
    let before = call("before", world.add("bad", 2));
    world.engine.mutate(before.clone()).await.unwrap();
    let World { folder, engine, catalog } = world;
    let store = restart(engine, folder.path()).await;
    store.fold().unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(folder.path().join("slotcast.db")).unwrap();
    connection.execute("UPDATE inventories SET checksum = checksum + 1 WHERE id = 'bad'", []).unwrap();
    drop(connection);

    let (release, gate) = mpsc::channel::<()>();
    let store = Gated { inner: open(folder.path()), gate: Mutex::new(gate) };
    let (engine, catalog_again) = start(Arc::new(store), EngineSettings::default());
    let world = World { folder, engine, catalog };
    let spawn = |call: MutationRequest| {
        let engine = world.engine.clone();
        tokio::spawn(async move { engine.mutate(call).await })
    };
    // Its commit holds the loop up, so that those after it come in one batch.
    let layout = catalog_again.layouts().next().unwrap().id.clone();
    let first = spawn(fresh(Operation::Create { id: id("first"), owner: None, layout, stacks: vec![] }));
    tokio::task::yield_now().await;
    while world.engine.statistics().queue > 0 {
        tokio::task::yield_now().await;
    }
    let calls =
        [fresh(world.add("good", 1)), fresh(world.add("bad", 1)), before, fresh(world.transfer("good", "bad", 1))];
    let [good, bad, again, both] = calls.map(spawn);
    while world.engine.statistics().queue < 4 {
        tokio::task::yield_now().await;
    }
    drop(release);
    first.await.unwrap().unwrap();
    let is_corrupt = |answer| matches!(answer, Err(EngineError::Store(StoreError::Corrupt { .. })));
    assert!(good.await.unwrap().is_ok());
    assert!(is_corrupt(bad.await.unwrap()));
    assert!(is_corrupt(both.await.unwrap()));
    assert!(again.await.unwrap().unwrap().replayed);
    assert_eq!(world.held("good").await, 2);
    assert!(matches!(world.engine.read(&id("bad")).await, Err(EngineError::Store(StoreError::Corrupt { .. }))));
}

#[tokio::test]
async fn a_full_queue_refuses_instead_of_growing() {
    let settings = EngineSettings { queue_max: 4, queue_wait: Duration::from_millis(20), ..EngineSettings::default() };
    let folder = tempfile::tempdir().unwrap();
    let (release, gate) = mpsc::channel::<()>();
    let store = Gated { inner: open(folder.path()), gate: Mutex::new(gate) };
    let (engine, catalog) = start(Arc::new(store), settings);
    let world = World { folder, engine, catalog };
    let chest = LayoutId::new("chest").unwrap();
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let create =
                Operation::Create { id: id(&format!("chest-{n}")), owner: None, layout: chest.clone(), stacks: vec![] };
            let (engine, call) = (world.engine.clone(), fresh(create));
            tokio::spawn(async move { engine.mutate(call).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(release);
    let (mut done, mut refused) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => done += 1,
            Err(EngineError::QueueFull { retry_after }) => {
                assert_eq!(retry_after, Duration::from_millis(20));
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!((4..=8).contains(&done), "{done} done, {refused} refused");
    let listed = world.engine.list(ListQuery { limit: 100, ..ListQuery::default() }).await.unwrap();
    assert_eq!(listed.len(), done, "those refused did nothing");
}

#[tokio::test]
async fn inventories_beyond_the_hot_bound_are_read_from_the_store_and_lose_nothing() {
    let settings = EngineSettings { hot_max: 8, ..EngineSettings::default() };
    let folder = tempfile::tempdir().unwrap();
    let (engine, catalog) = start(Arc::new(open(folder.path())), settings);
    let world = World { folder, engine, catalog };
    for n in 0..200 {
        world.chest(&format!("chest-{n}"), 1 + n % 64).await;
    }
    for n in 0..200 {
        let name = format!("chest-{n}");
        if n % 64 != 63 {
            world.engine.mutate(fresh(world.add(&name, 1))).await.unwrap();
            assert_eq!(world.held(&name).await, 2 + n % 64);
        }
    }
}
