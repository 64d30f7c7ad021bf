//! Kinds of setting values, common to the file, the environment and flags.

use crate::web::Origin;
use std::net::SocketAddr;
use toml::{Table, Value};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// An IP address and a port.
    Address,
    Path,
    Text,
    /// An `http` or `https` URL.
    HttpUrl,
    /// A text that is never printed.
    Secret,
    Bool,
    Number {
        min: u64,
        max: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One or more of these words.
    Choices(&'static [&'static str]),
    /// Any number of origins of web pages.
    Origins,
    /// An array of tables that have exactly these keys. Only the file can set it.
    Tables(&'static [Column]),
}

/// One key of the tables of [`ValueKind::Tables`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// The accepted values; if empty, any text that is not empty is accepted.
    pub values: &'static [&'static str],
}

impl ValueKind {
    /// Parses the text of an environment variable or a flag into the value that a file would contain. Returns `None` if
    /// only a file can set this kind.
    pub fn parse(&self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Address | Self::Path | Self::Text | Self::HttpUrl | Self::Secret | Self::Choice(_) => text.into(),
            // Text that does not parse stays a text; `check` reports it.
            Self::Bool => text.parse::<bool>().map_or_else(|_| text.into(), Value::from),
            Self::Number { .. } => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
            Self::Choices(_) | Self::Origins => {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Value::Array(words.map(Value::from).collect())
            }
            Self::Tables(_) => return None,
        })
    }

    /// Checks a value. An error starts with "must" and does not name the setting.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let is_valid = match (self, value) {
            (Self::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (Self::Path | Self::Text | Self::Secret, Value::String(text)) => !text.is_empty(),
            (Self::HttpUrl, Value::String(text)) => is_http_url(text),
            (Self::Bool, Value::Boolean(_)) => true,
            (Self::Number { min, max }, Value::Integer(number)) => {
                u64::try_from(*number).is_ok_and(|number| (*min..=*max).contains(&number))
            }
            (Self::Choice(words), Value::String(word)) => words.contains(&word.as_str()),
            (Self::Choices(words), Value::Array(chosen)) => return check_choices(words, chosen),
            (Self::Origins, Value::Array(origins)) => return check_origins(origins),
            (Self::Tables(columns), Value::Array(tables)) => return check_tables(columns, tables),
            (_, _) => false,
        };
        if is_valid {
            Ok(())
        } else if *self == Self::Secret {
            Err(format!("must be {}", self.requirement()))
        } else {
            Err(format!("must be {}, got {value}", self.requirement()))
        }
    }

    /// Describes the accepted values.
    pub fn requirement(&self) -> String {
        match self {
            Self::Address => "an address and a port, such as 127.0.0.1:7400".into(),
            Self::Path => "a path".into(),
            Self::Text | Self::Secret => "a nonempty string".into(),
            Self::HttpUrl => "an http or https URL, such as http://collector:4317".into(),
            Self::Bool => "true or false".into(),
            Self::Number { min, max } => format!("{min} to {max}"),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Choices(words) => format!("one or more of {}", words.join(", ")),
            Self::Origins => "origins such as https://game.example".into(),
            Self::Tables(columns) => format!("an array of tables with the keys {}", names(columns)),
        }
    }

    /// Returns the placeholder for a value in the help.
    pub fn placeholder(&self) -> String {
        match self {
            Self::Address => "ADDRESS:PORT".into(),
            Self::Path => "PATH".into(),
            Self::Text | Self::Secret => "TEXT".into(),
            Self::HttpUrl => "URL".into(),
            Self::Bool => "true|false".into(),
            Self::Number { .. } => "NUMBER".into(),
            Self::Choice(words) => words.join("|"),
            Self::Choices(words) => words.join(","),
            Self::Origins => "ORIGIN,ORIGIN".into(),
            Self::Tables(_) => "TABLES".into(),
        }
    }
}

fn is_http_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let has_scheme =
        uri.scheme_str().is_some_and(|scheme| ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)));
    has_scheme && uri.host().is_some_and(|host| !host.is_empty())
}

fn check_choices(words: &[&str], chosen: &[Value]) -> Result<(), String> {
    let is_known = |value: &Value| value.as_str().is_some_and(|word| words.contains(&word));
    match chosen.iter().find(|value| !is_known(value)) {
        Some(unknown) => Err(format!("must be one or more of {}, got {unknown}", words.join(", "))),
        None if chosen.is_empty() => Err(format!("must be one or more of {}, got none", words.join(", "))),
        None => Ok(()),
    }
}

fn check_origins(origins: &[Value]) -> Result<(), String> {
    for origin in origins {
        let parsed = origin.as_str().ok_or("must be a string").and_then(str::parse::<Origin>);
        parsed.map_err(|problem| format!("{problem}, got {origin}"))?;
    }
    Ok(())
}

fn check_tables(columns: &[Column], tables: &[Value]) -> Result<(), String> {
    for (table, number) in tables.iter().zip(1..) {
        let has_all = |table: &&Table| {
            table.len() == columns.len() && columns.iter().all(|column| text(table, column.name).is_some())
        };
        let Some(table) = table.as_table().filter(has_all) else {
            let names = names(columns);
            return Err(format!("must have exactly the keys {names}, each a nonempty string (table {number})"));
        };
        for column in columns.iter().filter(|column| !column.values.is_empty()) {
            let word = text(table, column.name).unwrap_or_default();
            if !column.values.contains(&word) {
                let (name, words) = (column.name, column.values.join(", "));
                return Err(format!("{name} must be one of {words}, got {word:?} (table {number})"));
            }
        }
    }
    Ok(())
}

fn text<'a>(table: &'a Table, name: &str) -> Option<&'a str> {
    table.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn names(columns: &[Column]) -> String {
    columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: ValueKind, value: impl Into<Value>) -> String {
        kind.check(&value.into()).expect_err("the value is invalid")
    }

    #[test]
    fn each_kind_accepts_valid_text_and_rejects_invalid_text() {
        let words: &[&str] = &["json", "pretty"];
        let number = ValueKind::Number { min: 2, max: 9 };
        for (kind, valid, invalid) in [
            (ValueKind::Address, "[::1]:80", "localhost"),
            (ValueKind::Path, "a/b", ""),
            (ValueKind::Text, "x", ""),
            (ValueKind::HttpUrl, "http://collector:4317", "collector:4317"),
            (ValueKind::HttpUrl, "https://[::1]:1/path", "ftp://collector:4317"),
            (ValueKind::HttpUrl, "http://10.0.0.1", "http://"),
            (ValueKind::Bool, "true", "yes"),
            (number, "9", "10"),
            (number, "2", "-2"),
            (number, "3", "3.5"),
            (ValueKind::Choice(words), "json", "xml"),
            (ValueKind::Choices(words), "json, pretty", "json,xml"),
            (ValueKind::Choices(words), "pretty", ""),
            (ValueKind::Origins, "", "*"),
            (ValueKind::Origins, "https://game.example, http://localhost:8080", "https://game.example/"),
        ] {
            assert_eq!(kind.check(&kind.parse(valid).unwrap()), Ok(()), "{kind:?} {valid}");
            let problem = problem(kind, kind.parse(invalid).unwrap());
            assert!(problem.starts_with("must be "), "{kind:?} {invalid}: {problem}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_invalid() {
        assert_eq!(problem(ValueKind::Number { min: 0, max: 5 }, "3"), "must be 0 to 5, got \"3\"");
        assert_eq!(problem(ValueKind::Path, 3), "must be a path, got 3");
        assert_eq!(problem(ValueKind::Bool, 1), "must be true or false, got 1");
    }

    #[test]
    fn the_error_for_an_invalid_secret_does_not_show_it() {
        assert_eq!(problem(ValueKind::Secret, 4_711), "must be a nonempty string");
    }

    #[test]
    fn tables_must_have_exactly_their_keys_and_accepted_words() {
        const COLUMNS: &[Column] =
            &[Column { name: "san", values: &[] }, Column { name: "role", values: &["player", "admin"] }];
        let kind = ValueKind::Tables(COLUMNS);
        let tables = |text: &str| -> Value { text.parse::<Table>().unwrap().remove("t").unwrap() };
        assert_eq!(kind.check(&tables("[[t]]\nsan='a'\nrole='player'\n")), Ok(()));
        let valid = "[[t]]\nsan='a'\nrole='admin'\n";
        for invalid in ["[[t]]\nsan='a'\n", "[[t]]\nsan='a'\nrole=''\n", "[[t]]\nsan='a'\nrole='admin'\nx='c'\n"] {
            let problem = problem(kind, tables(&format!("{valid}{invalid}")));
            assert_eq!(problem, "must have exactly the keys san, role, each a nonempty string (table 2)", "{invalid}");
        }
        assert!(problem(kind, tables("t=[1]")).ends_with("(table 1)"));
        let king = problem(kind, tables("[[t]]\nsan='a'\nrole='king'\n"));
        assert_eq!(king, "role must be one of player, admin, got \"king\" (table 1)");
        assert!(kind.parse("x").is_none());
    }
}
