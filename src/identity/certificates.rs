//! Identifies a caller by its client certificate. The transport has already verified the certificate.

use super::known::{Person, VerifiedTokens};
use super::settings::{CertificateIdentity, IdentityError};
use super::token::{Unverified, person};
use crate::domain::{Caller, PlayerId};
use std::collections::HashMap;
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The accepted identities, by subject alternative name.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    by_san: HashMap<String, CertificateIdentity>,
    /// The verified certificates: a connection presents the same one with each of its calls.
    known: VerifiedTokens,
}

impl Certificates {
    pub fn new(identities: &[CertificateIdentity]) -> Result<Self, IdentityError> {
        let mut by_san = HashMap::new();
        for identity in identities {
            let CertificateIdentity { san, name, .. } = identity;
            if san.is_empty() {
                return Err(IdentityError::NoSan);
            }
            let named = Caller::new(name).map(drop).and(PlayerId::new(name).map(drop));
            named.map_err(|problem| IdentityError::CertificateName {
                san: san.clone(),
                name: name.clone(),
                problem,
            })?;
            if by_san.insert(san.clone(), identity.clone()).is_some() {
                return Err(IdentityError::SanTwice { san: san.clone() });
            }
        }
        Ok(Self { by_san, known: VerifiedTokens::default() })
    }

    pub fn verify(&self, der: &[u8], now_ms: u64) -> Result<Arc<Person>, Unverified> {
        if let Some(person) = self.known.get(der) {
            return Ok(person);
        }
        let person = Arc::new(self.read(der, now_ms)?);
        self.known.insert(der, person.clone());
        Ok(person)
    }

    /// Identifies the caller by the first subject alternative name, in the certificate's order, that is accepted.
    fn read(&self, der: &[u8], now_ms: u64) -> Result<Person, Unverified> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Unverified::Missing)?;
        let names = certificate.subject_alternative_name().ok().flatten().ok_or(Unverified::Missing)?;
        let identity = names.value.general_names.iter().find_map(|name| self.by_san.get(san(name)?));
        let CertificateIdentity { role, name, .. } = identity.ok_or(Unverified::Missing)?;
        let until_ms = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default() * 1_000;
        person(name, *role, until_ms, now_ms, None).ok_or(Unverified::Missing)
    }
}

fn san<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
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
