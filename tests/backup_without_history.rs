//! Backups that leave out the sealed part of the log.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_support;

use slotcast::store::embedded::tools::{self, Findings, ProgressUpdate, Snapshot, ToolError};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::history::{PastState, PastTarget, RecordFilter};
use slotcast::store::{KeyStatus, Store};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store_support::*;

const KEY_WINDOW: Duration = Duration::from_secs(60);

fn quiet(_: ProgressUpdate) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn fsck(path: &Path) -> Findings {
    let findings = tools::check(&Snapshot::open(path).unwrap(), &mut quiet);
    assert_eq!(findings.problems, Vec::<String>::new(), "{}", path.display());
    findings
}

fn settings(place: &Place) -> EmbeddedSettings {
    EmbeddedSettings { key_window: KEY_WINDOW, segment_bytes: 8 << 10, ..place.clock.settings() }
}

fn backup_without_history(place: &Place) -> PathBuf {
    let target = place.folder.path().join("without-history.db");
    let snapshot = Snapshot::open(&place.path()).unwrap();
    let (last_seq, mut steps) = (tools::backup_without_history(&snapshot, &target, true, &mut quiet), Vec::new());
    let again = tools::backup_without_history(&snapshot, &target, true, &mut |step| {
        steps.push(step);
        ControlFlow::Continue(())
    });
    assert_eq!(last_seq.unwrap(), again.unwrap());
    assert!(steps.last().is_some_and(|last| last.done == last.total && last.total > 0), "{steps:?}");
    target
}

/// A store with sealed records, folded rows that are not sealed, and a tail that is not folded.
fn store_with_history(seed: u64) -> (Place, EmbeddedStore, History) {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let mut history = History::new(seed, 12);
    for round in 0..3 {
        for _ in 0..120 {
            store.commit(&history.batch()).unwrap();
            place.clock.pass(Duration::from_millis(1));
        }
        if round < 2 {
            // All keys expire.
            place.clock.pass(KEY_WINDOW * 2);
        }
        store.fold().unwrap();
    }
    for _ in 0..20 {
        store.commit(&history.batch()).unwrap();
    }
    (place, store, history)
}

#[test]
fn a_backup_without_history_is_a_complete_store_whose_history_begins_with_the_journal() {
    for seed in 0..4 {
        let (place, store, history) = store_with_history(seed);
        let complete = fsck(&place.path());
        assert!(store.statistics().log_blocks > 0);
        let copy = backup_without_history(&place);
        let found = fsck(&copy);
        assert!(0 < found.records && found.records < complete.records, "{found:?}");
        assert_eq!((found.items, found.inventories), (complete.items, complete.inventories));
        assert_eq!((found.keys, found.journal_rows), (complete.keys, complete.journal_rows));

        let (original, copied) = (Snapshot::open(&place.path()).unwrap(), Snapshot::open(&copy).unwrap());
        assert_eq!(original.supply().unwrap(), copied.supply().unwrap());
        let all = RecordFilter::default();
        let kept = copied.scan(&all, None, usize::MAX).unwrap();
        let mut expected = original.scan(&all, None, usize::MAX).unwrap();
        expected.truncate(kept.len());
        assert_eq!(kept, expected, "the newest records are the same");
        assert!(copied.trimmed_ms().unwrap() > 0);
        // A store that is being opened must have no reader yet: it still has no write-ahead log.
        drop(copied);

        let opened = EmbeddedStore::open(&copy, settings(&place)).unwrap();
        history.model.check_inventories(&opened);
        let usage = opened.usage().unwrap().log;
        assert_eq!((usage.blocks, usage.block_bytes), (0, 0));
        assert!(usage.earliest_ms.unwrap() >= usage.trimmed_ms);
    }
}

#[test]
fn the_copy_answers_for_the_newest_state_and_says_that_older_changes_were_deleted() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let (old, gone) = (chest("old", 1), chest("gone", 2));
    store.commit(&[transaction(key("1"), vec![created(&old), created(&gone)])]).unwrap();
    store.commit(&[transaction(key("2"), vec![deleted(&gone)])]).unwrap();
    place.clock.pass(KEY_WINDOW * 2);
    store.fold().unwrap();
    let copy = Snapshot::open(&backup_without_history(&place)).unwrap();
    fsck(copy.path());

    let page = copy.changes(&old.id, None, 10).unwrap().unwrap();
    assert_eq!((page.records.len(), page.is_trimmed), (0, true));
    let at = |revision| PastTarget::Revision { epoch: None, revision };
    let state = copy.state_at(&old.id, at(old.contents.revision())).unwrap();
    assert!(matches!(state, Some(PastState::Found { position: None, .. })), "{state:?}");
    assert_eq!(copy.changes(&gone.id, None, 10).unwrap(), None, "its tombstone is left out");
}

/// Neither in a backup without history, nor after retention has deleted all segments while the journal is empty.
#[test]
fn the_times_of_records_do_not_go_back_behind_what_was_deleted() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    store.commit(&[transaction(key("1"), vec![created(&chest("first", 1))])]).unwrap();
    place.clock.pass(KEY_WINDOW * 2);
    store.fold().unwrap();
    let copy = backup_without_history(&place);
    place.clock.pass(EmbeddedSettings::default().history_age * 2);
    store.fold().unwrap();
    assert_eq!((store.statistics().log_blocks, store.statistics().journal_rows), (0, 0));
    store.close().unwrap();
    for path in [copy, place.path()] {
        place.clock.step_wall_clock(-1_000 * 3_600 * 24 * 365);
        let store = EmbeddedStore::open(&path, settings(&place)).unwrap();
        store.commit(&[transaction(key("2"), vec![created(&chest("second", 2))])]).unwrap();
        let snapshot = Snapshot::open(&path).unwrap();
        let records = snapshot.scan(&RecordFilter::default(), None, 9).unwrap();
        assert_eq!((records.len(), snapshot.trimmed_ms().unwrap()), (1, WALL_CLOCK_START_MS));
        assert!(records[0].time_ms >= WALL_CLOCK_START_MS, "{}", records[0].time_ms);
        drop(snapshot);
        store.close().unwrap();
        fsck(&path);
    }
}

#[test]
fn a_restored_copy_continues_and_its_later_history_is_sealed() {
    let (place, store, mut history) = store_with_history(7);
    let copy = backup_without_history(&place);
    store.close().unwrap();
    let target = Place::new();
    let mut next = 1_000_000;
    let mut new_epoch = || {
        next += 1;
        epoch(next)
    };
    tools::restore(&copy, &target.path(), false, 1, &mut new_epoch, &mut quiet).unwrap();
    fsck(&target.path());
    let store = target.open_with(settings(&target));
    for state in list_all(&store, slotcast::store::ListQuery { limit: 100, ..Default::default() }) {
        history.model.inventories.insert(state.id.clone(), state);
    }
    for _ in 0..50 {
        store.commit(&history.batch()).unwrap();
    }
    target.clock.pass(KEY_WINDOW * 2);
    store.fold().unwrap();
    assert!(store.statistics().log_blocks > 0);
    history.model.check_inventories(&store);
    fsck(&target.path());
}

/// The second restore skips the writer of the first one: its positions name other records.
#[test]
fn the_same_backup_can_be_restored_again() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    store.commit(&[transaction(key("1"), vec![created(&chest("first", 1))])]).unwrap();
    let copy = backup_without_history(&place);
    store.close().unwrap();
    for round in 2..4 {
        let mut new_epoch = || epoch(1_000_000 + round);
        tools::restore(&copy, &place.path(), true, u64::from(round), &mut new_epoch, &mut quiet).unwrap();
        for number in 0..2 {
            let store = place.open_with(settings(&place));
            let state = chest(&format!("later-{round}-{number}"), round);
            store.commit(&[transaction(key(&format!("{round}-{number}")), vec![created(&state)])]).unwrap();
            drop(store);
            fsck(&place.path());
        }
        let snapshot = Snapshot::open(&place.path()).unwrap();
        let writers: Vec<u16> = snapshot
            .scan(&RecordFilter::default(), None, 9)
            .unwrap()
            .iter()
            .map(|record| record.position.writer())
            .collect();
        assert_eq!(writers, [round as u16, round as u16, 1]);
    }
    let store = place.open_with(settings(&place));
    place.clock.pass(KEY_WINDOW * 2);
    store.fold().unwrap();
    assert_eq!(store.statistics().journal_rows, 0);
    fsck(&place.path());
}

#[test]
fn without_sealed_records_the_copy_has_the_whole_history() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let mut history = History::new(3, 5);
    for _ in 0..10 {
        store.commit(&history.batch()).unwrap();
    }
    let copy = backup_without_history(&place);
    assert_eq!(fsck(&copy).records, fsck(&place.path()).records);
    let opened = EmbeddedStore::open(&copy, settings(&place)).unwrap();
    history.model.check(&opened);
}

#[test]
fn keys_of_rows_that_are_sealed_but_not_trimmed_do_not_become_new() {
    let place = Place::new();
    let (state, first) = (chest("chest", 1), uuid_key(place.clock.right_unix_ms(), 1));
    let store = place.open_with(settings(&place));
    store.commit(&[transaction(first.clone(), vec![created(&state)])]).unwrap();
    store.close().unwrap();
    let rows = |path: &Path| -> Vec<(i64, Vec<u8>)> {
        let connection = rusqlite::Connection::open(path).unwrap();
        let mut select = connection.prepare("SELECT seq, batch FROM journal").unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let untrimmed = rows(&place.path());
    let store = place.open_with(settings(&place));
    place.clock.pass(KEY_WINDOW * 2);
    store.fold().unwrap();
    assert_eq!(store.statistics().journal_rows, 0);
    store.close().unwrap();
    // As if the process had ended between sealing and trimming.
    let connection = rusqlite::Connection::open(place.path()).unwrap();
    for (seq, batch) in &untrimmed {
        connection.execute("INSERT INTO journal (seq, batch) VALUES (?1, ?2)", rusqlite::params![seq, batch]).unwrap();
    }
    drop(connection);
    let copy = backup_without_history(&place);
    let found = fsck(&copy);
    assert_eq!((found.keys, found.records), (1, 0));
    // Opening trims the row, which moves the horizon of keys: the key must not count as new.
    let opened = EmbeddedStore::open(&copy, settings(&place)).unwrap();
    opened.fold().unwrap();
    assert_eq!(opened.statistics().journal_rows, 0);
    assert_eq!(opened.load(&[], &[first]).unwrap().key_statuses, [KeyStatus::Expired]);
    opened.close().unwrap();
    fsck(&copy);
}

#[test]
fn an_interrupted_or_refused_backup_leaves_nothing() {
    let (place, _store, _) = store_with_history(5);
    let snapshot = Snapshot::open(&place.path()).unwrap();
    let target = place.folder.path().join("copy.db");
    let interrupted = tools::backup_without_history(&snapshot, &target, false, &mut |_| ControlFlow::Break(()));
    assert!(matches!(interrupted, Err(ToolError::Interrupted)), "{interrupted:?}");
    assert!(!target.exists());
    std::fs::write(&target, "precious").unwrap();
    let refused = tools::backup_without_history(&snapshot, &target, false, &mut quiet);
    assert!(matches!(refused, Err(ToolError::Exists(_))), "{refused:?}");
    let itself = tools::backup_without_history(&snapshot, &place.path(), true, &mut quiet);
    assert!(itself.is_err(), "{itself:?}");
    let names = std::fs::read_dir(place.folder.path()).unwrap().map(|file| file.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().starts_with('.')));
}
