//! The accept loop. It gives each connection to the runtime with the fewest. It continues after errors of single
//! connections. While the process has no free file descriptor, it waits and retries.

use super::connection::{self, ConnectionContext};
use super::connection_limiter::ConnectionLimiter;
use super::runtimes::{Runtimes, log_panic};
use super::{BoxError, ConnectionRefusal, HttpService, TransportSettings, TransportStatistics};
use arc_swap::ArcSwap;
use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

/// Maximum number of connections that the system queues until they are accepted. The system may allow fewer
/// (net.core.somaxconn).
const BACKLOG: i32 = 4_096;
const RETRY_DELAY_MIN: Duration = Duration::from_millis(10);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// Maximum unsent data that the kernel buffers per connection, in bytes (TCP_NOTSENT_LOWAT), not counting one segment.
/// Data in flight and data in the peer's receive buffer do not count. A fast reader therefore gets all that
/// its connection can transfer, and for a stalled reader little is buffered that is outdated when it reads again. Other
/// systems do not have this option; the bound there is their send buffer.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT_BYTES_MAX: u32 = 16 * 1_024;
/// The system probes an idle connection after this time, and then at this interval. On Linux, it closes the connection when
/// data or a probe is not acknowledged for the user timeout.
const TCP_KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum user timeout: the system must be able to repeat a lost packet.
#[cfg(any(target_os = "linux", target_os = "android"))]
const TCP_USER_TIMEOUT_MIN: Duration = Duration::from_secs(10);
/// Minimum interval between log lines about a lasting problem.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The inputs of the accept loop.
pub(super) struct AcceptLoop<S> {
    pub listener: TcpListener,
    pub service: S,
    pub runtimes: Runtimes,
    pub settings: TransportSettings,
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    pub statistics: Arc<TransportStatistics>,
    pub drain: CancellationToken,
}

/// The retry delay and the log rate while connections cannot be accepted.
#[derive(Debug, Default)]
struct AcceptBackoff {
    delay: Duration,
    last_logged: Option<Instant>,
    /// Failed attempts since the last log line.
    unlogged: u64,
}

/// Accepts connections until the server drains. Returns when no connection is left.
pub(super) async fn run<S, B>(inputs: AcceptLoop<S>)
where
    S: HttpService<B>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let AcceptLoop { listener, service, runtimes, settings, tls, statistics, drain } = inputs;
    if let Err(error) = SockRef::from(&listener).listen(BACKLOG) {
        tracing::debug!(%error, "cannot set the backlog of the listener");
    }
    let limiter = ConnectionLimiter::new(&settings, statistics.clone());
    let http = connection::http(&settings);
    let context = ConnectionContext { settings, http, tls, statistics: statistics.clone(), drain: drain.clone() };
    let context = Arc::new(context);
    // The connections of this runtime. Dropping the set aborts them; it is dropped together with this future.
    let mut connections = JoinSet::new();
    let mut backoff = AcceptBackoff::default();
    loop {
        let accepted = tokio::select! {
            () = drain.cancelled() => break,
            Some(ended) = connections.join_next() => {
                log_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                backoff.delay = Duration::ZERO;
                let Ok(permit) = limiter.try_acquire(address) else { continue };
                set_socket_options(&socket, address, context.settings.stall_limit());
                let (context, service) = (context.clone(), service.clone());
                let serve = move |socket| connection::run(context, service, socket, address, permit);
                match runtimes.select(connections.len()) {
                    None => drop(connections.spawn(serve(socket))),
                    Some(runtime) => match socket.into_std() {
                        Ok(socket) => runtime.spawn(serve_elsewhere(socket, serve)),
                        Err(error) => tracing::debug!(%error, "cannot move a connection to its thread"),
                    },
                }
            }
            Err(error) if concerns_one_connection(&error) => tracing::debug!(%error, "cannot accept a connection"),
            Err(error) => {
                statistics.add_refused(ConnectionRefusal::Descriptors);
                let delay = backoff.handle_error(&error, statistics.connections());
                tokio::select! {
                    () = drain.cancelled() => break,
                    // The file descriptor of the ended connection is free.
                    Some(ended) = connections.join_next() => log_panic(ended),
                    () = runtimes.connection_ended() => {}
                    () = tokio::time::sleep(delay) => {}
                }
            }
        }
    }
    // The system refuses new connections from now on.
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
    runtimes.join().await;
}

/// Registers a socket in the current runtime and serves it there.
async fn serve_elsewhere<F: Future<Output = ()>>(socket: std::net::TcpStream, serve: impl FnOnce(TcpStream) -> F) {
    match TcpStream::from_std(socket) {
        Ok(socket) => serve(socket).await,
        Err(error) => tracing::error!(%error, "cannot serve a connection on its thread"),
    }
}

fn set_socket_options(socket: &TcpStream, address: SocketAddr, stall_limit: Duration) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%address, %error, "cannot set TCP_NODELAY; small frames may be delayed");
    }
    // HTTP/1.1 has no pings that would notice that the peer is gone.
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE_TIME).with_interval(TCP_KEEPALIVE_INTERVAL);
    if let Err(error) = SockRef::from(socket).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%address, %error, "cannot set SO_KEEPALIVE; a connection without its peer may stay open");
    }
    // The system does not probe a connection that has unacknowledged data.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = SockRef::from(socket).set_tcp_user_timeout(Some(stall_limit.max(TCP_USER_TIMEOUT_MIN))) {
        tracing::debug!(%address, %error, "cannot set TCP_USER_TIMEOUT; a connection without its peer may stay open");
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        tracing::debug!(%address, %error, "cannot set TCP_NOTSENT_LOWAT; a stalled reader may get outdated frames");
    }
}

/// Returns whether the error concerns only one connection, which closed before it was accepted; the next one may
/// succeed.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

impl AcceptBackoff {
    /// Logs the error if a log line is due, and returns how long to wait before the next attempt. The delay doubles
    /// with each consecutive error, from [`RETRY_DELAY_MIN`] to [`RETRY_DELAY_MAX`].
    fn handle_error(&mut self, error: &io::Error, connections: u64) -> Duration {
        self.delay = (self.delay * 2).clamp(RETRY_DELAY_MIN, RETRY_DELAY_MAX);
        self.unlogged += 1;
        if self.last_logged.is_none_or(|last_logged| last_logged.elapsed() >= LOG_INTERVAL) {
            self.last_logged = Some(Instant::now());
            let attempts = std::mem::take(&mut self.unlogged);
            tracing::error!(
                %error,
                connections,
                attempts,
                "cannot accept connections; raise the limit of open files (ulimit -n) or lower limits.connections"
            );
        }
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lasting_error_is_retried_with_growing_delays_and_logged_at_intervals() {
        let mut backoff = AcceptBackoff::default();
        let error = io::Error::other("too many open files");
        let delays: Vec<u128> = (0..9).map(|_| backoff.handle_error(&error, 3).as_millis()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        assert_eq!(backoff.unlogged, 8, "the first error was logged");
        tokio::time::advance(LOG_INTERVAL).await;
        backoff.handle_error(&error, 3);
        assert_eq!(backoff.unlogged, 0, "after the interval, the next line includes all errors since");
    }
}
