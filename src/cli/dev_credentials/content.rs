//! Generates the content of all files.

use super::files::File;
use super::quoted;
use crate::domain::PlayerId;
use crate::identity::Role;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const SERVER: &str = "server.pem";
const SERVER_KEY: &str = "server-key.pem";
const SIGNING_KEY: &str = "signing-key.pem";
const JWKS: &str = "jwks.json";
pub const PLAYER_TOKEN: &str = "player.token";
pub const SERVICE_TOKEN: &str = "service.token";
pub const ADMIN_TOKEN: &str = "admin.token";
pub const SETTINGS: &str = "slotcast.toml";
pub const CLIENT_ENV: &str = "client.env";

/// The names of all files.
pub const NAMES: [&str; 11] =
    [CA, CA_KEY, SERVER, SERVER_KEY, SIGNING_KEY, JWKS, PLAYER_TOKEN, SERVICE_TOKEN, ADMIN_TOKEN, SETTINGS, CLIENT_ENV];

/// The name of the service, as in its token's `sub`.
pub const SERVICE_NAME: &str = "game-server";
/// The name of the admin, as in its token's `sub`.
pub const ADMIN_NAME: &str = "operator";

const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Certificates are valid from this long before now, for machines and containers whose clock is behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3_600);
const WARNING: &str = "Created by `slotcast dev-credentials` for local development. Do not use it in production.";

#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("cannot create a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot sign a token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    #[error("cannot write the JWKS: {0}")]
    Jwks(#[from] serde_json::Error),
}

/// What to create.
pub struct Content<'a> {
    /// Absolute path of the directory.
    pub directory: &'a str,
    pub player: &'a PlayerId,
    pub listen: SocketAddr,
    /// Further hosts of the server certificate.
    pub hosts: &'a [String],
    pub issuer: &'a str,
    pub audience: &'a str,
    pub now: SystemTime,
    pub validity: Duration,
}

impl Content<'_> {
    pub fn generate(&self) -> Result<Vec<File>, ContentError> {
        let public = |name, content| File { name, content, is_secret: false };
        let secret = |name, content| File { name, content, is_secret: true };
        let ca = CertifiedIssuer::self_signed(self.ca_params()?, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;
        let server_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let server = self.server_params()?.signed_by(&server_key, &ca)?;
        let signer = Signer::generate()?;
        let token = |name: &str, role| self.token(&signer, name, role);
        Ok(vec![
            public(CA, ca.pem()),
            secret(CA_KEY, ca.key().serialize_pem()),
            public(SERVER, server.pem()),
            secret(SERVER_KEY, server_key.serialize_pem()),
            secret(SIGNING_KEY, signer.pem.clone()),
            public(JWKS, signer.jwks()?),
            secret(PLAYER_TOKEN, token(self.player.as_str(), Role::Player)?),
            secret(SERVICE_TOKEN, token(SERVICE_NAME, Role::Service)?),
            secret(ADMIN_TOKEN, token(ADMIN_NAME, Role::Admin)?),
            public(SETTINGS, self.settings()),
            public(CLIENT_ENV, self.client_env()),
        ])
    }

    fn ca_params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = self.params(Vec::new(), "Slotcast development CA")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    }

    fn server_params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = self.params(hosts(self.hosts, self.listen), "Slotcast development server")?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn params(&self, hosts: Vec<String>, name: &str) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        let now = rcgen::date_time_ymd(1970, 1, 1) + self.unix_time();
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + self.validity;
        Ok(params)
    }

    fn unix_time(&self) -> Duration {
        self.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    fn token(&self, signer: &Signer, name: &str, role: Role) -> Result<String, ContentError> {
        let issued = self.unix_time();
        let claims = json!({
            "iss": self.issuer,
            "aud": self.audience,
            "sub": name,
            "role": role.to_string(),
            "iat": issued.as_secs(),
            "exp": (issued + self.validity).as_secs(),
        });
        let token = jsonwebtoken::encode(&signer.header, &claims, &signer.key)?;
        Ok(format!("{token}\n"))
    }

    fn settings(&self) -> String {
        let text = |value: &str| toml::Value::from(value).to_string();
        let path = |name: &str| text(&self.path(name));
        format!(
            "# {WARNING}\nlisten = {}\n\n[tls]\ncertificate = {}\nkey = {}\n\n[identity]\njwks = {}\nissuer = {}\n\
             audience = {}\n",
            text(&self.listen.to_string()),
            path(SERVER),
            path(SERVER_KEY),
            path(JWKS),
            text(self.issuer),
            text(self.audience),
        )
    }

    fn client_env(&self) -> String {
        format!(
            "# {WARNING}\nexport SLOTCAST_SERVER={}\nexport SLOTCAST_CA={}\nexport SLOTCAST_TOKEN_FILE={}\n",
            quoted(self.server()),
            quoted(self.path(CA)),
            quoted(self.path(SERVICE_TOKEN)),
        )
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// Returns the address of the server for clients on the same machine.
    fn server(&self) -> String {
        if self.listen.ip().is_unspecified() {
            return format!("https://localhost:{}", self.listen.port());
        }
        format!("https://{}", self.listen)
    }
}

/// Returns the hosts of the server certificate: loopback, the address that the server listens on, and `further`.
pub fn hosts(further: &[String], listen: SocketAddr) -> Vec<String> {
    let mut hosts: Vec<String> = HOSTS.map(str::to_owned).to_vec();
    let listen = Some(listen.ip()).filter(|address| !address.is_unspecified()).map(|address| address.to_string());
    for host in listen.iter().chain(further) {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    hosts
}

/// A key that signs tokens, with the header of these tokens.
struct Signer {
    pem: String,
    key: EncodingKey,
    header: Header,
    jwk: Jwk,
}

impl Signer {
    fn generate() -> Result<Self, ContentError> {
        let pair = KeyPair::generate_for(&PKCS_ED25519)?;
        let key = EncodingKey::from_ed_der(pair.serialized_der());
        let public = DecodingKey::from_ed_der(pair.public_key_raw());
        let mut jwk = Jwk::from_decoding_key(&public, Some(Algorithm::EdDSA))?;
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let id = jwk.thumbprint(ThumbprintHash::SHA256)?;
        jwk.common.key_id = Some(id.clone());
        let header = Header { kid: Some(id), ..Header::new(Algorithm::EdDSA) };
        Ok(Self { pem: pair.serialize_pem(), key, header, jwk })
    }

    fn jwks(&self) -> Result<String, serde_json::Error> {
        let set = JwkSet { keys: vec![self.jwk.clone()] };
        serde_json::to_string_pretty(&set).map(|text| text + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content<'a>(directory: &'a str, player: &'a PlayerId, listen: &str) -> Content<'a> {
        Content {
            directory,
            player,
            listen: listen.parse().unwrap(),
            hosts: &[],
            issuer: "login",
            audience: "game",
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            validity: Duration::from_secs(24 * 3_600),
        }
    }

    #[test]
    fn every_file_name_has_one_file() {
        let player = PlayerId::new("steve").unwrap();
        let files = content("/dev", &player, "127.0.0.1:7400").generate().unwrap();
        assert_eq!(files.iter().map(|file| file.name).collect::<Vec<_>>(), NAMES);
    }

    #[test]
    fn settings_and_variables_name_the_files_by_quoted_absolute_paths() {
        let player = PlayerId::new("steve").unwrap();
        let content = content("/home/s t\"eve/dev", &player, "0.0.0.0:7500");
        let settings: toml::Table = content.settings().parse().unwrap();
        assert_eq!(settings["listen"].as_str(), Some("0.0.0.0:7500"));
        assert_eq!(settings["tls"]["key"].as_str(), Some("/home/s t\"eve/dev/server-key.pem"));
        assert_eq!(settings["identity"]["issuer"].as_str(), Some("login"));
        let expected = format!(
            "# {WARNING}\nexport SLOTCAST_SERVER=https://localhost:7500\n\
             export SLOTCAST_CA='/home/s t\"eve/dev/ca.pem'\n\
             export SLOTCAST_TOKEN_FILE='/home/s t\"eve/dev/service.token'\n"
        );
        assert_eq!(content.client_env(), expected);
    }

    #[test]
    fn certificates_are_valid_from_an_hour_ago_for_the_given_time() {
        let player = PlayerId::new("steve").unwrap();
        let files = content("/dev", &player, "127.0.0.1:7400").generate().unwrap();
        for name in [CA, SERVER] {
            let file = files.iter().find(|file| file.name == name).unwrap();
            let (_, pem) = x509_parser::pem::parse_x509_pem(file.content.as_bytes()).unwrap();
            let validity = pem.parse_x509().unwrap().validity.clone();
            assert_eq!(validity.not_before.timestamp(), 1_800_000_000 - 3_600);
            assert_eq!(validity.not_after.timestamp(), 1_800_000_000 + 24 * 3_600);
        }
    }

    #[test]
    fn the_certificate_is_for_loopback_the_listen_address_and_further_hosts() {
        let further = ["slotcast.local".to_owned(), "localhost".to_owned()];
        let listen = |address: &str| hosts(&further, address.parse().unwrap());
        assert_eq!(listen("127.0.0.1:7400"), ["localhost", "127.0.0.1", "::1", "slotcast.local"]);
        assert_eq!(listen("10.0.0.5:7400"), ["localhost", "127.0.0.1", "::1", "10.0.0.5", "slotcast.local"]);
        assert_eq!(listen("0.0.0.0:7400"), ["localhost", "127.0.0.1", "::1", "slotcast.local"]);
    }
}
