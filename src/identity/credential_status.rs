//! Expiry and revocation of credentials after they were accepted.

use super::clock::Clock;
use super::credential::Credential;
use super::error::AuthError;
use super::keys::KeySet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// The current keys and the clock, against which credentials are checked.
#[derive(Debug)]
pub(super) struct VerifierState {
    /// Also notified, without a new value, when the wall clock is set ahead.
    pub keys: watch::Sender<Arc<KeySet>>,
    pub clock: Clock,
}

/// Checks whether the credential of a caller is still valid.
#[derive(Debug, Clone)]
pub struct CredentialStatus {
    credential: Arc<Credential>,
    current: Arc<VerifierState>,
}

impl CredentialStatus {
    pub(super) fn new(credential: Arc<Credential>, current: Arc<VerifierState>) -> Self {
        Self { credential, current }
    }

    /// Checks the credential, by the wall clock and by the monotonic clock.
    ///
    /// # Errors
    ///
    /// [`AuthError::Expired`], or [`AuthError::KeyRevoked`] if the key that signed the token is no longer accepted.
    pub fn check(&self) -> Result<(), AuthError> {
        let Credential { expires_ms, deadline, key, .. } = &*self.credential;
        if *expires_ms <= self.current.clock.now_ms() || *deadline <= Instant::now() {
            return Err(AuthError::Expired);
        }
        let is_accepted = key.as_ref().is_none_or(|key| self.current.keys.borrow().accepts(key));
        if is_accepted { Ok(()) } else { Err(AuthError::KeyRevoked) }
    }

    /// Returns the time at which the credential expires by the monotonic clock, regardless of the wall clock.
    pub fn deadline(&self) -> Instant {
        self.credential.deadline
    }

    pub fn watch(&self) -> CredentialStatusWatch {
        CredentialStatusWatch { expiry: self.clone(), keys: self.current.keys.subscribe() }
    }
}

/// An [`CredentialStatus`] for long-running calls, with notifications of when to check it again.
#[derive(Debug)]
pub struct CredentialStatusWatch {
    expiry: CredentialStatus,
    keys: watch::Receiver<Arc<KeySet>>,
}

impl CredentialStatusWatch {
    /// See [`CredentialStatus::check`].
    pub fn check(&self) -> Result<(), AuthError> {
        self.expiry.check()
    }

    /// See [`CredentialStatus::deadline`].
    pub fn deadline(&self) -> Instant {
        self.expiry.deadline()
    }

    /// Returns when the credential may have become invalid before its deadline. Cancel safe.
    pub async fn changed(&mut self) {
        // The sender cannot be gone: the expiry holds it.
        let _ = self.keys.changed().await;
    }
}
