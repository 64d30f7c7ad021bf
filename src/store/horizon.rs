//! Decides which idempotency keys may be new after a store has begun to expire keys. Pure; every store keeps one
//! horizon.
//!
//! An expired key must never run again, and all that remains of it is the time inside it (a UUIDv7). So a store
//! refuses unknown keys that are not later than its *horizon*. A common horizon for all callers must not follow a
//! caller's clock: a caller with a fast clock would cause the keys of all other callers to be refused. Expiring a key
//! therefore raises the common horizon to the time inside the key or to the time at which the key was received,
//! whichever is earlier. If the time inside the key is later than that, the store remembers this time for its caller
//! alone, until the common horizon has passed it.
//!
//! The memory for these callers is bounded: when it is full, keys of further callers that are ahead of the clock are
//! refused before they run. Keys that contain no time are not covered: they are new again once they have expired.

use super::{KeyStatus, ScopedKey};
use crate::domain::Caller;
use std::collections::HashMap;

/// How far ahead of the wall clock the time in a new key may be, in milliseconds.
const KEY_AHEAD_MS_MAX: u64 = 60_000;
/// How far the common horizon rises between two sweeps for callers that it has passed, in milliseconds.
const SWEEP_MS: u64 = 5_000;

/// The times up to which idempotency keys have expired, for all callers together and for single callers.
#[derive(Debug, Default)]
pub struct KeyHorizon {
    /// Unknown keys with this time or an earlier one are not new. `None` if no key has expired yet.
    common_ms: Option<u64>,
    /// Callers whose keys were ahead of the wall clock when they were received.
    ahead: HashMap<Caller, CallerAhead>,
    /// Maximum number of entries in `ahead`. A batch of commits may exceed it, up to twice as many.
    callers_max: usize,
    /// The common horizon at the last sweep, in milliseconds since the Unix epoch.
    swept_ms: u64,
    /// Callers whose stored entries the next [`Self::expire`] must delete.
    dropped: Vec<Caller>,
}

/// The times inside one caller's keys that were ahead of the wall clock.
#[derive(Debug, Clone, Copy, Default)]
struct CallerAhead {
    /// The latest time of all such keys, remembered or expired.
    latest_ms: u64,
    /// The latest time of the expired ones; 0 if none has expired.
    expired_ms: u64,
}

/// The times inside keys that expire together, for [`KeyHorizon::expire`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpiredKeys {
    /// The time to which the common horizon rises.
    common_ms: Option<u64>,
    /// For each caller, the latest time inside a key that is later than the time at which the key was received.
    ahead: HashMap<Caller, u64>,
}

/// The changes that a store makes durable together with the removal of the expired keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HorizonChange {
    /// The common horizon, in milliseconds since the Unix epoch.
    pub common_ms: Option<u64>,
    /// Callers and the time up to which (inclusive) their keys have expired.
    pub ahead: Vec<(Caller, u64)>,
    /// Callers whose stored entries must be deleted, because the common horizon has passed them.
    pub dropped: Vec<Caller>,
}

impl ExpiredKeys {
    /// Adds keys that were received at the same time, in milliseconds since the Unix epoch by the wall clock.
    pub fn add<'a>(&mut self, received_ms: u64, keys: impl Iterator<Item = &'a ScopedKey>) {
        for (key, key_ms) in keys.filter_map(|key| Some((key, key.key.unix_ms()?))) {
            self.raise(key_ms.min(received_ms));
            if key_ms > received_ms {
                let latest_ms = self.ahead.entry(key.caller.clone()).or_default();
                *latest_ms = key_ms.max(*latest_ms);
            }
        }
    }

    /// Adds keys of which none is later than `key_ms`.
    pub fn raise(&mut self, key_ms: u64) {
        self.common_ms = self.common_ms.max(Some(key_ms));
    }
}

impl KeyHorizon {
    /// Creates a horizon from the stored [`HorizonChange::common_ms`]. At most `callers_max` callers may have keys
    /// ahead of the wall clock.
    pub fn new(common_ms: Option<u64>, callers_max: usize) -> Self {
        Self { common_ms, callers_max, ..Self::default() }
    }

    /// Restores an entry of the stored [`HorizonChange::ahead`].
    pub fn restore(&mut self, caller: Caller, expired_ms: u64) {
        self.ahead.insert(caller, CallerAhead { latest_ms: expired_ms, expired_ms });
    }

    /// Number of callers that have an entry of their own.
    pub fn callers_ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Decides about a key that is not remembered. `now_ms` is the wall clock in milliseconds since the Unix epoch.
    pub fn status_of(&self, key: &ScopedKey, now_ms: u64) -> KeyStatus {
        let Some(key_ms) = key.key.unix_ms() else { return KeyStatus::New };
        let entry = self.ahead.get(&key.caller);
        if self.common_ms >= Some(key_ms) || entry.is_some_and(|entry| entry.expired_ms >= key_ms) {
            return KeyStatus::Expired;
        }
        let ahead_ms = key_ms.saturating_sub(now_ms);
        let is_full = entry.is_none() && self.ahead.len() >= self.callers_max;
        if ahead_ms > KEY_AHEAD_MS_MAX || ahead_ms > 0 && is_full {
            KeyStatus::TooFarAhead { ahead_ms }
        } else {
            KeyStatus::New
        }
    }

    /// Records keys that were committed and are remembered from now on.
    pub fn remember<'a>(&mut self, received_ms: u64, keys: impl Iterator<Item = &'a ScopedKey>) {
        for (key, key_ms) in keys.filter_map(|key| Some((key, key.key.unix_ms()?))) {
            if key_ms > received_ms && self.common_ms < Some(key_ms) {
                let entry = self.ahead.entry(key.caller.clone()).or_default();
                entry.latest_ms = entry.latest_ms.max(key_ms);
            }
        }
        self.evict();
    }

    /// Raises the horizon so that the given keys, and possibly other unknown keys, count as expired. Call it before the
    /// keys are removed.
    pub fn expire(&mut self, expired: ExpiredKeys) -> HorizonChange {
        self.common_ms = self.common_ms.max(expired.common_ms);
        for (caller, key_ms) in expired.ahead.iter().filter(|(_, key_ms)| self.common_ms < Some(**key_ms)) {
            let entry = self.ahead.entry(caller.clone()).or_default();
            entry.latest_ms = entry.latest_ms.max(*key_ms);
            entry.expired_ms = entry.expired_ms.max(*key_ms);
        }
        self.evict();
        let common_ms = self.common_ms.unwrap_or(0);
        if common_ms >= self.swept_ms.saturating_add(SWEEP_MS) {
            self.swept_ms = common_ms;
            self.remove_passed();
        }
        let stored = |caller: &Caller| Some((caller.clone(), self.ahead.get(caller)?.expired_ms));
        let ahead = expired.ahead.keys().filter_map(stored).collect();
        HorizonChange { common_ms: self.common_ms, ahead, dropped: std::mem::take(&mut self.dropped) }
    }

    /// Bounds the memory regardless of the clocks: the common horizon replaces the entries that are the least ahead.
    /// Only a step of this machine's own clock creates so many entries, see [`Self::status_of`].
    fn evict(&mut self) {
        if self.ahead.len() <= self.callers_max.saturating_mul(2) {
            return;
        }
        let mut latest: Vec<u64> = self.ahead.values().map(|entry| entry.latest_ms).collect();
        let surplus = latest.len() - self.callers_max;
        let (_, evicted_ms, _) = latest.select_nth_unstable(surplus - 1);
        self.common_ms = self.common_ms.max(Some(*evicted_ms));
        self.remove_passed();
    }

    fn remove_passed(&mut self) {
        let (common_ms, dropped) = (self.common_ms, &mut self.dropped);
        self.ahead.retain(|caller, entry| {
            let is_kept = Some(entry.latest_ms) > common_ms;
            if !is_kept && entry.expired_ms > 0 {
                dropped.push(caller.clone());
            }
            is_kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::IdempotencyKey;

    fn key(caller: &str, unix_ms: u64) -> ScopedKey {
        let (high, low) = (unix_ms >> 16, unix_ms & 0xFFFF);
        let key = IdempotencyKey::new(&format!("{high:08x}-{low:04x}-7000-8000-000000000000")).expect("a name");
        ScopedKey { caller: Caller::new(caller).expect("a name"), key }
    }

    fn expired(received_ms: u64, keys: &[ScopedKey]) -> ExpiredKeys {
        let mut expired = ExpiredKeys::default();
        expired.add(received_ms, keys.iter());
        expired
    }

    #[test]
    fn a_key_ahead_of_the_clock_raises_the_common_horizon_only_to_its_time_of_receipt() {
        let mut horizon = KeyHorizon::new(None, 10);
        let change = horizon.expire(expired(1_000, &[key("fast", 50_000), key("slow", 400), key("right", 990)]));
        assert_eq!(change.common_ms, Some(1_000));
        assert_eq!(change.ahead, [(key("fast", 0).caller, 50_000)]);
        assert_eq!(horizon.status_of(&key("right", 1_001), 1_001), KeyStatus::New);
        assert_eq!(horizon.status_of(&key("right", 1_000), 1_001), KeyStatus::Expired);
        assert_eq!(horizon.status_of(&key("fast", 50_000), 50_000), KeyStatus::Expired);
        assert_eq!(horizon.status_of(&key("fast", 50_001), 50_001), KeyStatus::New);
    }

    #[test]
    fn a_remembered_key_ahead_of_the_clock_does_not_expire_earlier_keys_of_its_caller() {
        let mut horizon = KeyHorizon::new(None, 10);
        horizon.remember(1_000, [key("fast", 50_000)].iter());
        assert_eq!(
            horizon.status_of(&key("fast", 49_000), 1_000),
            KeyStatus::New,
            "two calls that overtake each other"
        );
        assert_eq!(horizon.callers_ahead(), 1);
    }

    #[test]
    fn the_memory_for_callers_ahead_is_bounded_and_no_expired_key_is_new_again() {
        let mut horizon = KeyHorizon::new(None, 10);
        let keys: Vec<ScopedKey> = (0..500).map(|caller| key(&format!("caller-{caller}"), 2_000 + caller)).collect();
        for key in &keys {
            // The clock that received the key was stepped back: no caller was ahead when the key was judged.
            horizon.remember(1_000, std::iter::once(key));
            let change = horizon.expire(expired(1_000, std::slice::from_ref(key)));
            assert!(horizon.callers_ahead() <= 20);
            assert!(change.dropped.len() <= 20);
        }
        assert!(keys.iter().all(|key| horizon.status_of(key, 5_000) == KeyStatus::Expired));
    }

    #[test]
    fn a_stored_horizon_is_restored_without_changes() {
        let mut horizon = KeyHorizon::new(None, 10);
        let change = horizon.expire(expired(1_000, &[key("fast", 50_000)]));
        let mut restored = KeyHorizon::new(change.common_ms, 10);
        change.ahead.into_iter().for_each(|(caller, expired_ms)| restored.restore(caller, expired_ms));
        for (caller, key_ms) in [("fast", 50_000), ("fast", 50_001), ("right", 1_000), ("right", 1_001)] {
            let key = key(caller, key_ms);
            assert_eq!(restored.status_of(&key, key_ms), horizon.status_of(&key, key_ms));
        }
        // The common horizon passes the entry, and the stored entry is removed.
        let change = restored.expire(expired(60_000, &[key("right", 60_000)]));
        assert_eq!((change.dropped.len(), restored.callers_ahead()), (1, 0));
    }
}
