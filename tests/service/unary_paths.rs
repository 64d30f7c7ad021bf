//! The short path of unary calls (`grpc::short_path`) and tonic's generated server get the same byte-level requests. Their
//! replies must not differ in any header, frame or trailer.

use crate::common::{MemoryStore, add, create_named, with_key};
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use prost::Message;
use prost_reflect::DescriptorPool;
use slotcast::catalog_file::default_catalog;
use slotcast::domain::Caller;
use slotcast::engine::{Engine, EngineSettings};
use slotcast::grpc::InventoryServiceServer;
use slotcast::grpc::service::Service;
use slotcast::grpc::short_path::ShortPath;
use slotcast::grpc::stream::StreamContext;
use slotcast::grpc::stream_limit::{StreamLimiter, StreamSettings};
use slotcast::grpc::stream_schedule::StreamSchedule;
use slotcast::grpc::sync_limiter::SyncLimiter;
use slotcast::identity::{Authentication, Identity, Role};
use slotcast::live_rollout::LiveRollout;
use slotcast::telemetry::Telemetry;
use slotcast::wire::FILE_DESCRIPTOR_SET;
use slotcast::wire::v1::{self, operation::Operation};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt;

/// Maximum size of a request message in these tests, in bytes.
const BYTES_MAX: usize = 1_000;
type RequestBody = UnsyncBoxBody<Bytes, Status>;

/// The frames of a request body.
type Frames = Vec<Result<Frame<Bytes>, Status>>;

/// Everything that a client sees of a reply.
#[derive(Debug, PartialEq)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    /// The bytes of the error details in ascending order, because the order of the metadata in them is random.
    details: Vec<u8>,
    frames: Vec<ReplyFrame>,
}

#[derive(Debug, PartialEq)]
enum ReplyFrame {
    Data(Bytes),
    Trailers(HeaderMap),
}

fn service() -> Arc<Service> {
    let start = tokio::time::Instant::now();
    let (engine, _) =
        Engine::start(Arc::new(MemoryStore::default()), Arc::new(default_catalog()), EngineSettings::default());
    Arc::new(Service {
        engine,
        catalog_version: "test".into(),
        stream_limiter: StreamLimiter::new(StreamSettings::default()),
        streams: Arc::new(StreamContext {
            schedule: StreamSchedule::new(LiveRollout::default(), Authentication::Disabled.key_changes(), start),
            rollout: LiveRollout::default(),
            statistics: Arc::default(),
            telemetry: Telemetry::default().frames(),
            limiter: SyncLimiter::new(Telemetry::default().sync_limit()),
            start,
        }),
    })
}

fn request(method: &str, headers: &[(&'static str, &'static str)], body: RequestBody) -> http::Request<RequestBody> {
    let path = format!("/slotcast.v1.InventoryService/{method}");
    let mut request = http::Request::post(path).header("content-type", "application/grpc").body(body).unwrap();
    headers.iter().for_each(|(name, value)| drop(request.headers_mut().insert(*name, value.parse().unwrap())));
    let caller = Caller::new("test").unwrap();
    request.extensions_mut().insert(Identity { caller, player: None, role: Role::Service, credential_status: None });
    request
}

async fn reply(response: http::Response<Body>) -> Reply {
    let (mut parts, mut body) = response.into_parts();
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        frames.push(match frame.unwrap().into_data() {
            Ok(data) => ReplyFrame::Data(data),
            Err(frame) => ReplyFrame::Trailers(frame.into_trailers().unwrap()),
        });
    }
    assert!(http_body::Body::is_end_stream(&body));
    let mut details =
        Status::from_header_map(&parts.headers).map(|status| status.details().to_vec()).unwrap_or_default();
    details.sort_unstable();
    parts.headers.remove("grpc-status-details-bin");
    Reply { status: parts.status.as_u16(), headers: parts.headers, details, frames }
}

/// Sends the same request over the short path and to tonic's server, and returns the reply, which must be the same.
async fn send(service: &Arc<Service>, method: &str, headers: &[(&'static str, &'static str)], frames: Frames) -> Reply {
    let tonic = InventoryServiceServer::from_arc(service.clone()).max_decoding_message_size(BYTES_MAX);
    let body = |frames: Frames| StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let clone = |frame: &Result<Frame<Bytes>, Status>| match frame {
        Ok(frame) if frame.is_data() => Ok(Frame::data(frame.data_ref().unwrap().clone())),
        Ok(frame) => Ok(Frame::trailers(frame.trailers_ref().unwrap().clone())),
        Err(status) => Err(status.clone()),
    };
    let copy = frames.iter().map(clone).collect();
    let expected = tonic.clone().oneshot(request(method, headers, body(copy))).await.unwrap();
    let short = ShortPath::new(service.clone(), BYTES_MAX, tonic);
    let actual = short.oneshot(request(method, headers, body(frames))).await.unwrap();
    let (expected, actual) = (reply(expected).await, reply(actual).await);
    assert_eq!(actual, expected, "{method}");
    actual
}

fn data(bytes: impl AsRef<[u8]>) -> Result<Frame<Bytes>, Status> {
    Ok(Frame::data(Bytes::copy_from_slice(bytes.as_ref())))
}

/// Returns the names of all unary methods.
fn methods() -> Vec<String> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
    let service = pool.get_service_by_name("slotcast.v1.InventoryService").unwrap();
    let unary = service.methods().filter(|method| !method.is_server_streaming());
    unary.map(|method| method.name().to_owned()).collect()
}

/// Encodes a message with its prefix.
fn message(message: &impl Message) -> Vec<u8> {
    prefixed(0, &message.encode_to_vec())
}

fn prefixed(flag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[flag], &(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn get(id: &str) -> Vec<u8> {
    message(&v1::GetInventoryRequest { inventory_id: id.into() })
}

/// Returns valid requests, of which the mutations are retries of mutations that were already applied.
async fn requests(service: &Arc<Service>) -> Vec<(&'static str, Vec<u8>)> {
    let Operation::Create(create) = create_named("chest") else { unreachable!() };
    let Operation::Add(add) = add("chest", "coal", 70) else { unreachable!() };
    let operations = vec![v1::Operation { operation: Some(Operation::Add(add.clone())) }];
    let context = |key: u8| Some(with_key(&format!("00000000-0000-4000-8000-0000000000{key:02}")));
    let mutations = [
        ("CreateInventory", message(&v1::CreateInventoryRequest { context: context(1), create: Some(create) })),
        ("AddItem", message(&v1::AddItemRequest { context: context(2), add: Some(add) })),
        ("Transact", message(&v1::TransactRequest { context: context(3), operations })),
    ];
    for (method, message) in &mutations {
        let body = Full::from(message.clone()).map_err(|never: Infallible| match never {}).boxed_unsync();
        let tonic = InventoryServiceServer::from_arc(service.clone());
        let applied = reply(tonic.oneshot(request(method, &[], body)).await.unwrap()).await;
        assert_eq!(applied.frames.len(), 2, "{method}: {applied:?}");
    }
    let reads = [
        ("GetInventory", get("chest")),
        ("GetInventory", get("nothing")),
        ("GetInventory", get("")),
        ("ListInventories", message(&v1::ListInventoriesRequest::default())),
        ("GetCatalog", message(&v1::GetCatalogRequest::default())),
    ];
    mutations.into_iter().chain(reads).collect()
}

#[tokio::test]
async fn valid_requests_get_the_same_reply_however_they_are_split_into_frames() {
    let service = service();
    let mut trailers = HeaderMap::new();
    trailers.insert("custom", "value".parse().unwrap());
    for (method, bytes) in requests(&service).await {
        let whole = send(&service, method, &[], vec![data(&bytes)]).await;
        for split in 1..bytes.len() {
            let (first, second) = bytes.split_at(split);
            assert_eq!(send(&service, method, &[], vec![data(first), data(second)]).await, whole);
        }
        for frames in [
            vec![data(&bytes), data([])],
            vec![data([]), data(&bytes)],
            vec![data(&bytes), data([]), data([])],
            vec![data(&bytes), Ok(Frame::trailers(trailers.clone()))],
            vec![data(&bytes), data([]), Ok(Frame::trailers(trailers.clone()))],
            bytes.iter().map(|byte| data([*byte])).collect(),
        ] {
            assert_eq!(send(&service, method, &[], frames).await, whole);
        }
        for headers in [("grpc-encoding", "identity"), ("grpc-accept-encoding", "gzip")] {
            assert_eq!(send(&service, method, &[headers], vec![data(&bytes)]).await, whole);
        }
    }
}

#[tokio::test]
async fn malformed_requests_get_the_same_status() {
    let service = service();
    let mut codes = std::collections::BTreeSet::new();
    for method in &methods() {
        for frames in [
            vec![],
            vec![data([])],
            vec![data(&get("a")[..3])],
            vec![data(&get("a")[..6])],
            vec![data(&get("a")[..6]), data([])],
            // A body that ends early because of an error, and one that the client cancelled.
            vec![data(&get("a")[..6]), Err(Status::data_loss("planted"))],
            vec![data(get("a")), Err(Status::data_loss("planted"))],
            vec![Err(Status::data_loss("planted"))],
            vec![Err(Status::cancelled("planted"))],
            vec![data(get("a")), Err(Status::cancelled("planted"))],
            // The flag of a compressed message, and an invalid flag.
            vec![data(prefixed(1, b""))],
            vec![data(prefixed(2, b""))],
            vec![data([get("a"), prefixed(2, b"")].concat())],
            // More than one message, of which the second one may be malformed.
            vec![data([prefixed(0, b""), prefixed(0, b"")].concat())],
            vec![data(prefixed(0, b"")), data(prefixed(0, b""))],
            vec![data(prefixed(0, b"")), data(prefixed(0, b"\xFF"))],
            vec![data(prefixed(0, b"")), data(b"\0\0")],
            // Not a protobuf message.
            vec![data(prefixed(0, b"\xFF\xFF"))],
            vec![data(prefixed(0, b"\x0A\x05ab"))],
            // No field is set.
            vec![data(prefixed(0, b""))],
            // The largest message, one that is too large, and one that claims to be.
            vec![data(prefixed(0, &[0x7A, 0x80, 0x80].repeat(BYTES_MAX / 3)))],
            vec![data(prefixed(0, &[0; BYTES_MAX + 1]))],
            vec![data(b"\0\xFF\xFF\xFF\xFF")],
        ] {
            let reply = send(&service, method, &[], frames).await;
            codes.extend(reply.headers.get("grpc-status").map(|code| code.to_str().unwrap().to_owned()));
        }
        for headers in [("grpc-encoding", "gzip"), ("grpc-encoding", "unknown")] {
            let reply = send(&service, method, &[headers], vec![data(get("a"))]).await;
            assert_eq!(reply.headers["grpc-status"], "12", "UNIMPLEMENTED");
        }
    }
    for code in ["3", "11", "13", "15"] {
        assert!(codes.contains(code), "no request got the status {code}: {codes:?}");
    }
}

#[tokio::test]
async fn only_unusual_requests_take_the_other_path() {
    let service = service();
    let passed = Arc::new(AtomicUsize::new(0));
    let counter = passed.clone();
    let fallback = tower::service_fn(move |_: http::Request<RequestBody>| {
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<_, Infallible>(http::Response::new(Body::empty())))
    });
    let short = ShortPath::new(service, BYTES_MAX, fallback);
    let body = || Full::from(prefixed(0, b"")).map_err(|never: Infallible| match never {}).boxed_unsync();
    for method in &methods() {
        let response = short.clone().oneshot(request(method, &[], body())).await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/grpc", "{method}");
    }
    assert_eq!(passed.load(Ordering::Relaxed), 0);
    let unusual = [("Unknown", &[][..]), ("AddItem", &[("grpc-encoding", "gzip")])];
    for (method, headers) in unusual {
        short.clone().oneshot(request(method, headers, body())).await.unwrap();
    }
    assert_eq!(passed.load(Ordering::Relaxed), unusual.len());
}
