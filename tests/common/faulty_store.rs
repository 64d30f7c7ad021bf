//! A store that fails on demand, for tests of its callers.

use parking_lot::Mutex;
use slotcast::domain::InventoryId;
use slotcast::store::log::ChainHead;
use slotcast::store::{
    CommitError, ListPage, ListQuery, Loaded, MutationRecord, ScopedKey, Store, StoreError, StoreUsage,
};
use std::collections::VecDeque;
use tokio::sync::watch;

/// How a commit fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The store writes nothing and reports that nothing was committed.
    NotCommitted(StoreError),
    /// The store writes nothing and reports that the outcome is unknown.
    UnknownBefore(StoreError),
    /// The store writes the batch and reports that the outcome is unknown.
    UnknownAfter(StoreError),
}

/// Forwards all calls to the inner store, except for the commits and reads that are to fail.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    /// One entry for each of the next commits; `None` lets it pass.
    commits: Mutex<VecDeque<Option<Fault>>>,
    reads: Mutex<Option<StoreError>>,
}

impl<S> FaultyStore<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, commits: Mutex::default(), reads: Mutex::default() }
    }

    /// Makes the next undecided commit fail.
    pub fn fail_next_commit(&self, fault: Fault) {
        self.decide(Some(fault));
    }

    /// Makes the next undecided commit pass.
    pub fn pass_next_commit(&self) {
        self.decide(None);
    }

    /// Makes all reads fail with this error, until it is set to `None`.
    pub fn fail_reads(&self, error: Option<StoreError>) {
        *self.reads.lock() = error;
    }

    fn decide(&self, fault: Option<Fault>) {
        self.commits.lock().push_back(fault);
    }

    fn check_reads(&self) -> Result<(), StoreError> {
        self.reads.lock().clone().map_or(Ok(()), Err)
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError> {
        self.check_reads()?;
        self.inner.load(ids, keys)
    }

    fn commit(&self, batch: &[MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        let fault = self.commits.lock().pop_front().flatten();
        match fault {
            None => self.inner.commit(batch),
            Some(Fault::NotCommitted(error)) => Err(CommitError::NotCommitted(error)),
            Some(Fault::UnknownBefore(error)) => Err(CommitError::Unknown(error)),
            Some(Fault::UnknownAfter(error)) => {
                self.inner.commit(batch)?;
                Err(CommitError::Unknown(error))
            }
        }
    }

    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.check_reads()?;
        self.inner.list(query)
    }

    fn stopped(&self) -> watch::Receiver<Option<StoreError>> {
        self.inner.stopped()
    }

    fn usage(&self) -> Option<StoreUsage> {
        self.inner.usage()
    }
}
