//! Runtime statistics: plain atomic counters, without labels for players or inventories. Adding is one atomic
//! instruction, and reading does not block writers.

mod engine;
mod histogram;
mod log_rate;
mod rpc;
mod streams;
mod transport;

pub use engine::{CommitCounters, CommitFailure, EngineStatistics, MutationOutcome};
pub use histogram::{Histogram, HistogramBucket, percentile};
pub use log_rate::LogRateLimiter;
pub use rpc::{Method, MethodCounts, OTHER_METHOD, OTHER_REASON, RpcStatistics};
pub use streams::{MessageCount, ShadowCounts, StreamCounts, StreamStatistics, SyncKind};
pub use transport::{ConnectionRefusal, Reloads, TransportStatistics};

use std::sync::atomic::{AtomicU64, Ordering};

/// A monotonic counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
