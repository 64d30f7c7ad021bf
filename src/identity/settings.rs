//! The settings of authentication, and their validation.

use super::Role;
use super::keys::KeysError;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Exclusive upper bound of the leeway. With more, a stream could outlive its token by more than five seconds.
const LEEWAY_MAX: Duration = Duration::from_secs(5);

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

    pub fn from_name(name: &str) -> Option<Self> {
        let index = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self::ALL[index])
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why the settings of authentication are invalid.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("no credentials are accepted: set identity.jwks, or add [[identity.certificates]]")]
    NoCredentialsAccepted,
    #[error("issuer: required (set it to the `iss` of your tokens)")]
    IssuerMissing,
    #[error("audience: required (set it to the `aud` of your tokens)")]
    AudienceMissing,
    #[error("algorithms: required (list the algorithms that sign your tokens, such as EdDSA)")]
    AlgorithmMissing,
    #[error("leeway: must be less than 5 s, got {0:?} (streams must end within 5 s after their token expires)")]
    Leeway(Duration),
    #[error("certificate identity {san:?}: the name {name:?} {problem}")]
    CertificateName { san: String, name: String, problem: crate::domain::NameError },
    #[error("certificate identity: san: required (set it to a URI or DNS name)")]
    SanMissing,
    #[error("certificate identity {san:?}: duplicate san (remove one of the identities)")]
    DuplicateSan { san: String },
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl IdentitySettings {
    pub(super) fn validate(&self) -> Result<(), IdentityError> {
        if self.leeway >= LEEWAY_MAX {
            return Err(IdentityError::Leeway(self.leeway));
        }
        if self.jwks.is_none() {
            return if self.certificates.is_empty() { Err(IdentityError::NoCredentialsAccepted) } else { Ok(()) };
        }
        if self.issuer.is_empty() {
            return Err(IdentityError::IssuerMissing);
        }
        if self.audience.is_empty() {
            return Err(IdentityError::AudienceMissing);
        }
        if self.algorithms.is_empty() {
            return Err(IdentityError::AlgorithmMissing);
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
            assert_eq!(Algorithm::from_name(name).map(|algorithm| algorithm.to_string()), Some(name.to_owned()));
        }
        assert_eq!(Algorithm::from_name("HS256"), None);
    }

    #[test]
    fn settings_that_accept_no_credentials_or_any_token_are_invalid() {
        let valid = || IdentitySettings {
            jwks: Some("keys.json".into()),
            issuer: "https://login.example".into(),
            ..IdentitySettings::default()
        };
        assert!(valid().validate().is_ok());
        let error = |settings: IdentitySettings| settings.validate().expect_err("the settings are invalid").to_string();
        assert!(error(IdentitySettings::default()).contains("set identity.jwks"));
        assert!(error(IdentitySettings { issuer: String::new(), ..valid() }).contains("iss"));
        assert!(error(IdentitySettings { audience: String::new(), ..valid() }).contains("aud"));
        assert!(error(IdentitySettings { algorithms: Vec::new(), ..valid() }).contains("EdDSA"));
        assert!(error(IdentitySettings { leeway: Duration::from_secs(5), ..valid() }).contains("less than 5 s"));
    }
}
