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
/// Maximum time until the first request of a connection, and for the head of a request to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Pause after a connection could not be accepted, because a missing resource does not become available immediately.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const GRPC_TYPE: &str = "application/grpc";
const PAGES: &str = "this port has /metrics, /livez and /readyz, and gRPC health (grpc.health.v1.Health)";
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The readiness of the service for calls. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Starting,
    Serving,
    Draining,
    /// The outcome of a commit is unknown, or the store has stopped. The service must be restarted.
    StoreFailed,
}

impl Readiness {
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    pub fn get(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            2 => Phase::Draining,
            _ => Phase::StoreFailed,
        }
    }

    /// Returns whether the service drains or its store has failed.
    pub fn is_ending(&self) -> bool {
        matches!(self.get(), Phase::Draining | Phase::StoreFailed)
    }
}

/// Returns a router with all pages and the gRPC service in `health`. Any other request gets an error that lists them.
pub fn router(telemetry: Telemetry, readiness: Readiness, health: axum::Router) -> axum::Router {
    let pages = axum::Router::new()
        .route("/metrics", get(metrics))
        .with_state(telemetry)
        .merge(axum::Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(readiness));
    // A probe of a nonexistent page must fail.
    health.merge(pages).method_not_allowed_fallback(method_not_allowed).fallback(not_found)
}

async fn not_found(headers: HeaderMap) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with(GRPC_TYPE) {
        // UNIMPLEMENTED, as gRPC clients expect.
        let answer = [("content-type", GRPC_TYPE), ("grpc-status", "12"), ("grpc-message", PAGES)];
        return answer.into_response();
    }
    (StatusCode::NOT_FOUND, format!("{PAGES}\n")).into_response()
}

async fn method_not_allowed() -> (StatusCode, &'static str) {
    (StatusCode::METHOD_NOT_ALLOWED, "use GET\n")
}

/// Accepts connections and serves them; never returns.
pub async fn serve(listener: Arc<TcpListener>, router: axum::Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropping the set aborts the connections; it is dropped together with this future.
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                connections.spawn(async move {
                    connection(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to the admin listener could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: axum::Router) {
    let has_asked = Arc::new(AtomicBool::new(false));
    let asked = has_asked.clone();
    let router = router.layer(axum::middleware::map_request(move |request: axum::extract::Request| {
        asked.store(true, Ordering::Relaxed);
        std::future::ready(request)
    }));
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let served = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let silent = async {
        tokio::time::sleep(HEAD_TIMEOUT).await;
        if has_asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = served => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the admin listener ended early");
            }
        }
        () = silent => {}
    }
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    // A scrape blocks, because it takes locks of its sources.
    match tokio::task::spawn_blocking(move || telemetry.scrape()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Ok(Err(error)) => {
            tracing::error!(%error, "the meters could not be written");
            (StatusCode::INTERNAL_SERVER_ERROR, "the meters could not be written; see the log\n").into_response()
        }
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the meters could not be read\n").into_response(),
    }
}

async fn livez(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    match readiness.get() {
        Phase::Starting | Phase::Serving | Phase::Draining => (StatusCode::OK, "alive\n"),
        Phase::StoreFailed => (StatusCode::SERVICE_UNAVAILABLE, STORE_FAILED),
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    match readiness.get() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting: not yet open for calls\n"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining: calls in flight are answered, no new ones\n"),
        Phase::StoreFailed => (StatusCode::SERVICE_UNAVAILABLE, STORE_FAILED),
    }
}

const STORE_FAILED: &str =
    "the store has failed and nothing more is written: the log says why; check the disk, then restart\n";

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    fn connected() -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let router = router(Telemetry::default(), Readiness::default(), axum::Router::new());
        tokio::spawn(connection(theirs, router));
        ours
    }

    /// Returns how long the connection stays open without further requests, and the received text.
    async fn lasts(mut stream: DuplexStream) -> (Duration, String) {
        let (began, mut said) = (Instant::now(), Vec::new());
        // An error also means that the connection has ended.
        let _ = stream.read_to_end(&mut said).await;
        (began.elapsed(), String::from_utf8_lossy(&said).into_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_never_ends_a_head_is_hung_up_on() {
        for said in ["", "P", "PRI * HTTP/2.0\r\n", "GET /livez HTTP/1.1\r\nhost: a\r\n"] {
            let mut stream = connected();
            stream.write_all(said.as_bytes()).await.expect("it is open");
            let (lasted, _) = lasts(stream).await;
            assert!(lasted <= 2 * HEAD_TIMEOUT, "{said:?}: {lasted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_answered_and_says_nothing_more_is_hung_up_on() {
        let mut stream = connected();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("it is open");
        let (lasted, said) = lasts(stream).await;
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("alive\n"), "{said}");
        assert!(lasted <= 2 * HEAD_TIMEOUT, "{lasted:?}");
    }

    #[tokio::test]
    async fn readiness_is_told_in_a_sentence() {
        for (phase, ready, live) in [
            (Phase::Starting, 503, 200),
            (Phase::Serving, 200, 200),
            (Phase::Draining, 503, 200),
            (Phase::StoreFailed, 503, 503),
        ] {
            let readiness = Readiness::default();
            readiness.set(phase);
            let (is_ready, said) = readyz(State(readiness.clone())).await;
            let (is_live, _) = livez(State(readiness)).await;
            assert_eq!((is_ready.as_u16(), is_live.as_u16()), (ready, live), "{phase:?}");
            assert!(said.ends_with('\n') && said.len() > 5);
        }
    }
}
