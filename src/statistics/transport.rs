//! Statistics of connections and of files that are reloaded at runtime.

use super::{Counter, LogRateLimiter};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// Why the server refused a connection: it closed the connection before serving it, or could not accept it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// The maximum number of connections was reached.
    Limit,
    /// The maximum number of connections from this address was reached.
    AddressLimit,
    /// The TLS handshake failed or timed out.
    Handshake,
    /// The HTTP/2 preface did not arrive in time.
    Preface,
    /// The process is out of file descriptors, or the system is out of memory. Counts attempts, not connections:
    /// waiting connections are accepted later.
    Descriptors,
}

/// Counts the reloads of certificates, keys or settings.
#[derive(Debug, Default)]
pub struct Reloads {
    succeeded: Counter,
    failed: Counter,
}

/// Connection statistics of one server.
#[derive(Debug)]
pub struct TransportStatistics {
    start: Instant,
    opened: Counter,
    closed: Counter,
    refused: [Counter; ConnectionRefusal::ALL.len()],
    log_rates: [LogRateLimiter; ConnectionRefusal::ALL.len()],
    certificate_reloads: Arc<Reloads>,
    /// Unix time in seconds; 0 if there is no certificate.
    not_after: AtomicI64,
}

impl ConnectionRefusal {
    pub const ALL: [Self; 5] = [Self::Limit, Self::AddressLimit, Self::Handshake, Self::Preface, Self::Descriptors];

    /// Returns the label value of the reason in metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::AddressLimit => "address_limit",
            Self::Handshake => "handshake",
            Self::Preface => "preface",
            Self::Descriptors => "descriptors",
        }
    }
}

impl Reloads {
    /// Counts a reload. A failed reload changes nothing.
    pub fn add(&self, succeeded: bool) {
        if succeeded { self.succeeded.add(1) } else { self.failed.add(1) }
    }

    pub fn succeeded(&self) -> u64 {
        self.succeeded.get()
    }

    pub fn failed(&self) -> u64 {
        self.failed.get()
    }
}

impl Default for TransportStatistics {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            opened: Counter::default(),
            closed: Counter::default(),
            refused: Default::default(),
            log_rates: Default::default(),
            certificate_reloads: Arc::default(),
            not_after: AtomicI64::new(0),
        }
    }
}

impl TransportStatistics {
    /// Returns the number of open connections, including those in the handshake.
    pub fn connections(&self) -> u64 {
        // Reading `closed` first keeps the difference from being negative.
        let closed = self.closed.get();
        self.opened.get().saturating_sub(closed)
    }

    pub fn refused(&self, reason: ConnectionRefusal) -> u64 {
        self.refused[reason as usize].get()
    }

    /// Returns the reload counts of the server's certificate.
    pub fn certificate_reloads(&self) -> &Arc<Reloads> {
        &self.certificate_reloads
    }

    /// Returns the expiry of the server's certificate as Unix time in seconds; `None` without TLS.
    pub fn certificate_not_after(&self) -> Option<i64> {
        Some(self.not_after.load(Ordering::Relaxed)).filter(|not_after| *not_after != 0)
    }

    pub fn add_opened(&self) {
        self.opened.add(1);
    }

    pub fn add_closed(&self) {
        self.closed.add(1);
    }

    pub fn add_refused(&self, reason: ConnectionRefusal) {
        self.refused[reason as usize].add(1);
    }

    /// Counts a refused connection and logs it, subject to a rate limit.
    pub fn record_refusal(&self, reason: ConnectionRefusal, peer: SocketAddr, problem: &str) {
        self.add_refused(reason);
        if let Some(suppressed) = self.log_rates[reason as usize].admit(self.start.elapsed()) {
            let suppressed = Some(suppressed).filter(|suppressed| *suppressed > 0);
            tracing::info!(%peer, reason = reason.reason(), problem, suppressed, "connection refused");
        }
    }

    pub fn set_not_after(&self, unix_s: i64) {
        self.not_after.store(unix_s, Ordering::Relaxed);
    }
}
