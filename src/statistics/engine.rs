//! What the engine counts, as whoever watches the service reads it.

/// How a mutation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MutationOutcome {
    Applied,
    /// It had been applied before; the reply of then was given.
    Replayed,
    /// The rules, or its key, forbade it. Nothing has changed.
    Rejected,
    /// The service could not: no place in the queue, or the store failed.
    Failed,
}

/// Why a batch was not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFailure {
    Full,
    Unavailable,
    Corrupt,
    /// It may have been committed all the same.
    Unknown,
}

/// All of it at about one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// In the order of [`MutationOutcome::ALL`].
    pub mutations: [u64; MutationOutcome::ALL.len()],
    /// In the order of [`CommitFailure::ALL`].
    pub failures: [u64; CommitFailure::ALL.len()],
    /// Inventories in memory.
    pub hot_inventories: u64,
    /// What waits for the commit loop, and the most that may.
    pub queue: u64,
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
