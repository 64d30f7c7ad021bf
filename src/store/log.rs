//! The log: the permanent record of all mutations.
//!
//! Each committed mutation is one [`LogRecord`] at one [`Position`]. A record has an entry for each inventory that the
//! mutation named. The entry of a changed inventory points to the inventory's previous one, so the history of one
//! inventory is a walk backwards from its [`ChainHead`], and needs no index.

use crate::domain::{
    Caller, Fingerprint, Flow, IdempotencyKey, Inventory, InventoryId, ItemCode, OperationKind, OperationOutcome,
    PredictionOutcome, SessionId, Slot, Stack, Version,
};
use crate::store::Reply;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Position of a record in the log: the writer's number × 2^48 + the record's sequence number, which counts the writer's
/// records from 1, without gaps, in the order of commits. The default value, 0, is not the position of any record.
///
/// A writer is an owner of sequence numbers. The embedded store has one, and a new one after each restore, so that no
/// position ever names two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// No position.
    pub const NONE: Self = Self(0);

    const SEQUENCE_BITS: u32 = 48;

    pub fn new(writer: u16, sequence: u64) -> Self {
        Self(u64::from(writer) << Self::SEQUENCE_BITS | sequence)
    }

    pub fn from_u64(position: u64) -> Self {
        Self(position)
    }

    pub fn get(self) -> u64 {
        self.0
    }

    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    pub fn writer(self) -> u16 {
        (self.0 >> Self::SEQUENCE_BITS) as u16
    }

    pub fn sequence(self) -> u64 {
        self.0 & ((1 << Self::SEQUENCE_BITS) - 1)
    }

    /// Maximum number of a writer: positions are below 2^63, because SQLite has no unsigned integers.
    pub const WRITER_MAX: u16 = 32_767;

    /// Returns the position of the writer's record `records` later.
    #[must_use]
    pub fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(records))
    }

    /// Returns whether the record at this position may come next in a log that ends before `end`: it is the writer's next
    /// one, or the first one of a later writer. Writers are skipped if a backup is restored over a store that was restored
    /// itself.
    pub fn continues(self, end: Self) -> bool {
        self == end || self.sequence() == 1 && self.writer() > end.writer()
    }

    /// Returns the position of the writer's record before this one; none for the first one.
    #[must_use]
    pub fn before(self) -> Self {
        if self.sequence() <= 1 { Self::NONE } else { Self(self.0 - 1) }
    }
}

/// Why a text is not a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be the numbers of a writer and of a record, such as 1-4711")]
pub struct PositionError;

impl FromStr for Position {
    type Err = PositionError;

    /// Parses `writer-sequence`, as [`Self::fmt`] writes it.
    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (writer, sequence) = text.split_once('-').ok_or(PositionError)?;
        let writer = writer.parse().map_err(|_| PositionError)?;
        let sequence = sequence.parse().map_err(|_| PositionError)?;
        let position = Self::new(writer, sequence);
        // Otherwise one of the numbers is too large, or 0.
        let is_valid = (position.writer(), position.sequence()) == (writer, sequence) && writer > 0 && sequence > 0;
        if is_valid { Ok(position) } else { Err(PositionError) }
    }
}

impl fmt::Display for Position {
    /// Writes `writer-sequence`, such as `1-4711`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.writer(), self.sequence())
    }
}

/// Where the chain of an inventory's entries begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainHead {
    /// The record of the inventory's last change.
    pub last: Position,
    /// The newest record with a full state of the inventory; at most `last`.
    pub checkpoint: Position,
}

/// A mutation in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub position: Position,
    /// When the mutation was committed, in milliseconds since the Unix epoch. Never earlier than the record before it:
    /// if the wall clock is behind the time of the last record, that time is used again.
    pub time_ms: u64,
    pub caller: Caller,
    /// `None` for an import.
    pub key: Option<IdempotencyKey>,
    /// The fingerprint of the payload.
    pub payload: Fingerprint,
    /// Why the caller made the change; may be empty.
    pub reason: Arc<str>,
    pub session: Option<SessionId>,
    pub prediction: PredictionOutcome,
    pub operations: Vec<LoggedOperation>,
    pub flows: Vec<Flow>,
    /// One entry for each inventory that the operations named, in order of first mention.
    pub entries: Vec<LogEntry>,
}

/// An operation of a mutation in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedOperation {
    pub kind: OperationKind,
    pub outcome: OperationOutcome,
}

/// What a mutation did to one inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The version after the mutation.
    pub version: Version,
    /// `None` if the mutation named the inventory but did not change it, or created and deleted it.
    pub change: Option<LoggedChange>,
}

/// A change of one inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedChange {
    /// The record of the inventory's previous change; none for its first one.
    pub previous: Position,
    pub kind: LoggedChangeKind,
    /// The newest earlier record with a full state of the inventory. Only set if this change has one itself.
    pub previous_checkpoint: Position,
}

/// The kind of a change, with what is needed to undo and to repeat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoggedChangeKind {
    /// Some slots changed. Every [`CHECKPOINT_REVISIONS`]th revision also has the state after the change.
    Edited {
        edits: Vec<LoggedEdit>,
        checkpoint: Option<Arc<Inventory>>,
    },
    Created {
        after: Arc<Inventory>,
    },
    Deleted {
        before: Arc<Inventory>,
    },
    Recreated {
        before: Arc<Inventory>,
        after: Arc<Inventory>,
    },
}

/// A changed slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedEdit {
    pub slot: Slot,
    pub before: Option<Stack>,
    pub after: Option<Stack>,
}

/// Number of revisions between two checkpoints of an inventory.
pub const CHECKPOINT_REVISIONS: u64 = 256;
/// Number of revisions between two checkpoints of an inventory whose stored state exceeds [`CHECKPOINT_BYTES_MAX`].
pub const LARGE_CHECKPOINT_REVISIONS: u64 = 4_096;
/// Size of a stored state above which checkpoints are rarer, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 16 * 1_024;

impl LogRecord {
    /// Returns the reply to the mutation's caller.
    pub fn reply(&self) -> Reply {
        Reply {
            outcomes: self.operations.iter().map(|operation| operation.outcome.clone()).collect(),
            versions: self.entries.iter().map(|entry| entry.version.clone()).collect(),
        }
    }

    /// Returns the entry of an inventory, if the mutation changed the inventory.
    pub fn change_of(&self, id: &InventoryId) -> Option<(&LogEntry, &LoggedChange)> {
        let entry = self.entries.iter().find(|entry| entry.version.id == *id)?;
        Some((entry, entry.change.as_ref()?))
    }

    /// Returns the items that operations added or removed, and those in the changed slots, before and after; they may repeat.
    pub fn items(&self) -> impl Iterator<Item = ItemCode> {
        let changes = self.entries.iter().filter_map(|entry| entry.change.as_ref()).map(|change| &change.kind);
        let of_edits = changes.clone().flat_map(LoggedChangeKind::edits);
        let of_edits = of_edits.flat_map(|edit| [&edit.before, &edit.after]).flatten();
        // A checkpoint only repeats what the edits led to.
        let states = changes.flat_map(|kind| [kind.before(), kind.created()]).flatten();
        let of_states = states.flat_map(|state| state.contents.stacks().map(|(_, stack)| stack));
        self.flows.iter().map(|flow| flow.item).chain(of_edits.chain(of_states).map(|stack| stack.item))
    }

    /// Returns the kind of the operation with this index.
    pub fn kind_of(&self, operation: u8) -> Option<OperationKind> {
        self.operations.get(usize::from(operation)).map(|operation| operation.kind)
    }
}

impl LoggedChange {
    /// Returns whether the record of this change has a full state of the inventory.
    pub fn has_state(&self) -> bool {
        self.kind.before().is_some() || self.kind.after().is_some()
    }
}

impl LoggedChangeKind {
    /// The changed slots, if the inventory existed before and after the change.
    pub fn edits(&self) -> &[LoggedEdit] {
        match self {
            Self::Edited { edits, .. } => edits,
            Self::Created { .. } | Self::Deleted { .. } | Self::Recreated { .. } => &[],
        }
    }

    /// The full state before the change, if the record has it.
    pub fn before(&self) -> Option<&Arc<Inventory>> {
        match self {
            Self::Deleted { before } | Self::Recreated { before, .. } => Some(before),
            Self::Edited { .. } | Self::Created { .. } => None,
        }
    }

    /// The full state after the change, if the record has it.
    pub fn after(&self) -> Option<&Arc<Inventory>> {
        match self {
            Self::Edited { checkpoint, .. } => checkpoint.as_ref(),
            Self::Created { after } | Self::Recreated { after, .. } => Some(after),
            Self::Deleted { .. } => None,
        }
    }

    /// The state with which the change begins a life of the inventory.
    pub fn created(&self) -> Option<&Arc<Inventory>> {
        match self {
            Self::Created { after } | Self::Recreated { after, .. } => Some(after),
            Self::Edited { .. } | Self::Deleted { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_parsed_as_it_is_written() {
        for position in [Position::new(1, 1), Position::new(u16::MAX, 4_711), Position::new(2, (1 << 48) - 1)] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for text in ["", "1", "1-", "-1", "1-x", "0-1", "1-0", "65536-1", "1-281474976710656", "1-2-3"] {
            assert_eq!(text.parse::<Position>(), Err(PositionError), "{text}");
        }
    }
}
