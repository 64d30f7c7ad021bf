//! Files that the embedded store refuses: truncated, newer, already open, of another application, damaged.

mod store_support;

use slotcast::domain::Slot;
use slotcast::store::embedded::{EmbeddedStore, OpenError};
use slotcast::store::{CommitError, ListQuery, Store, StoreError};
use store_support::*;

#[test]
fn case_49_a_truncated_file_is_refused_with_the_reason() {
    let place = Place::new();
    let store = place.open();
    let mut history = History::new(9, 300);
    for _ in 0..300 {
        store.commit(&history.batch()).expect("it commits");
    }
    store.close().expect("it closes");
    let whole = std::fs::read(place.path()).expect("it is there");
    for bytes in [50, 99, 4096, whole.len() / 2, whole.len() - 1] {
        std::fs::write(place.path(), &whole[..bytes]).expect("it is written");
        let refusal = place.refusal();
        assert!(matches!(refusal, OpenError::Truncated { .. }), "{bytes}: {refusal:?}");
        assert!(refusal.to_string().contains("restore it from a backup"), "{refusal}");
        assert!(std::fs::read(place.path()).expect("it is there") == whole[..bytes], "it was left as it was");
    }
    std::fs::write(place.path(), &whole).expect("it is written");
    history.model.check(&place.open());
}

#[test]
fn case_49_a_file_of_a_newer_format_is_refused_with_the_reason() {
    let place = Place::new();
    drop(place.open());
    let connection = rusqlite::Connection::open(place.path()).expect("it opens");
    connection.pragma_update(None, "user_version", 99).expect("it is written");
    drop(connection);
    let refusal = place.refusal();
    assert!(matches!(refusal, OpenError::OtherFormat { found: 99, .. }), "{refusal:?}");
    assert!(refusal.to_string().contains("has format 99, but this version of Slotcast reads format 2"), "{refusal}");
}

#[test]
fn case_49_a_file_that_is_already_open_is_refused_with_the_reason() {
    let place = Place::new();
    let store = place.open();
    let refusal = place.refusal();
    assert!(matches!(refusal, OpenError::AlreadyOpen { .. }), "{refusal:?}");
    assert!(refusal.to_string().contains("already open in another process"), "{refusal}");
    store.commit(&[transaction(key("still works"), vec![])]).expect("the first one is not disturbed");
    drop(store);
    drop(place.open());
}

#[test]
fn case_49_a_file_of_another_application_is_refused_and_not_changed() {
    let place = Place::new();
    std::fs::write(place.path(), "just some notes, long enough for a head of a hundred bytes".repeat(3))
        .expect("written");
    let refusal = place.refusal();
    assert!(matches!(refusal, OpenError::NotSlotcast { .. }), "{refusal:?}");
    std::fs::remove_file(place.path()).expect("it is removed");

    let connection = rusqlite::Connection::open(place.path()).expect("it opens");
    connection.execute_batch("CREATE TABLE recipes (name TEXT)").expect("it is written");
    drop(connection);
    let before = std::fs::read(place.path()).expect("it is there");
    let refusal = place.refusal();
    assert!(matches!(refusal, OpenError::NotSlotcast { .. }), "{refusal:?}");
    assert!(std::fs::read(place.path()).expect("it is there") == before, "it was left as it was");

    let missing = place.folder.path().join("no such folder/slotcast.db");
    let refusal = EmbeddedStore::open(&missing, place.clock.settings()).expect_err("there is no folder");
    assert!(matches!(refusal, OpenError::Io { .. }), "{refusal:?}");
}

/// Case 48. Flips any bit of a table row, of a journal row, or of the bytes around them.
#[test]
fn case_48_a_flipped_bit_is_an_error_and_never_a_wrong_item() {
    let place = Place::new();
    let state =
        inventory("chest-of-ann", Some("ann"), 7, 36, &[(Slot(0), stack(1, 5)), (Slot(9), stack_with(3, 1, b"sharp"))]);
    let next = updated(&state, vec![(Slot(4), stack(77, 33))]);
    let store = place.open();
    store.commit(&[transaction(key("1"), vec![created(&state)])]).expect("it commits");
    store.close().expect("it closes");
    let truth = next.state.clone().expect("it is there");
    let store = place.open();
    store.commit(&[transaction(key("2"), vec![next])]).expect("it commits");
    drop(store);
    let whole = std::fs::read(place.path()).expect("it is there");
    let mut random = fastrand::Rng::with_seed(48);
    let (mut refused, mut corrupt) = (0, 0);
    for _ in 0..1_500 {
        let mut damaged = whole.clone();
        // Bits of unused space have no meaning.
        let at = loop {
            let at = random.usize(100..damaged.len());
            if damaged[at] != 0 {
                break at;
            }
        };
        damaged[at] ^= 1 << random.u32(..8);
        std::fs::write(place.path(), &damaged).expect("it is written");
        let Ok(opened) = EmbeddedStore::open(&place.path(), place.clock.settings()) else {
            refused += 1;
            continue;
        };
        match opened.load(std::slice::from_ref(&state.id), &[]) {
            Ok(loaded) => {
                assert!(loaded.inventories == [Some(truth.clone())] || loaded.inventories == [None], "byte {at}")
            }
            Err(StoreError::Corrupt { .. }) => corrupt += 1,
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    assert!(refused + corrupt > 500, "{refused} refused, {corrupt} corrupt");
}

#[test]
fn case_48_a_row_with_a_flipped_bit_is_corrupt() {
    let place = Place::new();
    let state = inventory("chest", Some("ann"), 7, 36, &[(Slot(0), stack(1, 5))]);
    let store = place.open();
    store.commit(&[transaction(key("1"), vec![created(&state)])]).expect("it commits");
    store.close().expect("it closes");
    let original = Planted::open(&place.path()).row("chest");
    for damage in [
        "owner = 'eve'",
        "owner = NULL",
        "layout = 'chest'",
        "epoch = epoch + 1",
        "revision = 2",
        "last = last + 1",
        "checkpoint = 0",
        "checksum = checksum + 1",
        "contents = CAST(contents || x'00' AS BLOB)",
        "contents = CAST(substr(contents, 2) AS BLOB)",
    ] {
        let connection = rusqlite::Connection::open(place.path()).expect("it opens");
        connection.execute_batch(&format!("BEGIN; UPDATE inventories SET {damage}; COMMIT")).expect("it is damaged");
        drop(connection);
        let store = place.open();
        let loaded = store.load(&[id("chest")], &[]);
        assert!(matches!(loaded, Err(StoreError::Corrupt { .. })), "{damage}: {loaded:?}");
        let listed = store.list(&ListQuery { limit: 9, ..ListQuery::default() });
        assert!(matches!(listed, Err(StoreError::Corrupt { .. })), "{damage}: {listed:?}");
        // Writing over it does not repair it: the store must know where the inventory's chain begins.
        let unknown = store.commit(&[transaction(key(damage), vec![recreated(&state, &state)])]);
        assert!(matches!(unknown, Err(CommitError::NotCommitted(StoreError::Corrupt { .. }))), "{damage}: {unknown:?}");
        drop(store);
        Planted::open(&place.path()).put_row(&original);
        let store = place.open();
        assert_eq!(store.load(&[id("chest")], &[]).expect("it loads").inventories, [Some(state.clone())]);
    }
}

#[test]
fn a_journal_with_a_missing_row_is_refused() {
    let place = Place::new();
    let store = place.open();
    let mut history = History::new(11, 5);
    for _ in 0..9 {
        store.commit(&history.batch()).expect("it commits");
    }
    drop(store);
    let connection = rusqlite::Connection::open(place.path()).expect("it opens");
    connection.execute("DELETE FROM journal WHERE seq = 5", []).expect("it is deleted");
    drop(connection);
    let refusal = place.refusal();
    assert!(matches!(refusal, OpenError::Corrupt { .. }), "{refusal:?}");
    assert!(refusal.to_string().contains("journal row 5 is missing"), "{refusal}");
}
