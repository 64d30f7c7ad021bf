//! Queries of the log: the changes of one inventory, its past states, and scans.

use crate::domain::{Caller, Epoch, Inventory, ItemCode, OperationKind, Revision};
use crate::store::log::{LogRecord, Position};
use crate::store::supply::SupplyTotals;
use std::sync::Arc;

/// Some changes of one inventory, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangesPage {
    /// The records with the changes.
    pub records: Vec<LogRecord>,
    /// The position of the next older change; `None` if these are all that are kept.
    pub next: Option<Position>,
    /// Whether older changes were deleted.
    pub is_trimmed: bool,
}

/// Selects a past state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PastTarget {
    /// A revision of this epoch, or of the newest one.
    Revision { epoch: Option<Epoch>, revision: Revision },
    /// The newest state that was committed at this time or earlier, in milliseconds since the Unix epoch.
    Time { unix_ms: u64 },
}

/// The result of looking for a past state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PastState {
    /// The state. All slots have the state's revision as their stamps: the log does not keep earlier stamps.
    Found {
        inventory: Arc<Inventory>,
        /// The record that made the state; `None` if it was made by a restore, or before the earliest record.
        position: Option<Position>,
    },
    /// The inventory did not exist then, or never had this revision.
    Absent,
    /// The state is older than the earliest record that is kept.
    Trimmed {
        /// The oldest version that can still be read; `None` if there is none.
        earliest: Option<(Epoch, Revision)>,
    },
}

/// Selects records of a scan. Each part that is set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordFilter {
    pub caller: Option<Caller>,
    /// An item in a slot that was changed, or that an operation added or removed.
    pub item: Option<ItemCode>,
    /// The kind of one of the operations.
    pub kind: Option<OperationKind>,
    /// The whole reason.
    pub reason: Option<String>,
    /// The earliest and the latest time, both included, in milliseconds since the Unix epoch.
    pub from_ms: Option<u64>,
    pub to_ms: Option<u64>,
}

impl RecordFilter {
    pub fn matches(&self, record: &LogRecord) -> bool {
        let is_item = |item: &ItemCode| record.items().any(|changed| changed == *item);
        self.caller.as_ref().is_none_or(|caller| record.caller == *caller)
            && self.kind.is_none_or(|kind| record.operations.iter().any(|operation| operation.kind == kind))
            && self.reason.as_ref().is_none_or(|reason| *record.reason == **reason)
            && self.from_ms.is_none_or(|from_ms| record.time_ms >= from_ms)
            && self.to_ms.is_none_or(|to_ms| record.time_ms <= to_ms)
            && self.item.as_ref().is_none_or(is_item)
    }
}

/// How many of each item came and went, at one position of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupplyAt {
    /// The last record that the totals contain; none if the log is empty.
    pub position: Position,
    pub totals: SupplyTotals,
}
