//! Retry delays: exponential backoff with full jitter, so that clients do not all reconnect at once after a server
//! restart.

use std::time::Duration;

const DELAY_BOUND_FIRST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Resets the delay after a success.
    pub fn handle_success(&mut self) {
        self.failures = 0;
    }

    /// Returns the delay before the next attempt: a random duration of at most 5 s, whose upper bound doubles with each
    /// consecutive failure.
    pub fn handle_failure(&mut self) -> Duration {
        let bound = Self::bound(self.failures);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(fastrand::f64())
    }

    fn bound(failures: u32) -> Duration {
        DELAY_BOUND_FIRST.saturating_mul(1 << failures.min(16)).min(DELAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_maximum_and_are_reset_by_a_success() {
        let bounds: Vec<u128> = (0..8).map(|failures| Backoff::bound(failures).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert!(backoff.handle_failure() <= DELAY_MAX);
        }
        backoff.handle_success();
        assert!(backoff.handle_failure() <= DELAY_BOUND_FIRST);
    }
}
