//! An engine over a real store in a folder of its own, and calls to it.

use slotcast::catalog_file::default_catalog;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Caller, Catalog, Count, Fingerprint, Guard, IdempotencyKey, Inventory, InventoryId, ItemRef, LayoutId,
    Mutation, Operation, Slot, Stack, UnresolvedOperation, Version,
};
use slotcast::engine::{Engine, EngineError, EngineSettings, MutationReply, MutationRequest};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::log::ChainHead;
use slotcast::store::{CommitError, ListPage, ListQuery, Loaded, MutationRecord, ScopedKey, Store, StoreError};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub struct World {
    pub folder: TempDir,
    pub engine: Engine,
    pub catalog: Arc<Catalog>,
}

pub fn open(folder: &Path) -> EmbeddedStore {
    EmbeddedStore::open(&folder.join("slotcast.db"), EmbeddedSettings::default()).unwrap()
}

pub fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (engine, catalog) = start(Arc::new(store), EngineSettings::default());
    World { folder, engine, catalog }
}

pub fn start(store: Arc<dyn Store>, settings: EngineSettings) -> (Engine, Arc<Catalog>) {
    let catalog = Arc::new(default_catalog());
    (Engine::start(store, catalog.clone(), settings).0, catalog)
}

pub fn id(name: &str) -> InventoryId {
    InventoryId::new(name).unwrap()
}

pub fn count(count: u32) -> Count {
    Count::new(count).unwrap()
}

pub fn call(key: &str, operation: UnresolvedOperation) -> MutationRequest {
    let key = ScopedKey { caller: Caller::new("test").unwrap(), key: IdempotencyKey::new(key).unwrap() };
    let payload = Fingerprint::of(format!("{operation:?}").as_bytes());
    let mutation = Mutation { operations: vec![operation], expected: vec![] };
    MutationRequest { key, payload, mutation, session: None, predicted: vec![], reason: "".into(), trace: None }
}

pub fn fresh_call(operation: UnresolvedOperation) -> MutationRequest {
    call(&uuid::Uuid::now_v7().to_string(), operation)
}

impl World {
    pub fn stack(&self, item: &str, n: u32) -> Stack<ItemRef> {
        Stack { item: ItemRef::Id(item.into()), count: count(n), attributes: Attributes::NONE }
    }

    /// Creates a chest with a number of stones in its first slot.
    pub async fn chest(&self, name: &str, stones: u32) {
        let stacks = if stones > 0 { vec![(Slot(0), self.stack("stone", stones))] } else { vec![] };
        let layout = LayoutId::new("chest").unwrap();
        let create = Operation::Create { id: id(name), owner: None, layout, stacks };
        self.engine.mutate(fresh_call(create)).await.unwrap();
    }

    /// Returns a guard on the current state.
    pub async fn guard(&self, name: &str) -> Guard {
        let Version { id, epoch, revision, .. } = self.engine.read(&id(name)).await.unwrap().unwrap().version();
        Guard { id, epoch, revision }
    }

    pub fn transfer(&self, from: &str, to: &str, n: u32) -> UnresolvedOperation {
        let item = ItemRef::Code(self.catalog.item("stone").unwrap().code);
        let what = TransferSource::Item { item, attributes: None, count: count(n) };
        Operation::Transfer { from: id(from), what, to: id(to), to_slot: None, allow_partial: false }
    }

    pub fn add(&self, to: &str, n: u32) -> UnresolvedOperation {
        let Stack { item, count, attributes } = self.stack("stone", n);
        Operation::Add { id: id(to), item, attributes, count, allow_partial: false }
    }

    pub async fn held(&self, name: &str) -> u32 {
        held(self.engine.read(&id(name)).await.unwrap().as_deref())
    }

    pub async fn revision(&self, name: &str) -> u64 {
        self.engine.read(&id(name)).await.unwrap().map_or(0, |inventory| inventory.contents.revision().0)
    }
}

pub fn held(inventory: Option<&Inventory>) -> u32 {
    inventory.map_or(0, |inventory| inventory.contents.stacks().map(|(_, stack)| stack.count.get()).sum())
}

/// Reopens the store after the engine has closed it.
pub async fn restart(engine: Engine, folder: &Path) -> Arc<EmbeddedStore> {
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

/// A store whose commits wait until the sender of the channel is dropped.
pub struct GatedStore {
    pub inner: EmbeddedStore,
    pub gate: Mutex<mpsc::Receiver<()>>,
}

impl Store for GatedStore {
    fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError> {
        self.inner.load(ids, keys)
    }

    fn commit(&self, batch: &[MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        while self.gate.lock().unwrap().recv().is_ok() {}
        self.inner.commit(batch)
    }

    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.inner.list(query)
    }
}

/// Starts an engine whose first commit waits until the sender is dropped, so that the calls meanwhile form one batch.
pub async fn start_with_held_commit(
    folder: &Path,
) -> (Engine, mpsc::Sender<()>, JoinHandle<Result<MutationReply, EngineError>>) {
    let (release, gate) = mpsc::channel::<()>();
    let store = GatedStore { inner: open(folder), gate: Mutex::new(gate) };
    let (engine, _) = start(Arc::new(store), EngineSettings::default());
    let first = send(&engine, fresh_call(create_chest("first")));
    tokio::task::yield_now().await;
    while engine.statistics().queue > 0 {
        tokio::task::yield_now().await;
    }
    (engine, release, first)
}

pub fn send(engine: &Engine, call: MutationRequest) -> JoinHandle<Result<MutationReply, EngineError>> {
    let engine = engine.clone();
    tokio::spawn(async move { engine.mutate(call).await })
}

pub fn create_chest(name: &str) -> UnresolvedOperation {
    Operation::Create { id: id(name), owner: None, layout: LayoutId::new("chest").unwrap(), stacks: vec![] }
}

pub fn call_with(key: &str, operations: Vec<UnresolvedOperation>, expected: Vec<Guard>) -> MutationRequest {
    let call = call(key, create_chest("none"));
    MutationRequest { payload: Fingerprint::of(key.as_bytes()), mutation: Mutation { operations, expected }, ..call }
}
