//! Durable storage of inventories and idempotency keys. A store knows the domain and no other part of the service.
//!
//! The [`Store`] trait is the whole port: load, commit, list, and usage for operators. Calls block; the commit loop
//! makes them on its own thread. The conformance suite (`tests/store_conformance.rs`) defines the requirements, and is
//! the same for all stores.

pub mod embedded;
pub mod format;
pub mod history;
pub mod horizon;
pub mod log;
pub mod supply;

use crate::domain::{
    Caller, Fingerprint, Flow, IdempotencyKey, Inventory, InventoryId, OperationKind, OperationOutcome, PlayerId,
    PredictionOutcome, SessionId, TouchedInventory, Version,
};
use log::ChainHead;
use std::sync::Arc;
use tokio::sync::watch;

/// Identifies a mutation across retries: the caller and the idempotency key that the caller gave.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScopedKey {
    pub caller: Caller,
    pub key: IdempotencyKey,
}

/// The reply to a mutation. A retry gets the same reply, which follows from the mutation's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub outcomes: Vec<OperationOutcome>,
    pub versions: Vec<Version>,
}

/// The result of looking up an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyStatus {
    /// The store has not seen the key, as far as the key window and the time inside the key tell.
    New,
    /// The mutation was committed before, with this payload and this reply.
    Applied { payload: Fingerprint, reply: Reply },
    /// The time in the key (a UUIDv7) is not after the time of an expired key, so the mutation may have been applied.
    /// Never run it again.
    Expired,
    /// The time in the key (a UUIDv7) is further ahead of the store's wall clock than the store can remember now. The
    /// mutation was not applied and must not run; once that time has passed, the key is new.
    TooFarAhead { ahead_ms: u64 },
}

/// A mutation to make durable. Its effect, its key and its reply are committed atomically.
#[derive(Debug, Clone)]
pub struct MutationRecord {
    pub key: ScopedKey,
    pub payload: Fingerprint,
    /// Why the caller makes the change; may be empty.
    pub reason: Arc<str>,
    pub session: Option<SessionId>,
    pub prediction: PredictionOutcome,
    /// The kinds of the operations, in the order of the reply's outcomes.
    pub operations: Vec<OperationKind>,
    /// The items that the operations added and removed, in the order of operations.
    pub flows: Vec<Flow>,
    /// Has the version of each touched inventory, in the same order.
    pub reply: Reply,
    /// May contain no changes: the store also remembers a mutation that changed nothing.
    pub touched: Vec<TouchedInventory>,
    /// Where the chain of each touched inventory begins, in the same order. The store looks up those that are missing at
    /// the end.
    pub heads: Vec<HeadBefore>,
}

/// Where the chain of an inventory's entries begins, before a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadBefore {
    /// As loaded, or as returned by an earlier commit.
    Known(ChainHead),
    /// An earlier mutation of the same batch changed the inventory; the index of that change among all changes of the
    /// batch.
    InBatch(usize),
    /// The store looks it up.
    Unknown,
}

/// The result of [`Store::load`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// In the order of the requested ids; `None` if the inventory does not exist.
    pub inventories: Vec<Option<Arc<Inventory>>>,
    /// Where the chains of these inventories begin; of a deleted inventory, at its deletion.
    pub heads: Vec<ChainHead>,
    /// In the order of the requested keys.
    pub key_statuses: Vec<KeyStatus>,
}

/// A query for a page of inventories, ordered by the bytes of their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    pub owner: Option<PlayerId>,
    /// Returns only ids that start with this prefix; empty for all.
    pub prefix: String,
    /// Returns only ids after this one.
    pub after: Option<InventoryId>,
    /// Maximum number of inventories in the page. A store examines a bounded multiple of it.
    pub limit: usize,
}

/// A page of inventories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    pub inventories: Vec<Arc<Inventory>>,
    /// The id after which the list continues; `None` if it is complete. A page may have fewer inventories than the limit
    /// although the list continues.
    pub next: Option<InventoryId>,
}

/// Why a store cannot read or write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// The disk is full or a quota is reached. Reads continue, and commits succeed again once there is room.
    Full { detail: String },
    /// The store cannot be reached or used now.
    Unavailable { detail: String },
    /// The stored data differs from the data that was written.
    Corrupt { detail: String },
}

/// Why a commit failed. The variants distinguish whether the batch may be durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// Nothing was written.
    NotCommitted(StoreError),
    /// The batch may or may not be durable: only reopening the store can tell.
    Unknown(StoreError),
}

/// How much space and journal a store uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Size on disk, in bytes.
    pub bytes: u64,
    /// Maximum size, in bytes; 0 if only the disk limits it.
    pub bytes_max: u64,
    /// Number of journal records that are not yet folded into the table.
    pub unfolded: u64,
    /// Whether the last attempt to fold, to seal or to delete old records failed.
    pub is_maintenance_failing: bool,
    pub log: LogUsage,
}

/// How much of the log a store keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogUsage {
    /// Number of journal rows.
    pub journal_rows: u64,
    /// Size of the journal rows, in bytes.
    pub journal_bytes: u64,
    /// Number of blocks of sealed records.
    pub blocks: u64,
    /// Size of these blocks, in bytes.
    pub block_bytes: u64,
    /// The time of the earliest record that is kept, in milliseconds since the Unix epoch; `None` if the log is empty.
    pub earliest_ms: Option<u64>,
    /// The time of the last record that was deleted, in milliseconds since the Unix epoch; 0 if none was.
    pub trimmed_ms: u64,
    /// Maximum age of sealed records, in milliseconds.
    pub age_max_ms: u64,
}

/// Durable storage of inventories and idempotency keys. All calls block.
pub trait Store: Send + Sync + 'static {
    /// Loads the current states of inventories and looks up keys. Fails if a requested inventory or key cannot be read.
    fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError>;

    /// Makes all mutations durable, in order, or none of them. One thread at a time calls it; each mutation builds on
    /// the result of [`Self::load`] and the mutations before it. Returns where the chain of each changed inventory begins
    /// now, in the order of the changes.
    fn commit(&self, batch: &[MutationRecord]) -> Result<Vec<ChainHead>, CommitError>;

    /// Lists inventories. The page reflects every commit that has returned.
    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError>;

    /// Returns a receiver of the reason why the store stopped writing. A stopped store writes nothing until it is
    /// reopened. A store that cannot stop never sends a reason.
    fn stopped(&self) -> watch::Receiver<Option<StoreError>> {
        watch::channel(None).1
    }

    /// Returns the usage for metrics; `None` if the store does not measure it.
    fn usage(&self) -> Option<StoreUsage> {
        None
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full { detail } => write!(f, "the store is full: {detail}"),
            Self::Unavailable { detail } => write!(f, "the store is unavailable: {detail}"),
            Self::Corrupt { detail } => write!(f, "the store is corrupt: {detail}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl std::fmt::Display for CommitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotCommitted(error) => write!(f, "nothing was committed: {error}"),
            Self::Unknown(error) => write!(f, "the outcome of the commit is unknown: {error}"),
        }
    }
}

impl std::error::Error for CommitError {}
