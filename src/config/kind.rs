//! Types of setting values, common to the file, the environment and flags.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use toml::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An IP address and a port.
    Address,
    Path,
    Text,
    /// A text that is never printed.
    Secret,
    Flag,
    Number(RangeInclusive<u64>),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One or more of these words.
    Choices(&'static [&'static str]),
    /// An array of tables that have exactly these keys, with texts as values. Only the file can set it.
    Tables(&'static [&'static str]),
}

impl Kind {
    /// Parses the text of an environment variable or a flag into the value that a file would contain. Returns `None` if
    /// only a file can set this kind.
    pub fn read(&self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Address | Self::Path | Self::Text | Self::Secret | Self::Choice(_) => text.into(),
            // Text that does not parse stays a text; `check` reports it.
            Self::Flag => text.parse::<bool>().map_or_else(|_| text.into(), Value::from),
            Self::Number(_) => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
            Self::Choices(_) => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Value::Array(words.map(Value::from).collect())
            }
            Self::Tables(_) => return None,
        })
    }

    /// Checks a value. An error starts with "must" and follows the name of the setting.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let told = match (self, value) {
            (Self::Address, Value::String(text)) if text.parse::<SocketAddr>().is_ok() => return Ok(()),
            (Self::Path | Self::Text | Self::Secret, Value::String(text)) if !text.is_empty() => return Ok(()),
            (Self::Flag, Value::Boolean(_)) => return Ok(()),
            (Self::Number(bounds), Value::Integer(number))
                if u64::try_from(*number).is_ok_and(|number| bounds.contains(&number)) =>
            {
                return Ok(());
            }
            (Self::Choice(words), Value::String(word)) if words.contains(&word.as_str()) => return Ok(()),
            (Self::Choices(words), Value::Array(chosen)) => return check_choices(words, chosen),
            (Self::Tables(names), Value::Array(tables)) => return check_tables(names, tables),
            (Self::Secret, _) => return Err(format!("must be {}", self.wanted())),
            (_, value) => value,
        };
        Err(format!("must be {}, not {told}", self.wanted()))
    }

    /// Describes the accepted values.
    pub fn wanted(&self) -> String {
        match self {
            Self::Address => "an address and a port, as in 127.0.0.1:7400".into(),
            Self::Path => "a path".into(),
            Self::Text | Self::Secret => "a text that is not empty".into(),
            Self::Flag => "true or false".into(),
            Self::Number(bounds) => format!("a whole number, {} to {}", bounds.start(), bounds.end()),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Choices(words) => format!("some of {}, at least one", words.join(", ")),
            Self::Tables(names) => format!("tables of {}", names.join(", ")),
        }
    }

    /// Returns the placeholder for a value in the help.
    pub fn placeholder(&self) -> String {
        match self {
            Self::Address => "ADDRESS:PORT".into(),
            Self::Path => "PATH".into(),
            Self::Text | Self::Secret => "TEXT".into(),
            Self::Flag => "true|false".into(),
            Self::Number(_) => "NUMBER".into(),
            Self::Choice(words) => words.join("|"),
            Self::Choices(words) => words.join(","),
            Self::Tables(_) => "TABLES".into(),
        }
    }
}

fn check_choices(words: &[&str], chosen: &[Value]) -> Result<(), String> {
    let is_known = |value: &Value| value.as_str().is_some_and(|word| words.contains(&word));
    match chosen.iter().find(|value| !is_known(value)) {
        Some(unknown) => Err(format!("must be some of {}; {unknown} is none of them", words.join(", "))),
        None if chosen.is_empty() => Err(format!("must be some of {}, at least one", words.join(", "))),
        None => Ok(()),
    }
}

fn check_tables(names: &[&str], tables: &[Value]) -> Result<(), String> {
    let is_text = |value: Option<&Value>| value.and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    let is_whole = |table: &Value| {
        table
            .as_table()
            .is_some_and(|table| table.len() == names.len() && names.iter().all(|name| is_text(table.get(*name))))
    };
    match tables.iter().position(|table| !is_whole(table)) {
        Some(at) => Err(format!("must have exactly {}, each a text; number {} has not", names.join(", "), at + 1)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: &Kind, value: impl Into<Value>) -> Result<(), String> {
        kind.check(&value.into())
    }

    #[test]
    fn each_kind_takes_what_it_says_and_nothing_else() {
        let words: &[&str] = &["json", "pretty"];
        for (kind, good, bad) in [
            (Kind::Address, "[::1]:80", "localhost"),
            (Kind::Path, "a/b", ""),
            (Kind::Text, "x", ""),
            (Kind::Flag, "true", "yes"),
            (Kind::Number(2..=9), "9", "10"),
            (Kind::Number(2..=9), "2", "-2"),
            (Kind::Number(2..=9), "3", "3.5"),
            (Kind::Choice(words), "json", "xml"),
            (Kind::Choices(words), "json, pretty", "json,xml"),
            (Kind::Choices(words), "pretty", ""),
        ] {
            assert_eq!(kind.check(&kind.read(good).unwrap()), Ok(()), "{kind:?} {good}");
            let told = kind.check(&kind.read(bad).unwrap()).unwrap_err();
            assert!(told.starts_with("must be "), "{kind:?} {bad}: {told}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        assert_eq!(told(&Kind::Number(0..=5), "3").unwrap_err(), "must be a whole number, 0 to 5, not \"3\"");
        assert_eq!(told(&Kind::Path, 3).unwrap_err(), "must be a path, not 3");
        assert_eq!(told(&Kind::Flag, 1).unwrap_err(), "must be true or false, not 1");
    }

    #[test]
    fn a_secret_that_is_wrong_is_not_shown() {
        assert_eq!(told(&Kind::Secret, 4_711).unwrap_err(), "must be a text that is not empty");
    }

    #[test]
    fn tables_have_exactly_their_names() {
        let kind = Kind::Tables(&["san", "role"]);
        let tables = |text: &str| -> Value { text.parse::<toml::Table>().unwrap().remove("t").unwrap() };
        assert_eq!(kind.check(&tables("[[t]]\nsan='a'\nrole='b'\n")), Ok(()));
        for bad in ["[[t]]\nsan='a'\n", "[[t]]\nsan='a'\nrole=''\n", "[[t]]\nsan='a'\nrole='b'\nx='c'\n", "t=[1]"] {
            assert!(kind.check(&tables(bad)).unwrap_err().ends_with("number 1 has not"), "{bad}");
        }
        assert!(kind.read("x").is_none());
    }
}
