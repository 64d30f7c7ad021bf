//! Why a caller is not authenticated.

use std::time::Duration;

/// Why a caller is not authenticated, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the request has neither a token nor an accepted client certificate")]
    CredentialsMissing,
    /// The reason is for the log only: an attacker who knew it could improve a forged token step by step.
    #[error("invalid token: {reason}")]
    InvalidToken { reason: &'static str },
    #[error("the token or certificate has expired")]
    Expired,
    #[error("the key that signed the token is no longer accepted")]
    KeyRevoked,
    /// The address has sent too many invalid tokens.
    #[error("too many invalid tokens from this address; retry after {retry_after:?}")]
    TooManyInvalidTokens { retry_after: Duration },
}
