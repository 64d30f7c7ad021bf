//! The table of all settings. The settings file, the environment variables, the flags, their help and the output of
//! `slotcast config` are derived from it.

use super::kind::{Column, ValueKind};
use super::setting::{
    Declaration, OptionalSetting, Setting, address, boolean, days, days_value, http_url, milliseconds,
    milliseconds_value, number, number_value, path, seconds, seconds_value, secret, text,
};
use crate::grpc::stream_limit::StreamSettings;
use crate::identity::{Algorithm, CertificateIdentity, IdentitySettings, Role};
use crate::middleware::AdmissionSettings;
use crate::store::embedded::EmbeddedSettings;
use crate::sync::RolloutField;
use crate::telemetry::{AccessLogMode, LogFormat, LogSettings, OtlpSettings};
use crate::transport::{DrainSettings, TransportSettings};
use crate::web::Origin;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};

/// The sections in the order of the file, each with its description.
pub const SECTIONS: [(&str, &str); 11] = [
    ("admin", "Health checks for probes and /metrics, in plaintext."),
    ("tls", "TLS and client certificates. The files are reloaded when they change."),
    ("web", "Web pages that call the server directly, over Connect or gRPC-Web."),
    ("identity", IDENTITY),
    ("store", "The store on disk."),
    ("history", "How much of the log of changes the store keeps."),
    ("limits", "Limits per player, caller and connection."),
    ("drain", "The shutdown after SIGTERM."),
    ("log", "The log on standard error."),
    ("otlp", "Export of traces, metrics and logs to an OpenTelemetry collector."),
    ("sync", SYNC),
];
const IDENTITY: &str = "\
Authentication of callers. If a call has a token, the token identifies the caller; otherwise its client certificate does,
if [[identity.certificates]] has an entry for one of its names: san (a DNS name or a URI), role (player, service or
admin) and name. All other calls fail.";
const SYNC: &str = "\
How streams are synced. AdminService and `slotcast rollout` can override these settings until the next reload of the
file or a restart.
A stable hash of the player's name determines which players a percentage includes, so raising it only adds players. With
delta_percent, debounce_percent and prediction_percent at 0, every change is sent immediately with all slots.";

/// Declares every setting once, as a typed static, and lists them in the order of the file.
macro_rules! settings {
    ($($name:ident: $type:ty = $setting:expr;)+) => {
        $(pub static $name: $type = $setting;)+

        static DECLARED: &[&Declaration] = &[$(&$name.declaration),+];

        /// For each setting, whether the conversion to its type accepts a value.
        #[cfg(test)]
        static CONVERSIONS: &[fn(&Value) -> bool] = &[$(|value| ($name.convert)(value).is_some()),+];
    };
}

const COUNT: (u64, u64) = (1, 1_000_000);
const COUNT_OR_UNLIMITED: (u64, u64) = (0, 1_000_000);
const TIMEOUT_MS: (u64, u64) = (100, 3_600_000);

settings! {
    LISTEN: Setting<SocketAddr> =
        address("", "listen", "Address to serve on; port 0 selects a free port.").default(|| "127.0.0.1:7400".into());
    DATA: Setting<PathBuf> =
        path("", "data", "Directory of the store; created if it does not exist.").default(|| "slotcast-data".into());
    CATALOG: OptionalSetting<PathBuf> =
        path("", "catalog", "TOML file with items, recipes and layouts. Default: the built-in catalog.");
    THREADS: Setting<usize> = number(
        "",
        "threads",
        (0, 1_024),
        "Number of threads that serve connections; 0 means one for each CPU core that the process may use.",
    )
    .default(|| number_value(0));
    WITHOUT_AUTHENTICATION: Setting<bool> = boolean(
        "",
        "without_authentication",
        "Allow a non-loopback `listen` address without authentication: anyone who can reach the port has full access.",
    )
    .default(|| false.into());
    WITHOUT_TLS: Setting<bool> = boolean(
        "",
        "without_tls",
        "Allow a non-loopback `listen` address without TLS: anyone on the network path can read and change all traffic, \
         including tokens.",
    )
    .default(|| false.into());

    ADMIN_LISTEN: Setting<SocketAddr> =
        address(
            "admin",
            "listen",
            "Plaintext HTTP listener for health probes and /metrics. AdminService is served on `listen`, not here; \
             port 0 selects a free port.",
        )
            .default(|| "127.0.0.1:7401".into());

    TLS_CERTIFICATE: OptionalSetting<PathBuf> = path(
        "tls",
        "certificate",
        "PEM file with the server's certificate and its intermediate certificates. Without it, the server uses \
         plaintext.",
    );
    TLS_KEY: OptionalSetting<PathBuf> = path("tls", "key", "PEM file with the private key of the certificate.");
    TLS_CLIENT_CA: OptionalSetting<PathBuf> = path(
        "tls",
        "client_ca",
        "PEM file with the root certificates that verify client certificates. Without it, the server \
         does not request client certificates.",
    );
    TLS_CLIENT_CERTIFICATES: Setting<ClientCertificates> = OptionalSetting::new(
        "tls",
        "client_certificates",
        ValueKind::Choice(&["optional", "required"]),
        |value| ClientCertificates::from_name(value.as_str()?),
        "Whether a client certificate is optional or required; requires client_ca.",
    )
    .default(|| "optional".into());

    WEB_ORIGINS: Setting<Vec<Origin>> = OptionalSetting::new(
        "web",
        "origins",
        ValueKind::Origins,
        |value| value.as_array()?.iter().map(|origin| origin.as_str()?.parse().ok()).collect(),
        "Origins of web pages that may call the server. All others are refused; by default the list is empty.",
    )
    .default(|| Value::Array(Vec::new()));

    IDENTITY_JWKS: OptionalSetting<PathBuf> = path(
        "identity",
        "jwks",
        "JSON Web Key Set file with the public keys of tokens; reloaded when it changes.",
    );
    IDENTITY_ISSUER: OptionalSetting<String> = text("identity", "issuer", "Required `iss` of tokens.");
    IDENTITY_AUDIENCE: Setting<String> =
        text("identity", "audience", "Required `aud` of tokens, alone or among others.")
            .default(|| IdentitySettings::default().audience.into());
    IDENTITY_ALGORITHMS: Setting<Vec<Algorithm>> = OptionalSetting::new(
        "identity",
        "algorithms",
        ValueKind::Choices(&Algorithm::NAMES),
        to_algorithms,
        "Accepted signature algorithms of tokens.",
    )
    .default(|| {
        let algorithms = IdentitySettings::default().algorithms;
        Value::Array(algorithms.iter().map(|algorithm| algorithm.to_string().into()).collect())
    });
    IDENTITY_LEEWAY_S: Setting<Duration> =
        seconds("identity", "leeway_s", (0, 4), "Accepted difference between clocks, in seconds.")
            .default(|| seconds_value(IdentitySettings::default().leeway));
    IDENTITY_CERTIFICATES: OptionalSetting<Vec<CertificateIdentity>> = OptionalSetting::new(
        "identity",
        "certificates",
        ValueKind::Tables(&[
            Column { name: "san", values: &[] },
            Column { name: "role", values: &["player", "service", "admin"] },
            Column { name: "name", values: &[] },
        ]),
        |value| value.as_array()?.iter().map(|table| to_certificate_identity(table.as_table()?)).collect(),
        "Client certificates and the callers that they identify.",
    );

    STORE_BYTES_MAX: OptionalSetting<u64> = number(
        "store",
        "bytes_max",
        (1 << 20, 1 << 50),
        "Maximum size of the store file, in bytes. Maintenance may exceed it by up to 64 MiB, to make room. Default: limited \
         by the disk only.",
    );
    STORE_KEY_WINDOW_S: Setting<Duration> =
        seconds("store", "key_window_s", (1, 604_800), "How long idempotency keys are remembered, in seconds.")
            .default(|| seconds_value(EmbeddedSettings::default().key_window));
    STORE_KEYS_MAX: Setting<usize> = number(
        "store",
        "keys_max",
        (1, 100_000_000),
        "Maximum number of remembered idempotency keys; above it, the oldest are forgotten earlier.",
    )
    .default(|| number_value(EmbeddedSettings::default().keys_max));
    STORE_FOLD_AFTER_MS: Setting<Duration> = milliseconds(
        "store",
        "fold_after_ms",
        (10, 600_000),
        "Age at which a committed change is folded into the table, in milliseconds.",
    )
    .default(|| milliseconds_value(EmbeddedSettings::default().fold_after));
    STORE_WAL_BYTES: Setting<u64> = number(
        "store",
        "wal_bytes",
        (1 << 16, 1 << 34),
        "Size of the write-ahead log that triggers a SQLite checkpoint, in bytes.",
    )
    .default(|| number_value(EmbeddedSettings::default().wal_checkpoint_bytes));

    HISTORY_AGE_DAYS: Setting<Duration> = days(
        "history",
        "age_days",
        (1, 3_650),
        "How long changes are kept, in days. Older ones are deleted, about a MiB of the log at a time.",
    )
    .default(|| days_value(EmbeddedSettings::default().history_age));
    HISTORY_BYTES_MAX: OptionalSetting<u64> = number(
        "history",
        "bytes_max",
        (1 << 20, 1 << 50),
        "Maximum size of the changes in compressed form, in bytes; above it, the oldest are deleted earlier. Default: half \
         of store.bytes_max; without that, only the age limits it.",
    );

    LIMITS_STREAMS_PER_PLAYER: Setting<u32> =
        number("limits", "streams_per_player", COUNT, "Maximum number of open streams per player.")
            .default(|| number_value(StreamSettings::default().per_player_max));
    LIMITS_STREAMS_PER_CALLER: Setting<u32> = number(
        "limits",
        "streams_per_caller",
        COUNT,
        "Maximum number of open streams per caller, of streams that do not name a player.",
    )
    .default(|| number_value(StreamSettings::default().per_caller_max));
    LIMITS_REQUESTS_PER_SECOND: Setting<u32> = number(
        "limits",
        "requests_per_second",
        COUNT_OR_UNLIMITED,
        "Maximum sustained rate of requests per caller, per second; 0 disables the limit.",
    )
    .default(|| number_value(AdmissionSettings::default().per_second));
    LIMITS_REQUESTS_BURST: Setting<u32> =
        number("limits", "requests_burst", COUNT, "Maximum number of requests that an idle caller may send at once.")
            .default(|| number_value(AdmissionSettings::default().burst));
    LIMITS_CONNECTIONS: Setting<u32> =
        number("limits", "connections", COUNT_OR_UNLIMITED, "Maximum number of connections; 0 disables the limit.")
            .default(|| number_value(TransportSettings::default().connections_max));
    LIMITS_CONNECTIONS_PER_ADDRESS: Setting<u32> = number(
        "limits",
        "connections_per_address",
        COUNT_OR_UNLIMITED,
        "Maximum number of connections per client address; 0 disables the limit. Use 0 behind a proxy.",
    )
    .default(|| number_value(TransportSettings::default().connections_per_address_max));
    LIMITS_STREAMS_PER_CONNECTION: Setting<u32> = number(
        "limits",
        "streams_per_connection",
        COUNT,
        "Maximum number of concurrent HTTP/2 streams (calls and subscriptions) on one connection; further calls wait at \
         the client.",
    )
    .default(|| number_value(TransportSettings::default().streams_per_connection_max));
    LIMITS_HEADER_BYTES: Setting<u32> =
        number("limits", "header_bytes", (4_096, 1 << 20), "Maximum size of a request's metadata, in bytes.")
            .default(|| number_value(TransportSettings::default().header_bytes_max));
    LIMITS_MESSAGE_BYTES: Setting<usize> =
        number("limits", "message_bytes", (65_536, 1 << 26), "Maximum size of a request message, in bytes.")
            .default(|| number_value(TransportSettings::default().message_bytes_max));
    LIMITS_HANDSHAKE_TIMEOUT_MS: Setting<Duration> = milliseconds(
        "limits",
        "handshake_timeout_ms",
        TIMEOUT_MS,
        "Maximum duration of a TLS handshake, in milliseconds.",
    )
    .default(|| milliseconds_value(TransportSettings::default().handshake_timeout));
    LIMITS_PREFACE_TIMEOUT_MS: Setting<Duration> = milliseconds(
        "limits",
        "preface_timeout_ms",
        TIMEOUT_MS,
        "Maximum time until a connection has sent its HTTP/2 preface, or the head of its first HTTP/1.1 request, in \
         milliseconds.",
    )
    .default(|| milliseconds_value(TransportSettings::default().preface_timeout));
    LIMITS_KEEPALIVE_INTERVAL_MS: Setting<Duration> = milliseconds(
        "limits",
        "keepalive_interval_ms",
        TIMEOUT_MS,
        "Interval between keepalive pings on an idle connection, in milliseconds.",
    )
    .default(|| milliseconds_value(TransportSettings::default().keepalive_interval));
    LIMITS_KEEPALIVE_TIMEOUT_MS: Setting<Duration> = milliseconds(
        "limits",
        "keepalive_timeout_ms",
        TIMEOUT_MS,
        "Maximum time for the reply to a keepalive ping, in milliseconds; then the connection is closed.",
    )
    .default(|| milliseconds_value(TransportSettings::default().keepalive_timeout));
    LIMITS_CONNECTION_AGE_S: Setting<Duration> = seconds(
        "limits",
        "connection_age_s",
        (0, 604_800),
        "Maximum age of a connection, with ±10 % jitter, in seconds. The server then sends GOAWAY, so that clients \
         reconnect and load spreads; 0 disables the limit.",
    )
    .default(|| seconds_value(TransportSettings::default().connection_age.unwrap_or_default()));
    LIMITS_CONNECTION_AGE_GRACE_S: Setting<Duration> = seconds(
        "limits",
        "connection_age_grace_s",
        (1, 3_600),
        "Grace period over which the streams of a connection at its maximum age end, in seconds.",
    )
    .default(|| seconds_value(TransportSettings::default().connection_age_grace));

    DRAIN_DELAY_MS: Setting<Duration> = milliseconds(
        "drain",
        "delay_ms",
        (0, 600_000),
        "How long to keep serving after SIGTERM while health checks already report NOT_SERVING, in milliseconds.",
    )
    .default(|| milliseconds_value(DrainSettings::default().delay));
    DRAIN_LIMIT_MS: Setting<Duration> = milliseconds(
        "drain",
        "limit_ms",
        (0, 3_600_000),
        "Maximum time for calls to end after the delay, in milliseconds; calls that are still open \
         are then aborted.",
    )
    .default(|| milliseconds_value(DrainSettings::default().timeout));

    LOG_FORMAT: Setting<LogFormat> = OptionalSetting::new(
        "log",
        "format",
        ValueKind::Choice(&["pretty", "json"]),
        |value| log_format(value.as_str()?),
        "Format of log lines: for people, or one JSON object per line.",
    )
    .default(|| "pretty".into());
    LOG_FILTER: Setting<String> =
        text("log", "filter", "Log levels by module, such as info,slotcast::engine=debug.")
            .fallback_variable("SLOTCAST_LOG")
            .reloadable()
            .default(|| LogSettings::default().filter.into());
    LOG_ACCESS: Setting<AccessLogMode> = OptionalSetting::new(
        "log",
        "access",
        ValueKind::Choice(&AccessLogMode::NAMES),
        |value| AccessLogMode::from_name(value.as_str()?),
        "Calls to log: off, errors (rate-limited), or all.",
    )
    .default(|| "errors".into());

    OTLP_ENDPOINT: OptionalSetting<String> = http_url(
        "otlp",
        "endpoint",
        "URL of the collector's gRPC receiver. Without it, nothing is exported.",
    )
    .fallback_variable("OTEL_EXPORTER_OTLP_ENDPOINT");
    OTLP_CA: OptionalSetting<PathBuf> = path(
        "otlp",
        "ca",
        "PEM file with root certificates for an https endpoint, in addition to the public CAs.",
    );
    OTLP_HEADERS: OptionalSetting<String> =
        secret("otlp", "headers", "Headers of each export, such as authorization=Bearer abc,tenant=1.")
            .fallback_variable("OTEL_EXPORTER_OTLP_HEADERS");
    OTLP_INTERVAL_MS: Setting<Duration> =
        milliseconds("otlp", "interval_ms", TIMEOUT_MS, "Interval between exports of metrics, in milliseconds.")
            .default(|| milliseconds_value(OtlpSettings::default().metrics_interval));
    OTLP_TRACE_PERCENT: Setting<u8> = number(
        "otlp",
        "trace_percent",
        (0, 100),
        "Sampling rate in percent for calls without a trace context; otherwise the caller's sampled flag decides.",
    )
    .default(|| number_value(OtlpSettings::default().trace_percent));
}

/// The section `sync`: one setting for each field of the rollout, in the order of [`RolloutField::ALL`].
pub static SYNC_SETTINGS: [Setting<u64>; RolloutField::ALL.len()] = {
    let mut settings = [sync_setting(RolloutField::ALL[0]); RolloutField::ALL.len()];
    let mut index = 1;
    while index < settings.len() {
        settings[index] = sync_setting(RolloutField::ALL[index]);
        index += 1;
    }
    settings
};

const fn sync_setting(field: RolloutField) -> Setting<u64> {
    let bounds = field.bounds();
    let bounds = (*bounds.start(), *bounds.end());
    number("sync", field.name(), bounds, field.help()).reloadable().default_number(field.default_value())
}

/// Returns the declarations of all settings, in the order of the file.
pub fn declarations() -> impl Iterator<Item = &'static Declaration> {
    DECLARED.iter().copied().chain(SYNC_SETTINGS.iter().map(|setting| &setting.declaration))
}

/// Whether clients must present a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    Optional,
    Required,
}

impl ClientCertificates {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "optional" => Some(Self::Optional),
            "required" => Some(Self::Required),
            _ => None,
        }
    }
}

fn log_format(name: &str) -> Option<LogFormat> {
    match name {
        "pretty" => Some(LogFormat::Pretty),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn to_algorithms(value: &Value) -> Option<Vec<Algorithm>> {
    value.as_array()?.iter().map(|name| Algorithm::from_name(name.as_str()?)).collect()
}

fn to_certificate_identity(table: &Table) -> Option<CertificateIdentity> {
    let text = |name: &str| table.get(name)?.as_str().map(str::to_owned);
    Some(CertificateIdentity { san: text("san")?, role: Role::from_name(&text("role")?)?, name: text("name")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns values that are valid for a kind: every choice, and both bounds of a number.
    fn valid_values(kind: ValueKind) -> Vec<Value> {
        match kind {
            ValueKind::Address => vec!["[::1]:80".into()],
            ValueKind::Path | ValueKind::Text | ValueKind::Secret => vec!["text".into()],
            ValueKind::HttpUrl => vec!["https://collector".into()],
            ValueKind::Bool => vec![true.into(), false.into()],
            ValueKind::Number { min, max } => vec![number_value(min), number_value(max)],
            ValueKind::Choice(words) => words.iter().map(|word| (*word).into()).collect(),
            ValueKind::Choices(words) => vec![Value::Array(words.iter().map(|word| (*word).into()).collect())],
            ValueKind::Origins => vec![Value::Array(Vec::new()), Value::Array(vec!["https://game.example".into()])],
            ValueKind::Tables(columns) => {
                let most = columns.iter().map(|column| column.values.len()).max().unwrap_or_default();
                let table = |at: usize| -> Value {
                    let word = |column: &Column| column.values.get(at % column.values.len().max(1)).copied();
                    let entry = |column: &Column| (column.name.to_owned(), word(column).unwrap_or("text").into());
                    Value::Table(columns.iter().map(entry).collect())
                };
                vec![Value::Array((0..most.max(1)).map(table).collect())]
            }
        }
    }

    #[test]
    fn every_value_that_a_kind_accepts_converts_to_the_type_of_the_setting() {
        for (declaration, converts) in DECLARED.iter().zip(CONVERSIONS) {
            for value in valid_values(declaration.kind) {
                assert_eq!(declaration.kind.check(&value), Ok(()), "{}", declaration.key());
                assert!(converts(&value), "{}: {value}", declaration.key());
            }
        }
        assert_eq!(DECLARED.len(), CONVERSIONS.len());
    }

    #[test]
    fn every_default_is_valid() {
        for declaration in declarations() {
            let default = declaration.default_value();
            assert_eq!(default.map_or(Ok(()), |value| declaration.kind.check(&value)), Ok(()), "{}", declaration.key());
        }
    }

    #[test]
    fn keys_are_unique_and_every_section_is_described() {
        let mut keys: Vec<_> = declarations().map(Declaration::key).collect();
        keys.sort_unstable();
        let total = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), total);
        let is_described = |section: &str| SECTIONS.iter().any(|(name, _)| *name == section);
        let undescribed =
            declarations().filter(|setting| !setting.section.is_empty() && !is_described(setting.section));
        assert_eq!(undescribed.count(), 0);
    }

    #[test]
    fn the_sync_section_has_every_field_of_the_rollout() {
        let names: Vec<_> = SYNC_SETTINGS.iter().map(|setting| setting.declaration.name).collect();
        assert_eq!(names, RolloutField::ALL.map(RolloutField::name));
    }
}
