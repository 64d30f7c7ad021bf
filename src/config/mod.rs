//! Settings that may change while the service runs: as a TOML file, and as shared by all who serve by them. The format is
//! told at the head of `config/default.toml`.

mod live;
mod reload;

pub use live::LiveRollout;
pub use reload::{Reload, follow};

use crate::sync::{Field, Rollout};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A file that says what holds without a file.
pub const DEFAULT: &str = include_str!("default.toml");
const SECTION: &str = "sync";

/// What is wrong with a settings file, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the settings {}: {error}\nGive the path of a readable TOML file.", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("the settings {} are no TOML:\n{problem}\nCorrect it there and try again.", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("the settings {} cannot hold:\n{}\nCorrect them all; `slotcast serve --print-config` shows what there is.", path.display(), listed(problems))]
    Invalid { path: PathBuf, problems: Vec<String> },
}

/// Checks a file's text; the error tells every problem at once.
fn parse(text: &str, path: &Path) -> Result<Rollout, ConfigError> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Malformed {
        path: path.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    })?;
    let (mut values, mut problems) = (Vec::new(), Vec::new());
    for (name, value) in &table {
        match value {
            Value::Table(section) if name == SECTION => {
                section.iter().for_each(|(name, value)| match setting(name, value) {
                    Ok(value) => values.push(value),
                    Err(problem) => problems.push(problem),
                })
            }
            Value::Table(_) => problems.push(format!("there is no section [{name}], only [{SECTION}]")),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => problems.push(format!("{name} has to stand in the section [{SECTION}]")),
        }
    }
    // Those that are well said are checked even if others are not: all problems are told at once.
    match Rollout::default().with(values) {
        Ok(rollout) if problems.is_empty() => Ok(rollout),
        checked => {
            let out_of_bounds = checked.err().unwrap_or_default();
            problems.extend(out_of_bounds.iter().map(ToString::to_string));
            Err(ConfigError::Invalid { path: path.to_owned(), problems })
        }
    }
}

fn setting(name: &str, value: &Value) -> Result<(Field, u64), String> {
    let field = Field::named(name).ok_or_else(|| format!("there is no setting {name}"))?;
    let number = value.as_integer().ok_or_else(|| format!("{name} must be a whole number, not {value}"))?;
    let number = u64::try_from(number).map_err(|_| format!("{name} must not be negative, as {number} is"))?;
    Ok((field, number))
}

fn listed(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Rollout, String> {
        parse(text, Path::new("FILE")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_file_names_every_setting_and_says_what_holds_without_it() {
        assert_eq!(parsed(DEFAULT), Ok(Rollout::default()));
        assert_eq!(parsed(""), Ok(Rollout::default()));
        for field in Field::ALL {
            assert!(DEFAULT.contains(&format!("\n{} = ", field.name())), "{}", field.name());
        }
    }

    #[test]
    fn what_a_file_names_is_set() {
        let rollout = parsed("[sync]\ndelta_percent = 25\nnews_ms = 250\n").unwrap();
        let values = Field::ALL.map(|field| field.read(&rollout));
        assert_eq!(values, [25, 100, 100, 0, 250, 1_000, 10, 10, 10, 15_000]);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let told = parsed(
            "news_ms = 1\n[sync]\ndelta = 1\nnews_ms = 'slow'\nshadow_percent = 101\necho_ms = -1\nheartbeat_ms = 1\n[sink]\n",
        );
        insta::assert_snapshot!(told.unwrap_err());
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_place() {
        let told = parsed("[sync\n").unwrap_err();
        assert!(told.contains("line 1"), "{told}");
    }
}
