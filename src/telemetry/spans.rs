//! Creates spans, and propagates the W3C trace context from callers and to services.

use crate::sync::TraceContext;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, ContextGuard, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use std::net::SocketAddr;
use std::time::SystemTime;

/// Maximum length of the name of an unknown method in a span, in bytes.
const ORIGINAL_BYTES_MAX: usize = 128;

/// Creates spans if tracing is enabled.
#[derive(Debug, Clone, Default)]
pub(super) struct Spans(Option<SdkTracer>);

/// The properties of a received call.
pub struct CallContext<'a> {
    /// `package.Service/Method`, or [`crate::statistics::OTHER_METHOD`] if the method is unknown.
    pub method: &'static str,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    pub client: Option<SocketAddr>,
}

/// The span of a traced call.
#[derive(Debug)]
pub struct CallSpan(Context);

impl Spans {
    pub fn new(tracer: Option<SdkTracer>) -> Self {
        Self(tracer)
    }

    /// Starts a span of an internal step of the service. Returns `None` if the step is not traced.
    pub fn start_internal(
        &self,
        name: &'static str,
        parent: &SpanContext,
        start: Option<SystemTime>,
        attributes: impl IntoIterator<Item = KeyValue>,
    ) -> Option<Span> {
        let tracer = self.0.as_ref()?;
        let mut builder = SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_attributes(attributes);
        builder.start_time = start;
        let span = builder.start_with_context(tracer, &Context::new().with_remote_span_context(parent.clone()));
        span.is_recording().then_some(span)
    }

    pub fn start_call(&self, call: &CallContext<'_>) -> Option<CallSpan> {
        let tracer = self.0.as_ref()?;
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(call.headers));
        let builder = SpanBuilder::from_name(call.method).with_kind(SpanKind::Server);
        let mut span = builder.start_with_context(tracer, &parent);
        if !span.is_recording() {
            return None;
        }
        span.set_attributes(call.attributes());
        Some(CallSpan(parent.with_span(span)))
    }
}

impl CallContext<'_> {
    fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", self.method)];
        if self.method == crate::statistics::OTHER_METHOD {
            let original = self.path.trim_start_matches('/');
            let end = original.floor_char_boundary(ORIGINAL_BYTES_MAX);
            attributes.push(KeyValue::new("rpc.method_original", original[..end].to_owned()));
        }
        if let Some(client) = self.client {
            attributes.push(KeyValue::new("client.address", client.ip().to_string()));
            attributes.push(KeyValue::new("client.port", i64::from(client.port())));
        }
        attributes
    }
}

impl CallSpan {
    /// Returns the trace context with which later spans refer to this one as their parent.
    pub fn trace_context(&self) -> TraceContext {
        trace_context(self.0.span().span_context())
    }

    /// Associates log lines on this thread with the call until the guard is dropped.
    pub fn enter(&self) -> ContextGuard {
        self.0.clone().attach()
    }

    pub fn end(&self, status: &'static str, is_fault: bool) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("rpc.response.status_code", status));
        if is_fault {
            span.set_attribute(KeyValue::new("error.type", status));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// Returns the ids of the current thread's trace and span in hexadecimal, or `None` if there is no sampled span.
pub(super) fn current_ids() -> Option<(String, String)> {
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        context.is_sampled().then(|| (context.trace_id().to_string(), context.span_id().to_string()))
    })
}

/// Returns the trace id of a `traceparent` header in hexadecimal, or `None` if the header is not valid.
pub fn trace_id(traceparent: &HeaderValue) -> Option<String> {
    let headers = HeaderMap::from_iter([(HeaderName::from_static("traceparent"), traceparent.clone())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(&headers));
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| context.trace_id().to_string())
}

pub(super) fn trace_context(context: &SpanContext) -> TraceContext {
    TraceContext { trace_id: context.trace_id().to_bytes(), span_id: context.span_id().to_bytes() }
}

/// Returns a remote span context. It is marked as sampled, because only sampled calls have a trace context here.
pub(super) fn remote_span_context(parent: TraceContext) -> SpanContext {
    let (trace_id, span_id) = (TraceId::from_bytes(parent.trace_id), SpanId::from_bytes(parent.span_id));
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE)
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_ids_are_those_of_the_attached_context() {
        let parent = TraceContext { trace_id: [0xab; 16], span_id: [0xcd; 8] };
        let _attached = Context::new().with_remote_span_context(remote_span_context(parent)).attach();
        assert_eq!(current_ids(), Some(("ab".repeat(16), "cd".repeat(8))));
    }

    #[test]
    fn without_a_collector_no_call_is_traced() {
        let mut headers = HeaderMap::new();
        let traceparent = format!("00-{}-{}-01", "ab".repeat(16), "cd".repeat(8));
        headers.insert("traceparent", traceparent.parse().expect("a header value"));
        let call = CallContext { method: "a/b", path: "/a/b", headers: &headers, client: None };
        assert!(Spans::default().start_call(&call).is_none());
    }
}
