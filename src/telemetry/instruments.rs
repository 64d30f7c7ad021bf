//! The histograms, which are recorded where it happens. All other meters are read from plain counters: [`super::meters`].

use crate::sync::Waiting;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use std::time::Duration;

/// Of calls and frames: from 100 us to 10 s, as the semantic conventions have it, with finer steps where we are.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Of frames: how old a change is when it is sent. Windows are 100 ms and 1 s; a stalled reader may be minutes behind.
const AGE_SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 1.5, 5.0, 30.0, 300.0];
/// Of waits for a permit: it is there within a second, if nobody else waits.
const DELAY_SECONDS: [f64; 11] = [0.0, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0];
/// Of batches: the commit loop takes at most 1,024 at once.
const BATCH: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0];

#[derive(Debug)]
pub(super) struct Instruments {
    pub calls: CallMeters,
    pub commit_duration: Histogram<f64>,
    pub commit_size: Histogram<u64>,
    pub frame_age: Histogram<f64>,
    pub sync_limit: SyncLimitMeters,
}

#[derive(Debug)]
pub(super) struct CallMeters {
    pub duration: Histogram<f64>,
}

/// How long frames wait for their player's permit.
#[derive(Debug, Clone, Default)]
pub struct SyncLimitMeters(Option<Histogram<f64>>);

impl SyncLimitMeters {
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
        let duration = "rpc.server.call.duration";
        let commit_size = meter.u64_histogram("slotcast.commit.size").with_unit("{mutation}");
        let delay = "How long a frame waited for its player's permit.";
        Self {
            calls: CallMeters { duration: seconds(duration, "How long calls took, streams to their end.", &SECONDS) },
            commit_duration: seconds("slotcast.commit.duration", "How long the store took for a batch.", &SECONDS),
            commit_size: commit_size
                .with_description("Mutations committed together.")
                .with_boundaries(BATCH.to_vec())
                .build(),
            frame_age: seconds(
                "slotcast.frame.age",
                "From the oldest commit that a reader was not sent to its frame.",
                &AGE_SECONDS,
            ),
            sync_limit: SyncLimitMeters(Some(seconds("slotcast.sync_limit.delay", delay, &DELAY_SECONDS))),
        }
    }
}

pub(super) fn record_call(
    duration: &Histogram<f64>,
    method: &'static str,
    status: &'static str,
    is_fault: bool,
    took: Duration,
) {
    let attributes = [
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.response.status_code", status),
        KeyValue::new("error.type", status),
    ];
    let known = if is_fault { &attributes[..] } else { &attributes[..3] };
    duration.record(took.as_secs_f64(), known);
}

/// Why a frame was sent, in one word.
pub(super) fn trigger(waiting: Waiting) -> &'static str {
    match waiting {
        Waiting::Initial => "initial",
        // A frame with changes is always triggered by something.
        Waiting::News | Waiting::Nothing => "news",
        Waiting::Echo => "echo",
        Waiting::Correction => "correction",
    }
}
