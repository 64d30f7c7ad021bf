//! The inventories and mutations of the cases: the same in every run.

use slotcast::catalog_file::default_catalog;
use slotcast::domain::{
    Attributes, Caller, Catalog, Change, Contents, Count, Edit, Epoch, Fingerprint, IdempotencyKey, Inventory,
    InventoryId, ItemCode, LayoutId, OperationOutcome, PlayerId, Revision, Slot, Stack, TouchedInventory, Version,
};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::{MutationRecord, Reply, ScopedKey, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Number of slots of an inventory.
pub const SLOTS: usize = 36;
/// Number of filled slots of an inventory.
const FILLED: u16 = 20;
/// The item that the calls add; one slot holds some of it.
pub const ADDED_ITEM: &str = "apple";

pub fn catalog() -> Arc<Catalog> {
    Arc::new(default_catalog())
}

pub fn added_item() -> ItemCode {
    default_catalog().item(ADDED_ITEM).expect("an item of the catalog").code
}

pub fn stack(item: ItemCode, count: u32) -> Stack {
    Stack { item, count: Count::new(count).expect("not 0"), attributes: Attributes::NONE }
}

pub fn id(number: usize) -> InventoryId {
    InventoryId::new(&format!("player-{number:04}")).expect("a valid name")
}

/// Creates an inventory with 20 of 36 slots filled: the last one with some of the item that the calls add.
pub fn inventory(number: usize) -> Arc<Inventory> {
    let other = |slot: u16| stack(ItemCode::new(1 + u32::from(slot)).expect("not 0"), 10);
    let mut edits: Vec<Edit> = (0..FILLED - 1).map(|slot| (Slot(slot), Some(other(slot)))).collect();
    edits.push((Slot(FILLED - 1), Some(stack(added_item(), 10))));
    let name = id(number);
    Arc::new(Inventory {
        owner: PlayerId::new(name.as_str()).ok(),
        id: name,
        layout: LayoutId::new("player").expect("a valid name"),
        epoch: Epoch::new(7).expect("not 0"),
        contents: Contents::new(SLOTS, Revision::CREATED, &edits),
    })
}

/// Opens a store whose background work does not begin, with inventories from number 0.
pub fn store(folder: &Path, inventories: usize) -> Arc<EmbeddedStore> {
    let settings = EmbeddedSettings {
        round_records: usize::MAX,
        round_inventories: usize::MAX,
        fold_after: Duration::MAX,
        ..EmbeddedSettings::default()
    };
    let store = EmbeddedStore::open(&folder.join("store.db"), settings).expect("the store opens");
    let created = |number| {
        let state = inventory(number);
        let changes = vec![Change::Created(state.clone())];
        record(TouchedInventory { version: state.version(), state: Some(state), changes })
    };
    let records: Vec<MutationRecord> = (0..inventories).map(created).collect();
    store.commit(&records).expect("the batch commits");
    Arc::new(store)
}

/// Creates a record that changes the count of one slot of an inventory.
pub fn change(states: &mut [Arc<Inventory>], number: usize) -> MutationRecord {
    let edits: Vec<Edit> = vec![(Slot(FILLED - 1), Some(stack(added_item(), 11)))];
    let state = Arc::new(states[number].advanced(&edits));
    states[number] = state.clone();
    let Version { id, epoch, revision, .. } = state.version();
    let changes = vec![Change::Updated { id, epoch, revision, edits }];
    record(TouchedInventory { version: state.version(), state: Some(state), changes })
}

fn record(touched: TouchedInventory) -> MutationRecord {
    let caller = Caller::new("game-server-1").expect("a valid name");
    let key = IdempotencyKey::new(&new_key()).expect("a valid name");
    let reply = Reply {
        outcomes: vec![OperationOutcome { count: 1, ..OperationOutcome::default() }],
        versions: vec![touched.version.clone()],
    };
    MutationRecord { key: ScopedKey { caller, key }, payload: Fingerprint(1), reply, touched: vec![touched] }
}

/// Returns a new idempotency key.
pub fn new_key() -> String {
    Uuid::now_v7().to_string()
}
