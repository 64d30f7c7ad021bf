//! What the commands on a store's file have in common.

use crate::catalog_file;
use crate::domain::Catalog;
use crate::store::embedded::tools::Step;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// The store's file in its folder.
const STORE_FILE: &str = "slotcast.db";

#[derive(Debug, Args)]
pub struct DataFolder {
    /// The folder of the store, or its file.
    #[arg(long, value_name = "FOLDER", default_value = "slotcast-data", env = "SLOTCAST_DATA")]
    data: PathBuf,
}

impl DataFolder {
    pub fn store(&self) -> PathBuf {
        if self.data.is_file() { self.data.clone() } else { self.data.join(STORE_FILE) }
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

/// By which items are named.
#[derive(Debug, Args)]
pub struct CatalogFile {
    /// The catalog of items, recipes and layouts, as TOML; without, the built-in one.
    #[arg(long, env = "SLOTCAST_CATALOG")]
    catalog: Option<PathBuf>,
}

impl CatalogFile {
    pub fn read(&self) -> Result<Catalog, catalog_file::CatalogFileError> {
        match &self.catalog {
            Some(path) => catalog_file::read(path),
            None => Ok(catalog_file::default_catalog()),
        }
    }
}

/// Shows steps on standard error, if that is a terminal.
pub struct Progress(ProgressBar);

impl Progress {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {human_pos}/{human_len} {eta}");
        let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    pub fn show(&self, step: Step) {
        if self.0.message() != step.doing {
            self.0.set_message(step.doing);
            self.0.reset_eta();
        }
        match step.total {
            0 => self.0.unset_length(),
            total => self.0.set_length(total),
        }
        self.0.set_position(step.done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
