//! What the commit loop counts.

use super::{EngineError, MutationReply};
use crate::statistics::{CommitFailure, Counter, EngineCounts, Histogram, HistogramBucket, MutationOutcome};
use crate::store::{CommitError, StoreError};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct CommitCounters {
    transactions: Counter,
    /// In the order of [`CommitFailure::ALL`].
    failures: [Counter; CommitFailure::ALL.len()],
    /// In the order of [`MutationOutcome::ALL`].
    mutations: [Counter; MutationOutcome::ALL.len()],
    /// Microseconds.
    latency: Histogram,
    /// Transactions committed together.
    batch: Histogram,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStatistics {
    /// Batches that are durable.
    pub commits: u64,
    /// Mutations in them.
    pub transactions: u64,
    /// Batches that were not committed, or of which that is not known.
    pub commits_failed: u64,
    /// How long the store took for a batch, in microseconds; failed ones apart.
    pub latency_us: Vec<HistogramBucket>,
    /// Mutations committed together.
    pub batch: Vec<HistogramBucket>,
    /// Inventories in memory.
    pub hot_inventories: u64,
    /// What waits for the commit loop.
    pub queue: u64,
    /// The most that may wait.
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

    /// What is counted, without what is there at the moment.
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

pub(super) fn outcome(ended: &Result<MutationReply, EngineError>) -> MutationOutcome {
    match ended {
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
    fn commits_are_counted_with_what_is_in_them_and_failures_apart() {
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
