//! Snapshots, backups, restores, imports and fsck of the embedded store.

mod store_support;

use slotcast::catalog_file::default_catalog;
use slotcast::domain::{Contents, Digest, Epoch, Inventory, Revision, Slot, SlotState, Transition};
use slotcast::store::embedded::tools::import::{ExclusiveStore, Staging};
use slotcast::store::embedded::tools::{self, Findings, ProgressUpdate, Snapshot, ToolError};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore, OpenError};
use slotcast::store::{KeyStatus, ListQuery, Store, format};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use store_support::*;

fn quiet(_: ProgressUpdate) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn snapshot(path: &Path) -> Snapshot {
    Snapshot::open(path).expect("it opens")
}

fn fsck(path: &Path) -> Findings {
    tools::check(&snapshot(path), &mut quiet)
}

fn backup(path: &Path, target: &Path) -> tools::BackupSummary {
    tools::backup(&snapshot(path), target, false, &mut quiet).expect("it is backed up")
}

fn epochs() -> impl FnMut() -> Epoch {
    let mut next = 1_000_000;
    move || {
        next += 1;
        epoch(next)
    }
}

fn restore(source: &Path, target: &Path, replace: bool) -> Result<tools::RestoreSummary, ToolError> {
    tools::restore(source, target, replace, 77, &mut epochs(), &mut quiet)
}

fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path, DrivenClock::default().settings()).expect("it opens")
}

#[test]
fn a_backup_during_commits_contains_exactly_the_commits_up_to_one_moment() {
    let place = Place::new();
    let settings = EmbeddedSettings {
        round_records: 30,
        slice: Duration::ZERO,
        wal_checkpoint_bytes: 64 << 10,
        ..EmbeddedSettings::default()
    };
    let store = place.open_with(settings);
    let acknowledged = AtomicUsize::new(0);
    let mut history = History::new(21, 30);
    let mut models = vec![history.model.clone()];
    let copies = std::thread::scope(|scope| {
        let copies = scope.spawn(|| {
            let (mut copies, path) = (Vec::new(), place.path());
            while acknowledged.load(Ordering::SeqCst) < 380 {
                let before = acknowledged.load(Ordering::SeqCst);
                if before < 50 * copies.len() {
                    std::thread::yield_now();
                    continue;
                }
                let copy = place.folder.path().join(format!("copy-{before}.db"));
                copies.push((before, backup(&path, &copy).last_seq as usize, copy));
            }
            copies
        });
        for _ in 0..400 {
            store.commit(&history.batch()).expect("it commits");
            models.push(history.model.clone());
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        copies.join().expect("all were made")
    });
    assert!(copies.len() > 1, "{}", copies.len());
    for (before, last_seq, copy) in copies {
        assert!(last_seq >= before, "{before} were acknowledged, {last_seq} are there");
        let side_files = ["-wal", "-shm"].map(|suffix| PathBuf::from(format!("{}{suffix}", copy.display())));
        assert_eq!(fsck(&copy).problems, Vec::<String>::new());
        assert!(side_files.iter().all(|file| !file.exists()), "it is one file");
        models[last_seq].check(&open(&copy));
    }
}

#[test]
fn a_backup_appears_atomically_and_replaces_a_file_only_on_request() {
    let place = Place::new();
    let store = place.open();
    store.commit(&[transaction(key("1"), vec![])]).expect("it commits");
    let target = place.folder.path().join("copy.db");
    std::fs::write(&target, "precious").expect("it is written");
    let refused = tools::backup(&snapshot(&place.path()), &target, false, &mut quiet);
    assert!(matches!(refused, Err(ToolError::Exists(_))), "{refused:?}");
    assert_eq!(std::fs::read(&target).expect("it is there"), b"precious");
    let itself = tools::backup(&snapshot(&place.path()), &place.path(), true, &mut quiet);
    assert!(itself.is_err(), "{itself:?}");
    let mut steps = Vec::new();
    let mut watch = |step| {
        steps.push(step);
        ControlFlow::Continue(())
    };
    tools::backup(&snapshot(&place.path()), &target, true, &mut watch).expect("it is backed up");
    let broken_off = tools::backup(&snapshot(&place.path()), &target, true, &mut |_| ControlFlow::Break(()));
    assert!(matches!(broken_off, Err(ToolError::Interrupted)), "{broken_off:?}");
    assert!(steps.last().is_some_and(|last| last.done == last.total && last.total > 0), "{steps:?}");
    assert_eq!(fsck(&target).keys, 1);
    let left: Vec<_> = std::fs::read_dir(place.folder.path()).expect("it is there").flatten().collect();
    assert!(left.iter().all(|file| !file.file_name().to_string_lossy().starts_with('.')), "{left:?}");
}

/// Random histories with folds, restarts, backups and restores.
#[test]
fn a_restored_store_has_the_same_contents_in_new_epochs_and_all_keys() {
    for seed in 0..3 {
        let place = Place::new();
        let mut history = History::new(300 + seed, 8);
        let mut store = place.open();
        for round in 0..60 {
            match history.random.u32(..12) {
                0 => store.fold().expect("it folds"),
                1 => {
                    drop(store);
                    store = place.open();
                }
                2 => {
                    let copy = place.folder.path().join(format!("copy-{round}.db"));
                    backup(&place.path(), &copy);
                    // The restore removes commits after the backup.
                    store.commit(&[transaction(key(&format!("later-{round}")), vec![])]).expect("it commits");
                    drop(store);
                    let restored = restore(&copy, &place.path(), true).expect("it is restored");
                    assert!(restored.old_store.is_some_and(|kept| kept.exists()));
                    store = place.open();
                    let gone = store.load(&[], &[key(&format!("later-{round}"))]).expect("it loads").key_statuses;
                    assert_eq!(gone, [KeyStatus::New], "its effect has gone, so it may run again");
                    take_over_epochs(&mut history.model, &store);
                }
                _ => drop(store.commit(&history.batch()).expect("it commits")),
            }
            assert_eq!(fsck(&place.path()).problems, Vec::<String>::new(), "seed {seed}, round {round}");
            history.model.check(&store);
        }
        let found = fsck(&place.path());
        assert_eq!(found.items.values().sum::<u64>(), history.model.items());
        assert_eq!(found.inventories, history.model.inventories.len() as u64);
    }
}

/// Compares everything except epoch, revision and stamps with the model, and copies these into the model.
fn take_over_epochs(model: &mut Model, store: &EmbeddedStore) {
    let found = list_all(store, ListQuery { limit: 5, ..ListQuery::default() });
    assert_eq!(found.len(), model.inventories.len());
    for (found, expected) in found.iter().zip(model.inventories.values_mut()) {
        let stacks =
            |inventory: &Inventory| inventory.contents.stacks().map(|(s, x)| (s, x.clone())).collect::<Vec<_>>();
        assert_eq!((&found.id, &found.owner, &found.layout), (&expected.id, &expected.owner, &expected.layout));
        assert_eq!(stacks(found), stacks(expected));
        assert_eq!(found.contents.digest(), expected.contents.digest());
        assert_eq!(found.contents.revision(), Revision::CREATED);
        assert_ne!(found.epoch, expected.epoch);
        *expected = found.clone();
    }
}

#[test]
fn a_restore_refuses_an_open_store_an_existing_store_and_a_damaged_source() {
    let place = Place::new();
    let store = place.open();
    let state = inventory("chest", None, 7, 36, &[(Slot(0), stack(1, 5))]);
    store.commit(&[transaction(key("1"), vec![created(&state)])]).expect("it commits");
    store.fold().expect("it folds");
    let copy = place.folder.path().join("copy.db");
    backup(&place.path(), &copy);
    let refused = restore(&copy, &place.path(), true);
    assert!(matches!(refused, Err(ToolError::Open(OpenError::AlreadyOpen { .. }))), "{refused:?}");
    drop(store);
    let refused = restore(&copy, &place.path(), false);
    assert!(matches!(refused, Err(ToolError::StoreExists(_))), "{refused:?}");
    damage(&copy, "UPDATE inventories SET checksum = checksum + 1");
    let refused = restore(&copy, &place.path(), true);
    assert!(matches!(refused, Err(ToolError::Corrupt { .. })), "{refused:?}");
    let store = open(&place.path());
    assert_eq!(store.load(&[id("chest")], &[]).expect("it loads").inventories, [Some(state)], "it was left as it was");
}

#[test]
fn a_replaced_store_keeps_the_commits_that_are_only_in_its_log() {
    let place = Place::new();
    let store = place.open();
    let copy = place.folder.path().join("copy.db");
    backup(&place.path(), &copy);
    let state = inventory("late", None, 7, 36, &[]);
    store.commit(&[transaction(key("1"), vec![created(&state)])]).expect("it commits");
    // As after a crash: the log was not copied into the file.
    let crashed = Place::new();
    let path = store.with_writes_paused(|| copy_of(&place.path(), crashed.folder.path()));
    for _ in 0..2 {
        let kept = restore(&copy, &path, true).expect("it is restored").old_store.expect("it was there");
        assert_eq!(fsck(&path).inventories, 0);
        if kept.extension().is_some_and(|extension| extension == "replaced-77") {
            assert_eq!(fsck(&kept).inventories, 1);
        } else {
            assert!(kept.display().to_string().ends_with(".replaced-77-1"), "{kept:?}");
        }
    }
}

fn damage(path: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(path).expect("it opens");
    connection.execute_batch(sql).expect("it is damaged");
}

/// Overwrites the root page of the owner index with zeros.
fn wipe_index(path: &Path) {
    let connection = rusqlite::Connection::open(path).expect("it opens");
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'inventories_of_owner'";
    let page: usize = connection.query_row(root, [], |row| row.get::<_, i64>(0)).expect("it is there") as usize;
    drop(connection);
    let mut bytes = std::fs::read(path).expect("it is there");
    bytes[(page - 1) * 4096..page * 4096].fill(0);
    std::fs::write(path, bytes).expect("it is written");
}

/// A store of three commits, all folded, with their records in the journal.
fn folded() -> (Place, Arc<Inventory>) {
    let place = Place::new();
    let store = place.open();
    let chest = inventory("chest", Some("ann"), 7, 36, &[(Slot(0), stack(1, 5)), (Slot(1), stack(2, 6))]);
    let next = updated(&chest, vec![(Slot(0), stack(1, 4))]);
    let last = next.state.clone().expect("it is there");
    store.commit(&[transaction(key("1"), vec![created(&chest)])]).expect("it commits");
    store.commit(&[transaction(key("2"), vec![next])]).expect("it commits");
    store.commit(&[transaction(key("3"), vec![created(&inventory("other", None, 8, 9, &[]))])]).expect("it commits");
    store.close().expect("it closes");
    assert_eq!(fsck(&place.path()).problems, Vec::<String>::new());
    (place, last)
}

fn problems_after(plant: impl FnOnce(&Path, &Arc<Inventory>)) -> String {
    let (place, chest) = folded();
    plant(&place.path(), &chest);
    let found = fsck(&place.path()).problems;
    assert!(!found.is_empty(), "nothing was found");
    found.join("\n")
}

#[test]
fn case_48_fsck_finds_every_kind_of_planted_damage() {
    let by_sql = |sql: &'static str| problems_after(|path, _| damage(path, sql));
    let by_contents = |change: fn(&mut Vec<SlotState>)| {
        problems_after(|path, chest| {
            let mut slots = chest.contents.slots().to_vec();
            change(&mut slots);
            Planted::open(path).put_contents(&chest.id, &Contents::restored(chest.contents.revision(), slots));
        })
    };
    // The digest is behind the revision, which takes one byte.
    let by_digest = problems_after(|path, chest| {
        Planted::open(path).change_row(chest.id.as_str(), |row| row.contents[1] ^= 1);
    });
    let flipped_count = problems_after(|path, chest| {
        Planted::open(path).change_row(chest.id.as_str(), |row| {
            let mut slots = chest.contents.slots().to_vec();
            slots[1].stack = stack(2, 7);
            let digest = row.contents[1..9].to_vec();
            row.contents = format::encode_contents(&Contents::restored(chest.contents.revision(), slots));
            row.contents[1..9].copy_from_slice(&digest);
        });
    });
    for (found, expected) in [
        (by_sql("UPDATE inventories SET checksum = checksum + 1 WHERE id = 'chest'"), "its checksum does not match"),
        (by_sql("UPDATE inventories SET owner = 'eve' WHERE id = 'chest'"), "its checksum does not match"),
        (flipped_count, "its digest does not match its slots"),
        (by_digest, "its digest does not match its slots"),
        (by_contents(|slots| slots[9].changed_at = Revision(3)), "the stamps of slot 9 are not in order"),
        (by_contents(|slots| slots[9].identity_changed_at = Revision(0)), "the stamps of slot 9 are not in order"),
        (
            by_contents(|slots| slots[0].changed_at = Revision(1)),
            "the stamps of its slots differ from its last change in the log",
        ),
        (by_sql("DELETE FROM inventories WHERE id = 'chest'"), "the log has it, but it is missing"),
        (by_sql("DELETE FROM journal WHERE seq = 2"), "journal row 2 is missing"),
        (by_sql("DELETE FROM journal WHERE seq = 3"), "the journal ends before row 3, which was folded"),
        (
            by_sql("UPDATE journal SET batch = CAST(batch || x'00' AS BLOB) WHERE seq = 2"),
            "journal row 2: its checksum does not match",
        ),
        (by_sql("INSERT INTO journal SELECT 4, batch FROM journal WHERE seq = 3"), "was applied twice"),
        (problems_after(|path, _| wipe_index(path)), "SQLite: "),
    ] {
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

/// A wrong row with a matching checksum and digest.
#[test]
fn fsck_finds_a_wrong_but_consistent_row_by_comparing_it_with_the_log() {
    let found = problems_after(|path, chest| {
        let mut forged = (**chest).clone();
        let mut slots = forged.contents.slots().to_vec();
        slots[1].stack = stack(2, 60);
        forged.contents = Contents::restored(forged.contents.revision(), slots);
        Planted::open(path).put_contents(&forged.id, &forged.contents);
    });
    assert!(found.contains("its digest differs from the one in the log"), "{found}");
}

#[test]
fn the_number_of_listed_problems_is_bounded() {
    let place = Place::new();
    let store = place.open();
    let all = (1..=150).map(|n| created(&inventory(&format!("inv-{n}"), None, n, 9, &[]))).collect();
    store.commit(&[transaction(key("1"), all)]).expect("it commits");
    store.close().expect("it closes");
    damage(&place.path(), "UPDATE inventories SET checksum = 1");
    let found = fsck(&place.path());
    assert_eq!((found.problems.len(), found.problems_omitted), (tools::PROBLEMS_MAX, 50));
}

#[test]
fn an_import_adds_inventories_and_later_commits_build_on_them() {
    let place = Place::new();
    let mut model = Model::default();
    let store = place.open();
    let gone = inventory("gone", None, 1, 9, &[(Slot(0), stack(1, 1))]);
    let stays = inventory("stays", Some("ann"), 2, 9, &[(Slot(0), stack(1, 2))]);
    model.commit(&store, &[transaction(key("1"), vec![created(&gone), created(&stays)])]);
    // The deletion is only in the journal: it must not hide the imported inventory of the same name.
    model.commit(&store, &[transaction(key("2"), vec![deleted(&gone)])]);
    let refused = ExclusiveStore::open(&place.path());
    assert!(matches!(refused, Err(ToolError::Open(OpenError::AlreadyOpen { .. }))), "{refused:?}");
    drop(store);

    let claim = ExclusiveStore::open(&place.path()).expect("nobody has it open");
    let mut staging = Staging::new(&place.path()).expect("there is room");
    let imported = [inventory("gone", Some("bob"), 5, 9, &[(Slot(3), stack(1, 7))]), inventory("new", None, 6, 9, &[])];
    for (line, state) in (2..).zip(&imported) {
        assert_eq!(staging.put(state, line).expect("it is staged"), None);
        assert_eq!(staging.put(state, 9).expect("it is staged"), Some(line), "it stands twice");
    }
    assert_eq!(
        staging.commit(claim, &default_catalog(), place.clock.unix_time(), &mut quiet).expect("it is imported"),
        2
    );
    for state in imported {
        model.inventories.insert(state.id.clone(), state.clone());
        model.ids.insert(state.id.clone(), ());
    }
    assert_eq!(fsck(&place.path()).problems, Vec::<String>::new());
    let store = place.open();
    model.check(&store);
    let next = updated(model.inventories.get(&id("gone")).expect("it is there"), vec![(Slot(4), stack(2, 2))]);
    model.commit(&store, &[transaction(key("3"), vec![next])]);
    assert_eq!(fsck(&place.path()).problems, Vec::<String>::new());
    store.close().expect("it closes");
    assert_eq!(fsck(&place.path()).problems, Vec::<String>::new());
    model.check(&place.open());
}

/// While a backup reads, commits continue and the log grows; afterwards the log is emptied.
#[test]
fn a_long_running_reader_does_not_block_commits() {
    let place = Place::new();
    let settings = EmbeddedSettings { wal_checkpoint_bytes: 64 << 10, ..EmbeddedSettings::default() };
    let store = place.open_with(settings);
    let state = inventory("chest", None, 1, 36, &[]);
    store.commit(&[transaction(key("first"), vec![created(&state)])]).expect("it commits");
    let reader = snapshot(&place.path());
    let mut state = state;
    for number in 0..300_u32 {
        let next = updated(&state, vec![(Slot(1), stack_with(2, number + 1, &[number as u8; 1024]))]);
        state = next.state.clone().expect("it is there");
        store.commit(&[transaction(key(&number.to_string()), vec![next])]).expect("it commits");
    }
    assert!(store.statistics().wal_bytes > 1 << 20, "the log has grown");
    assert_eq!(tools::check(&reader, &mut quiet).keys, 1, "it sees its moment");
    drop(reader);
    let before = store.statistics().wal_bytes;
    for number in 300..600_u32 {
        let next = updated(&state, vec![(Slot(1), stack_with(2, number + 1, &[number as u8; 1024]))]);
        state = next.state.clone().expect("it is there");
        assert!(matches!(next.transition(), Transition::Updated { .. }));
        store.commit(&[transaction(key(&number.to_string()), vec![next])]).expect("it commits");
        store.fold().expect("it folds");
    }
    assert_ne!(state.contents.digest(), Digest::EMPTY);
    let after = store.statistics().wal_bytes;
    assert!(after < before / 2, "the log started over and gave its room back: {before} and {after} bytes");
}
