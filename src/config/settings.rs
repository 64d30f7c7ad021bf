//! Every setting there is, in one table: the file, the environment, the flags and their help are all read from it.

use super::kind::Kind;
use crate::grpc::streams::StreamSettings;
use crate::middleware::AdmissionSettings;
use crate::server::ServerSettings;
use crate::store::embedded::EmbeddedSettings;
use crate::sync::{Field, Rollout};
use std::sync::LazyLock;
use toml::Value;

/// One setting, in all the ways that it can be said.
#[derive(Debug)]
pub struct Setting {
    /// Empty for those that stand before all sections.
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// What holds when nobody says anything else.
    pub default: Option<Value>,
    /// Whether a change holds while the service runs; the others take a restart.
    pub live: bool,
    /// What it means, with its unit.
    pub what: &'static str,
}

/// The sections in the order of the file, and what each is about.
pub const SECTIONS: [(&str, &str); 4] = [
    ("store", "The file on disk."),
    ("limits", "What callers may use."),
    ("drain", "How the service ends."),
    ("sync", SYNC),
];
const SYNC: &str = "\
How streams are served; it may be changed by AdminService and `slotcast rollout` too, until the file is read again.
How many of a hundred players get each of the percentages: which ones is told by a hash of their names, so that raising
it only adds players. With the first three at 0, every change is sent at once with all slots, as the old game did it.";

pub static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(all);

impl Setting {
    /// As in `limits.streams_per_player`.
    pub fn key(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }

    /// As in `SLOTCAST_LIMITS_STREAMS_PER_PLAYER`.
    pub fn environment(&self) -> String {
        format!("SLOTCAST_{}", self.key().replace('.', "_").to_uppercase())
    }

    /// As in `limits-streams-per-player`.
    pub fn flag(&self) -> String {
        self.key().replace(['.', '_'], "-")
    }

    const fn live(mut self) -> Self {
        self.live = true;
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

/// A setting without a default: it need not be said.
const fn setting(section: &'static str, name: &'static str, kind: Kind, what: &'static str) -> Setting {
    Setting { section, name, kind, default: None, live: false, what }
}

fn all() -> Vec<Setting> {
    [general(), store(), limits(), drain(), sync()].into_iter().flatten().collect()
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
    ]
}

fn store() -> Vec<Setting> {
    let EmbeddedSettings { key_window, keys_max, .. } = EmbeddedSettings::default();
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

fn drain() -> Vec<Setting> {
    let limit_ms = ServerSettings::default().drain_limit.as_millis() as u64;
    vec![
        setting(
            "drain",
            "limit_ms",
            Kind::Number(0..=3_600_000),
            "How long calls may take to end after SIGTERM; then they are cut off.",
        )
        .or_number(limit_ms),
    ]
}

fn sync() -> Vec<Setting> {
    let default = Rollout::default();
    let setting = |field: Field| {
        setting("sync", field.name(), Kind::Number(field.bounds()), what(field)).or_number(field.read(&default)).live()
    };
    Field::ALL.into_iter().map(setting).collect()
}

fn what(field: Field) -> &'static str {
    match field {
        Field::DeltaPercent => "Changed slots instead of all.",
        Field::DebouncePercent => "Changes wait for more of them, at most for the windows below.",
        Field::PredictionPercent => "A prediction that was right needs no sync.",
        Field::ShadowPercent => {
            "Is sent the old way whatever the others say, while all of the new way is computed, checked and counted."
        }
        Field::NewsMs => "How long changes by others wait for more, counted from the last sync.",
        Field::EchoMs => "The same for changes by the stream's own session.",
        Field::TickMs => "Syncs are due at multiples of this, so that those of one connection leave together.",
        Field::DeltaSlotsMax => "With more changed slots all are sent.",
        Field::SyncsPerSecond => "For each player, over all its streams, in any second; 0 is no limit.",
        Field::HeartbeatMs => "A stream on which nothing was sent for so long tells what its reader should have.",
    }
}
