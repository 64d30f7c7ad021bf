//! Where inventories and idempotency keys last. A store knows the domain and nothing else of the service.
//!
//! [`Store`] is the whole port: load, commit, list (and usage, for operators). Calls block; the commit loop has a thread of
//! its own for them. What a store must hold to is in the conformance suite (`tests/store_conformance.rs`), the same for all
//! stores.

pub mod embedded;
pub mod faulty;
pub mod format;
pub mod horizon;

use crate::domain::{
    Caller, Fingerprint, IdempotencyKey, Inventory, InventoryId, OperationOutcome, PlayerId, Touched, Version,
};
use std::sync::Arc;
use tokio::sync::watch;

/// A retry is recognised by who calls and the key that the caller gave.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub caller: Caller,
    pub key: IdempotencyKey,
}

/// What a mutation was answered; kept with its key, so that a retry gets the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub outcomes: Vec<OperationOutcome>,
    pub versions: Vec<Version>,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recall {
    /// Never seen, as far as the key's window and its own time tell.
    New,
    /// Committed before, with this payload and this reply.
    Applied { payload: Fingerprint, reply: Reply },
    /// Its time (a UUIDv7) is not after that of a key that was forgotten: it may have been applied. Never run it again.
    Forgotten,
    /// Its time (a UUIDv7) lies further ahead of the store's wall clock than can be remembered now. It was not applied and
    /// must not run; once that time has passed, it is new.
    TooFarAhead { ahead_ms: u64 },
}

/// One mutation as it is to be made durable: its effect, its key and its reply, together or not at all.
#[derive(Debug, Clone)]
pub struct Transaction {
    pub key: Key,
    pub payload: Fingerprint,
    pub reply: Reply,
    /// May be empty of changes: a mutation that did nothing is remembered all the same.
    pub touched: Vec<Touched>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// In the order asked for; none where there is no such inventory.
    pub inventories: Vec<Option<Arc<Inventory>>>,
    /// In the order asked for.
    pub keys: Vec<Recall>,
}

/// A page of inventories, in order of their ids' bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    pub owner: Option<PlayerId>,
    /// Only ids that begin with this; empty for all.
    pub prefix: String,
    /// Only ids after this one.
    pub after: Option<InventoryId>,
    pub limit: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// No room on the disk, or a quota is reached. Reads go on, and commits again once there is room.
    Full { detail: String },
    /// It cannot be reached or used now.
    Unavailable { detail: String },
    /// What is stored is not what was written.
    Corrupt { detail: String },
}

/// Whether the batch may have been made durable is the first thing to know about a failed commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// Nothing was written.
    NotCommitted(StoreError),
    /// May or may not have been written: the store must be opened anew to tell.
    Unknown(StoreError),
}

/// What a store takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// On disk.
    pub bytes: u64,
    /// The most that it may take; 0: as much as there is.
    pub bytes_max: u64,
    /// Records in the journal that are not yet folded into the table.
    pub unfolded: u64,
}

pub trait Store: Send + Sync + 'static {
    /// The current states of inventories, and what is known of keys.
    fn load(&self, ids: &[InventoryId], keys: &[Key]) -> Result<Loaded, StoreError>;

    /// Makes all transactions durable, in order, or none of them. Called by one thread at a time; each is built upon what
    /// [`Self::load`] gives plus the transactions before it.
    fn commit(&self, batch: &[Transaction]) -> Result<(), CommitError>;

    /// Sees every commit that has returned.
    fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Inventory>>, StoreError>;

    /// Becomes the reason when the store has failed so that nothing is written any more until it is opened anew. A store
    /// that cannot fail so never does.
    fn stopped(&self) -> watch::Receiver<Option<StoreError>> {
        watch::channel(None).1
    }

    /// For whoever watches the service; none if it cannot tell.
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
            Self::Unknown(error) => write!(f, "the commit may or may not have happened: {error}"),
        }
    }
}

impl std::error::Error for CommitError {}
