//! Durable storage of inventories and idempotency keys. A store knows the domain and no other part of the service.
//!
//! The [`Store`] trait is the whole port: load, commit, list, and usage for operators. Calls block; the commit loop
//! makes them on its own thread. The conformance suite (`tests/store_conformance.rs`) defines the requirements, and is
//! the same for all stores.

pub mod embedded;
pub mod format;
pub mod horizon;

use crate::domain::{
    Caller, Fingerprint, IdempotencyKey, Inventory, InventoryId, OperationOutcome, PlayerId, TouchedInventory, Version,
};
use std::sync::Arc;
use tokio::sync::watch;

/// Identifies a mutation across retries: the caller and the idempotency key that the caller gave.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScopedKey {
    pub caller: Caller,
    pub key: IdempotencyKey,
}

/// The reply to a mutation. The store keeps it with the key, so that a retry gets the same reply.
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
    pub reply: Reply,
    /// May contain no changes: the store also remembers a mutation that changed nothing.
    pub touched: Vec<TouchedInventory>,
}

/// The result of [`Store::load`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// In the order of the requested ids; `None` if the inventory does not exist.
    pub inventories: Vec<Option<Arc<Inventory>>>,
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
}

/// Durable storage of inventories and idempotency keys. All calls block.
pub trait Store: Send + Sync + 'static {
    /// Loads the current states of inventories and looks up keys. Fails if a requested inventory or key cannot be read.
    fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError>;

    /// Makes all mutations durable, in order, or none of them. One thread at a time calls it; each mutation builds on
    /// the result of [`Self::load`] and the mutations before it.
    fn commit(&self, batch: &[MutationRecord]) -> Result<(), CommitError>;

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
