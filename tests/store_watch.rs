//! A service whose files are removed, renamed, overwritten or damaged while it runs or before it starts.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;
mod store_support;

use process::ServerProcess;
use slotcast::client::{Client, new_mutation_context};
use slotcast::store::embedded::EmbeddedStore;
use slotcast::store::{CommitError, Store};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::path::Path;
use std::time::{Duration, Instant};
use store_support::*;

async fn add_chest(client: &Client, id: &str) -> Result<v1::MutationReceipt, tonic::Status> {
    let create = v1::CreateInventory { inventory_id: id.into(), layout: "chest".into(), ..Default::default() };
    client.mutate(new_mutation_context(), Operation::Create(create)).await
}

/// Waits for the end of a server that has to end by itself within seconds.
fn wait_for_end(server: &mut ServerProcess) -> std::process::ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = server.exit_status() {
            return status;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A name, and a function that harms the data folder.
type Harm = (&'static str, fn(&Path));

const HARMS: [Harm; 8] = [
    ("the folder is removed", |data| std::fs::remove_dir_all(data).unwrap()),
    ("the folder is renamed", |data| std::fs::rename(data, data.with_extension("moved")).unwrap()),
    ("the lock is removed", |data| std::fs::remove_file(data.join("slotcast.db-lock")).unwrap()),
    ("the log is removed", |data| std::fs::remove_file(data.join("slotcast.db-wal")).unwrap()),
    ("the log's index is removed", |data| std::fs::remove_file(data.join("slotcast.db-shm")).unwrap()),
    ("the database is renamed", |data| std::fs::rename(data.join("slotcast.db"), data.join("old.db")).unwrap()),
    ("another file is moved over the database", |data| {
        std::fs::copy(data.join("slotcast.db"), data.join("new.db")).unwrap();
        std::fs::rename(data.join("new.db"), data.join("slotcast.db")).unwrap();
    }),
    ("a backup is copied over the database", |data| {
        let backup = data.with_extension("backup");
        assert!(run("backup", data, &[backup.to_str().unwrap()]).status.success());
        std::fs::copy(backup, data.join("slotcast.db")).unwrap();
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_exits_when_its_files_are_removed_renamed_or_overwritten() {
    for (harm, harmed) in HARMS {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut server = ServerProcess::start(&data, &[]);
        add_chest(&Client::new(&server.uri, "test").unwrap(), "a").await.unwrap();
        harmed(&data);
        let status = tokio::task::block_in_place(|| wait_for_end(&mut server));
        assert_eq!(status.code(), Some(1), "{harm}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_mutation_is_acknowledged_after_the_files_are_lost() {
    for (harm, harmed) in HARMS {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut server = ServerProcess::start(&data, &[]);
        let client = Client::new(&server.uri, "test").unwrap();
        add_chest(&client, "a").await.unwrap();
        harmed(&data);
        let refused = add_chest(&client, "b").await;
        assert!(refused.is_err(), "{harm}: {refused:?}");
        let status = tokio::task::block_in_place(|| wait_for_end(&mut server));
        assert_eq!(status.code(), Some(1), "{harm}");
    }
}

/// A truncated log looks like one that was just emptied, until more is written to it.
#[test]
fn a_truncated_log_is_detected_at_the_next_commit_and_not_copied_into_the_database() {
    for commits in [true, false] {
        let place = Place::new();
        let store = place.open();
        for number in 0..9 {
            store.commit(&[transaction(key(&number.to_string()), vec![])]).unwrap();
        }
        let log = std::fs::File::options().write(true).open(beside(&place.path(), "-wal")).unwrap();
        log.set_len(0).unwrap();
        if commits {
            let refused = store.commit(&[transaction(key("10"), vec![])]);
            assert!(matches!(refused, Err(CommitError::Unknown(_))), "{refused:?}");
            assert!(store.stopped().borrow().is_some());
        }
        let database = std::fs::read(place.path()).unwrap();
        store.flush().unwrap_err();
        drop(store);
        assert_eq!(std::fs::read(place.path()).unwrap(), database, "after a commit: {commits}");
    }
}

/// The table that a store of an earlier version lacks is first in the log, and later in the database.
#[test]
fn a_store_of_an_earlier_version_continues_after_a_checkpoint_and_closes_without_a_log() {
    for crashes in [false, true] {
        let place = Place::new();
        place.open().close().unwrap();
        let earlier = rusqlite::Connection::open(place.path()).unwrap();
        earlier.execute_batch("DROP TABLE items; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        drop(earlier);
        let mut store = place.open();
        store.commit(&[transaction(key("1"), vec![])]).unwrap();
        let copied = tempfile::tempdir().unwrap();
        if crashes {
            let path = store.with_writes_paused(|| copy_of(&place.path(), copied.path()));
            store = EmbeddedStore::open(&path, place.clock.settings()).unwrap();
        }
        store.flush().unwrap();
        store.commit(&[transaction(key("2"), vec![])]).expect("the database is the same");
        assert_eq!(*store.stopped().borrow(), None);
        store.close().unwrap();
        let folder = if crashes { copied.path() } else { place.folder.path() };
        assert!(!folder.join("slotcast.db-wal").exists());
    }
}

#[test]
fn a_second_service_does_not_open_a_store_in_use_even_if_a_file_was_removed() {
    for removed in ["slotcast.db-lock", "slotcast.db-wal", "slotcast.db-shm"] {
        let place = Place::new();
        let store = place.open();
        store.commit(&[transaction(key("1"), vec![])]).unwrap();
        std::fs::remove_file(place.folder.path().join(removed)).unwrap();
        for (command, arguments) in [("serve", &[][..]), ("restore", &["/dev/null", "--force"])] {
            let message = refused(command, place.folder.path(), arguments);
            assert!(message.contains("already open in another process"), "{removed}: {message}");
        }
    }
    let place = Place::new();
    let _store = place.open();
    std::fs::rename(place.path(), place.folder.path().join("elsewhere.db")).unwrap();
    assert!(refused("serve", place.folder.path(), &[]).contains("already open in another process"));
}

/// The files at the store's path no longer belong to it, so closing the store must not remove the log there.
#[test]
fn closing_a_store_whose_files_were_replaced_does_not_change_the_new_files() {
    for commits in [true, false] {
        let (place, new) = (Place::new(), crashed());
        let store = place.open();
        store.commit(&[transaction(key("1"), vec![])]).unwrap();
        for suffix in ["", "-wal"] {
            std::fs::rename(beside(&new.path(), suffix), beside(&place.path(), suffix)).unwrap();
        }
        if commits {
            let refused = store.commit(&[transaction(key("2"), vec![])]);
            assert!(matches!(refused, Err(CommitError::Unknown(_) | CommitError::NotCommitted(_))), "{refused:?}");
        }
        drop(store);
        std::fs::remove_file(beside(&place.path(), "-shm")).unwrap();
        assert_eq!(ids(&place.path()), ["folded", "late"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_refused_by_every_command_until_its_loss_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = ServerProcess::start(&data, &[]);
    let client = Client::new(&server.uri, "test").unwrap();
    for number in 0..9 {
        add_chest(&client, &format!("chest-{number}")).await.unwrap();
    }
    let before = get(&client, "chest-0").await;
    server.kill();
    let log = data.join("slotcast.db-wal");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[32 + 4 * 4120 + 2_000] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    for (command, arguments) in [("serve", &[][..])].into_iter().chain(READING) {
        let message = refused(command, &data, arguments);
        assert!(message.contains("--accept-loss") && message.contains("damaged at frame 5"), "{command}: {message}");
    }
    let rest = run("export", &data, &["--skip-damaged"]);
    let lines = String::from_utf8(rest.stdout).unwrap();
    assert!(rest.status.success() && lines.contains("chest-0") && !lines.contains("chest-8"), "{lines}");
    assert!(String::from_utf8_lossy(&rest.stderr).contains("skipped commits"));

    let server = ServerProcess::start(&data, &["--accept-loss"]);
    let client = Client::new(&server.uri, "test").unwrap();
    let after = get(&client, "chest-0").await;
    assert_ne!(before.version.unwrap().epoch, after.version.unwrap().epoch);
    add_chest(&client, "chest-8").await.expect("it is not there any more");
    drop(server);
    assert!(run("fsck", &data, &[]).status.success());
    let kept = files(&data).into_keys().filter(|name| name.starts_with("slotcast.db.damaged-")).count();
    assert_eq!(kept, 2, "the database and its log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsck_and_backup_report_a_damaged_log_while_the_service_runs_and_accept_an_intact_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = ServerProcess::start(&data, &[]);
    let client = Client::new(&server.uri, "test").unwrap();
    for number in 0..9 {
        add_chest(&client, &format!("chest-{number}")).await.unwrap();
    }
    let backup = folder.path().join("backup.db");
    assert!(run("fsck", &data, &[]).status.success());
    assert!(run("backup", &data, &[backup.to_str().unwrap()]).status.success());
    // A bit of the salts: the service reads on, and nobody else would after a crash.
    let log = std::fs::File::options().read(true).write(true).open(data.join("slotcast.db-wal")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&log, &[0xAA, 0x55], 32 + 3 * 4120 + 8).unwrap();
    assert!(refused("fsck", &data, &[]).contains("damaged at frame 4"));
    assert!(refused("backup", &data, &[backup.to_str().unwrap(), "--force"]).contains("damaged at frame 4"));
    add_chest(&client, "chest-9").await.unwrap();
}

async fn get(client: &Client, id: &str) -> v1::Inventory {
    let request = v1::GetInventoryRequest { inventory_id: id.into() };
    client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap()
}
