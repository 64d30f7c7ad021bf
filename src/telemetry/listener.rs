//! The admin listener for operators and orchestrators: `/metrics`, `/livez`, `/readyz` and gRPC health, on a separate
//! plaintext port.

use super::Telemetry;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Maximum number of open connections; further connections wait.
const CONNECTIONS_MAX: usize = 64;
/// Maximum number of concurrent requests on one connection.
const STREAMS_MAX: u32 = 16;
/// Maximum time until the first request of a connection, and for the headers of a request to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Pause after a connection could not be accepted, because a missing resource does not become available immediately.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const GRPC_TYPE: &str = "application/grpc";
const AVAILABLE_PATHS: &str = "this port serves /metrics, /livez and /readyz, and gRPC health (grpc.health.v1.Health)";
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The current [`ServingState`] of the service. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

/// The stage of the service between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ServingState {
    Starting,
    Serving,
    Draining,
    /// The outcome of a commit is unknown, or the store has stopped. The service must be restarted.
    StoreFailed,
}

impl Readiness {
    pub fn set(&self, state: ServingState) {
        self.0.store(state as u8, Ordering::Relaxed);
    }

    pub fn get(&self) -> ServingState {
        match self.0.load(Ordering::Relaxed) {
            0 => ServingState::Starting,
            1 => ServingState::Serving,
            2 => ServingState::Draining,
            _ => ServingState::StoreFailed,
        }
    }

    /// Returns whether the service is draining or its store has failed.
    pub fn is_draining_or_failed(&self) -> bool {
        matches!(self.get(), ServingState::Draining | ServingState::StoreFailed)
    }
}

/// Returns a router with all endpoints and the gRPC service in `health`. Any other request gets an error that lists
/// them.
pub fn router(telemetry: Telemetry, readiness: Readiness, health: axum::Router) -> axum::Router {
    let endpoints = axum::Router::new()
        .route("/metrics", get(metrics))
        .with_state(telemetry)
        .merge(axum::Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(readiness));
    // A probe of a nonexistent endpoint must fail.
    health.merge(endpoints).method_not_allowed_fallback(method_not_allowed).fallback(not_found)
}

async fn not_found(headers: HeaderMap) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with(GRPC_TYPE) {
        // UNIMPLEMENTED, as gRPC clients expect.
        let reply = [("content-type", GRPC_TYPE), ("grpc-status", "12"), ("grpc-message", AVAILABLE_PATHS)];
        return reply.into_response();
    }
    (StatusCode::NOT_FOUND, format!("{AVAILABLE_PATHS}\n")).into_response()
}

async fn method_not_allowed() -> (StatusCode, &'static str) {
    (StatusCode::METHOD_NOT_ALLOWED, "use GET\n")
}

/// Accepts connections and serves them; never returns.
pub async fn serve(listener: Arc<TcpListener>, router: axum::Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropping the set aborts the connections; it is dropped together with this future.
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    serve_connection(stream, router).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to the admin listener");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: axum::Router) {
    let has_sent_request = Arc::new(AtomicBool::new(false));
    let sent_request = has_sent_request.clone();
    let router = router.layer(axum::middleware::map_request(move |request: axum::extract::Request| {
        sent_request.store(true, Ordering::Relaxed);
        std::future::ready(request)
    }));
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let served = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let no_request = async {
        tokio::time::sleep(HEADER_TIMEOUT).await;
        if has_sent_request.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = served => {
            if let Err(error) = ended {
                tracing::debug!(%error, "admin connection failed");
            }
        }
        () = no_request => {}
    }
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    // A scrape blocks, because it takes locks of its sources.
    match tokio::task::spawn_blocking(move || telemetry.scrape()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, "cannot encode the metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics; see the log\n").into_response()
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "cannot read the metrics; see the log\n").into_response(),
    }
}

async fn livez(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    match readiness.get() {
        ServingState::Starting | ServingState::Serving | ServingState::Draining => (StatusCode::OK, "alive\n"),
        ServingState::StoreFailed => (StatusCode::SERVICE_UNAVAILABLE, STORE_FAILED),
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    match readiness.get() {
        ServingState::Serving => (StatusCode::OK, "ready\n"),
        ServingState::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting: not accepting calls yet\n"),
        ServingState::Draining => {
            (StatusCode::SERVICE_UNAVAILABLE, "draining: finishing calls in progress, accepting no new ones\n")
        }
        ServingState::StoreFailed => (StatusCode::SERVICE_UNAVAILABLE, STORE_FAILED),
    }
}

const STORE_FAILED: &str =
    "the store has failed and accepts no writes: see the log, check the disk, then restart the server\n";

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    fn connect() -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let router = router(Telemetry::default(), Readiness::default(), axum::Router::new());
        tokio::spawn(serve_connection(theirs, router));
        ours
    }

    /// Reads until the connection is closed. Returns how long that took, and the received text.
    async fn read_to_end(mut stream: DuplexStream) -> (Duration, String) {
        let (start, mut received) = (Instant::now(), Vec::new());
        // An error also means that the connection has ended.
        let _ = stream.read_to_end(&mut received).await;
        (start.elapsed(), String::from_utf8_lossy(&received).into_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_complete_request_is_closed() {
        for sent in ["", "P", "PRI * HTTP/2.0\r\n", "GET /livez HTTP/1.1\r\nhost: a\r\n"] {
            let mut stream = connect();
            stream.write_all(sent.as_bytes()).await.expect("the connection is open");
            let (open_for, _) = read_to_end(stream).await;
            assert!(open_for <= 2 * HEADER_TIMEOUT, "{sent:?}: {open_for:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_idle_after_its_request_is_closed() {
        let mut stream = connect();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("the connection is open");
        let (open_for, received) = read_to_end(stream).await;
        assert!(received.starts_with("HTTP/1.1 200") && received.ends_with("alive\n"), "{received}");
        assert!(open_for <= 2 * HEADER_TIMEOUT, "{open_for:?}");
    }

    #[tokio::test]
    async fn each_state_has_its_statuses_and_a_text() {
        for (state, ready_status, live_status) in [
            (ServingState::Starting, 503, 200),
            (ServingState::Serving, 200, 200),
            (ServingState::Draining, 503, 200),
            (ServingState::StoreFailed, 503, 503),
        ] {
            let readiness = Readiness::default();
            readiness.set(state);
            let (ready, text) = readyz(State(readiness.clone())).await;
            let (live, _) = livez(State(readiness)).await;
            assert_eq!((ready.as_u16(), live.as_u16()), (ready_status, live_status), "{state:?}");
            assert!(text.ends_with('\n') && text.len() > 5);
        }
    }
}
