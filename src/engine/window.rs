//! The commit window: under load, the commit loop waits up to 1 ms for more requests before it commits a batch.
//!
//! A commit costs the same whatever its size, so many small batches waste CPU. Waiting pays only if requests keep
//! arriving meanwhile. Callers that send again right after their replies stop arriving once all of them are in the
//! queue. So the window consists of slices: it ends with the first slice in which nothing arrives, and it is used
//! only while the second slice of a window often gets requests. Rare probes find out when that begins.

use std::time::Duration;

/// Duration of one slice. A thread that sleeps wakes up to 50 us late.
const SLICE: Duration = Duration::from_micros(250);
/// Maximum number of slices in one window, so that it lasts for at most 1 ms.
const SLICES_MAX: u32 = 4;
/// Number of waiting requests from which a batch is large enough: the window ends, or does not begin.
const QUEUED_MAX: usize = 16;
/// While windows are not used, one batch in this many has a window of at most two slices.
const BATCHES_PER_PROBE: u32 = 192;
/// Weight of one window in the average of second slices, as a divisor.
const AVERAGE_DIVISOR: f32 = 16.0;
/// The average from which windows are used. Requests that arrive at random reach it from about 2,800 a second on; callers
/// that send again right after their replies stay near 0.
const USED_FROM: f32 = 0.25;

/// Decides for each batch whether to wait for more requests.
#[derive(Debug, Default)]
pub(super) struct CommitWindow {
    /// Moving average of the windows whose second slice got requests; 0 to 1.
    second_slices: f32,
    batches_without: u32,
    /// The number of slices in the current window so far.
    slices: u32,
    /// The number of requests that waited when the current slice began.
    queued: usize,
}

impl CommitWindow {
    /// Returns how long to wait before the batch is taken or this is called again; `None` to take it now. `queued` is
    /// the number of requests that wait.
    pub fn poll_wait(&mut self, queued: usize) -> Option<Duration> {
        let is_open = match self.slices {
            0 => self.may_begin(queued),
            slices => self.may_continue(slices, queued),
        };
        self.queued = queued;
        self.slices = if is_open { self.slices + 1 } else { 0 };
        is_open.then_some(SLICE)
    }

    fn may_begin(&mut self, queued: usize) -> bool {
        if queued >= QUEUED_MAX {
            return false;
        }
        if self.is_used() {
            return true;
        }
        self.batches_without += 1;
        let is_probe = self.batches_without >= BATCHES_PER_PROBE;
        if is_probe {
            self.batches_without = 0;
        }
        is_probe
    }

    fn may_continue(&mut self, slices: u32, queued: usize) -> bool {
        let has_arrivals = queued > self.queued;
        // A window that ends in its first slice because nothing arrives has no second slice with requests either.
        if slices == 2 || !has_arrivals && slices == 1 {
            let target = if has_arrivals { 1.0 } else { 0.0 };
            self.second_slices += (target - self.second_slices) / AVERAGE_DIVISOR;
        }
        let slices_max = if slices == 1 || self.is_used() { SLICES_MAX } else { 2 };
        has_arrivals && queued < QUEUED_MAX && slices < slices_max
    }

    fn is_used(&self) -> bool {
        self.second_slices >= USED_FROM
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

    #[test]
    fn requests_that_keep_arriving_one_at_a_time_are_committed_together() {
        let run = open_loop(5_000);
        assert!(run.mutations * 2 > run.commits * 5, "{run:?}");
        let run = open_loop(20_000);
        assert!(run.mutations > run.commits * 12, "{run:?}");
        assert!(run.longest_wait_us <= 1_000, "{run:?}");
    }

    #[test]
    fn few_requests_and_callers_that_wait_for_replies_are_not_delayed() {
        for run in [open_loop(500), closed_loop(1), closed_loop(4), closed_loop(12), closed_loop(64), closed_loop(256)]
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
