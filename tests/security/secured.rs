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

/// The credentials of a caller, as metadata.
pub type Credentials = Vec<(&'static str, String)>;

pub struct SecuredServer {
    pub running: RunningServer,
    pub login: Login,
    pub key: SigningKey,
    pub verifier: Arc<Verifier>,
    pub channel: Channel,
}

impl SecuredServer {
    pub async fn start() -> Self {
        Self::start_with(Login::verifier).await
    }

    /// Starts a server with an Ed25519 key and without a request limit, so that no other error comes first.
    pub async fn start_with(verifier: impl FnOnce(&Login) -> Arc<Verifier>) -> Self {
        let key = SigningKey::ed25519("ed");
        let login = Login::new(&[&key]);
        let verifier = verifier(&login);
        let settings = ServerSettings {
            authentication: Authentication::Enabled(verifier.clone()),
            admission: AdmissionSettings { per_second: 0, ..AdmissionSettings::default() },
            ..ServerSettings::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let store = Arc::new(MemoryStore::default());
        let running = RunningServer::start(listener, store, Arc::new(default_catalog()), settings).unwrap();
        let channel = connect(&running).await;
        Self { running, login, key, verifier, channel }
    }

    /// Returns the credentials of a caller with a role.
    pub fn credentials(&self, name: &str, role: &str) -> Credentials {
        bearer(&self.key.sign(&claims(name, role)))
    }

    pub async fn call(&self, credentials: &Credentials, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        call(&self.channel, credentials, path, message).await
    }

    /// Sends a mutation by `lobby`, a service.
    pub async fn mutate(&self, call: (String, Vec<u8>)) {
        self.mutate_by(&self.key, call).await;
    }

    pub async fn mutate_by(&self, key: &SigningKey, (path, message): (String, Vec<u8>)) {
        self.call(&bearer(&key.sign(&claims("lobby", "service"))), &path, &message).await.unwrap();
    }

    pub async fn subscribe(&self, credentials: &Credentials, id: &str) -> Result<Opened, Status> {
        subscribe(&self.channel, credentials, &[id]).await
    }
}

pub type Opened = Streaming<v1::SubscribeInventoryResponse>;

pub async fn connect(running: &RunningServer) -> Channel {
    Endpoint::from_shared(running.uri()).unwrap().connect().await.unwrap()
}

pub fn bearer(token: &str) -> Credentials {
    vec![("authorization", format!("Bearer {token}"))]
}

/// Subscribes with notices.
pub async fn subscribe(channel: &Channel, credentials: &Credentials, ids: &[&str]) -> Result<Opened, Status> {
    let watch = |id: &&str| v1::Watch { inventory_id: (*id).into(), ..v1::Watch::default() };
    let inventories = ids.iter().map(watch).collect();
    let message = v1::SubscribeInventoryRequest { inventories, notices: true, ..Default::default() };
    let mut client = v1::inventory_service_client::InventoryServiceClient::new(channel.clone());
    client.subscribe_inventory(with_credentials(credentials, message)).await.map(tonic::Response::into_inner)
}

/// Returns the first message of the reply.
pub async fn call(channel: &Channel, credentials: &Credentials, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let request = with_credentials(credentials, message.to_vec());
    let mut answer = grpc.server_streaming(request, path.parse().unwrap(), RawCodec).await?.into_inner();
    answer.message().await.map(|message| message.expect("an answer"))
}

fn with_credentials<T>(credentials: &Credentials, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in credentials {
        let value: MetadataValue<Ascii> = value.parse().unwrap();
        request.metadata_mut().append(*name, value);
    }
    request
}
