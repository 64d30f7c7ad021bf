//! Cases of the log that random histories rarely reach: tombstones, large states, keys of sealed rows, interrupted sealing,
//! and stores whose whole history was deleted.

mod store_support;

use slotcast::domain::{Edit, Inventory, OperationKind, Revision, Slot};
use slotcast::store::embedded::tools::{self, ProgressUpdate, Snapshot};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::history::{PastState, PastTarget, RecordFilter};
use slotcast::store::log::{CHECKPOINT_REVISIONS, LARGE_CHECKPOINT_REVISIONS, LoggedChangeKind, Position};
use slotcast::store::{KeyStatus, MutationRecord, ScopedKey, Store};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store_support::*;

fn quiet(_: ProgressUpdate) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn assert_clean(path: &Path) {
    let found = tools::check(&Snapshot::open(path).expect("it opens"), &mut quiet);
    assert_eq!(found.problems, Vec::<String>::new());
}

fn settings(place: &Place) -> EmbeddedSettings {
    EmbeddedSettings {
        key_window: Duration::from_secs(10),
        history_age: Duration::from_secs(1_000),
        segment_bytes: 4 << 10,
        ..place.clock.settings()
    }
}

/// Lets the key window pass, and seals all rows so far. Deletes the segments that are too old.
fn seal(place: &Place, store: &EmbeddedStore) {
    place.clock.pass(Duration::from_secs(11));
    store.fold().expect("it folds and seals");
}

fn commit(store: &EmbeddedStore, name: &str, touched: slotcast::domain::TouchedInventory) -> Option<Arc<Inventory>> {
    let state = touched.state.clone();
    store.commit(&[transaction(key(name), vec![touched])]).expect("it commits");
    state
}

fn state_at(store: &EmbeddedStore, name: &str, epoch_number: Option<u32>, revision: u64) -> Option<PastState> {
    let target = PastTarget::Revision { epoch: epoch_number.map(epoch), revision: Revision(revision) };
    store.state_at(&id(name), target).expect("it is read")
}

fn count_at(store: &EmbeddedStore, name: &str, epoch_number: u32, revision: u64) -> Option<u32> {
    match state_at(store, name, Some(epoch_number), revision)? {
        PastState::Found { inventory, .. } => inventory.contents.stack(Slot(0)).map(|stack| stack.count.get()),
        PastState::Absent | PastState::Trimmed { .. } => None,
    }
}

/// Each life has two revisions, whose counts are 10 times the epoch and one more.
fn live(store: &EmbeddedStore, number: u32, before: Option<&Inventory>) -> Arc<Inventory> {
    let first = inventory("phoenix", None, number, 9, &[(Slot(0), stack(1, 10 * number))]);
    let birth = before.map_or_else(|| created(&first), |before| recreated(before, &first));
    commit(store, &format!("create-{number}"), birth);
    let edit = (Slot(0), stack(1, 10 * number + 1));
    commit(store, &format!("edit-{number}"), updated(&first, vec![edit])).expect("it exists")
}

#[test]
fn the_chain_of_an_inventory_leads_through_all_its_lives() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let one = live(&store, 1, None);
    commit(&store, "delete-1", deleted(&one));
    seal(&place, &store);
    let two = live(&store, 2, None);
    store.fold().expect("it folds");
    let three = live(&store, 3, Some(&two));
    let check = |store: &EmbeddedStore| {
        for number in 1..=3 {
            assert_eq!(count_at(store, "phoenix", number, 1), Some(10 * number));
            assert_eq!(count_at(store, "phoenix", number, 2), Some(10 * number + 1));
        }
        assert_eq!(state_at(store, "phoenix", Some(1), 3), Some(PastState::Absent), "its deletion");
        assert_eq!(state_at(store, "phoenix", Some(2), 3), Some(PastState::Absent), "it was not deleted by itself");
        let page = store.changes(&id("phoenix"), None, 99).expect("it is read").expect("it has a history");
        let kind = |kind: &LoggedChangeKind| match kind {
            LoggedChangeKind::Edited { .. } => 'e',
            LoggedChangeKind::Created { .. } => 'c',
            LoggedChangeKind::Deleted { .. } => 'd',
            LoggedChangeKind::Recreated { .. } => 'r',
        };
        let changes = page.records.iter().map(|record| record.change_of(&id("phoenix")).expect("it changes it").1);
        let kinds: String = changes.map(|change| kind(&change.kind)).collect();
        (kinds, page.next, page.is_trimmed)
    };
    assert_eq!(check(&store), ("erecdec".into(), None, false));
    drop(store);
    let store = place.open_with(settings(&place));
    assert_eq!(check(&store), ("erecdec".into(), None, false));
    commit(&store, "delete-3", deleted(&three));
    let of_newest = |store: &EmbeddedStore| state_at(store, "phoenix", None, 2);
    assert!(matches!(of_newest(&store), Some(PastState::Found { .. })), "the newest epoch is that of its last life");
    assert_eq!(check(&store), ("derecdec".into(), None, false));
    seal(&place, &store);
    assert_eq!(check(&store), ("derecdec".into(), None, false));
    assert_clean(&place.path());
}

#[test]
fn a_tombstone_is_deleted_with_the_last_record_of_its_inventory() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let one = live(&store, 1, None);
    let stays = inventory("stays", None, 9, 9, &[(Slot(0), stack(1, 9))]);
    commit(&store, "stays", created(&stays));
    seal(&place, &store);
    // In a later segment than the rest of its life.
    commit(&store, "delete-1", deleted(&one));
    seal(&place, &store);
    place.clock.pass(Duration::from_secs(985));
    store.fold().expect("it deletes the first segment");
    let page = store.changes(&id("phoenix"), None, 9).expect("it is read").expect("its deletion is kept");
    assert_eq!((page.records.len(), page.is_trimmed), (1, true));
    assert_eq!(count_at(&store, "phoenix", 1, 2), Some(11), "the deletion has the state before it");
    let trimmed = state_at(&store, "phoenix", Some(1), 1);
    assert_eq!(trimmed, Some(PastState::Trimmed { earliest: Some((epoch(1), Revision(2))) }));
    place.clock.pass(Duration::from_secs(20));
    store.fold().expect("it deletes the second segment");
    let is_gone = |store: &EmbeddedStore| {
        assert_eq!(store.changes(&id("phoenix"), None, 9).expect("it is read"), None);
        assert_eq!(state_at(store, "phoenix", None, 1), None);
        assert_eq!(Planted::open(&place.path()).tombstones(), [""; 0]);
        let page = store.changes(&id("stays"), None, 9).expect("it is read").expect("it exists");
        assert_eq!((page.records.len(), page.next, page.is_trimmed), (0, None, true));
        let PastState::Found { position, .. } = state_at(store, "stays", None, 1).expect("it exists") else {
            panic!("the present state needs no record")
        };
        assert_eq!(position, None);
        assert_clean(&place.path());
    };
    is_gone(&store);
    drop(store);
    let store = place.open_with(settings(&place));
    is_gone(&store);
    live(&store, 2, None);
    let page = store.changes(&id("phoenix"), None, 9).expect("it is read").expect("it exists");
    assert_eq!((page.records.len(), page.next, page.is_trimmed), (2, None, false), "a new chain begins");
    assert_clean(&place.path());
}

#[test]
fn a_tombstone_that_is_deleted_before_a_new_life_is_folded_leaves_the_chain_whole() {
    let place = Place::new();
    let without_folds = || EmbeddedSettings { fold_after: Duration::MAX, ..settings(&place) };
    let store = place.open_with(without_folds());
    let one = live(&store, 1, None);
    commit(&store, "delete-1", deleted(&one));
    seal(&place, &store);
    let two = live(&store, 2, None);
    place.clock.pass(Duration::from_secs(1_000));
    while store.statistics().log_blocks > 0 {
        std::thread::yield_now();
    }
    assert!(store.statistics().unfolded_records > 0);
    assert_eq!(Planted::open(&place.path()).tombstones(), [""; 0]);
    let check = |store: &EmbeddedStore| {
        assert_clean(&place.path());
        let page = store.changes(&id("phoenix"), None, 9).expect("it is read").expect("it exists");
        assert_eq!((page.records.len(), page.is_trimmed), (2, true));
    };
    check(&store);
    drop(store);
    let store = place.open_with(without_folds());
    check(&store);
    store.fold().expect("it folds");
    check(&store);
    commit(&store, "delete-2", deleted(&two));
    store.fold().expect("it folds");
    assert_clean(&place.path());
}

/// Returns the revisions of an inventory that have checkpoints.
fn checkpoints(path: &Path, name: &str) -> Vec<u64> {
    let records = Snapshot::open(path).expect("it opens").scan(&RecordFilter::default(), None, usize::MAX);
    let changes = records.expect("it is read");
    let changes = changes.iter().rev().filter_map(|record| record.change_of(&id(name)));
    let is_checkpoint = |kind: &LoggedChangeKind| matches!(kind, LoggedChangeKind::Edited { checkpoint: Some(_), .. });
    changes.filter(|(_, change)| is_checkpoint(&change.kind)).map(|(entry, _)| entry.version.revision.0).collect()
}

/// Edits an inventory up to a revision, in batches.
fn edit_up_to(store: &EmbeddedStore, state: &mut Arc<Inventory>, revision: u64) {
    let mut batch: Vec<MutationRecord> = Vec::new();
    while state.contents.revision().0 < revision {
        let next = state.contents.revision().0 + 1;
        let edit: Edit = (Slot((next % 9) as u16), stack(1, next as u32));
        let touched = updated(state, vec![edit]);
        *state = touched.state.clone().expect("it exists");
        batch.push(transaction(key(&format!("{}-{next}", state.id)), vec![touched]));
        if batch.len() == 512 || next == revision {
            store.commit(&std::mem::take(&mut batch)).expect("it commits");
        }
    }
}

#[test]
fn a_large_state_has_a_checkpoint_at_every_4096th_revision_only() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let edits: Vec<Edit> = (9..1_024).map(|slot| (Slot(slot), stack_with(2, 1, &[slot as u8; 32]))).collect();
    let mut large = inventory("large", None, 1, 1_024, &edits);
    let mut small = inventory("small", None, 2, 1_024, &[]);
    commit(&store, "large", created(&large));
    commit(&store, "small", created(&small));
    edit_up_to(&store, &mut small, 2 * CHECKPOINT_REVISIONS + 5);
    edit_up_to(&store, &mut large, LARGE_CHECKPOINT_REVISIONS + 5);
    seal(&place, &store);
    assert_eq!(checkpoints(&place.path(), "small"), [CHECKPOINT_REVISIONS, 2 * CHECKPOINT_REVISIONS]);
    assert_eq!(checkpoints(&place.path(), "large"), [LARGE_CHECKPOINT_REVISIONS]);
    for revision in [1, 2, 255, 256, 257, 4_095, 4_096, 4_097, 4_101] {
        let Some(PastState::Found { inventory, .. }) = state_at(&store, "large", None, revision) else {
            panic!("revision {revision}")
        };
        let newest = (2.max(revision.saturating_sub(8))..=revision).map(|revision| (revision % 9, revision));
        for (slot, count) in newest {
            let found = inventory.contents.stack(Slot(slot as u16)).map(|stack| u64::from(stack.count.get()));
            assert_eq!(found.unwrap_or(1), count, "revision {revision}, slot {slot}");
        }
        assert_eq!(inventory.contents.stacks().filter(|(slot, _)| slot.0 >= 9).count(), 1_015);
    }
    assert_clean(&place.path());
}

fn recall(store: &EmbeddedStore, key: &ScopedKey) -> KeyStatus {
    store.load(&[], std::slice::from_ref(key)).expect("it loads").key_statuses.remove(0)
}

#[test]
fn the_key_of_a_sealed_row_is_forgotten_although_its_record_is_kept() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let (timed, plain) = (uuid_key(place.clock.right_unix_ms(), 1), key("plain"));
    let chest = inventory("chest", None, 1, 9, &[]);
    store.commit(&[transaction(timed.clone(), vec![created(&chest)])]).expect("it commits");
    store.commit(&[transaction(plain.clone(), vec![])]).expect("it commits");
    store.fold().expect("it folds");
    assert!(matches!(recall(&store, &timed), KeyStatus::Applied { .. }));
    assert_eq!(store.statistics().log_blocks, 0, "a row with a remembered key is not sealed");
    seal(&place, &store);
    let check = |store: &EmbeddedStore| {
        assert!(store.statistics().log_blocks > 0 && store.statistics().journal_rows == 0);
        assert_eq!(recall(store, &timed), KeyStatus::Expired);
        assert_eq!(recall(store, &plain), KeyStatus::New);
        let all = Snapshot::open(&place.path()).expect("it opens").scan(&RecordFilter::default(), None, 9);
        let keys: Vec<_> = all.expect("it is read").into_iter().filter_map(|record| record.key).collect();
        assert_eq!(keys, [plain.key.clone(), timed.key.clone()]);
    };
    check(&store);
    drop(store);
    let store = place.open_with(settings(&place));
    check(&store);
    // The caller may send a plain key again.
    store.commit(&[transaction(plain.clone(), vec![])]).expect("it commits");
    assert!(matches!(recall(&store, &plain), KeyStatus::Applied { .. }));
    assert_clean(&place.path());
}

#[test]
fn rows_above_the_maximum_number_of_keys_are_sealed_within_the_key_window() {
    let place = Place::new();
    let settings = EmbeddedSettings { keys_max: 10, ..settings(&place) };
    let store = place.open_with(settings.clone());
    let keys: Vec<_> =
        (1..=30).map(|number| uuid_key(place.clock.right_unix_ms() + u64::from(number), number)).collect();
    for key in &keys {
        store.commit(&[transaction(key.clone(), vec![])]).expect("it commits");
    }
    store.fold().expect("it folds and seals");
    let check = |store: &EmbeddedStore| {
        assert_eq!(store.statistics().remembered_keys, 10);
        let applied: Vec<bool> =
            keys.iter().map(|key| matches!(recall(store, key), KeyStatus::Applied { .. })).collect();
        assert!(!applied[..20].contains(&true) && !applied[20..].contains(&false), "{applied:?}");
        assert_clean(&place.path());
    };
    check(&store);
    drop(store);
    check(&place.open_with(settings));
}

/// A store with sealed rows, and the journal rows as they were before.
fn sealed(place: &Place) -> (History, Vec<(i64, Vec<u8>)>) {
    let store = place.open_with(settings(place));
    let mut history = History::new(4, 9);
    for _ in 0..60 {
        store.commit(&history.batch()).expect("it commits");
    }
    store.fold().expect("it folds");
    let planted = Planted::open(&place.path());
    let mut select = planted.connection.prepare("SELECT seq, batch FROM journal ORDER BY seq").expect("a query");
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
    let rows: Vec<(i64, Vec<u8>)> = rows.map(|row| row.expect("a row")).collect();
    drop(select);
    drop(planted);
    seal(place, &store);
    assert_eq!(store.statistics().journal_rows, 0);
    (history, rows)
}

/// As after a crash between the segment and the trimming of its rows.
#[test]
fn rows_that_were_sealed_but_not_trimmed_are_trimmed_later() {
    let place = Place::new();
    let (history, rows) = sealed(&place);
    let supply = Snapshot::open(&place.path()).expect("it opens").supply().expect("it is read");
    let planted = Planted::open(&place.path());
    for (seq, batch) in &rows {
        let sql = "INSERT INTO journal (seq, batch) VALUES (?1, ?2)";
        planted.connection.execute(sql, rusqlite::params![seq, batch]).expect("it is written");
    }
    drop(planted);
    assert_clean(&place.path());
    assert_eq!(Snapshot::open(&place.path()).expect("it opens").supply().expect("it is read"), supply);
    let store = place.open_with(settings(&place));
    store.fold().expect("it trims");
    assert_eq!(store.statistics().journal_rows, 0);
    assert_eq!(store.supply().expect("it is read"), supply);
    history.model.check_inventories(&store);
    assert_clean(&place.path());
}

/// As after a crash between the blocks and their segment.
#[test]
fn blocks_without_a_segment_are_deleted_before_the_next_sealing() {
    let place = Place::new();
    let (mut history, _) = sealed(&place);
    let planted = Planted::open(&place.path());
    let end = Position::from_u64(planted.meta("sealed_through").cast_unsigned()).plus(1);
    let mut records = planted.block(planted.blocks()[0]);
    records.iter_mut().zip(0..).for_each(|(record, index)| record.position = end.plus(index));
    planted.put_block(end, &records);
    drop(planted);
    assert_clean(&place.path());
    let store = place.open_with(settings(&place));
    for _ in 0..20 {
        store.commit(&history.batch()).expect("it commits");
    }
    seal(&place, &store);
    history.model.check_inventories(&store);
    assert_clean(&place.path());
}

#[test]
fn the_time_of_records_does_not_go_back_after_the_whole_history_was_deleted() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let chest = inventory("chest", None, 1, 9, &[(Slot(0), stack(1, 1))]);
    commit(&store, "create", created(&chest));
    seal(&place, &store);
    place.clock.pass(Duration::from_secs(2_000));
    store.fold().expect("it deletes the segment");
    assert_eq!(store.statistics().log_blocks, 0);
    let deleted_ms = Snapshot::open(&place.path()).expect("it opens").trimmed_ms().expect("it is read");
    drop(store);
    place.clock.step_wall_clock(-10_000_000);
    let store = place.open_with(settings(&place));
    commit(&store, "edit", updated(&chest, vec![(Slot(0), stack(1, 2))]));
    let newest = store.changes(&id("chest"), None, 1).expect("it is read").expect("it exists").records.remove(0);
    assert!(newest.time_ms >= deleted_ms, "{} {deleted_ms}", newest.time_ms);
    assert_clean(&place.path());
}

#[test]
fn a_store_that_was_restored_twice_without_a_commit_continues() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let chest = inventory("chest", None, 1, 9, &[(Slot(0), stack(1, 5))]);
    commit(&store, "create", created(&chest));
    drop(store);
    let copy = place.folder.path().join("copy.db");
    for number in 1..=2 {
        let snapshot = Snapshot::open(&place.path()).expect("it opens");
        tools::backup(&snapshot, &copy, true, &mut quiet).expect("it is copied");
        drop(snapshot);
        tools::restore(&copy, &place.path(), true, number, &mut || epoch(70 + number as u32), &mut quiet)
            .expect("it is restored");
    }
    let store = place.open_with(settings(&place));
    let supply = store.supply().expect("it is read");
    assert_eq!(supply.position, Position::new(1, 1));
    let state = store.load(&[id("chest")], &[]).expect("it loads").inventories.remove(0).expect("it exists");
    assert_eq!(state.epoch, epoch(72));
    commit(&store, "edit", updated(&state, vec![(Slot(0), stack(1, 6))]));
    assert_eq!(store.supply().expect("it is read").position, Position::new(3, 1));
    drop(store);
    let store = place.open_with(settings(&place));
    assert_eq!(count_at(&store, "chest", 72, 2), Some(6));
    assert_eq!(count_at(&store, "chest", 72, 1), Some(5));
    assert_eq!(count_at(&store, "chest", 1, 1), Some(5), "the life before both restores");
    assert_eq!(state_at(&store, "chest", Some(71), 1), Some(PastState::Absent), "nothing names the life between them");
    seal(&place, &store);
    let of_set = RecordFilter { kind: Some(OperationKind::Set), ..RecordFilter::default() };
    let found = Snapshot::open(&place.path()).expect("it opens").scan(&of_set, None, 9).expect("it is read");
    let positions: Vec<_> = found.iter().map(|record| record.position).collect();
    assert_eq!(positions, [Position::new(3, 1), Position::new(1, 1)]);
    assert_clean(&place.path());
}
