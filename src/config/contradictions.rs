//! Validation across settings: combinations of valid values that are invalid together.

use super::Config;
use crate::identity::Role;
use crate::telemetry::logs;
use std::net::SocketAddr;
use toml::Value;

pub(super) fn of(config: &Config) -> Vec<String> {
    [exposure(config), addresses(config), tls(config), identity(config), headers(config), filter(config)]
        .into_iter()
        .flatten()
        .collect()
}

/// Prevents accidental exposure: an address beyond loopback needs authentication and TLS, or an explicit opt-out.
fn exposure(config: &Config) -> Vec<String> {
    let (listen, values) = (config.listen, &config.values);
    let mut problems = Vec::new();
    if config.verifies_callers() && values.is_set("without_authentication") {
        problems.push("without_authentication and [identity] contradict each other: leave one of them out".into());
    }
    if !is_beyond_loopback(listen) {
        return problems;
    }
    if !config.verifies_callers() && !values.is_set("without_authentication") {
        problems.push(format!(
            "{listen} can be reached from other machines, and callers are not verified: set identity.jwks, listen on \
             127.0.0.1, or say without_authentication if the network keeps strangers out"
        ));
    }
    if config.transport.tls.is_none() && !values.is_set("without_tls") {
        problems.push(format!(
            "{listen} can be reached from other machines, in plaintext: set tls.certificate and tls.key, listen on \
             127.0.0.1, or say without_tls if something before it encrypts"
        ));
    }
    problems
}

fn is_beyond_loopback(listen: SocketAddr) -> bool {
    !listen.ip().is_loopback()
}

/// Two listeners cannot share one address.
fn addresses(config: &Config) -> Vec<String> {
    let (listen, admin) = (config.listen, config.admin_listen);
    if listen != admin || listen.port() == 0 {
        return Vec::new();
    }
    vec![format!("listen and admin.listen are both {listen}: give one of them another port")]
}

fn filter(config: &Config) -> Vec<String> {
    let checked = logs::check(&config.telemetry.log.filter);
    checked.err().map(|error| format!("log.filter: {error}")).into_iter().collect()
}

fn tls(config: &Config) -> Vec<String> {
    let has = |key: &str| config.values.get(key).is_some();
    let mut problems = Vec::new();
    if has("tls.certificate") != has("tls.key") {
        problems.push("tls.certificate and tls.key belong together: set both or neither".into());
    }
    if has("tls.client_ca") && !has("tls.certificate") {
        problems.push("tls.client_ca needs tls.certificate: only over TLS are there client certificates".into());
    }
    if config.values.text("tls.client_certificates") == Some("required") && !has("tls.client_ca") {
        problems
            .push("tls.client_certificates cannot be required without tls.client_ca, which says whose are good".into());
    }
    problems
}

fn identity(config: &Config) -> Vec<String> {
    let has = |key: &str| config.values.get(key).is_some();
    let mut problems = Vec::new();
    if has("identity.issuer") != has("identity.jwks") {
        problems.push("identity.jwks and identity.issuer belong together: keys are one issuer's".into());
    }
    let certificates: Vec<_> = config.values.tables("identity.certificates").collect();
    if !certificates.is_empty() && !has("tls.client_ca") {
        problems
            .push("[[identity.certificates]] needs tls.client_ca, or no client certificate is ever asked for".into());
    }
    for role in certificates.iter().filter_map(|table| table.get("role").and_then(Value::as_str)) {
        if Role::named(role).is_none() {
            problems.push(format!("identity.certificates: role must be player, service or admin, not {role:?}"));
        }
    }
    problems
}

fn headers(config: &Config) -> Vec<String> {
    let headers = config.values.text("otlp.headers").unwrap_or_default();
    let is_pair = |pair: &str| pair.split_once('=').is_some_and(|(name, _)| !name.trim().is_empty());
    // The message omits the value because it is a secret.
    let problem = || "otlp.headers must be pairs of NAME=VALUE with commas in between".to_owned();
    let wrong = !headers.is_empty() && !headers.split(',').all(is_pair);
    wrong.then(problem).into_iter().collect()
}
