//! Expiry and revocation of proofs, such as tokens, after they were accepted.

use super::clock::Clock;
use super::keys::KeySet;
use super::known::Person;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// The current keys and the clock.
#[derive(Debug)]
pub(super) struct Live {
    /// Also notified, without a new value, when the wall clock is set ahead.
    pub keys: watch::Sender<Arc<KeySet>>,
    pub clock: Clock,
}

/// The validity of a caller's proof.
#[derive(Debug, Clone)]
pub struct Expiry {
    person: Arc<Person>,
    live: Arc<Live>,
}

/// Why a proof is no longer valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapsed {
    /// The proof has expired.
    Expired,
    /// The key that signed the proof is no longer accepted.
    Revoked,
}

impl Expiry {
    pub(super) fn new(person: Arc<Person>, live: Arc<Live>) -> Self {
        Self { person, live }
    }

    /// Checks the proof, by the wall clock and by the monotonic clock.
    pub fn check(&self) -> Result<(), Lapsed> {
        if self.person.until_ms <= self.live.clock.now_ms() || self.person.deadline <= Instant::now() {
            return Err(Lapsed::Expired);
        }
        let accepted = self.person.key.as_ref().is_none_or(|key| self.live.keys.borrow().accepts(key));
        if accepted { Ok(()) } else { Err(Lapsed::Revoked) }
    }

    /// The time at which the proof expires by the monotonic clock, regardless of the wall clock.
    pub fn deadline(&self) -> Instant {
        self.person.deadline
    }

    pub fn watch(&self) -> ExpiryWatch {
        ExpiryWatch { expiry: self.clone(), keys: self.live.keys.subscribe() }
    }
}

/// An [`Expiry`] for long-running calls, with notifications of when to check it again.
#[derive(Debug)]
pub struct ExpiryWatch {
    expiry: Expiry,
    keys: watch::Receiver<Arc<KeySet>>,
}

impl ExpiryWatch {
    pub fn check(&self) -> Result<(), Lapsed> {
        self.expiry.check()
    }

    pub fn deadline(&self) -> Instant {
        self.expiry.deadline()
    }

    /// Returns when the proof may have become invalid before its deadline. This method is cancel safe.
    pub async fn changed(&mut self) {
        // The sender cannot be gone: the expiry holds it.
        let _ = self.keys.changed().await;
    }
}
