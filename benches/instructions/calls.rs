//! Unary calls: through each layer alone, and over a connection to a whole server.

use crate::connection::{Connection, with_prefix};
use crate::counts::count;
use crate::fixtures::{self, ADDED_ITEM, new_key};
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use prost::Message;
use slotcast::domain::Caller;
use slotcast::engine::{Engine, EngineSettings};
use slotcast::grpc::InventoryServiceServer;
use slotcast::grpc::service::Service as InventoryHandlers;
use slotcast::grpc::short_path::ShortPath;
use slotcast::grpc::stream::StreamContext;
use slotcast::grpc::stream_limit::{StreamLimiter, StreamSettings};
use slotcast::grpc::stream_schedule::StreamSchedule;
use slotcast::grpc::sync_limiter::SyncLimiter;
use slotcast::identity::{Authentication, Identity, Role};
use slotcast::live_rollout::LiveRollout;
use slotcast::middleware::{
    Admission, AdmissionSettings, ContentTypeLayer, DeadlineLayer, IdentityLayer, TelemetryLayer,
};
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::statistics::StreamStatistics;
use slotcast::telemetry::Telemetry;
use slotcast::wire::v1;
use slotcast::wire::v1::inventory_service_server::InventoryService;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service, ServiceExt};

const WARM_UP: usize = 64;
const REPETITIONS: usize = 192;
/// The calls take turns, so that no inventory fills up.
const INVENTORIES: usize = 32;
const GET_PATH: &str = "/slotcast.v1.InventoryService/GetInventory";
const ADD_PATH: &str = "/slotcast.v1.InventoryService/AddItem";
const OVER_CONNECTION: &str = "GetInventory over a connection";

/// The cases of one call, from the inside out, and the part that each adds to the one before.
pub const LAYERS: [(&str, &str); 8] = [
    ("GetInventory: service", "service: read the state, build the reply"),
    ("GetInventory: + short path", "short path: find the method, decode, encode"),
    ("GetInventory: + admission", "admission: the request rate of the caller"),
    ("GetInventory: + identity", "identity, without authentication"),
    ("GetInventory: + deadline", "deadline, with a grpc-timeout"),
    ("GetInventory: + content type", "content type"),
    ("GetInventory: + telemetry", "telemetry"),
    (OVER_CONNECTION, "connection: HTTP/2, the task of the call, the runtime, the small client"),
];

pub fn run() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    layers(&runtime, folder.path());
    let folder = tempfile::tempdir().expect("a folder");
    over_connection(folder.path());
}

/// Counts a call through the service alone, then through one more layer at a time.
fn layers(runtime: &Runtime, folder: &Path) {
    let handlers = Arc::new(runtime.block_on(handlers(folder)));
    let [service, short_path, admission, identity, deadline, content_type, telemetry, _] = LAYERS.map(|(name, _)| name);
    let mut requests: Vec<_> = (0..WARM_UP + REPETITIONS).map(|_| tonic_request()).collect();
    count(service, WARM_UP, REPETITIONS, |_| {
        let request = requests.pop().expect("a request for each call");
        runtime.block_on(handlers.get_inventory(request)).expect("the inventory exists");
    });
    let routes = Routes::new(InventoryServiceServer::from_arc(handlers.clone())).prepare();
    let layer = ShortPath::new(handlers, ServerSettings::default().transport.message_bytes_max, routes);
    measure(runtime, short_path, &layer, true);
    let unlimited = AdmissionSettings { per_second: 1_000_000, burst: 1_000_000 };
    let layer = Admission::new(unlimited).expect("a limit").layer().layer(layer);
    measure(runtime, admission, &layer, true);
    let layer = IdentityLayer::new(Authentication::Disabled).layer(layer);
    measure(runtime, identity, &layer, false);
    let layer = DeadlineLayer.layer(layer);
    measure(runtime, deadline, &layer, false);
    let layer = ContentTypeLayer.layer(layer);
    measure(runtime, content_type, &layer, false);
    let layer = TelemetryLayer::new(Telemetry::default()).layer(layer);
    measure(runtime, telemetry, &layer, false);
}

/// Counts GetInventory through a service. `identified`: no layer determines the caller, so the request names it.
fn measure<S, B>(runtime: &Runtime, name: &str, service: &S, identified: bool)
where
    S: Service<Request<Body>, Response = http::Response<B>, Error: std::fmt::Debug> + Clone,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let mut requests: Vec<_> = (0..WARM_UP + REPETITIONS).map(|_| http_request(identified)).collect();
    count(name, WARM_UP, REPETITIONS, |_| {
        let request = requests.pop().expect("a request for each call");
        runtime.block_on(async {
            let response = service.clone().oneshot(request).await.expect("a response");
            let body = response.into_body().collect().await.expect("a body");
            assert!(body.to_bytes().len() > 100, "the reply has no inventory");
        });
    });
}

async fn handlers(folder: &Path) -> InventoryHandlers {
    let store = fixtures::store(folder, 1);
    let (engine, _) = Engine::start(store, fixtures::catalog(), EngineSettings::default());
    InventoryHandlers {
        engine,
        catalog_version: String::new(),
        stream_limiter: StreamLimiter::new(StreamSettings::default()),
        streams: Arc::new(streams()),
    }
}

fn streams() -> StreamContext {
    let (rollout, start) = (LiveRollout::default(), tokio::time::Instant::now());
    StreamContext {
        schedule: StreamSchedule::new(rollout.clone(), Authentication::Disabled.key_changes(), start),
        rollout,
        statistics: Arc::new(StreamStatistics::default()),
        telemetry: Telemetry::default().frames(),
        limiter: SyncLimiter::new(Telemetry::default().sync_limit()),
        start,
    }
}

fn get(number: usize) -> v1::GetInventoryRequest {
    v1::GetInventoryRequest { inventory_id: fixtures::id(number).as_str().to_owned() }
}

fn tonic_request() -> tonic::Request<v1::GetInventoryRequest> {
    let mut request = tonic::Request::new(get(0));
    request.extensions_mut().insert(caller());
    request
}

fn caller() -> Identity {
    let caller = Caller::new("anonymous").expect("a valid name");
    Identity { caller, player: None, role: Role::Admin, credential_status: None }
}

fn http_request(identified: bool) -> Request<Body> {
    let mut request = Request::post(GET_PATH)
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "10S")
        .body(Body::new(Full::new(Bytes::from(with_prefix(&get(0))))))
        .expect("a valid request");
    if identified {
        request.extensions_mut().insert(caller());
    }
    request
}

/// Counts calls over a loopback connection to a server with default settings and a store: all its threads, and the
/// small client.
fn over_connection(folder: &Path) {
    let (address, stop) = start_server(folder);
    let mut connection = Connection::open(address, GET_PATH);
    let requests: Vec<_> = (0..INVENTORIES).map(|number| with_prefix(&get(number))).collect();
    count(OVER_CONNECTION, WARM_UP, REPETITIONS, |number| {
        let reply = connection.call(&requests[number % INVENTORIES]);
        assert!(reply.len() > 100, "the reply has no inventory");
    });
    let mut connection = Connection::open(address, ADD_PATH);
    let requests: Vec<_> = (0..WARM_UP + REPETITIONS).map(|number| with_prefix(&add(number % INVENTORIES))).collect();
    count("AddItem over a connection, committed alone", WARM_UP, REPETITIONS, |number| {
        let reply = connection.call(&requests[number]);
        let reply = v1::AddItemResponse::decode(&*reply).expect("a valid reply");
        assert_eq!(reply.added, 1);
    });
    drop(stop);
}

fn add(number: usize) -> v1::AddItemRequest {
    let context = v1::MutationContext { idempotency_key: new_key(), ..v1::MutationContext::default() };
    let stack = v1::Stack { item: ADDED_ITEM.to_owned(), count: 1, ..v1::Stack::default() };
    let inventory_id = fixtures::id(number).as_str().to_owned();
    let add = v1::AddItem { inventory_id, stack: Some(stack), allow_partial: false };
    v1::AddItemRequest { context: Some(context), add: Some(add) }
}

/// Starts a server on a thread of its own. It stops when the sender is dropped.
fn start_server(folder: &Path) -> (SocketAddr, oneshot::Sender<()>) {
    let store = fixtures::store(folder, INVENTORIES);
    let (started, address) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let server = RunningServer::start(listener, store, fixtures::catalog(), ServerSettings::default());
            let server = server.expect("the server starts");
            started.send(server.address).expect("the main thread waits");
            // An error also means that the main thread is done.
            let _ = stopped.await;
        });
    });
    (address.recv().expect("the server starts"), stop)
}
