//! Crashes at every step of sealing, trimming and retention: after each one the store opens, and log, table, supply and
//! remembered keys agree.
//!
//! Until a checkpoint, everything that the store writes is appended to SQLite's write-ahead log. So the beginning of that log,
//! up to each transaction, is the state after a crash at that step.

mod store_support;

use slotcast::domain::Slot;
use slotcast::store::embedded::tools::{self, ProgressUpdate, Snapshot};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::log::{ChainHead, Position};
use slotcast::store::{CommitError, KeyStatus, Store, StoreError};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store_support::*;

const WAL_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const FRAME_BYTES: usize = FRAME_HEADER_BYTES + 4_096;
const KEY_WINDOW: Duration = Duration::from_secs(60);

/// Settings with which a few kilobytes make a segment, and each slice writes one row or one block.
fn settings(place: &Place) -> EmbeddedSettings {
    EmbeddedSettings {
        key_window: KEY_WINDOW,
        segment_bytes: 20 << 10,
        slice: Duration::ZERO,
        history_bytes_max: Some(12 << 10),
        ..place.clock.settings()
    }
}

/// The lengths of a write-ahead log at which a transaction ends, including its whole length.
fn transaction_ends(wal: &[u8]) -> Vec<usize> {
    let frames = (wal.len() - WAL_HEADER_BYTES) / FRAME_BYTES;
    let starts = (0..frames).map(|frame| WAL_HEADER_BYTES + frame * FRAME_BYTES);
    // The size of the database after the transaction, in its last frame.
    let is_end = |start: &usize| wal[start + 4..start + 8] != [0; 4];
    starts.filter(is_end).map(|start| start + FRAME_BYTES).collect()
}

fn wal_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", path.display()))
}

fn check(path: &Path, step: &str) {
    let snapshot = Snapshot::open(path).expect("it opens");
    let findings = tools::check(&snapshot, &mut |_: ProgressUpdate| ControlFlow::Continue(()));
    assert_eq!(findings.problems, Vec::<String>::new(), "{step}");
}

/// Opens a copy with the beginning of the log, and compares it with the model.
fn check_crash(database: &Path, wal: &[u8], model: &Model, place: &Place, step: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("slotcast.db");
    std::fs::copy(database, &path).expect("it is copied");
    std::fs::write(wal_of(&path), wal).expect("it is written");
    check(&path, step);
    let store = EmbeddedStore::open(&path, settings(place)).expect("it opens");
    model.check_inventories(&store);
    let keys: Vec<_> = model.keys.keys().cloned().collect();
    let loaded = store.load(&[], &keys).expect("it loads");
    for (key, status) in keys.iter().zip(loaded.key_statuses) {
        // A key is remembered as it was, or it has expired with its row. Only one without a time counts as new then.
        let is_right = match status {
            KeyStatus::New => key.key.unix_ms().is_none(),
            KeyStatus::Expired => key.key.unix_ms().is_some(),
            KeyStatus::Applied { .. } | KeyStatus::TooFarAhead { .. } => Some(&status) == model.keys.get(key),
        };
        assert!(is_right, "{step}: {key:?}: {status:?}");
    }
    // What the crash interrupted is completed.
    store.fold().expect("it folds and seals");
    model.check_inventories(&store);
    store.close().expect("it closes");
    check(&path, &format!("{step}, completed"));
}

#[test]
fn after_a_crash_at_any_step_of_sealing_and_trimming_everything_agrees() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let (mut model, mut history) = (Model::default(), History::new(7, 12));
    // Several segments, of which retention deletes some.
    for _ in 0..40 {
        (0..4).for_each(|_| model.commit(&store, &history.batch()));
    }
    store.fold().expect("it folds");
    store.flush().expect("the log is empty");
    let database = place.folder.path().join("before.db");
    store.with_writes_paused(|| std::fs::copy(place.path(), &database).expect("it is copied"));
    place.clock.pass(2 * KEY_WINDOW);
    store.fold().expect("it seals and trims");
    let statistics = store.statistics();
    assert_eq!(statistics.journal_rows, 0, "all rows are sealed and trimmed");
    assert!(statistics.log_blocks > 0);
    let wal = store.with_writes_paused(|| std::fs::read(wal_of(&place.path())).expect("it is read"));
    let ends = transaction_ends(&wal);
    assert!(ends.len() > 20, "only {} transactions", ends.len());
    drop(store);
    let snapshot = Snapshot::open(&place.path()).expect("it opens");
    assert!(snapshot.trimmed_ms().expect("it is read") > 0, "retention has deleted segments");
    drop(snapshot);
    for (step, end) in ends.iter().enumerate() {
        check_crash(&database, &wal[..*end], &model, &place, &format!("step {step} of {}", ends.len()));
        // A torn transaction counts as none.
        let torn = (end + FRAME_BYTES / 2).min(wal.len());
        if step % 8 == 0 {
            check_crash(&database, &wal[..torn], &model, &place, &format!("within step {}", step + 1));
        }
    }
}

/// Fewer rows than a segment would have fill the store, so sealing must not wait for more.
#[test]
fn a_store_that_is_full_of_journal_rows_seals_them_and_has_room_again() {
    let place = Place::new();
    let settings = EmbeddedSettings {
        key_window: KEY_WINDOW,
        bytes_max: Some(1 << 20),
        fold_after: Duration::ZERO,
        ..place.clock.settings()
    };
    let store = place.open_with(settings);
    let mut history = History::new(3, 12);
    let is_full = |result: Result<Vec<ChainHead>, CommitError>| match result {
        Ok(_) => false,
        Err(CommitError::NotCommitted(StoreError::Full { .. })) => true,
        Err(error) => panic!("{error}"),
    };
    let refused = loop {
        let batch = history.batch();
        if is_full(store.commit(&batch)) {
            break batch;
        }
    };
    assert_eq!(store.statistics().log_blocks, 0, "too few rows for a segment");
    place.clock.pass(2 * KEY_WINDOW);
    let attempts = (0..5_000).take_while(|_| {
        std::thread::sleep(Duration::from_millis(2));
        is_full(store.commit(&refused))
    });
    assert!(attempts.count() < 5_000, "it stays full");
    assert!(store.statistics().log_blocks > 0);
}

#[test]
fn a_journal_row_that_the_disk_damages_is_passed_over_and_its_positions_are_not_used_again() {
    let place = Place::new();
    let store = place.open_with(settings(&place));
    let mut chest = inventory("chest", None, 1, 9, &[(Slot(0), stack(1, 1))]);
    store.commit(&[transaction(key("1"), vec![created(&chest)])]).expect("it commits");
    for count in 2..=4 {
        let next = updated(&chest, vec![(Slot(0), stack(1, count))]);
        chest = next.state.clone().expect("it is there");
        store.commit(&[transaction(key(&count.to_string()), vec![next])]).expect("it commits");
    }
    store.fold().expect("it folds");
    let connection = rusqlite::Connection::open(place.path()).expect("it opens");
    connection.execute("UPDATE journal SET batch = zeroblob(99) WHERE seq IN (2, 4)", []).expect("it is damaged");
    drop(connection);
    place.clock.pass(2 * KEY_WINDOW);
    store.fold().expect("the other rows are sealed");
    assert_eq!((store.statistics().journal_rows, store.statistics().log_blocks), (0, 2));
    store.close().expect("it closes");

    let store = place.open_with(settings(&place));
    let next = updated(&chest, vec![(Slot(0), stack(1, 5))]);
    let heads = store.commit(&[transaction(key("5"), vec![next])]).expect("it commits");
    assert_eq!(heads[0].last, Position::new(1, 5), "the positions of the damaged rows");
    let page = store.changes(&id("chest"), None, 1).expect("it is read").expect("it exists");
    assert_eq!(page.next, Some(Position::new(1, 4)));
    let lost = store.changes(&id("chest"), None, 9);
    assert!(matches!(lost, Err(StoreError::Corrupt { .. })), "{lost:?}");
    store.close().expect("it closes");
    let snapshot = Snapshot::open(&place.path()).expect("it opens");
    let findings = tools::check(&snapshot, &mut |_: ProgressUpdate| ControlFlow::Continue(()));
    assert!(
        findings.problems.iter().any(|problem| problem.contains("position 1-3 of the log does not follow")),
        "{findings:?}"
    );
}
