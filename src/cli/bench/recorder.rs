//! Counts and latencies of a measurement.

use super::cpu::CpuTimes;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Largest latency that is recorded, in microseconds: one minute. Longer ones count as this.
const LATENCY_MAX_US: u64 = 60_000_000;
/// Above this share of a core, the generator and not the server may limit a figure.
const GENERATOR_SHARE_MAX: f64 = 0.9;

/// Records the calls of a measurement.
#[derive(Debug)]
pub struct Recorder {
    /// Calls that were due in this time are measured.
    measured: std::ops::Range<Duration>,
    is_counting: bool,
    calls: u64,
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            measured: Duration::MAX..Duration::MAX,
            is_counting: false,
            calls: 0,
            latencies: latencies(),
            errors: 0,
            first_error: None,
        }
    }
}

/// A histogram of latencies in microseconds, exact to three digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_MAX_US, 3).expect("the bounds are valid")
}

impl Recorder {
    /// Begins the measurement, of calls that are due until `end`.
    pub fn begin(&mut self, now: Duration, end: Duration) {
        self.measured = now..end;
        self.is_counting = true;
    }

    /// Ends the count of replies. Calls in flight still count for the latency.
    pub fn end(&mut self) {
        self.is_counting = false;
    }

    /// Records the reply to a call that was due at a time.
    pub fn record(&mut self, due: Duration, now: Duration) {
        if self.is_counting {
            self.calls += 1;
        }
        if self.measured.contains(&due) {
            self.latencies.saturating_record(now.saturating_sub(due).as_micros() as u64);
        }
    }

    /// Records a failure, at any time.
    pub fn fail(&mut self, error: String) {
        self.errors += 1;
        self.first_error.get_or_insert(error);
    }

    pub fn into_first_error(self) -> Option<String> {
        self.first_error
    }

    /// Returns the result of a measurement that took a time, with what the server and the generator used in it.
    pub fn measurement(
        self,
        elapsed: Duration,
        server: Option<CpuTimes>,
        generator_share: f64,
        unsent: u64,
    ) -> Measurement {
        let per_call = |time: Duration| time.as_secs_f64() * 1e6 / self.calls.max(1) as f64;
        Measurement {
            calls: self.calls,
            calls_per_s: self.calls as f64 / elapsed.as_secs_f64(),
            latency_us: Percentiles::of(&self.latencies),
            cpu_us: server.map(|server| CpuPerCall {
                total: per_call(server.total()),
                runtime: per_call(server.runtime),
                commit: per_call(server.commit),
                fold: per_call(server.fold),
                other: per_call(server.other),
            }),
            server_share: server.map(|server| server.total().as_secs_f64() / elapsed.as_secs_f64()),
            generator_share,
            is_valid: generator_share <= GENERATOR_SHARE_MAX && self.errors == 0 && unsent == 0 && self.calls > 0,
            unsent,
            errors: self.errors,
            first_error: self.first_error,
        }
    }
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Percentiles {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Percentiles {
    pub fn of(latencies: &Histogram<u64>) -> Self {
        let at = |quantile| latencies.value_at_quantile(quantile);
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: latencies.max() }
    }
}

/// CPU time of the server per call, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CpuPerCall {
    pub total: f64,
    pub runtime: f64,
    pub commit: f64,
    pub fold: f64,
    pub other: f64,
}

/// The result of one measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    pub calls: u64,
    pub calls_per_s: f64,
    pub latency_us: Percentiles,
    /// `None` if the server is not a process of this machine.
    pub cpu_us: Option<CpuPerCall>,
    /// CPU time of the server, as a share of one core.
    pub server_share: Option<f64>,
    /// CPU time of the load generator, as a share of one core.
    pub generator_share: f64,
    /// False if calls failed, or if the load generator may have been the limit.
    pub is_valid: bool,
    /// Calls of an open loop that were due but not sent, because too many were in flight.
    pub unsent: u64,
    pub errors: u64,
    pub first_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn latency_counts_from_the_time_at_which_a_call_was_due() {
        let mut recorder = Recorder::default();
        recorder.begin(Duration::ZERO, 1_000 * MS);
        // The server stalls for 100 ms: calls that became due meanwhile have waited too, though they were sent late.
        for due in 0..100 {
            recorder.record(due * MS, 100 * MS);
        }
        let measurement = recorder.measurement(1_000 * MS, None, 0.1, 0);
        let Percentiles { p50, p99, max, .. } = measurement.latency_us;
        assert!((50_000..=51_100).contains(&p50) && (99_000..=100_200).contains(&p99), "{p50} {p99}");
        assert!((100_000..=100_200).contains(&max));
        assert!(measurement.is_valid);
    }

    #[test]
    fn calls_of_the_warm_up_are_not_measured_and_those_in_flight_at_the_end_are() {
        let mut recorder = Recorder::default();
        recorder.record(MS, 2 * MS);
        recorder.begin(10 * MS, 20 * MS);
        recorder.record(9 * MS, 11 * MS);
        recorder.record(12 * MS, 13 * MS);
        recorder.end();
        recorder.record(19 * MS, 50 * MS);
        let measurement = recorder.measurement(10 * MS, None, 0.1, 0);
        assert_eq!(measurement.calls, 2, "replies within the measurement");
        assert!((31_000..=31_100).contains(&measurement.latency_us.max), "{:?}", measurement.latency_us);
    }

    #[test]
    fn a_busy_generator_an_error_and_unsent_calls_invalidate_a_figure() {
        let recorder = |errors: usize| {
            let mut recorder = Recorder::default();
            recorder.begin(Duration::ZERO, MS);
            recorder.record(Duration::ZERO, MS);
            (0..errors).for_each(|number| recorder.fail(number.to_string()));
            recorder
        };
        assert!(recorder(0).measurement(MS, None, 0.9, 0).is_valid);
        assert!(!recorder(0).measurement(MS, None, 0.91, 0).is_valid);
        assert!(!recorder(0).measurement(MS, None, 0.1, 1).is_valid);
        let failed = recorder(2).measurement(MS, None, 0.1, 0);
        assert_eq!((failed.is_valid, failed.errors, failed.first_error.as_deref()), (false, 2, Some("0")));
        assert!(!Recorder::default().measurement(MS, None, 0.1, 0).is_valid, "no calls");
    }
}
