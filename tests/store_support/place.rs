//! A store on disk, with a clock that a test drives.

use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore, OpenError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A clock that stands still until it is moved.
#[derive(Clone, Default)]
pub struct DrivenClock(Arc<AtomicU64>);

impl DrivenClock {
    pub fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_micros() as u64, Ordering::SeqCst);
    }

    /// Nothing is folded or trimmed by itself while this clock stands.
    pub fn settings(&self) -> EmbeddedSettings {
        let now = self.0.clone();
        let clock = Arc::new(move || Duration::from_micros(now.load(Ordering::SeqCst)));
        EmbeddedSettings { clock, ..EmbeddedSettings::default() }
    }
}

pub struct Place {
    pub folder: tempfile::TempDir,
    pub clock: DrivenClock,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), clock: DrivenClock::default() }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("slotcast.db")
    }

    pub fn open(&self) -> EmbeddedStore {
        self.open_with(self.clock.settings())
    }

    pub fn open_with(&self, settings: EmbeddedSettings) -> EmbeddedStore {
        EmbeddedStore::open(&self.path(), settings).expect("it opens")
    }

    pub fn refusal(&self) -> OpenError {
        EmbeddedStore::open(&self.path(), self.clock.settings()).expect_err("it is to be refused")
    }
}

/// The files as they are at this moment: what a crash of the machine would leave at most, of the process at least.
pub fn copy_of(path: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join("slotcast.db");
    for suffix in ["-wal", ""] {
        let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        if of(path).exists() {
            std::fs::copy(of(path), of(&copy)).expect("it is copied");
        }
    }
    copy
}
