//! A store on disk with a clock that tests control.

use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore, OpenError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Start of the wall clock of a test, in milliseconds since the unix epoch.
pub const WALL_CLOCK_START_MS: u64 = 1_800_000_000_000;

/// A clock that advances only when a test moves it, and a wall clock that follows it with an offset.
#[derive(Clone, Default)]
pub struct DrivenClock {
    us: Arc<AtomicU64>,
    /// Offset of the wall clock, in milliseconds.
    wall_step_ms: Arc<AtomicI64>,
}

impl DrivenClock {
    pub fn pass(&self, time: Duration) {
        self.us.fetch_add(time.as_micros() as u64, Ordering::SeqCst);
    }

    /// Sets the offset of the wall clock.
    pub fn step_wall_clock(&self, off_ms: i64) {
        self.wall_step_ms.store(off_ms, Ordering::SeqCst);
    }

    /// Returns the correct wall-clock time, in milliseconds since the unix epoch.
    pub fn right_unix_ms(&self) -> u64 {
        WALL_CLOCK_START_MS + self.us.load(Ordering::SeqCst) / 1_000
    }

    /// Returns the correct time since the unix epoch.
    pub fn unix_time(&self) -> Duration {
        Duration::from_millis(self.right_unix_ms())
    }

    /// Returns settings with this clock. The store neither folds nor trims on its own while the clock does not advance.
    pub fn settings(&self) -> EmbeddedSettings {
        let (us, this) = (self.us.clone(), self.clone());
        let clock = Arc::new(move || Duration::from_micros(us.load(Ordering::SeqCst)));
        let wall_clock = Arc::new(move || {
            let off_ms = this.wall_step_ms.load(Ordering::SeqCst);
            Duration::from_millis(this.right_unix_ms().saturating_add_signed(off_ms))
        });
        EmbeddedSettings { clock, wall_clock, ..EmbeddedSettings::default() }
    }
}

/// Returns settings with which folds, checkpoints and waits for room happen all the time.
pub fn frequent_folds() -> EmbeddedSettings {
    EmbeddedSettings {
        round_records: 20,
        round_inventories: 10,
        slice: Duration::ZERO,
        unfolded_records_max: 200,
        unfolded_inventories_max: 100,
        wal_checkpoint_bytes: 64 << 10,
        ..EmbeddedSettings::default()
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

/// Copies the current files. A machine crash leaves at most this content, a process crash at least this content.
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
