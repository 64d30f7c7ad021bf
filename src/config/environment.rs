//! Detection of unknown environment variables that begin with `SLOTCAST_`; most are misspelled settings.

use super::setting::Declaration;
use super::settings::declarations;
use std::collections::BTreeSet;

const PREFIX: &str = "SLOTCAST_";
/// Variables that scripts use for the locations of the binary and of the image; the program ignores them.
const SCRIPT_VARIABLES: [&str; 2] = ["SLOTCAST_BIN", "SLOTCAST_IMAGE"];
/// Minimum similarity of a known name to be suggested, from 0 to 1.
const SIMILARITY_MIN: f64 = 0.9;

/// Returns the problems with the environment variables `names`. `others` are known variables that are not settings.
///
/// Kubernetes sets variables for each Service of the namespace unless the pod sets `enableServiceLinks: false`. For
/// example, a Service named `slotcast` produces `SLOTCAST_SERVICE_HOST`, `SLOTCAST_SERVICE_PORT` and
/// `SLOTCAST_PORT_7400_TCP_ADDR`. Such variables are not problems: `X_PORT...` and `X_SERVICE_...` are ignored if both
/// `X_SERVICE_HOST` and `X_SERVICE_PORT` are set.
pub fn unknown<'a>(names: impl IntoIterator<Item = &'a str>, others: &[&str]) -> Vec<String> {
    let ours: BTreeSet<&str> = names.into_iter().filter(|name| name.starts_with(PREFIX)).collect();
    let mut known: Vec<String> = declarations().map(Declaration::environment_variable).collect();
    known.extend(declarations().filter_map(|setting| setting.fallback_variable.map(str::to_owned)));
    known.extend(SCRIPT_VARIABLES.map(str::to_owned));
    known.extend(others.iter().map(|name| (*name).to_owned()));
    let services: Vec<&str> = ours
        .iter()
        .filter_map(|name| name.strip_suffix("_SERVICE_HOST"))
        .filter(|name| has_port(&ours, name))
        .collect();
    let is_known = |name: &str| known.iter().any(|known| known == name);
    let unknown = ours.iter().filter(|name| !is_known(name) && !services.iter().any(|service| is_link(name, service)));
    unknown.map(|name| problem(name, &known)).collect()
}

fn has_port(names: &BTreeSet<&str>, service: &str) -> bool {
    names.contains(format!("{service}_SERVICE_PORT").as_str())
}

fn is_link(name: &str, service: &str) -> bool {
    let rest = name.strip_prefix(service).unwrap_or_default();
    let is_port = rest.strip_prefix("_PORT").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    is_port || rest.starts_with("_SERVICE_")
}

fn problem(name: &str, known: &[String]) -> String {
    let similarity =
        |known: &String| strsim::jaro_winkler(name.trim_start_matches(PREFIX), known.trim_start_matches(PREFIX));
    let similar =
        known.iter().map(|known| (similarity(known), known)).filter(|(similarity, _)| *similarity >= SIMILARITY_MIN);
    match similar.max_by(|(one, _), (other, _)| one.total_cmp(other)) {
        Some((_, nearest)) => format!("unknown environment variable {name}: did you mean {nearest}?"),
        None => {
            format!("unknown environment variable {name}: unset it; `slotcast config --documented` lists all settings")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_variable_is_reported_with_the_nearest_name() {
        let problems = unknown(
            ["SLOTCAST_LIMIT_CONNECTIONS", "PATH", "SLOTCAST_LISTEN", "SLOTCAST_LOG", "SLOTCAST_SERVER"],
            &["SLOTCAST_SERVER"],
        );
        assert_eq!(
            problems,
            ["unknown environment variable SLOTCAST_LIMIT_CONNECTIONS: did you mean SLOTCAST_LIMITS_CONNECTIONS?"]
        );
        let problems = unknown(["SLOTCAST_DRAIN_DELAY", "SLOTCAST_LISTN", "SLOTCAST_WHATEVER"], &[]);
        assert!(problems[0].ends_with("did you mean SLOTCAST_DRAIN_DELAY_MS?"), "{problems:?}");
        assert!(problems[1].ends_with("did you mean SLOTCAST_LISTEN?"), "{problems:?}");
        assert!(problems[2].ends_with("lists all settings"), "{problems:?}");
    }

    #[test]
    fn variables_that_kubernetes_sets_for_services_are_ignored() {
        let links = |service: &str| {
            [
                "SERVICE_HOST",
                "SERVICE_PORT",
                "SERVICE_PORT_GRPC",
                "PORT",
                "PORT_7400_TCP",
                "PORT_7400_TCP_PROTO",
                "PORT_7400_TCP_PORT",
                "PORT_7400_TCP_ADDR",
            ]
            .map(|suffix| format!("{service}_{suffix}"))
        };
        let all = [links("SLOTCAST"), links("SLOTCAST_ADMIN")].concat();
        assert_eq!(unknown(all.iter().map(String::as_str), &[]), [""; 0]);
        // An incomplete set of variables does not belong to a Service.
        assert_eq!(unknown(["SLOTCAST_PORT"], &[]).len(), 1);
        assert_eq!(unknown(["SLOTCAST_SERVICE_HOST", "SLOTCAST_PORT"], &[]).len(), 2);
        let misspelled = all.iter().map(String::as_str).chain(["SLOTCAST_PORTS", "SLOTCAST_LISTN"]);
        assert_eq!(unknown(misspelled, &[]).len(), 2);
    }
}
