//! `slotcast config`: what a service would be told.

use super::CommandResult;
use super::output::print;
use super::settings::SettingFlags;
use crate::config;

/// Checks the settings and prints those that hold, each with who said it: default, file, environment or flag.
///
/// Takes the same file, environment and flags as `slotcast serve`. What it prints is a settings file itself; secrets are
/// not shown. With something wrong it names every problem and fails.
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
        Ok(print(config::effective(&self.settings.read()?.config().values).trim_end())?)
    }
}
