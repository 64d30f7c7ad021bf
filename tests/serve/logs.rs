//! The log lines of calls and connections, in both formats.

use crate::common::{create_named, remove};
use crate::process::{Server, WAIT};
use serde_json::Value;
use slotcast::client::new_mutation_context;
use slotcast::wire::v1;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use v1::inventory_service_client::InventoryServiceClient;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Waits for a number of lines with a message, and returns them.
fn lines(server: &Server, message: &str, number: usize) -> Vec<Value> {
    let end = Instant::now() + WAIT;
    loop {
        let found: Vec<Value> =
            server.json_log().into_iter().filter(|line| line["fields"]["message"] == message).collect();
        if found.len() >= number {
            return found;
        }
        assert!(Instant::now() < end, "{} of {number} lines {message:?}:\n{}", found.len(), server.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn channel(server: &Server) -> Channel {
    Endpoint::from_shared(server.uri.clone()).unwrap().connect_lazy()
}

/// Returns a request of a game server for a player, with a trace.
fn named<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
    for (name, value) in [("slotcast-caller", "lobby"), ("slotcast-player", "steve"), ("traceparent", &traceparent)] {
        request.metadata_mut().insert(name, MetadataValue::try_from(value).unwrap());
    }
    request
}

fn get(id: &str) -> v1::GetInventoryRequest {
    v1::GetInventoryRequest { inventory_id: id.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_call_is_one_log_line_with_caller_player_peer_method_status_reason_and_trace() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_json(folder.path(), &[]);
    let mut rpc = InventoryServiceClient::new(channel(&server));
    server.client().mutate(new_mutation_context(), create_named("chest")).await.unwrap();
    rpc.get_inventory(named(get("chest"))).await.unwrap();
    rpc.get_inventory(named(get("nowhere"))).await.unwrap_err();
    tokio::task::block_in_place(|| {
        let refused = lines(&server, "call refused", 1);
        assert_eq!(refused.len(), 1, "calls that are served are not logged: {refused:?}");
        let (line, fields) = (&refused[0], &refused[0]["fields"]);
        assert_eq!(line["level"], "INFO");
        for (name, value) in [
            ("caller", "lobby"),
            ("player", "steve"),
            ("method", "slotcast.v1.InventoryService/GetInventory"),
            ("status", "NOT_FOUND"),
            ("reason", "INVENTORY_NOT_FOUND"),
            ("inventory", "nowhere"),
            ("trace_id", TRACE),
        ] {
            assert_eq!(fields[name], value, "{name}: {line}");
        }
        assert!(fields["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(fields["duration_ms"].as_f64().unwrap() > 0.0, "{line}");
        assert!(!fields["detail"].as_str().unwrap().is_empty(), "{line}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_in_every_layer_are_logged_and_those_of_a_stream_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut server =
        Server::start_json(folder.path(), &["--limits-streams-per-player", "1", "--drain-limit-ms", "3000"]);
    let client = server.client();
    client.mutate(new_mutation_context(), create_named("chest")).await.unwrap();
    let mut rpc = InventoryServiceClient::new(channel(&server));
    let watch = || v1::SubscribeInventoryRequest {
        inventories: vec![v1::Watch { inventory_id: "chest".into(), ..v1::Watch::default() }],
        ..v1::SubscribeInventoryRequest::default()
    };
    let mut open = rpc.subscribe_inventory(named(watch())).await.unwrap().into_inner();
    open.message().await.unwrap();
    // Too many streams; rejected by the rules; invalid identity.
    rpc.subscribe_inventory(named(watch())).await.unwrap_err();
    client.mutate(new_mutation_context(), remove("chest", "coal", 1)).await.unwrap_err();
    let mut nobody = tonic::Request::new(get("chest"));
    nobody.metadata_mut().insert("slotcast-caller", MetadataValue::try_from("x".repeat(200)).unwrap());
    rpc.get_inventory(nobody).await.unwrap_err();
    // A method that does not exist.
    let mut raw = tonic::client::Grpc::new(channel(&server));
    raw.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/slotcast.v1.InventoryService/AddItm");
    let codec = tonic_prost::ProstCodec::<v1::GetInventoryRequest, v1::GetInventoryResponse>::default();
    let status = raw.unary(tonic::Request::new(get("chest")), path, codec).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    assert!(!status.message().is_empty());
    tokio::task::block_in_place(|| {
        let refused = lines(&server, "call refused", 4);
        let reasons: Vec<_> =
            refused.iter().map(|line| line["fields"]["reason"].as_str().unwrap_or_default()).collect();
        assert_eq!(reasons, ["TOO_MANY_STREAMS", "NOT_ENOUGH", "INVALID_ARGUMENT", "UNKNOWN_METHOD"]);
        assert_eq!(refused[1]["fields"]["inventory"], "chest");
        assert_eq!(refused[3]["fields"]["method"], "/slotcast.v1.InventoryService/AddItm");
        server.signal("-TERM");
    });
    while open.message().await.is_ok_and(|message| message.is_some()) {}
    tokio::task::block_in_place(|| {
        server.wait();
        let ended = lines(&server, "call refused", 5);
        let last = &ended.last().unwrap()["fields"];
        assert_eq!((&last["reason"], &last["player"]), (&"DRAINING".into(), &"steve".into()));
        assert!(last["method"].as_str().unwrap().ends_with("/SubscribeInventory"));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_json_format_every_line_is_json_and_the_first_contains_the_version() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start_json(folder.path(), &["--log-access", "all"]);
    server.client().mutate(new_mutation_context(), create_named("chest")).await.unwrap();
    tokio::task::block_in_place(|| {
        server.signal("-TERM");
        assert!(server.wait().success());
        let log = server.json_log();
        assert_eq!(log[0]["fields"]["version"], env!("CARGO_PKG_VERSION"), "{}", log[0]);
        let listening = lines(&server, "listening", 1);
        assert_eq!(listening[0]["fields"]["address"].as_str(), Some(server.uri.as_str()));
        let ended = lines(&server, "call ended", 1);
        assert_eq!((&ended[0]["fields"]["status"], &ended[0]["fields"]["caller"]), (&"OK".into(), &"test".into()));
        assert_eq!(server.line(), "", "nothing else is printed");

        // A server that cannot start.
        std::fs::write(folder.path().join("data").join("slotcast.db"), "nonsense").unwrap();
        let mut server = Server::spawn(folder.path(), &["--log-format", "json"]);
        assert!(!server.wait().success());
        let last = server.json_log().pop().unwrap();
        assert_eq!(
            (last["level"].as_str(), last["fields"]["message"].as_str()),
            (Some("ERROR"), Some("the server failed"))
        );
        assert!(last["fields"]["error"].as_str().unwrap().contains("slotcast.db"), "{last}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_failed_calls_is_logged_in_few_lines_with_the_number_of_suppressed_lines() {
    const CALLS: usize = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_json(folder.path(), &[]);
    let mut rpc = InventoryServiceClient::new(channel(&server));
    let began = Instant::now();
    for _ in 0..CALLS {
        rpc.get_inventory(get("nowhere")).await.unwrap_err();
    }
    // Time under test: log lines are limited per second; this is the first line of the next second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    rpc.get_inventory(get("nowhere")).await.unwrap_err();
    let seconds = began.elapsed().as_secs() as usize + 2;
    tokio::task::block_in_place(|| {
        let counted = |refused: &[Value]| -> u64 {
            refused.iter().map(|line| 1 + line["fields"]["suppressed"].as_u64().unwrap_or(0)).sum()
        };
        let end = Instant::now() + WAIT;
        let mut refused = lines(&server, "call refused", 10);
        while counted(&refused) < CALLS as u64 + 1 && Instant::now() < end {
            refused = lines(&server, "call refused", 10);
        }
        assert_eq!(counted(&refused), CALLS as u64 + 1, "each call is a line or counted by one");
        assert!(refused.len() <= 10 * seconds, "{} lines in {seconds} s", refused.len());
    });
}

/// Sends a request as plain bytes, and returns the reply.
fn answer(address: &str, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A reset after the reply also ends the connection.
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn requests_of_an_unknown_protocol_get_an_explanation_and_are_logged_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_json(folder.path(), &[]);
    let address = server.uri.strip_prefix("http://").unwrap();
    const PATH: &str = "/slotcast.v1.InventoryService/GetInventory";
    for (head, status, text) in [
        ("GET / HTTP/1.1".to_owned(), 405, "use POST"),
        ("GET / HTTP/1.0".to_owned(), 405, "use POST"),
        (format!("POST {PATH} HTTP/1.1\r\ncontent-type: text/plain"), 415, "application/json"),
        (format!("POST {PATH} HTTP/1.1\r\ncontent-type: application/grpc"), 505, "gRPC requires HTTP/2"),
        (format!("OPTIONS {PATH} HTTP/1.1"), 405, "use POST"),
        (format!("OPTIONS {PATH} HTTP/1.1\r\norigin: https://game.example"), 403, "web.origins"),
    ] {
        let answer = answer(address, format!("{head}\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes());
        assert!(answer.contains(&format!(" {status} ")) && answer.contains(text), "{head:?}: {answer:?}");
        assert!(!answer.contains("access-control"), "{head:?}: {answer:?}");
    }
    let refused = lines(&server, "call refused", 6);
    let reasons: Vec<_> = refused.iter().map(|line| line["fields"]["reason"].as_str().unwrap_or_default()).collect();
    assert_eq!(reasons, [&["UNSUPPORTED_PROTOCOL"; 5][..], &["ORIGIN_NOT_ALLOWED"]].concat());
    assert!(refused.iter().all(|line| line["fields"]["peer"].as_str().unwrap().starts_with("127.0.0.1:")));
    let metrics = answer_of_admin(&server, "GET", "/metrics");
    assert!(metrics.contains("slotcast_refusals_total{reason=\"UNSUPPORTED_PROTOCOL\"} 5"), "{metrics}");
    assert!(!metrics.contains("error_type"), "the server is not to blame: {metrics}");
}

fn answer_of_admin(server: &Server, method: &str, path: &str) -> String {
    let address = server.admin.strip_prefix("http://").unwrap();
    answer(address, format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_serves_its_pages_and_grpc_health_and_returns_404_or_405_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    tokio::task::block_in_place(|| {
        let end = Instant::now() + WAIT;
        while !answer_of_admin(&server, "GET", "/readyz").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < end, "it does not become ready");
        }
        for path in ["/metrics", "/livez", "/readyz"] {
            assert!(answer_of_admin(&server, "GET", path).starts_with("HTTP/1.1 200"), "{path}");
            let posted = answer_of_admin(&server, "POST", path);
            assert!(posted.starts_with("HTTP/1.1 405") && posted.ends_with("use GET\n"), "{path}: {posted}");
        }
        for path in
            ["/healthz", "/", "/livez/", "/metrics2", "/slotcast.v1.InventoryService/GetInventory", "/grpc.health.v1"]
        {
            for method in ["GET", "POST", "PUT", "HEAD"] {
                let missing = answer_of_admin(&server, method, path);
                assert!(missing.starts_with("HTTP/1.1 404"), "{method} {path}: {missing}");
                assert!(method == "HEAD" || missing.contains("/livez and /readyz"), "{method} {path}: {missing}");
            }
        }
        // An HTTP probe of a gRPC path.
        let probe = answer_of_admin(&server, "GET", "/grpc.health.v1.Health/Check");
        assert!(!probe.starts_with("HTTP/1.1 200"), "{probe}");
    });
    let channel = Endpoint::from_shared(server.admin.clone()).unwrap().connect_lazy();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let reply = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(reply.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    let elsewhere = InventoryServiceClient::new(channel).get_inventory(get("chest")).await.unwrap_err();
    assert_eq!(elsewhere.code(), tonic::Code::Unimplemented);
    assert!(elsewhere.message().contains("gRPC health"), "{elsewhere:?}");
}
