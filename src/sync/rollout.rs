//! The rollout: the sync settings, and the percentage of players that each feature applies to. It can change at
//! runtime.
//!
//! A stable hash of its name assigns each player to one of 100 buckets. A flag at `p` percent is on for the buckets
//! below `p`. Raising a percentage therefore only adds players, and a restart keeps the same players. With all flags
//! off, every change is immediately sent as a full state; this is the rollback.

use super::pacer::Windows;
use super::subscription::SyncSettings;
use crate::domain::{Caller, Fingerprint, PlayerId, SessionId};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A percentage of players, 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

/// The bucket of a player, 0 to 99.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket(u8);

/// Sync settings, and the percentage of players that each feature applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// Percentage of players that get deltas instead of full states.
    pub delta: Percent,
    /// Percentage of players whose syncs are debounced by the windows instead of being sent immediately.
    pub debounce: Percent,
    /// Percentage of players that get no frame for a confirmed prediction.
    pub prediction: Percent,
    /// Percentage of players in shadow mode. They get immediate full states regardless of the other flags, while the
    /// server computes and verifies what it would send with all features enabled.
    pub shadow: Percent,
    /// The debounce windows of players with `debounce`.
    pub windows: Windows,
    /// Maximum number of changed slots in a delta, for players with `delta`; more are sent as a full state.
    pub delta_slots_max: usize,
    /// Maximum number of syncs for each player in any second, across all its streams; 0 disables the limit.
    pub syncs_per_second: u32,
    /// A stream sends a heartbeat after it has sent nothing for this long.
    pub heartbeat: Duration,
}

/// The sync settings of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamMode {
    pub sync: SyncSettings,
    /// The settings of the shadow subscription, whose frames are computed and verified but not sent.
    pub shadow: Option<SyncSettings>,
}

/// The values of a rollout, under the names that the wire, the settings file and the command line share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutField {
    DeltaPercent,
    DebouncePercent,
    PredictionPercent,
    ShadowPercent,
    NewsMs,
    EchoMs,
    TickMs,
    DeltaSlotsMax,
    SyncsPerSecond,
    HeartbeatMs,
}

/// The properties of a field.
struct FieldDefinition {
    name: &'static str,
    /// Minimum and maximum; both fit the type in [`Rollout`].
    bounds: (u64, u64),
    default: u64,
    help: &'static str,
    read: fn(&Rollout) -> u64,
    write: fn(&mut Rollout, u64),
}

/// A value that is out of its field's bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfBounds {
    pub field: RolloutField,
    pub value: u64,
}

impl Percent {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(100);

    pub fn new(percent: u8) -> Option<Self> {
        (percent <= 100).then_some(Self(percent))
    }

    pub fn get(self) -> u8 {
        self.0
    }

    pub fn includes(self, bucket: Bucket) -> bool {
        bucket.0 < self.0
    }
}

impl Bucket {
    pub fn of(name: &str) -> Self {
        // The remainder is less than 100 and fits in a u8.
        Self((Fingerprint::of(name.as_bytes()).0 % 100) as u8)
    }

    /// Returns the bucket of a stream: by its player, or else by its session, or else by its caller.
    pub fn of_stream(player: Option<&PlayerId>, session: Option<&SessionId>, caller: &Caller) -> Self {
        let name = player.map(PlayerId::as_str).or(session.map(SessionId::as_str));
        Self::of(name.unwrap_or(caller.as_str()))
    }
}

impl Default for Rollout {
    /// The defaults of all fields: all features on for all players.
    fn default() -> Self {
        let mut rollout = Self {
            delta: Percent::NONE,
            debounce: Percent::NONE,
            prediction: Percent::NONE,
            shadow: Percent::NONE,
            windows: Windows::NONE,
            delta_slots_max: 0,
            syncs_per_second: 0,
            heartbeat: Duration::ZERO,
        };
        RolloutField::ALL.into_iter().for_each(|field| field.write(&mut rollout, field.default_value()));
        rollout
    }
}

impl Default for SyncSettings {
    /// All features on, with the defaults of the rollout.
    fn default() -> Self {
        Rollout::default().settings(true, true, true)
    }
}

impl Default for Windows {
    /// The defaults of the rollout.
    fn default() -> Self {
        Rollout::default().windows
    }
}

impl Rollout {
    /// Serves every player with these settings.
    pub fn for_all(sync: SyncSettings) -> Self {
        let all_or_none = |all: bool| if all { Percent::ALL } else { Percent::NONE };
        Self {
            delta: all_or_none(sync.delta_slots_max > 0),
            prediction: all_or_none(sync.prediction),
            windows: sync.windows,
            delta_slots_max: sync.delta_slots_max,
            heartbeat: sync.heartbeat,
            ..Self::default()
        }
    }

    /// All flags off: every change is immediately sent as a full state.
    pub fn immediate_full() -> Self {
        let off = Percent::NONE;
        Self { delta: off, debounce: off, prediction: off, shadow: off, ..Self::default() }
    }

    /// Returns the sync settings of a stream in this bucket.
    pub fn mode_for(&self, bucket: Bucket) -> StreamMode {
        if self.shadow.includes(bucket) {
            // The shadow enables all features, because it is evaluated before any flag is on.
            return StreamMode {
                sync: self.settings(false, false, false),
                shadow: Some(self.settings(true, true, true)),
            };
        }
        let [delta, debounce, prediction] =
            [self.delta, self.debounce, self.prediction].map(|flag| flag.includes(bucket));
        StreamMode { sync: self.settings(delta, debounce, prediction), shadow: None }
    }

    /// Returns the rollout with these values changed, all or nothing.
    ///
    /// # Errors
    ///
    /// Every value that is out of bounds.
    pub fn with_values(&self, values: impl IntoIterator<Item = (RolloutField, u64)>) -> Result<Self, Vec<OutOfBounds>> {
        let (mut next, mut problems) = (self.clone(), Vec::new());
        for (field, value) in values {
            if field.bounds().contains(&value) {
                field.write(&mut next, value);
            } else {
                problems.push(OutOfBounds { field, value });
            }
        }
        if problems.is_empty() { Ok(next) } else { Err(problems) }
    }

    fn settings(&self, delta: bool, debounce: bool, prediction: bool) -> SyncSettings {
        SyncSettings {
            windows: if debounce { self.windows } else { Windows::NONE },
            delta_slots_max: if delta { self.delta_slots_max } else { 0 },
            prediction,
            heartbeat: self.heartbeat,
        }
    }
}

impl RolloutField {
    pub const ALL: [Self; 10] = [
        Self::DeltaPercent,
        Self::DebouncePercent,
        Self::PredictionPercent,
        Self::ShadowPercent,
        Self::NewsMs,
        Self::EchoMs,
        Self::TickMs,
        Self::DeltaSlotsMax,
        Self::SyncsPerSecond,
        Self::HeartbeatMs,
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// Returns the name, which ends with the unit.
    pub const fn name(self) -> &'static str {
        self.definition().name
    }

    pub const fn bounds(self) -> RangeInclusive<u64> {
        let (min, max) = self.definition().bounds;
        min..=max
    }

    pub const fn default_value(self) -> u64 {
        self.definition().default
    }

    /// Returns a sentence that describes the field.
    pub const fn help(self) -> &'static str {
        self.definition().help
    }

    pub fn read(self, rollout: &Rollout) -> u64 {
        (self.definition().read)(rollout)
    }

    /// `value` must be within the bounds, so that it fits the type in [`Rollout`].
    fn write(self, rollout: &mut Rollout, value: u64) {
        (self.definition().write)(rollout, value);
    }

    /// The table of all fields. The settings file, `slotcast rollout` and AdminService take names, bounds, defaults and
    /// descriptions from it.
    #[expect(clippy::too_many_lines, reason = "a table with one row per field")]
    const fn definition(self) -> FieldDefinition {
        match self {
            Self::DeltaPercent => FieldDefinition {
                name: "delta_percent",
                bounds: (0, 100),
                default: 100,
                help: "Percentage of players that get changed slots instead of all slots.",
                read: |rollout| u64::from(rollout.delta.0),
                write: |rollout, value| rollout.delta = Percent(value as u8),
            },
            Self::DebouncePercent => FieldDefinition {
                name: "debounce_percent",
                bounds: (0, 100),
                default: 100,
                help: "Percentage of players whose changes are debounced by news_ms and echo_ms.",
                read: |rollout| u64::from(rollout.debounce.0),
                write: |rollout, value| rollout.debounce = Percent(value as u8),
            },
            Self::PredictionPercent => FieldDefinition {
                name: "prediction_percent",
                bounds: (0, 100),
                default: 100,
                help: "Percentage of players that get no sync for a correct prediction.",
                read: |rollout| u64::from(rollout.prediction.0),
                write: |rollout, value| rollout.prediction = Percent(value as u8),
            },
            Self::ShadowPercent => FieldDefinition {
                name: "shadow_percent",
                bounds: (0, 100),
                default: 0,
                help: "Percentage of players in shadow mode: they get immediate full syncs regardless of the other \
                       settings, while the sync features are computed, verified and counted.",
                read: |rollout| u64::from(rollout.shadow.0),
                write: |rollout, value| rollout.shadow = Percent(value as u8),
            },
            Self::NewsMs => FieldDefinition {
                name: "news_ms",
                bounds: (0, 60_000),
                default: 100,
                help: "Debounce window for changes by others, in milliseconds since the last sync.",
                read: |rollout| rollout.windows.news.as_millis() as u64,
                write: |rollout, value| rollout.windows.news = Duration::from_millis(value),
            },
            Self::EchoMs => FieldDefinition {
                name: "echo_ms",
                bounds: (0, 60_000),
                default: 1_000,
                help: "Debounce window for changes by the stream's own session, in milliseconds since the last sync.",
                read: |rollout| rollout.windows.echo.as_millis() as u64,
                write: |rollout, value| rollout.windows.echo = Duration::from_millis(value),
            },
            Self::TickMs => FieldDefinition {
                name: "tick_ms",
                bounds: (0, 1_000),
                default: 5,
                help: "Debounced syncs are due at multiples of this time in milliseconds, rounded up, so that syncs of one \
                       connection share a write.",
                read: |rollout| rollout.windows.tick.as_millis() as u64,
                write: |rollout, value| rollout.windows.tick = Duration::from_millis(value),
            },
            Self::DeltaSlotsMax => FieldDefinition {
                name: "delta_slots_max",
                // To send only full states, set `delta_percent` to 0.
                bounds: (1, 1_024),
                default: 10,
                help: "Maximum number of changed slots in a delta; more are sent as all slots.",
                read: |rollout| rollout.delta_slots_max as u64,
                write: |rollout, value| rollout.delta_slots_max = value as usize,
            },
            Self::SyncsPerSecond => FieldDefinition {
                name: "syncs_per_second",
                bounds: (0, 1_000),
                default: 10,
                help: "Maximum number of syncs per player in any second, over all its streams; 0 disables the limit.",
                read: |rollout| u64::from(rollout.syncs_per_second),
                write: |rollout, value| rollout.syncs_per_second = value as u32,
            },
            Self::HeartbeatMs => FieldDefinition {
                name: "heartbeat_ms",
                bounds: (100, 600_000),
                default: 15_000,
                help: "A stream sends a heartbeat after it has sent nothing for this time, in milliseconds.",
                read: |rollout| rollout.heartbeat.as_millis() as u64,
                write: |rollout, value| rollout.heartbeat = Duration::from_millis(value),
            },
        }
    }
}

impl OutOfBounds {
    /// Returns the error without the name of the field, for messages that name it elsewhere.
    pub fn problem(&self) -> String {
        let bounds = self.field.bounds();
        format!("must be {} to {}, got {}", bounds.start(), bounds.end(), self.value)
    }
}

impl fmt::Display for Rollout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, field) in RolloutField::ALL.into_iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{}={}", field.name(), field.read(self))?;
        }
        Ok(())
    }
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field.name(), self.problem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(values: &[(RolloutField, u64)]) -> Rollout {
        Rollout::default().with_values(values.iter().copied()).expect("the values are within bounds")
    }

    #[test]
    fn the_bucket_of_a_name_never_changes() {
        let buckets = ["steve", "alex", "", "Ünï", "player-199"].map(|name| Bucket::of(name).0);
        assert_eq!(buckets, [27, 22, 89, 32, 59], "computed by an independent implementation of the hash");
    }

    #[test]
    fn names_are_distributed_evenly_over_the_buckets() {
        let mut used = [0; 100];
        (0..100_000).for_each(|n| used[usize::from(Bucket::of(&format!("player-{n}")).0)] += 1);
        assert!(used.iter().all(|times| (850..1_150).contains(times)), "{used:?}");
    }

    #[test]
    fn raising_a_percentage_only_adds_players() {
        let names: Vec<_> = (0..500).map(|n| Bucket::of(&format!("player-{n}"))).collect();
        let with = |percent| -> Vec<bool> {
            let rollout = rollout(&[(RolloutField::DeltaPercent, percent)]);
            names.iter().map(|bucket| rollout.mode_for(*bucket).sync.delta_slots_max > 0).collect()
        };
        let mut before = with(0);
        assert!(!before.contains(&true), "0 % selects nobody");
        for percent in 1..=100 {
            let after = with(percent);
            assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "{percent} %");
            before = after;
        }
        assert!(!before.contains(&false), "100 % selects everybody");
    }

    #[test]
    fn the_bucket_of_a_stream_is_that_of_its_player_or_session_or_caller() {
        let (player, session) = (PlayerId::new("steve").unwrap(), SessionId::new("tablet").unwrap());
        let caller = Caller::new("lobby").unwrap();
        assert_eq!(Bucket::of_stream(Some(&player), Some(&session), &caller), Bucket::of("steve"));
        assert_eq!(Bucket::of_stream(None, Some(&session), &caller), Bucket::of("tablet"));
        assert_eq!(Bucket::of_stream(None, None, &caller), Bucket::of("lobby"));
    }

    #[test]
    fn all_flags_off_sends_immediate_full_states_and_all_flags_on_is_the_default() {
        let of = |rollout: Rollout| rollout.mode_for(Bucket(0));
        assert_eq!(of(Rollout::immediate_full()), StreamMode { sync: SyncSettings::immediate_full(), shadow: None });
        assert_eq!(of(Rollout::default()), StreamMode { sync: SyncSettings::default(), shadow: None });
        assert!(SyncSettings::default().prediction && SyncSettings::default().delta_slots_max > 0);
    }

    #[test]
    fn shadow_mode_sends_immediate_full_states_and_computes_all_features() {
        let rollout = Rollout { shadow: Percent::ALL, ..Rollout::immediate_full() };
        let StreamMode { sync, shadow } = rollout.mode_for(Bucket(99));
        assert_eq!((sync, shadow), (SyncSettings::immediate_full(), Some(SyncSettings::default())));
        assert_eq!(Rollout { shadow: Percent(50), ..rollout }.mode_for(Bucket(50)).shadow, None);
    }

    #[test]
    fn every_value_out_of_bounds_is_reported_and_nothing_changes() {
        let before = Rollout::default();
        let values = [(RolloutField::ShadowPercent, 101), (RolloutField::NewsMs, 50), (RolloutField::HeartbeatMs, 0)];
        let problems = before.with_values(values).expect_err("two values are out of bounds");
        let messages: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let expected = ["shadow_percent: must be 0 to 100, got 101", "heartbeat_ms: must be 100 to 600000, got 0"];
        assert_eq!(messages, expected);
        assert_eq!(before, Rollout::default());
    }

    #[test]
    fn every_field_reads_back_the_value_written_at_both_bounds() {
        for field in RolloutField::ALL {
            assert_eq!(RolloutField::from_name(field.name()), Some(field));
            for value in [*field.bounds().start(), *field.bounds().end()] {
                let set = rollout(&[(field, value)]);
                assert_eq!(field.read(&set), value, "{}", field.name());
                let others = RolloutField::ALL.into_iter().filter(|other| *other != field);
                let same = others.into_iter().all(|other| other.read(&set) == other.read(&Rollout::default()));
                assert!(same, "{} changes no other field", field.name());
            }
        }
    }
}
