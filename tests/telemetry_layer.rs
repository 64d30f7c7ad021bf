//! The telemetry layer: passes real bodies through it, and checks the metrics afterwards.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use slotcast::middleware::telemetry::ResponseBody;
use slotcast::middleware::{DeadlineLayer, TelemetryLayer};
use slotcast::statistics::{EngineStatistics, MethodCounts, StreamStatistics};
use slotcast::status;
use slotcast::telemetry::{MetricSources, Telemetry};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, ServiceExt, service_fn};

const ADD: &str = "slotcast.v1.InventoryService/AddItem";
const SUBSCRIBE: &str = "slotcast.v1.InventoryService/SubscribeInventory";

/// The counts of calls and of opened streams.
const COUNTS: [&str; 2] = ["rpc_server_call_duration_seconds_count", "slotcast_stream_duration_seconds_count"];

/// A layer and its metrics.
struct Measured {
    layer: TelemetryLayer,
    telemetry: Telemetry,
}

type Handled = Result<Response<Body>, Infallible>;

impl Measured {
    fn new() -> Self {
        let telemetry = Telemetry::default();
        let layer = TelemetryLayer::new(telemetry.clone());
        telemetry.register(MetricSources {
            reloads: [("certificate", Arc::default()), ("jwks", Arc::default()), ("config", Arc::default())],
            rpc: layer.statistics().clone(),
            streams: Arc::new(StreamStatistics::default()),
            transport: telemetry.transport().clone(),
            engine: Arc::new(EngineStatistics::default),
            store: Arc::new(|| None),
            is_ending: Arc::new(|| false),
        });
        Self { layer, telemetry }
    }

    /// Makes a call whose request has these body frames. The handler reads all of them, then replies with `answer`.
    async fn call(&self, method: &str, sent: Vec<Bytes>, answer: Response<Body>) -> Response<ResponseBody> {
        let answer = Arc::new(Mutex::new(Some(answer)));
        let handler = service_fn(move |request: Request<_>| {
            let answer = answer.clone();
            async move {
                read_all(request.into_body()).await;
                Handled::Ok(answer.lock().unwrap().take().unwrap())
            }
        });
        self.layer.layer(handler).oneshot(request(method, sent)).await.unwrap()
    }

    fn counts(&self, method: &str) -> MethodCounts {
        self.layer.statistics().counts().find(|(name, _)| *name == method).unwrap().1
    }

    /// Returns the number of calls of a method that ended with a status, from the scraped metrics.
    fn ended(&self, method: &str, status: &str) -> u64 {
        let text = self.telemetry.scrape().unwrap();
        let labels = [format!("rpc_method=\"{method}\""), format!("rpc_response_status_code=\"{status}\"")];
        let counts = text.lines().filter(|line| COUNTS.iter().any(|count| line.starts_with(count)));
        let found: Vec<_> = counts.filter(|line| labels.iter().all(|label| line.contains(label))).collect();
        found.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Returns the number of all ended calls, from the scraped metrics.
    fn all_ended(&self) -> u64 {
        let text = self.telemetry.scrape().unwrap();
        let counts = text.lines().filter(|line| COUNTS.iter().any(|count| line.starts_with(count)));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn failures(&self) -> Vec<(&'static str, u64)> {
        self.layer.statistics().failures().filter(|(_, calls)| *calls > 0).collect()
    }
}

fn request(method: &str, sent: Vec<Bytes>) -> Request<Body> {
    let frames = sent.into_iter().map(|bytes| Ok::<_, Status>(Frame::data(bytes)));
    let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
    Request::builder().uri(format!("http://localhost/{method}")).body(body).unwrap()
}

async fn read_all<B: http_body::Body>(body: B) {
    let mut body = Box::pin(body);
    while poll_fn(|context| body.as_mut().poll_frame(context)).await.is_some() {}
}

fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend((length as u32).to_be_bytes());
    bytes.resize(5 + length, 1);
    bytes
}

fn trailers(status: &str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_str(status).unwrap());
    Frame::trailers(trailers)
}

fn answer(frames: Vec<Frame<Bytes>>) -> Response<Body> {
    let frames = frames.into_iter().map(Ok::<_, Status>);
    Response::new(Body::new(StreamBody::new(tokio_stream::iter(frames))))
}

#[tokio::test]
async fn a_call_refused_with_headers_only_is_counted_with_its_reason() {
    let measured = Measured::new();
    let refused = status::invalid_caller().into_http();
    let response = measured.call(ADD, vec![message(3).into()], refused).await;
    // An empty body need not be read.
    assert_eq!(measured.ended(ADD, "INVALID_ARGUMENT"), 1);
    drop(response);
    assert_eq!((measured.ended(ADD, "INVALID_ARGUMENT"), measured.all_ended()), (1, 1), "the call is counted once");
    assert_eq!(measured.failures(), [("INVALID_ARGUMENT", 1)]);
    assert_eq!(measured.counts(ADD), MethodCounts { is_stream: false, started: 1, received: 1, sent: 0, active: 0 });
}

#[tokio::test]
async fn an_error_in_the_trailers_is_counted_with_its_reason() {
    let measured = Measured::new();
    let mut headers = HeaderMap::new();
    status::draining().add_header(&mut headers).unwrap();
    let frames = vec![Frame::data(message(9).into()), Frame::trailers(headers)];
    let response = measured.call(SUBSCRIBE, vec![message(1).into()], answer(frames)).await;
    assert_eq!((measured.all_ended(), measured.counts(SUBSCRIBE).active), (0, 1), "the stream has not ended");
    read_all(response.into_body()).await;
    assert_eq!((measured.ended(SUBSCRIBE, "UNAVAILABLE"), measured.all_ended()), (1, 1));
    let text = measured.telemetry.scrape().unwrap();
    assert!(!text.contains("rpc_server_call_duration_seconds_count"), "a stream is not counted as a call: {text}");
    assert_eq!(measured.failures(), [("DRAINING", 1)]);
}

#[tokio::test]
async fn a_refused_stream_counts_as_a_call_and_a_server_error_as_a_fault() {
    let measured = Measured::new();
    measured.call(SUBSCRIBE, vec![], status::draining().into_http()).await;
    let text = measured.telemetry.scrape().unwrap();
    assert!(text.contains("error_type=\"UNAVAILABLE\""), "a server error is a fault: {text}");
    assert!(!text.contains("slotcast_stream_duration_seconds_count"), "the stream was never opened: {text}");
    assert_eq!(measured.ended(SUBSCRIBE, "UNAVAILABLE"), 1);
}

#[tokio::test]
async fn methods_without_calls_have_no_series_and_the_process_and_build_metrics_exist() {
    let measured = Measured::new();
    let series = |name: &str| {
        let text = measured.telemetry.scrape().unwrap();
        text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(series("slotcast_rpc_").len(), 0);
    measured.call(ADD, vec![message(1).into()], answer(vec![trailers("0")])).await;
    assert_eq!(series("slotcast_rpc_calls_active").len(), 1);
    assert_eq!(series("slotcast_rpc_messages_total").len(), 0, "only messages of streams are counted");
    let build = series("slotcast_build_info");
    assert!(build.len() == 1 && build[0].contains(env!("CARGO_PKG_VERSION")) && build[0].ends_with(" 1"), "{build:?}");
    for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"] {
        let process = series(&format!("process_{name} "));
        assert_eq!(process.len(), 1, "process_{name}");
        let value: f64 = process[0].rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value > 0.0 || name == "cpu_seconds_total", "{process:?}");
    }
}

#[tokio::test]
async fn messages_are_counted_regardless_of_how_they_are_split_into_frames() {
    let measured = Measured::new();
    let all: Vec<u8> = [0, 1, 700, 3].into_iter().flat_map(message).collect();
    let cut = |at: &[usize]| {
        let ends = at.iter().copied().chain([all.len()]);
        let starts = [0].into_iter().chain(at.iter().copied());
        starts.zip(ends).map(|(from, to)| Bytes::copy_from_slice(&all[from..to])).collect::<Vec<_>>()
    };
    // In one frame, split within prefixes and messages, and split exactly between messages.
    for (calls, at) in [&[][..], &[3, 6, 10, 14, 300], &[5, 11, 716]].into_iter().enumerate() {
        let mut frames: Vec<_> = cut(at).into_iter().map(Frame::data).collect();
        frames.push(trailers("0"));
        let response = measured.call(SUBSCRIBE, cut(at), answer(frames)).await;
        read_all(response.into_body()).await;
        let messages = 4 * (calls as u64 + 1);
        assert_eq!(
            measured.counts(SUBSCRIBE),
            MethodCounts { is_stream: true, started: calls as u64 + 1, received: messages, sent: messages, active: 0 }
        );
    }
    assert_eq!((measured.ended(SUBSCRIBE, "OK"), measured.all_ended()), (3, 3));
    assert!(measured.failures().is_empty());
}

#[tokio::test]
async fn a_dropped_call_counts_as_cancelled_before_its_reply_and_during_a_stream() {
    let measured = Measured::new();
    let handler = service_fn(|_: Request<_>| pending::<Handled>());
    let mut call = Box::pin(measured.layer.layer(handler).oneshot(request(ADD, vec![])));
    assert!(futures_util::poll!(&mut call).is_pending());
    assert_eq!(measured.counts(ADD).active, 1);
    drop(call);
    assert_eq!((measured.ended(ADD, "CANCELLED"), measured.counts(ADD).active), (1, 0));

    let frames = vec![Frame::data(message(1).into()), Frame::data(message(1).into()), trailers("0")];
    let mut body = measured.call(SUBSCRIBE, vec![], answer(frames)).await.into_body();
    poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap().unwrap();
    drop(body);
    assert_eq!((measured.ended(SUBSCRIBE, "CANCELLED"), measured.all_ended()), (1, 2));
    assert_eq!(
        measured.counts(SUBSCRIBE),
        MethodCounts { is_stream: true, started: 1, received: 0, sent: 1, active: 0 }
    );
}

#[tokio::test]
async fn a_reply_without_a_status_is_not_a_success() {
    let measured = Measured::new();
    let response = measured.call(ADD, vec![], answer(vec![Frame::data(message(1).into())])).await;
    read_all(response.into_body()).await;
    assert_eq!(measured.ended(ADD, "UNKNOWN"), 1);
    let mut not_found = Response::new(Body::empty());
    *not_found.status_mut() = http::StatusCode::NOT_FOUND;
    measured.call(ADD, vec![], not_found).await;
    assert_eq!(measured.ended(ADD, "UNIMPLEMENTED"), 1);
}

/// Case 60 for names instead of sizes: the number of series does not depend on what callers send.
#[tokio::test]
async fn ten_thousand_unknown_methods_and_reasons_count_as_one_of_each() {
    let measured = Measured::new();
    let series = || measured.telemetry.scrape().unwrap().lines().count();
    let one = |n: u64| {
        let details = tonic_types::ErrorDetails::with_error_info(format!("REASON_{n}"), "slotcast", HashMap::new());
        <Status as tonic_types::StatusExt>::with_error_details(tonic::Code::NotFound, "", details).into_http()
    };
    measured.call("nobody.v1.Knows/0", vec![], one(0)).await;
    let before = series();
    for n in 1..10_000 {
        let method = format!("{}.{n}/AddItem{}", fastrand::u64(..), fastrand::u32(..));
        measured.call(&method, vec![], one(n)).await;
    }
    assert_eq!(series(), before);
    assert_eq!((measured.ended("_OTHER", "NOT_FOUND"), measured.all_ended()), (10_000, 10_000));
    assert_eq!(measured.failures(), [("OTHER", 10_000)]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_exceeds_its_deadline_does_not_count_as_cancelled() {
    let measured = Measured::new();
    let never = service_fn(|_: Request<_>| std::future::pending::<Handled>());
    let mut request = request(ADD, vec![]);
    request.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
    let answer = measured.layer.layer(DeadlineLayer.layer(never)).oneshot(request).await.unwrap();
    read_all(answer.into_body()).await;
    assert_eq!((measured.ended(ADD, "DEADLINE_EXCEEDED"), measured.all_ended()), (1, 1));
    assert_eq!(measured.failures(), [("DEADLINE_EXCEEDED", 1)]);
}

#[tokio::test]
async fn calls_that_are_not_grpc_do_not_count_as_faults() {
    let measured = Measured::new();
    let refuse = |status: u16| Response::builder().status(status).body(Body::empty()).unwrap();
    measured.call(ADD, vec![], refuse(415)).await;
    for method in ["grpc.health.v1.Health/Check", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        measured.call(method, vec![], refuse(405)).await;
        assert_eq!(measured.ended(method, "INVALID_ARGUMENT"), 1, "{method}");
    }
    assert_eq!((measured.ended(ADD, "INVALID_ARGUMENT"), measured.all_ended()), (1, 3));
}
