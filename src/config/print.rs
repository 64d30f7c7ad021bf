//! Prints settings as a TOML file: either all settings with their documentation, or the effective values with their
//! sources.

use super::kind::Kind;
use super::layers::{Said, Values};
use super::settings::{SECTIONS, SETTINGS, Setting};
use std::fmt::Write as _;

const HEAD: &str = "\
# The settings of `slotcast serve --config FILE`, all of them, as they are without a file.
#
# The environment wins over the file, and flags win over both: limits.streams_per_player is SLOTCAST_LIMITS_STREAMS_PER_PLAYER
# and --limits-streams-per-player. A file with a mistake is refused as a whole. It is read again when it changes and on
# SIGHUP; what is marked `live` then holds at once, the rest after a restart.
";

/// Returns every setting with its meaning and its default.
pub fn documented() -> String {
    let mut text = HEAD.to_owned();
    for (section, what) in sections() {
        text.push('\n');
        if !section.is_empty() {
            what.lines().for_each(|line| line_to(&mut text, &format!("# {line}")));
            line_to(&mut text, &format!("[{section}]"));
        }
        for setting in of_section(section) {
            let live = if setting.live { " Live." } else { "" };
            line_to(&mut text, &format!("# {} {}.{live}", setting.what, capital(&setting.kind.wanted())));
            line_to(
                &mut text,
                &match &setting.default {
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
        let said = of_section(section).filter_map(|setting| Some((setting, values.get(&setting.key())?)));
        let lines: Vec<String> = said.map(|(setting, said)| shown(setting, said)).collect();
        if lines.is_empty() {
            continue;
        }
        if !section.is_empty() {
            line_to(&mut text, &format!("\n[{section}]"));
        }
        lines.iter().for_each(|line| line_to(&mut text, line));
    }
    text
}

fn shown(setting: &Setting, Said { value, source }: &Said) -> String {
    let value = match setting.kind {
        Kind::Secret => "\"***\"".to_owned(),
        Kind::Address
        | Kind::Path
        | Kind::Text
        | Kind::Flag
        | Kind::Number(_)
        | Kind::Choice(_)
        | Kind::Choices(_)
        | Kind::Tables(_) => value.to_string(),
    };
    format!("{:<48} # {source}", format!("{} = {value}", setting.name))
}

fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    std::iter::once(("", "")).chain(SECTIONS)
}

fn of_section(section: &str) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |setting| setting.section == section)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn line_to(text: &mut String, line: &str) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::super::layers::Layers;
    use super::*;
    use toml::Table;

    #[test]
    fn the_documented_file_says_what_holds_without_it() {
        let file: Table = documented().parse().unwrap();
        let none = Layers::default();
        let (with, problems) = none.values(&file);
        assert_eq!(problems, [""; 0]);
        let without = none.values(&Table::new()).0;
        for setting in SETTINGS.iter() {
            let value = |values: &Values| values.get(&setting.key()).map(|said| said.value.clone());
            assert_eq!(value(&with), value(&without), "{}", setting.key());
        }
        insta::assert_snapshot!(documented());
    }

    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        let said = Layers::new(|_| None, [("data".to_owned(), "a \"b\"\\c".to_owned())].into());
        let values = said.values(&Table::new()).0;
        let shown = effective(&values);
        assert!(shown.contains("# flag --data"), "{shown}");
        let again = Layers::default().values(&shown.parse().unwrap()).0;
        assert_eq!((again.text("data"), again.restart_needed(&values)), (Some("a \"b\"\\c"), Vec::new()));
    }
}
