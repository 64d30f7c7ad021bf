//! A verified token or client certificate.

use super::Role;
use super::keys::Key;
use crate::domain::{Caller, PlayerId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum remaining lifetime of a credential, in milliseconds; a longer one is reduced to it. The monotonic clock
/// cannot represent arbitrarily late deadlines.
const LIFETIME_MS_MAX: u64 = 10 * 365 * 24 * 3_600 * 1_000;

/// The caller that a token or certificate identifies, and how long the token or certificate is valid.
#[derive(Debug)]
pub(super) struct Credential {
    pub caller: Caller,
    /// The player's id, if the caller is a player.
    pub player: Option<PlayerId>,
    pub role: Role,
    /// When the credential expires, in milliseconds since Unix epoch, including the leeway.
    pub expires_ms: u64,
    /// When the credential expires by the monotonic clock, computed when it was first verified.
    pub deadline: Instant,
    /// The key that signed the token; `None` for a certificate.
    pub key: Option<Arc<Key>>,
}

impl Credential {
    /// Creates a credential that was verified at `now_ms`. Returns `None` if the name is not valid.
    pub fn new(name: &str, role: Role, expires_ms: u64, now_ms: u64, key: Option<Arc<Key>>) -> Option<Self> {
        let caller = Caller::new(name).ok()?;
        let player = if role == Role::Player { Some(PlayerId::new(name).ok()?) } else { None };
        let lifetime = Duration::from_millis(expires_ms.saturating_sub(now_ms).min(LIFETIME_MS_MAX));
        Some(Self { caller, player, role, expires_ms, deadline: Instant::now() + lifetime, key })
    }
}
