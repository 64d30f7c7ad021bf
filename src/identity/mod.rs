//! Who calls, and what that caller may do: tokens, keys, client certificates, roles, permissions. No gRPC in here.
//!
//! # What a game's login service has to mint
//!
//! A JWT (RFC 7519) of at most 8 KiB, sent as `authorization: Bearer TOKEN` with every call.
//!
//! | header | |
//! |---|---|
//! | `alg` | one of the settings' algorithms: `EdDSA` (Ed25519), `ES256` or `RS256` unless told otherwise |
//! | `kid` | required: which key of the JWKS file has signed it |
//!
//! | claim | |
//! |---|---|
//! | `iss` | required: the settings' issuer, exactly |
//! | `aud` | required: the settings' audience, alone or among others |
//! | `exp` | required: the second at which it ends; a leeway of 2 s is given |
//! | `nbf` | when it is there: the second before which it does not hold; the same leeway |
//! | `sub` | required, 1 to 128 bytes: the caller's name. Of a player it is the player's id, the one that owns inventories |
//! | `role` | required: `player`, `service` or `admin` |
//!
//! A caller's name is half of its idempotency keys: give each service one of its own, and keep it over restarts.
//!
//! # Roles
//!
//! - `player` reads and follows the inventories that it owns, and the catalog.
//! - `service` also changes inventories, reads all of them, and may name the player it speaks for.
//! - `admin` does all that, and AdminService.
//!
//! [`permissions`] has the table of all methods. What stands not in it is denied.
//!
//! # Keys
//!
//! The public keys are a JWKS file (RFC 7517), followed while the service runs: what has changed holds two seconds later, and a
//! file that is wrong changes nothing. To exchange a key, add the new one, sign with it, and take the old one out once the
//! last token of it has ended. Taking it out earlier ends its tokens, and the streams opened with them.
//!
//! # Clocks
//!
//! A token is judged by the wall clock, but never by less than the time that has passed since the service started: setting
//! the clock back lengthens no token.

mod certificates;
mod clock;
mod expiry;
mod failures;
mod keys;
mod known;
pub mod permissions;
mod role;
mod settings;
mod token;
mod verifier;

pub use clock::WallClock;
pub use expiry::{Expiry, ExpiryWatch, Lapsed};
pub use keys::KeysError;
pub use role::Role;
pub use settings::{Algorithm, CertificateIdentity, IdentityError, IdentitySettings};
pub use token::{TOKEN_BYTES_MAX, Unverified};
pub use verifier::{Verified, Verifier};

use std::sync::Arc;

/// How callers prove who they are.
#[derive(Debug, Clone, Default)]
pub enum Authentication {
    /// They do not: each names itself, and may do everything.
    #[default]
    None,
    Verified(Arc<Verifier>),
}
