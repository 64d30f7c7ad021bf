//! Metrics and spans of the frames of a stream.

use super::instruments::{Instruments, trigger_name};
use super::spans::{Spans, remote_span_context};
use crate::statistics::SyncKind;
use crate::sync::{SyncTrigger, TraceContext, TracedChange};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use opentelemetry::trace::{Link, Span as _};
use std::time::{Instant, SystemTime};

/// Measures and traces the frames of all streams; by default, it does neither.
#[derive(Debug, Clone, Default)]
pub struct FrameTelemetry {
    age: Option<Histogram<f64>>,
    spans: Spans,
}

/// A frame with changes that the stream passes to the transport.
#[derive(Debug, Clone, Copy)]
pub struct FrameSent {
    pub kind: SyncKind,
    pub trigger: SyncTrigger,
    pub bytes: u64,
    pub inventories: usize,
    /// When the oldest change in the frame was published; `None` for the first frame.
    pub stale_since: Option<Instant>,
    pub traced: Option<TracedChange>,
    /// The trace context of the stream's call, if it is traced.
    pub call: Option<TraceContext>,
}

impl FrameTelemetry {
    pub(super) fn new(instruments: &Instruments, spans: &Spans) -> Self {
        Self { age: Some(instruments.frame_age.clone()), spans: spans.clone() }
    }

    /// Records a frame and the age of its oldest change.
    pub fn record_frame(&self, frame: &FrameSent) {
        if let (Some(histogram), Some(stale_since)) = (&self.age, frame.stale_since) {
            let age = stale_since.elapsed();
            histogram.record(age.as_secs_f64(), &[KeyValue::new("trigger", trigger_name(frame.trigger))]);
        }
        if let Some(traced) = frame.traced {
            self.trace(frame, traced);
        }
    }

    fn trace(&self, frame: &FrameSent, TracedChange { at, trace }: TracedChange) {
        let attributes = [
            KeyValue::new("slotcast.frame.kind", frame.kind.name()),
            KeyValue::new("slotcast.frame.trigger", trigger_name(frame.trigger)),
            KeyValue::new("slotcast.frame.bytes", frame.bytes as i64),
            KeyValue::new("slotcast.frame.inventories", frame.inventories as i64),
        ];
        // Compute the start from the monotonic clock, in case the wall clock was changed since the commit.
        let start = SystemTime::now() - at.elapsed();
        let parent = remote_span_context(trace);
        let Some(mut span) = self.spans.start_internal("frame", &parent, Some(start), attributes) else { return };
        if let Some(call) = frame.call {
            let Link { span_context, attributes, .. } = Link::with_context(remote_span_context(call));
            span.add_link(span_context, attributes);
        }
        span.end();
    }
}
