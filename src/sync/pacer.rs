//! When a frame is due, from what is waiting. Never earlier than allowed, never later than due.

use std::time::Duration;

/// A time, as what has passed since any one fixed moment.
pub type Moment = Duration;

/// What a reader is waiting for; the greatest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum SyncTrigger {
    #[default]
    None,
    /// A change of its own session, which it knows of, but not what came of it.
    Echo,
    /// A change by somebody else, or by a caller that gave no session.
    News,
    /// It believes something that is not so.
    Correction,
    /// It has nothing yet.
    Initial,
}

/// How long what is waiting may wait for more, counted from the last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    pub news: Duration,
    pub echo: Duration,
    /// Due times are rounded up to a multiple of this, so that the frames of one connection leave in one write.
    pub tick: Duration,
}

impl Windows {
    /// Everything at once.
    pub const NONE: Self = Self { news: Duration::ZERO, echo: Duration::ZERO, tick: Duration::ZERO };
}

impl Default for Windows {
    /// 100 ms for news, a second for echoes, ticks of 10 ms.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { news: ms(100), echo: ms(1_000), tick: ms(10) }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Pacer {
    sent_at: Option<Moment>,
    trigger: SyncTrigger,
}

impl Pacer {
    /// What is waiting now, all in all.
    pub fn handle_trigger(&mut self, trigger: SyncTrigger) {
        self.trigger = trigger;
    }

    /// A frame with all that was waiting has gone out.
    pub fn handle_sent(&mut self, now: Moment) {
        self.sent_at = Some(now);
        self.trigger = SyncTrigger::None;
    }

    pub fn trigger(&self) -> SyncTrigger {
        self.trigger
    }

    /// When the waiting frame is due, which may be in the past; none while nothing waits.
    pub fn poll_timeout(&self, now: Moment, windows: &Windows) -> Option<Moment> {
        let window = match self.trigger {
            SyncTrigger::None => return None,
            SyncTrigger::Correction | SyncTrigger::Initial => return Some(now),
            SyncTrigger::News => windows.news,
            SyncTrigger::Echo => windows.echo,
        };
        Some(self.sent_at.map_or(now, |sent_at| round_up(sent_at + window, windows.tick)))
    }

    pub fn is_due(&self, now: Moment, windows: &Windows) -> bool {
        self.poll_timeout(now, windows).is_some_and(|due| due <= now)
    }
}

fn round_up(moment: Moment, tick: Duration) -> Moment {
    let over_ns = moment.as_nanos().checked_rem(tick.as_nanos()).unwrap_or(0);
    // Less than a tick: it fits 64 bits.
    if over_ns == 0 { moment } else { moment + tick - Duration::from_nanos(over_ns as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times in ms at which frames go out when changes come at the given times.
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
    fn the_first_change_goes_at_once_and_the_next_waits_for_the_window() {
        let windows = Windows::default();
        assert_eq!(frames_at(&all(&[0, 10, 50, 99], SyncTrigger::News), windows), [0, 100]);
        assert_eq!(frames_at(&all(&[0, 10, 100, 150, 500], SyncTrigger::News), windows), [0, 100, 200, 500]);
        assert_eq!(frames_at(&all(&[0, 10, 999, 1_500, 5_000], SyncTrigger::Echo), windows), [0, 1_000, 2_000, 5_000]);
    }

    #[test]
    fn without_windows_each_change_goes_at_once() {
        assert_eq!(frames_at(&all(&[0, 1, 2, 50], SyncTrigger::Echo), Windows::NONE), [0, 1, 2, 50]);
    }

    #[test]
    fn news_and_corrections_do_not_wait_for_an_echo_s_window() {
        let changes =
            [(0, SyncTrigger::Echo), (10, SyncTrigger::Echo), (40, SyncTrigger::News), (200, SyncTrigger::Echo)];
        assert_eq!(frames_at(&changes, Windows::default()), [0, 100, 1_100]);
        let changes = [(0, SyncTrigger::Echo), (10, SyncTrigger::Echo), (40, SyncTrigger::Correction)];
        assert_eq!(frames_at(&changes, Windows::default()), [0, 40]);
    }

    #[test]
    fn what_has_to_wait_waits_for_the_next_tick() {
        assert_eq!(frames_at(&all(&[3, 50], SyncTrigger::News), Windows::default()), [3, 110]);
    }

    #[test]
    fn nothing_is_due_while_nothing_waits() {
        assert!(frames_at(&[], Windows::default()).is_empty());
    }
}
