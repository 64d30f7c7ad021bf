//! The clock that decides whether tokens are valid.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;

/// The wall clock: milliseconds since the Unix epoch. An operator may set it.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

pub(super) fn system() -> WallClock {
    let since_1970 = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Arc::new(move || since_1970().as_millis() as u64)
}

/// The wall clock, but never earlier than the start time plus the time since then: setting the clock back does not
/// prolong a token.
pub(super) struct Clock {
    wall: WallClock,
    start_ms: u64,
    start: Instant,
}

impl Clock {
    pub fn new(wall: WallClock) -> Self {
        Self { start_ms: wall(), start: Instant::now(), wall }
    }

    pub fn now_ms(&self) -> u64 {
        (self.wall)().max(self.steady_ms())
    }

    /// How far the wall clock is ahead of the time since the start, in milliseconds; negative if it is behind.
    pub fn ahead_ms(&self) -> i64 {
        (self.wall)() as i64 - self.steady_ms() as i64
    }

    fn steady_ms(&self) -> u64 {
        self.start_ms + self.start.elapsed().as_millis() as u64
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("start_ms", &self.start_ms).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_is_set_back_stops_nothing_and_one_set_ahead_counts() {
        let wall = Arc::new(AtomicU64::new(1_000_000));
        let read = wall.clone();
        let clock = Clock::new(Arc::new(move || read.load(Ordering::Relaxed)));
        tokio::time::advance(Duration::from_secs(5)).await;
        wall.store(1_005_000, Ordering::Relaxed);
        assert_eq!((clock.now_ms(), clock.ahead_ms()), (1_005_000, 0));
        wall.store(5_000, Ordering::Relaxed);
        assert_eq!((clock.now_ms(), clock.ahead_ms()), (1_005_000, -1_000_000));
        wall.store(2_000_000, Ordering::Relaxed);
        assert_eq!((clock.now_ms(), clock.ahead_ms()), (2_000_000, 995_000));
    }
}
