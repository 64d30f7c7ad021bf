//! Servers with other settings, certificates, and waits for what happens elsewhere.

use crate::common::MemoryStore;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, ClientOptions, fresh_context};
use slotcast::config::LiveRollout;
use slotcast::grpc::v1;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::sync::Rollout;
use slotcast::transport::{TlsSettings, TransportSettings};
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

/// Longer than anything here takes; only a failure waits for it.
pub const WAIT: Duration = Duration::from_secs(15);

pub fn settings(transport: TransportSettings) -> ServerSettings {
    let rollout = LiveRollout::new(Rollout::for_all(crate::common::immediate()));
    ServerSettings { rollout, transport, ..ServerSettings::default() }
}

pub async fn start(transport: TransportSettings) -> RunningServer {
    start_at("127.0.0.1:0", Arc::default(), settings(transport)).await
}

pub async fn start_at(address: &str, store: Arc<MemoryStore>, settings: ServerSettings) -> RunningServer {
    let listener = TcpListener::bind(address).await.unwrap();
    RunningServer::start(listener, store, Arc::new(default_catalog()), settings).unwrap()
}

pub fn client(server: &RunningServer) -> Client {
    Client::new(&server.uri(), "test").unwrap()
}

pub async fn create(client: &Client, id: &str) {
    client.mutate(fresh_context(), crate::common::create_named(id)).await.unwrap();
}

pub async fn get(client: &Client, id: &str) -> Result<v1::Inventory, tonic::Status> {
    let request = v1::GetInventoryRequest { inventory_id: id.into() };
    let reply = tokio::time::timeout(WAIT, client.rpc().get_inventory(request)).await.expect("an answer in time")?;
    Ok(reply.into_inner().inventory.unwrap())
}

/// Of one item or another.
pub fn held(inventory: &v1::Inventory) -> u32 {
    inventory.stacks.iter().filter_map(|entry| entry.stack.as_ref()).map(|stack| stack.count).sum()
}

/// Waits until something is so that is seen from here only by looking.
pub async fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let so = async {
        while !look() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, so).await.unwrap_or_else(|_| panic!("{what}: never"));
}

/// Reads until the other side closes; how long that took.
pub async fn closed_after(socket: &mut TcpStream) -> Duration {
    let begin = std::time::Instant::now();
    let mut bytes = [0; 4_096];
    let read = async {
        use tokio::io::AsyncReadExt;
        // A reset is an end as well.
        while socket.read(&mut bytes).await.is_ok_and(|bytes| bytes > 0) {}
    };
    tokio::time::timeout(WAIT, read).await.expect("it is closed");
    begin.elapsed()
}

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = named(name);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The certificate and its key, as PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        self.issue_until(name, 2_099)
    }

    /// The certificate ends with the year before.
    pub fn issue_until(&self, name: &str, year: i32) -> (String, String) {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), name.to_owned()]).unwrap();
        self.sign(params, name, year)
    }

    /// With a URI for a name.
    pub fn issue_uri(&self, uri: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        self.sign(params, "uri", 2_099)
    }

    fn sign(&self, mut params: CertificateParams, name: &str, year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        params.distinguished_name = named(name);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// The files of a server with TLS.
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

/// A handshake as a client makes it that offers just this.
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
