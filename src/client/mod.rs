//! The client library: calls with idempotency keys, replicas of inventories that survive reconnects, and sessions that
//! apply their own changes immediately.
//!
//! - [`Client::mutate`] makes one call and waits for the reply.
//! - [`Client::follow`] follows the committed states of inventories.
//! - [`Client::session`] combines both: [`Session::apply`] applies a change locally, returns immediately and makes the
//!   call in the background; the server corrects predictions that were wrong.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use slotcast::client::Client;
//!
//! let client = Client::new("http://127.0.0.1:7400", "lobby-server")?;
//! let mut follow = client.follow(vec!["steve".into()]);
//! loop {
//!     follow.next().await?;
//!     println!("{:?}", follow.replica(0));
//! }
//! # }
//! ```

mod backoff;
mod calls;
mod follow;
mod outbox;
mod retry;
mod session;
mod session_state;
mod stream;
mod tls;
mod token;

pub use backoff::Backoff;
pub use follow::{Follow, FollowCounts, SubscriptionUpdate};
pub use retry::RetryChannel;
pub use session::{PendingMutation, Session, SessionCounts, SessionError, SessionEvent, SessionOptions};
pub use stream::ConnectionState;

use crate::domain::Catalog;
use crate::wire::v1::inventory_service_client::InventoryServiceClient;
use crate::wire::{self, CALLER_METADATA, PLAYER_METADATA, v1};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tls::Tls;
use token::{TOKEN_METADATA, Token};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Uri};
use tonic::{Request, Status};
use uuid::Uuid;

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 flow-control window of one stream, in bytes. When the window is full, the server waits and conflates: a
/// reader that was away for a long time finds few frames instead of a long history.
const STREAM_WINDOW_BYTES: u32 = 65_535;
/// HTTP/2 flow-control window of the connection, in bytes: the maximum that HTTP/2 allows. The windows of the streams
/// already bound unread data. h2 also derives from this window how many small unread frames it accepts before it treats
/// them as an attack. With the default window that is about 10,900 frames, and a single unread stream could exceed them
/// and break the connection for all others; with this window it takes about 1,000 unread streams.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// The generated client, which adds the caller to every call.
pub type Rpc = InventoryServiceClient<InterceptedService<RetryChannel, CallMetadata>>;

/// A connection to a server. Cheap to clone. Connects at the first call and reconnects when needed.
#[derive(Debug, Clone)]
pub struct Client {
    channel: RetryChannel,
    metadata: CallMetadata,
}

/// Address of the server, and the credentials and identity of the client.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// URI of the server, for example `http://127.0.0.1:7400` or `https://slotcast.example.org`.
    pub uri: String,
    /// Name of this game server. Idempotency keys are scoped to it.
    pub caller: String,
    /// PEM file with the root certificates that verify the server's certificate. Default: the system's root
    /// certificates.
    pub ca: Option<PathBuf>,
    /// PEM file with this client's certificate, for a server that requests one; `key` is the PEM file with its private
    /// key. The client reads both files and `ca` again for each connection.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// File with a bearer token, which the client sends with each call. The client reads the file again while it runs.
    pub token_file: Option<PathBuf>,
    /// Called for each call to add metadata such as `traceparent`, so that the server's spans join the caller's trace.
    pub add_metadata: Option<AddMetadata>,
}

/// Adds the caller, the player, the bearer token and the metadata of [`ClientOptions::add_metadata`] to each call.
#[derive(Debug, Clone)]
pub struct CallMetadata {
    caller: MetadataValue<Ascii>,
    player: Option<MetadataValue<Ascii>>,
    token: Option<Arc<Token>>,
    add_metadata: Option<AddMetadata>,
}

/// A function that adds metadata to each call, for example the trace context of the caller:
///
/// ```
/// use slotcast::client::AddMetadata;
///
/// let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let add_metadata = AddMetadata::new(move |metadata| {
///     if let Ok(value) = traceparent.parse() {
///         metadata.insert("traceparent", value);
///     }
/// });
/// ```
#[derive(Clone)]
pub struct AddMetadata(Arc<dyn Fn(&mut MetadataMap) + Send + Sync>);

impl AddMetadata {
    pub fn new(add: impl Fn(&mut MetadataMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(add))
    }
}

impl std::fmt::Debug for AddMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AddMetadata")
    }
}

impl Interceptor for CallMetadata {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CALLER_METADATA, self.caller.clone());
        if let Some(player) = &self.player {
            request.metadata_mut().insert(PLAYER_METADATA, player.clone());
        }
        if let Some(token) = &self.token {
            request.metadata_mut().insert(TOKEN_METADATA, token.value());
        }
        if let Some(AddMetadata(add)) = &self.add_metadata {
            add(request.metadata_mut());
        }
        Ok(request)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("invalid server address {uri:?}: must be like http://127.0.0.1:7400")]
    Address { uri: String },
    #[error("invalid caller {caller:?}: must be 1 to 128 visible ASCII characters")]
    Caller { caller: String },
    #[error("invalid player {player:?}: must be 1 to 128 visible ASCII characters")]
    Player { player: String },
    #[error(
        "{uri} does not use TLS, so certificates have no effect; use an https:// address or remove the certificates"
    )]
    NotEncrypted { uri: String },
    #[error("a client certificate requires a key and a key requires a certificate; set both or neither")]
    IncompleteCertificate,
    #[error("cannot use {what}: {problem}")]
    Tls { what: String, problem: String },
    #[error("no root certificates found on this system; set the file of the CA that issued the server's certificate")]
    NoRoots,
    #[error("cannot read a token from {}: {problem}", path.display())]
    Token { path: PathBuf, problem: String },
}

impl Client {
    /// Creates a client for a plaintext or TLS `uri` such as `http://127.0.0.1:7400`. `caller` names this game server;
    /// idempotency keys are scoped to it. Connects at the first call.
    pub fn new(uri: &str, caller: &str) -> Result<Self, ClientError> {
        Self::open(&ClientOptions { uri: uri.into(), caller: caller.into(), ..ClientOptions::default() })
    }

    /// Creates a client with certificates or a token. Connects at the first call.
    pub fn open(options: &ClientOptions) -> Result<Self, ClientError> {
        let ClientOptions { uri, caller, .. } = options;
        let invalid_address = |_| ClientError::Address { uri: uri.clone() };
        let value = MetadataValue::try_from(caller).map_err(|_| ClientError::Caller { caller: caller.clone() })?;
        let token = options.token_file.clone().map(Token::open).transpose()?.map(Arc::new);
        let metadata = CallMetadata { caller: value, player: None, token, add_metadata: options.add_metadata.clone() };
        let target: Uri = uri.parse().map_err(|_| ClientError::Address { uri: uri.clone() })?;
        if !matches!(target.scheme_str(), Some("http" | "https")) {
            return Err(ClientError::Address { uri: uri.clone() });
        }
        if target.scheme_str() == Some("https") {
            let tls = Arc::new(Tls::open(&target, options)?);
            let connector = tower::service_fn(move |_: Uri| tls.clone().connect());
            // The connector encrypts the connection; the endpoint treats it as plaintext.
            let plain = uri.replacen("https", "http", 1);
            let endpoint = endpoint(Endpoint::from_shared(plain).map_err(invalid_address)?).origin(target);
            let channel = RetryChannel::new(endpoint.connect_with_connector_lazy(connector));
            return Ok(Self { channel, metadata });
        }
        if options.ca.is_some() || options.certificate.is_some() || options.key.is_some() {
            return Err(ClientError::NotEncrypted { uri: uri.clone() });
        }
        let channel = endpoint(Endpoint::from_shared(uri.clone()).map_err(invalid_address)?).connect_lazy();
        Ok(Self { channel: RetryChannel::new(channel), metadata })
    }

    /// Returns a client on the same connection whose calls and streams act on behalf of a player and count against the
    /// player's limits.
    pub fn for_player(&self, player: &str) -> Result<Self, ClientError> {
        let value = MetadataValue::try_from(player).map_err(|_| ClientError::Player { player: player.into() })?;
        let metadata = CallMetadata { player: Some(value), ..self.metadata.clone() };
        Ok(Self { channel: self.channel.clone(), metadata })
    }

    /// Returns the generated client, which has every RPC.
    pub fn rpc(&self) -> Rpc {
        InventoryServiceClient::with_interceptor(self.channel.clone(), self.metadata.clone())
    }

    /// Returns the transport, for calls by method name.
    pub fn channel(&self) -> InterceptedService<RetryChannel, CallMetadata> {
        InterceptedService::new(self.channel.clone(), self.metadata.clone())
    }

    /// Follows inventories, starting with their full states.
    pub fn follow(&self, ids: Vec<String>) -> Follow {
        Follow::new(self.rpc(), ids)
    }

    /// Fetches the catalog of the server: items, recipes and layouts. One fetch is enough, because a server changes
    /// its catalog only at a restart.
    pub async fn catalog(&self) -> Result<Arc<Catalog>, Status> {
        let reply = self.rpc().get_catalog(v1::GetCatalogRequest {}).await?.into_inner();
        let read = wire::catalog::decode_catalog(&reply);
        read.map(Arc::new).map_err(|problems| Status::data_loss(format!("the catalog: {}", problems.join("; "))))
    }

    /// Starts a session that follows inventories and applies changes to them immediately. The session runs in the
    /// current runtime until it is dropped. See [`Session`].
    pub fn session(&self, options: SessionOptions, catalog: Arc<Catalog>) -> Result<Session, SessionError> {
        Session::start(self.rpc(), options, catalog)
    }
}

fn endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_while_idle(true)
}

/// Creates a context with a fresh idempotency key. Keep it for retries of the same call.
pub fn new_mutation_context() -> v1::MutationContext {
    v1::MutationContext { idempotency_key: Uuid::now_v7().to_string(), ..v1::MutationContext::default() }
}
