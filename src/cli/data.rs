//! Arguments and progress bars of the commands that work on a store's files.

use super::signals;
use crate::catalog_file;
use crate::domain::Catalog;
use crate::store::embedded::tools::ProgressUpdate;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// Name of the store's file in its directory.
pub const STORE_FILE: &str = "slotcast.db";

#[derive(Debug, Args)]
pub struct DataDirectory {
    /// Directory of the store, or its file.
    #[arg(long, value_name = "DIR", default_value = "slotcast-data", env = "SLOTCAST_DATA")]
    data: PathBuf,
}

impl DataDirectory {
    pub fn store_path(&self) -> PathBuf {
        store_path(&self.data)
    }

    /// Creates the directory if it does not exist, and returns the path of the store's file.
    pub fn create(&self) -> Result<PathBuf, Box<dyn Error>> {
        if !self.data.is_file() {
            std::fs::create_dir_all(&self.data)
                .map_err(|error| format!("cannot create the directory {}: {error}", self.data.display()))?;
        }
        Ok(self.store_path())
    }
}

/// Returns the path of the store's file, given the file or its directory.
pub fn store_path(path: &Path) -> PathBuf {
    if path.is_file() { path.to_owned() } else { path.join(STORE_FILE) }
}

/// The catalog that provides the item ids.
#[derive(Debug, Args)]
pub struct CatalogFile {
    /// Catalog of items, recipes and layouts, in TOML. Default: the built-in catalog.
    #[arg(long, env = "SLOTCAST_CATALOG")]
    catalog: Option<PathBuf>,
}

impl CatalogFile {
    pub fn read(&self) -> Result<Catalog, catalog_file::CatalogFileError> {
        catalog_file::read_or_default(self.catalog.as_deref())
    }
}

/// A progress bar on standard error, shown only on a terminal.
pub struct Progress {
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

/// How long the command may clean up after Ctrl-C or SIGTERM before it exits.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit status after an interrupt, as in shells.
const INTERRUPTED_STATUS: i32 = 130;

impl Progress {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {human_pos}/{human_len} {eta}");
        let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, interrupted: Arc::default() }
    }

    /// Creates progress for work with temporary files: an interrupt stops the work, so that it removes the files.
    pub fn interruptible() -> std::io::Result<Self> {
        let progress = Self::new();
        let interrupted = progress.interrupted.clone();
        let arrived = signals::interrupted()?;
        tokio::spawn(async move {
            arrived.await;
            interrupted.store(true, Ordering::Relaxed);
            tokio::time::sleep(CLEANUP_TIMEOUT).await;
            // The current step does not check for interrupts in time; it has either not created a file yet or is almost
            // done.
            std::process::exit(INTERRUPTED_STATUS);
        });
        Ok(progress)
    }

    pub fn show(&self, step: ProgressUpdate) -> ControlFlow<()> {
        if self.bar.message() != step.phase {
            self.bar.set_message(step.phase);
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
