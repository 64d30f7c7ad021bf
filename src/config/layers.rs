//! Sources of settings in ascending precedence: defaults, file, environment, flags.

use super::environment;
use super::settings::{SECTIONS, SETTINGS, Setting};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    File,
    /// The name of the environment variable.
    Environment(String),
    /// The flag, including its dashes.
    Flag(String),
}

/// An effective value and its source.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    pub value: Value,
    pub source: Source,
}

/// The effective values by key; every value is valid for its setting's kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Values(BTreeMap<String, Said>);

/// Values from the environment and from flags, which do not change while the process runs.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The name and the value of the environment variable, by key of the setting.
    environment: BTreeMap<String, (String, String)>,
    flags: BTreeMap<String, String>,
    /// Problems with unknown environment variables.
    problems: Vec<String>,
}

impl Layers {
    /// Reads the environment of this process. `others` are variables that begin with `SLOTCAST_` but are not settings;
    /// any other non-empty variable with this prefix that is not a setting is a problem.
    pub fn of_process(others: &[&str], flags: BTreeMap<String, String>) -> Self {
        let said: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.to_string_lossy().into_owned())))
            .filter(|(_, text)| !text.is_empty())
            .collect();
        let problems = environment::unknown(said.keys().map(String::as_str), others);
        Self { problems, ..Self::new(|name| said.get(name).cloned(), flags) }
    }

    /// `variable` returns the value of an environment variable; an empty value counts as unset. `flags` are by key of
    /// the setting.
    pub fn new(variable: impl Fn(&str) -> Option<String>, flags: BTreeMap<String, String>) -> Self {
        let said = |setting: &Setting| {
            let mut names = std::iter::once(setting.environment()).chain(setting.also.map(str::to_owned));
            let text = |name: &str| variable(name).filter(|text| !text.is_empty());
            names.find_map(|name| Some((setting.key(), (name.clone(), text(&name)?))))
        };
        Self { environment: SETTINGS.iter().filter_map(said).collect(), flags, problems: Vec::new() }
    }

    /// Returns the effective values with this file, and all problems of all sources. Invalid values are ignored.
    pub fn values(&self, file: &Table) -> (Values, Vec<String>) {
        let (mut values, mut problems) = (BTreeMap::new(), self.problems.clone());
        problems.extend(unknown(file));
        for setting in SETTINGS.iter() {
            let key = setting.key();
            let default = setting.default.clone().map(|value| (value, Source::Default));
            let from_file = in_file(file, setting).map(|value| (value.clone(), Source::File));
            let environment = self.environment.get(&key).map(|(name, text)| (text, Source::Environment(name.clone())));
            let flag = self.flags.get(&key).map(|text| (text, Source::Flag(format!("--{}", setting.flag()))));
            let from_environment = read(setting, environment, &mut problems);
            let from_flags = read(setting, flag, &mut problems);
            for (value, source) in [default, from_file, from_environment, from_flags].into_iter().flatten() {
                match setting.kind.check(&value) {
                    Ok(()) => {
                        values.insert(key.clone(), Said { value, source });
                    }
                    Err(problem) => problems.push(format!("{key} {problem} ({source})")),
                }
            }
        }
        (Values(values), problems)
    }
}

fn read(setting: &Setting, said: Option<(&String, Source)>, problems: &mut Vec<String>) -> Option<(Value, Source)> {
    let (text, source) = said?;
    let value = setting.kind.read(text);
    if value.is_none() {
        problems.push(format!("{} can only be said in a file ({source})", setting.key()));
    }
    Some((value?, source))
}

fn in_file<'a>(file: &'a Table, setting: &Setting) -> Option<&'a Value> {
    if setting.section.is_empty() {
        return file.get(setting.name);
    }
    file.get(setting.section)?.as_table()?.get(setting.name)
}

/// Reports keys and sections of a file that are not settings.
fn unknown(file: &Table) -> Vec<String> {
    let is_section = |name: &str| SECTIONS.iter().any(|(section, _)| *section == name);
    let is_setting =
        |section: &str, name: &str| SETTINGS.iter().any(|setting| (setting.section, setting.name) == (section, name));
    let mut problems = Vec::new();
    for (name, value) in file {
        match value.as_table() {
            Some(section) if is_section(name) => {
                let names = section.keys().filter(|within| !is_setting(name, within));
                problems.extend(names.map(|within| format!("there is no setting {name}.{within}")));
            }
            Some(_) => problems.push(format!("there is no section [{name}]")),
            None if is_section(name) => problems.push(format!("{name} is a section: write [{name}]")),
            None if is_setting("", name) => {}
            None => problems.push(match SETTINGS.iter().find(|setting| setting.name == name) {
                Some(elsewhere) => format!("{name} has to stand in the section [{}]", elsewhere.section),
                None => format!("there is no setting {name}"),
            }),
        }
    }
    problems
}

impl Values {
    pub fn get(&self, key: &str) -> Option<&Said> {
        self.0.get(key)
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.value.as_str()
    }

    pub fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub fn address(&self, key: &str) -> Option<SocketAddr> {
        self.text(key)?.parse().ok()
    }

    pub fn is_set(&self, key: &str) -> bool {
        self.get(key).and_then(|said| said.value.as_bool()).unwrap_or(false)
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        u64::try_from(self.get(key)?.value.as_integer()?).ok()
    }

    /// Returns the number of a setting that has a default; the bounds of the setting ensure that it fits the type.
    pub fn size<N: TryFrom<u64> + Default>(&self, key: &str) -> N {
        self.number(key).and_then(|number| N::try_from(number).ok()).unwrap_or_default()
    }

    pub fn seconds(&self, key: &str) -> Duration {
        Duration::from_secs(self.size(key))
    }

    pub fn milliseconds(&self, key: &str) -> Duration {
        Duration::from_millis(self.size(key))
    }

    /// Returns the words of a list in their order in the source.
    pub fn words(&self, key: &str) -> impl Iterator<Item = &str> {
        self.get(key).and_then(|said| said.value.as_array()).into_iter().flatten().filter_map(Value::as_str)
    }

    pub fn tables(&self, key: &str) -> impl Iterator<Item = &Table> {
        self.get(key).and_then(|said| said.value.as_array()).into_iter().flatten().filter_map(Value::as_table)
    }

    /// Returns the settings that need a restart and differ between the two.
    pub fn restart_needed(&self, other: &Self) -> Vec<String> {
        let value = |values: &Self, key: &str| values.get(key).map(|said| said.value.clone());
        let fixed = SETTINGS.iter().filter(|setting| !setting.live).map(Setting::key);
        fixed.filter(|key| value(self, key) != value(other, key)).collect()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Layers {
        let find =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
        Layers::new(find, flags.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect())
    }

    #[test]
    fn flags_win_over_the_environment_that_over_the_file_and_that_over_defaults() {
        let file: Table = "[sync]\nnews_ms = 1\necho_ms = 1\ntick_ms = 1\n".parse().unwrap();
        let environment = [("SLOTCAST_SYNC_ECHO_MS", "2"), ("SLOTCAST_SYNC_TICK_MS", "2")];
        let (values, problems) = layers(&environment, &[("sync.tick_ms", "3")]).values(&file);
        assert_eq!(problems, [""; 0]);
        let said = |key: &str| (values.number(key).unwrap(), values.get(key).unwrap().source.to_string());
        assert_eq!(said("sync.heartbeat_ms"), (15_000, "default".into()));
        assert_eq!(said("sync.news_ms"), (1, "file".into()));
        assert_eq!(said("sync.echo_ms"), (2, "environment SLOTCAST_SYNC_ECHO_MS".into()));
        assert_eq!(said("sync.tick_ms"), (3, "flag --sync-tick-ms".into()));
    }

    #[test]
    fn what_is_wrong_is_told_even_where_another_wins_and_counts_as_not_said() {
        let file: Table = "[sync]\nnews_ms = 60001\n".parse().unwrap();
        let (values, problems) = layers(&[("SLOTCAST_LISTEN", "here")], &[("sync.news_ms", "5")]).values(&file);
        assert_eq!(
            problems,
            [
                "listen must be an address and a port, as in 127.0.0.1:7400, not \"here\" (environment SLOTCAST_LISTEN)",
                "sync.news_ms must be a whole number, 0 to 60000, not 60001 (file)",
            ]
        );
        assert_eq!((values.text("listen"), values.number("sync.news_ms")), (Some("127.0.0.1:7400"), Some(5)));
    }

    #[test]
    fn an_empty_variable_says_nothing_and_another_name_counts_below_its_own() {
        let endpoint = |own: &str| {
            let environment =
                [("SLOTCAST_OTLP_ENDPOINT", own), ("OTEL_EXPORTER_OTLP_ENDPOINT", "common"), ("SLOTCAST_DATA", "")];
            let (values, problems) = layers(&environment, &[]).values(&Table::new());
            assert_eq!((problems.len(), values.text("data")), (0, Some("slotcast-data")));
            values.get("otlp.endpoint").map(|said| format!("{} by {}", said.value, said.source)).unwrap()
        };
        assert_eq!(endpoint(""), "\"common\" by environment OTEL_EXPORTER_OTLP_ENDPOINT");
        assert_eq!(endpoint("own"), "\"own\" by environment SLOTCAST_OTLP_ENDPOINT");
    }

    #[test]
    fn a_setting_that_takes_a_restart_is_named_if_it_differs() {
        let of = |text: &str| layers(&[], &[]).values(&text.parse().unwrap()).0;
        let changed = of("data = 'elsewhere'\n[sync]\nnews_ms = 7\n[store]\nbytes_max = 2000000\n");
        assert_eq!(changed.restart_needed(&of("")), ["data", "store.bytes_max"]);
        assert_eq!(changed.restart_needed(&changed), [""; 0]);
    }
}
