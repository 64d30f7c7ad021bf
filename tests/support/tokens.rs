//! A login service for tests: generates keys, signs tokens, and writes the JWKS file that a server reads.

#![allow(dead_code, reason = "each test file uses its own part")]

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rsa::pkcs1::{EncodeRsaPrivateKey, EncodeRsaPublicKey};
use serde_json::{Value, json};
use slotcast::identity::{IdentitySettings, Verifier, WallClock};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

pub const ISSUER: &str = "https://login.example";
pub const AUDIENCE: &str = "slotcast";

/// A key pair of the login service.
#[derive(Clone)]
pub struct SigningKey {
    pub id: String,
    pub algorithm: Algorithm,
    pub private: EncodingKey,
    pub public: DecodingKey,
}

impl SigningKey {
    pub fn ed25519(id: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let private = EncodingKey::from_ed_der(pair.serialized_der());
        Self {
            id: id.into(),
            algorithm: Algorithm::EdDSA,
            private,
            public: DecodingKey::from_ed_der(pair.public_key_raw()),
        }
    }

    pub fn es256(id: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let private = EncodingKey::from_ec_der(pair.serialized_der());
        Self {
            id: id.into(),
            algorithm: Algorithm::ES256,
            private,
            public: DecodingKey::from_ec_der(pair.public_key_raw()),
        }
    }

    /// Returns the same key pair within one test process, because generating one takes a second.
    pub fn rs256(id: &str) -> Self {
        static PAIR: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
        let (private, public) = PAIR.get_or_init(|| {
            let private = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2_048).unwrap();
            let public = private.to_public_key().to_pkcs1_der().unwrap();
            (private.to_pkcs1_der().unwrap().as_bytes().to_vec(), public.as_bytes().to_vec())
        });
        let (private, public) = (EncodingKey::from_rsa_der(private), DecodingKey::from_rsa_der(public));
        Self { id: id.into(), algorithm: Algorithm::RS256, private, public }
    }

    pub fn jwk(&self) -> Jwk {
        let mut jwk = Jwk::from_decoding_key(&self.public, Some(self.algorithm)).unwrap();
        jwk.common.key_id = Some(self.id.clone());
        jwk
    }

    pub fn header(&self) -> Header {
        Header { kid: Some(self.id.clone()), ..Header::new(self.algorithm) }
    }

    pub fn header_json(&self) -> String {
        serde_json::to_string(&self.header()).unwrap()
    }

    pub fn sign(&self, claims: &Value) -> String {
        encode(&self.header(), claims, &self.private).unwrap()
    }
}

pub fn jwks(keys: &[&SigningKey]) -> String {
    let set = JwkSet { keys: keys.iter().map(|key| key.jwk()).collect() };
    serde_json::to_string_pretty(&set).unwrap()
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Returns all required claims, valid for an hour.
pub fn claims(sub: &str, role: &str) -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": sub, "role": role, "exp": now_s() + 3_600 })
}

/// Returns [`claims`] with changes; a null value removes the claim.
pub fn claims_but(sub: &str, role: &str, changed: Value) -> Value {
    let mut claims = claims(sub, role);
    for (name, value) in changed.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A wall clock that tests set, in milliseconds. It starts at the current time and does not advance.
#[derive(Clone)]
pub struct SetClock(Arc<AtomicU64>);

impl SetClock {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(now_s() * 1_000)))
    }

    pub fn wall(&self) -> WallClock {
        let time = self.0.clone();
        Arc::new(move || time.load(Ordering::Relaxed))
    }

    pub fn move_by(&self, ms: i64) {
        self.0.fetch_add(ms as u64, Ordering::Relaxed);
    }
}

/// A folder with a JWKS file, and the identity settings for it.
pub struct Login {
    folder: tempfile::TempDir,
}

impl Login {
    pub fn new(keys: &[&SigningKey]) -> Self {
        let login = Self { folder: tempfile::tempdir().unwrap() };
        login.publish(keys);
        login
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("jwks.json")
    }

    pub fn publish(&self, keys: &[&SigningKey]) {
        self.write(&jwks(keys));
    }

    pub fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    pub fn settings(&self) -> IdentitySettings {
        IdentitySettings {
            jwks: Some(self.path()),
            issuer: ISSUER.into(),
            audience: AUDIENCE.into(),
            ..Default::default()
        }
    }

    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::new(Verifier::open(self.settings()).unwrap())
    }

    /// Returns a verifier with a wall clock that the test sets, and without leeway.
    pub fn verifier_at(&self, clock: &SetClock) -> Arc<Verifier> {
        let settings = IdentitySettings { leeway: Duration::ZERO, ..self.settings() };
        Arc::new(Verifier::open_with_clock(settings, clock.wall()).unwrap())
    }
}

pub fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(DIGITS[(group >> (18 - 6 * digit) & 63) as usize] as char);
        }
    }
    text
}
