//! The life cycle of one connection: TLS handshake, HTTP/2, and a graceful shutdown that loses no call.

use super::admitted::Admitted;
use super::closing::Phase;
use super::io::Watched;
use super::service::{ConnectionService, Peer, PeerCertificate, UnderWay};
use super::{BoxError, ConnectionRefusal, Serve, TransportSettings, TransportStatistics, plaintext, tls};
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
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, ServerConnection};
use tokio_rustls::server::TlsStream;

/// The size of the data buffered for one stream from which on its body is not polled for more, in bytes. At 1 byte, at
/// most one message is buffered, whatever its size, because a message that is computed later is newer.
const SEND_BUFFER_BYTES: usize = 1;
/// Maximum size of the data that TLS buffers for a connection while the system does not accept it, in bytes.
const TLS_UNSENT_BYTES_MAX: usize = 16 * 1024;
/// Minimum size of the buffer into which hyper reads the head of an HTTP/1.1 request, in bytes.
const HTTP1_BYTES_MIN: usize = 8 * 1024;
/// Maximum number of streams that the client has reset before the server accepted them, and maximum number of streams
/// that the server has reset because of an error. More are an attack (rapid reset).
const RESETS_MAX: usize = 256;
/// An ending connection is cut off when no call is in progress on it and it was quiet for this long.
const QUIET_TIME: Duration = Duration::from_secs(1);
const QUIET_LOOKS: u32 = 4;
/// An ending connection is quiet if fewer bytes than this are sent between two checks; keepalive needs a few.
const QUIET_BYTES: u64 = 128;
/// An ending connection is cut off after this time in any case.
const ENDING_LIMIT: Duration = Duration::from_secs(30);

/// The settings and state that all connections share.
pub(super) struct Common {
    pub settings: TransportSettings,
    pub http: auto::Builder<TokioExecutor>,
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    pub statistics: Arc<TransportStatistics>,
    pub draining: watch::Receiver<bool>,
}

/// The activity of a connection: its calls in progress and the bytes written.
#[derive(Debug, Default)]
pub(super) struct Life {
    calls: AtomicU32,
    written: AtomicU64,
}

/// Returns a builder that serves HTTP/2. It accepts HTTP/1.1 only to reply that this port requires HTTP/2: one request
/// on a connection. The head of that request has the timeout of an HTTP/2 preface and the maximum size of a header
/// list, and its body is not read.
pub(super) fn http(settings: &TransportSettings) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.preface_timeout)
        .max_buf_size(HTTP1_BYTES_MIN.max(settings.header_bytes_max as usize))
        .keep_alive(false);
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

/// Serves a connection until it ends or has been shut down because the service drains.
pub(super) async fn run<S, B>(
    common: Arc<Common>,
    service: S,
    socket: TcpStream,
    address: SocketAddr,
    _admitted: Admitted,
) where
    S: Serve<B>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let Some(tls) = &common.tls else {
        return common.speak(common.http.clone(), service, socket, Peer { address, certificate: None }).await;
    };
    let shaken = tokio::select! {
        () = common.drained() => return,
        shaken = tokio::time::timeout(common.settings.handshake_timeout, handshake(tls, socket)) => shaken,
    };
    let problem = match shaken {
        Ok(Ok(stream)) => {
            // Clients that do not offer h2 get a reply that HTTP/2 is required.
            let http = common.http.clone();
            let http = if tls::speaks_http2(&stream) { http.http2_only() } else { http.http1_only() };
            let certificate = tls::client_certificate(&stream).map(|der| Arc::new(PeerCertificate(der)));
            return common.speak(http, service, stream, Peer { address, certificate }).await;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "not in time".to_owned(),
    };
    common.statistics.refuse(ConnectionRefusal::Handshake, address, &problem);
}

/// Performs a TLS handshake with the current certificate. Replies with an HTTP error to an HTTP request in plaintext.
async fn handshake(tls: &ArcSwap<ServerConfig>, mut socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if socket.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        // The first byte is that of an HTTP method; a TLS record starts with its content type, 22.
        plaintext::answer(&mut socket).await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an HTTP request in plaintext"));
    }
    let bounded = |tls: &mut ServerConnection| tls.set_buffer_limit(Some(TLS_UNSENT_BYTES_MAX));
    TlsAcceptor::from(tls.load_full()).accept_with(socket, bounded).await
}

impl Common {
    async fn speak<T, S, B>(&self, http: auto::Builder<TokioExecutor>, service: S, io: T, peer: Peer)
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
        S: Serve<B>,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let settings = &self.settings;
        let (address, life) = (peer.address, Arc::new(Life::default()));
        let (phase, receiver) = watch::channel(Phase::Open);
        let preface_end = Instant::now() + settings.preface_timeout;
        let stall_limit = settings.keepalive_interval + settings.keepalive_timeout;
        let io = Watched::new(io, life.clone(), address, preface_end, stall_limit, self.statistics.clone());
        let service = ConnectionService { inner: service, peer, phase: receiver, life: life.clone() };
        let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
        let ended = |ended: Result<(), BoxError>| {
            if let Err(error) = ended {
                if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
                    self.statistics.refuse(
                        ConnectionRefusal::Preface,
                        address,
                        "neither HTTP/2 nor a request in HTTP/1.1",
                    );
                }
                tracing::debug!(%address, error = &*error as &dyn std::error::Error, "a connection broke");
            }
        };
        tokio::select! {
            end = connection.as_mut() => return ended(end),
            () = self.drained() => {}
            () = old(settings.connection_age) => {
                connection.as_mut().graceful_shutdown();
                let within = settings.connection_age_grace;
                phase.send_replace(Phase::Old { since: Instant::now(), within });
                tokio::select! {
                    end = connection.as_mut() => return ended(end),
                    () = self.drained() => {}
                    () = tokio::time::sleep(within) => {}
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        phase.send_replace(Phase::Ending);
        tokio::select! {
            end = connection.as_mut() => ended(end),
            () = life.quiet() => tracing::debug!(%address, "a connection that did not end by itself is cut off"),
        }
    }

    async fn drained(&self) {
        // A dropped sender ends the service as well.
        let _ = self.draining.clone().wait_for(|draining| *draining).await;
    }
}

/// Waits until a connection that starts now is old: for `age`, randomly shortened or extended by up to a tenth, so that
/// connections that started together do not end together. Never returns if `age` is `None`.
async fn old(age: Option<Duration>) {
    match age {
        Some(age) => tokio::time::sleep(age.mul_f64(0.9 + 0.2 * fastrand::f64())).await,
        None => std::future::pending().await,
    }
}

impl Life {
    pub fn begin_call(self: &Arc<Self>) -> UnderWay {
        self.calls.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    pub fn end_call(&self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn add_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Waits until an ending connection is no longer worth waiting for, at most for [`ENDING_LIMIT`]: no call is in
    /// progress and almost nothing was sent for [`QUIET_TIME`]. Streams that are still open then have nothing to send,
    /// a reader that does not read, or a handler that does not end.
    async fn quiet(&self) {
        let end = Instant::now() + ENDING_LIMIT;
        let mut quiet_looks = 0;
        while quiet_looks < QUIET_LOOKS && Instant::now() < end {
            let before = self.written.load(Ordering::Relaxed);
            tokio::time::sleep(QUIET_TIME / QUIET_LOOKS).await;
            let sent = self.written.load(Ordering::Relaxed).wrapping_sub(before);
            let is_quiet = self.calls.load(Ordering::Relaxed) == 0 && sent < QUIET_BYTES;
            quiet_looks = if is_quiet { quiet_looks + 1 } else { 0 };
        }
    }
}
