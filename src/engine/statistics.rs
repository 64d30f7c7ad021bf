//! Counters of the commit loop.

use super::{EngineError, MutationReply};
use crate::statistics::{CommitFailure, Counter, EngineCounts, Histogram, HistogramBucket, MutationOutcome};
use crate::store::{CommitError, StoreError};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct CommitCounters {
    transactions: Counter,
    /// Failed commits, in the order of [`CommitFailure::ALL`].
    failures: [Counter; CommitFailure::ALL.len()],
    /// Mutations, in the order of [`MutationOutcome::ALL`].
    mutations: [Counter; MutationOutcome::ALL.len()],
    /// Commit latency in microseconds.
    latency: Histogram,
    /// Number of transactions in a batch.
    batch: Histogram,
}

/// Statistics of the engine since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStatistics {
    /// Number of durable batches.
    pub commits: u64,
    /// Number of mutations in durable batches.
    pub transactions: u64,
    /// Number of batches whose commit failed or has an unknown outcome.
    pub commits_failed: u64,
    /// Commit latency of successful batches, in microseconds.
    pub latency_us: Vec<HistogramBucket>,
    /// Number of mutations in a batch.
    pub batch: Vec<HistogramBucket>,
    /// Number of inventories in memory.
    pub hot_inventories: u64,
    /// Number of requests that wait for the commit loop.
    pub queue: u64,
    /// Maximum number of requests that may wait.
    pub queue_max: u64,
}

impl CommitCounters {
    pub fn add_commit(&self, transactions: usize, took: Duration) {
        self.transactions.add(transactions as u64);
        self.batch.record(transactions as u64);
        self.latency.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn add_failure(&self, error: &CommitError) {
        let failure = match error {
            CommitError::Unknown(_) => CommitFailure::Unknown,
            CommitError::NotCommitted(StoreError::Full { .. }) => CommitFailure::Full,
            CommitError::NotCommitted(StoreError::Unavailable { .. }) => CommitFailure::Unavailable,
            CommitError::NotCommitted(StoreError::Corrupt { .. }) => CommitFailure::Corrupt,
        };
        self.failures[failure as usize].add(1);
    }

    pub fn add_mutation(&self, outcome: MutationOutcome) {
        self.mutations[outcome as usize].add(1);
    }

    /// Returns the counters, without the current queue length and number of hot inventories.
    pub fn counts(&self) -> EngineCounts {
        EngineCounts {
            mutations: MutationOutcome::ALL.map(|outcome| self.mutations[outcome as usize].get()),
            failures: CommitFailure::ALL.map(|failure| self.failures[failure as usize].get()),
            ..EngineCounts::default()
        }
    }

    pub fn read(&self) -> EngineStatistics {
        let latency_us = self.latency.buckets();
        EngineStatistics {
            commits: latency_us.iter().map(|bucket| bucket.count).sum(),
            transactions: self.transactions.get(),
            commits_failed: self.failures.iter().map(Counter::get).sum(),
            latency_us,
            batch: self.batch.buckets(),
            ..EngineStatistics::default()
        }
    }
}

pub(super) fn outcome(result: &Result<MutationReply, EngineError>) -> MutationOutcome {
    match result {
        Ok(reply) if reply.replayed => MutationOutcome::Replayed,
        Ok(_) => MutationOutcome::Applied,
        Err(
            EngineError::Rejected(_)
            | EngineError::UnknownName(_)
            | EngineError::KeyReused
            | EngineError::KeyExpired
            | EngineError::KeyFromTheFuture { .. },
        ) => MutationOutcome::Rejected,
        Err(
            EngineError::QueueFull { .. } | EngineError::Store(_) | EngineError::CommitUnknown | EngineError::Stopped,
        ) => MutationOutcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::percentile;

    #[test]
    fn commits_are_counted_with_their_transactions_and_failures_separately() {
        let counters = CommitCounters::default();
        counters.add_commit(3, Duration::from_micros(100));
        counters.add_commit(1, Duration::from_micros(900));
        counters.add_failure(&CommitError::NotCommitted(StoreError::Full { detail: "quota".into() }));
        let read = counters.read();
        assert_eq!((read.commits, read.transactions, read.commits_failed), (2, 4, 1));
        assert_eq!(counters.counts().failures, [1, 0, 0, 0]);
        assert_eq!((percentile(&read.latency_us, 50), percentile(&read.batch, 99)), (111, 3));
    }
}
