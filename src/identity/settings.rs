//! The settings of authentication, and their validation.

use super::Role;
use super::keys::KeysError;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Exclusive upper bound of the leeway. With more, a stream could outlive its token by more than five seconds.
const LEEWAY_BELOW: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySettings {
    /// The JWKS file with the public keys of tokens; `None` if tokens are not accepted.
    pub jwks: Option<PathBuf>,
    /// The required issuer (`iss`).
    pub issuer: String,
    /// The required audience, which must be in `aud`.
    pub audience: String,
    pub algorithms: Vec<Algorithm>,
    /// How far the clocks of the login service and of this service may differ; less than 5 s.
    pub leeway: Duration,
    /// The accepted client certificates.
    pub certificates: Vec<CertificateIdentity>,
}

impl Default for IdentitySettings {
    fn default() -> Self {
        Self {
            jwks: None,
            issuer: String::new(),
            audience: "slotcast".into(),
            algorithms: vec![Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256],
            leeway: Duration::from_secs(2),
            certificates: Vec::new(),
        }
    }
}

/// The identity of a caller with a certificate for this name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateIdentity {
    /// A URI or DNS name, compared exactly with the certificate's subject alternative names.
    pub san: String,
    pub role: Role,
    /// The caller's name, as in a token's `sub`.
    pub name: String,
}

/// A signature algorithm of tokens. All algorithms use a public key: a service that verifies tokens cannot issue them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Algorithm {
    /// EdDSA with Ed25519.
    EdDSA,
    ES256,
    ES384,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
}

impl Algorithm {
    pub const NAMES: [&str; 9] = ["EdDSA", "ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
    const ALL: [Self; 9] = [
        Self::EdDSA,
        Self::ES256,
        Self::ES384,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
    ];

    pub fn named(name: &str) -> Option<Self> {
        let at = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self::ALL[at])
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("nobody could get in: name a JWKS file with the keys of your tokens, or the client certificates to accept")]
    NoWayIn,
    #[error("no issuer is set: say what `iss` is in your tokens")]
    NoIssuer,
    #[error("no audience is set: say what `aud` is in your tokens")]
    NoAudience,
    #[error("no algorithm is set: name those that your tokens are signed with, such as EdDSA")]
    NoAlgorithm,
    #[error("a leeway of {0:?} is too much: streams have to end within 5 s of their tokens; set less than 5 s")]
    Leeway(Duration),
    #[error("the certificate identity for {san:?} has the name {name:?}, which {problem}")]
    CertificateName { san: String, name: String, problem: crate::domain::NameError },
    #[error("a certificate identity without a name to look for: set `san` to a URI or DNS name")]
    NoSan,
    #[error("two certificate identities are for {san:?}: leave one of them out")]
    SanTwice { san: String },
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl IdentitySettings {
    pub(super) fn check(&self) -> Result<(), IdentityError> {
        if self.leeway >= LEEWAY_BELOW {
            return Err(IdentityError::Leeway(self.leeway));
        }
        if self.jwks.is_none() {
            return if self.certificates.is_empty() { Err(IdentityError::NoWayIn) } else { Ok(()) };
        }
        if self.issuer.is_empty() {
            return Err(IdentityError::NoIssuer);
        }
        if self.audience.is_empty() {
            return Err(IdentityError::NoAudience);
        }
        if self.algorithms.is_empty() {
            return Err(IdentityError::NoAlgorithm);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_is_found_by_its_name() {
        for name in Algorithm::NAMES {
            assert_eq!(Algorithm::named(name).map(|algorithm| algorithm.to_string()), Some(name.to_owned()));
        }
        assert_eq!(Algorithm::named("HS256"), None);
    }

    #[test]
    fn settings_by_which_nobody_or_too_many_would_get_in_are_refused() {
        let good = || IdentitySettings {
            jwks: Some("keys.json".into()),
            issuer: "https://login.example".into(),
            ..IdentitySettings::default()
        };
        assert!(good().check().is_ok());
        let told = |settings: IdentitySettings| settings.check().expect_err("refused").to_string();
        assert!(told(IdentitySettings::default()).contains("name a JWKS file"));
        assert!(told(IdentitySettings { issuer: String::new(), ..good() }).contains("iss"));
        assert!(told(IdentitySettings { audience: String::new(), ..good() }).contains("aud"));
        assert!(told(IdentitySettings { algorithms: Vec::new(), ..good() }).contains("EdDSA"));
        assert!(told(IdentitySettings { leeway: Duration::from_secs(5), ..good() }).contains("less than 5 s"));
    }
}
