//! A store on disk, with a clock that a test drives.

use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore, OpenError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Where the wall clock of a test begins, in milliseconds since 1970.
pub const WALL_CLOCK_START_MS: u64 = 1_800_000_000_000;

/// A clock that stands still until it is moved, and a wall clock that goes with it.
#[derive(Clone, Default)]
pub struct DrivenClock {
    us: Arc<AtomicU64>,
    /// How far the wall clock is off.
    wall_step_ms: Arc<AtomicI64>,
}

impl DrivenClock {
    pub fn pass(&self, time: Duration) {
        self.us.fetch_add(time.as_micros() as u64, Ordering::SeqCst);
    }

    /// The wall clock is off by this much from now on.
    pub fn step_wall_clock(&self, off_ms: i64) {
        self.wall_step_ms.store(off_ms, Ordering::SeqCst);
    }

    /// What a wall clock shows that is right, in milliseconds since 1970.
    pub fn right_unix_ms(&self) -> u64 {
        WALL_CLOCK_START_MS + self.us.load(Ordering::SeqCst) / 1_000
    }

    /// Nothing is folded or trimmed by itself while this clock stands.
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
