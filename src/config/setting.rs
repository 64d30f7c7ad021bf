//! The declaration of one setting, which fixes the type of its value.
//!
//! A [`Setting`] has a default, and [`Values::get`](super::Values::get) returns its value. An [`OptionalSetting`] has
//! none, and [`Values::find`](super::Values::find) returns `None` if no source sets it.

use super::kind::ValueKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::Value;

/// Metadata of a setting: its key, value kind, default and help.
#[derive(Debug, Clone, Copy)]
pub struct Declaration {
    /// Empty for settings before the first section of the file.
    pub section: &'static str,
    pub name: &'static str,
    pub kind: ValueKind,
    default: DefaultValue,
    /// Whether a change applies without a restart.
    pub reloadable: bool,
    /// Another environment variable for the setting, with lower precedence than its own.
    pub fallback_variable: Option<&'static str>,
    /// The meaning of the setting, with its unit.
    pub help: &'static str,
}

/// A setting with a default, whose value is a `T`.
#[derive(Debug, Clone, Copy)]
pub struct Setting<T> {
    pub(super) declaration: Declaration,
    /// Converts a value that has passed [`ValueKind::check`].
    pub(super) convert: Convert<T>,
}

/// A setting without a default, whose value is a `T`.
#[derive(Debug, Clone, Copy)]
pub struct OptionalSetting<T> {
    pub(super) declaration: Declaration,
    /// Converts a value that has passed [`ValueKind::check`].
    pub(super) convert: Convert<T>,
}

pub(super) type Convert<T> = fn(&Value) -> Option<T>;

#[derive(Debug, Clone, Copy)]
enum DefaultValue {
    None,
    Number(u64),
    Computed(fn() -> Value),
}

impl Declaration {
    pub fn default_value(&self) -> Option<Value> {
        match self.default {
            DefaultValue::None => None,
            DefaultValue::Number(number) => Some(number_value(number)),
            DefaultValue::Computed(value) => Some(value()),
        }
    }

    /// Returns the key, for example `limits.streams_per_player`.
    pub fn key(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }

    /// Returns the environment variable, for example `SLOTCAST_LIMITS_STREAMS_PER_PLAYER`.
    pub fn environment_variable(&self) -> String {
        format!("SLOTCAST_{}", self.key().replace('.', "_").to_uppercase())
    }

    /// Returns the flag without its dashes, for example `limits-streams-per-player`.
    pub fn flag(&self) -> String {
        self.key().replace(['.', '_'], "-")
    }

    /// Returns whether only the settings file can set it.
    pub fn is_file_only(&self) -> bool {
        matches!(self.kind, ValueKind::Tables(_))
    }
}

impl<T> OptionalSetting<T> {
    pub(super) const fn new(
        section: &'static str,
        name: &'static str,
        kind: ValueKind,
        convert: Convert<T>,
        help: &'static str,
    ) -> Self {
        let default = DefaultValue::None;
        let declaration =
            Declaration { section, name, kind, default, reloadable: false, fallback_variable: None, help };
        Self { declaration, convert }
    }

    /// Marks the setting as one whose changes apply without a restart.
    pub(super) const fn reloadable(mut self) -> Self {
        self.declaration.reloadable = true;
        self
    }

    pub(super) const fn fallback_variable(mut self, name: &'static str) -> Self {
        self.declaration.fallback_variable = Some(name);
        self
    }

    pub(super) const fn default(self, value: fn() -> Value) -> Setting<T> {
        self.with_default(DefaultValue::Computed(value))
    }

    pub(super) const fn default_number(self, number: u64) -> Setting<T> {
        self.with_default(DefaultValue::Number(number))
    }

    const fn with_default(self, default: DefaultValue) -> Setting<T> {
        Setting { declaration: Declaration { default, ..self.declaration }, convert: self.convert }
    }
}

type Name = &'static str;

/// Seconds of a day.
const DAY_S: u64 = 24 * 60 * 60;

pub(super) const fn address(section: Name, name: Name, help: &'static str) -> OptionalSetting<SocketAddr> {
    OptionalSetting::new(section, name, ValueKind::Address, |value| value.as_str()?.parse().ok(), help)
}

pub(super) const fn path(section: Name, name: Name, help: &'static str) -> OptionalSetting<PathBuf> {
    OptionalSetting::new(section, name, ValueKind::Path, |value| value.as_str().map(PathBuf::from), help)
}

pub(super) const fn text(section: Name, name: Name, help: &'static str) -> OptionalSetting<String> {
    OptionalSetting::new(section, name, ValueKind::Text, to_text, help)
}

pub(super) const fn http_url(section: Name, name: Name, help: &'static str) -> OptionalSetting<String> {
    OptionalSetting::new(section, name, ValueKind::HttpUrl, to_text, help)
}

pub(super) const fn secret(section: Name, name: Name, help: &'static str) -> OptionalSetting<String> {
    OptionalSetting::new(section, name, ValueKind::Secret, to_text, help)
}

pub(super) const fn boolean(section: Name, name: Name, help: &'static str) -> OptionalSetting<bool> {
    OptionalSetting::new(section, name, ValueKind::Bool, Value::as_bool, help)
}

/// Both bounds must fit `N`, which a test of the table checks.
pub(super) const fn number<N: TryFrom<u64>>(
    section: Name,
    name: Name,
    (min, max): (u64, u64),
    help: &'static str,
) -> OptionalSetting<N> {
    OptionalSetting::new(section, name, ValueKind::Number { min, max }, |value| N::try_from(to_u64(value)?).ok(), help)
}

/// A number of seconds.
pub(super) const fn seconds(
    section: Name,
    name: Name,
    (min, max): (u64, u64),
    help: &'static str,
) -> OptionalSetting<Duration> {
    OptionalSetting::new(
        section,
        name,
        ValueKind::Number { min, max },
        |value| to_u64(value).map(Duration::from_secs),
        help,
    )
}

/// A number of days.
pub(super) const fn days(
    section: Name,
    name: Name,
    (min, max): (u64, u64),
    help: &'static str,
) -> OptionalSetting<Duration> {
    let convert = |value: &Value| to_u64(value)?.checked_mul(DAY_S).map(Duration::from_secs);
    OptionalSetting::new(section, name, ValueKind::Number { min, max }, convert, help)
}

/// A number of milliseconds.
pub(super) const fn milliseconds(
    section: Name,
    name: Name,
    (min, max): (u64, u64),
    help: &'static str,
) -> OptionalSetting<Duration> {
    let convert = |value: &Value| to_u64(value).map(Duration::from_millis);
    OptionalSetting::new(section, name, ValueKind::Number { min, max }, convert, help)
}

/// Returns the default of a [`number`] as a value of the file, whose integers have 64 bits with a sign.
pub(super) fn number_value(number: impl TryInto<i64>) -> Value {
    Value::Integer(number.try_into().unwrap_or(i64::MAX))
}

pub(super) fn seconds_value(time: Duration) -> Value {
    number_value(time.as_secs())
}

pub(super) fn days_value(time: Duration) -> Value {
    number_value(time.as_secs() / DAY_S)
}

pub(super) fn milliseconds_value(time: Duration) -> Value {
    number_value(time.as_millis())
}

fn to_text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn to_u64(value: &Value) -> Option<u64> {
    value.as_integer()?.try_into().ok()
}
