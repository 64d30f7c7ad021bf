//! The log of this process. It is written to standard error and, if configured, exported to the collector.

use super::otlp::Exporters;
use super::settings::{LogFormat, LogSettings};
use super::spans;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use std::backtrace::BacktraceStatus;
use std::fmt;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Crates whose logs are not exported, because the exporter uses them: each export would cause the next one.
const EXPORTER_CRATES: [&str; 6] = ["opentelemetry", "tonic", "hyper", "h2", "tower", "rustls"];
/// Minimum interval between log lines about failed exports.
const EXPORT_ERROR_LOG_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error("{filter:?} is not a valid log filter: {problem} (examples: info, or warn,slotcast=debug)")]
pub struct InvalidFilter {
    filter: String,
    problem: String,
}

/// Changes the log filter at runtime.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    pub fn set(&self, filter: &str) -> Result<(), InvalidFilter> {
        let parsed = parse(filter)?;
        let invalid = |problem: reload::Error| InvalidFilter { filter: filter.into(), problem: problem.to_string() };
        self.0.reload(parsed).map_err(invalid)
    }
}

/// Installs the log of the process. If a log is already installed, only validates the filter.
pub fn install(settings: &LogSettings, exporters: Option<&Exporters>) -> Result<LogFilter, InvalidFilter> {
    let (filter, handle) = reload::Layer::new(parse(&settings.filter)?);
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match settings.format {
        LogFormat::Pretty => log.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => {
            log.fmt_fields(JsonFields::new()).event_format(JsonWithTrace(Format::default().json())).boxed()
        }
    };
    let exported = exporters.map(|exporters| {
        OpenTelemetryTracingBridge::new(exporters.logger())
            .with_filter(filter_fn(|metadata| !is_from_exporter(metadata)))
    });
    let subscriber =
        tracing_subscriber::registry().with(filter).with(log.with_filter(ExportErrorLimit::default())).with(exported);
    if let Err(error) = subscriber.try_init() {
        tracing::debug!(%error, "a log is already installed");
    }
    Ok(LogFilter(handle))
}

/// Makes panics appear as log lines instead of plain text on standard error.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(tracing::field::display);
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        let thread = std::thread::current();
        tracing::error!(panic = message, location, thread = thread.name(), backtrace, "panicked");
    }));
}

/// Validates a filter.
pub fn check(filter: &str) -> Result<(), InvalidFilter> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, InvalidFilter> {
    let invalid = |problem: tracing_subscriber::filter::ParseError| InvalidFilter {
        filter: filter.into(),
        problem: problem.to_string(),
    };
    if let Some(word) = filter.split(',').map(str::trim).find(|word| !is_directive(word)) {
        let problem = format!("{word:?} is not a level (error, warn, info, debug, trace or off)");
        return Err(InvalidFilter { filter: filter.into(), problem });
    }
    EnvFilter::try_new(filter).map_err(invalid)
}

/// Returns whether a word is a valid directive. `EnvFilter` takes a single word that is not a level for the name of a
/// crate, and then logs all of that crate and nothing else. A word that does not start with `slotcast` is therefore
/// treated as a misspelt level.
fn is_directive(word: &str) -> bool {
    word.contains(['=', '[']) || word.parse::<LevelFilter>().is_ok() || word.starts_with("slotcast") || word.is_empty()
}

fn is_from_exporter(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    EXPORTER_CRATES.iter().any(|name| root.strip_prefix(name).is_some_and(|rest| rest.is_empty() || is_subcrate(rest)))
}

/// Returns whether the rest of a crate's name makes it a part of the crate, as in `hyper_util` and
/// `opentelemetry-otlp`.
fn is_subcrate(rest: &str) -> bool {
    rest.starts_with(['_', '-'])
}

/// Limits log lines about failed exports to one per [`EXPORT_ERROR_LOG_INTERVAL`]. While the collector is unavailable,
/// exports fail every second.
struct ExportErrorLimit {
    start: Instant,
    /// When the next line may be logged, in milliseconds since `start`.
    next_ms: AtomicU64,
}

impl Default for ExportErrorLimit {
    fn default() -> Self {
        Self { start: Instant::now(), next_ms: AtomicU64::new(0) }
    }
}

impl ExportErrorLimit {
    fn admit(&self, now: Duration) -> bool {
        let now_ms = now.as_millis() as u64;
        let next_ms = now_ms + EXPORT_ERROR_LOG_INTERVAL.as_millis() as u64;
        let is_due = |due_ms| (due_ms <= now_ms).then_some(next_ms);
        self.next_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_due).is_ok()
    }
}

impl<S> Filter<S> for ExportErrorLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let is_warning = *metadata.level() <= Level::WARN;
        !metadata.target().starts_with("opentelemetry") || is_warning && self.admit(self.start.elapsed())
    }
}

/// Formats log lines as JSON, with the ids of the current trace and span.
struct JsonWithTrace(Format<Json>);

impl<S, N> FormatEvent<S, N> for JsonWithTrace
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some((trace_id, span_id)) = spans::current_ids() else {
            return self.0.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        let object = line.strip_suffix('}').unwrap_or(line);
        writeln!(writer, r#"{object},"trace_id":"{trace_id}","span_id":"{span_id}"}}"#)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_exports_are_logged_at_most_once_a_minute() {
        let limit = ExportErrorLimit::default();
        let admitted = [0, 1, 30, 59, 60, 61, 119, 121].map(|s| limit.admit(Duration::from_secs(s)));
        assert_eq!(admitted, [true, false, false, false, true, false, false, true]);
    }

    #[test]
    fn an_invalid_filter_is_refused_with_its_text() {
        for invalid in ["slotcast=loud", "inof", "warn,deubg"] {
            let error = parse(invalid).expect_err("not a level");
            assert!(error.to_string().contains(invalid), "{error}");
        }
        for valid in
            ["warn,slotcast=debug", "INFO", "off", "info,h2=trace", "slotcast", "info,slotcast::engine[span]=debug"]
        {
            assert!(parse(valid).is_ok(), "{valid}");
        }
    }
}
