//! A store that fails on demand, for tests of whoever uses one.

use super::{CommitError, Key, ListQuery, Loaded, Store, StoreError, StoreUsage, Transaction};
use crate::domain::{Inventory, InventoryId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// How one commit is to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is written, and the caller is told so.
    NotCommitted(StoreError),
    /// Nothing is written, and the caller is told that nobody knows.
    UnknownBefore(StoreError),
    /// It is written, and the caller is told that nobody knows.
    UnknownAfter(StoreError),
}

/// Passes everything on to the store inside, except for the commits that are to fail.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    /// One for each commit to come; none: that one goes through.
    commits: Mutex<VecDeque<Option<Fault>>>,
    reads: Mutex<Option<StoreError>>,
}

impl<S> FaultyStore<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, commits: Mutex::default(), reads: Mutex::default() }
    }

    /// The commit after those that are already decided upon fails.
    pub fn fail_next_commit(&self, fault: Fault) {
        self.decide(Some(fault));
    }

    /// The commit after those that are already decided upon goes through.
    pub fn pass_next_commit(&self) {
        self.decide(None);
    }

    /// All reads fail with this, until it is none.
    pub fn fail_reads(&self, error: Option<StoreError>) {
        *self.reads.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn decide(&self, fault: Option<Fault>) {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).push_back(fault);
    }

    fn check_reads(&self) -> Result<(), StoreError> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn load(&self, ids: &[InventoryId], keys: &[Key]) -> Result<Loaded, StoreError> {
        self.check_reads()?;
        self.inner.load(ids, keys)
    }

    fn commit(&self, batch: &[Transaction]) -> Result<(), CommitError> {
        let fault = self.commits.lock().unwrap_or_else(PoisonError::into_inner).pop_front().flatten();
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

    fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Inventory>>, StoreError> {
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
