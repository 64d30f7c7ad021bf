//! Authentication and authorization of callers: tokens, keys, client certificates, roles and permissions. Independent
//! of gRPC.
//!
//! # Tokens
//!
//! A game's login service issues the tokens. A token is a JWT (RFC 7519) of at most 8 KiB, sent as
//! `authorization: Bearer TOKEN` with every call.
//!
//! | header | |
//! |---|---|
//! | `alg` | one of the settings' algorithms; by default `EdDSA` (Ed25519), `ES256` or `RS256` |
//! | `kid` | required: the key in the JWKS file that signed the token |
//!
//! | claim | |
//! |---|---|
//! | `iss` | required: exactly the settings' issuer |
//! | `aud` | required: the settings' audience, alone or among others |
//! | `exp` | required: the time at which the token expires; the default leeway is 2 s |
//! | `nbf` | optional: the time before which the token is not valid; with the same leeway |
//! | `sub` | required, 1 to 128 bytes: the caller's name. For a player, it is the player's id, which owns inventories |
//! | `role` | required: `player`, `service` or `admin` |
//!
//! A caller's name is part of its idempotency keys: give each service its own name, and keep the name across restarts.
//!
//! # Roles
//!
//! - `player` reads and subscribes to its own inventories, and reads the catalog.
//! - `service` also changes inventories, reads all of them, and may name the player that it acts for.
//! - `admin` may also call AdminService.
//!
//! [`permissions`] contains the table of all methods. A method that is not in the table is denied.
//!
//! # Keys
//!
//! The public keys are in a JWKS file (RFC 7517), which is reloaded while the service runs: a change takes effect after
//! two seconds, and an invalid file changes nothing. To rotate a key, add the new one, sign with it, and remove the old
//! one once the last token that it signed has expired. Removing the old key earlier revokes its tokens, and ends the
//! streams that were opened with them.
//!
//! # Clocks
//!
//! A token is checked by the wall clock, or by the start time of the service plus the time since then, whichever is
//! later: setting the clock back does not prolong a token.

mod certificates;
mod clock;
mod credential;
mod credential_cache;
mod credential_status;
mod error;
mod invalid_token_limiter;
mod keys;
pub mod permissions;
mod role;
mod settings;
mod token;
mod verifier;

pub use clock::WallClock;
pub use credential_status::{CredentialStatus, KeyChanges};
pub use error::AuthError;
pub use keys::KeysError;
pub use role::Role;
pub use settings::{Algorithm, CertificateIdentity, IdentityError, IdentitySettings};
pub use token::TOKEN_BYTES_MAX;
pub use verifier::{Principal, Verifier};

use crate::domain::{Caller, PlayerId};
use std::sync::Arc;

/// Whether callers are authenticated.
#[derive(Debug, Clone, Default)]
pub enum Authentication {
    /// Callers are not authenticated: each one names itself, and may call everything.
    #[default]
    Disabled,
    Enabled(Arc<Verifier>),
}

impl Authentication {
    /// Returns a receiver of changes that may invalidate credentials; `None` if callers are not authenticated.
    pub fn key_changes(&self) -> Option<KeyChanges> {
        match self {
            Self::Disabled => None,
            Self::Enabled(verifier) => Some(verifier.key_changes()),
        }
    }
}

/// The caller of a request, in the request's extensions.
#[derive(Debug, Clone)]
pub struct Identity {
    pub caller: Caller,
    pub player: Option<PlayerId>,
    pub role: Role,
    /// Whether the credential is still valid; `None` if callers are not authenticated.
    pub credential_status: Option<CredentialStatus>,
}
