//! TLS connections to the server. The files are read for each connection, because certificates are replaced while
//! clients run.

use super::{ClientError, ClientOptions};
use crate::certificate_error::client_handshake_error;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::Uri;

const HTTP2: &[u8] = b"h2";
const PORT: u16 = 443;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The address to connect to and the certificate files to use.
#[derive(Debug)]
pub(super) struct Tls {
    host: String,
    port: u16,
    /// Default: the system's root certificates.
    ca: Option<PathBuf>,
    client_certificate: Option<ClientCertificate>,
}

#[derive(Debug)]
struct ClientCertificate {
    certificate: PathBuf,
    key: PathBuf,
}

impl Tls {
    /// Creates the connector. Reads the files once, so that errors in them are reported immediately.
    pub fn open(uri: &Uri, options: &ClientOptions) -> Result<Self, ClientError> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let client_certificate = match (&options.certificate, &options.key) {
            (Some(certificate), Some(key)) => {
                Some(ClientCertificate { certificate: certificate.clone(), key: key.clone() })
            }
            (None, None) => None,
            _ => return Err(ClientError::IncompleteCertificate),
        };
        let tls = Self { host, port: uri.port_u16().unwrap_or(PORT), ca: options.ca.clone(), client_certificate };
        tls.config()?;
        Ok(tls)
    }

    pub async fn connect(self: Arc<Self>) -> Result<TokioIo<TlsStream<TcpStream>>, BoxError> {
        let files = self.clone();
        let config = tokio::task::spawn_blocking(move || files.config()).await??;
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
        let stream =
            stream.map_err(|error| format!("TLS handshake failed: {}", client_handshake_error(&error, &self.host)))?;
        if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Err("the server does not support HTTP/2 (ALPN h2)".into());
        }
        Ok(TokioIo::new(stream))
    }

    fn config(&self) -> Result<ClientConfig, ClientError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(|error| unusable(&"TLS", &error))?;
        let builder = builder.with_root_certificates(self.roots()?);
        let mut config = match &self.client_certificate {
            None => builder.with_no_client_auth(),
            Some(ClientCertificate { certificate, key }) => {
                let chain = certificates(certificate)?;
                let pem = read(key)?;
                let key_der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(&key.display(), &error))?;
                builder
                    .with_client_auth_cert(chain, key_der)
                    .map_err(|error| unusable(&certificate.display(), &error))?
            }
        };
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore, ClientError> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.ca else {
            // Some system certificates cannot be parsed; the others suffice.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return if roots.is_empty() { Err(ClientError::NoRoots) } else { Ok(roots) };
        };
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| unusable(&path.display(), &error))?;
        }
        Ok(roots)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let pem = read(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(read) if read.is_empty() => Err(unusable(&path.display(), &"the file contains no PEM certificate")),
        Ok(read) => Ok(read),
        Err(error) => Err(unusable(&path.display(), &error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|error| unusable(&path.display(), &error))
}

fn unusable(what: &dyn std::fmt::Display, problem: &dyn std::fmt::Display) -> ClientError {
    ClientError::Tls { what: what.to_string(), problem: problem.to_string() }
}
