//! Commands that work on a store's files, and stores as a crash leaves them.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use super::*;
use slotcast::store::embedded::EmbeddedStore;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub fn run(command: &str, data: &Path, arguments: &[&str]) -> Output {
    // A service that starts by mistake would otherwise run forever.
    let mut slotcast = Command::new("timeout");
    slotcast.args(["120", env!("CARGO_BIN_EXE_slotcast"), command, "--data"]).arg(data).args(arguments);
    if command == "serve" {
        slotcast.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    }
    slotcast.stdin(Stdio::null()).output().unwrap()
}

pub fn refused(command: &str, data: &Path, arguments: &[&str]) -> String {
    let output = run(command, data, arguments);
    let message = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{command} {arguments:?}: {message}");
    message
}

/// Returns the names and contents of all files of a folder, except the lock, the index of the write-ahead log, and an
/// empty write-ahead log.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named =
        entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()));
    let is_of_sqlite = |name: &str, bytes: &[u8]| name.ends_with("-shm") || name.ends_with("-wal") && bytes.is_empty();
    named.filter(|(name, bytes)| !name.ends_with("-lock") && !is_of_sqlite(name, bytes)).collect()
}

pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// Creates a folder with a store as a crash leaves it: one chest is in the database file, another one only in the
/// write-ahead log.
pub fn crashed() -> Place {
    let running = Place::new();
    let store = running.open();
    store.commit(&[transaction(key("1"), vec![created(&chest("folded", 1))])]).unwrap();
    store.close().unwrap();
    let store = running.open();
    store.commit(&[transaction(key("2"), vec![created(&chest("late", 2))])]).unwrap();
    let place = Place::new();
    store.with_writes_paused(|| copy_of(&running.path(), place.folder.path()));
    place
}

pub fn chest(name: &str, number: u32) -> std::sync::Arc<slotcast::domain::Inventory> {
    inventory(name, None, number, 9, &[(Slot(0), stack(1, number))])
}

pub fn ids(path: &Path) -> Vec<String> {
    let store = EmbeddedStore::open(path, DrivenClock::default().settings()).unwrap();
    let all = list_all(&store, ListQuery { limit: 9, ..ListQuery::default() });
    all.iter().map(|found| found.id.as_str().to_owned()).collect()
}

/// Commands that only read the store.
pub const READING: [(&str, &[&str]); 8] = [
    ("fsck", &[]),
    ("fsck", &["--json"]),
    ("export", &["-"]),
    ("backup", &["copy-that-is-not-made.db"]),
    ("backup", &["--without-history", "copy-that-is-not-made.db"]),
    ("history", &["chest"]),
    ("at", &["chest", "1"]),
    ("supply", &[]),
];
