//! The public keys of a JWKS file (RFC 7517), each with the algorithms for its key type.

use super::Algorithm;
use super::credential_cache::CredentialCache;
use crate::file_watch::Unreadable;
use jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm as Jws, DecodingKey, DecodingKeyKind, Validation};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Maximum size of a JWKS file, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;
/// Maximum number of keys in a JWKS file.
const KEYS_MAX: usize = 256;
/// Accepted sizes of an RSA key, in bits. Shorter keys can be broken; longer ones are not implemented.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;
const ED25519_BYTES: usize = 32;

/// Why a JWKS file is invalid. No message quotes the contents of the file, which may be secret.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("token keys: {0}")]
    Unreadable(#[from] Unreadable),
    #[error(
        "{path}: not a valid JWKS at line {line}, column {column} (expected {{\"keys\": [{{\"kty\": \"OKP\", ...}}]}})"
    )]
    NotAJwks { path: PathBuf, line: usize, column: usize },
    #[error("{path}: has {keys} keys, at most {KEYS_MAX} are allowed")]
    TooManyKeys { path: PathBuf, keys: usize },
    #[error(
        "{path}: key {kid:?} is a shared secret, with which anybody who verifies tokens could also issue them (sign \
         with EdDSA, ES256 or RS256, and add the public key)"
    )]
    SharedSecret { path: PathBuf, kid: String },
    #[error(
        "{path}: key {kid:?} contains its private key; treat the key as compromised, create a new one, and add only its \
         public key"
    )]
    PrivateKey { path: PathBuf, kid: String },
    #[error("{path}: key {kid:?} is invalid: {problem} (export the public key again)")]
    InvalidKey { path: PathBuf, kid: String, problem: &'static str },
    #[error("{path}: duplicate key id {kid:?} (give each key its own `kid`)")]
    DuplicateKeyId { path: PathBuf, kid: String },
    #[error(
        "{path}: no usable key (add at least one key with a `kid`, for one of the algorithms {algorithms}, whose `use` \
         is absent or `sig`)"
    )]
    NoUsableKey { path: PathBuf, algorithms: String },
}

/// The accepted keys, and the credentials that were verified with them. Replacing the set also discards these
/// credentials.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: HashMap<String, Arc<Key>>,
    pub cache: CredentialCache,
}

#[derive(Debug)]
pub(super) struct Key {
    id: String,
    jwk: Jwk,
    /// The algorithms that the key may be used with; not empty.
    algorithms: Vec<Jws>,
    pub decoding: DecodingKey,
    pub validation: Validation,
}

impl KeySet {
    /// Parses a JWKS file. `validation` contains the requirements for all tokens, independent of the key.
    pub fn parse(
        content: &[u8],
        path: &Path,
        algorithms: &[Algorithm],
        validation: &Validation,
    ) -> Result<Self, KeysError> {
        #[derive(Deserialize)]
        struct Jwks {
            keys: Vec<Value>,
        }
        // The error's own text could quote the contents of the file.
        let not_a_jwks = |error: serde_json::Error| KeysError::NotAJwks {
            path: path.into(),
            line: error.line(),
            column: error.column(),
        };
        let jwks: Jwks = serde_json::from_slice(content).map_err(not_a_jwks)?;
        if jwks.keys.len() > KEYS_MAX {
            return Err(KeysError::TooManyKeys { path: path.into(), keys: jwks.keys.len() });
        }
        let mut keys = HashMap::new();
        for value in jwks.keys {
            let Some(key) = Key::parse(value, path, algorithms, validation)? else { continue };
            let kid = key.id.clone();
            if keys.insert(kid.clone(), Arc::new(key)).is_some() {
                return Err(KeysError::DuplicateKeyId { path: path.into(), kid });
            }
        }
        if keys.is_empty() {
            let names: Vec<String> = algorithms.iter().map(ToString::to_string).collect();
            return Err(KeysError::NoUsableKey { path: path.into(), algorithms: names.join(", ") });
        }
        Ok(Self { keys, cache: CredentialCache::default() })
    }

    pub fn get(&self, kid: &str) -> Option<&Arc<Key>> {
        self.keys.get(kid)
    }

    /// Returns whether the set still contains this key, unchanged.
    pub fn accepts(&self, key: &Key) -> bool {
        self.keys.get(&key.id).is_some_and(|current| current.jwk == key.jwk)
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }
}

impl Key {
    /// Parses a key; `None` if the key cannot be used for tokens.
    fn parse(
        value: Value,
        path: &Path,
        algorithms: &[Algorithm],
        validation: &Validation,
    ) -> Result<Option<Self>, KeysError> {
        let kid = value.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned();
        if value.get("kty").and_then(Value::as_str) == Some("oct") || value.get("k").is_some() {
            return Err(KeysError::SharedSecret { path: path.into(), kid });
        }
        if value.get("d").is_some() {
            return Err(KeysError::PrivateKey { path: path.into(), kid });
        }
        let invalid = |problem| KeysError::InvalidKey { path: path.into(), kid: kid.clone(), problem };
        let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { return Err(invalid("not a JWK")) };
        let usable = usable_algorithms(&jwk, algorithms);
        let is_for_signatures =
            jwk.common.public_key_use.as_ref().is_none_or(|r#use| *r#use == PublicKeyUse::Signature);
        if kid.is_empty() || usable.is_empty() || !is_for_signatures {
            return Ok(None);
        }
        let decoding = DecodingKey::from_jwk(&jwk).map_err(|_| invalid("not base64url without padding"))?;
        check_parameters(&decoding, &jwk, &usable).map_err(invalid)?;
        let validation = Validation { algorithms: usable.clone(), ..validation.clone() };
        Ok(Some(Self { id: kid, jwk, algorithms: usable, decoding, validation }))
    }

    pub fn allows(&self, algorithm: Jws) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// Returns the algorithms that fit the key and that the settings allow. They always match the key type: an RSA key
/// never verifies an HMAC.
fn usable_algorithms(jwk: &Jwk, allowed: &[Algorithm]) -> Vec<Jws> {
    let candidates: &[_] = if let AlgorithmParameters::RSA(_) = &jwk.algorithm {
        &[
            (Algorithm::RS256, Jws::RS256, KeyAlgorithm::RS256),
            (Algorithm::RS384, Jws::RS384, KeyAlgorithm::RS384),
            (Algorithm::RS512, Jws::RS512, KeyAlgorithm::RS512),
            (Algorithm::PS256, Jws::PS256, KeyAlgorithm::PS256),
            (Algorithm::PS384, Jws::PS384, KeyAlgorithm::PS384),
            (Algorithm::PS512, Jws::PS512, KeyAlgorithm::PS512),
        ]
    } else {
        match curve(jwk) {
            Some(EllipticCurve::Ed25519) => &[(Algorithm::EdDSA, Jws::EdDSA, KeyAlgorithm::EdDSA)],
            Some(EllipticCurve::P256) => &[(Algorithm::ES256, Jws::ES256, KeyAlgorithm::ES256)],
            Some(EllipticCurve::P384) => &[(Algorithm::ES384, Jws::ES384, KeyAlgorithm::ES384)],
            // Another curve, or an unsupported key type.
            Some(_) | None => &[],
        }
    };
    // The `alg` of the key, if it has one.
    let required = jwk.common.key_algorithm;
    let is_usable = |(setting, _, algorithm): &&(Algorithm, Jws, KeyAlgorithm)| {
        allowed.contains(setting) && required.is_none_or(|required| required == *algorithm)
    };
    candidates.iter().filter(is_usable).map(|(_, jws, _)| *jws).collect()
}

/// The curve of a key, if it fits the key type.
fn curve(jwk: &Jwk) -> Option<&EllipticCurve> {
    if let AlgorithmParameters::OctetKeyPair(pair) = &jwk.algorithm {
        Some(&pair.curve).filter(|curve| **curve == EllipticCurve::Ed25519)
    } else if let AlgorithmParameters::EllipticCurve(point) = &jwk.algorithm {
        Some(&point.curve).filter(|curve| **curve != EllipticCurve::Ed25519)
    } else {
        None
    }
}

/// Checks what the JWT library assumes about a key: the library would truncate an Ed25519 key that is too long, and
/// panic on one that is too short.
fn check_parameters(key: &DecodingKey, jwk: &Jwk, algorithms: &[Jws]) -> Result<(), &'static str> {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) => {
            let is_ed25519 = matches!(jwk.algorithm, AlgorithmParameters::OctetKeyPair(_));
            if is_ed25519 && bytes.len() != ED25519_BYTES {
                return Err("an Ed25519 key must have 32 bytes");
            }
        }
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            if !RSA_BITS.contains(&bits(n)) {
                return Err("an RSA key must have 2,048 to 4,096 bits");
            }
            if !(2..=33).contains(&bits(e)) || e.last().is_none_or(|last| last % 2 == 0) {
                return Err("the exponent of an RSA key must be an odd number from 3 to 2^33");
            }
        }
    }
    let is_valid = |algorithm: &Jws| (DEFAULT_PROVIDER.verifier_factory)(algorithm, key).is_ok();
    if algorithms.iter().all(is_valid) { Ok(()) } else { Err("not a point on its curve") }
}

fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let digits = &number[zeros..];
    digits.first().map_or(0, |first| digits.len() * 8 - first.leading_zeros() as usize)
}
