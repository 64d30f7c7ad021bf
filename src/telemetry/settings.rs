//! What is told, how and to whom.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    pub log: LogSettings,
    /// None: nothing is sent; the meters can be fetched all the same.
    pub otlp: Option<OtlpSettings>,
    /// What tells this process from others of the service: `service.instance.id`.
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
    /// As `tracing_subscriber::EnvFilter` reads it: `info`, or `warn,slotcast=debug`.
    pub filter: String,
    pub access: AccessLogMode,
}

/// Which calls are logged, a line each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccessLogMode {
    Off,
    /// Those that were refused or failed; a flood of them is limited.
    #[default]
    Errors,
    All,
}

impl AccessLogMode {
    pub const NAMES: [&str; 3] = ["off", "errors", "all"];

    pub fn named(name: &str) -> Option<Self> {
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
    /// For people: a line each, in colour on a terminal.
    Pretty,
    /// For programs: an object each.
    Json,
}

/// Where traces, meters and logs are sent to: a collector that takes OTLP over gRPC.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpSettings {
    /// `http://HOST:4317`, or `https://`.
    pub endpoint: String,
    /// A PEM file of further roots for `https`, beside the public authorities.
    pub ca: Option<PathBuf>,
    /// Sent along with each export. They may be secrets: neither logged nor shown.
    pub headers: BTreeMap<String, String>,
    /// How often meters are sent.
    pub interval: Duration,
    /// Of the calls that come without a trace context, how many are traced. Of those with one, its flag decides.
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
