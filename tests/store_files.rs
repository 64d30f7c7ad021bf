//! Read-only commands change no file, and interrupted commands and first starts leave a complete store.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod store_support;

use slotcast::store::Store;
use slotcast::store::embedded::OpenError;
use slotcast::store::embedded::tools::import::ExclusiveStore;
use std::path::{Path, PathBuf};
use std::process::Command;
use store_support::*;

/// What is wrong, what is message of it, and how it comes about.
type Damage<'a> = (&'static str, &'static str, &'a dyn Fn(&Path));

#[test]
fn read_only_commands_do_not_change_a_store_whose_database_is_empty_missing_truncated_or_foreign() {
    let cut =
        |path: &Path, bytes: u64| std::fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    let bytes_at = |path: &Path, at: usize, bytes: &[u8]| {
        let mut all = std::fs::read(path).unwrap();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(path, all).unwrap();
    };
    let damages: [Damage; 7] = [
        ("empty", "it is empty, but its write-ahead log", &|path| cut(path, 0)),
        ("missing", "it is missing, but its write-ahead log", &|path| std::fs::remove_file(path).unwrap()),
        ("cut", "", &|path| cut(path, 5_000)),
        ("no database", "not a Slotcast store", &|path| {
            std::fs::write(path, "these are some notes of mine".repeat(200)).unwrap();
            std::fs::remove_file(beside(path, "-wal")).unwrap();
        }),
        ("another application", "not a Slotcast store", &|path| {
            bytes_at(path, 68, b"else");
            std::fs::remove_file(beside(path, "-wal")).unwrap();
        }),
        ("newer", "has format", &|path| {
            bytes_at(path, 60, &[0, 0, 0, 99]);
            std::fs::remove_file(beside(path, "-wal")).unwrap();
        }),
        ("damaged log", "acknowledged commits after it", &|path| {
            bytes_at(&beside(path, "-wal"), 5, &[7]);
        }),
    ];
    for (name, expected, damage) in damages {
        let place = crashed();
        damage(&place.path());
        let before = files(place.folder.path());
        let commands = READING.into_iter().chain([("import", &["--dry-run", "/dev/null"][..]), ("serve", &[])]);
        for (command, arguments) in commands {
            let message = refused(command, place.folder.path(), arguments);
            assert!(message.contains(expected) || command == "import", "{name}, {command}: {message}");
            assert!(files(place.folder.path()) == before, "{name}: {command} changed a file");
        }
    }
    assert!(!Path::new("copy-that-is-not-made.db").exists());
}

#[test]
fn read_only_commands_read_all_of_a_crashed_store_and_do_not_change_it() {
    let place = crashed();
    let before = files(place.folder.path());
    // A stale index of another log.
    std::fs::write(beside(&place.path(), "-shm"), [0x5A; 32_768]).unwrap();
    for _ in 0..2 {
        let exported = run("export", place.folder.path(), &["-"]);
        let lines = String::from_utf8(exported.stdout).unwrap();
        assert!(exported.status.success() && lines.contains("folded") && lines.contains("late"), "{lines}");
        assert!(run("fsck", place.folder.path(), &[]).status.success());
        assert!(files(place.folder.path()) == before);
        std::fs::remove_file(beside(&place.path(), "-shm")).unwrap();
    }
    let link = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(place.path(), link.path().join("slotcast.db")).unwrap();
    assert!(run("fsck", link.path(), &[]).status.success(), "the log is beside the file, not beside the link");
    assert!(files(place.folder.path()) == before);
    assert_eq!(ids(&place.path()), ["folded", "late"]);
}

#[test]
fn read_only_commands_report_an_interrupted_write_and_the_service_rolls_it_back() {
    let place = Place::new();
    place.open().close().unwrap();
    let connection = rusqlite::Connection::open(place.path()).unwrap();
    connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    connection.execute_batch("BEGIN; PRAGMA cache_size = 1; INSERT INTO meta VALUES ('x', 1)").unwrap();
    connection
        .execute_batch(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
        INSERT INTO meta SELECT 'x' || i, i FROM n",
        )
        .unwrap();
    let crashed = Place::new();
    for suffix in ["", "-journal"] {
        std::fs::copy(beside(&place.path(), suffix), beside(&crashed.path(), suffix)).unwrap();
    }
    check_interrupted_write(&crashed);
    drop(crashed.open());
    assert!(run("fsck", crashed.folder.path(), &[]).status.success());

    // SQLite writes the pages in order: the header may have the new size before the file does.
    let crashed = Place::new();
    for suffix in ["", "-journal"] {
        std::fs::copy(beside(&place.path(), suffix), beside(&crashed.path(), suffix)).unwrap();
    }
    let mut database = std::fs::read(crashed.path()).unwrap();
    let pages = database.len() as u32 / 4_096 + 100;
    database[28..32].copy_from_slice(&pages.to_be_bytes());
    std::fs::write(crashed.path(), database).unwrap();
    check_interrupted_write(&crashed);
    drop(ExclusiveStore::open(&crashed.path()).expect("an import rolls it back, too"));
    assert!(run("fsck", crashed.folder.path(), &[]).status.success());
}

fn check_interrupted_write(crashed: &Place) {
    let before = files(crashed.folder.path());
    assert!(before["slotcast.db-journal"].iter().any(|byte| *byte != 0));
    for (command, arguments) in READING {
        let message = refused(command, crashed.folder.path(), arguments);
        assert!(message.contains("slotcast.db-journal") && message.contains("start the server once"), "{message}");
        assert!(files(crashed.folder.path()) == before, "{command} changed a file");
    }
}

/// A file system of its own that cannot be written to; none where that is not allowed.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn mount(folder: &Path) -> Option<Self> {
        let run = |arguments: &[&str]| Command::new("mount").args(arguments).arg(folder).output();
        let path = folder.to_str().unwrap();
        let bound = run(&["--bind", path]).is_ok_and(|output| output.status.success());
        let mounted = bound.then(|| Self(folder.to_owned()))?;
        run(&["-o", "remount,bind,ro"]).is_ok_and(|output| output.status.success()).then_some(mounted)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_store_in_a_read_only_directory_is_readable_if_it_has_no_log() {
    let (closed, crashed) = (Place::new(), crashed());
    let store = closed.open();
    store.commit(&[transaction(key("1"), vec![created(&chest("here", 1))])]).unwrap();
    store.close().unwrap();
    let (Some(_closed), Some(_crashed)) =
        (ReadOnly::mount(closed.folder.path()), ReadOnly::mount(crashed.folder.path()))
    else {
        println!("skipped: nothing can be mounted here");
        return;
    };
    let exported = run("export", closed.folder.path(), &["-"]);
    assert!(String::from_utf8(exported.stdout).unwrap().contains("here"));
    assert!(run("fsck", closed.folder.path(), &[]).status.success());
    let message = refused("fsck", crashed.folder.path(), &[]);
    assert!(message.contains("copy both files to another directory"), "{message}");
}

#[test]
fn commands_do_not_overwrite_files_of_a_store() {
    let (place, other) = (Place::new(), Place::new());
    let _open = (place.open(), other.open());
    std::fs::hard_link(place.path(), place.folder.path().join("link.db")).unwrap();
    for name in ["slotcast.db", "slotcast.db-wal", "slotcast.db-shm", "slotcast.db-lock", "link.db"] {
        let target = place.folder.path().join(name);
        for command in ["backup", "export"] {
            let message = refused(command, place.folder.path(), &[target.to_str().unwrap(), "--force"]);
            assert!(message.contains("it belongs to the store itself"), "{name}: {message}");
        }
    }
    for command in ["backup", "export"] {
        let message = refused(command, place.folder.path(), &[other.path().to_str().unwrap(), "--force"]);
        assert!(message.contains("has it open"), "{message}");
    }
}

// First start.

#[test]
fn an_interrupted_first_start_is_repeated() {
    let whole = Place::new();
    drop(whole.open());
    let empty = {
        let path = whole.folder.path().join("empty.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
        drop(connection);
        std::fs::read(path).unwrap()
    };
    assert_eq!(empty.len(), 4096);
    let mut images: Vec<Vec<u8>> = vec![vec![], vec![0; 4096], vec![0; 6 * 4096], empty.clone()];
    // The first page, written up to somewhere, or from somewhere on.
    for at in [1, 16, 20, 24, 28, 44, 68, 100, 104, 512] {
        images.push([&empty[..at], &vec![0; 4096 - at]].concat());
        images.push([&vec![0; at], &empty[at..]].concat());
    }
    for (number, image) in images.iter().enumerate() {
        for journal in [None, Some(vec![]), Some(vec![0; 512]), Some(hot_journal_of_an_empty_file())] {
            let place = Place::new();
            std::fs::write(place.path(), image).unwrap();
            if let Some(journal) = &journal {
                std::fs::write(beside(&place.path(), "-journal"), journal).unwrap();
            }
            let store = place.open();
            store.commit(&[transaction(key("1"), vec![created(&chest("first", 1))])]).unwrap();
            drop(store);
            assert_eq!(ids(&place.path()), ["first"], "image {number}");
        }
    }
}

fn hot_journal_of_an_empty_file() -> Vec<u8> {
    let mut journal = vec![0; 512];
    journal[..8].copy_from_slice(&[0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7]);
    (journal[22], journal[26]) = (2, 16);
    journal
}

#[test]
fn a_database_that_may_have_been_used_is_never_created_again() {
    let place = Place::new();
    let store = place.open();
    store.commit(&[transaction(key("1"), vec![created(&chest("here", 1))])]).unwrap();
    store.close().unwrap();
    let whole = std::fs::read(place.path()).unwrap();
    let zeros = |range: std::ops::Range<usize>| {
        let mut image = whole.clone();
        image[range].fill(0);
        image
    };
    let images = [
        zeros(0..100),
        zeros(0..4096),
        zeros(0..whole.len() - 4_096),
        whole[..20].to_vec(),
        whole[..99].to_vec(),
        whole[..4096].to_vec(),
        vec![0; 65_536 + 4096],
    ];
    for (number, image) in images.iter().enumerate() {
        std::fs::write(place.path(), image).unwrap();
        let refusal = place.refusal();
        assert!(!refusal.to_string().is_empty());
        assert!(std::fs::read(place.path()).unwrap() == *image, "image {number} was changed");
    }
    // Its journal could give the pages back.
    std::fs::write(place.path(), vec![0; 4096]).unwrap();
    let mut journal = hot_journal_of_an_empty_file();
    journal[19] = 6;
    std::fs::write(beside(&place.path(), "-journal"), journal).unwrap();
    place.refusal();
    // The log alone is most of a store.
    let crashed = crashed();
    std::fs::write(crashed.path(), vec![0; 4096]).unwrap();
    crashed.refusal();
}

#[test]
fn a_refused_import_creates_no_store() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.jsonl"), "not json").unwrap();
    let data = folder.path().join("data");
    refused("import", &data, &[folder.path().join("bad.jsonl").to_str().unwrap()]);
    assert_eq!(files(&data).len(), 0);
    // One that a first start left empty is none either.
    std::fs::write(data.join("slotcast.db"), "").unwrap();
    std::fs::write(folder.path().join("none.jsonl"), r#"{"slotcast_export":1,"catalog":"","exported_unix_ms":0}"#)
        .unwrap();
    let imported = run("import", &data, &[folder.path().join("none.jsonl").to_str().unwrap()]);
    assert!(imported.status.success(), "{imported:?}");
    assert!(run("fsck", &data, &[]).status.success());
}

// Restores that stop half-way.

/// Every state in which a restore can be interrupted: the new store is complete, and more and more files of the old one
/// are renamed.
fn interrupted_restores() -> Vec<Place> {
    let renames = ["", "-wal"];
    let states = (0..=renames.len()).map(|renamed| {
        let (place, new) = (crashed(), Place::new());
        let store = new.open();
        store.commit(&[transaction(key("3"), vec![created(&chest("restored", 3))])]).unwrap();
        store.close().unwrap();
        std::fs::copy(new.path(), beside(&place.path(), "-next-replaced-77")).unwrap();
        std::fs::write(beside(&place.path(), "-shm"), [7; 32_768]).unwrap();
        for suffix in &renames[..renamed] {
            std::fs::rename(beside(&place.path(), suffix), beside(&place.path(), &format!(".replaced-77{suffix}")))
                .unwrap();
        }
        place
    });
    states.collect()
}

#[test]
fn an_interrupted_restore_is_completed_on_open_and_the_old_store_is_kept() {
    for (number, place) in interrupted_restores().into_iter().enumerate() {
        assert_eq!(ids(&place.path()), ["restored"], "state {number}");
        assert_eq!(ids(&beside(&place.path(), ".replaced-77")), ["folded", "late"], "state {number}");
    }
    for (number, place) in interrupted_restores().into_iter().enumerate() {
        let before = files(place.folder.path());
        for (command, arguments) in READING {
            let message = refused(command, place.folder.path(), arguments);
            assert!(message.contains("a restore of") && message.contains("was interrupted"), "{message}");
            assert!(files(place.folder.path()) == before, "{command} changed a file");
        }
        let backup = crashed();
        let source = backup.path();
        let again = run("restore", place.folder.path(), &[source.to_str().unwrap(), "--force"]);
        assert!(again.status.success(), "state {number}: {again:?}");
        assert_eq!(ids(&place.path()), ["folded", "late"], "the second restore");
        assert_eq!(ids(&beside(&place.path(), ".replaced-77")), ["folded", "late"], "the store from before the first");
    }
}

#[test]
fn a_restore_interrupted_before_its_copy_is_complete_changes_nothing() {
    let place = crashed();
    std::fs::write(place.folder.path().join(".slotcast-restore-abc"), "half of a copy").unwrap();
    assert_eq!(ids(&place.path()), ["folded", "late"]);
}

#[test]
fn an_open_error_says_what_to_do() {
    let place = crashed();
    std::fs::remove_file(place.path()).unwrap();
    let refusal = place.refusal();
    assert!(matches!(refusal, OpenError::Truncated { .. }), "{refusal:?}");
    assert!(refusal.to_string().contains("restore it from a backup"), "{refusal}");
}
