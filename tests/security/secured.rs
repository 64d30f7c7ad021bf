//! A server with authentication, and calls by path with any metadata.

use crate::common::MemoryStore;
use crate::raw_codec::RawCodec;
use crate::tokens::{Login, SigningKey, claims};
use slotcast::catalog_file::default_catalog;
use slotcast::identity::{Authentication, Verifier};
use slotcast::middleware::AdmissionSettings;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::wire::v1;
use std::sync::Arc;
use tokio::net::TcpListener;
use tonic::client::Grpc;
use tonic::codec::Streaming;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// The metadata with which a caller authenticates.
pub type Shown = Vec<(&'static str, String)>;

pub struct Secured {
    pub running: RunningServer,
    pub login: Login,
    pub key: SigningKey,
    pub verifier: Arc<Verifier>,
    pub channel: Channel,
}

impl Secured {
    pub async fn start() -> Self {
        Self::start_with(Login::verifier).await
    }

    /// Starts a server with an Ed25519 key and without a request limit, which could fail calls first.
    pub async fn start_with(verifier: impl FnOnce(&Login) -> Arc<Verifier>) -> Self {
        let key = SigningKey::ed25519("ed");
        let login = Login::new(&[&key]);
        let verifier = verifier(&login);
        let settings = ServerSettings {
            authentication: Authentication::Verified(verifier.clone()),
            admission: AdmissionSettings { per_second: 0, ..AdmissionSettings::default() },
            ..ServerSettings::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let store = Arc::new(MemoryStore::default());
        let running = RunningServer::start(listener, store, Arc::new(default_catalog()), settings).unwrap();
        let channel = connect(&running).await;
        Self { running, login, key, verifier, channel }
    }

    /// Returns the credentials of a caller with this role.
    pub fn shown(&self, name: &str, role: &str) -> Shown {
        bearer(&self.key.sign(&claims(name, role)))
    }

    pub async fn call(&self, shown: &Shown, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        call(&self.channel, shown, path, message).await
    }

    /// Makes a call as the service `lobby`.
    pub async fn mutate(&self, call: (String, Vec<u8>)) {
        self.mutate_by(&self.key, call).await;
    }

    pub async fn mutate_by(&self, key: &SigningKey, (path, message): (String, Vec<u8>)) {
        self.call(&bearer(&key.sign(&claims("lobby", "service"))), &path, &message).await.unwrap();
    }

    pub async fn subscribe(&self, shown: &Shown, id: &str) -> Result<Opened, Status> {
        subscribe(&self.channel, shown, &[id]).await
    }
}

pub type Opened = Streaming<v1::SubscribeInventoryResponse>;

pub async fn connect(running: &RunningServer) -> Channel {
    Endpoint::from_shared(running.uri()).unwrap().connect().await.unwrap()
}

pub fn bearer(token: &str) -> Shown {
    vec![("authorization", format!("Bearer {token}"))]
}

/// Subscribes with notices.
pub async fn subscribe(channel: &Channel, shown: &Shown, ids: &[&str]) -> Result<Opened, Status> {
    let watch = |id: &&str| v1::Watch { inventory_id: (*id).into(), ..v1::Watch::default() };
    let inventories = ids.iter().map(watch).collect();
    let message = v1::SubscribeInventoryRequest { inventories, notices: true, ..Default::default() };
    let mut client = v1::inventory_service_client::InventoryServiceClient::new(channel.clone());
    client.subscribe_inventory(showing(shown, message)).await.map(tonic::Response::into_inner)
}

/// Returns the first message of the reply, whether or not it is a stream.
pub async fn call(channel: &Channel, shown: &Shown, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let request = showing(shown, message.to_vec());
    let mut reply = grpc.server_streaming(request, path.parse().unwrap(), RawCodec).await?.into_inner();
    reply.message().await.map(|message| message.expect("a message"))
}

fn showing<T>(shown: &Shown, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in shown {
        let value: MetadataValue<Ascii> = value.parse().unwrap();
        request.metadata_mut().append(*name, value);
    }
    request
}
