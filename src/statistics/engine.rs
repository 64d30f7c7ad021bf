//! Counters of the engine, as read by meters.

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

/// Why a batch was not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFailure {
    Full,
    Unavailable,
    Corrupt,
    /// The outcome is unknown; the batch may have been committed.
    Unknown,
}

/// The engine's counts, read at about the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// Mutations, in the order of [`MutationOutcome::ALL`].
    pub mutations: [u64; MutationOutcome::ALL.len()],
    /// Failed commits, in the order of [`CommitFailure::ALL`].
    pub failures: [u64; CommitFailure::ALL.len()],
    /// Number of inventories in memory.
    pub hot_inventories: u64,
    /// Number of requests that wait for the commit loop.
    pub queue: u64,
    /// Maximum number of requests that may wait.
    pub queue_max: u64,
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
