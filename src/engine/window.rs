//! The commit window: under load, the commit loop waits up to 1 ms for more requests before it commits a batch.
//!
//! A commit costs the same whatever its size, so many small batches waste CPU. Waiting pays only if requests keep
//! arriving meanwhile. Callers that send again right after their replies arrive in the first slice of a window, if at
//! all, and nothing arrives after it. So windows are used while requests arrive in their later slices. Occasional
//! probes find out when that begins.

use super::probes::Probes;
use std::time::Duration;

/// Duration of one slice. A thread that sleeps wakes up to 50 us late.
const SLICE: Duration = Duration::from_micros(250);
/// Number of slices after the first, so that a window lasts for 1 ms.
const LATER_SLICES: u32 = 3;
/// Number of waiting requests from which a batch is large enough: a window does not begin, or ends after its first slice.
const QUEUED_MAX: usize = 16;
/// Weight of one window in the average, as a divisor.
const AVERAGE_DIVISOR: f32 = 8.0;
/// The averages from which and until which windows are used: 600 and 300 requests a second. Callers that send again right
/// after their replies stay near 0.
const USED_FROM: f32 = 0.15;
const USED_UNTIL: f32 = 0.075;

/// Decides for each batch whether to wait for more requests.
#[derive(Debug, Default)]
pub(super) struct CommitWindow {
    /// Moving average of the number of requests that arrive in one slice of a window after its first.
    per_later_slice: f32,
    is_used: bool,
    /// While windows are not used, some batches have one as a probe.
    probes: Probes,
    state: WindowState,
}

/// The part of the window in which the commit loop waits. `queued` is the number of requests that waited when it began.
#[derive(Debug, Default, Clone, Copy)]
enum WindowState {
    #[default]
    Closed,
    FirstSlice,
    LaterSlices {
        queued: usize,
    },
}

impl CommitWindow {
    /// Returns how long to wait before the batch is taken or this is called again; `None` to take it now. `queued` is
    /// the number of requests that wait.
    pub fn poll_wait(&mut self, queued: usize) -> Option<Duration> {
        let has_room = queued < QUEUED_MAX;
        let may_begin = self.is_used || matches!(self.state, WindowState::Closed) && self.probes.must_probe();
        let (state, wait) = match self.state {
            WindowState::Closed if has_room && may_begin => (WindowState::FirstSlice, Some(SLICE)),
            WindowState::FirstSlice if has_room => (WindowState::LaterSlices { queued }, Some(SLICE * LATER_SLICES)),
            WindowState::LaterSlices { queued: before } => {
                self.handle_window(queued.saturating_sub(before));
                (WindowState::Closed, None)
            }
            WindowState::Closed | WindowState::FirstSlice => (WindowState::Closed, None),
        };
        self.state = state;
        wait
    }

    /// Handles the end of a window in whose later slices `arrived` requests arrived.
    fn handle_window(&mut self, arrived: usize) {
        let per_slice = arrived as f32 / LATER_SLICES as f32;
        self.per_later_slice += (per_slice - self.per_later_slice) / AVERAGE_DIVISOR;
        self.is_used = self.per_later_slice >= if self.is_used { USED_UNTIL } else { USED_FROM };
        self.probes.handle_result(arrived > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that a commit takes, in microseconds.
    const COMMIT_US: u64 = 150;
    const SECONDS: u64 = 4;

    /// The result of a simulated run.
    #[derive(Debug, Default)]
    struct Run {
        mutations: u64,
        commits: u64,
        /// Total time in windows, in microseconds.
        waited_us: u64,
        longest_wait_us: u64,
    }

    /// Simulates the commit loop. `arrivals` returns the times of new requests, in microseconds, given the times at
    /// which replies were sent; it is called whenever time passes.
    fn simulate(mut arrivals: impl FnMut(u64, usize) -> usize) -> Run {
        let (mut window, mut run, mut now_us, mut queued, mut replies) =
            (CommitWindow::default(), Run::default(), 0, 0, 0);
        while now_us < SECONDS * 1_000_000 {
            queued += arrivals(now_us, std::mem::take(&mut replies));
            if queued == 0 {
                now_us += 10;
                continue;
            }
            let mut waited_us = 0;
            while let Some(wait) = window.poll_wait(queued) {
                waited_us += wait.as_micros() as u64;
                queued += arrivals(now_us + waited_us, 0);
            }
            now_us += waited_us + COMMIT_US;
            run.longest_wait_us = run.longest_wait_us.max(waited_us);
            run.waited_us += waited_us;
            run.mutations += queued as u64;
            run.commits += 1;
            replies = std::mem::take(&mut queued);
        }
        run
    }

    /// Requests that arrive at random, independently of replies.
    fn open_loop(per_second: u64) -> Run {
        let mut random = fastrand::Rng::with_seed(1);
        let mut next_us = 0.0;
        simulate(move |now_us, _| {
            let mut arrived = 0;
            while next_us <= now_us as f64 {
                arrived += 1;
                next_us += -(1.0 - random.f64()).ln() * 1e6 / per_second as f64;
            }
            arrived
        })
    }

    /// Callers that send again 40 us after each reply, which arrive one after another.
    fn closed_loop(callers: usize) -> Run {
        let mut due = std::collections::VecDeque::from(vec![0; callers]);
        simulate(move |now_us, replies| {
            due.extend((1..=replies as u64).map(|n| now_us + 40 + n * 5));
            let arrived = due.iter().take_while(|due_us| **due_us <= now_us).count();
            due.drain(..arrived);
            arrived
        })
    }

    /// Requests that arrive at a fixed rate.
    fn fixed_rate(per_second: u64) -> Run {
        let mut next_us = 0;
        simulate(move |now_us, _| {
            let mut arrived = 0;
            while next_us <= now_us {
                arrived += 1;
                next_us += 1_000_000 / per_second;
            }
            arrived
        })
    }

    #[test]
    fn requests_that_keep_arriving_one_at_a_time_are_committed_together() {
        for (run, batch_min) in [
            (open_loop(1_000), 1.6),
            (fixed_rate(1_000), 1.6),
            (open_loop(5_000), 4.0),
            (fixed_rate(5_000), 4.0),
            (open_loop(20_000), 12.0),
        ] {
            assert!(run.mutations as f64 / run.commits as f64 >= batch_min, "{batch_min}: {run:?}");
            assert!(run.longest_wait_us <= 1_000, "{run:?}");
        }
    }

    #[test]
    fn few_requests_and_callers_that_wait_for_replies_are_not_delayed() {
        for run in [open_loop(200), closed_loop(1), closed_loop(4), closed_loop(12), closed_loop(64), closed_loop(256)]
        {
            assert!(run.waited_us < SECONDS * 1_000_000 / 50, "less than 2 % of the time: {run:?}");
        }
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let run = open_loop(200_000);
        assert!(run.waited_us < 10_000, "{run:?}");
    }
}
