//! The requirements of the `Store` trait, checked for every implementation.

#[path = "common/faulty_store.rs"]
mod faulty_store;
#[path = "common/memory_store.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod memory_store;
mod store_support;

use faulty_store::{Fault, FaultyStore};
use memory_store::MemoryStore;
use slotcast::domain::{Inventory, Slot};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::log::ChainHead;
use slotcast::store::{CommitError, KeyStatus, ListPage, ListQuery, Store, StoreError};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use store_support::*;

/// A store that can be reopened with the same contents.
trait Reopen {
    fn open(&self) -> Box<dyn Store>;
}

fn conformance(place: &dyn Reopen) {
    an_empty_store_has_no_inventories_and_no_keys(&*place.open());
    committed_inventories_are_loaded_in_the_requested_order(place);
    a_deleted_inventory_is_absent_and_can_be_created_again(place);
    each_transaction_of_a_batch_builds_on_the_ones_before_it(place);
    keys_are_recalled_with_their_payload_and_reply(place);
    a_key_more_than_a_minute_ahead_of_the_clock_is_not_new(place);
    lists_are_paged_in_byte_order(place);
    random_histories_agree_with_a_model(place);
}

fn an_empty_store_has_no_inventories_and_no_keys(store: &dyn Store) {
    let loaded = store.load(&[id("nobody")], &[key("never")]).expect("it loads");
    assert_eq!(loaded.inventories, [None]);
    assert_eq!(loaded.key_statuses, [KeyStatus::New]);
    assert_eq!(store.list(&ListQuery { limit: 10, ..ListQuery::default() }), Ok(ListPage::default()));
    assert_eq!(store.commit(&[]), Ok(Vec::new()));
}

fn committed_inventories_are_loaded_in_the_requested_order(place: &dyn Reopen) {
    let (one, two) = (full_inventory("order-1"), inventory("order-2", None, 2, 3, &[]));
    let store = place.open();
    store.commit(&[transaction(key("order"), vec![created(&one), created(&two)])]).expect("it commits");
    let ids = [id("order-2"), id("nobody"), id("order-1"), id("order-2")];
    let expected = vec![Some(two.clone()), None, Some(one), Some(two)];
    assert_eq!(store.load(&ids, &[]).expect("it loads").inventories, expected);
    drop(store);
    assert_eq!(place.open().load(&ids, &[]).expect("it loads").inventories, expected);
}

/// An inventory with an owner, attributes, full and empty slots, and stamps of several revisions.
fn full_inventory(name: &str) -> Arc<Inventory> {
    let first = inventory(name, Some("ann"), u32::MAX, 36, &[(Slot(0), stack(1, 64)), (Slot(35), stack(7, 1))]);
    let edits = vec![(Slot(3), stack_with(5, 1, &[0; 1024])), (Slot(0), stack(1, 63))];
    let second = updated(&first, edits).state.expect("it is there");
    let third = updated(&second, vec![(Slot(35), None), (Slot(4), stack_with(u32::MAX, u32::MAX, b"\0x"))]);
    // As if it had been restored: its creation keeps the stamps.
    third.state.expect("it is there")
}

fn a_deleted_inventory_is_absent_and_can_be_created_again(place: &dyn Reopen) {
    let first = inventory("phoenix", Some("ann"), 1, 9, &[(Slot(1), stack(2, 3))]);
    let second = inventory("phoenix", Some("bob"), 2, 27, &[]);
    let third = inventory("phoenix", None, 3, 27, &[(Slot(26), stack(4, 4))]);
    let ids = [id("phoenix")];
    let load = |store: &dyn Store| store.load(&ids, &[]).expect("it loads").inventories;
    let of_ann = ListQuery { owner: Some(player("ann")), prefix: "phoenix".into(), limit: 9, ..ListQuery::default() };

    let store = place.open();
    store.commit(&[transaction(key("phoenix-1"), vec![created(&first)])]).expect("it commits");
    assert_eq!(list_all(&*store, of_ann.clone()), std::slice::from_ref(&first));
    store.commit(&[transaction(key("phoenix-2"), vec![deleted(&first)])]).expect("it commits");
    assert_eq!(load(&*store), [None]);
    assert_eq!(list_all(&*store, of_ann.clone()), []);
    drop(store);
    let store = place.open();
    assert_eq!(load(&*store), [None]);
    store.commit(&[transaction(key("phoenix-3"), vec![created(&second)])]).expect("it commits");
    store.commit(&[transaction(key("phoenix-4"), vec![recreated(&second, &third)])]).expect("it commits");
    assert_eq!(load(&*store), [Some(third.clone())]);
    drop(store);
    let store = place.open();
    assert_eq!(load(&*store), [Some(third)]);
    assert_eq!(list_all(&*store, of_ann.clone()), []);
}

fn each_transaction_of_a_batch_builds_on_the_ones_before_it(place: &dyn Reopen) {
    let first = inventory("chain", None, 1, 9, &[(Slot(0), stack(1, 10))]);
    let mut batch = vec![transaction(key("chain-0"), vec![created(&first)])];
    let mut state = first;
    for count in 1..200 {
        let next = updated(&state, vec![(Slot(count % 9), stack(1, u32::from(count)))]);
        state = next.state.clone().expect("it is there");
        batch.push(transaction(key(&format!("chain-{count}")), vec![next]));
    }
    let store = place.open();
    store.commit(&batch).expect("it commits");
    assert_eq!(store.load(&[id("chain")], &[]).expect("it loads").inventories, [Some(state.clone())]);
    drop(store);
    assert_eq!(place.open().load(&[id("chain")], &[]).expect("it loads").inventories, [Some(state)]);
}

fn keys_are_recalled_with_their_payload_and_reply(place: &dyn Reopen) {
    let state = inventory("keyed", None, 1, 9, &[]);
    let transactions = [
        transaction(key("plain text, and a long one of them"), vec![created(&state)]),
        transaction(uuid_key(1_700_000_000_000, 7), vec![]),
        transaction(key("01890A5D-AC96-774B-BCCE-B302099A8057"), vec![]),
        transaction(key("00000000-0000-0000-0000-000000000000"), vec![]),
    ];
    let store = place.open();
    store.commit(&transactions).expect("it commits");
    let mut keys: Vec<_> = transactions.iter().map(|transaction| transaction.key.clone()).collect();
    let mut another_caller = keys[0].clone();
    another_caller.caller = slotcast::domain::Caller::new("server-2").expect("a name");
    keys.extend([another_caller, uuid_key(1_700_000_000_001, 8)]);
    let applied = |transaction: &slotcast::store::MutationRecord| KeyStatus::Applied {
        payload: transaction.payload,
        reply: transaction.reply.clone(),
    };
    let mut expected: Vec<_> = transactions.iter().map(applied).collect();
    expected.extend([KeyStatus::New, KeyStatus::New]);
    assert_eq!(store.load(&[], &keys).expect("it loads").key_statuses, expected);
    drop(store);
    assert_eq!(place.open().load(&[id("keyed")], &keys).expect("it loads").key_statuses, expected);
}

fn a_key_more_than_a_minute_ahead_of_the_clock_is_not_new(place: &dyn Reopen) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970");
    let (near, far) = (uuid_key(now.as_millis() as u64 + 30_000, 1), uuid_key(now.as_millis() as u64 + 3_600_000, 1));
    let store = place.open();
    let recalls = store.load(&[], &[near.clone(), far]).expect("it loads").key_statuses;
    assert_eq!(recalls[0], KeyStatus::New);
    assert!(matches!(recalls[1], KeyStatus::TooFarAhead { ahead_ms: 3_000_000..=3_600_000 }), "{:?}", recalls[1]);
    store.commit(&[transaction(near.clone(), vec![])]).expect("it commits");
    drop(store);
    assert!(matches!(place.open().load(&[], &[near]).expect("it loads").key_statuses[0], KeyStatus::Applied { .. }));
}

fn lists_are_paged_in_byte_order(place: &dyn Reopen) {
    let names = ["l/Z", "l/a", "l/a-1", "l/a/1", "l/é", "l/𝄞", "l/\u{FFFD}", "l/b", "l/a\u{10FFFF}x"];
    let store = place.open();
    for (number, name) in names.iter().enumerate() {
        let owner = (number % 2 == 0).then_some("zoe");
        let state = inventory(name, owner, 1, 3, &[]);
        store.commit(&[transaction(key(name), vec![created(&state)])]).expect("it commits");
    }
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    let listed = |query: ListQuery| -> Vec<String> {
        list_all(&*store, query).iter().map(|state| state.id.as_str().to_owned()).collect()
    };
    for limit in [1, 2, 3, 100] {
        let query = ListQuery { prefix: "l/".into(), limit, ..ListQuery::default() };
        assert_eq!(listed(query.clone()), sorted);
        let query = ListQuery { prefix: "l/a".into(), ..query };
        let with_a: Vec<_> = sorted.iter().filter(|name| name.starts_with("l/a")).copied().collect();
        assert_eq!(listed(query.clone()), with_a);
        assert_eq!(listed(ListQuery { after: Some(id("l/a")), ..query.clone() }), with_a[1..]);
        assert_eq!(listed(ListQuery { after: Some(id("a")), ..query.clone() }), with_a);
        assert_eq!(listed(ListQuery { after: Some(id("m")), ..query.clone() }), [""; 0]);
        let zoe = ListQuery { owner: Some(player("zoe")), prefix: "l/".into(), limit, ..ListQuery::default() };
        let of_zoe = |name: &&str| names.iter().position(|other| other == name).is_some_and(|at| at % 2 == 0);
        assert_eq!(listed(zoe), sorted.iter().copied().filter(of_zoe).collect::<Vec<_>>());
        assert_eq!(listed(ListQuery { prefix: "l".repeat(200), limit, ..ListQuery::default() }), [""; 0]);
    }
    assert_eq!(store.list(&ListQuery::default()), Ok(ListPage::default()), "a limit of 0");
}

fn random_histories_agree_with_a_model(place: &dyn Reopen) {
    let mut store = place.open();
    let all = ListQuery { limit: 10_000, ..ListQuery::default() };
    let mut history = History::new(7, 12);
    // The inventories of the other checks are part of the model.
    for there in store.list(&all).expect("it lists").inventories {
        history.model.ids.insert(there.id.clone(), ());
        history.model.inventories.insert(there.id.clone(), there);
    }
    for round in 0..60 {
        let batch = history.batch();
        store.commit(&batch).expect("it commits");
        if round % 10 == 9 {
            drop(store);
            store = place.open();
        }
        history.model.check(&*store);
    }
}

struct Embedded<'a>(&'a Path);

impl Reopen for Embedded<'_> {
    fn open(&self) -> Box<dyn Store> {
        Box::new(EmbeddedStore::open(self.0, EmbeddedSettings::default()).expect("it opens"))
    }
}

#[test]
fn the_embedded_store_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance(&Embedded(&folder.path().join("slotcast.db")));
}

/// Folds after every commit, so that everything is read from the table.
struct AlwaysFolded<'a>(&'a Path);

struct FoldingStore(EmbeddedStore);

impl Reopen for AlwaysFolded<'_> {
    fn open(&self) -> Box<dyn Store> {
        Box::new(FoldingStore(EmbeddedStore::open(self.0, EmbeddedSettings::default()).expect("it opens")))
    }
}

impl Store for FoldingStore {
    fn load(
        &self,
        ids: &[slotcast::domain::InventoryId],
        keys: &[slotcast::store::ScopedKey],
    ) -> Result<slotcast::store::Loaded, StoreError> {
        self.0.load(ids, keys)
    }

    fn commit(&self, batch: &[slotcast::store::MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        let heads = self.0.commit(batch)?;
        self.0.fold().map_err(CommitError::Unknown)?;
        Ok(heads)
    }

    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.0.list(query)
    }
}

#[test]
fn the_embedded_store_conforms_when_each_commit_is_folded() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance(&AlwaysFolded(&folder.path().join("slotcast.db")));
}

/// The store that tests of the service use.
struct InMemory(Arc<MemoryStore>);

struct Shared(Arc<MemoryStore>);

impl Reopen for InMemory {
    fn open(&self) -> Box<dyn Store> {
        Box::new(Shared(self.0.clone()))
    }
}

impl Store for Shared {
    fn load(
        &self,
        ids: &[slotcast::domain::InventoryId],
        keys: &[slotcast::store::ScopedKey],
    ) -> Result<slotcast::store::Loaded, StoreError> {
        self.0.load(ids, keys)
    }

    fn commit(&self, batch: &[slotcast::store::MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        self.0.commit(batch)
    }

    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.0.list(query)
    }
}

#[test]
fn the_store_in_memory_conforms() {
    conformance(&InMemory(Arc::default()));
}

struct Decorated<'a>(Embedded<'a>);

impl Reopen for Decorated<'_> {
    fn open(&self) -> Box<dyn Store> {
        let inner = EmbeddedStore::open(self.0.0, EmbeddedSettings::default()).expect("it opens");
        Box::new(FaultyStore::new(inner))
    }
}

#[test]
fn the_faulty_store_conforms_without_faults() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance(&Decorated(Embedded(&folder.path().join("slotcast.db"))));
}

#[test]
fn the_faulty_store_fails_before_or_after_the_inner_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("slotcast.db");
    let store = FaultyStore::new(EmbeddedStore::open(&path, EmbeddedSettings::default()).expect("it opens"));
    let error = StoreError::Unavailable { detail: "as asked".into() };
    store.pass_next_commit();
    store.fail_next_commit(Fault::NotCommitted(error.clone()));
    store.fail_next_commit(Fault::UnknownBefore(error.clone()));
    store.fail_next_commit(Fault::UnknownAfter(error.clone()));
    let commit = |name: &str| {
        let state = inventory(name, None, 1, 3, &[]);
        store.commit(&[transaction(key(name), vec![created(&state)])])
    };
    assert!(commit("passes").is_ok());
    assert_eq!(commit("not"), Err(CommitError::NotCommitted(error.clone())));
    assert_eq!(commit("before"), Err(CommitError::Unknown(error.clone())));
    assert_eq!(commit("after"), Err(CommitError::Unknown(error.clone())));
    let loaded = store.load(&[id("passes"), id("not"), id("before"), id("after")], &[]).expect("it loads");
    let there: Vec<bool> = loaded.inventories.iter().map(Option::is_some).collect();
    assert_eq!(there, [true, false, false, true]);
    store.fail_reads(Some(error.clone()));
    assert_eq!(store.load(&[], &[]), Err(error));
    store.fail_reads(None);
    assert!(store.load(&[], &[]).is_ok());
}
