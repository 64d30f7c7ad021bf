//! The histograms, recorded when an event happens. All other metrics are read from plain counters ([`super::metrics`]).

use crate::sync::SyncTrigger;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundHistogram, Histogram, Meter};
use std::sync::OnceLock;
use std::time::Duration;

/// Bucket boundaries of call durations, in seconds. There are few, because each adds a line for every method and
/// status. An alert uses 0.25.
const CALL_SECONDS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0];
/// Bucket boundaries of stream durations, in seconds; streams last for minutes or hours.
const STREAM_SECONDS: [f64; 6] = [1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0];
/// Bucket boundaries of commit durations, in seconds.
const COMMIT_SECONDS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0];
/// Bucket boundaries of the age of a change when its frame is sent, in seconds. The debounce windows are 100 ms and 1 s
/// by default; a stalled reader may be minutes behind.
const AGE_SECONDS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0, 60.0];
/// Bucket boundaries of the time for which frames wait for a permit, in seconds. A permit is available within about a
/// second if no other stream waits.
const DELAY_SECONDS: [f64; 8] = [0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Bucket boundaries of the number of mutations in a batch; by default, a batch has at most 1,024.
const BATCH_MUTATIONS: [f64; 6] = [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0];

#[derive(Debug)]
pub(super) struct Instruments {
    pub call_duration: Histogram<f64>,
    pub stream_duration: Histogram<f64>,
    pub commit_duration: Histogram<f64>,
    pub commit_size: Histogram<u64>,
    pub frame_age: Histogram<f64>,
    pub sync_limit: SyncLimitTelemetry,
}

/// Records how long frames wait for a permit of their player.
#[derive(Debug, Clone, Default)]
pub struct SyncLimitTelemetry(Option<Histogram<f64>>);

impl SyncLimitTelemetry {
    pub fn record(&self, delay: Duration) {
        if let Some(histogram) = &self.0 {
            histogram.record(delay.as_secs_f64(), &[]);
        }
    }
}

impl Instruments {
    pub fn new(meter: &Meter) -> Self {
        let seconds = |name, description, boundaries: &[f64]| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(description);
            histogram.with_boundaries(boundaries.to_vec()).build()
        };
        let commit_size = meter.u64_histogram("slotcast.commit.size").with_unit("{mutation}");
        let delay = "Time that frames wait for the sync limit of their player in seconds.";
        Self {
            call_duration: seconds(
                "rpc.server.call.duration",
                "Duration of unary calls, and of streams that could not be opened, in seconds.",
                &CALL_SECONDS,
            ),
            stream_duration: seconds(
                "slotcast.stream.duration",
                "Duration of streams from their opening to their end in seconds.",
                &STREAM_SECONDS,
            ),
            commit_duration: seconds(
                "slotcast.commit.duration",
                "Duration of commits of a batch to the store in seconds.",
                &COMMIT_SECONDS,
            ),
            commit_size: commit_size
                .with_description("Number of mutations in a committed batch.")
                .with_boundaries(BATCH_MUTATIONS.to_vec())
                .build(),
            frame_age: seconds(
                "slotcast.frame.age",
                "Age of the oldest change in a frame when the frame is sent, in seconds.",
                &AGE_SECONDS,
            ),
            sync_limit: SyncLimitTelemetry(Some(seconds("slotcast.sync_limit.delay", delay, &DELAY_SECONDS))),
        }
    }
}

pub(super) fn record_stream(
    histogram: &Histogram<f64>,
    method: &'static str,
    status: &'static str,
    duration: Duration,
) {
    let attributes = [KeyValue::new("rpc.method", method), KeyValue::new("rpc.response.status_code", status)];
    histogram.record(duration.as_secs_f64(), &attributes);
}

/// Number of gRPC status codes.
const CODES: usize = 17;

/// Records the durations of calls by method and status. The labels of each method and status are looked up only once.
#[derive(Debug)]
pub struct CallDurations {
    histogram: Histogram<f64>,
    methods: Vec<MethodDurations>,
}

#[derive(Debug)]
struct MethodDurations {
    name: &'static str,
    /// Indexed by the status code. Bound when the first call ends with that code, because a bound histogram is exported
    /// even without a value.
    by_code: [OnceLock<BoundHistogram<f64>>; CODES],
}

impl CallDurations {
    pub(super) fn new(histogram: Histogram<f64>, methods: &[&'static str]) -> Self {
        let durations = |name: &&'static str| MethodDurations { name, by_code: Default::default() };
        Self { histogram, methods: methods.iter().map(durations).collect() }
    }

    /// Records a call that has ended, or a stream that could not be opened. `method` is the index of its method, `code`
    /// and `status` are the number and the name of its gRPC status; `is_fault` means a fault of the server, not of the
    /// caller.
    pub fn record(&self, method: usize, code: usize, status: &'static str, is_fault: bool, duration: Duration) {
        let Some(MethodDurations { name, by_code }) = self.methods.get(method) else { return };
        let Some(bound) = by_code.get(code) else { return };
        let bind = || self.histogram.bind(&call_attributes(name, status)[..if is_fault { 4 } else { 3 }]);
        bound.get_or_init(bind).record(duration.as_secs_f64());
    }
}

/// Returns the attributes of a call. Only faults of the server have the last one, `error.type`.
fn call_attributes(method: &'static str, status: &'static str) -> [KeyValue; 4] {
    [
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.response.status_code", status),
        KeyValue::new("error.type", status),
    ]
}

/// Returns the label value of a trigger.
pub(super) fn trigger_name(trigger: SyncTrigger) -> &'static str {
    match trigger {
        SyncTrigger::Initial => "initial",
        // A frame with changes always has a trigger.
        SyncTrigger::News | SyncTrigger::None => "news",
        SyncTrigger::Echo => "echo",
        SyncTrigger::Correction => "correction",
    }
}
