//! Maps the results of mutations and commits to the outcomes under which they are counted.

use super::{EngineError, MutationReply};
use crate::statistics::{CommitFailure, MutationOutcome};
use crate::store::{CommitError, StoreError};

pub(super) fn mutation_outcome(result: &Result<MutationReply, EngineError>) -> MutationOutcome {
    match result {
        Ok(reply) if reply.replayed => MutationOutcome::Replayed,
        Ok(_) => MutationOutcome::Applied,
        Err(
            EngineError::Rejected(_)
            | EngineError::UnresolvedReference(_)
            | EngineError::KeyReused
            | EngineError::KeyExpired
            | EngineError::KeyFromTheFuture { .. },
        ) => MutationOutcome::Rejected,
        Err(
            EngineError::QueueFull { .. } | EngineError::Store(_) | EngineError::CommitUnknown | EngineError::Stopped,
        ) => MutationOutcome::Failed,
    }
}

pub(super) fn commit_failure(error: &CommitError) -> CommitFailure {
    match error {
        CommitError::Unknown(_) => CommitFailure::Unknown,
        CommitError::NotCommitted(StoreError::Full { .. }) => CommitFailure::Full,
        CommitError::NotCommitted(StoreError::Unavailable { .. }) => CommitFailure::Unavailable,
        CommitError::NotCommitted(StoreError::Corrupt { .. }) => CommitFailure::Corrupt,
    }
}
