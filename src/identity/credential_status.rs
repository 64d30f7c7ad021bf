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
}

/// Notifies of changes that may invalidate credentials before their deadlines. A clone has seen the same changes.
#[derive(Debug, Clone)]
pub struct KeyChanges(watch::Receiver<Arc<KeySet>>);

impl KeyChanges {
    pub(super) fn new(current: &VerifierState) -> Self {
        Self(current.keys.subscribe())
    }

    /// Waits until credentials may have become invalid. Cancel safe. Never returns once the verifier is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
