//! Sources of settings in ascending precedence: defaults, file, environment, flags.

use super::environment;
use super::setting::{Declaration, OptionalSetting, Setting};
use super::settings::{SECTIONS, declarations};
use std::collections::BTreeMap;
use std::fmt;
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
pub struct ResolvedValue {
    pub value: Value,
    pub source: Source,
}

/// The effective values by key; every value is valid for its setting's kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Values(BTreeMap<String, ResolvedValue>);

/// Values from the environment and from flags, which override the file and do not change while the process runs.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// The name and the value of the environment variable, by key of the setting.
    environment: BTreeMap<String, (String, String)>,
    flags: BTreeMap<String, String>,
    /// Problems with unknown environment variables.
    problems: Vec<String>,
}

impl Overrides {
    /// Reads the environment of this process. `others` are variables that begin with `SLOTCAST_` but are not settings;
    /// any other nonempty variable with this prefix that is not a setting is a problem. `flags` are by key of the
    /// setting.
    pub fn from_process(others: &[&str], flags: BTreeMap<String, String>) -> Self {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.to_string_lossy().into_owned())))
            .filter(|(_, text)| !text.is_empty())
            .collect();
        let problems = environment::unknown(variables.keys().map(String::as_str), others);
        Self { problems, ..Self::new(|name| variables.get(name).cloned(), flags) }
    }

    /// `variable` returns the value of an environment variable; an empty value counts as unset. `flags` are by key of
    /// the setting.
    pub fn new(variable: impl Fn(&str) -> Option<String>, flags: BTreeMap<String, String>) -> Self {
        let find = |setting: &Declaration| {
            let own = setting.environment_variable();
            let mut names = std::iter::once(own).chain(setting.fallback_variable.map(str::to_owned));
            let text = |name: &str| variable(name).filter(|text| !text.is_empty());
            names.find_map(|name| Some((setting.key(), (name.clone(), text(&name)?))))
        };
        Self { environment: declarations().filter_map(find).collect(), flags, problems: Vec::new() }
    }

    /// Returns the effective values with this file, and all problems of all sources. Invalid values are ignored.
    pub fn resolve(&self, file: &Table) -> (Values, Vec<String>) {
        let (mut values, mut problems) = (BTreeMap::new(), self.problems.clone());
        problems.extend(unknown(file));
        for setting in declarations() {
            let key = setting.key();
            let default = setting.default_value().map(|value| (value, Source::Default));
            let from_file = in_file(file, setting).map(|value| (value.clone(), Source::File));
            let environment = self.environment.get(&key).map(|(name, text)| (text, Source::Environment(name.clone())));
            let flag = self.flags.get(&key).map(|text| (text, Source::Flag(format!("--{}", setting.flag()))));
            let from_environment = parse(setting, environment, &mut problems);
            let from_flags = parse(setting, flag, &mut problems);
            for (value, source) in [default, from_file, from_environment, from_flags].into_iter().flatten() {
                match setting.kind.check(&value) {
                    Ok(()) => {
                        values.insert(key.clone(), ResolvedValue { value, source });
                    }
                    Err(problem) => problems.push(format!("{key}: {problem} ({source})")),
                }
            }
        }
        (Values(values), problems)
    }
}

fn parse(
    setting: &Declaration,
    found: Option<(&String, Source)>,
    problems: &mut Vec<String>,
) -> Option<(Value, Source)> {
    let (text, source) = found?;
    let value = setting.kind.parse(text);
    if value.is_none() {
        problems.push(format!("{}: can be set only in the settings file ({source})", setting.key()));
    }
    Some((value?, source))
}

fn in_file<'a>(file: &'a Table, setting: &Declaration) -> Option<&'a Value> {
    if setting.section.is_empty() {
        return file.get(setting.name);
    }
    file.get(setting.section)?.as_table()?.get(setting.name)
}

/// Reports keys and sections of a file that are not settings.
fn unknown(file: &Table) -> Vec<String> {
    let is_section = |name: &str| SECTIONS.iter().any(|(section, _)| *section == name);
    let is_setting =
        |section: &str, name: &str| declarations().any(|setting| (setting.section, setting.name) == (section, name));
    let mut problems = Vec::new();
    for (name, value) in file {
        match value.as_table() {
            Some(section) if is_section(name) => {
                let names = section.keys().filter(|key| !is_setting(name, key));
                problems.extend(names.map(|key| format!("unknown setting {name}.{key} (file)")));
            }
            Some(_) => problems.push(format!("unknown section [{name}] (file)")),
            None if is_section(name) => problems.push(format!("{name}: must be a section, [{name}] (file)")),
            None if is_setting("", name) => {}
            None => problems.push(match declarations().find(|setting| setting.name == name) {
                Some(setting) => format!("unknown setting {name}: did you mean {}? (file)", setting.key()),
                None => format!("unknown setting {name} (file)"),
            }),
        }
    }
    problems
}

#[cfg(test)]
thread_local! {
    /// Keys of the settings that this thread has read.
    pub(super) static USED: std::cell::RefCell<std::collections::BTreeSet<String>> = const {
        std::cell::RefCell::new(std::collections::BTreeSet::new())
    };
}

impl Values {
    /// Returns the effective value of a setting.
    pub fn get<T>(&self, setting: &Setting<T>) -> T {
        // Tests of the table ensure that every default is valid and that every valid value converts.
        self.convert(&setting.declaration, setting.convert).expect("a setting with a default has a valid value")
    }

    /// Returns the effective value of a setting, or `None` if no source sets it.
    pub fn find<T>(&self, setting: &OptionalSetting<T>) -> Option<T> {
        self.convert(&setting.declaration, setting.convert)
    }

    /// Returns whether a source sets the setting.
    pub fn is_set<T>(&self, setting: &OptionalSetting<T>) -> bool {
        self.resolved(&setting.declaration).is_some()
    }

    pub fn resolved(&self, setting: &Declaration) -> Option<&ResolvedValue> {
        self.0.get(&setting.key())
    }

    /// Returns the keys of the settings that need a restart and differ between the two.
    pub fn restart_needed(&self, other: &Self) -> Vec<String> {
        let value = |values: &Self, setting| values.resolved(setting).map(|resolved| resolved.value.clone());
        let fixed = declarations().filter(|setting| !setting.reloadable);
        fixed.filter(|setting| value(self, setting) != value(other, setting)).map(Declaration::key).collect()
    }

    fn convert<T>(&self, setting: &Declaration, convert: fn(&Value) -> Option<T>) -> Option<T> {
        #[cfg(test)]
        USED.with_borrow_mut(|used| used.insert(setting.key()));
        convert(&self.resolved(setting)?.value)
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
    use super::super::settings::{DATA, LISTEN, OTLP_ENDPOINT, SYNC_SETTINGS};
    use super::*;
    use std::path::PathBuf;

    fn overrides(environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Overrides {
        let find = |name: &str| environment.iter().find(|(set, _)| *set == name).map(|(_, text)| (*text).to_owned());
        Overrides::new(find, flags.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect())
    }

    fn sync_setting(name: &str) -> &'static Setting<u64> {
        SYNC_SETTINGS.iter().find(|setting| setting.declaration.name == name).unwrap()
    }

    #[test]
    fn flags_override_the_environment_which_overrides_the_file_which_overrides_defaults() {
        let file: Table = "[sync]\nnews_ms = 1\necho_ms = 1\ntick_ms = 1\n".parse().unwrap();
        let environment = [("SLOTCAST_SYNC_ECHO_MS", "2"), ("SLOTCAST_SYNC_TICK_MS", "2")];
        let (values, problems) = overrides(&environment, &[("sync.tick_ms", "3")]).resolve(&file);
        assert_eq!(problems, [""; 0]);
        let resolved = |name: &str| {
            let setting = sync_setting(name);
            (values.get(setting), values.resolved(&setting.declaration).unwrap().source.to_string())
        };
        assert_eq!(resolved("heartbeat_ms"), (15_000, "default".into()));
        assert_eq!(resolved("news_ms"), (1, "file".into()));
        assert_eq!(resolved("echo_ms"), (2, "environment SLOTCAST_SYNC_ECHO_MS".into()));
        assert_eq!(resolved("tick_ms"), (3, "flag --sync-tick-ms".into()));
    }

    #[test]
    fn an_invalid_value_is_reported_even_if_overridden_and_counts_as_unset() {
        let file: Table = "[sync]\nnews_ms = 60001\n".parse().unwrap();
        let (values, problems) = overrides(&[("SLOTCAST_LISTEN", "here")], &[("sync.news_ms", "5")]).resolve(&file);
        assert_eq!(
            problems,
            [
                "listen: must be an address and a port, such as 127.0.0.1:7400, got \"here\" (environment SLOTCAST_LISTEN)",
                "sync.news_ms: must be 0 to 60000, got 60001 (file)",
            ]
        );
        assert_eq!(values.get(&LISTEN).to_string(), "127.0.0.1:7400");
        assert_eq!(values.get(sync_setting("news_ms")), 5);
    }

    #[test]
    fn a_table_cannot_be_set_by_the_environment() {
        let environment = [("SLOTCAST_IDENTITY_CERTIFICATES", "x")];
        let (_, problems) = overrides(&environment, &[]).resolve(&Table::new());
        let expected = "identity.certificates: can be set only in the settings file \
                        (environment SLOTCAST_IDENTITY_CERTIFICATES)";
        assert_eq!(problems, [expected]);
    }

    #[test]
    fn an_empty_variable_counts_as_unset_and_the_own_variable_overrides_the_fallback() {
        let endpoint = |own: &str| {
            let environment = [
                ("SLOTCAST_OTLP_ENDPOINT", own),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://common"),
                ("SLOTCAST_DATA", ""),
            ];
            let (values, problems) = overrides(&environment, &[]).resolve(&Table::new());
            assert_eq!((problems.len(), values.get(&DATA)), (0, PathBuf::from("slotcast-data")));
            let source = values.resolved(&OTLP_ENDPOINT.declaration).unwrap().source.to_string();
            (values.find(&OTLP_ENDPOINT).unwrap(), source)
        };
        assert_eq!(endpoint(""), ("http://common".into(), "environment OTEL_EXPORTER_OTLP_ENDPOINT".into()));
        assert_eq!(endpoint("http://own"), ("http://own".into(), "environment SLOTCAST_OTLP_ENDPOINT".into()));
    }

    #[test]
    fn settings_that_need_a_restart_are_listed_if_they_differ() {
        let resolve = |text: &str| overrides(&[], &[]).resolve(&text.parse().unwrap()).0;
        let changed = resolve("data = 'elsewhere'\n[sync]\nnews_ms = 7\n[store]\nbytes_max = 2000000\n");
        assert_eq!(changed.restart_needed(&resolve("")), ["data", "store.bytes_max"]);
        assert_eq!(changed.restart_needed(&changed), [""; 0]);
    }
}
