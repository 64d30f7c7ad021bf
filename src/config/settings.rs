//! The table of all settings, from which the file, the environment, the flags and their help are derived.

use super::kind::Kind;
use crate::grpc::stream_limit::StreamSettings;
use crate::identity::{Algorithm, IdentitySettings};
use crate::middleware::AdmissionSettings;
use crate::server::ServerSettings;
use crate::store::embedded::EmbeddedSettings;
use crate::sync::{Rollout, RolloutField};
use crate::telemetry::{AccessLogMode, LogSettings, OtlpSettings};
use crate::transport::TransportSettings;
use std::sync::LazyLock;
use std::time::Duration;
use toml::Value;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Empty for settings before the first section of the file.
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// The value if no source sets one.
    pub default: Option<Value>,
    /// Whether a change applies without a restart.
    pub live: bool,
    /// Another environment variable for the setting, with lower precedence than its own.
    pub also: Option<&'static str>,
    /// The meaning of the setting, with its unit.
    pub what: &'static str,
}

/// The sections in the order of the file, each with its description.
pub const SECTIONS: [(&str, &str); 9] = [
    ("admin", "Health for probes and /metrics, in plaintext."),
    ("tls", "Encryption, and certificates of clients; the files are followed."),
    ("identity", IDENTITY),
    ("store", "The file on disk."),
    ("limits", "What callers and their connections may use."),
    ("drain", "How the service ends."),
    ("log", "Lines on standard error."),
    ("otlp", "Traces, metrics and logs to an OpenTelemetry collector."),
    ("sync", SYNC),
];
const IDENTITY: &str = "\
Who calls. A token decides if one is sent; else a client certificate, if its name stands in [[identity.certificates]] with
san (a DNS name or a URI), role (player, service or admin) and name. Whoever has neither gets nowhere.";
const SYNC: &str = "\
How streams are served; it may be changed by AdminService and `slotcast rollout` too, until the file is read again.
How many of a hundred players get each of the percentages: which ones is told by a hash of their names, so that raising
it only adds players. With the first three at 0, every change is sent at once with all slots, as the old game did it.";

pub static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(all);

impl Setting {
    /// Returns the key, for example `limits.streams_per_player`.
    pub fn key(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }

    /// Returns the environment variable, for example `SLOTCAST_LIMITS_STREAMS_PER_PLAYER`.
    pub fn environment(&self) -> String {
        format!("SLOTCAST_{}", self.key().replace('.', "_").to_uppercase())
    }

    /// Returns the flag without its dashes, for example `limits-streams-per-player`.
    pub fn flag(&self) -> String {
        self.key().replace(['.', '_'], "-")
    }

    const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    const fn also(mut self, variable: &'static str) -> Self {
        self.also = Some(variable);
        self
    }

    fn or(mut self, default: impl Into<Value>) -> Self {
        self.default = Some(default.into());
        self
    }

    fn or_number(self, default: u64) -> Self {
        self.or(i64::try_from(default).unwrap_or(i64::MAX))
    }
}

/// Creates an optional setting without a default.
const fn setting(section: &'static str, name: &'static str, kind: Kind, what: &'static str) -> Setting {
    Setting { section, name, kind, default: None, live: false, also: None, what }
}

fn all() -> Vec<Setting> {
    [general(), admin(), tls(), identity(), store(), limits(), connections(), drain(), log(), otlp(), sync()]
        .into_iter()
        .flatten()
        .collect()
}

fn general() -> Vec<Setting> {
    vec![
        setting("", "listen", Kind::Address, "The address to serve at; port 0 takes a free one.").or("127.0.0.1:7400"),
        setting("", "data", Kind::Path, "The folder of the store; it is made if it is not there.").or("slotcast-data"),
        setting("", "catalog", Kind::Path, "Items, recipes and layouts, as TOML; without, the built-in ones."),
        setting(
            "",
            "without_authentication",
            Kind::Flag,
            "Serve beyond loopback although callers are not verified: whoever reaches the port can do everything.",
        )
        .or(false),
        setting(
            "",
            "without_tls",
            Kind::Flag,
            "Serve beyond loopback in plaintext: whoever is on the way can read and change everything, tokens too.",
        )
        .or(false),
    ]
}

fn admin() -> Vec<Setting> {
    vec![
        setting("admin", "listen", Kind::Address, "The address for health and metrics; port 0 takes a free one.")
            .or("127.0.0.1:7401"),
    ]
}

fn tls() -> Vec<Setting> {
    vec![
        setting(
            "tls",
            "certificate",
            Kind::Path,
            "The certificate and what leads to its root, as PEM; without, plaintext.",
        ),
        setting("tls", "key", Kind::Path, "Its private key, as PEM."),
        setting(
            "tls",
            "client_ca",
            Kind::Path,
            "The roots of client certificates, as PEM; without, none is asked for.",
        ),
        setting(
            "tls",
            "client_certificates",
            Kind::Choice(&["optional", "required"]),
            "Whether a connection needs one, where there are roots.",
        )
        .or("optional"),
    ]
}

fn identity() -> Vec<Setting> {
    let IdentitySettings { audience, algorithms, leeway, .. } = IdentitySettings::default();
    let algorithms: Vec<Value> = algorithms.iter().map(|algorithm| Value::from(algorithm.to_string())).collect();
    vec![
        setting("identity", "jwks", Kind::Path, "The public keys of tokens, as a JSON Web Key Set; followed."),
        setting("identity", "issuer", Kind::Text, "What a token's `iss` must be."),
        setting("identity", "audience", Kind::Text, "What a token's `aud` must hold.").or(audience),
        setting("identity", "algorithms", Kind::Choices(&Algorithm::NAMES), "With what tokens may be signed.")
            .or(algorithms),
        setting("identity", "leeway_s", Kind::Number(0..=4), "How far clocks may be apart.")
            .or_number(leeway.as_secs()),
        setting(
            "identity",
            "certificates",
            Kind::Tables(&["san", "role", "name"]),
            "Client certificates, and who they are.",
        ),
    ]
}

fn store() -> Vec<Setting> {
    let EmbeddedSettings { key_window, keys_max, round_after, wal_bytes_soft, .. } = EmbeddedSettings::default();
    vec![
        setting(
            "store",
            "bytes_max",
            Kind::Number(1 << 20..=1 << 50),
            "The most bytes that it may take; without, what the disk has.",
        ),
        setting("store", "key_window_s", Kind::Number(1..=604_800), "For how long idempotency keys are remembered.")
            .or_number(key_window.as_secs()),
        setting(
            "store",
            "keys_max",
            Kind::Number(1..=100_000_000),
            "How many are remembered; beyond, the oldest are forgotten earlier.",
        )
        .or_number(keys_max as u64),
        setting(
            "store",
            "fold_after_ms",
            Kind::Number(10..=600_000),
            "The age at which a committed change is folded into the table, in milliseconds.",
        )
        .or_number(round_after.as_millis() as u64),
        setting(
            "store",
            "wal_bytes",
            Kind::Number(1 << 16..=1 << 34),
            "The size at which the write-ahead log is copied into the database file, in bytes.",
        )
        .or_number(wal_bytes_soft),
    ]
}

fn limits() -> Vec<Setting> {
    let StreamSettings { per_player_max, per_caller_max } = StreamSettings::default();
    let AdmissionSettings { per_second, burst } = AdmissionSettings::default();
    let many = 1..=1_000_000;
    vec![
        setting("limits", "streams_per_player", Kind::Number(many.clone()), "Streams that may be open for one player.")
            .or_number(per_player_max.into()),
        setting(
            "limits",
            "streams_per_caller",
            Kind::Number(many.clone()),
            "Streams that one caller may have open without naming a player.",
        )
        .or_number(per_caller_max.into()),
        setting(
            "limits",
            "requests_per_second",
            Kind::Number(0..=1_000_000),
            "Requests that one caller may send in a second, in the long run; 0 is no limit.",
        )
        .or_number(per_second.into()),
        setting(
            "limits",
            "requests_burst",
            Kind::Number(many),
            "Requests that one caller may send at once, after a rest.",
        )
        .or_number(burst.into()),
    ]
}

fn connections() -> Vec<Setting> {
    let default = TransportSettings::default();
    let ms = |time: Duration| time.as_millis() as u64;
    let long = 100..=3_600_000;
    let setting = |name, kind, what| setting("limits", name, kind, what);
    vec![
        setting("connections", Kind::Number(0..=1_000_000), "Connections in all; 0 is no limit.")
            .or_number(default.connections_max.into()),
        setting("connections_per_address", Kind::Number(0..=1_000_000), "Connections from one address; 0 is no limit.")
            .or_number(default.connections_per_address_max.into()),
        setting("streams_per_connection", Kind::Number(1..=1_000_000), "Calls at a time on one connection; more wait.")
            .or_number(default.streams_per_connection_max.into()),
        setting("header_bytes", Kind::Number(4_096..=1 << 20), "Of one call.")
            .or_number(default.header_bytes_max.into()),
        setting("message_bytes", Kind::Number(65_536..=1 << 26), "Of one request.")
            .or_number(default.message_bytes_max as u64),
        setting("handshake_timeout_ms", Kind::Number(long.clone()), "For TLS.")
            .or_number(ms(default.handshake_timeout)),
        setting("preface_timeout_ms", Kind::Number(long.clone()), "For the first bytes of HTTP/2.")
            .or_number(ms(default.preface_timeout)),
        setting(
            "keepalive_interval_ms",
            Kind::Number(long.clone()),
            "After so long without a byte a connection is asked whether it is there.",
        )
        .or_number(ms(default.keepalive_interval)),
        setting("keepalive_timeout_ms", Kind::Number(long), "Without an answer for so long it is closed.")
            .or_number(ms(default.keepalive_timeout)),
        setting(
            "connection_age_s",
            Kind::Number(0..=604_800),
            "After about so long a client is asked to connect anew, so that load spreads over new servers; 0 is never.",
        )
        .or_number(default.connection_age.map_or(0, |age| age.as_secs())),
        setting(
            "connection_age_grace_s",
            Kind::Number(1..=3_600),
            "Within so long the streams of an old connection end.",
        )
        .or_number(default.connection_age_grace.as_secs()),
    ]
}

fn drain() -> Vec<Setting> {
    let ServerSettings { drain_limit, drain_delay, .. } = ServerSettings::default();
    let setting = |name, kind, what| setting("drain", name, kind, what);
    vec![
        setting(
            "delay_ms",
            Kind::Number(0..=600_000),
            "After SIGTERM all goes on for so long, while probes are told to send nobody here any more.",
        )
        .or_number(drain_delay.as_millis() as u64),
        setting(
            "limit_ms",
            Kind::Number(0..=3_600_000),
            "How long calls may then take to end; after that they are cut off.",
        )
        .or_number(drain_limit.as_millis() as u64),
    ]
}

fn log() -> Vec<Setting> {
    vec![
        setting("log", "format", Kind::Choice(&["pretty", "json"]), "How lines are written.").or("pretty"),
        setting("log", "filter", Kind::Text, "What is written, as in info,slotcast::engine=debug.")
            .or(LogSettings::default().filter)
            .also("SLOTCAST_LOG")
            .live(),
        setting(
            "log",
            "access",
            Kind::Choice(&AccessLogMode::NAMES),
            "Which calls get a line: none, those that were refused or failed (a flood is limited), or all.",
        )
        .or("errors"),
    ]
}

fn otlp() -> Vec<Setting> {
    let OtlpSettings { interval, trace_percent, .. } = OtlpSettings::default();
    let setting = |name, kind, what| setting("otlp", name, kind, what);
    vec![
        setting(
            "endpoint",
            Kind::Text,
            "Of the collector's gRPC, as in http://collector:4317; without, nothing is sent.",
        )
        .also("OTEL_EXPORTER_OTLP_ENDPOINT"),
        setting("ca", Kind::Path, "Roots of an https endpoint beside the public authorities, as PEM."),
        setting("headers", Kind::Secret, "Sent along, as in authorization=Bearer abc,tenant=1.")
            .also("OTEL_EXPORTER_OTLP_HEADERS"),
        setting("interval_ms", Kind::Number(100..=3_600_000), "Between two reports of metrics.")
            .or_number(interval.as_millis() as u64),
        setting(
            "trace_percent",
            Kind::Number(0..=100),
            "Of the calls that come without a trace context; else its flag decides.",
        )
        .or_number(trace_percent.into()),
    ]
}

fn sync() -> Vec<Setting> {
    let default = Rollout::default();
    let setting = |field: RolloutField| {
        setting("sync", field.name(), Kind::Number(field.bounds()), what(field)).or_number(field.read(&default)).live()
    };
    RolloutField::ALL.into_iter().map(setting).collect()
}

fn what(field: RolloutField) -> &'static str {
    match field {
        RolloutField::DeltaPercent => "Changed slots instead of all.",
        RolloutField::DebouncePercent => "Changes wait for more of them, at most for the windows below.",
        RolloutField::PredictionPercent => "A prediction that was right needs no sync.",
        RolloutField::ShadowPercent => {
            "Is sent the old way whatever the others say, while all of the new way is computed, checked and counted."
        }
        RolloutField::NewsMs => "How long changes by others wait for more, counted from the last sync.",
        RolloutField::EchoMs => "The same for changes by the stream's own session.",
        RolloutField::TickMs => "Syncs are due at multiples of this, so that those of one connection leave together.",
        RolloutField::DeltaSlotsMax => "With more changed slots all are sent.",
        RolloutField::SyncsPerSecond => "For each player, over all its streams, in any second; 0 is no limit.",
        RolloutField::HeartbeatMs => {
            "A stream on which nothing was sent for so long tells what its reader should have."
        }
    }
}
