//! The inventories and mutations of the cases: the same in every run.

use slotcast::catalog_file::default_catalog;
use slotcast::domain::flow::Flows;
use slotcast::domain::{
    Attributes, Caller, Catalog, Contents, Count, Edit, Epoch, Fingerprint, Flow, IdempotencyKey, Inventory,
    InventoryId, ItemCode, LayoutId, OperationKind, OperationOutcome, PlayerId, PredictionOutcome, Revision, Slot,
    Stack, TouchedInventory,
};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::log::{ChainHead, Position};
use slotcast::store::{HeadBefore, MutationRecord, Reply, ScopedKey, Store};
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
        let mut flows = Flows::default();
        flows.add_stacks(state.contents.stacks().map(|(_, stack)| stack));
        let touched =
            TouchedInventory { version: state.version(), before: None, state: Some(state), edits: Vec::new() };
        record(OperationKind::Create, flows.into_vec(), touched, ChainHead::default())
    };
    let records: Vec<MutationRecord> = (0..inventories).map(created).collect();
    store.commit(&records).expect("the batch commits");
    Arc::new(store)
}

/// Creates a record that changes the count of one slot of an inventory. Each batch must change all inventories in order,
/// because the engine knows where their chains begin.
pub fn change(states: &mut [Arc<Inventory>], number: usize) -> MutationRecord {
    let edits: Vec<Edit> = vec![(Slot(FILLED - 1), Some(stack(added_item(), 11)))];
    let state = Arc::new(states[number].advanced(&edits));
    let before = std::mem::replace(&mut states[number], state.clone());
    let batches = before.contents.revision().0 - 1;
    let created = Position::new(1, number as u64 + 1);
    let head = ChainHead { last: created.plus(batches * states.len() as u64), checkpoint: created };
    let flow = Flow { operation: 0, item: added_item(), added: 1, removed: 0 };
    let touched = TouchedInventory { version: state.version(), before: Some(before), state: Some(state), edits };
    record(OperationKind::Add, vec![flow], touched, head)
}

fn record(kind: OperationKind, flows: Vec<Flow>, touched: TouchedInventory, head: ChainHead) -> MutationRecord {
    let caller = Caller::new("game-server-1").expect("a valid name");
    let key = IdempotencyKey::new(&new_key()).expect("a valid name");
    let reply = Reply {
        outcomes: vec![OperationOutcome { count: 1, ..OperationOutcome::default() }],
        versions: vec![touched.version.clone()],
    };
    MutationRecord {
        key: ScopedKey { caller, key },
        payload: Fingerprint(1),
        reason: Arc::from(""),
        session: None,
        prediction: PredictionOutcome::Unpredicted,
        operations: vec![kind],
        flows,
        reply,
        touched: vec![touched],
        heads: vec![HeadBefore::Known(head)],
    }
}

/// Returns a new idempotency key.
pub fn new_key() -> String {
    Uuid::now_v7().to_string()
}
