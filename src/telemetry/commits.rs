//! Metrics and spans of the commit loop.

use super::instruments::Instruments;
use super::spans::{Spans, remote_span_context, trace_context};
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
    histograms: Option<CommitHistograms>,
    spans: Spans,
}

#[derive(Debug, Clone)]
struct CommitHistograms {
    duration: Histogram<f64>,
    size: Histogram<u64>,
}

/// The span of a traced mutation in the commit loop.
pub struct CommitSpan(Span);

impl CommitTelemetry {
    pub(super) fn new(instruments: &Instruments, spans: &Spans) -> Self {
        let histograms =
            CommitHistograms { duration: instruments.commit_duration.clone(), size: instruments.commit_size.clone() };
        Self { histograms: Some(histograms), spans: spans.clone() }
    }

    /// Starts the span of a mutation when the commit loop starts to process it. `parent` is the trace context of its
    /// call. Returns `None` if the call is not traced.
    pub fn start_span(&self, parent: TraceContext) -> Option<CommitSpan> {
        self.spans.start_internal("commit", &remote_span_context(parent), None, []).map(CommitSpan)
    }

    /// Records that a batch is durable, with its number of mutations and the duration of its commit.
    pub fn record_commit(&self, mutations: usize, duration: Duration) {
        if let Some(histograms) = &self.histograms {
            histograms.duration.record(duration.as_secs_f64(), &[]);
            histograms.size.record(mutations as u64, &[]);
        }
    }
}

impl CommitSpan {
    /// Returns the trace context with which later spans refer to this one as their parent.
    pub fn trace_context(&self) -> TraceContext {
        trace_context(self.0.span_context())
    }

    /// Ends the span when the outcome of the mutation is known. `batch` is the number of mutations in its batch.
    pub fn end(mut self, batch: usize, outcome: MutationOutcome) {
        self.0.set_attribute(KeyValue::new("slotcast.batch.size", batch as i64));
        self.0.set_attribute(KeyValue::new("slotcast.mutation.outcome", outcome.name()));
        if outcome == MutationOutcome::Failed {
            self.0.set_status(Status::error("commit failed or outcome unknown"));
        }
        self.0.end();
    }
}
