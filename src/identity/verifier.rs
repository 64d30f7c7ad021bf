//! Authenticates callers by tokens and certificates. The keys may be reloaded at any time.

use super::certificates::Certificates;
use super::clock::{self, Clock, WallClock};
use super::credential::Credential;
use super::credential_status::{CredentialStatus, KeyChanges, VerifierState};
use super::error::AuthError;
use super::invalid_token_limiter::InvalidTokenLimiter;
use super::keys::{FILE_BYTES_MAX, KeySet, KeysError};
use super::token::{self, TOKEN_BYTES_MAX, invalid};
use super::{IdentityError, IdentitySettings, Role};
use crate::domain::{Caller, PlayerId};
use crate::file_watch::FileWatch;
use crate::statistics::Reloads;
use jsonwebtoken::Validation;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};

/// Maximum forward drift of the wall clock from the monotonic clock between two checks, in milliseconds; more means
/// that the clock was stepped.
const CLOCK_STEP_MS: i64 = 1_000;
/// How far the wall clock may be behind before a warning is logged, in milliseconds.
const CLOCK_BEHIND_WARNING_MS: i64 = 60_000;

/// Authenticates callers by tokens and client certificates.
#[derive(Debug)]
pub struct Verifier {
    settings: IdentitySettings,
    validation: Validation,
    certificates: Certificates,
    invalid_tokens: InvalidTokenLimiter,
    current: Arc<VerifierState>,
    refresh: Mutex<RefreshState>,
    reloads: Arc<Reloads>,
}

/// The state of [`Verifier::refresh`].
#[derive(Debug)]
struct RefreshState {
    /// The JWKS file, if there is one.
    file: Option<FileWatch>,
    /// How far ahead the wall clock was at the last check, in milliseconds.
    clock_offset_ms: i64,
    has_warned: bool,
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Principal {
    pub caller: Caller,
    /// The player's id, if the caller is a player.
    pub player: Option<PlayerId>,
    pub role: Role,
    pub credential_status: CredentialStatus,
}

impl Verifier {
    /// Creates a verifier with the system's wall clock, and reads the JWKS file if there is one.
    ///
    /// # Errors
    ///
    /// An [`IdentityError`] if the settings are invalid or the JWKS file cannot be used.
    pub fn open(settings: IdentitySettings) -> Result<Self, IdentityError> {
        Self::open_with_clock(settings, clock::system())
    }

    /// Like [`Self::open`], with another wall clock.
    pub fn open_with_clock(settings: IdentitySettings, wall: WallClock) -> Result<Self, IdentityError> {
        settings.validate()?;
        let certificates = Certificates::new(&settings.certificates)?;
        let validation = token::validation(&settings.issuer, &settings.audience);
        let (file, keys) = match &settings.jwks {
            None => (None, KeySet::default()),
            Some(path) => {
                let opened = FileWatch::open(vec![path.clone()], FILE_BYTES_MAX);
                let (file, contents) = opened.map_err(KeysError::from)?;
                (Some(file), KeySet::parse(&contents.concat(), path, &settings.algorithms, &validation)?)
            }
        };
        let clock = Clock::new(wall);
        let current = Arc::new(VerifierState { keys: watch::Sender::new(Arc::new(keys)), clock });
        let refresh = Mutex::new(RefreshState { file, clock_offset_ms: 0, has_warned: false });
        let invalid_tokens = InvalidTokenLimiter::new();
        Ok(Self { settings, validation, certificates, invalid_tokens, current, refresh, reloads: Arc::default() })
    }

    /// Authenticates a caller by a token.
    pub fn verify_token(&self, token: &str) -> Result<Principal, AuthError> {
        self.verify(token, None)
    }

    /// Authenticates a caller by a token from this address. After too many invalid tokens from the address, tokens that
    /// are not in the cache fail without verification.
    pub fn verify_token_from(&self, token: &str, address: IpAddr) -> Result<Principal, AuthError> {
        self.verify(token, Some(address))
    }

    fn verify(&self, token: &str, address: Option<IpAddr>) -> Result<Principal, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid("larger than 8 KiB"));
        }
        let keys = self.current.keys.borrow().clone();
        let credential = match keys.cache.get(token.as_bytes()) {
            Some(credential) => credential,
            None => {
                let key = token::signing_key(&keys, token)?;
                if let Some(retry_after) = address.and_then(|address| self.invalid_tokens.retry_after(address)) {
                    return Err(AuthError::TooManyInvalidTokens { retry_after });
                }
                let now_ms = self.current.clock.now_ms();
                let verified = token::verify(&key, token, now_ms, self.settings.leeway);
                if let (Err(_), Some(address)) = (&verified, address) {
                    self.invalid_tokens.add_invalid_token(address);
                }
                let credential = Arc::new(verified?);
                keys.cache.insert(token.as_bytes(), credential.clone());
                credential
            }
        };
        self.principal(credential).inspect_err(|_| keys.cache.remove(token.as_bytes()))
    }

    /// Authenticates a caller by a client certificate. The transport must have verified it against its CA.
    pub fn verify_certificate(&self, der: &[u8]) -> Result<Principal, AuthError> {
        self.principal(self.certificates.verify(der, self.current.clock.now_ms())?)
    }

    fn principal(&self, credential: Arc<Credential>) -> Result<Principal, AuthError> {
        let (caller, player, role) = (credential.caller.clone(), credential.player.clone(), credential.role);
        let credential_status = CredentialStatus::new(credential, self.current.clone());
        // The credential may be from the cache, and the keys may have been replaced since they were read.
        credential_status.check()?;
        Ok(Principal { caller, player, role, credential_status })
    }

    /// Returns a receiver of changes that may invalidate credentials.
    pub fn key_changes(&self) -> KeyChanges {
        KeyChanges::new(&self.current)
    }

    /// Returns the reload counts of the JWKS file.
    pub fn reloads(&self) -> &Arc<Reloads> {
        &self.reloads
    }

    /// Refreshes the keys and the clock periodically. Never returns.
    pub async fn watch_for_changes(&self) -> Infallible {
        let mut interval = FileWatch::interval();
        loop {
            interval.tick().await;
            self.refresh().await;
        }
    }

    /// Reloads the JWKS file if it has changed, and checks whether the wall clock was set.
    pub async fn refresh(&self) {
        let mut state = self.refresh.lock().await;
        self.check_clock(&mut state);
        let Some(file) = &mut state.file else { return };
        let Some(read) = file.check(false).await else { return };
        match read.map_err(KeysError::from).and_then(|contents| self.parse(&contents.concat())) {
            Ok(keys) => {
                let mut ids: Vec<&str> = keys.ids().collect();
                ids.sort_unstable();
                tracing::info!(ids = ids.join(", "), "token keys reloaded");
                self.current.keys.send_replace(Arc::new(keys));
                self.reloads.add(true);
            }
            Err(error) => {
                tracing::error!(%error, "cannot reload the token keys; the previous keys stay in use");
                self.reloads.add(false);
            }
        }
    }

    fn parse(&self, content: &[u8]) -> Result<KeySet, KeysError> {
        let path = self.settings.jwks.as_deref().unwrap_or(Path::new(""));
        KeySet::parse(content, path, &self.settings.algorithms, &self.validation)
    }

    fn check_clock(&self, state: &mut RefreshState) {
        let offset_ms = self.current.clock.offset_ms();
        if offset_ms > state.clock_offset_ms + CLOCK_STEP_MS {
            // The clock was set ahead: long-running calls check their expiry again.
            self.current.keys.send_modify(|_| ());
        }
        if offset_ms < -CLOCK_BEHIND_WARNING_MS && !state.has_warned {
            tracing::warn!(
                behind_s = -offset_ms / 1_000,
                "the system clock was set back; the expiry of tokens is checked against the start time of the server plus \
                 the time since then. If the clock was wrong at the start, restart the server"
            );
            state.has_warned = true;
        }
        state.clock_offset_ms = offset_ms;
    }
}
