//! Decides which idempotency keys may be new after a store has begun to forget keys. Pure; every store keeps one
//! horizon.
//!
//! A forgotten key must never run again, and all that remains of it is the time inside it (a UUIDv7). So a store
//! refuses unknown keys that are not later than its *horizon*. A common horizon for all callers must not follow a
//! caller's clock: a caller with a fast clock would cause the keys of all other callers to be refused. Forgetting a key
//! therefore raises the common horizon to the time inside the key or to the time at which the key was received,
//! whichever is earlier. If the time inside the key is later than that, the store remembers this time for its caller
//! alone, until the common horizon has passed it.
//!
//! The memory for these callers is bounded: when it is full, keys of further callers that are ahead of the clock are
//! refused before they run. Keys that contain no time are not covered: they are new again once they are forgotten.

use super::{Key, Recall};
use crate::domain::Caller;
use std::collections::HashMap;

/// How far ahead of the wall clock the time in a new key may be, in milliseconds.
pub const KEY_AHEAD_MS_MAX: u64 = 60_000;
/// How far the common horizon rises between two sweeps for callers that it has passed, in milliseconds.
const SWEEP_MS: u64 = 5_000;

#[derive(Debug, Default)]
pub struct KeyHorizon {
    /// Unknown keys with this time or an earlier one are not new. `None` if nothing was forgotten yet.
    common_ms: Option<u64>,
    /// Callers whose keys were ahead of the wall clock when they were received.
    ahead: HashMap<Caller, Ahead>,
    /// Maximum number of entries in `ahead`. A batch of commits may exceed it, up to twice as many.
    callers_max: usize,
    swept_ms: u64,
    /// Entries that were dropped since the last [`Self::forget`] and that may be stored.
    dropped: Vec<Caller>,
}

/// The times inside one caller's keys that were ahead of the wall clock.
#[derive(Debug, Clone, Copy, Default)]
struct Ahead {
    /// The latest time of all such keys, remembered or forgotten.
    latest_ms: u64,
    /// The latest time of the forgotten ones; 0 if none is forgotten.
    forgotten_ms: u64,
}

/// The times inside keys that are forgotten together, for [`KeyHorizon::forget`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgetting {
    /// The time to which the common horizon rises.
    common_ms: Option<u64>,
    /// For each caller, the latest time inside a key that is later than the time at which the key was received.
    ahead: HashMap<Caller, u64>,
}

/// The changes that a store makes durable together with forgetting the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HorizonChange {
    pub common_ms: Option<u64>,
    /// Callers and the time up to which (inclusive) their keys are forgotten.
    pub ahead: Vec<(Caller, u64)>,
    /// Callers that the common horizon has passed.
    pub dropped: Vec<Caller>,
}

impl Forgetting {
    /// Adds keys that were received at the same time, in milliseconds since the Unix epoch by the wall clock.
    pub fn add<'a>(&mut self, received_ms: u64, keys: impl Iterator<Item = &'a Key>) {
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
    pub fn restore(&mut self, caller: Caller, forgotten_ms: u64) {
        self.ahead.insert(caller, Ahead { latest_ms: forgotten_ms, forgotten_ms });
    }

    /// Number of callers that have an entry of their own.
    pub fn callers_ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Decides about a key that is not remembered. `now_ms` is the wall clock in milliseconds since the Unix epoch.
    pub fn judge(&self, key: &Key, now_ms: u64) -> Recall {
        let Some(key_ms) = key.key.unix_ms() else { return Recall::New };
        let own = self.ahead.get(&key.caller);
        if self.common_ms >= Some(key_ms) || own.is_some_and(|own| own.forgotten_ms >= key_ms) {
            return Recall::Forgotten;
        }
        let ahead_ms = key_ms.saturating_sub(now_ms);
        let is_full = own.is_none() && self.ahead.len() >= self.callers_max;
        if ahead_ms > KEY_AHEAD_MS_MAX || ahead_ms > 0 && is_full {
            Recall::TooFarAhead { ahead_ms }
        } else {
            Recall::New
        }
    }

    /// Records keys that were committed and are remembered from now on.
    pub fn remember<'a>(&mut self, received_ms: u64, keys: impl Iterator<Item = &'a Key>) {
        for (key, key_ms) in keys.filter_map(|key| Some((key, key.key.unix_ms()?))) {
            if key_ms > received_ms && self.common_ms < Some(key_ms) {
                let own = self.ahead.entry(key.caller.clone()).or_default();
                own.latest_ms = own.latest_ms.max(key_ms);
            }
        }
        self.evict();
    }

    /// Treats unknown keys as forgotten from now on if they may be among the given ones. Call it before the keys are
    /// forgotten.
    pub fn forget(&mut self, forgetting: Forgetting) -> HorizonChange {
        self.common_ms = self.common_ms.max(forgetting.common_ms);
        for (caller, key_ms) in forgetting.ahead.iter().filter(|(_, key_ms)| self.common_ms < Some(**key_ms)) {
            let own = self.ahead.entry(caller.clone()).or_default();
            own.latest_ms = own.latest_ms.max(*key_ms);
            own.forgotten_ms = own.forgotten_ms.max(*key_ms);
        }
        self.evict();
        let common_ms = self.common_ms.unwrap_or(0);
        if common_ms >= self.swept_ms.saturating_add(SWEEP_MS) {
            self.swept_ms = common_ms;
            self.drop_passed();
        }
        let stored = |caller: &Caller| Some((caller.clone(), self.ahead.get(caller)?.forgotten_ms));
        let ahead = forgetting.ahead.keys().filter_map(stored).collect();
        HorizonChange { common_ms: self.common_ms, ahead, dropped: std::mem::take(&mut self.dropped) }
    }

    /// Bounds the memory regardless of the clocks: the common horizon replaces the entries that are the least ahead.
    /// Only a step of this machine's own clock creates so many entries, see [`Self::judge`].
    fn evict(&mut self) {
        if self.ahead.len() <= self.callers_max.saturating_mul(2) {
            return;
        }
        let mut latest: Vec<u64> = self.ahead.values().map(|own| own.latest_ms).collect();
        let surplus = latest.len() - self.callers_max;
        let (_, evicted_ms, _) = latest.select_nth_unstable(surplus - 1);
        self.common_ms = self.common_ms.max(Some(*evicted_ms));
        self.drop_passed();
    }

    fn drop_passed(&mut self) {
        let (common_ms, dropped) = (self.common_ms, &mut self.dropped);
        self.ahead.retain(|caller, own| {
            let stays = Some(own.latest_ms) > common_ms;
            if !stays && own.forgotten_ms > 0 {
                dropped.push(caller.clone());
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::IdempotencyKey;

    fn key(caller: &str, unix_ms: u64) -> Key {
        let (high, low) = (unix_ms >> 16, unix_ms & 0xFFFF);
        let key = IdempotencyKey::new(&format!("{high:08x}-{low:04x}-7000-8000-000000000000")).expect("a name");
        Key { caller: Caller::new(caller).expect("a name"), key }
    }

    fn forgetting(received_ms: u64, keys: &[Key]) -> Forgetting {
        let mut forgetting = Forgetting::default();
        forgetting.add(received_ms, keys.iter());
        forgetting
    }

    #[test]
    fn a_key_ahead_raises_the_common_horizon_no_further_than_the_time_at_which_it_was_received() {
        let mut horizon = KeyHorizon::new(None, 10);
        let change = horizon.forget(forgetting(1_000, &[key("fast", 50_000), key("slow", 400), key("right", 990)]));
        assert_eq!(change.common_ms, Some(1_000));
        assert_eq!(change.ahead, [(key("fast", 0).caller, 50_000)]);
        assert_eq!(horizon.judge(&key("right", 1_001), 1_001), Recall::New);
        assert_eq!(horizon.judge(&key("right", 1_000), 1_001), Recall::Forgotten);
        assert_eq!(horizon.judge(&key("fast", 50_000), 50_000), Recall::Forgotten);
        assert_eq!(horizon.judge(&key("fast", 50_001), 50_001), Recall::New);
    }

    #[test]
    fn a_remembered_key_ahead_leaves_its_caller_s_earlier_keys_new() {
        let mut horizon = KeyHorizon::new(None, 10);
        horizon.remember(1_000, [key("fast", 50_000)].iter());
        assert_eq!(horizon.judge(&key("fast", 49_000), 1_000), Recall::New, "two calls that overtake each other");
        assert_eq!(horizon.callers_ahead(), 1);
    }

    #[test]
    fn the_memory_for_callers_ahead_is_bounded_and_no_forgotten_key_is_new_again() {
        let mut horizon = KeyHorizon::new(None, 10);
        let keys: Vec<Key> = (0..500).map(|caller| key(&format!("caller-{caller}"), 2_000 + caller)).collect();
        for key in &keys {
            // The clock that received the key was stepped back: no caller was ahead when the key was judged.
            horizon.remember(1_000, std::iter::once(key));
            let change = horizon.forget(forgetting(1_000, std::slice::from_ref(key)));
            assert!(horizon.callers_ahead() <= 20);
            assert!(change.dropped.len() <= 20);
        }
        assert!(keys.iter().all(|key| horizon.judge(key, 5_000) == Recall::Forgotten));
    }

    #[test]
    fn what_was_made_durable_gives_the_same_horizon_back() {
        let mut horizon = KeyHorizon::new(None, 10);
        let change = horizon.forget(forgetting(1_000, &[key("fast", 50_000)]));
        let mut restored = KeyHorizon::new(change.common_ms, 10);
        change.ahead.into_iter().for_each(|(caller, forgotten_ms)| restored.restore(caller, forgotten_ms));
        for (caller, key_ms) in [("fast", 50_000), ("fast", 50_001), ("right", 1_000), ("right", 1_001)] {
            let key = key(caller, key_ms);
            assert_eq!(restored.judge(&key, key_ms), horizon.judge(&key, key_ms));
        }
        // The common horizon passes the entry, and the stored entry is removed.
        let change = restored.forget(forgetting(60_000, &[key("right", 60_000)]));
        assert_eq!((change.dropped.len(), restored.callers_ahead()), (1, 0));
    }
}
