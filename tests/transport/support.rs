//! Starts servers with other transport settings, issues certificates, and waits for conditions.

use crate::common::MemoryStore;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, ClientOptions, new_mutation_context};
use slotcast::live_rollout::LiveRollout;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::sync::Rollout;
use slotcast::transport::{TlsSettings, TransportSettings};
use slotcast::wire::v1;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// Timeout that only a failure reaches.
pub const WAIT: Duration = Duration::from_secs(15);

pub fn settings(transport: TransportSettings) -> ServerSettings {
    let rollout = LiveRollout::new(Rollout::for_all(crate::common::immediate()));
    ServerSettings { rollout, transport, ..ServerSettings::default() }
}

pub async fn start(transport: TransportSettings) -> RunningServer {
    start_at("127.0.0.1:0", Arc::default(), settings(transport)).await
}

/// Starts a server whose connections are served by this number of threads.
pub async fn start_with_threads(threads: usize, transport: TransportSettings) -> RunningServer {
    let settings = ServerSettings { threads, ..settings(transport) };
    start_at("127.0.0.1:0", Arc::default(), settings).await
}

pub async fn start_at(address: &str, store: Arc<MemoryStore>, settings: ServerSettings) -> RunningServer {
    let listener = TcpListener::bind(address).await.unwrap();
    RunningServer::start(listener, store, Arc::new(default_catalog()), settings).unwrap()
}

pub fn client(server: &RunningServer) -> Client {
    Client::new(&server.uri(), "test").unwrap()
}

pub async fn create(client: &Client, id: &str) {
    client.mutate(new_mutation_context(), crate::common::create_named(id)).await.unwrap();
}

pub async fn get(client: &Client, id: &str) -> Result<v1::Inventory, tonic::Status> {
    let request = v1::GetInventoryRequest { inventory_id: id.into() };
    let reply = tokio::time::timeout(WAIT, client.rpc().get_inventory(request)).await.expect("a reply in time")?;
    Ok(reply.into_inner().inventory.unwrap())
}

/// Returns the number of items of all kinds in an inventory.
pub fn held(inventory: &v1::Inventory) -> u32 {
    inventory.stacks.iter().filter_map(|entry| entry.stack.as_ref()).map(|stack| stack.count).sum()
}

/// Polls a condition until it is true.
pub async fn eventually(description: &str, mut condition: impl FnMut() -> bool) {
    let fulfilled = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, fulfilled).await.unwrap_or_else(|_| panic!("timeout: {description}"));
}

/// Reads until the server closes the connection, and returns how long that took.
pub async fn closed_after(socket: &mut TcpStream) -> Duration {
    let start = std::time::Instant::now();
    let mut bytes = [0; 4_096];
    let read = async {
        use tokio::io::AsyncReadExt;
        // A reset also closes the connection.
        while socket.read(&mut bytes).await.is_ok_and(|bytes| bytes > 0) {}
    };
    tokio::time::timeout(WAIT, read).await.expect("the connection is closed");
    start.elapsed()
}

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = common_name(name);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues a certificate for 127.0.0.1 and the name. Returns the certificate and its key as PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        self.issue_until(name, 2_099)
    }

    /// Issues a certificate that expires at the start of the year.
    pub fn issue_until(&self, name: &str, year: i32) -> (String, String) {
        let mut params = params_for(&["127.0.0.1", name]);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.sign(params)
    }

    /// Issues a certificate that becomes valid at the start of the year.
    pub fn issue_from(&self, name: &str, year: i32) -> (String, String) {
        let mut params = params_for(&["127.0.0.1", name]);
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        self.sign(params)
    }

    /// Issues a certificate for the name only.
    pub fn issue_for(&self, name: &str) -> (String, String) {
        self.sign(params_for(&[name]))
    }

    /// Issues a certificate that only a client may use.
    pub fn issue_for_clients(&self) -> (String, String) {
        let mut params = params_for(&["127.0.0.1"]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// Issues a certificate with a URI as its subject alternative name.
    pub fn issue_uri(&self, uri: &str) -> (String, String) {
        let mut params = params_for(&[]);
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Creates a self-signed certificate for 127.0.0.1, as `openssl req -x509` does. By default, that command creates a CA.
/// Returns the certificate and its key as PEM.
pub fn self_signed(is_ca: bool) -> (String, String) {
    let mut params = params_for(&["127.0.0.1"]);
    params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Returns the parameters of a certificate that is valid until the end of 2098.
fn params_for(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = common_name(names.last().unwrap_or(&"uri"));
    params.not_after = rcgen::date_time_ymd(2_099, 1, 1);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// The certificate files of a server with TLS.
pub struct Files {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
}

impl Files {
    pub fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new("roots") };
        files.write("ca.pem", &files.authority.pem());
        files.put("server", &files.authority.issue("server"));
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn put(&self, name: &str, (certificate, key): &(String, String)) {
        self.write(&format!("{name}.key"), key);
        self.write(&format!("{name}.pem"), certificate);
    }

    pub fn tls(&self) -> TlsSettings {
        TlsSettings {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: None,
            client_certificate_required: false,
        }
    }

    pub fn transport(&self) -> TransportSettings {
        TransportSettings { tls: Some(self.tls()), ..TransportSettings::default() }
    }

    pub fn options(&self, server: &RunningServer) -> ClientOptions {
        let (uri, caller, ca) = (server.uri(), "test".into(), Some(self.path("ca.pem")));
        ClientOptions { uri, caller, ca, ..ClientOptions::default() }
    }

    pub fn client(&self, server: &RunningServer) -> Client {
        Client::open(&self.options(server)).unwrap()
    }
}

/// Performs a TLS handshake that offers these protocols (ALPN) and TLS versions.
pub async fn handshake(
    server: &RunningServer,
    ca: &Path,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(versions).unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let socket = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}
