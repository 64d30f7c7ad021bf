//! Prints settings as a TOML file: either all settings with their documentation, or the effective values with their
//! sources.

use super::kind::ValueKind;
use super::setting::Declaration;
use super::settings::{SECTIONS, declarations};
use super::sources::{ResolvedValue, Values};
use std::fmt::Write as _;

const HEAD: &str = "\
# All settings of `slotcast serve --config FILE`, with their defaults.
#
# Precedence: flags, environment, settings file. For limits.streams_per_player, the flag is --limits-streams-per-player
# and the environment variable is SLOTCAST_LIMITS_STREAMS_PER_PLAYER. The file is reloaded when it changes and on SIGHUP:
# settings marked `Reloadable` apply immediately, all others after a restart. An invalid file changes nothing.
";

/// Returns every setting with its meaning and its default.
pub fn documented() -> String {
    let mut text = HEAD.to_owned();
    for (section, description) in sections() {
        text.push('\n');
        if !section.is_empty() {
            description.lines().for_each(|line| add_line(&mut text, &format!("# {line}")));
            add_line(&mut text, &format!("[{section}]"));
        }
        for setting in in_section(section) {
            let reloadable = if setting.reloadable { " Reloadable." } else { "" };
            let requirement = if let ValueKind::Number { min, max } = setting.kind {
                format!("Range: {min} to {max}")
            } else {
                capitalized(&setting.kind.requirement())
            };
            add_line(&mut text, &format!("# {} {requirement}.{reloadable}", setting.help));
            add_line(
                &mut text,
                &match setting.default_value() {
                    Some(value) => format!("{} = {value}", setting.name),
                    None => format!("# {} =", setting.name),
                },
            );
        }
    }
    text
}

/// Returns the effective values with their sources. Secrets are omitted.
pub fn effective(values: &Values) -> String {
    let mut text = String::new();
    for (section, _) in sections() {
        let resolved = in_section(section).filter_map(|setting| Some((setting, values.resolved(setting)?)));
        let lines: Vec<String> = resolved.map(|(setting, resolved)| line(setting, resolved)).collect();
        if lines.is_empty() {
            continue;
        }
        if !section.is_empty() {
            add_line(&mut text, &format!("\n[{section}]"));
        }
        lines.iter().for_each(|line| add_line(&mut text, line));
    }
    text
}

fn line(setting: &Declaration, ResolvedValue { value, source }: &ResolvedValue) -> String {
    let value = if setting.kind == ValueKind::Secret { "\"***\"".to_owned() } else { value.to_string() };
    format!("{:<48} # {source}", format!("{} = {value}", setting.name))
}

fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    std::iter::once(("", "")).chain(SECTIONS)
}

fn in_section(section: &str) -> impl Iterator<Item = &'static Declaration> {
    declarations().filter(move |setting| setting.section == section)
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn add_line(text: &mut String, line: &str) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::super::settings::DATA;
    use super::super::sources::Overrides;
    use super::*;
    use std::path::PathBuf;
    use toml::Table;

    #[test]
    fn the_documented_file_has_the_same_effect_as_no_file() {
        let file: Table = documented().parse().unwrap();
        let overrides = Overrides::default();
        let (with, problems) = overrides.resolve(&file);
        assert_eq!(problems, [""; 0]);
        let without = overrides.resolve(&Table::new()).0;
        for setting in declarations() {
            let value = |values: &Values| values.resolved(setting).map(|resolved| resolved.value.clone());
            assert_eq!(value(&with), value(&without), "{}", setting.key());
        }
        insta::assert_snapshot!(documented());
    }

    #[test]
    fn the_effective_settings_are_a_file_with_the_same_effect() {
        let overrides = Overrides::new(|_| None, [("data".to_owned(), "a \"b\"\\c".to_owned())].into());
        let values = overrides.resolve(&Table::new()).0;
        let printed = effective(&values);
        assert!(printed.contains("# flag --data"), "{printed}");
        let again = Overrides::default().resolve(&printed.parse().unwrap()).0;
        assert_eq!((again.get(&DATA), again.restart_needed(&values)), (PathBuf::from("a \"b\"\\c"), Vec::new()));
    }

    #[test]
    fn secrets_are_not_printed() {
        let overrides =
            Overrides::new(|_| None, [("otlp.headers".to_owned(), "authorization=sesame".to_owned())].into());
        let printed = effective(&overrides.resolve(&Table::new()).0);
        assert!(printed.contains("headers = \"***\"") && !printed.contains("sesame"), "{printed}");
    }
}
