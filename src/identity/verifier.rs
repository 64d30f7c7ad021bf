//! Authenticates callers by tokens and certificates. The keys may be reloaded at any time.

use super::certificates::Certificates;
use super::clock::{self, Clock, WallClock};
use super::expiry::{Expiry, Lapsed, Live};
use super::failures::Failures;
use super::keys::{FILE_BYTES_MAX, KeySet, KeysError};
use super::known::Person;
use super::token::{self, TOKEN_BYTES_MAX, Unverified, invalid};
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

/// How far the wall clock may advance against the elapsed time between two checks, in milliseconds. A clock that
/// exceeds it was set.
const STEP_MS: i64 = 1_000;
/// How far the wall clock may be behind before a warning is logged, in milliseconds.
const BEHIND_MS_TOLD: i64 = 60_000;

#[derive(Debug)]
pub struct Verifier {
    settings: IdentitySettings,
    validation: Validation,
    certificates: Certificates,
    failures: Failures,
    live: Arc<Live>,
    followed: Mutex<Followed>,
    reloads: Arc<Reloads>,
}

/// The state of the checks that run every second.
#[derive(Debug)]
struct Followed {
    file: Option<FileWatch>,
    /// How far ahead the wall clock was at the last check, in milliseconds.
    ahead_ms: i64,
    told_behind: bool,
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Verified {
    pub caller: Caller,
    /// The player's id, if the caller is a player.
    pub player: Option<PlayerId>,
    pub role: Role,
    pub expires: Expiry,
}

impl Verifier {
    pub fn open(settings: IdentitySettings) -> Result<Self, IdentityError> {
        Self::open_at(settings, clock::system())
    }

    /// Opens a verifier with another wall clock than the system's.
    pub fn open_at(settings: IdentitySettings, wall: WallClock) -> Result<Self, IdentityError> {
        settings.check()?;
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
        let live = Arc::new(Live { keys: watch::Sender::new(Arc::new(keys)), clock });
        let followed = Mutex::new(Followed { file, ahead_ms: 0, told_behind: false });
        let failures = Failures::new();
        Ok(Self { settings, validation, certificates, failures, live, followed, reloads: Arc::default() })
    }

    /// Authenticates a caller by a token.
    pub fn token(&self, token: &str) -> Result<Verified, Unverified> {
        self.read(token, None)
    }

    /// Authenticates a caller by a token from this address. After too many wrong tokens from the address, tokens that
    /// are not verified yet are refused unchecked.
    pub fn token_from(&self, token: &str, from: IpAddr) -> Result<Verified, Unverified> {
        self.read(token, Some(from))
    }

    fn read(&self, token: &str, from: Option<IpAddr>) -> Result<Verified, Unverified> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid("it is too long"));
        }
        let keys = self.live.keys.borrow().clone();
        let person = match keys.known.get(token.as_bytes()) {
            Some(person) => person,
            None => {
                let key = token::signer(&keys, token)?;
                if let Some(retry_after) = from.and_then(|from| self.failures.wait(from)) {
                    return Err(Unverified::TooManyWrong { retry_after });
                }
                let now_ms = self.live.clock.now_ms();
                let person = token::verify(&key, token, now_ms, self.settings.leeway);
                if let (Err(_), Some(from)) = (&person, from) {
                    self.failures.add(from);
                }
                let person = Arc::new(person?);
                keys.known.insert(token.as_bytes(), person.clone());
                person
            }
        };
        self.verified(person).inspect_err(|_| keys.known.remove(token.as_bytes()))
    }

    /// Authenticates a caller by a client certificate. The transport must have verified it against its authority.
    pub fn certificate(&self, der: &[u8]) -> Result<Verified, Unverified> {
        self.verified(self.certificates.verify(der, self.live.clock.now_ms())?)
    }

    fn verified(&self, person: Arc<Person>) -> Result<Verified, Unverified> {
        let (caller, player, role) = (person.caller.clone(), person.player.clone(), person.role);
        let expires = Expiry::new(person, self.live.clone());
        // The keys may have been replaced since they were read.
        expires.check().map_err(|lapsed| match lapsed {
            Lapsed::Expired => Unverified::Expired,
            Lapsed::Revoked => invalid("its key is not accepted any more"),
        })?;
        Ok(Verified { caller, player, role, expires })
    }

    pub fn reloads(&self) -> &Arc<Reloads> {
        &self.reloads
    }

    /// Follows the JWKS file and the wall clock. Never returns.
    pub async fn follow(&self) -> Infallible {
        let mut interval = FileWatch::interval();
        loop {
            interval.tick().await;
            self.look().await;
        }
    }

    /// Checks the JWKS file and the wall clock once.
    pub async fn look(&self) {
        let mut followed = self.followed.lock().await;
        self.look_at_clock(&mut followed);
        let Some(file) = &mut followed.file else { return };
        let Some(read) = file.check(false).await else { return };
        match read.map_err(KeysError::from).and_then(|contents| self.parse(&contents.concat())) {
            Ok(keys) => {
                let mut ids: Vec<&str> = keys.ids().collect();
                ids.sort_unstable();
                tracing::info!(ids = ids.join(", "), "the keys of tokens have changed");
                self.live.keys.send_replace(Arc::new(keys));
                self.reloads.add(true);
            }
            Err(error) => {
                tracing::error!(%error, "the keys of tokens were refused; those before still hold");
                self.reloads.add(false);
            }
        }
    }

    fn parse(&self, content: &[u8]) -> Result<KeySet, KeysError> {
        let path = self.settings.jwks.as_deref().unwrap_or(Path::new(""));
        KeySet::parse(content, path, &self.settings.algorithms, &self.validation)
    }

    fn look_at_clock(&self, followed: &mut Followed) {
        let ahead_ms = self.live.clock.ahead_ms();
        if ahead_ms > followed.ahead_ms + STEP_MS {
            // Long-running calls check their expiry again.
            self.live.keys.send_modify(|_| ());
        }
        if ahead_ms < -BEHIND_MS_TOLD && !followed.told_behind {
            let behind_s = -ahead_ms / 1_000;
            tracing::warn!(
                behind_s,
                "the system's clock was set back; tokens are judged by the time that has passed since the start. If the \
                 clock was wrong at the start, start again"
            );
            followed.told_behind = true;
        }
        followed.ahead_ms = ahead_ms;
    }
}
