//! Command-line flags for the settings, one per setting, for every command that accepts them.

use crate::config::{Config, ConfigError, Kind, Layers, Reload, SETTINGS, Setting};
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, Error, FromArgMatches};
use std::collections::BTreeMap;
use std::path::PathBuf;

const FILE: &str = "config";
const FILE_VARIABLE: &str = "SLOTCAST_CONFIG";

/// The settings file and the flags of the command line.
#[derive(Debug, Clone, Default)]
pub struct SettingFlags {
    file: Option<PathBuf>,
    flags: BTreeMap<String, String>,
}

/// The settings as read, and the watched settings file if there is one.
pub enum Settings {
    Fixed(Box<Config>),
    Followed(Box<Reload>),
}

impl SettingFlags {
    pub fn read(self) -> Result<Settings, ConfigError> {
        let commands = super::Cli::command();
        let others: Vec<&str> = commands.get_subcommands().flat_map(variables).collect();
        let layers = Layers::of_process(&others, self.flags);
        match self.file {
            Some(path) => Reload::open(layers, path).map(|reload| Settings::Followed(Box::new(reload))),
            None => Config::read(&layers, None).map(|config| Settings::Fixed(Box::new(config))),
        }
    }
}

impl Settings {
    pub fn config(&self) -> &Config {
        match self {
            Self::Fixed(config) => config,
            Self::Followed(reload) => reload.current(),
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
            .help("The settings as TOML; read again when it changes and on SIGHUP");
        SETTINGS.iter().filter_map(flag).fold(command.arg(file), Command::arg)
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
        let said = SETTINGS.iter().filter(|setting| !matches!(setting.kind, Kind::Tables(_))).map(Setting::key);
        let said = said.filter_map(|key| Some((matches.get_one::<String>(&key)?.clone(), key)));
        self.flags = said.map(|(text, key)| (key, text)).collect();
        Ok(())
    }
}

/// Returns the environment variables that a command reads itself.
fn variables(command: &Command) -> impl Iterator<Item = &str> {
    command.get_arguments().filter_map(|argument| argument.get_env()?.to_str())
}

/// Returns the flag of a setting, or `None` for tables, which only a file can set.
fn flag(setting: &Setting) -> Option<Arg> {
    if matches!(setting.kind, Kind::Tables(_)) {
        return None;
    }
    let default = setting.default.as_ref().map(|value| format!(" [default: {}]", value.to_string().trim_matches('"')));
    let help = format!("{}{} [env: {}]", setting.what, default.unwrap_or_default(), setting.environment());
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
    let is_flag = setting.kind == Kind::Flag;
    Some(if is_flag { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg })
}
