//! How streams are paced and what they carry, changeable while the service runs, for a part of the players at a time.
//!
//! A player is in one of a hundred buckets for good, by a stable hash of its name; a flag of `p` percent is on for the
//! buckets below `p`. So raising a percentage only adds players, and the same ones are in after a restart. With all flags
//! off everything is sent as the old game did it, all slots at once for every change: that is the rollback.

use super::pacer::Windows;
use super::subscription::SyncSettings;
use crate::domain::{Caller, Fingerprint, PlayerId, SessionId};
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A share of the players: 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

/// Where a player is among all: 0 to 99.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket(u8);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// Who gets changed slots instead of all.
    pub delta: Percent,
    /// Whose changes wait for more in the windows, instead of going out at once.
    pub debounce: Percent,
    /// Whose confirmed predictions need no frame.
    pub prediction: Percent,
    /// Who is sent the old way, whatever the other flags say, while what the new way would send is computed and checked.
    pub shadow: Percent,
    /// The windows of those who have `debounce`.
    pub windows: Windows,
    /// For those who have `delta`: a frame with more changed slots is sent full.
    pub delta_slots_max: usize,
    /// Syncs for each player in any second at most, over all its streams; 0 is no limit.
    pub syncs_per_second: u32,
    pub heartbeat: Duration,
}

/// How one stream is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamMode {
    pub sync: SyncSettings,
    /// What is only computed and compared.
    pub shadow: Option<SyncSettings>,
}

/// What can be set, by the names that the wire, the file and the command line share.
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

/// Why a value cannot be set.
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
        // Less than 100: it fits.
        Self((Fingerprint::of(name.as_bytes()).0 % 100) as u8)
    }

    /// Of a stream: by its player, or else by its session, or else by who opened it.
    pub fn of_stream(player: Option<&PlayerId>, session: Option<&SessionId>, caller: &Caller) -> Self {
        let name = player.map(PlayerId::as_str).or(session.map(SessionId::as_str));
        Self::of(name.unwrap_or(caller.as_str()))
    }
}

impl Default for Rollout {
    /// Everything on, for all.
    fn default() -> Self {
        let SyncSettings { windows, delta_slots_max, heartbeat, .. } = SyncSettings::default();
        Self {
            delta: Percent::ALL,
            debounce: Percent::ALL,
            prediction: Percent::ALL,
            shadow: Percent::NONE,
            windows,
            delta_slots_max,
            syncs_per_second: 10,
            heartbeat,
        }
    }
}

impl Rollout {
    /// Every player is served in this one way.
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

    /// All flags off: as the old game did it.
    pub fn immediate_full() -> Self {
        let off = Percent::NONE;
        Self { delta: off, debounce: off, prediction: off, shadow: off, ..Self::default() }
    }

    pub fn settings_for(&self, bucket: Bucket) -> StreamMode {
        if self.shadow.includes(bucket) {
            // All of the new way, for it is looked at before any of its flags is on.
            return StreamMode {
                sync: self.settings(false, false, false),
                shadow: Some(self.settings(true, true, true)),
            };
        }
        let [delta, debounce, prediction] =
            [self.delta, self.debounce, self.prediction].map(|flag| flag.includes(bucket));
        StreamMode { sync: self.settings(delta, debounce, prediction), shadow: None }
    }

    /// With some values set anew, all of them or none; every value out of its bounds is told.
    pub fn with(&self, values: impl IntoIterator<Item = (RolloutField, u64)>) -> Result<Self, Vec<OutOfBounds>> {
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

    pub fn name(self) -> &'static str {
        match self {
            Self::DeltaPercent => "delta_percent",
            Self::DebouncePercent => "debounce_percent",
            Self::PredictionPercent => "prediction_percent",
            Self::ShadowPercent => "shadow_percent",
            Self::NewsMs => "news_ms",
            Self::EchoMs => "echo_ms",
            Self::TickMs => "tick_ms",
            Self::DeltaSlotsMax => "delta_slots_max",
            Self::SyncsPerSecond => "syncs_per_second",
            Self::HeartbeatMs => "heartbeat_ms",
        }
    }

    pub fn bounds(self) -> RangeInclusive<u64> {
        match self {
            Self::DeltaPercent | Self::DebouncePercent | Self::PredictionPercent | Self::ShadowPercent => 0..=100,
            Self::NewsMs | Self::EchoMs => 0..=60_000,
            Self::TickMs => 0..=1_000,
            // To send every frame full is what `delta_percent` is for.
            Self::DeltaSlotsMax => 1..=1_024,
            Self::SyncsPerSecond => 0..=1_000,
            Self::HeartbeatMs => 100..=600_000,
        }
    }

    pub fn read(self, rollout: &Rollout) -> u64 {
        match self {
            Self::DeltaPercent => u64::from(rollout.delta.0),
            Self::DebouncePercent => u64::from(rollout.debounce.0),
            Self::PredictionPercent => u64::from(rollout.prediction.0),
            Self::ShadowPercent => u64::from(rollout.shadow.0),
            Self::NewsMs => rollout.windows.news.as_millis() as u64,
            Self::EchoMs => rollout.windows.echo.as_millis() as u64,
            Self::TickMs => rollout.windows.tick.as_millis() as u64,
            Self::DeltaSlotsMax => rollout.delta_slots_max as u64,
            Self::SyncsPerSecond => u64::from(rollout.syncs_per_second),
            Self::HeartbeatMs => rollout.heartbeat.as_millis() as u64,
        }
    }

    /// `value` is within the bounds, so that it fits.
    fn write(self, rollout: &mut Rollout, value: u64) {
        match self {
            Self::DeltaPercent => rollout.delta = Percent(value as u8),
            Self::DebouncePercent => rollout.debounce = Percent(value as u8),
            Self::PredictionPercent => rollout.prediction = Percent(value as u8),
            Self::ShadowPercent => rollout.shadow = Percent(value as u8),
            Self::NewsMs => rollout.windows.news = Duration::from_millis(value),
            Self::EchoMs => rollout.windows.echo = Duration::from_millis(value),
            Self::TickMs => rollout.windows.tick = Duration::from_millis(value),
            Self::DeltaSlotsMax => rollout.delta_slots_max = value as usize,
            Self::SyncsPerSecond => rollout.syncs_per_second = value as u32,
            Self::HeartbeatMs => rollout.heartbeat = Duration::from_millis(value),
        }
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
        let (name, bounds) = (self.field.name(), self.field.bounds());
        write!(f, "{name} must be {} to {}, not {}", bounds.start(), bounds.end(), self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(values: &[(RolloutField, u64)]) -> Rollout {
        Rollout::default().with(values.iter().copied()).expect("they are within bounds")
    }

    #[test]
    fn a_name_is_in_the_same_bucket_for_ever() {
        let buckets = ["steve", "alex", "", "Ünï", "player-199"].map(|name| Bucket::of(name).0);
        assert_eq!(buckets, [27, 22, 89, 32, 59], "as computed by another implementation of the hash");
    }

    #[test]
    fn every_bucket_is_used_about_as_often() {
        let mut used = [0; 100];
        (0..100_000).for_each(|n| used[usize::from(Bucket::of(&format!("player-{n}")).0)] += 1);
        assert!(used.iter().all(|times| (850..1_150).contains(times)), "{used:?}");
    }

    #[test]
    fn raising_a_percentage_only_adds_players() {
        let names: Vec<_> = (0..500).map(|n| Bucket::of(&format!("player-{n}"))).collect();
        let with = |percent| -> Vec<bool> {
            let rollout = rollout(&[(RolloutField::DeltaPercent, percent)]);
            names.iter().map(|bucket| rollout.settings_for(*bucket).sync.delta_slots_max > 0).collect()
        };
        let mut before = with(0);
        assert!(!before.contains(&true), "0 % is nobody");
        for percent in 1..=100 {
            let after = with(percent);
            assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "{percent} %");
            before = after;
        }
        assert!(!before.contains(&false), "100 % is everybody");
    }

    #[test]
    fn a_stream_counts_for_its_player_or_its_session_or_its_caller() {
        let (player, session) = (PlayerId::new("steve").unwrap(), SessionId::new("tablet").unwrap());
        let caller = Caller::new("lobby").unwrap();
        assert_eq!(Bucket::of_stream(Some(&player), Some(&session), &caller), Bucket::of("steve"));
        assert_eq!(Bucket::of_stream(None, Some(&session), &caller), Bucket::of("tablet"));
        assert_eq!(Bucket::of_stream(None, None, &caller), Bucket::of("lobby"));
    }

    #[test]
    fn all_off_is_what_the_old_game_did_and_all_on_is_the_default() {
        let of = |rollout: Rollout| rollout.settings_for(Bucket(0));
        assert_eq!(of(Rollout::immediate_full()), StreamMode { sync: SyncSettings::immediate_full(), shadow: None });
        assert_eq!(of(Rollout::default()), StreamMode { sync: SyncSettings::default(), shadow: None });
    }

    #[test]
    fn in_shadow_the_old_way_is_sent_and_all_of_the_new_way_computed() {
        let rollout = Rollout { shadow: Percent::ALL, ..Rollout::immediate_full() };
        let StreamMode { sync, shadow } = rollout.settings_for(Bucket(99));
        assert_eq!((sync, shadow), (SyncSettings::immediate_full(), Some(SyncSettings::default())));
        assert_eq!(Rollout { shadow: Percent(50), ..rollout }.settings_for(Bucket(50)).shadow, None);
    }

    #[test]
    fn every_value_out_of_bounds_is_told_and_then_nothing_changes() {
        let before = Rollout::default();
        let values = [(RolloutField::ShadowPercent, 101), (RolloutField::NewsMs, 50), (RolloutField::HeartbeatMs, 0)];
        let problems = before.with(values).expect_err("two are out of bounds");
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["shadow_percent must be 0 to 100, not 101", "heartbeat_ms must be 100 to 600000, not 0"]);
        assert_eq!(before, Rollout::default());
    }

    #[test]
    fn every_field_is_written_where_it_is_read_at_both_ends_of_its_bounds() {
        for field in RolloutField::ALL {
            assert_eq!(RolloutField::from_name(field.name()), Some(field));
            for value in [*field.bounds().start(), *field.bounds().end()] {
                let set = rollout(&[(field, value)]);
                assert_eq!(field.read(&set), value, "{}", field.name());
                let others = RolloutField::ALL.into_iter().filter(|other| *other != field);
                let same = others.into_iter().all(|other| other.read(&set) == other.read(&Rollout::default()));
                assert!(same, "{} changes nothing else", field.name());
            }
        }
    }
}
