//! Validation across settings: combinations of valid values that are invalid together.

use super::Config;
use super::settings::{self, ClientCertificates};
use crate::telemetry::logs;
use std::net::SocketAddr;

pub(super) fn problems(config: &Config) -> Vec<String> {
    [exposure(config), addresses(config), tls(config), identity(config), headers(config), filter(config), room(config)]
        .into_iter()
        .flatten()
        .collect()
}

/// The history must leave room in the store: a full store refuses mutations, and does not delete history.
fn room(config: &Config) -> Vec<String> {
    let (store, history) = (config.store.bytes_max, config.store.history_bytes_max);
    let too_large = store.zip(history).filter(|(store, history)| history >= store);
    let text = |(store, history)| {
        format!(
            "history.bytes_max: must be less than store.bytes_max ({store}), got {history}: the rest of the store needs room"
        )
    };
    too_large.map(text).into_iter().collect()
}

/// Prevents accidental exposure: an address beyond loopback needs authentication and TLS, or an explicit opt-out.
fn exposure(config: &Config) -> Vec<String> {
    let (listen, values) = (config.listen, &config.values);
    let without_authentication = values.get(&settings::WITHOUT_AUTHENTICATION);
    let mut problems = Vec::new();
    if config.has_authentication() && without_authentication {
        problems.push("without_authentication and [identity] are mutually exclusive: remove one of them".into());
    }
    if !is_non_loopback(listen) {
        return problems;
    }
    if !config.has_authentication() && !without_authentication {
        problems.push(format!(
            "listen: {listen} is reachable from other machines without authentication: set identity.jwks or \
             [[identity.certificates]], listen on 127.0.0.1, or set without_authentication if the network is trusted"
        ));
    }
    if config.transport.tls.is_none() && !values.get(&settings::WITHOUT_TLS) {
        problems.push(format!(
            "listen: {listen} is reachable from other machines without TLS: set tls.certificate and tls.key, listen on \
             127.0.0.1, or set without_tls if a proxy in front terminates TLS"
        ));
    }
    problems
}

fn is_non_loopback(listen: SocketAddr) -> bool {
    !listen.ip().is_loopback()
}

/// Two listeners cannot share one address.
fn addresses(config: &Config) -> Vec<String> {
    let (listen, admin) = (config.listen, config.admin_listen);
    if listen != admin || listen.port() == 0 {
        return Vec::new();
    }
    vec![format!("listen and admin.listen are both {listen}: use another port for one of them")]
}

fn filter(config: &Config) -> Vec<String> {
    let checked = logs::check(&config.telemetry.log.filter);
    checked.err().map(|error| format!("log.filter: {error}")).into_iter().collect()
}

fn tls(config: &Config) -> Vec<String> {
    let values = &config.values;
    let has_certificate = values.is_set(&settings::TLS_CERTIFICATE);
    let has_client_ca = values.is_set(&settings::TLS_CLIENT_CA);
    let mut problems = Vec::new();
    if has_certificate != values.is_set(&settings::TLS_KEY) {
        problems.push("tls.certificate and tls.key require each other: set both or neither".into());
    }
    if has_client_ca && !has_certificate {
        problems
            .push("tls.client_ca: requires tls.certificate and tls.key, because client certificates need TLS".into());
    }
    if values.get(&settings::TLS_CLIENT_CERTIFICATES) == ClientCertificates::Required && !has_client_ca {
        problems.push("tls.client_certificates: \"required\" requires tls.client_ca, which verifies them".into());
    }
    problems
}

fn identity(config: &Config) -> Vec<String> {
    let values = &config.values;
    let mut problems = Vec::new();
    if values.is_set(&settings::IDENTITY_ISSUER) != values.is_set(&settings::IDENTITY_JWKS) {
        problems.push("identity.jwks and identity.issuer require each other: set both or neither".into());
    }
    if !config.identity.certificates.is_empty() && !values.is_set(&settings::TLS_CLIENT_CA) {
        problems.push("identity.certificates: requires tls.client_ca, which verifies client certificates".into());
    }
    problems
}

fn headers(config: &Config) -> Vec<String> {
    let headers = config.values.find(&settings::OTLP_HEADERS).unwrap_or_default();
    let is_pair = |pair: &str| pair.split_once('=').is_some_and(|(name, _)| !name.trim().is_empty());
    // The message omits the value because it is a secret.
    let problem = || "otlp.headers: must be NAME=VALUE pairs separated by commas".to_owned();
    let is_invalid = !headers.is_empty() && !headers.split(',').all(is_pair);
    is_invalid.then(problem).into_iter().collect()
}
