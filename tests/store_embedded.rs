//! Guarantees of the embedded store beyond the `Store` trait: replay, crashes, key expiry, a full disk.

mod store_support;

use slotcast::domain::{InventoryId, Slot};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::{CommitError, KeyStatus, ListQuery, ScopedKey, Store, StoreError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store_support::*;

#[test]
fn a_cold_inventory_is_read_from_the_table_and_a_warm_one_from_the_overlay() {
    let place = Place::new();
    let store = place.open();
    let mut model = Model::default();
    let (cold, warm) = (inventory("cold", None, 1, 36, &[(Slot(1), stack(1, 1))]), inventory("warm", None, 2, 36, &[]));
    model.commit(&store, &[transaction(key("1"), vec![created(&cold), created(&warm)])]);
    store.fold().expect("it folds");
    assert_eq!(store.statistics().unfolded_inventories, 0);
    model.commit(&store, &[transaction(key("2"), vec![updated(&warm, vec![(Slot(2), stack(3, 4))])])]);
    assert_eq!(store.statistics().unfolded_inventories, 1);
    model.check(&store);
}

#[test]
fn opening_replays_unfolded_commits() {
    let place = Place::new();
    let mut history = History::new(1, 20);
    for _ in 0..5 {
        let store = place.open();
        history.model.check(&store);
        for _ in 0..20 {
            store.commit(&history.batch()).expect("it commits");
        }
        assert!(store.statistics().unfolded_records > 0);
    }
    let store = place.open();
    assert!(store.statistics().unfolded_records > 0, "nothing was folded by itself");
    history.model.check(&store);
    store.close().expect("it closes");
    let store = place.open();
    assert_eq!(store.statistics().unfolded_records, 0);
    history.model.check(&store);
}

#[test]
fn random_histories_with_folds_and_reopenings_agree_with_a_model() {
    for seed in 0..8 {
        let place = Place::new();
        let mut history = History::new(seed, 6);
        let mut store = place.open();
        for _ in 0..120 {
            match history.random.u32(..8) {
                0 => store.fold().expect("it folds"),
                1 => {
                    drop(store);
                    store = place.open();
                }
                _ => drop(store.commit(&history.batch()).expect("it commits")),
            }
            history.model.check(&store);
        }
    }
}

#[test]
fn a_copy_of_the_files_at_any_time_contains_all_commits() {
    for seed in 0..6 {
        let place = Place::new();
        let mut history = History::new(100 + seed, 8);
        let store = place.open_with(frequent_folds());
        for _ in 0..12 {
            for _ in 0..history.random.usize(1..12) {
                store.commit(&history.batch()).expect("it commits");
            }
            // Folds first, so that the files do not change while they are copied; a crash is one moment.
            store.fold().expect("it folds");
            for _ in 0..history.random.usize(..3) {
                store.commit(&history.batch()).expect("it commits");
            }
            let elsewhere = Place::new();
            let copy = store.with_writes_paused(|| copy_of(&place.path(), elsewhere.folder.path()));
            let opened = EmbeddedStore::open(&copy, elsewhere.clock.settings()).expect("the copy opens");
            history.model.check(&opened);
            let items: u64 = list_all(&opened, ListQuery { limit: 3, ..ListQuery::default() })
                .iter()
                .flat_map(|state| {
                    state.contents.stacks().map(|(_, stack)| u64::from(stack.count.get())).collect::<Vec<_>>()
                })
                .sum();
            assert_eq!(items, history.model.items());
        }
    }
}

/// Case 46. Truncates the log block by block: the store always contains a prefix of the commits.
#[test]
fn case_46_a_torn_log_opens_to_the_old_or_the_new_commit() {
    let place = Place::new();
    let store = place.open();
    let mut history = History::new(5, 4);
    let mut models = vec![history.model.clone()];
    for _ in 0..6 {
        store.commit(&history.batch()).expect("it commits");
        models.push(history.model.clone());
    }
    let elsewhere = Place::new();
    let copy = copy_of(&place.path(), elsewhere.folder.path());
    let wal = PathBuf::from(format!("{}-wal", copy.display()));
    let (database, log) = (std::fs::read(&copy).expect("it is there"), std::fs::read(&wal).expect("it is there"));
    let mut before = models.len();
    for bytes in (0..=log.len()).rev().step_by(512) {
        std::fs::write(&copy, &database).expect("it is written");
        std::fs::write(&wal, &log[..bytes]).expect("it is written");
        let opened = EmbeddedStore::open(&copy, place.clock.settings()).expect("it opens");
        let rows = opened.statistics().journal_rows;
        assert!(rows < models.len() && rows <= before);
        models[rows].check_inventories(&opened);
        before = rows;
    }
    assert_eq!(before, 0, "all was cut off in the end");
}

/// Case 47. Copies the files of a store that was just opened, repeatedly.
#[test]
fn case_47_a_crash_during_recovery_loses_nothing() {
    let place = Place::new();
    let store = place.open_with(frequent_folds());
    let mut history = History::new(6, 8);
    for _ in 0..50 {
        store.commit(&history.batch()).expect("it commits");
    }
    let mut before = Place::new();
    let mut copy = store.with_writes_paused(|| copy_of(&place.path(), before.folder.path()));
    for _ in 0..5 {
        let opened = EmbeddedStore::open(&copy, frequent_folds()).expect("it opens");
        let next = Place::new();
        let again = opened.with_writes_paused(|| copy_of(&copy, next.folder.path()));
        history.model.check(&opened);
        drop(opened);
        (copy, before) = (again, next);
    }
    drop(before);
}

#[test]
fn a_key_expires_after_the_key_window() {
    let place = Place::new();
    let store = place.open();
    let (early, late) = (uuid_key(1_000, 1), uuid_key(2_000, 2));
    let plain = key("no time inside");
    store.commit(&[transaction(early.clone(), vec![]), transaction(plain.clone(), vec![])]).expect("it commits");
    place.clock.pass(Duration::from_secs(10 * 60));
    store.commit(&[transaction(late.clone(), vec![])]).expect("it commits");
    let recall = |store: &EmbeddedStore, key: &ScopedKey| {
        store.load(&[], std::slice::from_ref(key)).expect("it loads").key_statuses.remove(0)
    };
    let is_applied = |recall: KeyStatus| matches!(recall, KeyStatus::Applied { .. });

    place.clock.pass(Duration::from_secs(5 * 60));
    store.fold().expect("it folds");
    assert!(is_applied(recall(&store, &early)), "its window is not over");
    place.clock.pass(Duration::from_millis(1));
    store.fold().expect("it folds");
    assert_eq!(recall(&store, &early), KeyStatus::Expired);
    assert_eq!(recall(&store, &uuid_key(1_000, 3)), KeyStatus::Expired, "as old as one that was forgotten");
    assert_eq!(recall(&store, &uuid_key(1_001, 3)), KeyStatus::New);
    assert_eq!(recall(&store, &plain), KeyStatus::New);
    assert!(is_applied(recall(&store, &late)));

    drop(store);
    let store = place.open();
    assert_eq!(recall(&store, &early), KeyStatus::Expired, "after a restart too");
    assert!(is_applied(recall(&store, &late)));
    // The time during which the store was closed does not count; what was open before does.
    place.clock.pass(Duration::from_secs(14 * 60));
    store.fold().expect("it folds");
    assert!(is_applied(recall(&store, &late)));
    place.clock.pass(Duration::from_secs(2 * 60));
    store.fold().expect("it folds");
    assert_eq!(recall(&store, &late), KeyStatus::Expired);
    assert_eq!(store.statistics().journal_rows, 0);
    drop(store);
    assert_eq!(recall(&place.open(), &late), KeyStatus::Expired);
}

#[test]
fn keys_above_the_maximum_number_expire_oldest_first() {
    let place = Place::new();
    let store = place.open_with(EmbeddedSettings { keys_max: 10, ..place.clock.settings() });
    for number in 1..=30 {
        store.commit(&[transaction(uuid_key(u64::from(number), number), vec![])]).expect("it commits");
    }
    assert_eq!(store.statistics().remembered_keys, 30, "what is not folded is remembered in any case");
    store.fold().expect("it folds");
    assert_eq!(store.statistics().remembered_keys, 10);
    let keys: Vec<ScopedKey> = (1..=31).map(|number| uuid_key(u64::from(number), number)).collect();
    let recalls = store.load(&[], &keys).expect("it loads").key_statuses;
    assert!(recalls[..20].iter().all(|recall| *recall == KeyStatus::Expired));
    assert!(recalls[20..30].iter().all(|recall| matches!(recall, KeyStatus::Applied { .. })));
    assert_eq!(recalls[30], KeyStatus::New);
}

/// Case 44. The size limit of the file stands for a full disk.
#[test]
fn case_44_a_full_disk_refuses_commits_keeps_reads_and_recovers() {
    let place = Place::new();
    let store = place.open_with(EmbeddedSettings { bytes_max: Some(400 << 10), ..place.clock.settings() });
    let mut model = Model::default();
    let state = inventory("chest", Some("ann"), 1, 36, &[(Slot(0), stack(1, 5))]);
    model.commit(&store, &[transaction(uuid_key(1, 0), vec![created(&state)])]);
    let mut state = state;
    let mut refused = None;
    for number in 1..10_000_u32 {
        let next = updated(&state, vec![(Slot(1), stack_with(2, number, &[number as u8; 1024]))]);
        let after = next.state.clone().expect("it is there");
        let batch = [transaction(uuid_key(u64::from(number), number), vec![next])];
        match store.commit(&batch) {
            Ok(_) => {
                model.apply(&batch);
                state = after;
            }
            Err(error) => {
                refused = Some((error, batch));
                break;
            }
        }
    }
    let (error, batch) = refused.expect("the quota is reached");
    assert!(matches!(error, CommitError::NotCommitted(StoreError::Full { .. })), "{error:?}");
    model.check(&store);
    let unwritten = store.load(&[], &[batch[0].key.clone()]).expect("it loads").key_statuses;
    assert_eq!(unwritten, [KeyStatus::New], "what was refused has not happened");

    // Expired keys make room, without a restart.
    place.clock.pass(Duration::from_secs(16 * 60));
    store.fold().expect("it folds");
    store.commit(&batch).expect("there is room again");
    model.apply(&batch);
    model.check_inventories(&store);
    drop(store);
    model.check_inventories(&place.open());
}

#[test]
fn case_44_a_fold_on_a_full_disk_loses_nothing_and_continues_when_there_is_room() {
    let place = Place::new();
    let store = place.open();
    let mut history = History::new(8, 200);
    for _ in 0..400 {
        store.commit(&history.batch()).expect("it commits");
    }
    drop(store);
    let bytes = std::fs::metadata(place.path()).expect("it is there").len();
    // The file cannot grow, so the table has no room.
    let store =
        place.open_with(EmbeddedSettings { bytes_max: Some(bytes), fold_reserve_bytes: 0, ..place.clock.settings() });
    let failed = store.fold().expect_err("there is no room");
    assert!(matches!(failed, StoreError::Full { .. }), "{failed:?}");
    history.model.check(&store);
    drop(store);
    let store = place.open();
    history.model.check(&store);
    store.fold().expect("there is room");
    history.model.check(&store);
}

#[test]
fn stored_records_and_rows_are_small() {
    let place = Place::new();
    let store = place.open();
    let edits: Vec<_> = (0..20).map(|slot| (Slot(slot), stack(100 + u32::from(slot), 40))).collect();
    let state = inventory("player-0012345", Some("player-0012345"), 7_000_000, 36, &edits);
    store.commit(&[transaction(uuid_key(1, 1), vec![created(&state)])]).expect("it commits");
    let mut state = state;
    let batch: Vec<_> = (2..130)
        .map(|number| {
            let next = updated(&state, vec![(Slot(3), stack(103, number))]);
            state = next.state.clone().expect("it is there");
            let mut one = transaction(uuid_key(u64::from(number), number), vec![next]);
            one.reply.outcomes.truncate(1);
            one
        })
        .collect();
    store.commit(&batch).expect("it commits");
    store.close().expect("it closes");
    let connection = rusqlite::Connection::open(place.path()).expect("it opens");
    let bytes = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u32>(0)).expect("it is there");
    let record = bytes("SELECT max(length(batch)) FROM journal") / 128;
    assert!(record <= 120, "a record has {record} bytes");
    let row = bytes("SELECT length(contents) FROM inventories");
    assert!(row <= 300, "a row's contents have {row} bytes");
}

/// Commits and prints each acknowledged state, until it is killed. Runs in a child process of the test below.
fn child(path: &Path) -> ! {
    let settings =
        EmbeddedSettings { round_records: 500, wal_checkpoint_bytes: 256 << 10, ..EmbeddedSettings::default() };
    let store = EmbeddedStore::open(path, settings).expect("it opens");
    let ids: Vec<InventoryId> = (0..50).map(|number| id(&format!("inv-{number:02}"))).collect();
    let mut states = store.load(&ids, &[]).expect("it loads").inventories;
    for round in std::process::id().. {
        let mut batch = Vec::new();
        let mut promised = String::new();
        for number in 0..16 {
            let at = fastrand::usize(..states.len());
            let touched = match &states[at] {
                None => created(&inventory(ids[at].as_str(), None, 1, 9, &[])),
                Some(there) => updated(there, vec![(Slot(fastrand::u16(..9)), stack(1, fastrand::u32(1..1_000)))]),
            };
            states[at] = touched.state.clone();
            promised += &format!("{at} {} {:08x};", touched.version.revision.0, touched.version.digest.a);
            batch.push(transaction(uuid_key(u64::from(round), fastrand::u32(..) ^ number), vec![touched]));
        }
        store.commit(&batch).expect("it commits");
        println!("promised {promised}");
    }
    unreachable!("it is killed before");
}

const CHILD: &str = "SLOTCAST_TEST_CHILD";

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if let Some(path) = std::env::var_os(CHILD) {
        child(Path::new(&path));
    }
    let crashes: usize = std::env::var("SLOTCAST_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let place = Place::new();
    let mut promised = vec![(0_u64, String::new()); 50];
    for _ in 0..crashes {
        let (_, output) = run_and_kill(&place.path(), Duration::from_millis(fastrand::u64(50..400)));
        let promises = output.lines().filter_map(|line| line.split_once("promised ")?.1.strip_suffix(';'));
        for promise in promises.flat_map(|line| line.split(';')) {
            let mut parts = promise.split(' ');
            let mut next = || parts.next().expect("three parts");
            let (at, revision, digest) = (next(), next(), next());
            let at: usize = at.parse().expect("a number");
            promised[at] = (revision.parse().expect("a number"), digest.to_owned());
        }
        let store = place.open();
        for (at, (revision, digest)) in promised.iter_mut().enumerate() {
            let found = store.load(&[id(&format!("inv-{at:02}"))], &[]).expect("it loads").inventories.remove(0);
            let Some(found) = found else {
                assert_eq!(*revision, 0, "inventory {at} was lost");
                continue;
            };
            let (found_revision, found_digest) =
                (found.contents.revision().0, format!("{:08x}", found.contents.digest().a));
            assert!(found_revision >= *revision, "inventory {at} went back from {revision} to {found_revision}");
            assert!(found_revision > *revision || found_digest == *digest, "inventory {at} is another");
            (*revision, *digest) = (found_revision, found_digest);
        }
    }
    assert!(promised.iter().any(|(revision, _)| *revision > 0), "no child came to commit anything");
}

fn run_and_kill(path: &Path, after: Duration) -> (std::process::ExitStatus, String) {
    use std::process::{Command, Stdio};
    let mut child = Command::new(std::env::current_exe().expect("it has a path"))
        .args(["--exact", "nothing_acknowledged_is_lost_when_the_process_is_killed", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdout = child.stdout.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut output = Vec::new();
        std::io::Read::read_to_end(&mut stdout, &mut output).map(|_| output)
    });
    // Time under test: the moment of the kill, while the child commits.
    std::thread::sleep(after);
    child.kill().expect("it is killed");
    let status = child.wait().expect("it ends");
    let output = reader.join().expect("it reads").expect("it reads");
    (status, String::from_utf8(output).expect("it is text"))
}

#[test]
fn a_full_store_opens() {
    let place = Place::new();
    place.open().close().expect("it closes");
    let connection = rusqlite::Connection::open(place.path()).expect("it opens");
    connection.execute_batch("VACUUM").expect("no page is free");
    drop(connection);
    let bytes = std::fs::metadata(place.path()).expect("it is there").len();
    let full = || EmbeddedSettings { bytes_max: Some(bytes), ..place.clock.settings() };
    let store = place.open_with(full());
    assert_eq!(*store.stopped().borrow(), None);
    drop(store);
    place.open_with(full());
}
