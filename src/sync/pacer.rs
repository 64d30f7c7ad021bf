//! Decides when a frame is due: when the window of its trigger ends, or immediately for a correction or the first
//! frame.

use std::time::Duration;

/// A point in monotonic time: the time since a fixed start, such as the start of the stream. Not a wall-clock time.
pub type Moment = Duration;

/// What makes a sync due, in ascending order of urgency. If there are several triggers, the most urgent one applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum SyncTrigger {
    #[default]
    None,
    /// A change by the subscription's own session, which knows the change but not its result.
    Echo,
    /// A change by others, or by a caller that sent no session.
    News,
    /// The reader's state is wrong.
    Correction,
    /// The reader has no state yet.
    Initial,
}

/// Debounce windows: how long changes may be delayed to collect more of them. A window is measured from the last frame;
/// further changes do not restart it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    pub news: Duration,
    pub echo: Duration,
    /// Due times are rounded up to a multiple of this, so that frames of one connection are sent in one write.
    pub tick: Duration,
}

impl Windows {
    /// No debouncing: every change is due immediately.
    pub const NONE: Self = Self { news: Duration::ZERO, echo: Duration::ZERO, tick: Duration::ZERO };
}

/// Schedules the frames of one subscription.
#[derive(Debug, Clone, Default)]
pub struct Pacer {
    sent_at: Option<Moment>,
    trigger: SyncTrigger,
}

impl Pacer {
    /// Sets the most urgent trigger of all changes that are not sent yet.
    pub fn handle_trigger(&mut self, trigger: SyncTrigger) {
        self.trigger = trigger;
    }

    /// Records that a frame with all pending changes was sent at `now`.
    pub fn handle_sent(&mut self, now: Moment) {
        self.sent_at = Some(now);
        self.trigger = SyncTrigger::None;
    }

    pub fn trigger(&self) -> SyncTrigger {
        self.trigger
    }

    /// Returns when the next frame is due, possibly in the past, or `None` if nothing is pending.
    pub fn poll_timeout(&self, now: Moment, windows: &Windows) -> Option<Moment> {
        let window = match self.trigger {
            SyncTrigger::None => return None,
            SyncTrigger::Correction | SyncTrigger::Initial => return Some(now),
            SyncTrigger::News => windows.news,
            SyncTrigger::Echo => windows.echo,
        };
        Some(self.window_end(window, windows.tick).unwrap_or(now))
    }

    /// Returns when an echo after the last frame is due, or `None` if there was no frame.
    pub fn echo_end(&self, windows: &Windows) -> Option<Moment> {
        self.window_end(windows.echo, windows.tick)
    }

    fn window_end(&self, window: Duration, tick: Duration) -> Option<Moment> {
        self.sent_at.map(|sent_at| round_up(sent_at + window, tick))
    }

    pub fn is_due(&self, now: Moment, windows: &Windows) -> bool {
        self.poll_timeout(now, windows).is_some_and(|due| due <= now)
    }
}

fn round_up(moment: Moment, tick: Duration) -> Moment {
    let over_ns = moment.as_nanos().checked_rem(tick.as_nanos()).unwrap_or(0);
    // The remainder is less than a tick and fits in 64 bits.
    if over_ns == 0 { moment } else { moment + tick - Duration::from_nanos(over_ns as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the times in milliseconds at which frames are sent, given changes as (time in milliseconds, trigger).
    fn frames_at(changes: &[(u64, SyncTrigger)], windows: Windows) -> Vec<u64> {
        let mut pacer = Pacer::default();
        let mut frames = Vec::new();
        for ms in 0..10_000 {
            let now = Moment::from_millis(ms);
            for (_, trigger) in changes.iter().filter(|(at, _)| *at == ms) {
                pacer.handle_trigger(pacer.trigger().max(*trigger));
            }
            if pacer.is_due(now, &windows) {
                pacer.handle_sent(now);
                frames.push(ms);
            }
        }
        frames
    }

    fn all(at_ms: &[u64], trigger: SyncTrigger) -> Vec<(u64, SyncTrigger)> {
        at_ms.iter().map(|at| (*at, trigger)).collect()
    }

    #[test]
    fn the_first_change_is_sent_immediately_and_the_next_waits_for_the_window() {
        let windows = Windows::default();
        assert_eq!(frames_at(&all(&[0, 10, 50, 99], SyncTrigger::News), windows), [0, 100]);
        assert_eq!(frames_at(&all(&[0, 10, 100, 150, 500], SyncTrigger::News), windows), [0, 100, 200, 500]);
        assert_eq!(frames_at(&all(&[0, 10, 999, 1_500, 5_000], SyncTrigger::Echo), windows), [0, 1_000, 2_000, 5_000]);
    }

    #[test]
    fn without_windows_each_change_is_sent_immediately() {
        assert_eq!(frames_at(&all(&[0, 1, 2, 50], SyncTrigger::Echo), Windows::NONE), [0, 1, 2, 50]);
    }

    #[test]
    fn news_and_corrections_do_not_wait_for_the_echo_window() {
        let changes =
            [(0, SyncTrigger::Echo), (10, SyncTrigger::Echo), (40, SyncTrigger::News), (200, SyncTrigger::Echo)];
        assert_eq!(frames_at(&changes, Windows::default()), [0, 100, 1_100]);
        let changes = [(0, SyncTrigger::Echo), (10, SyncTrigger::Echo), (40, SyncTrigger::Correction)];
        assert_eq!(frames_at(&changes, Windows::default()), [0, 40]);
    }

    #[test]
    fn a_debounced_frame_is_sent_at_a_tick() {
        assert_eq!(frames_at(&all(&[3, 50], SyncTrigger::News), Windows::default()), [3, 105]);
    }

    #[test]
    fn no_frame_is_due_without_a_change() {
        assert!(frames_at(&[], Windows::default()).is_empty());
    }
}
