//! Configuration: one table of settings ([`settings`]) is read from a TOML file, the environment and flags
//! ([`layers`]), validated as a whole, and reloaded while the service runs ([`reload`]).

mod contradictions;
mod environment;
mod kind;
mod layers;
mod live;
mod print;
mod reload;
mod settings;

pub use kind::Kind;
pub use layers::{Layers, Values};
pub use live::LiveRollout;
pub use print::{documented, effective};
pub use reload::{Changed, Reload, follow};
pub use settings::{SECTIONS, SETTINGS, Setting};

use crate::grpc::stream_limit::StreamSettings;
use crate::identity::{Algorithm, CertificateIdentity, IdentitySettings, Role};
use crate::middleware::AdmissionSettings;
use crate::store::embedded::EmbeddedSettings;
use crate::sync::{Rollout, RolloutField};
use crate::telemetry::{AccessLogMode, LogFormat, LogSettings, OtlpSettings, TelemetrySettings};
use crate::transport::{TlsSettings, TransportSettings};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Table;

const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Why the settings are invalid, and how to fix them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}\nGive the path of a readable TOML file.")]
    Unreadable(#[from] crate::file_watch::Unreadable),
    #[error("the settings {} are no TOML:\n{problem}\nCorrect it there and try again.", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error(
        "the settings cannot hold:\n{}\nCorrect them all; `slotcast config --documented` shows what there is.",
        listed(problems)
    )]
    Invalid { problems: Vec<String> },
}

/// The effective configuration of a service.
#[derive(Debug, Clone)]
pub struct Config {
    /// The effective values with their sources.
    pub values: Values,
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub data: PathBuf,
    pub catalog: Option<PathBuf>,
    pub store: EmbeddedSettings,
    pub streams: StreamSettings,
    pub admission: AdmissionSettings,
    pub transport: TransportSettings,
    pub identity: IdentitySettings,
    pub telemetry: TelemetrySettings,
    pub drain_limit: Duration,
    pub drain_delay: Duration,
    pub rollout: Rollout,
}

impl Config {
    /// Reads the configuration with a settings file, given as its path and text. The error lists every problem.
    pub fn read(layers: &Layers, file: Option<(&Path, &str)>) -> Result<Self, ConfigError> {
        let table = match file {
            None => Table::new(),
            Some((path, text)) => text.parse().map_err(|error: toml::de::Error| ConfigError::Malformed {
                path: path.to_owned(),
                problem: error.to_string().trim_end().to_owned(),
            })?,
        };
        let (values, mut problems) = layers.values(&table);
        let config = Self::of(values);
        problems.extend(contradictions::of(&config));
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
    }

    /// Returns whether the service can authenticate callers.
    pub fn verifies_callers(&self) -> bool {
        self.identity.jwks.is_some() || !self.identity.certificates.is_empty()
    }

    /// `SETTINGS` and `Kind::check` ensure that every setting with a default has a value of its kind within its bounds.
    fn of(values: Values) -> Self {
        let fields = RolloutField::ALL.map(|field| (field, values.size(&format!("sync.{}", field.name()))));
        Self {
            listen: values.address("listen").unwrap_or(ANYWHERE),
            admin_listen: values.address("admin.listen").unwrap_or(ANYWHERE),
            data: values.path("data").unwrap_or_default(),
            catalog: values.path("catalog"),
            store: EmbeddedSettings {
                bytes_max: values.number("store.bytes_max"),
                keys_max: values.size("store.keys_max"),
                key_window: values.seconds("store.key_window_s"),
                round_after: values.milliseconds("store.fold_after_ms"),
                wal_bytes_soft: values.size("store.wal_bytes"),
                ..EmbeddedSettings::default()
            },
            streams: StreamSettings {
                per_player_max: values.size("limits.streams_per_player"),
                per_caller_max: values.size("limits.streams_per_caller"),
            },
            admission: AdmissionSettings {
                per_second: values.size("limits.requests_per_second"),
                burst: values.size("limits.requests_burst"),
            },
            transport: transport(&values),
            identity: identity(&values),
            telemetry: telemetry(&values),
            drain_limit: values.milliseconds("drain.limit_ms"),
            drain_delay: values.milliseconds("drain.delay_ms"),
            rollout: Rollout::default().with(fields).unwrap_or_default(),
            values,
        }
    }
}

fn transport(values: &Values) -> TransportSettings {
    let files = values.path("tls.certificate").zip(values.path("tls.key"));
    let tls = files.map(|(certificate, key)| TlsSettings {
        certificate,
        key,
        client_ca: values.path("tls.client_ca"),
        client_certificate_required: values.text("tls.client_certificates") == Some("required"),
    });
    TransportSettings {
        tls,
        handshake_timeout: values.milliseconds("limits.handshake_timeout_ms"),
        preface_timeout: values.milliseconds("limits.preface_timeout_ms"),
        keepalive_interval: values.milliseconds("limits.keepalive_interval_ms"),
        keepalive_timeout: values.milliseconds("limits.keepalive_timeout_ms"),
        streams_per_connection_max: values.size("limits.streams_per_connection"),
        header_bytes_max: values.size("limits.header_bytes"),
        message_bytes_max: values.size("limits.message_bytes"),
        connections_max: values.size("limits.connections"),
        connections_per_address_max: values.size("limits.connections_per_address"),
        connection_age: Some(values.seconds("limits.connection_age_s")).filter(|age| !age.is_zero()),
        connection_age_grace: values.seconds("limits.connection_age_grace_s"),
    }
}

fn identity(values: &Values) -> IdentitySettings {
    let text = |key: &str| values.text(key).unwrap_or_default().to_owned();
    let certificate = |table: &Table| {
        let text = |name: &str| table.get(name)?.as_str().map(str::to_owned);
        // `contradictions` reports unknown roles.
        Some(CertificateIdentity { san: text("san")?, role: Role::named(&text("role")?)?, name: text("name")? })
    };
    IdentitySettings {
        jwks: values.path("identity.jwks"),
        issuer: text("identity.issuer"),
        audience: text("identity.audience"),
        algorithms: values.words("identity.algorithms").filter_map(Algorithm::named).collect(),
        leeway: values.seconds("identity.leeway_s"),
        certificates: values.tables("identity.certificates").filter_map(certificate).collect(),
    }
}

fn telemetry(values: &Values) -> TelemetrySettings {
    let header = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    let headers = || values.text("otlp.headers").unwrap_or_default().split(',').filter_map(header).collect();
    let otlp = values.text("otlp.endpoint").map(|endpoint| OtlpSettings {
        endpoint: endpoint.to_owned(),
        ca: values.path("otlp.ca"),
        headers: headers(),
        interval: values.milliseconds("otlp.interval_ms"),
        trace_percent: values.size("otlp.trace_percent"),
    });
    let format = if values.text("log.format") == Some("json") { LogFormat::Json } else { LogFormat::Pretty };
    let filter = values.text("log.filter").unwrap_or_default().to_owned();
    let access = values.text("log.access").and_then(AccessLogMode::named).unwrap_or_default();
    TelemetrySettings { log: LogSettings { format, filter, access }, otlp, ..TelemetrySettings::default() }
}

fn listed(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("  - {problem}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::read(&Layers::default(), Some((Path::new("FILE"), text))).map_err(|error| error.to_string())
    }

    #[test]
    fn without_a_word_the_defaults_of_the_code_hold() {
        let config = read("").unwrap();
        assert_eq!(config.rollout, Rollout::default());
        assert_eq!(config.streams, StreamSettings::default());
        assert_eq!(config.admission, AdmissionSettings::default());
        let store = EmbeddedSettings::default();
        assert_eq!((config.store.keys_max, config.store.key_window), (store.keys_max, store.key_window));
        assert_eq!((config.store.round_after, config.store.wal_bytes_soft), (store.round_after, store.wal_bytes_soft));
        assert_eq!(config.drain_limit, Duration::from_secs(10));
    }

    #[test]
    fn what_a_file_names_is_set() {
        let rollout = read("[sync]\ndelta_percent = 25\nnews_ms = 250\n").unwrap().rollout;
        let values = RolloutField::ALL.map(|field| field.read(&rollout));
        assert_eq!(values, [25, 100, 100, 0, 250, 1_000, 10, 10, 10, 15_000]);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let told = read(
            "news_ms = 1\nlisten = '0.0.0.0:1'\nlimits = 3\n[sync]\ndelta = 1\nnews_ms = 'slow'\nshadow_percent = 101\n\
             echo_ms = -1\n[sink]\n",
        );
        insta::assert_snapshot!(told.unwrap_err());
    }

    #[test]
    fn what_contradicts_itself_or_lets_everybody_in_is_refused_with_the_way_out() {
        let told = read(
            "listen = '[::]:7400'\n[tls]\ncertificate = 'a'\nclient_certificates = 'required'\n[identity]\nissuer = 'b'\n\
             [otlp]\nheaders = 'secret'\n[[identity.certificates]]\nsan = 'c'\nrole = 'king'\nname = 'd'\n",
        );
        insta::assert_snapshot!(told.unwrap_err());
        let both = "without_authentication = true\n[identity]\njwks = 'a'\nissuer = 'b'\n";
        assert!(read(both).unwrap_err().contains("contradict each other"));
        assert!(read("listen = '0.0.0.0:1'\nwithout_authentication = true\nwithout_tls = true\n").is_ok());
        assert!(read("listen = '0.0.0.0:1'\nwithout_authentication = true\n").unwrap_err().contains("in plaintext"));
    }

    #[test]
    fn every_part_gets_what_is_said_of_it() {
        let config = read(
            "[tls]\ncertificate = 'c'\nkey = 'k'\nclient_ca = 'a'\nclient_certificates = 'required'\n\
             [limits]\nconnection_age_s = 60\nheader_bytes = 5000\n[drain]\ndelay_ms = 3\n\
             [identity]\njwks = 'j'\nissuer = 'i'\nalgorithms = ['ES256']\nleeway_s = 0\n\
             [[identity.certificates]]\nsan = 's'\nrole = 'admin'\nname = 'n'\n\
             [otlp]\nendpoint = 'e'\nheaders = 'a=b=c, d=e'\n[log]\nformat = 'json'\n",
        );
        let Config { transport, identity, telemetry, drain_delay, .. } = config.unwrap();
        assert_eq!((transport.connection_age, transport.header_bytes_max), (Some(Duration::from_secs(60)), 5_000));
        let tls = transport.tls.unwrap();
        assert_eq!(
            (tls.certificate, tls.client_ca, tls.client_certificate_required),
            ("c".into(), Some("a".into()), true)
        );
        assert_eq!(
            (identity.algorithms, identity.leeway, drain_delay.as_millis()),
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
    fn what_is_no_toml_is_told_with_its_place() {
        let told = read("[sync\n").unwrap_err();
        assert!(told.contains("line 1"), "{told}");
    }
}
