//! The telemetry of the commit loop.

use super::instruments::Instruments;
use super::spans::{Spans, remote};
use crate::statistics::MutationOutcome;
use crate::sync::TraceContext;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use opentelemetry::trace::{Span as _, Status};
use opentelemetry_sdk::trace::Span;
use std::time::Duration;

/// Measures and traces commits; by default, it does neither.
#[derive(Debug, Clone, Default)]
pub struct CommitTelemetry {
    meters: Option<(Histogram<f64>, Histogram<u64>)>,
    spans: Spans,
}

/// The span of a traced call in the commit loop.
pub struct CommitSpan(Span);

impl CommitTelemetry {
    pub(super) fn new(instruments: &Instruments, spans: &Spans) -> Self {
        let meters = (instruments.commit_duration.clone(), instruments.commit_size.clone());
        Self { meters: Some(meters), spans: spans.clone() }
    }

    /// Starts the span of a call whose trace context is `call`, when the commit loop starts to process it. Returns
    /// `None` if the call is not traced.
    pub fn begin(&self, call: TraceContext) -> Option<CommitSpan> {
        self.spans.internal("commit", &remote(call), None, []).map(CommitSpan)
    }

    /// Records that a batch is durable, with its number of mutations and the duration of its commit.
    pub fn record(&self, mutations: usize, took: Duration) {
        if let Some((duration, size)) = &self.meters {
            duration.record(took.as_secs_f64(), &[]);
            size.record(mutations as u64, &[]);
        }
    }
}

impl CommitSpan {
    pub fn cause(&self) -> TraceContext {
        super::spans::cause(self.0.span_context())
    }

    /// Ends the span when the outcome of the mutation is known. `batch` is the number of mutations in its batch.
    pub fn end(mut self, batch: usize, outcome: MutationOutcome) {
        self.0.set_attribute(KeyValue::new("slotcast.batch.size", batch as i64));
        self.0.set_attribute(KeyValue::new("slotcast.mutation.outcome", outcome.name()));
        if outcome == MutationOutcome::Failed {
            self.0.set_status(Status::error("not committed"));
        }
        self.0.end();
    }
}
