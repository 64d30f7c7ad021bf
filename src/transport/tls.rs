//! Configures TLS 1.2 and 1.3 with keys and certificates from PEM files.

use super::TlsSettings;
use crate::certificate_error::utc_date;
use crate::file_watch::Unreadable;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{} contains no certificate: expected PEM with at least one block `BEGIN CERTIFICATE`", path.display())]
    CertificateMissing { path: PathBuf },
    #[error("{} contains an invalid certificate: {problem} (replace it with a PEM certificate)", path.display())]
    InvalidCertificate { path: PathBuf, problem: String },
    #[error("{} contains no private key: expected PEM with a block `BEGIN PRIVATE KEY`", path.display())]
    KeyMissing { path: PathBuf },
    #[error("cannot use the certificate {} with the key {}: {error} (check that the key belongs to the certificate)", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, error: rustls::Error },
    #[error("certificate {} expired on {} (renew it)", certificate.display(), utc_date(*not_after_unix_s))]
    Expired { certificate: PathBuf, not_after_unix_s: i64 },
    #[error("cannot verify client certificates with {}: {problem} (it must contain root certificates)", path.display())]
    ClientRoots { path: PathBuf, problem: String },
    #[error("tls.client_certificates: \"required\" requires tls.client_ca, which verifies them")]
    ClientRootsMissing,
    #[error("cannot set up TLS: {0}")]
    Setup(rustls::Error),
}

/// The unparsed contents of the PEM files.
#[derive(Debug)]
pub(super) struct PemFiles {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub client_ca: Option<Vec<u8>>,
}

/// A validated TLS configuration, ready for connections.
#[derive(Debug)]
pub(super) struct LoadedTls {
    pub config: Arc<ServerConfig>,
    /// Expiry time of the certificate, in seconds since Unix epoch.
    pub not_after_unix_s: i64,
}

impl PemFiles {
    /// Takes the contents in the order of the fields; `client_ca` may be missing.
    pub fn new(contents: Vec<Vec<u8>>) -> Self {
        let mut contents = contents.into_iter();
        let (certificate, key) = (contents.next().unwrap_or_default(), contents.next().unwrap_or_default());
        Self { certificate, key, client_ca: contents.next() }
    }
}

fn ring_provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Returns whether the handshake negotiated HTTP/2.
pub(super) fn negotiated_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

/// Returns the client's certificate as DER, if the client sent one; the handshake has verified it.
pub(super) fn client_certificate(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    stream.get_ref().1.peer_certificates()?.first().map(|leaf| leaf.to_vec())
}

impl LoadedTls {
    pub fn new(files: &PemFiles, settings: &TlsSettings) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate, &settings.certificate)?;
        let not_after_unix_s = not_after_unix_s(&chain, &settings.certificate)?;
        let key_missing = |_| TlsError::KeyMissing { path: settings.key.clone() };
        let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(key_missing)?;
        let builder = ServerConfig::builder_with_provider(ring_provider());
        let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(TlsError::Setup)?;
        let builder = match (&files.client_ca, &settings.client_ca) {
            (Some(pem), Some(path)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(pem, path)?.into(), ring_provider());
                let required = settings.client_certificate_required;
                let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
                let invalid = |error: rustls::server::VerifierBuilderError| TlsError::ClientRoots {
                    path: path.clone(),
                    problem: error.to_string(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(invalid)?)
            }
            _ if settings.client_certificate_required => return Err(TlsError::ClientRootsMissing),
            _ => builder.with_no_client_auth(),
        };
        let (certificate, key_file) = (settings.certificate.clone(), settings.key.clone());
        let unusable = |error| TlsError::Unusable { certificate, key: key_file, error };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        if settings.client_ca.is_some() {
            // The certificate of a resumed session would not be verified again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
        }
        Ok(Self { config: Arc::new(config), not_after_unix_s })
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let invalid = |error: rustls::pki_types::pem::Error| TlsError::InvalidCertificate {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let parsed = parsed.map_err(invalid)?;
    if parsed.is_empty() { Err(TlsError::CertificateMissing { path: path.to_owned() }) } else { Ok(parsed) }
}

fn roots(pem: &[u8], path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, path)? {
        let invalid =
            |error: rustls::Error| TlsError::ClientRoots { path: path.to_owned(), problem: error.to_string() };
        roots.add(certificate).map_err(invalid)?;
    }
    Ok(roots)
}

/// Returns the expiry time of the chain's first certificate, which is the server's own, in seconds since Unix epoch.
fn not_after_unix_s(chain: &[CertificateDer<'static>], path: &Path) -> Result<i64, TlsError> {
    let leaf = chain.first().ok_or_else(|| TlsError::CertificateMissing { path: path.to_owned() })?;
    match x509_parser::parse_x509_certificate(leaf) {
        Ok((_, certificate)) => Ok(certificate.validity().not_after.timestamp()),
        Err(error) => Err(TlsError::InvalidCertificate { path: path.to_owned(), problem: error.to_string() }),
    }
}
