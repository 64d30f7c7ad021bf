//! Exports traces, metrics and logs to a collector, with OTLP over gRPC.
//!
//! A failing collector does not affect the service: queues are bounded and drop the excess, exports run on separate
//! threads, and the shutdown waits for them only for a limited time.

use super::metrics;
use super::settings::{OtlpSettings, TelemetrySettings};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig,
};
use opentelemetry_sdk::logs::{BatchConfigBuilder as LogBatches, BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder as SpanBatches, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use std::path::PathBuf;
use std::time::Duration;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig};

/// Timeout of one export.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time between exports of spans and log lines; a full batch is exported earlier.
const DELAY: Duration = Duration::from_secs(1);
/// Maximum number of spans, and of log lines, that wait to be exported; the excess is dropped.
const QUEUE_MAX: usize = 8_192;
const BATCH_MAX: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{endpoint:?} is not the address of a collector: {error} (example: http://127.0.0.1:4317)")]
    Endpoint { endpoint: String, error: ExporterBuildError },
    #[error(
        "export header {name:?}: not a valid header (use a name in lower case, and visible ASCII characters as its value)"
    )]
    Header { name: String },
    #[error("cannot read the root certificates for the collector from {}: {error} (set the path of a readable PEM file)", path.display())]
    Ca { path: PathBuf, error: std::io::Error },
}

/// The exporters to a collector. They run on separate threads and connect at the first export.
#[derive(Debug, Clone)]
pub struct Exporters {
    settings: OtlpSettings,
    tracer: SdkTracerProvider,
    logger: SdkLoggerProvider,
}

impl Exporters {
    /// Starts the exporters. Must be called within a tokio runtime. Returns `None` if no collector is configured.
    pub fn start(settings: &TelemetrySettings) -> Result<Option<Self>, ExportError> {
        let Some(otlp) = &settings.otlp else { return Ok(None) };
        let resource = metrics::resource(settings);
        let (metadata, tls) = (metadata(otlp)?, tls(otlp)?);
        let failed = |error| ExportError::Endpoint { endpoint: otlp.endpoint.clone(), error };
        let spans =
            configure(SpanExporter::builder().with_tonic(), otlp, &metadata, tls.as_ref()).build().map_err(failed)?;
        let logs =
            configure(LogExporter::builder().with_tonic(), otlp, &metadata, tls.as_ref()).build().map_err(failed)?;
        let batches = SpanBatches::default().with_max_queue_size(QUEUE_MAX).with_max_export_batch_size(BATCH_MAX);
        let spans =
            BatchSpanProcessor::builder(spans).with_batch_config(batches.with_scheduled_delay(DELAY).build()).build();
        let batches = LogBatches::default().with_max_queue_size(QUEUE_MAX).with_max_export_batch_size(BATCH_MAX);
        let logs =
            BatchLogProcessor::builder(logs).with_batch_config(batches.with_scheduled_delay(DELAY).build()).build();
        let share = f64::from(otlp.trace_percent.min(100)) / 100.0;
        let tracer = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(resource.clone())
            .with_span_processor(spans)
            .build();
        let logger = SdkLoggerProvider::builder().with_resource(resource).with_log_processor(logs).build();
        Ok(Some(Self { settings: otlp.clone(), tracer, logger }))
    }

    /// Validates the settings of the collector without exporting anything. Must be called within a tokio runtime.
    pub fn check(settings: &TelemetrySettings) -> Result<(), ExportError> {
        let Some(otlp) = &settings.otlp else { return Ok(()) };
        let (metadata, tls) = (metadata(otlp)?, tls(otlp)?);
        let exporter = configure(SpanExporter::builder().with_tonic(), otlp, &metadata, tls.as_ref()).build();
        exporter.map(drop).map_err(|error| ExportError::Endpoint { endpoint: otlp.endpoint.clone(), error })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.tracer.tracer("slotcast")
    }

    pub(super) fn logger(&self) -> &SdkLoggerProvider {
        &self.logger
    }

    pub(super) fn meter_reader(&self) -> Option<PeriodicReader<MetricExporter>> {
        // `start` has validated the settings, so these calls do not fail, unless the file of roots has changed.
        let (metadata, tls) = (metadata(&self.settings).ok()?, tls(&self.settings).ok()?);
        let exporter =
            configure(MetricExporter::builder().with_tonic(), &self.settings, &metadata, tls.as_ref()).build();
        match exporter {
            Ok(exporter) => {
                Some(PeriodicReader::builder(exporter).with_interval(self.settings.metrics_interval).build())
            }
            Err(error) => {
                tracing::error!(%error, "cannot export metrics");
                None
            }
        }
    }

    /// Exports the remaining data, for at most `limit`; data not exported by then is lost.
    pub async fn shutdown(self, metrics: SdkMeterProvider, limit: Duration) {
        let Self { tracer, logger, .. } = self;
        // Each shutdown blocks, and an unavailable collector delays all of them.
        let shutdowns: [Box<dyn FnOnce() -> bool + Send>; 3] = [
            Box::new(move || tracer.shutdown_with_timeout(limit).is_ok()),
            Box::new(move || metrics.shutdown_with_timeout(limit).is_ok()),
            Box::new(move || logger.shutdown_with_timeout(limit).is_ok()),
        ];
        let tasks = shutdowns.map(tokio::task::spawn_blocking);
        let ended = tokio::time::timeout(limit, futures_util::future::join_all(tasks)).await;
        if !ended.is_ok_and(|ended| ended.into_iter().all(|exported| exported.unwrap_or(false))) {
            tracing::warn!("cannot export the last traces, metrics or logs to the collector");
        }
    }
}

fn configure<B: WithExportConfig + WithTonicConfig>(
    builder: B,
    otlp: &OtlpSettings,
    metadata: &MetadataMap,
    tls: Option<&ClientTlsConfig>,
) -> B {
    let builder = builder.with_endpoint(&otlp.endpoint).with_timeout(TIMEOUT).with_metadata(metadata.clone());
    match tls {
        Some(tls) => builder.with_tls_config(tls.clone()),
        None => builder,
    }
}

/// Returns the TLS configuration, or `None` for plaintext.
fn tls(otlp: &OtlpSettings) -> Result<Option<ClientTlsConfig>, ExportError> {
    if !otlp.endpoint.starts_with("https:") {
        return Ok(None);
    }
    let tls = ClientTlsConfig::new().with_enabled_roots();
    let Some(path) = &otlp.ca else { return Ok(Some(tls)) };
    let pem = std::fs::read(path).map_err(|error| ExportError::Ca { path: path.clone(), error })?;
    Ok(Some(tls.ca_certificate(Certificate::from_pem(pem))))
}

fn metadata(otlp: &OtlpSettings) -> Result<MetadataMap, ExportError> {
    let mut metadata = MetadataMap::new();
    for (name, value) in &otlp.headers {
        let invalid = || ExportError::Header { name: name.clone() };
        let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        metadata.insert(key, MetadataValue::try_from(value).map_err(|_| invalid())?);
    }
    Ok(metadata)
}
