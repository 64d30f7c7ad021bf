//! The clock that decides whether tokens are valid.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;

/// Returns the time of the wall clock, in milliseconds since Unix epoch. An operator may set the wall clock.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

pub(super) fn system() -> WallClock {
    let unix_time = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Arc::new(move || unix_time().as_millis() as u64)
}

/// The wall clock, but never behind the monotonic clock: setting the clock back does not
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

    /// Returns the time in milliseconds since Unix epoch.
    pub fn now_ms(&self) -> u64 {
        (self.wall)().max(self.monotonic_ms())
    }

    /// Returns how far the wall clock is ahead of the monotonic clock, in milliseconds; negative if it is behind.
    pub fn offset_ms(&self) -> i64 {
        (self.wall)() as i64 - self.monotonic_ms() as i64
    }

    fn monotonic_ms(&self) -> u64 {
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
    async fn setting_the_wall_clock_back_does_not_stop_the_time_and_setting_it_ahead_does_count() {
        let wall = Arc::new(AtomicU64::new(1_000_000));
        let read = wall.clone();
        let clock = Clock::new(Arc::new(move || read.load(Ordering::Relaxed)));
        tokio::time::advance(Duration::from_secs(5)).await;
        wall.store(1_005_000, Ordering::Relaxed);
        assert_eq!((clock.now_ms(), clock.offset_ms()), (1_005_000, 0));
        wall.store(5_000, Ordering::Relaxed);
        assert_eq!((clock.now_ms(), clock.offset_ms()), (1_005_000, -1_000_000));
        wall.store(2_000_000, Ordering::Relaxed);
        assert_eq!((clock.now_ms(), clock.offset_ms()), (2_000_000, 995_000));
    }
}
