//! Observability: logs, metrics and traces. No other module uses OpenTelemetry.
//!
//! Only the log is global to the process ([`logs::install`]). Each server has its own [`Telemetry`], from which the
//! other rings get small structs that are cheap to clone and do nothing if telemetry is disabled.

mod commits;
mod frames;
mod instruments;
pub mod listener;
pub mod logs;
mod metrics;
mod otlp;
mod settings;
mod spans;

pub use commits::{CommitSpan, CommitTelemetry};
pub use frames::{FrameSent, FrameTelemetry};
pub use instruments::{CallDurations, SyncLimitTelemetry};
pub use metrics::MetricSources;
pub use otlp::{ExportError, Exporters};
pub use settings::{AccessLogMode, LogFormat, LogSettings, OtlpSettings, TelemetrySettings};
pub use spans::{CallContext, CallSpan, trace_id};

use crate::statistics::TransportStatistics;
use instruments::Instruments;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use spans::Spans;
use std::sync::Arc;
use std::time::Duration;

/// The metrics and traces of one server. Clones share them. Two servers must not share them, because they would
/// overwrite each other's gauges.
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
    /// Records metrics for scraping and exports nothing.
    fn default() -> Self {
        Self::new(&TelemetrySettings::default(), None)
    }
}

impl Telemetry {
    /// Creates the telemetry of a server. With `exporters`, also exports it with OTLP.
    pub fn new(settings: &TelemetrySettings, exporters: Option<&Exporters>) -> Self {
        let registry = Registry::new();
        metrics::register_process(&registry);
        let provider = metrics::provider(settings, &registry, exporters);
        let instruments = Instruments::new(&metrics::meter(&provider));
        let spans = Spans::new(exporters.map(Exporters::tracer));
        let access_log = settings.log.access;
        Self(Arc::new(Inner { provider, registry, instruments, spans, transport: Arc::default(), access_log }))
    }

    /// Registers the counters of other modules, which are read whenever metrics are collected.
    pub fn register(&self, sources: MetricSources) {
        metrics::register(&metrics::meter(&self.0.provider), sources);
    }

    /// Returns all metrics in Prometheus' text format. Takes locks of the sources, each for a short time.
    pub fn scrape(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.0.registry.gather())
    }

    /// Returns the meter provider, with which [`Exporters::shutdown`] exports the remaining metrics.
    pub fn meter_provider(&self) -> SdkMeterProvider {
        self.0.provider.clone()
    }

    /// Returns the counts of connections and certificate reloads.
    pub fn transport(&self) -> &Arc<TransportStatistics> {
        &self.0.transport
    }

    /// Returns which calls are logged.
    pub fn access_log(&self) -> AccessLogMode {
        self.0.access_log
    }

    /// Returns the telemetry of the commit loop.
    pub fn commits(&self) -> CommitTelemetry {
        CommitTelemetry::new(&self.0.instruments, &self.0.spans)
    }

    /// Returns the telemetry of streams.
    pub fn frames(&self) -> FrameTelemetry {
        FrameTelemetry::new(&self.0.instruments, &self.0.spans)
    }

    /// Returns the telemetry of the sync limit.
    pub fn sync_limit(&self) -> SyncLimitTelemetry {
        self.0.instruments.sync_limit.clone()
    }

    /// Starts the span of a received call. Returns `None` if the call is not traced.
    pub fn start_call(&self, context: &CallContext<'_>) -> Option<CallSpan> {
        self.0.spans.start_call(context)
    }

    /// Records that an opened stream has ended. `status` is the name of its gRPC status.
    pub fn record_stream(&self, method: &'static str, status: &'static str, duration: Duration) {
        instruments::record_stream(&self.0.instruments.stream_duration, method, status, duration);
    }

    /// Returns the histogram of the durations of unary calls, and of streams that could not be opened. `methods` are the
    /// names of all methods, in the order of their indices.
    pub fn call_durations(&self, methods: &[&'static str]) -> CallDurations {
        CallDurations::new(self.0.instruments.call_duration.clone(), methods)
    }
}
