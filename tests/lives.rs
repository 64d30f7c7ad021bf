//! Guards and receipts where an inventory ends and begins again: by deletion, within a batch or a mutation, by a restore.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use slotcast::catalog_file::default_catalog;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Caller, Catalog, Count, Digest, Fingerprint, Guard, IdempotencyKey, Inventory, InventoryId, ItemName,
    LayoutId, Mutation, NamedOperation, Operation, Rejection, RejectionCause, Revision, SessionId, Slot, Stack,
    Version,
};
use slotcast::engine::{Engine, EngineError, EngineSettings, MutationReply, MutationRequest, new_epoch};
use slotcast::store::embedded::tools::{self, Snapshot};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::{CommitError, Key, ListQuery, Loaded, Store, StoreError, Transaction};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;

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

    /// That it is as it is now.
    async fn guard(&self, name: &str) -> Guard {
        let Version { id, epoch, revision, .. } = self.engine.read(&id(name)).await.unwrap().unwrap().version();
        Guard { id, epoch, revision }
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

/// The engine with its first commit held up, so that calls sent after it come in one batch; the channel lets it go.
async fn held_up(folder: &Path) -> (Engine, mpsc::Sender<()>, JoinHandle<Result<MutationReply, EngineError>>) {
    let (release, gate) = mpsc::channel::<()>();
    let store = Gated { inner: open(folder), gate: Mutex::new(gate) };
    let (engine, _) = start(Arc::new(store), EngineSettings::default());
    let first = send(&engine, fresh(create_chest("first")));
    tokio::task::yield_now().await;
    while engine.statistics().queue > 0 {
        tokio::task::yield_now().await;
    }
    (engine, release, first)
}

fn send(engine: &Engine, call: MutationRequest) -> JoinHandle<Result<MutationReply, EngineError>> {
    let engine = engine.clone();
    tokio::spawn(async move { engine.mutate(call).await })
}

fn create_chest(name: &str) -> NamedOperation {
    Operation::Create { id: id(name), owner: None, layout: LayoutId::new("chest").unwrap(), stacks: vec![] }
}

fn of_several(key: &str, operations: Vec<NamedOperation>, expected: Vec<Guard>) -> MutationRequest {
    let call = call(key, create_chest("none"));
    MutationRequest { payload: Fingerprint::of(key.as_bytes()), mutation: Mutation { operations, expected }, ..call }
}

#[tokio::test]
async fn a_guard_sees_what_earlier_mutations_of_its_batch_have_deleted_and_created() {
    let world = world();
    world.chest("a", 10).await;
    world.chest("b", 10).await;
    let [a, b] = [world.guard("a").await, world.guard("b").await];
    let World { folder, engine, catalog } = world;
    drop(restart(engine, folder.path()).await);
    let (engine, release, first) = held_up(folder.path()).await;
    let world = World { folder, engine, catalog };
    let recreate = vec![Operation::Delete { id: id("a") }, create_chest("a"), world.add("a", 3)];
    let calls = [
        of_several("recreate", recreate, vec![a.clone()]),
        of_several("delete", vec![Operation::Delete { id: id("b") }], vec![b.clone()]),
        of_several("take", vec![world.transfer("a", "first", 1)], vec![a.clone()]),
        of_several("take from none", vec![world.add("first", 1)], vec![b]),
    ];
    let [recreated, deleted, stale, missing] = calls.map(|call| send(&world.engine, call));
    while world.engine.statistics().queue < 4 {
        tokio::task::yield_now().await;
    }
    drop(release);
    first.await.unwrap().unwrap();
    let recreated = recreated.await.unwrap().unwrap();
    let now = &recreated.reply.versions[0];
    assert_eq!((now.revision, now.epoch == a.epoch), (Revision::CREATED, false));
    deleted.await.unwrap().unwrap();
    let cause = |answer: Result<MutationReply, EngineError>| match answer {
        Err(EngineError::Rejected(rejection)) => rejection.cause,
        other => panic!("{other:?}"),
    };
    let wanted = RejectionCause::StaleRevision { expected: a, epoch: now.epoch, revision: now.revision };
    assert_eq!(cause(stale.await.unwrap()), wanted);
    assert_eq!(cause(missing.await.unwrap()), RejectionCause::InventoryNotFound { id: id("b") });
}

#[tokio::test]
async fn an_inventory_created_and_deleted_by_one_mutation_is_in_its_reply_for_ever_and_nowhere_else() {
    let world = world();
    world.chest("a", 10).await;
    let mut watched = world.engine.watch(vec![id("passing"), id("a")]).await.unwrap();
    let through = || {
        let delete = || Operation::Delete { id: id("passing") };
        let (there, back) = (world.transfer("a", "passing", 4), world.transfer("passing", "a", 1));
        vec![create_chest("passing"), there, back, delete(), create_chest("passing"), delete()]
    };
    // Even a session that predicted how it ends is not told: there is nothing that its stream could be behind of.
    let (session, predicted) = (SessionId::new("mine").ok(), vec![(id("passing"), Digest::EMPTY)]);
    let call = MutationRequest { session, predicted, ..of_several("through", through(), vec![]) };
    let first = world.engine.mutate(call.clone()).await.unwrap();
    let named: Vec<_> = first.reply.versions.iter().map(|version| (version.id.as_str(), version.revision.0)).collect();
    assert_eq!((named, first.reply.versions[0].digest), (vec![("passing", 2), ("a", 2)], Digest::EMPTY));
    assert!(first.prediction_confirmed);
    watched.changed().await;
    let [passing, a] = &watched.states()[..] else { panic!("two are watched") };
    assert_eq!(
        (&passing.inventory, passing.records_total(), a.records_total()),
        (&None, 0, 1),
        "no stream hears of what never was"
    );

    // One that existed, and ends as gone: the deletion of its life, whatever came in between.
    let lives = vec![Operation::Delete { id: id("a") }, create_chest("a"), Operation::Delete { id: id("a") }];
    let epoch = first.reply.versions[1].epoch;
    let ended = world.engine.mutate(of_several("lives", lives, vec![])).await.unwrap();
    let version = Version { id: id("a"), epoch, revision: Revision(3), digest: Digest::EMPTY };
    assert_eq!(ended.reply.versions, [version]);

    drop(watched);
    let World { folder, engine, .. } = world;
    let store = restart(engine, folder.path()).await;
    let findings =
        tools::check(&Snapshot::open(&folder.path().join("slotcast.db")).unwrap(), &mut |_| ControlFlow::Continue(()));
    assert_eq!((findings.problems, findings.inventories), (vec![], 0));
    let (engine, _) = start(store, EngineSettings::default());
    assert_eq!(engine.mutate(call).await, Ok(MutationReply { replayed: true, prediction_confirmed: false, ..first }));
    assert_eq!(engine.read(&id("passing")).await, Ok(None));
}

#[tokio::test]
async fn a_guard_from_before_a_restore_does_not_hold_after_it_at_the_same_revision() {
    let world = world();
    world.chest("a", 10).await;
    let quiet = &mut |_| ControlFlow::Continue(());
    let (store, copy) = (world.folder.path().join("slotcast.db"), world.folder.path().join("copy.db"));
    tools::backup(&Snapshot::open(&store).unwrap(), &copy, false, quiet).unwrap();
    world.engine.mutate(fresh(world.add("a", 1))).await.unwrap();
    let before = world.guard("a").await;
    assert_eq!(before.revision, Revision(2));

    let World { folder, engine, catalog } = world;
    drop(restart(engine, folder.path()).await);
    tools::restore(&copy, &store, true, 1, &mut new_epoch, quiet).unwrap();
    let engine = start(Arc::new(open(folder.path())), EngineSettings::default()).0;
    let world = World { folder, engine, catalog };
    world.engine.mutate(fresh(world.add("a", 2))).await.unwrap();
    let after = world.guard("a").await;
    assert_eq!(after.revision, before.revision, "only the epoch tells them apart");
    let take = |key, guard: &Guard| of_several(key, vec![Operation::Delete { id: id("a") }], vec![guard.clone()]);
    let refused = world.engine.mutate(take("stale", &before)).await.unwrap_err();
    let cause = RejectionCause::StaleRevision { expected: before, epoch: after.epoch, revision: after.revision };
    assert_eq!(refused, EngineError::Rejected(Rejection { operation: 0, cause, item_id: None }));
    world.engine.mutate(take("current", &after)).await.unwrap();
}
