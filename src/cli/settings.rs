//! Command-line flags for the settings, one per setting, for every command that accepts them.

use crate::config::settings::declarations;
use crate::config::{Config, ConfigError, Declaration, Overrides, SettingsFile, ValueKind};
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, Error, FromArgMatches};
use std::collections::BTreeMap;
use std::path::PathBuf;

const FILE: &str = "config";
const FILE_VARIABLE: &str = "SLOTCAST_CONFIG";

/// The settings file, and the settings from flags by key.
#[derive(Debug, Clone, Default)]
pub struct SettingFlags {
    file: Option<PathBuf>,
    flags: BTreeMap<String, String>,
}

/// The settings as read, and the watched settings file if there is one.
pub enum Settings {
    Fixed(Box<Config>),
    Watched(Box<SettingsFile>),
}

impl SettingFlags {
    /// Reads the settings from the file, the environment and the flags. The error lists every problem.
    pub fn read(self) -> Result<Settings, ConfigError> {
        let commands = super::Cli::command();
        let others: Vec<&str> = commands.get_subcommands().flat_map(variables).collect();
        let overrides = Overrides::from_process(&others, self.flags);
        match self.file {
            Some(path) => SettingsFile::open(overrides, path).map(|file| Settings::Watched(Box::new(file))),
            None => Config::read(&overrides, None).map(|config| Settings::Fixed(Box::new(config))),
        }
    }
}

impl Settings {
    pub fn config(&self) -> &Config {
        match self {
            Self::Fixed(config) => config,
            Self::Watched(file) => file.current(),
        }
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE)
            .long("config")
            .value_name("FILE")
            .env(FILE_VARIABLE)
            .value_parser(clap::value_parser!(PathBuf))
            .help("Settings file in TOML; reloaded when it changes and on SIGHUP");
        declarations().filter(|setting| !setting.is_file_only()).map(flag).fold(command.arg(file), Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.file = matches.get_one(FILE).cloned();
        let keys = declarations().filter(|setting| !setting.is_file_only()).map(Declaration::key);
        let flags = keys.filter_map(|key| Some((matches.get_one::<String>(&key)?.clone(), key)));
        self.flags = flags.map(|(text, key)| (key, text)).collect();
        Ok(())
    }
}

/// Returns the environment variables that a command reads itself.
fn variables(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter_map(|argument| argument.get_env()?.to_str())
}

/// Returns the flag of a setting.
fn flag(setting: &Declaration) -> Arg {
    let default = setting.default_value().map(|value| format!(" [default: {}]", value.to_string().trim_matches('"')));
    let help = format!("{}{} [env: {}]", setting.help, default.unwrap_or_default(), setting.environment_variable());
    let heading =
        if setting.section.is_empty() { "Settings".into() } else { format!("Settings [{}]", setting.section) };
    let arg = Arg::new(setting.key())
        .long(setting.flag())
        .value_name(setting.kind.placeholder())
        .help(help)
        .help_heading(heading)
        .hide_default_value(true)
        .allow_hyphen_values(true);
    // A flag without a value means true.
    let is_boolean = setting.kind == ValueKind::Bool;
    if is_boolean { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
}
