//! Whether a proof that was accepted still holds.

use super::clock::Clock;
use super::keys::KeySet;
use super::known::Person;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// The keys and the time that hold now.
#[derive(Debug)]
pub(super) struct Live {
    /// Sent anew also when the clock was set ahead.
    pub keys: watch::Sender<Arc<KeySet>>,
    pub clock: Clock,
}

/// How long somebody's proof holds.
#[derive(Debug, Clone)]
pub struct Expiry {
    person: Arc<Person>,
    live: Arc<Live>,
}

/// Why a proof holds no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapsed {
    /// Its time is over.
    Expired,
    /// The key that signed it is not accepted any more.
    Revoked,
}

impl Expiry {
    pub(super) fn new(person: Arc<Person>, live: Arc<Live>) -> Self {
        Self { person, live }
    }

    /// By the wall clock, and by one that nobody can set.
    pub fn check(&self) -> Result<(), Lapsed> {
        if self.person.until_ms <= self.live.clock.now_ms() || self.person.deadline <= Instant::now() {
            return Err(Lapsed::Expired);
        }
        let accepted = self.person.key.as_ref().is_none_or(|key| self.live.keys.borrow().accepts(key));
        if accepted { Ok(()) } else { Err(Lapsed::Revoked) }
    }

    /// It is over then, however the clocks are set.
    pub fn deadline(&self) -> Instant {
        self.person.deadline
    }

    pub fn watch(&self) -> ExpiryWatch {
        ExpiryWatch { expiry: self.clone(), keys: self.live.keys.subscribe() }
    }
}

/// For whoever goes on for long: an [`Expiry`], and when to look at it again.
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

    /// Returns when it may have lapsed before its deadline. Safe to drop and call again.
    pub async fn changed(&mut self) {
        // The sender lives in the expiry.
        let _ = self.keys.changed().await;
    }
}
