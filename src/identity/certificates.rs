//! Identifies a caller by its client certificate. The transport has already verified the certificate.

use super::credential::Credential;
use super::credential_cache::CredentialCache;
use super::error::AuthError;
use super::settings::{CertificateIdentity, IdentityError};
use crate::domain::{Caller, PlayerId};
use std::collections::HashMap;
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The accepted identities, by subject alternative name.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    by_san: HashMap<String, CertificateIdentity>,
    /// A connection presents the same certificate with each of its calls.
    cache: CredentialCache,
}

impl Certificates {
    pub fn new(identities: &[CertificateIdentity]) -> Result<Self, IdentityError> {
        let mut by_san = HashMap::new();
        for identity in identities {
            let CertificateIdentity { san, name, .. } = identity;
            if san.is_empty() {
                return Err(IdentityError::SanMissing);
            }
            let checked = Caller::new(name).map(drop).and(PlayerId::new(name).map(drop));
            checked.map_err(|problem| IdentityError::CertificateName {
                san: san.clone(),
                name: name.clone(),
                problem,
            })?;
            if by_san.insert(san.clone(), identity.clone()).is_some() {
                return Err(IdentityError::DuplicateSan { san: san.clone() });
            }
        }
        Ok(Self { by_san, cache: CredentialCache::default() })
    }

    pub fn verify(&self, der: &[u8], now_ms: u64) -> Result<Arc<Credential>, AuthError> {
        if let Some(credential) = self.cache.get(der) {
            return Ok(credential);
        }
        let credential = Arc::new(self.parse(der, now_ms).ok_or(AuthError::CredentialsMissing)?);
        self.cache.insert(der, credential.clone());
        Ok(credential)
    }

    /// Identifies the caller by the first subject alternative name, in the certificate's order, that is accepted.
    fn parse(&self, der: &[u8], now_ms: u64) -> Option<Credential> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten()?;
        let CertificateIdentity { role, name, .. } =
            names.value.general_names.iter().find_map(|name| self.by_san.get(uri_or_dns_name(name)?))?;
        let expires_ms = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default() * 1_000;
        Credential::new(name, *role, expires_ms, now_ms, None)
    }
}

fn uri_or_dns_name<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) => Some(name),
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    }
}
