//! When a frame is due: at once if the last one is long enough ago (leading edge), else when the window since it is over
//! (debounce). Never earlier than allowed, never later than due.

use std::time::Duration;

/// A time, as what has passed since any one fixed moment.
pub type Moment = Duration;

#[derive(Debug, Clone)]
pub struct Pacer {
    window: Duration,
    sent_at: Option<Moment>,
    waiting: bool,
}

impl Pacer {
    /// No frame follows another within `window`; with zero, each change is due at once.
    pub fn new(window: Duration) -> Self {
        Self { window, sent_at: None, waiting: false }
    }

    /// Something has changed that the reader does not have.
    pub fn handle_change(&mut self) {
        self.waiting = true;
    }

    /// A frame with all that was waiting has gone out.
    pub fn handle_sent(&mut self, now: Moment) {
        self.sent_at = Some(now);
        self.waiting = false;
    }

    /// What was waiting needs no frame after all.
    pub fn handle_nothing_to_send(&mut self) {
        self.waiting = false;
    }

    /// When the waiting frame is due, which may be in the past; none while nothing waits.
    pub fn poll_timeout(&self, now: Moment) -> Option<Moment> {
        if !self.waiting {
            return None;
        }
        Some(self.sent_at.map_or(now, |sent_at| sent_at + self.window))
    }

    pub fn is_due(&self, now: Moment) -> bool {
        self.poll_timeout(now).is_some_and(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(100);

    /// The times in ms at which frames go out when changes come at the given times.
    fn frames_at(changes_at_ms: &[u64], window: Duration) -> Vec<u64> {
        let mut pacer = Pacer::new(window);
        let mut frames = Vec::new();
        for ms in 0..5_000 {
            let now = Moment::from_millis(ms);
            if changes_at_ms.contains(&ms) {
                pacer.handle_change();
            }
            if pacer.is_due(now) {
                pacer.handle_sent(now);
                frames.push(ms);
            }
        }
        frames
    }

    #[test]
    fn the_first_change_goes_at_once_and_the_next_waits_for_the_window() {
        assert_eq!(frames_at(&[0, 10, 50, 99], WINDOW), [0, 100]);
        assert_eq!(frames_at(&[0, 10, 100, 150, 500], WINDOW), [0, 100, 200, 500]);
    }

    #[test]
    fn without_a_window_each_change_goes_at_once() {
        assert_eq!(frames_at(&[0, 1, 2, 50], Duration::ZERO), [0, 1, 2, 50]);
    }

    #[test]
    fn nothing_is_due_while_nothing_waits() {
        assert!(frames_at(&[], WINDOW).is_empty());
    }
}
