//! `slotcast config`: validates the configuration and prints it.

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

/// Validate the configuration and print the effective settings with their sources.
///
/// Accepts the same file, environment and flags as `slotcast serve` and rejects the same mistakes. It also reads the
/// certificates, keys, JWKS and catalog that the settings name, compares the catalog with the store in the data
/// directory, and checks that the data directory is writable. It opens no listeners and changes nothing. The output is
/// a valid settings file without secrets. If the configuration is invalid, the command lists every problem and fails.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// Print every setting with its documentation and default, as a template for a settings file.
    #[arg(long)]
    documented: bool,
    /// Validate only the settings, not the files and directories that they name. Use this on a machine that does not
    /// have them.
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

/// Fails if `slotcast serve` would refuse the catalog for an existing store in the data directory.
fn check_catalog(data: &Path, catalog: &Catalog) -> CommandResult {
    match Snapshot::open_if_any(&data.join(STORE_FILE)) {
        Ok(Some(snapshot)) => Ok(snapshot.check_catalog(catalog)?),
        // `slotcast serve` first completes the restore.
        Ok(None) | Err(OpenError::Interrupted { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
