//! Limits how often one kind of log line is written, so that a flood of rejected calls does not flood the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Maximum number of log lines of one kind per second; further lines are only counted.
pub const LINES_PER_SECOND: u32 = 10;

/// The rate limit of one kind of log line.
#[derive(Debug, Default)]
pub struct LogRateLimiter(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    /// The current second, counted from the same origin as `now`.
    second: u64,
    logged: u32,
    suppressed: u64,
}

impl LogRateLimiter {
    /// Returns the number of lines suppressed since the last logged line if a line may be logged at `now`, or `None` if
    /// it must be suppressed. `now` is the time since a fixed but arbitrary origin.
    pub fn admit(&self, now: Duration) -> Option<u64> {
        // No code panics while it holds the lock, so a poisoned window is still consistent.
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.second != now.as_secs() {
            window.second = now.as_secs();
            window.logged = 0;
        }
        if window.logged >= LINES_PER_SECOND {
            window.suppressed += 1;
            return None;
        }
        window.logged += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_limited_per_second_and_the_next_line_reports_the_suppressed_ones() {
        let rate = LogRateLimiter::default();
        let at = |ms| rate.admit(Duration::from_millis(ms));
        let admitted: Vec<_> = (0..1_000).filter_map(at).collect();
        assert_eq!(admitted, vec![0; LINES_PER_SECOND as usize]);
        assert_eq!(at(1_000), Some(990));
        assert_eq!(at(1_001), Some(0));
        assert_eq!(at(9_000), Some(0), "after a pause");
    }
}
