//! Connect and gRPC-Web, byte by byte: bodies, headers, compression, and pages of other origins.

use crate::common::{MemoryStore, TestServer, WAIT, add, error_of, immediate, metadata, stack};
use crate::protocols::{WebProtocol, connect_status, prefixed, send};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use prost::Message;
use slotcast::catalog_file::default_catalog;
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::web::Origins;
use slotcast::wire::v1;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tonic::Code;

const ADD: &str = "/slotcast.v1.InventoryService/AddItem";
const GET: &str = "/slotcast.v1.InventoryService/GetInventory";
const SUBSCRIBE: &str = "/slotcast.v1.InventoryService/SubscribeInventory";
const CATALOG: &str = "/slotcast.v1.InventoryService/GetCatalog";
const JSON: &str = "application/json";
const ORIGIN: &str = "https://game.example";

async fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Incoming> {
    request(address, Method::POST, path, headers, body).await
}

async fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<Incoming> {
    let builder = Request::builder().method(method).uri(path).header("host", "slotcast");
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    send(address, true, builder.body(Full::new(body.into())).unwrap()).await
}

async fn body(response: Response<Incoming>) -> Bytes {
    tokio::time::timeout(WAIT, response.into_body().collect()).await.expect("the body ends").unwrap().to_bytes()
}

async fn json(response: Response<Incoming>) -> serde_json::Value {
    serde_json::from_slice(&body(response).await).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut message).unwrap();
    message
}

#[tokio::test]
async fn every_protocol_returns_the_messages_of_grpc() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[(0, "oak_log", 5)]).await;
    let watch = v1::Watch { inventory_id: "bag".into(), ..v1::Watch::default() };
    let subscribe = v1::SubscribeInventoryRequest { inventories: vec![watch], ..Default::default() };
    for protocol in WebProtocol::ALL {
        let call =
            async |path: &str, message: Vec<u8>| protocol.call(server.running.address, &[], path, &message).await;
        let before = server.get("bag").await;
        let context = Some(slotcast::client::new_mutation_context());
        let stack = Some(stack("apple", 2));
        let added = v1::AddItem { inventory_id: "bag".into(), stack, allow_partial: false };
        let request = v1::AddItemRequest { context, add: Some(added) };
        let reply = call(ADD, request.encode_to_vec()).await.unwrap();
        let reply = v1::AddItemResponse::decode(&*reply).unwrap();
        assert_eq!((reply.added, reply.remainder), (2, 0), "{protocol:?}");
        let repeated = call(ADD, request.encode_to_vec()).await.unwrap();
        assert!(v1::AddItemResponse::decode(&*repeated).unwrap().receipt.unwrap().replayed, "{protocol:?}");

        let get = v1::GetInventoryRequest { inventory_id: "bag".into() };
        let inventory = v1::GetInventoryResponse::decode(&*call(GET, get.encode_to_vec()).await.unwrap()).unwrap();
        let inventory = inventory.inventory.unwrap();
        assert_eq!(inventory, server.get("bag").await, "{protocol:?}");
        let revision = |inventory: &v1::Inventory| inventory.version.as_ref().unwrap().revision;
        assert_eq!(revision(&inventory), revision(&before) + 1, "{protocol:?}");

        let first = call(SUBSCRIBE, subscribe.encode_to_vec()).await.unwrap();
        let frame = v1::SubscribeInventoryResponse::decode(&*first).unwrap();
        assert!(frame.caught_up && frame.changes.len() == 1, "{protocol:?}: {frame:?}");

        let missing = v1::GetInventoryRequest { inventory_id: "nowhere".into() };
        let status = call(GET, missing.encode_to_vec()).await.unwrap_err();
        let grpc = server.client.rpc().get_inventory(missing).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (grpc.code(), grpc.message()), "{protocol:?}");
        assert_eq!(error_of(&status), error_of(&grpc), "{protocol:?}");
        assert_eq!(metadata(&status, "inventory_id"), Some("nowhere".into()), "{protocol:?}");
    }
}

#[tokio::test]
async fn json_with_a_mistake_is_refused_and_changes_nothing() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[]).await;
    let address = server.running.address;
    let before = server.get("bag").await;
    let context = r#""context":{"idempotencyKey":"k"}"#;
    for (text, problem) in [
        (
            format!(r#"{{{context},"add":{{"inventoryId":"bag","stack":{{"item":"apple","count":1}},"gaurds":[]}}}}"#),
            "gaurds",
        ),
        (format!(r#"{{{context},"add":{{"inventoryId":"bag","stack":{{"item":"apple","count":-1}}}}}}"#), "line 1"),
        (format!(r#"{{{context},"add":{{"inventoryId":"bag","stack":{{"item":"apple","count":1.5}}}}}}"#), "line 1"),
        (format!(r#"{{{context},"add":[]}}"#), "line 1"),
        (format!(r#"{{{context}"#), "line 1"),
        (String::new(), "send {}"),
    ] {
        let response = post(address, ADD, &[("content-type", JSON)], text.clone()).await;
        assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (400, &JSON.parse().unwrap()));
        let error = json(response).await;
        assert_eq!(error["code"], "invalid_argument", "{text}");
        assert!(error["message"].as_str().unwrap().contains(problem), "{text}: {error}");
        assert_eq!(error["details"][0]["debug"]["reason"], "MALFORMED", "{text}");
    }
    assert_eq!(server.get("bag").await, before);
}

#[tokio::test]
async fn errors_have_the_http_status_and_the_details_of_their_code() {
    let server = TestServer::start(immediate()).await;
    let response = post(server.running.address, GET, &[("content-type", JSON)], r#"{"inventoryId":"nowhere"}"#).await;
    assert_eq!(response.status(), 404);
    let error = json(response).await;
    assert_eq!(error["code"], "not_found");
    let debug: Vec<_> = error["details"].as_array().unwrap().iter().map(|detail| &detail["debug"]).collect();
    assert!(debug.iter().any(|debug| debug["reason"] == "INVENTORY_NOT_FOUND"), "{error}");
    assert!(debug.iter().any(|debug| debug["resourceName"] == "nowhere"), "{error}");
    assert_eq!(connect_status(&error).code(), Code::NotFound);
    for (path, content_type, status) in
        [("/slotcast.v1.InventoryService/Steal", JSON, 501), (GET, "text/plain", 415), (SUBSCRIBE, JSON, 415)]
    {
        let response = post(server.running.address, path, &[("content-type", content_type)], "{}").await;
        assert_eq!(response.status().as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn several_requests_use_one_http_1_1_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = TestServer::start(immediate()).await;
    let mut socket = tokio::net::TcpStream::connect(server.running.address).await.unwrap();
    let head = "content-type: application/json\r\nhost: a\r\ncontent-length: 2\r\n";
    // The second is sent before the reply to the first is read.
    let text = format!(
        "POST {CATALOG} HTTP/1.1\r\n{head}\r\n{{}}POST {CATALOG} HTTP/1.1\r\n{head}connection: close\r\n\r\n{{}}"
    );
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut replies = String::new();
    tokio::time::timeout(WAIT, socket.read_to_string(&mut replies)).await.expect("the connection is closed").unwrap();
    assert_eq!(replies.matches("HTTP/1.1 200 OK").count(), 2, "{replies}");
    assert_eq!(
        replies.matches(r#""catalogVersion""#).count() + replies.matches(r#""version""#).count(),
        2,
        "{replies}"
    );
}

#[tokio::test]
async fn messages_are_compressed_with_gzip_in_both_directions() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[(0, "oak_log", 5)]).await;
    let address = server.running.address;
    let plain = body(post(address, CATALOG, &[("content-type", JSON)], "{}").await).await;
    let accepting = [("content-type", JSON), ("accept-encoding", "gzip, br")];
    let response = post(address, CATALOG, &accepting, "{}").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let compressed = body(response).await;
    assert!(compressed.len() < plain.len() / 2 && gunzip(&compressed) == plain);

    let request = gzip(br#"{"inventoryId":"bag"}"#);
    let compressing = [("content-type", JSON), ("content-encoding", "gzip")];
    assert_eq!(
        json(post(address, GET, &compressing, request).await).await["inventory"]["version"]["inventoryId"],
        "bag"
    );
    let response = post(address, GET, &[("content-type", JSON), ("content-encoding", "br")], "x").await;
    assert_eq!(response.status(), 501);
    assert_eq!(json(response).await["details"][0]["debug"]["reason"], "UNSUPPORTED_ENCODING");

    let mut watched = prefixed(&gzip(br#"{"inventories":[{"inventoryId":"bag"}]}"#)).to_vec();
    watched[0] = 1;
    let headers = [("content-type", "application/connect+json"), ("connect-content-encoding", "gzip")];
    let mut response = post(address, SUBSCRIBE, &headers, watched).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first[0] == 0 && first[5..].starts_with(b"{"), "a small message is not compressed: {first:?}");
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_as_in_grpc() {
    let server = TestServer::start(immediate()).await;
    let large = vec![b' '; (1 << 22) + 1];
    for (headers, body) in [
        (vec![("content-type", JSON)], large.clone()),
        (vec![("content-type", "application/proto")], large.clone()),
        (vec![("content-type", "application/grpc-web+proto")], prefixed(&large).to_vec()),
    ] {
        let response = post(server.running.address, GET, &headers, body).await;
        let is_grpc_web = headers[0].1.contains("grpc");
        if is_grpc_web {
            assert_eq!(response.headers()["grpc-status"], "11", "{headers:?}");
            continue;
        }
        assert_eq!(response.status(), 400, "{headers:?}");
        let error = json(response).await;
        assert_eq!(error["code"], "out_of_range", "{headers:?}");
        assert!(error["message"].as_str().unwrap().contains("too large"), "{error}");
    }
}

#[tokio::test]
async fn a_malformed_timeout_is_refused() {
    let server = TestServer::start(immediate()).await;
    let call = async |timeout: &str| {
        let headers = [("content-type", JSON), ("connect-timeout-ms", timeout)];
        let response = post(server.running.address, GET, &headers, r#"{"inventoryId":"nowhere"}"#).await;
        json(response).await["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(call("soon").await, "invalid_argument");
    assert_eq!(call("10000").await, "not_found");
}

#[tokio::test]
async fn a_stream_ends_with_its_status_in_the_last_message() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[]).await;
    let request = prefixed(br#"{"inventories":[{"inventoryId":"bag"}]}"#);
    let headers = [("content-type", "application/connect+json")];
    let mut response = post(server.running.address, SUBSCRIBE, &headers, request).await;
    assert_eq!(response.headers()["content-type"], "application/connect+json");
    let mut next = async || response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(next().await[5..].starts_with(b"{"));
    server.mutate(add("bag", "apple", 1)).await.unwrap();
    let change: serde_json::Value = serde_json::from_slice(&next().await[5..]).unwrap();
    assert_eq!(change["changes"].as_array().unwrap().len(), 1, "{change}");
    let stopped = tokio::spawn(server.running.stop());
    let last = next().await;
    assert_eq!(last[0], 2);
    let end: serde_json::Value = serde_json::from_slice(&last[5..]).unwrap();
    assert_eq!((&end["error"]["code"], end.get("metadata")), (&"unavailable".into(), None), "{end}");
    stopped.await.unwrap().unwrap();
}

async fn start_with_origin() -> RunningServer {
    let origins: Origins = [ORIGIN.parse().unwrap()].into_iter().collect();
    let settings = ServerSettings { origins, ..ServerSettings::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    RunningServer::start(listener, Arc::<MemoryStore>::default(), Arc::new(default_catalog()), settings).unwrap()
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_call_and_read_replies() {
    let server = start_with_origin().await;
    let preflight = [
        ("origin", ORIGIN),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,connect-protocol-version,content-type"),
    ];
    let response = request(server.address, Method::OPTIONS, CATALOG, &preflight, "").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["access-control-allow-origin"], ORIGIN);
    assert_eq!(response.headers()["access-control-allow-methods"], "POST");
    let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(["authorization", "connect-protocol-version", "content-type"].iter().all(|name| allowed.contains(name)));
    assert!(response.headers().get("access-control-allow-credentials").is_none());

    for content_type in [JSON, "application/grpc-web+proto"] {
        let body = if content_type == JSON { Bytes::from("{}") } else { prefixed(b"") };
        let response = post(server.address, CATALOG, &[("content-type", content_type), ("origin", ORIGIN)], body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["access-control-allow-origin"], ORIGIN);
        assert!(response.headers()["access-control-expose-headers"].to_str().unwrap().contains("grpc-status"));
    }
}

#[tokio::test]
async fn a_page_of_another_origin_gets_nothing() {
    let server = start_with_origin().await;
    for origin in ["https://evil.example", "http://game.example", "https://game.example:8443", "null", ""] {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        let preflight = request(server.address, Method::OPTIONS, CATALOG, &headers, "").await;
        assert_eq!(preflight.status(), 403, "{origin}");
        assert!(preflight.headers().keys().all(|name| !name.as_str().starts_with("access-control")), "{origin}");
        let response = post(server.address, CATALOG, &[("content-type", JSON), ("origin", origin)], "{}").await;
        assert_eq!(response.status(), 403, "{origin}");
        assert!(response.headers().keys().all(|name| !name.as_str().starts_with("access-control")), "{origin}");
        let error = json(response).await;
        assert_eq!(error["details"][0]["debug"]["reason"], "ORIGIN_NOT_ALLOWED", "{error}");
    }
    let both = [("content-type", JSON), ("origin", ORIGIN), ("origin", "https://evil.example")];
    assert_eq!(post(server.address, CATALOG, &both, "{}").await.status(), 403);
}
