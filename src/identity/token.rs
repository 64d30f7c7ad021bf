//! Verifies a token: its signature by an accepted key, its claims and its times.

use super::Role;
use super::keys::{Key, KeySet};
use super::known::Person;
use crate::domain::{Caller, PlayerId};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum size of a token, in bytes. Longer tokens are refused.
pub const TOKEN_BYTES_MAX: usize = 8 * 1_024;
/// Maximum remaining lifetime of a token, in milliseconds; a longer one is reduced to it. The monotonic clock cannot
/// represent arbitrarily late deadlines.
const LIFE_MS_MAX: u64 = 10 * 365 * 24 * 3_600 * 1_000;

/// Why a caller is not authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// There is neither a token nor an accepted certificate.
    Missing,
    /// The token is invalid. The reason is for the log only: a caller that knew the reason could try until the token is
    /// valid.
    Invalid {
        why: &'static str,
    },
    Expired,
    /// The address has sent too many wrong tokens.
    TooManyWrong {
        retry_after: Duration,
    },
}

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
    fn ms(self) -> Option<u64> {
        // The cast saturates: a number that is too large becomes the maximum.
        (self.0 >= 0.0).then_some((self.0 * 1_000.0) as u64)
    }
}

/// The requirements for every token. The times are not checked here, but by [`verify`] with the service's clock.
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
pub(super) fn signer(keys: &KeySet, token: &str) -> Result<Arc<Key>, Unverified> {
    let header = decode_header(token).map_err(|_| invalid("it is no JWS"))?;
    if header.crit.is_some() {
        return Err(invalid("it has critical headers that are not known here"));
    }
    let kid = header.kid.ok_or_else(|| invalid("it names no key"))?;
    let key = keys.get(&kid).ok_or_else(|| invalid("its key is not known"))?;
    if !key.takes(header.alg) {
        return Err(invalid("its algorithm is not one of its key's"));
    }
    Ok(key.clone())
}

/// Verifies the token at the time `now_ms`, and returns its caller.
pub(super) fn verify(key: &Arc<Key>, token: &str, now_ms: u64, leeway: Duration) -> Result<Person, Unverified> {
    let decoded = decode::<Claims>(token, &key.decoding, &key.validation);
    let claims = decoded.map_err(|error| invalid(why(error.kind())))?.claims;
    let leeway_ms = leeway.as_millis() as u64;
    let until_ms = claims.exp.ms().ok_or_else(|| invalid("exp is no time"))?.saturating_add(leeway_ms);
    if let Some(from) = claims.nbf {
        let from_ms = from.ms().ok_or_else(|| invalid("nbf is no time"))?;
        if from_ms > now_ms.saturating_add(leeway_ms) {
            return Err(invalid("it does not hold yet"));
        }
    }
    if until_ms <= now_ms {
        return Err(Unverified::Expired);
    }
    person(&claims.sub, claims.role, until_ms, now_ms, Some(key.clone()))
        .ok_or_else(|| invalid("sub is no name of 1 to 128 bytes"))
}

/// Builds the caller; `None` if the name is invalid.
pub(super) fn person(name: &str, role: Role, until_ms: u64, now_ms: u64, key: Option<Arc<Key>>) -> Option<Person> {
    let caller = Caller::new(name).ok()?;
    let player = if role == Role::Player { Some(PlayerId::new(name).ok()?) } else { None };
    let life = Duration::from_millis(until_ms.saturating_sub(now_ms).min(LIFE_MS_MAX));
    Some(Person { caller, player, role, until_ms, deadline: Instant::now() + life, key })
}

fn why(error: &ErrorKind) -> &'static str {
    #[allow(clippy::wildcard_enum_match_arm, reason = "the library may get more kinds; this is for the log only")]
    match error {
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::InvalidIssuer => "iss is another",
        ErrorKind::InvalidAudience => "aud is another",
        ErrorKind::MissingRequiredClaim(_) => "a required claim is missing",
        ErrorKind::Json(_) => "its claims cannot be read",
        _ => "it is malformed",
    }
}

pub(super) fn invalid(why: &'static str) -> Unverified {
    Unverified::Invalid { why }
}
