//! Limits the invalid tokens from one address. Each costs a signature verification before the caller is known, so no
//! limit per caller applies.
//!
//! Only invalid tokens count, and only tokens that are not in the cache are refused because of them: an address may
//! belong to a proxy with many honest callers.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Time after which one more invalid token is allowed, in microseconds: 100 per second.
const INTERVAL_US: u64 = 10_000;
/// Maximum number of invalid tokens that an address may send at once.
const BURST: u64 = 200;
/// Number of counters. Addresses share them by a keyed hash that an attacker cannot predict, so memory is bounded for
/// any number of addresses.
const COUNTERS: usize = 4_096;

/// A token bucket for each counter, stored as the time at which it is full again.
#[derive(Debug)]
pub(super) struct InvalidTokenLimiter {
    start: Instant,
    hasher: RandomState,
    /// For each counter, when its whole burst is available again, in microseconds since `start`.
    full_at_us: Box<[AtomicU64]>,
}

impl InvalidTokenLimiter {
    pub fn new() -> Self {
        let full_at_us = (0..COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self { start: Instant::now(), hasher: RandomState::new(), full_at_us }
    }

    /// Returns how long the address must wait until its next token is verified, or `None` if it need not wait.
    pub fn retry_after(&self, address: IpAddr) -> Option<Duration> {
        let used_us = self.counter(address).load(Ordering::Relaxed).saturating_sub(self.now_us());
        let wait_us = (used_us + INTERVAL_US).saturating_sub(BURST * INTERVAL_US);
        (wait_us > 0).then(|| Duration::from_millis(wait_us.div_ceil(1_000)))
    }

    /// Counts an invalid token.
    pub fn add_invalid_token(&self, address: IpAddr) {
        let now_us = self.now_us();
        // The update always succeeds, since the closure always returns a value.
        let _ = self.counter(address).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at_us| {
            Some(full_at_us.max(now_us) + INTERVAL_US)
        });
    }

    fn counter(&self, address: IpAddr) -> &AtomicU64 {
        &self.full_at_us[self.hasher.hash_one(address) as usize % COUNTERS]
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_address_has_its_own_burst_which_refills_over_time() {
        let limiter = InvalidTokenLimiter::new();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let counter = |last| std::ptr::from_ref(limiter.counter(address(last)));
        let other = (2..).find(|last| counter(*last) != counter(1)).expect("two counters");
        for _ in 0..BURST {
            assert_eq!(limiter.retry_after(address(1)), None);
            limiter.add_invalid_token(address(1));
        }
        assert_eq!(limiter.retry_after(address(1)), Some(Duration::from_millis(10)));
        assert_eq!(limiter.retry_after(address(other)), None);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(limiter.retry_after(address(1)), None, "one more token is allowed");
        limiter.add_invalid_token(address(1));
        assert!(limiter.retry_after(address(1)).is_some(), "only one more token is allowed");
        tokio::time::advance(Duration::from_secs(60)).await;
        for _ in 0..BURST {
            assert_eq!(limiter.retry_after(address(1)), None, "the burst is available again");
            limiter.add_invalid_token(address(1));
        }
        assert!(limiter.retry_after(address(1)).is_some(), "the burst does not grow while the address is idle");
    }
}
