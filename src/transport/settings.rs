//! What can be set.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportSettings {
    /// Without, everything goes over the wire as it is.
    pub tls: Option<TlsSettings>,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection may take to begin to speak HTTP/2.
    pub preface_timeout: Duration,
    /// How often the other side is asked whether it is still there; zero: never.
    pub keepalive_interval: Duration,
    /// How long it may take to answer, and, together with the interval, how long it may take nothing of what is sent to it.
    pub keepalive_timeout: Duration,
    /// Streams on one connection; a further one waits at the client until another ends.
    pub streams_per_connection_max: u32,
    /// The metadata of one request, as HPACK counts it: 32 bytes an entry more than its text.
    pub header_bytes_max: u32,
    /// One request message.
    pub message_bytes_max: usize,
    /// Connections at once; 0 is no limit. More are closed as soon as they come.
    pub connections_max: u32,
    /// Connections at once from one address (IPv6: one network of 64 bits); 0 is no limit, as it should be behind a proxy.
    pub connections_per_address_max: u32,
    /// After about this time a connection takes no new calls, so that clients come back and spread over the replicas; a
    /// tenth more or less for each connection. None: never.
    pub connection_age: Option<Duration>,
    /// Over how long then the streams of such a connection are ended, each at its own moment.
    pub connection_age_grace: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// A PEM file: the certificate, then those that lead to its root.
    pub certificate: PathBuf,
    /// A PEM file: the certificate's private key.
    pub key: PathBuf,
    /// A PEM file: the roots that clients' certificates are verified against. Without, clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is refused.
    pub client_certificate_required: bool,
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
