//! `slotcast config`: what a service would be told.

use super::CommandResult;
use super::data::STORE_FILE;
use super::output::print;
use super::prepare::prepare;
use super::settings::SettingFlags;
use crate::config;
use crate::domain::Catalog;
use crate::store::embedded::OpenError;
use crate::store::embedded::tools::Snapshot;
use std::path::Path;
use std::sync::Arc;

/// Checks the settings and prints the effective ones, each with its source: default, file, environment or flag.
///
/// Takes the same file, environment and flags as `slotcast serve`, and refuses what that would refuse: it also reads the
/// certificates, keys, JWKS and catalog that the settings name, compares the catalog with the store in the data folder, and
/// checks that the data folder can be written. It neither listens nor changes anything. What it prints is a settings file
/// itself; secrets are not shown. If something is wrong it names every problem and fails.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// Print every setting with its meaning and its default, as a file to begin with.
    #[arg(long)]
    documented: bool,
    /// Check the settings alone and not the files and folders that they name, as on a machine that does not have them.
    #[arg(long)]
    settings_only: bool,
    #[command(flatten)]
    settings: SettingFlags,
}

impl Config {
    /// Needs a tokio runtime.
    pub fn run(self) -> CommandResult {
        if self.documented {
            return Ok(print(config::documented().trim_end())?);
        }
        let settings = self.settings.read()?;
        let config = settings.config();
        if !self.settings_only {
            let prepared = prepare(config, Arc::default())?;
            check_catalog(&config.data, &prepared.catalog)?;
        }
        Ok(print(config::effective(&config.values).trim_end())?)
    }
}

/// Fails if `slotcast serve` would refuse the catalog for the store in the data folder, if there is one.
fn check_catalog(data: &Path, catalog: &Catalog) -> CommandResult {
    match Snapshot::open_if_any(&data.join(STORE_FILE)) {
        Ok(Some(snapshot)) => Ok(snapshot.check_catalog(catalog)?),
        // `slotcast serve` completes the restore first.
        Ok(None) | Err(OpenError::Interrupted { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
