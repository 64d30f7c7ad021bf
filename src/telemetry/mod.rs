//! What the service tells of itself: logs, meters and traces. The only place that knows OpenTelemetry.
//!
//! Nothing here is global but the log of the process ([`logs::install`]): each server has a [`Telemetry`] of its own, and
//! the other rings get small structs from it that are cheap to clone and do nothing where nothing is asked for.

mod commits;
mod frames;
mod instruments;
pub mod listener;
pub mod logs;
mod meters;
mod otlp;
mod settings;
mod spans;

pub use commits::{CommitSpan, CommitTelemetry};
pub use frames::{FrameSent, FrameTelemetry};
pub use instruments::SyncLimitMeters;
pub use meters::Sources;
pub use otlp::{ExportError, Exporters};
pub use settings::{AccessLogMode, LogFormat, LogSettings, OtlpSettings, TelemetrySettings};
pub use spans::{CallContext, CallSpan, outgoing, trace_id};

use crate::statistics::TransportStatistics;
use crate::sync::TraceContext;
use instruments::Instruments;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use spans::Spans;
use std::sync::Arc;
use std::time::Duration;

/// One server's meters and traces. Clones share them; two servers must not, or each other's gauges are overwritten.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: SdkMeterProvider,
    registry: Registry,
    instruments: Instruments,
    spans: Spans,
    transport: Arc<TransportStatistics>,
    access_log: AccessLogMode,
}

impl Default for Telemetry {
    /// Measures for whoever asks over HTTP, and sends nothing anywhere.
    fn default() -> Self {
        Self::new(&TelemetrySettings::default(), None)
    }
}

impl Telemetry {
    /// With `exporters`, the same is sent by OTLP as well.
    pub fn new(settings: &TelemetrySettings, exporters: Option<&Exporters>) -> Self {
        let registry = Registry::new();
        meters::observe_process(&registry);
        let provider = meters::provider(settings, &registry, exporters);
        let instruments = Instruments::new(&meters::meter(&provider));
        let spans = Spans::new(exporters.map(Exporters::tracer));
        let access_log = settings.log.access;
        Self(Arc::new(Inner { provider, registry, instruments, spans, transport: Arc::default(), access_log }))
    }

    /// Begins to read what is counted elsewhere, each time that meters are collected.
    pub fn observe(&self, sources: Sources) {
        meters::observe(&meters::meter(&self.0.provider), sources);
    }

    /// All meters in Prometheus' text format. Takes locks of what it reads, each for a moment.
    pub fn scrape(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.0.registry.gather())
    }

    /// Sends what is not yet sent; see [`Exporters::shutdown`] for traces and logs.
    pub fn meter_provider(&self) -> SdkMeterProvider {
        self.0.provider.clone()
    }

    /// Where connections and reloads are counted.
    pub fn transport(&self) -> &Arc<TransportStatistics> {
        &self.0.transport
    }

    /// Which calls are to be logged.
    pub fn access_log(&self) -> AccessLogMode {
        self.0.access_log
    }

    pub fn commits(&self) -> CommitTelemetry {
        CommitTelemetry::new(&self.0.instruments, &self.0.spans)
    }

    /// For one stream; `call` is what its own call is traced by.
    pub fn frames(&self, call: Option<TraceContext>) -> FrameTelemetry {
        FrameTelemetry::new(&self.0.instruments, &self.0.spans, call)
    }

    pub fn sync_limit(&self) -> SyncLimitMeters {
        self.0.instruments.sync_limit.clone()
    }

    /// A call that comes in; none if it is not traced.
    pub fn begin_call(&self, context: &CallContext<'_>) -> Option<CallSpan> {
        self.0.spans.begin_call(context)
    }

    /// A stream that was opened has ended, with the gRPC status of this name.
    pub fn record_stream(&self, method: &'static str, status: &'static str, took: Duration) {
        instruments::record_stream(&self.0.instruments.stream_duration, method, status, took);
    }

    /// A call has ended, or a stream was refused. `status` is its gRPC status by name; `is_fault`: the server, not the
    /// caller, is to blame.
    pub fn record_call(&self, method: &'static str, status: &'static str, is_fault: bool, took: Duration) {
        instruments::record_call(&self.0.instruments.call_duration, method, status, is_fault, took);
    }
}
