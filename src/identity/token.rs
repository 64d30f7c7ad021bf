//! Verifies a token: its signature by an accepted key, its claims and its times.

use super::Role;
use super::credential::Credential;
use super::error::AuthError;
use super::keys::{Key, KeySet};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Maximum size of a token, in bytes. Larger tokens are invalid.
pub const TOKEN_BYTES_MAX: usize = 8 * 1_024;

/// The claims that are checked; others are ignored.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    role: Role,
    /// Must be a string; the library would also accept several.
    #[serde(rename = "iss")]
    _issuer: String,
    exp: NumericDate,
    nbf: Option<NumericDate>,
}

/// Seconds since the Unix epoch, possibly fractional.
#[derive(Debug, Clone, Copy, Deserialize)]
struct NumericDate(f64);

impl NumericDate {
    /// Returns the time in milliseconds, or `None` if it is negative or not a number.
    fn ms(self) -> Option<u64> {
        // The cast saturates: a number that is too large becomes the maximum.
        (self.0 >= 0.0).then_some((self.0 * 1_000.0) as u64)
    }
}

/// The requirements for every token. The times are not checked here, but by [`verify`] with the server's clock.
pub(super) fn validation(issuer: &str, audience: &str) -> Validation {
    let mut validation = Validation::default();
    validation.algorithms.clear();
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation
}

/// Returns the key that the token names. This check is cheap; it does not verify the signature.
pub(super) fn signing_key(keys: &KeySet, token: &str) -> Result<Arc<Key>, AuthError> {
    let header = decode_header(token).map_err(|_| invalid("not a JWS"))?;
    if header.crit.is_some() {
        return Err(invalid("unsupported critical headers"));
    }
    let kid = header.kid.ok_or_else(|| invalid("no kid"))?;
    let key = keys.get(&kid).ok_or_else(|| invalid("unknown kid"))?;
    if !key.allows(header.alg) {
        return Err(invalid("alg does not match the key"));
    }
    Ok(key.clone())
}

/// Verifies the token at the time `now_ms`, and returns its caller.
pub(super) fn verify(key: &Arc<Key>, token: &str, now_ms: u64, leeway: Duration) -> Result<Credential, AuthError> {
    let decoded = decode::<Claims>(token, &key.decoding, &key.validation);
    let claims = decoded.map_err(|error| invalid(reason(error.kind())))?.claims;
    let leeway_ms = leeway.as_millis() as u64;
    let expires_ms = claims.exp.ms().ok_or_else(|| invalid("exp is not a time"))?.saturating_add(leeway_ms);
    if let Some(not_before) = claims.nbf {
        let not_before_ms = not_before.ms().ok_or_else(|| invalid("nbf is not a time"))?;
        if not_before_ms > now_ms.saturating_add(leeway_ms) {
            return Err(invalid("not valid yet (nbf)"));
        }
    }
    if expires_ms <= now_ms {
        return Err(AuthError::Expired);
    }
    Credential::new(&claims.sub, claims.role, expires_ms, now_ms, Some(key.clone()))
        .ok_or_else(|| invalid("sub is not a name of 1 to 128 bytes"))
}

fn reason(error: &ErrorKind) -> &'static str {
    #[allow(clippy::wildcard_enum_match_arm, reason = "the library may add kinds; this is for the log only")]
    match error {
        ErrorKind::InvalidSignature => "wrong signature",
        ErrorKind::InvalidIssuer => "wrong iss",
        ErrorKind::InvalidAudience => "wrong aud",
        ErrorKind::MissingRequiredClaim(_) => "a required claim is missing",
        ErrorKind::Json(_) => "claims cannot be parsed",
        _ => "malformed",
    }
}

pub(super) fn invalid(reason: &'static str) -> AuthError {
    AuthError::InvalidToken { reason }
}
