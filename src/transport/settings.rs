//! The settings of the transport.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportSettings {
    /// Certificates and keys for TLS. `None` means plaintext.
    pub tls: Option<TlsSettings>,
    /// Maximum duration of a TLS handshake.
    pub handshake_timeout: Duration,
    /// Maximum time until a connection has sent its HTTP/2 preface, or the head of its first HTTP/1.1 request.
    pub preface_timeout: Duration,
    /// Interval between keepalive pings; zero disables them.
    pub keepalive_interval: Duration,
    /// Maximum time for the reply to a keepalive ping. Together with the interval, also the maximum time for which the
    /// peer may accept no data.
    pub keepalive_timeout: Duration,
    /// Maximum number of concurrent streams on one connection. Further streams wait at the client until another one
    /// ends.
    pub streams_per_connection_max: u32,
    /// Maximum size of the metadata of one request, in bytes as HPACK counts them: 32 bytes more than its text for each
    /// entry.
    pub header_bytes_max: u32,
    /// Maximum size of a request message, in bytes.
    pub message_bytes_max: usize,
    /// Maximum number of open connections; 0 disables the limit. Further connections are closed immediately.
    pub connections_max: u32,
    /// Maximum number of open connections from one address (IPv6: from one network of 64 bits); 0 disables the limit.
    /// Use 0 behind a proxy.
    pub connections_per_address_max: u32,
    /// Maximum age of a connection, with ±10 % jitter. The server then sends GOAWAY on it and takes no new calls, so
    /// that clients reconnect and spread over the replicas. `None` means no maximum age.
    pub connection_age: Option<Duration>,
    /// The time over which the streams of an old connection end, each at its own time.
    pub connection_age_grace: Duration,
}

impl TransportSettings {
    /// Returns the maximum time for which the peer may accept no data.
    pub(super) fn stall_limit(&self) -> Duration {
        self.keepalive_interval + self.keepalive_timeout
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Path of a PEM file with the certificate, followed by the intermediate certificates up to its root.
    pub certificate: PathBuf,
    /// Path of a PEM file with the certificate's private key.
    pub key: PathBuf,
    /// Path of a PEM file with the roots against which client certificates are verified. `None` means that no client
    /// certificate is requested.
    pub client_ca: Option<PathBuf>,
    /// Whether the TLS handshake of a client without a certificate fails.
    pub client_certificate_required: bool,
}

/// How the server drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long the server continues to serve after the stop signal while health checks already report NOT_SERVING, so
    /// that load balancers can stop sending calls to it first.
    pub delay: Duration,
    /// Maximum time for calls to end after the delay; calls that are still open are then aborted.
    pub timeout: Duration,
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self { delay: Duration::ZERO, timeout: Duration::from_secs(10) }
    }
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            tls: None,
            handshake_timeout: Duration::from_secs(10),
            preface_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            streams_per_connection_max: 16_384,
            header_bytes_max: 16 * 1024,
            message_bytes_max: 4 * 1024 * 1024,
            connections_max: 20_000,
            connections_per_address_max: 0,
            connection_age: None,
            connection_age_grace: Duration::from_secs(30),
        }
    }
}
