//! What is counted of connections.

use crate::statistics::Counter;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Why a connection was closed before it was served, or could not be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There were as many as there may be.
    Limit,
    /// There were as many from its address as there may be.
    AddressLimit,
    /// TLS came to nothing, or not in time.
    Handshake,
    /// It did not begin to speak HTTP/2 in time.
    Preface,
    /// The process has no descriptors, or the system no memory, for another one. Counts tries, not connections: what waits is
    /// accepted later.
    Descriptors,
}

#[derive(Debug, Default)]
pub struct TransportStatistics {
    opened: Counter,
    closed: Counter,
    refused: [Counter; Refused::ALL.len()],
    reloaded: Counter,
    reloads_failed: Counter,
    /// Unix time in seconds; 0: none.
    not_after: AtomicI64,
    draining: AtomicBool,
}

impl Refused {
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

impl TransportStatistics {
    /// Connections that are open now, those in their handshake included.
    pub fn connections(&self) -> u64 {
        // Read in this order it is never less than nothing.
        let closed = self.closed.get();
        self.opened.get().saturating_sub(closed)
    }

    pub fn refused(&self, reason: Refused) -> u64 {
        self.refused[reason as usize].get()
    }

    /// Certificates that were exchanged while the service ran.
    pub fn certificate_reloads(&self) -> u64 {
        self.reloaded.get()
    }

    /// Certificates that were not taken because something was wrong with them.
    pub fn certificate_reloads_failed(&self) -> u64 {
        self.reloads_failed.get()
    }

    /// Until when the server's certificate is valid, in seconds of Unix time; none without TLS.
    pub fn certificate_not_after(&self) -> Option<i64> {
        Some(self.not_after.load(Ordering::Relaxed)).filter(|not_after| *not_after != 0)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn add_opened(&self) {
        self.opened.add(1);
    }

    pub(super) fn add_closed(&self) {
        self.closed.add(1);
    }

    pub(super) fn add_refused(&self, reason: Refused) {
        self.refused[reason as usize].add(1);
    }

    pub(super) fn add_reload(&self, taken: bool) {
        if taken { self.reloaded.add(1) } else { self.reloads_failed.add(1) }
    }

    pub(super) fn set_not_after(&self, unix_s: i64) {
        self.not_after.store(unix_s, Ordering::Relaxed);
    }

    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
