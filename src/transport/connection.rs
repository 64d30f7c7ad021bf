//! The life cycle of one connection: TLS handshake, HTTP/2, and a graceful shutdown that loses no call.

use super::connection_limiter::ConnectionPermit;
use super::drain::{ConnectionDrain, EndStreamsOnDrop, GracePeriod};
use super::io::TimeoutIo;
use super::service::{Connection, ConnectionService, Peer, PeerCertificate};
use super::{BoxError, ConnectionRefusal, HttpService, TransportSettings, TransportStatistics, plaintext, tls};
use crate::certificate_error;
use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, ServerConnection};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Send-buffer threshold of a stream, in bytes: while at least this much is buffered, the response body is not polled.
/// At most one message is buffered, whatever its size, because a message that is computed later is newer.
const SEND_BUFFER_BYTES: usize = 1;
/// Maximum size of the data that TLS buffers for a connection while the system does not accept it, in bytes.
const TLS_UNSENT_BYTES_MAX: usize = 16 * 1024;
/// Minimum size of the buffer into which hyper reads the head of an HTTP/1.1 request, in bytes.
const HTTP1_BYTES_MIN: usize = 8 * 1024;
/// Maximum time until the whole head of the next HTTP/1.1 request has arrived, also if the connection is idle until then.
const HTTP1_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of streams that the client has reset before the server accepted them, and maximum number of streams
/// that the server has reset because of an error. More are an attack (rapid reset).
const RESETS_MAX: usize = 256;
/// A draining connection is closed when it was idle for this long.
const IDLE_TIME: Duration = Duration::from_secs(1);
/// Number of consecutive checks that must find a draining connection idle.
const IDLE_CHECKS: u32 = 4;
/// A draining connection is idle if no call is in progress and fewer bytes than this are sent between two checks;
/// keepalive needs a few.
const IDLE_BYTES: u64 = 128;
/// A draining connection is closed after this time in any case.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings and state that all connections share.
pub(super) struct ConnectionContext {
    pub settings: TransportSettings,
    pub http: auto::Builder<TokioExecutor>,
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    pub statistics: Arc<TransportStatistics>,
    /// Cancelled when the server drains.
    pub drain: CancellationToken,
}

/// The activity of a connection: its calls in progress and the bytes written.
#[derive(Debug, Default)]
pub(super) struct ConnectionActivity {
    calls: AtomicU32,
    bytes_written: AtomicU64,
}

/// Returns a builder that serves HTTP/2 and HTTP/1.1.
pub(super) fn http(settings: &TransportSettings) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_IDLE_TIMEOUT)
        .max_buf_size(HTTP1_BYTES_MIN.max(settings.header_bytes_max as usize));
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(settings.keepalive_interval).filter(|interval| !interval.is_zero()))
        .keep_alive_timeout(settings.keepalive_timeout)
        .max_concurrent_streams(settings.streams_per_connection_max)
        .max_header_list_size(settings.header_bytes_max)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX);
    http
}

/// Serves a connection until it ends or has been shut down because the server drains.
pub(super) async fn run<S, B>(
    context: Arc<ConnectionContext>,
    service: S,
    socket: TcpStream,
    address: SocketAddr,
    _permit: ConnectionPermit,
) where
    S: HttpService<B>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let Some(tls) = &context.tls else {
        return context.serve_http(context.http.clone(), service, socket, Peer { address, certificate: None }).await;
    };
    let handshake = tokio::select! {
        () = context.drain.cancelled() => return,
        handshake = tokio::time::timeout(context.settings.handshake_timeout, handshake(tls, socket)) => handshake,
    };
    let problem = match handshake {
        Ok(Ok(stream)) => {
            let http = context.http.clone();
            let http = if tls::negotiated_http2(&stream) { http.http2_only() } else { http.http1_only() };
            let certificate = tls::client_certificate(&stream).map(PeerCertificate);
            return context.serve_http(http, service, stream, Peer { address, certificate }).await;
        }
        Ok(Err(error)) => certificate_error::server_handshake_error(&error),
        Err(_) => "timeout".to_owned(),
    };
    context.statistics.record_refusal(
        ConnectionRefusal::Handshake,
        address,
        &format!("TLS handshake failed: {problem}"),
    );
}

/// Performs a TLS handshake with the current certificate. Replies with an HTTP error to an HTTP request in plaintext.
async fn handshake(tls: &ArcSwap<ServerConfig>, mut socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if socket.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        // The first byte is that of an HTTP method; a TLS record starts with its content type, 22.
        plaintext::reply(&mut socket).await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "plaintext HTTP request"));
    }
    let set_buffer_limit = |tls: &mut ServerConnection| tls.set_buffer_limit(Some(TLS_UNSENT_BYTES_MAX));
    TlsAcceptor::from(tls.load_full()).accept_with(socket, set_buffer_limit).await
}

impl ConnectionContext {
    async fn serve_http<T, S, B>(&self, http: auto::Builder<TokioExecutor>, service: S, io: T, peer: Peer)
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
        S: HttpService<B>,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let settings = &self.settings;
        let (address, now) = (peer.address, Instant::now());
        let grace = settings.connection_age.map(|age| grace_period(now, age, settings.connection_age_grace));
        let drain = Arc::new(ConnectionDrain::new(grace));
        // When this function returns, the streams have no reader.
        let _end_streams_on_return = EndStreamsOnDrop(drain.clone());
        let shared = Connection::new(peer, drain.clone());
        let io = TimeoutIo::new(
            io,
            shared.clone(),
            now + settings.preface_timeout,
            settings.stall_limit(),
            self.statistics.clone(),
        );
        let service = ConnectionService { inner: service, connection: shared.clone() };
        let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            end = connection.as_mut() => return self.handle_end(address, end),
            () = self.drain.cancelled() => {}
            () = reaches_age(grace.as_ref()) => {
                connection.as_mut().graceful_shutdown();
                drain.handle_goaway_sent();
                tokio::select! {
                    end = connection.as_mut() => return self.handle_end(address, end),
                    () = self.drain.cancelled() => {}
                    () = tokio::time::sleep(settings.connection_age_grace) => {}
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        drain.end_streams();
        tokio::select! {
            end = connection.as_mut() => self.handle_end(address, end),
            () = shared.activity().until_idle() => tracing::debug!(%address, "closing a connection that the client keeps open"),
        }
    }

    fn handle_end(&self, address: SocketAddr, ended: Result<(), BoxError>) {
        let Err(error) = ended else { return };
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            self.statistics.record_refusal(
                ConnectionRefusal::Preface,
                address,
                "neither HTTP/2 nor an HTTP/1.1 request",
            );
        }
        tracing::debug!(%address, error = &*error as &dyn std::error::Error, "connection failed");
    }
}

/// Returns the grace period of a connection that starts at `now`. It starts after `age`, randomly shortened or extended
/// by up to a tenth, so that connections that started together do not end together.
fn grace_period(now: Instant, age: Duration, duration: Duration) -> GracePeriod {
    let start = now + age.mul_f64(0.9 + 0.2 * fastrand::f64());
    GracePeriod { start, duration }
}

/// Waits until the grace period starts. Never returns if there is none.
async fn reaches_age(grace: Option<&GracePeriod>) {
    match grace {
        Some(grace) => tokio::time::sleep_until(grace.start).await,
        None => std::future::pending().await,
    }
}

impl ConnectionActivity {
    pub fn start_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end_call(&self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn add_written(&self, bytes: usize) {
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Waits until a draining connection is no longer worth waiting for, at most for [`DRAIN_TIMEOUT`]: no call is in
    /// progress and almost nothing was sent for [`IDLE_TIME`]. Streams that are still open then have nothing to send,
    /// a reader that does not read, or a handler that does not end.
    async fn until_idle(&self) {
        let end = Instant::now() + DRAIN_TIMEOUT;
        let mut idle_checks = 0;
        while idle_checks < IDLE_CHECKS && Instant::now() < end {
            let before = self.bytes_written.load(Ordering::Relaxed);
            tokio::time::sleep(IDLE_TIME / IDLE_CHECKS).await;
            let sent = self.bytes_written.load(Ordering::Relaxed).wrapping_sub(before);
            let is_idle = self.calls.load(Ordering::Relaxed) == 0 && sent < IDLE_BYTES;
            idle_checks = if is_idle { idle_checks + 1 } else { 0 };
        }
    }
}
