//! How often a line of one kind may be logged, so that a flood of refusals does not become a flood of lines.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Lines of one kind that are logged in one second; more are only counted.
pub const LINES_PER_SECOND: u32 = 10;

/// The lines of one kind.
#[derive(Debug, Default)]
pub struct LogRate(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    /// Since the same moment as every `now`.
    second: u64,
    logged: u32,
    suppressed: u64,
}

impl LogRate {
    /// Whether a line may be logged at `now`, which is time since any fixed moment; then, how many lines were suppressed since
    /// the last one that was logged.
    pub fn admit(&self, now: Duration) -> Option<u64> {
        // It is changed in steps that cannot fail, so a panic elsewhere spoils nothing.
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
    fn a_flood_of_lines_is_limited_each_second_and_the_next_line_tells_how_many_were_suppressed() {
        let rate = LogRate::default();
        let at = |ms| rate.admit(Duration::from_millis(ms));
        let admitted: Vec<_> = (0..1_000).filter_map(at).collect();
        assert_eq!(admitted, vec![0; LINES_PER_SECOND as usize]);
        assert_eq!(at(1_000), Some(990));
        assert_eq!(at(1_001), Some(0));
        assert_eq!(at(9_000), Some(0), "after a rest");
    }
}
