//! Statistics of the engine: mutations by outcome, and commits.

use super::{Counter, Histogram, HistogramBucket};
use std::time::Duration;

/// The outcome of a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MutationOutcome {
    Applied,
    /// An earlier attempt already applied the mutation; the stored reply was returned.
    Replayed,
    /// The rules or the idempotency key rejected the mutation. Nothing has changed.
    Rejected,
    /// The queue was full, or the store failed.
    Failed,
}

/// Why a commit failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFailure {
    Full,
    Unavailable,
    Corrupt,
    /// The outcome is unknown; the batch may have been committed.
    Unknown,
}

/// The commit counters of one engine. The metrics and AdminService read the same counters.
#[derive(Debug, Default)]
pub struct CommitCounters {
    /// Mutations, in the order of [`MutationOutcome::ALL`].
    mutations: [Counter; MutationOutcome::ALL.len()],
    /// Failed commits, in the order of [`CommitFailure::ALL`].
    failures: [Counter; CommitFailure::ALL.len()],
    /// Mutations in durable batches.
    transactions: Counter,
    /// Commit latency of durable batches, in microseconds.
    latency_us: Histogram,
    /// Number of mutations in a durable batch.
    batch: Histogram,
}

/// Statistics of the engine since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineStatistics {
    /// Mutations, in the order of [`MutationOutcome::ALL`].
    pub mutations: [u64; MutationOutcome::ALL.len()],
    /// Failed commits, in the order of [`CommitFailure::ALL`].
    pub failures: [u64; CommitFailure::ALL.len()],
    /// Number of durable batches.
    pub commits: u64,
    /// Number of mutations in durable batches.
    pub transactions: u64,
    /// Commit latency of durable batches, in microseconds.
    pub latency_us: Vec<HistogramBucket>,
    /// Number of mutations in a durable batch.
    pub batch: Vec<HistogramBucket>,
    /// Number of inventories in memory.
    pub hot_inventories: u64,
    /// Number of requests that wait for the commit loop.
    pub queue: u64,
    /// Maximum number of requests that may wait.
    pub queue_max: u64,
}

impl CommitCounters {
    /// Counts a durable batch of `transactions` mutations.
    pub fn add_commit(&self, transactions: usize, duration: Duration) {
        self.transactions.add(transactions as u64);
        self.batch.record(transactions as u64);
        self.latency_us.record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn add_failure(&self, failure: CommitFailure) {
        self.failures[failure as usize].add(1);
    }

    pub fn add_mutation(&self, outcome: MutationOutcome) {
        self.mutations[outcome as usize].add(1);
    }

    /// Returns the statistics, without the queue and the number of hot inventories.
    pub fn read(&self) -> EngineStatistics {
        let latency_us = self.latency_us.buckets();
        EngineStatistics {
            mutations: MutationOutcome::ALL.map(|outcome| self.mutations[outcome as usize].get()),
            failures: CommitFailure::ALL.map(|failure| self.failures[failure as usize].get()),
            commits: latency_us.iter().map(|bucket| bucket.count).sum(),
            transactions: self.transactions.get(),
            latency_us,
            batch: self.batch.buckets(),
            ..EngineStatistics::default()
        }
    }
}

impl EngineStatistics {
    /// Returns the number of batches whose commit failed or has an unknown outcome.
    pub fn commits_failed(&self) -> u64 {
        self.failures.iter().sum()
    }
}

impl MutationOutcome {
    pub const ALL: [Self; 4] = [Self::Applied, Self::Replayed, Self::Rejected, Self::Failed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Replayed => "replayed",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
        }
    }
}

impl CommitFailure {
    pub const ALL: [Self; 4] = [Self::Full, Self::Unavailable, Self::Corrupt, Self::Unknown];

    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Unavailable => "unavailable",
            Self::Corrupt => "corrupt",
            Self::Unknown => "unknown",
        }
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
        counters.add_failure(CommitFailure::Full);
        let read = counters.read();
        assert_eq!((read.commits, read.transactions, read.commits_failed()), (2, 4, 1));
        assert_eq!(read.failures, [1, 0, 0, 0]);
        assert_eq!((percentile(&read.latency_us, 50), percentile(&read.batch, 99)), (111, 3));
    }

    #[test]
    fn each_outcome_and_failure_has_its_own_counter() {
        let counters = CommitCounters::default();
        for (times, outcome) in (1..).zip(MutationOutcome::ALL) {
            (0..times).for_each(|_| counters.add_mutation(outcome));
        }
        for (times, failure) in (1..).zip(CommitFailure::ALL) {
            (0..times).for_each(|_| counters.add_failure(failure));
        }
        let read = counters.read();
        assert_eq!((read.mutations, read.failures), ([1, 2, 3, 4], [1, 2, 3, 4]));
    }
}
