//! The settings of logs, metrics and traces.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    pub log: LogSettings,
    /// The collector; `None` exports nothing. Metrics can be scraped in either case.
    pub otlp: Option<OtlpSettings>,
    /// The `service.instance.id`, which distinguishes the processes of the service.
    pub instance: String,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { log: LogSettings::default(), otlp: None, instance: uuid::Uuid::now_v7().to_string() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LogFormat,
    /// A filter in the syntax of `tracing_subscriber::EnvFilter`, such as `info` or `warn,slotcast=debug`.
    pub filter: String,
    pub access: AccessLogMode,
}

/// Which calls are logged, with one line each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccessLogMode {
    Off,
    /// Only calls that failed, at a limited rate.
    #[default]
    Errors,
    All,
}

impl AccessLogMode {
    pub const NAMES: [&str; 3] = ["off", "errors", "all"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "errors" => Some(Self::Errors),
            "all" => Some(Self::All),
            _ => None,
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".into(), access: AccessLogMode::default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line per event for people, in colour on a terminal.
    Pretty,
    /// One JSON object per event for programs.
    Json,
}

/// The collector to which traces, metrics and logs are exported, with OTLP over gRPC.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpSettings {
    /// The URL of the collector, such as `http://HOST:4317` or `https://HOST:4317`.
    pub endpoint: String,
    /// Path of a PEM file with further roots for `https`, in addition to the public authorities.
    pub ca: Option<PathBuf>,
    /// Headers of each export. They may be secrets, so they are neither logged nor shown.
    pub headers: BTreeMap<String, String>,
    /// Interval between exports of metrics.
    pub interval: Duration,
    /// Percentage of the calls without a trace context that are traced. For a call with one, its sampled flag decides.
    pub trace_percent: u8,
}

impl Default for OtlpSettings {
    fn default() -> Self {
        Self {
            endpoint: "http://127.0.0.1:4317".into(),
            ca: None,
            headers: BTreeMap::new(),
            interval: Duration::from_secs(30),
            trace_percent: 1,
        }
    }
}

impl fmt::Debug for OtlpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, ca, headers, interval, trace_percent } = self;
        f.debug_struct("OtlpSettings")
            .field("endpoint", endpoint)
            .field("ca", ca)
            .field("headers", &headers.keys())
            .field("interval", interval)
            .field("trace_percent", trace_percent)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_headers_are_not_shown() {
        let headers = BTreeMap::from([("authorization".to_owned(), "Bearer sesame".to_owned())]);
        let shown = format!("{:?}", OtlpSettings { headers, ..OtlpSettings::default() });
        assert!(shown.contains("authorization") && !shown.contains("sesame"), "{shown}");
    }
}
