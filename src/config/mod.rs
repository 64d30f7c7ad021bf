//! Configuration: one table of settings ([`settings`]) is read from a TOML file, the environment and flags
//! ([`sources`]), validated as a whole ([`validation`]), and reloaded while the server runs ([`reload`]).
//!
//! To add a setting, declare it in [`settings`] and read it with [`Values::get`] or [`Values::find`]; the flag, the
//! environment variable, the help and `slotcast config` follow from the declaration.

mod environment;
mod kind;
mod print;
mod reload;
mod setting;
pub mod settings;
mod sources;
mod validation;

pub use kind::ValueKind;
pub use print::{documented, effective};
pub use reload::{Reloaded, SettingsFile, watch_for_changes};
pub use setting::{Declaration, OptionalSetting, Setting};
pub use sources::{Overrides, ResolvedValue, Source, Values};

use crate::grpc::stream_limit::StreamSettings;
use crate::identity::IdentitySettings;
use crate::middleware::AdmissionSettings;
use crate::store::embedded::EmbeddedSettings;
use crate::sync::{Rollout, RolloutField};
use crate::telemetry::{LogSettings, OtlpSettings, TelemetrySettings};
use crate::transport::{DrainSettings, TlsSettings, TransportSettings};
use crate::web::Origins;
use settings::ClientCertificates;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Table;

/// Why the settings are invalid, and how to fix them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Unreadable(#[from] crate::file_watch::Unreadable),
    #[error("the settings file {} is not valid TOML:\n{problem}\nCorrect it and try again.", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("invalid settings:\n{}\nRun `slotcast config --documented` for a list of all settings.", lines(problems))]
    Invalid { problems: Vec<String> },
}

/// The effective configuration of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The effective values with their sources.
    pub values: Values,
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub data: PathBuf,
    pub catalog: Option<PathBuf>,
    /// Number of threads that serve connections; 0 means one for each CPU core that the process may use.
    pub threads: usize,
    pub store: EmbeddedSettings,
    pub streams: StreamSettings,
    pub admission: AdmissionSettings,
    pub transport: TransportSettings,
    /// The origins whose web pages may call the server.
    pub origins: Origins,
    pub identity: IdentitySettings,
    pub telemetry: TelemetrySettings,
    pub drain: DrainSettings,
    pub rollout: Rollout,
}

impl Config {
    /// Reads the configuration with a settings file, given as its path and text. The error lists every problem.
    pub fn read(overrides: &Overrides, file: Option<(&Path, &str)>) -> Result<Self, ConfigError> {
        let table = match file {
            None => Table::new(),
            Some((path, text)) => text.parse().map_err(|error: toml::de::Error| ConfigError::Malformed {
                path: path.to_owned(),
                problem: error.to_string().trim_end().to_owned(),
            })?,
        };
        let (values, mut problems) = overrides.resolve(&table);
        let config = Self::new(values);
        problems.extend(validation::problems(&config));
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
    }

    /// Returns whether the server can authenticate callers.
    pub fn has_authentication(&self) -> bool {
        self.identity.jwks.is_some() || !self.identity.certificates.is_empty()
    }

    fn new(values: Values) -> Self {
        Self {
            listen: values.get(&settings::LISTEN),
            admin_listen: values.get(&settings::ADMIN_LISTEN),
            data: values.get(&settings::DATA),
            catalog: values.find(&settings::CATALOG),
            threads: values.get(&settings::THREADS),
            store: EmbeddedSettings {
                bytes_max: values.find(&settings::STORE_BYTES_MAX),
                keys_max: values.get(&settings::STORE_KEYS_MAX),
                key_window: values.get(&settings::STORE_KEY_WINDOW_S),
                fold_after: values.get(&settings::STORE_FOLD_AFTER_MS),
                wal_checkpoint_bytes: values.get(&settings::STORE_WAL_BYTES),
                history_age: values.get(&settings::HISTORY_AGE_DAYS),
                segment_bytes: segment_bytes(values.find(&settings::STORE_BYTES_MAX)),
                // A full store refuses mutations, and does not delete history to make room.
                history_bytes_max: values
                    .find(&settings::HISTORY_BYTES_MAX)
                    .or_else(|| values.find(&settings::STORE_BYTES_MAX).map(|bytes_max| bytes_max / 2)),
                ..EmbeddedSettings::default()
            },
            streams: StreamSettings {
                per_player_max: values.get(&settings::LIMITS_STREAMS_PER_PLAYER),
                per_caller_max: values.get(&settings::LIMITS_STREAMS_PER_CALLER),
            },
            admission: AdmissionSettings {
                per_second: values.get(&settings::LIMITS_REQUESTS_PER_SECOND),
                burst: values.get(&settings::LIMITS_REQUESTS_BURST),
            },
            transport: transport(&values),
            origins: values.get(&settings::WEB_ORIGINS).into_iter().collect(),
            identity: identity(&values),
            telemetry: telemetry(&values),
            drain: DrainSettings {
                delay: values.get(&settings::DRAIN_DELAY_MS),
                timeout: values.get(&settings::DRAIN_LIMIT_MS),
            },
            rollout: rollout(&values),
            values,
        }
    }
}

fn transport(values: &Values) -> TransportSettings {
    let files = values.find(&settings::TLS_CERTIFICATE).zip(values.find(&settings::TLS_KEY));
    let client_certificates = values.get(&settings::TLS_CLIENT_CERTIFICATES);
    let tls = files.map(|(certificate, key)| TlsSettings {
        certificate,
        key,
        client_ca: values.find(&settings::TLS_CLIENT_CA),
        client_certificate_required: client_certificates == ClientCertificates::Required,
    });
    TransportSettings {
        tls,
        handshake_timeout: values.get(&settings::LIMITS_HANDSHAKE_TIMEOUT_MS),
        preface_timeout: values.get(&settings::LIMITS_PREFACE_TIMEOUT_MS),
        keepalive_interval: values.get(&settings::LIMITS_KEEPALIVE_INTERVAL_MS),
        keepalive_timeout: values.get(&settings::LIMITS_KEEPALIVE_TIMEOUT_MS),
        streams_per_connection_max: values.get(&settings::LIMITS_STREAMS_PER_CONNECTION),
        header_bytes_max: values.get(&settings::LIMITS_HEADER_BYTES),
        message_bytes_max: values.get(&settings::LIMITS_MESSAGE_BYTES),
        connections_max: values.get(&settings::LIMITS_CONNECTIONS),
        connections_per_address_max: values.get(&settings::LIMITS_CONNECTIONS_PER_ADDRESS),
        connection_age: Some(values.get(&settings::LIMITS_CONNECTION_AGE_S)).filter(|age| !age.is_zero()),
        connection_age_grace: values.get(&settings::LIMITS_CONNECTION_AGE_GRACE_S),
    }
}

fn identity(values: &Values) -> IdentitySettings {
    IdentitySettings {
        jwks: values.find(&settings::IDENTITY_JWKS),
        issuer: values.find(&settings::IDENTITY_ISSUER).unwrap_or_default(),
        audience: values.get(&settings::IDENTITY_AUDIENCE),
        algorithms: values.get(&settings::IDENTITY_ALGORITHMS),
        leeway: values.get(&settings::IDENTITY_LEEWAY_S),
        certificates: values.find(&settings::IDENTITY_CERTIFICATES).unwrap_or_default(),
    }
}

fn telemetry(values: &Values) -> TelemetrySettings {
    let header = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    let headers = values.find(&settings::OTLP_HEADERS).unwrap_or_default();
    let otlp = values.find(&settings::OTLP_ENDPOINT).map(|endpoint| OtlpSettings {
        endpoint,
        ca: values.find(&settings::OTLP_CA),
        headers: headers.split(',').filter_map(header).collect(),
        metrics_interval: values.get(&settings::OTLP_INTERVAL_MS),
        trace_percent: values.get(&settings::OTLP_TRACE_PERCENT),
    });
    let log = LogSettings {
        format: values.get(&settings::LOG_FORMAT),
        filter: values.get(&settings::LOG_FILTER),
        access: values.get(&settings::LOG_ACCESS),
    };
    TelemetrySettings { log, otlp, ..TelemetrySettings::default() }
}

fn rollout(values: &Values) -> Rollout {
    let fields = RolloutField::ALL.into_iter().zip(&settings::SYNC_SETTINGS);
    let fields = fields.map(|(field, setting)| (field, values.get(setting)));
    // The settings have the bounds of the fields.
    Rollout::default().with_values(fields).expect("the values of the settings are within bounds")
}

fn lines(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

/// Returns the size of the journal rows that become a segment of the log: less in a small store, which is full before it has
/// as many.
fn segment_bytes(store_bytes_max: Option<u64>) -> usize {
    let most = EmbeddedSettings::default().segment_bytes;
    store_bytes_max.and_then(|bytes_max| usize::try_from(bytes_max / 16).ok()).map_or(most, |bytes| bytes.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Algorithm, CertificateIdentity, Role};
    use crate::telemetry::LogFormat;
    use std::time::Duration;

    fn read(text: &str) -> Result<Config, String> {
        Config::read(&Overrides::default(), Some((Path::new("FILE"), text))).map_err(|error| error.to_string())
    }

    #[test]
    fn every_declared_setting_is_read() {
        let text = "
            [tls]
            certificate = 'server.pem'
            key = 'server.key'
            client_ca = 'ca.pem'
            [identity]
            jwks = 'jwks.json'
            issuer = 'login'
            audience = 'game'
            [otlp]
            endpoint = 'http://collector:4317'";
        read(text).unwrap();
        read("listen = '0.0.0.0:7400'\nwithout_tls = true\nwithout_authentication = true").unwrap();
        let unread: Vec<_> = sources::USED.with_borrow(|used| {
            settings::declarations().map(Declaration::key).filter(|key| !used.contains(key)).collect()
        });
        assert!(unread.is_empty(), "read these settings in Config::new: {unread:?}");
    }

    #[test]
    fn an_empty_file_gives_the_defaults_of_each_module() {
        let config = read("").unwrap();
        assert_eq!(config.rollout, Rollout::default());
        assert_eq!(config.streams, StreamSettings::default());
        assert_eq!(config.admission, AdmissionSettings::default());
        let store = EmbeddedSettings::default();
        assert_eq!((config.store.keys_max, config.store.key_window), (store.keys_max, store.key_window));
        assert_eq!(
            (config.store.fold_after, config.store.wal_checkpoint_bytes),
            (store.fold_after, store.wal_checkpoint_bytes)
        );
        assert_eq!(
            (config.store.history_age, config.store.history_bytes_max),
            (store.history_age, store.history_bytes_max)
        );
        assert_eq!(config.drain, DrainSettings::default());
        assert_eq!(config.telemetry.log, LogSettings::default());
    }

    #[test]
    fn the_file_sets_the_rollout() {
        let rollout = read("[sync]\ndelta_percent = 25\nnews_ms = 250\n").unwrap().rollout;
        let values = RolloutField::ALL.map(|field| field.read(&rollout));
        assert_eq!(values, [25, 100, 100, 0, 250, 1_000, 5, 10, 10, 15_000]);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let error = read(
            "news_ms = 1\nlisten = '0.0.0.0:1'\nlimits = 3\n[sync]\ndelta = 1\nnews_ms = 'slow'\nshadow_percent = 101\n\
             echo_ms = -1\n[sink]\n",
        );
        insta::assert_snapshot!(error.unwrap_err());
    }

    #[test]
    fn the_errors_for_contradictions_and_accidental_exposure_have_a_solution() {
        let error = read(
            "listen = '[::]:7400'\n[tls]\ncertificate = 'a'\nclient_certificates = 'required'\n[identity]\nissuer = 'b'\n\
             [otlp]\nheaders = 'secret'\n[[identity.certificates]]\nsan = 'c'\nrole = 'admin'\nname = 'd'\n",
        );
        insta::assert_snapshot!(error.unwrap_err());
        let both = "without_authentication = true\n[identity]\njwks = 'a'\nissuer = 'b'\n";
        assert!(read(both).unwrap_err().contains("mutually exclusive"));
        assert!(read("listen = '0.0.0.0:1'\nwithout_authentication = true\nwithout_tls = true\n").is_ok());
        assert!(read("listen = '0.0.0.0:1'\nwithout_authentication = true\n").unwrap_err().contains("without TLS"));
    }

    #[test]
    fn the_history_is_limited_by_days_and_by_bytes() {
        let store = read("[history]\nage_days = 2\nbytes_max = 4194304\n").unwrap().store;
        assert_eq!((store.history_age.as_secs(), store.history_bytes_max), (2 * 86_400, Some(4_194_304)));
        let limited = read("[store]\nbytes_max = 4194304\n").unwrap().store;
        assert_eq!(
            (limited.history_bytes_max, limited.segment_bytes),
            (Some(2_097_152), 262_144),
            "parts of the store"
        );
        let error = read("[store]\nbytes_max = 2097152\n[history]\nbytes_max = 2097152\n").unwrap_err();
        assert!(
            error.contains("history.bytes_max: must be less than store.bytes_max (2097152), got 2097152"),
            "{error}"
        );
        let error = read("[history]\nage_days = 0\n").unwrap_err();
        assert!(error.contains("history.age_days: must be 1 to 3650, got 0"), "{error}");
    }

    #[test]
    fn each_module_gets_its_settings() {
        let config = read(
            "[tls]\ncertificate = 'c'\nkey = 'k'\nclient_ca = 'a'\nclient_certificates = 'required'\n\
             [limits]\nconnection_age_s = 60\nheader_bytes = 5000\n[drain]\ndelay_ms = 3\n\
             [identity]\njwks = 'j'\nissuer = 'i'\nalgorithms = ['ES256']\nleeway_s = 0\n\
             [[identity.certificates]]\nsan = 's'\nrole = 'admin'\nname = 'n'\n\
             [otlp]\nendpoint = 'http://e'\nheaders = 'a=b=c, d=e'\n[log]\nformat = 'json'\n",
        );
        let Config { transport, identity, telemetry, drain, .. } = config.unwrap();
        assert_eq!((transport.connection_age, transport.header_bytes_max), (Some(Duration::from_secs(60)), 5_000));
        let tls = transport.tls.unwrap();
        assert_eq!(
            (tls.certificate, tls.client_ca, tls.client_certificate_required),
            ("c".into(), Some("a".into()), true)
        );
        assert_eq!(
            (identity.algorithms, identity.leeway, drain.delay.as_millis()),
            (vec![Algorithm::ES256], Duration::ZERO, 3)
        );
        assert_eq!(
            identity.certificates,
            [CertificateIdentity { san: "s".into(), role: Role::Admin, name: "n".into() }]
        );
        let otlp = telemetry.otlp.unwrap();
        assert_eq!(otlp.headers, [("a", "b=c"), ("d", "e")].map(|(a, b)| (a.to_owned(), b.to_owned())).into());
        assert_eq!(telemetry.log.format, LogFormat::Json);
        let plain = read("").unwrap();
        assert_eq!(plain.transport, TransportSettings::default());
        assert_eq!(plain.identity, IdentitySettings::default());
    }

    #[test]
    fn an_unknown_role_and_an_endpoint_without_http_are_invalid() {
        let error = read("[[identity.certificates]]\nsan = 'c'\nrole = 'king'\nname = 'd'\n").unwrap_err();
        let expected = "role must be one of player, service, admin, got \"king\" (table 1) (file)";
        assert!(error.contains(&format!("  identity.certificates: {expected}")), "{error}");
        let error = read("[otlp]\nendpoint = 'ftp://collector'\n").unwrap_err();
        let expected = "must be an http or https URL, such as http://collector:4317, got \"ftp://collector\" (file)";
        assert!(error.contains(&format!("  otlp.endpoint: {expected}")), "{error}");
    }

    #[test]
    fn the_error_for_invalid_toml_names_the_line() {
        let error = read("[sync\n").unwrap_err();
        assert!(error.contains("line 1"), "{error}");
    }
}
