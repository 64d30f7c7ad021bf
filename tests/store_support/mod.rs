//! Helpers of the store tests: mutations to commit, and a model of the expected contents of a store.
#![allow(dead_code, reason = "each test file uses its own part")]

mod aged;
mod commands;
mod log_model;
mod place;
mod planting;

#[allow(unused_imports, reason = "each test file uses its own part")]
pub use aged::*;
#[allow(unused_imports, reason = "each test file uses its own part")]
pub use commands::*;
#[allow(unused_imports, reason = "each test file uses its own part")]
pub use log_model::*;
#[allow(unused_imports, reason = "each test file uses its own part")]
pub use place::*;
#[allow(unused_imports, reason = "each test file uses its own part")]
pub use planting::*;

use slotcast::domain::{
    Attributes, Caller, Contents, Count, Digest, Edit, Epoch, Fingerprint, Flow, IdempotencyKey, Inventory,
    InventoryId, ItemCode, LayoutId, OperationKind, OperationOutcome, PlayerId, PredictionOutcome, Revision, Slot,
    Stack, TouchedInventory, Version,
};
use slotcast::store::{KeyStatus, ListPage, ListQuery, MutationRecord, Reply, ScopedKey, Store};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub fn id(name: &str) -> InventoryId {
    InventoryId::new(name).expect("a name")
}

pub fn player(name: &str) -> PlayerId {
    PlayerId::new(name).expect("a name")
}

pub fn key(name: &str) -> ScopedKey {
    ScopedKey { caller: Caller::new("server-1").expect("a name"), key: IdempotencyKey::new(name).expect("a name") }
}

/// Returns a key with a UUIDv7 of this time; `number` makes it unique.
pub fn uuid_key(unix_ms: u64, number: u32) -> ScopedKey {
    let (high, low) = (unix_ms >> 16, unix_ms & 0xFFFF);
    key(&format!("{high:08x}-{low:04x}-7000-8000-{number:012x}"))
}

/// Returns such a key of another caller.
pub fn uuid_key_of(caller: &str, unix_ms: u64, number: u32) -> ScopedKey {
    ScopedKey { caller: Caller::new(caller).expect("a name"), ..uuid_key(unix_ms, number) }
}

pub fn epoch(number: u32) -> Epoch {
    Epoch::new(number).expect("not 0")
}

pub fn stack(item: u32, count: u32) -> Option<Stack> {
    Some(Stack { item: ItemCode::new(item)?, count: Count::new(count)?, attributes: Attributes::NONE })
}

pub fn stack_with(item: u32, count: u32, attributes: &[u8]) -> Option<Stack> {
    Some(Stack { attributes: Attributes::new(attributes)?, ..stack(item, count)? })
}

pub fn inventory(name: &str, owner: Option<&str>, with_epoch: u32, slots: usize, edits: &[Edit]) -> Arc<Inventory> {
    Arc::new(Inventory {
        id: id(name),
        owner: owner.map(player),
        layout: LayoutId::new("player").expect("a name"),
        epoch: epoch(with_epoch),
        contents: Contents::new(slots, Revision::CREATED, edits),
    })
}

pub fn created(state: &Arc<Inventory>) -> TouchedInventory {
    TouchedInventory { version: state.version(), before: None, state: Some(state.clone()), edits: Vec::new() }
}

pub fn updated(before: &Inventory, edits: Vec<Edit>) -> TouchedInventory {
    let state = Arc::new(before.advanced(&edits));
    TouchedInventory { version: state.version(), before: Some(Arc::new(before.clone())), state: Some(state), edits }
}

pub fn deleted(before: &Inventory) -> TouchedInventory {
    let version = Version { revision: before.contents.revision().next(), digest: Digest::EMPTY, ..before.version() };
    TouchedInventory { version, before: Some(Arc::new(before.clone())), state: None, edits: Vec::new() }
}

pub fn recreated(before: &Inventory, after: &Arc<Inventory>) -> TouchedInventory {
    TouchedInventory {
        version: after.version(),
        before: Some(Arc::new(before.clone())),
        state: Some(after.clone()),
        edits: Vec::new(),
    }
}

/// Returns a mutation with the flows of its changes. Its first operation is a set, which may change any slots.
pub fn transaction(key: ScopedKey, touched: Vec<TouchedInventory>) -> MutationRecord {
    let versions = touched.iter().map(|touched| touched.version.clone()).collect();
    let dropped = OperationOutcome { count: 3, remainder: 1, stack: stack_with(9, 3, b"sharp") };
    let payload = Fingerprint::of(key.key.as_str().as_bytes());
    MutationRecord {
        key,
        payload,
        reason: "a test".into(),
        session: None,
        prediction: PredictionOutcome::Unpredicted,
        operations: vec![OperationKind::Set, OperationKind::Move],
        flows: flows(&touched),
        reply: Reply { outcomes: vec![OperationOutcome::default(), dropped], versions },
        touched,
        heads: Vec::new(),
    }
}

/// What the changes add and remove, slot by slot.
fn flows(touched: &[TouchedInventory]) -> Vec<Flow> {
    let mut flows: BTreeMap<ItemCode, Flow> = BTreeMap::new();
    for inventory in touched.iter().filter(|touched| touched.is_changed()) {
        let is_edited = |slot: Slot| inventory.edits.is_empty() || inventory.edits.iter().any(|edit| edit.0 == slot);
        let states = [(&inventory.before, false), (&inventory.state, true)];
        for (state, is_added) in states.into_iter().filter_map(|(state, is_added)| Some((state.as_ref()?, is_added))) {
            for (_, stack) in state.contents.stacks().filter(|(slot, _)| is_edited(*slot)) {
                let none = Flow { operation: 0, item: stack.item, added: 0, removed: 0 };
                let flow = flows.entry(stack.item).or_insert(none);
                *(if is_added { &mut flow.added } else { &mut flow.removed }) += u64::from(stack.count.get());
            }
        }
    }
    flows.into_values().collect()
}

/// The expected contents of a store after all commits.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub inventories: BTreeMap<InventoryId, Arc<Inventory>>,
    pub keys: HashMap<ScopedKey, KeyStatus>,
    /// Every id that has ever existed.
    pub ids: BTreeMap<InventoryId, ()>,
}

impl Model {
    pub fn apply(&mut self, batch: &[MutationRecord]) {
        for transaction in batch {
            let MutationRecord { key, payload, reply, touched, .. } = transaction.clone();
            self.keys.insert(key, KeyStatus::Applied { payload, reply });
            for touched in touched {
                self.ids.insert(touched.version.id.clone(), ());
                match touched.state {
                    Some(state) => self.inventories.insert(touched.version.id, state),
                    None => self.inventories.remove(&touched.version.id),
                };
            }
        }
    }

    pub fn commit(&mut self, store: &dyn Store, batch: &[MutationRecord]) {
        store.commit(batch).expect("it commits");
        self.apply(batch);
    }

    /// Compares the whole contents: each inventory, each key, and the lists.
    pub fn check(&self, store: &dyn Store) {
        self.check_inventories(store);
        let keys: Vec<ScopedKey> = self.keys.keys().cloned().collect();
        let loaded = store.load(&[], &keys).expect("it loads");
        for (key, status) in keys.iter().zip(loaded.key_statuses) {
            assert_eq!(Some(&status), self.keys.get(key), "{key:?}");
        }
    }

    pub fn check_inventories(&self, store: &dyn Store) {
        let ids: Vec<InventoryId> = self.ids.keys().cloned().collect();
        let loaded = store.load(&ids, &[]).expect("it loads");
        for (id, found) in ids.iter().zip(loaded.inventories) {
            assert_eq!(found.as_ref(), self.inventories.get(id), "{id:?}");
        }
        for limit in [1_000, 7] {
            let all = ListQuery { limit, ..ListQuery::default() };
            assert_eq!(list_all(store, all), self.inventories.values().cloned().collect::<Vec<_>>());
        }
        let owned = ListQuery { owner: Some(player("ann")), limit: 3, ..ListQuery::default() };
        let of_ann = |state: &&Arc<Inventory>| state.owner == Some(player("ann"));
        assert_eq!(list_all(store, owned), self.inventories.values().filter(of_ann).cloned().collect::<Vec<_>>());
    }

    /// Returns the number of items of all kinds.
    pub fn items(&self) -> u64 {
        let stacks = self.inventories.values().flat_map(|state| state.contents.stacks());
        stacks.map(|(_, stack)| u64::from(stack.count.get())).sum()
    }
}

/// Returns all pages of a list in order.
pub fn list_all(store: &dyn Store, mut query: ListQuery) -> Vec<Arc<Inventory>> {
    let mut all = Vec::new();
    loop {
        let ListPage { inventories, next } = store.list(&query).expect("it lists");
        assert!(inventories.len() <= query.limit && (query.after.is_none() || next.is_none() || query.after < next));
        all.extend(inventories);
        if next.is_none() {
            return all;
        }
        query.after = next;
    }
}

/// Random mutations of a few inventories: creations, changes, transfers, deletions and re-creations.
pub struct History {
    pub random: fastrand::Rng,
    pub model: Model,
    names: usize,
    next: u32,
}

impl History {
    pub fn new(seed: u64, names: usize) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), model: Model::default(), names, next: 1 }
    }

    /// Returns the next batch and applies it to the model. Each mutation builds on the previous ones.
    pub fn batch(&mut self) -> Vec<MutationRecord> {
        let size = 1 + self.random.usize(..6);
        (0..size).map(|_| self.transaction()).collect()
    }

    fn transaction(&mut self) -> MutationRecord {
        self.next += 1;
        let name = format!("inv-{:03}", self.random.usize(..self.names));
        let owner = self.random.bool().then_some("ann");
        let fresh = inventory(&name, owner, self.next, 12, &[(Slot(0), stack(1, self.random.u32(1..99)))]);
        let other = self.random.usize(..self.names);
        let other = self.model.inventories.get(&id(&format!("inv-{other:03}"))).cloned();
        let touched = match self.model.inventories.get(&id(&name)).cloned() {
            None => vec![created(&fresh)],
            Some(there) => match self.random.u32(..20) {
                0 => vec![deleted(&there)],
                1 => vec![recreated(&there, &fresh)],
                2 => vec![],
                3..=7 => match other.filter(|other| other.id != there.id) {
                    Some(other) => self.transfer(&there, &other),
                    None => vec![],
                },
                _ => vec![self.edit(&there)],
            },
        };
        let key = if self.random.bool() {
            key(&format!("key-{}", self.next))
        } else {
            uuid_key(u64::from(self.next), self.next)
        };
        let transaction = transaction(key, touched);
        self.model.apply(std::slice::from_ref(&transaction));
        transaction
    }

    fn edit(&mut self, there: &Inventory) -> TouchedInventory {
        let slots = 1 + self.random.usize(..3);
        let mut edits: Vec<Edit> = Vec::new();
        for _ in 0..slots {
            let slot = Slot(self.random.u16(..12));
            if edits.iter().all(|(edited, _)| *edited != slot) {
                let count = self.random.u32(..4);
                let attributes = vec![self.random.u8(..); self.random.usize(..3)];
                edits.push((slot, stack_with(self.random.u32(1..5), count, &attributes)));
            }
        }
        updated(there, edits)
    }

    /// Moves the first stack of one inventory into an empty slot of the other; the number of items stays the same.
    fn transfer(&mut self, from: &Inventory, to: &Inventory) -> Vec<TouchedInventory> {
        let taken = from.contents.stacks().next().map(|(slot, stack)| (slot, stack.clone()));
        let empty = to.contents.slots().iter().position(|slot| slot.stack.is_none());
        let (Some((slot, stack)), Some(empty)) = (taken, empty) else { return vec![] };
        vec![updated(from, vec![(slot, None)]), updated(to, vec![(Slot(empty as u16), Some(stack))])]
    }
}
