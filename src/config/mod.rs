//! Settings: one table of them ([`settings`]), said by a TOML file, the environment and flags ([`layers`]), checked
//! together, and followed while the service runs ([`reload`]).

mod kind;
mod layers;
mod live;
mod print;
mod reload;
mod settings;

pub use kind::Kind;
pub use layers::{Layers, Values};
pub use live::LiveRollout;
pub use print::{documented, effective};
pub use reload::{Changed, Reload, follow};
pub use settings::{SECTIONS, SETTINGS, Setting};

use crate::grpc::streams::StreamSettings;
use crate::middleware::AdmissionSettings;
use crate::store::embedded::EmbeddedSettings;
use crate::sync::{Field, Rollout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Table;

/// What is wrong with the settings, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}\nGive the path of a readable TOML file.")]
    Unreadable(#[from] crate::file_watch::Unreadable),
    #[error("the settings {} are no TOML:\n{problem}\nCorrect it there and try again.", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error(
        "the settings cannot hold:\n{}\nCorrect them all; `slotcast config --documented` shows what there is.",
        listed(problems)
    )]
    Invalid { problems: Vec<String> },
}

/// All that a service is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where each came from.
    pub values: Values,
    pub listen: SocketAddr,
    pub data: PathBuf,
    pub catalog: Option<PathBuf>,
    pub store: EmbeddedSettings,
    pub streams: StreamSettings,
    pub admission: AdmissionSettings,
    pub drain_limit: Duration,
    pub rollout: Rollout,
}

impl Config {
    /// What holds with a file of this text; the error tells every problem at once.
    pub fn read(layers: &Layers, file: Option<(&Path, &str)>) -> Result<Self, ConfigError> {
        let table = match file {
            None => Table::new(),
            Some((path, text)) => text.parse().map_err(|error: toml::de::Error| ConfigError::Malformed {
                path: path.to_owned(),
                problem: error.to_string().trim_end().to_owned(),
            })?,
        };
        let (values, mut problems) = layers.values(&table);
        let config = Self::of(values);
        problems.extend(config.contradictions());
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
    }

    /// What must not be said together.
    fn contradictions(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.listen.ip().is_loopback() && !self.values.is_set("without_authentication") {
            problems.push(format!(
                "{} can be reached from other machines, and callers are not verified: listen on 127.0.0.1, or say \
                 without_authentication if the network keeps strangers out",
                self.listen
            ));
        }
        problems
    }

    /// Every setting with a default has a value of its kind and within its bounds: `SETTINGS` and `Kind::check` see to it.
    fn of(values: Values) -> Self {
        let number = |key: &str| values.number(key).unwrap_or_default();
        let small = |key: &str| u32::try_from(number(key)).unwrap_or(u32::MAX);
        let fields = Field::ALL.map(|field| (field, number(&format!("sync.{}", field.name()))));
        Self {
            listen: values.address("listen").unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))),
            data: values.path("data").unwrap_or_default(),
            catalog: values.path("catalog"),
            store: EmbeddedSettings {
                bytes_max: values.number("store.bytes_max"),
                keys_max: number("store.keys_max") as usize,
                key_window: Duration::from_secs(number("store.key_window_s")),
                ..EmbeddedSettings::default()
            },
            streams: StreamSettings {
                per_player_max: small("limits.streams_per_player"),
                per_caller_max: small("limits.streams_per_caller"),
            },
            admission: AdmissionSettings {
                per_second: small("limits.requests_per_second"),
                burst: small("limits.requests_burst"),
            },
            drain_limit: Duration::from_millis(number("drain.limit_ms")),
            rollout: Rollout::default().with(fields).unwrap_or_default(),
            values,
        }
    }
}

fn listed(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::read(&Layers::default(), Some((Path::new("FILE"), text))).map_err(|error| error.to_string())
    }

    #[test]
    fn without_a_word_the_defaults_of_the_code_hold() {
        let config = read("").unwrap();
        assert_eq!(config.rollout, Rollout::default());
        assert_eq!(config.streams, StreamSettings::default());
        assert_eq!(config.admission, AdmissionSettings::default());
        let store = EmbeddedSettings::default();
        assert_eq!((config.store.keys_max, config.store.key_window), (store.keys_max, store.key_window));
        assert_eq!(config.drain_limit, Duration::from_secs(10));
    }

    #[test]
    fn what_a_file_names_is_set() {
        let rollout = read("[sync]\ndelta_percent = 25\nnews_ms = 250\n").unwrap().rollout;
        let values = Field::ALL.map(|field| field.read(&rollout));
        assert_eq!(values, [25, 100, 100, 0, 250, 1_000, 10, 10, 10, 15_000]);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let told = read(
            "news_ms = 1\nlisten = '0.0.0.0:1'\nlimits = 3\n[sync]\ndelta = 1\nnews_ms = 'slow'\nshadow_percent = 101\n\
             echo_ms = -1\n[sink]\n",
        );
        insta::assert_snapshot!(told.unwrap_err());
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_place() {
        let told = read("[sync\n").unwrap_err();
        assert!(told.contains("line 1"), "{told}");
    }
}
