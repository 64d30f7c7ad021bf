//! `slotcast config`: what a service would be told.

use super::CommandResult;
use super::data::store_in;
use super::output::print;
use super::settings::SettingFlags;
use crate::catalog_file;
use crate::config;
use crate::store::embedded::tools::Snapshot;

/// Checks the settings and prints those that hold, each with who said it: default, file, environment or flag.
///
/// Takes the same file, environment and flags as `slotcast serve`. What it prints is a settings file itself; secrets are
/// not shown. With something wrong it names every problem and fails, also if the catalog does not fit the store in the data
/// folder.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// Print every setting with what it means and what holds without it, as a file to begin with.
    #[arg(long)]
    documented: bool,
    #[command(flatten)]
    settings: SettingFlags,
}

impl Config {
    pub fn run(self) -> CommandResult {
        if self.documented {
            return Ok(print(config::documented().trim_end())?);
        }
        let settings = self.settings.read()?;
        check_catalog(settings.config())?;
        Ok(print(config::effective(&settings.config().values).trim_end())?)
    }
}

/// A catalog that `slotcast serve` would refuse for the store in the data folder, if there is one.
fn check_catalog(config: &config::Config) -> CommandResult {
    let catalog = catalog_file::read_or_default(config.catalog.as_deref())?;
    let store = store_in(&config.data);
    if store.is_file() {
        Snapshot::open(&store)?.check_catalog(&catalog)?;
    }
    Ok(())
}
