//! Connections, and files that are read again while the service runs.

use super::{Counter, LogRate};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// Why a connection was closed before it was served, or could not be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// There were as many as there may be.
    Limit,
    /// There were as many from its address as there may be.
    AddressLimit,
    /// The TLS handshake failed or took too long.
    Handshake,
    /// It did not begin to speak HTTP in time.
    Preface,
    /// The process has no descriptors, or the system no memory, for another one. Counts tries, not connections: what waits is
    /// accepted later.
    Descriptors,
}

/// How often something was read again: certificates, keys, settings.
#[derive(Debug, Default)]
pub struct Reloads {
    succeeded: Counter,
    failed: Counter,
}

/// Of one server.
#[derive(Debug)]
pub struct TransportStatistics {
    start: Instant,
    opened: Counter,
    closed: Counter,
    refused: [Counter; ConnectionRefusal::ALL.len()],
    log_rates: [LogRate; ConnectionRefusal::ALL.len()],
    certificate_reloads: Arc<Reloads>,
    /// Unix time in seconds; 0: none.
    not_after: AtomicI64,
}

impl ConnectionRefusal {
    pub const ALL: [Self; 5] = [Self::Limit, Self::AddressLimit, Self::Handshake, Self::Preface, Self::Descriptors];

    /// As meters name it.
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
    /// What was read is good and holds, or is not and changes nothing.
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
    /// Connections that are open now, those in their handshake included.
    pub fn connections(&self) -> u64 {
        // Read in this order it is never less than nothing.
        let closed = self.closed.get();
        self.opened.get().saturating_sub(closed)
    }

    pub fn refused(&self, reason: ConnectionRefusal) -> u64 {
        self.refused[reason as usize].get()
    }

    /// Of the server's certificate.
    pub fn certificate_reloads(&self) -> &Arc<Reloads> {
        &self.certificate_reloads
    }

    /// Until when the server's certificate is valid, in seconds of Unix time; none without TLS.
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

    /// Counts a connection that is not served, and logs it unless there are too many.
    pub fn refuse(&self, reason: ConnectionRefusal, peer: SocketAddr, problem: &str) {
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
