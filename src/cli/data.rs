//! What the commands on a store's file have in common.

use crate::catalog_file;
use crate::domain::Catalog;
use crate::store::embedded::tools::Step;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};

/// The store's file in its folder.
pub const STORE_FILE: &str = "slotcast.db";

#[derive(Debug, Args)]
pub struct DataFolder {
    /// The folder of the store, or its file.
    #[arg(long, value_name = "FOLDER", default_value = "slotcast-data", env = "SLOTCAST_DATA")]
    data: PathBuf,
}

impl DataFolder {
    pub fn store(&self) -> PathBuf {
        store_in(&self.data)
    }

    /// Makes the folder if it is not there.
    pub fn make(&self) -> Result<PathBuf, Box<dyn Error>> {
        if !self.data.is_file() {
            std::fs::create_dir_all(&self.data)
                .map_err(|error| format!("the folder {} cannot be made: {error}", self.data.display()))?;
        }
        Ok(self.store())
    }
}

/// The store's file, given it or its folder.
pub fn store_in(path: &Path) -> PathBuf {
    if path.is_file() { path.to_owned() } else { path.join(STORE_FILE) }
}

/// By which items are named.
#[derive(Debug, Args)]
pub struct CatalogFile {
    /// The catalog of items, recipes and layouts, as TOML; without, the built-in one.
    #[arg(long, env = "SLOTCAST_CATALOG")]
    catalog: Option<PathBuf>,
}

impl CatalogFile {
    pub fn read(&self) -> Result<Catalog, catalog_file::CatalogFileError> {
        catalog_file::read_or_default(self.catalog.as_deref())
    }
}

/// Shows steps on standard error, if that is a terminal.
pub struct Progress {
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

/// How long a work may take to clean up after Ctrl-C or SIGTERM.
const CLEAN_UP_MAX: Duration = Duration::from_secs(2);
/// As shells tell it.
const INTERRUPTED: i32 = 130;

impl Progress {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {human_pos}/{human_len} {eta}");
        let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, interrupted: Arc::default() }
    }

    /// The same for work that makes temporary files: an interrupt breaks it off, so that they are removed.
    pub fn interruptible() -> std::io::Result<Self> {
        let progress = Self::new();
        let interrupted = progress.interrupted.clone();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            interrupted.store(true, Ordering::Relaxed);
            tokio::time::sleep(CLEAN_UP_MAX).await;
            // It is in a step that takes longer: one that has made no file yet, or is about to be done.
            std::process::exit(INTERRUPTED);
        });
        Ok(progress)
    }

    pub fn show(&self, step: Step) -> ControlFlow<()> {
        if self.bar.message() != step.doing {
            self.bar.set_message(step.doing);
            self.bar.reset_eta();
        }
        match step.total {
            0 => self.bar.unset_length(),
            total => self.bar.set_length(total),
        }
        self.bar.set_position(step.done);
        if self.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
