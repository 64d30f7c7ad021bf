//! Limits the wrong tokens from one address. Each costs a signature check before the caller is known, so no limit per
//! caller applies.
//!
//! Only wrong tokens count, and only tokens that are not verified yet are refused because of them: an address may
//! belong to a proxy with many honest callers.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Time after which one wrong token is forgiven, in microseconds; allows 100 per second.
const INTERVAL_US: u64 = 10_000;
/// Maximum number of wrong tokens that an address may send at once.
const BURST: u64 = 200;
/// Number of counters. Addresses share them by a keyed hash that an attacker cannot predict, so memory is bounded for
/// any number of addresses.
const COUNTERS: usize = 4_096;

#[derive(Debug)]
pub(super) struct Failures {
    begin: Instant,
    hasher: RandomState,
    /// For each counter, when all wrong tokens are forgiven, in microseconds since `begin`.
    forgiven_us: Box<[AtomicU64]>,
}

impl Failures {
    pub fn new() -> Self {
        let forgiven_us = (0..COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self { begin: Instant::now(), hasher: RandomState::new(), forgiven_us }
    }

    /// How long the address must wait until its next token is checked; `None` if it need not wait.
    pub fn wait(&self, from: IpAddr) -> Option<Duration> {
        let owed_us = self.counter(from).load(Ordering::Relaxed).saturating_sub(self.now_us());
        let wait_us = (owed_us + INTERVAL_US).saturating_sub(BURST * INTERVAL_US);
        (wait_us > 0).then(|| Duration::from_millis(wait_us.div_ceil(1_000)))
    }

    pub fn add(&self, from: IpAddr) {
        let now_us = self.now_us();
        // The update always succeeds, since the closure always returns a value.
        let _ = self.counter(from).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |forgiven_us| {
            Some(forgiven_us.max(now_us) + INTERVAL_US)
        });
    }

    fn counter(&self, from: IpAddr) -> &AtomicU64 {
        &self.forgiven_us[self.hasher.hash_one(from) as usize % COUNTERS]
    }

    fn now_us(&self) -> u64 {
        self.begin.elapsed().as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_has_its_own_budget_of_wrong_tokens_and_it_comes_back() {
        let failures = Failures::new();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let counter = |last| std::ptr::from_ref(failures.counter(address(last)));
        let other = (2..).find(|last| counter(*last) != counter(1)).expect("two counters");
        for _ in 0..BURST {
            assert_eq!(failures.wait(address(1)), None);
            failures.add(address(1));
        }
        assert_eq!(failures.wait(address(1)), Some(Duration::from_millis(10)));
        assert_eq!(failures.wait(address(other)), None);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(failures.wait(address(1)), None, "one is forgiven");
        failures.add(address(1));
        assert!(failures.wait(address(1)).is_some(), "and only one");
        tokio::time::advance(Duration::from_secs(60)).await;
        for _ in 0..BURST {
            assert_eq!(failures.wait(address(1)), None, "no more than a burst is saved up");
            failures.add(address(1));
        }
        assert!(failures.wait(address(1)).is_some());
    }
}
