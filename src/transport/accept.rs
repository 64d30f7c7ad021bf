//! The accept loop. It continues after errors of single connections. While the process has no free file descriptor, it
//! waits and retries.

use super::admitted::Doorkeeper;
use super::connection::{self, Common};
use super::{BoxError, ConnectionRefusal, Serve, TransportSettings, TransportStatistics};
use arc_swap::ArcSwap;
use bytes::Bytes;
use socket2::SockRef;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;

/// Maximum number of connections that the system queues until they are accepted. The system may allow fewer
/// (net.core.somaxconn).
const BACKLOG: i32 = 4_096;
const WAIT_MIN: Duration = Duration::from_millis(10);
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Maximum size of the data that the system buffers for a connection and has not sent yet, in bytes, not counting one
/// segment. Data in flight and data in the peer's receive buffer do not count. A fast reader therefore gets all that
/// its connection can transfer, and for a stalled reader little is buffered that is outdated when it reads again. Other
/// systems do not have this option; the bound there is their send buffer.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT_BYTES_MAX: u32 = 16 * 1_024;
/// Minimum interval between log lines about a lasting problem.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Accept<S> {
    pub listener: TcpListener,
    pub service: S,
    pub settings: TransportSettings,
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    pub statistics: Arc<TransportStatistics>,
    pub draining: watch::Receiver<bool>,
}

/// The retry delay and the log rate while connections cannot be accepted.
#[derive(Debug, Default)]
struct Trouble {
    wait: Duration,
    told: Option<Instant>,
    untold: u64,
}

/// Accepts connections until the service drains. Returns when no connection is left.
pub(super) async fn run<S, B>(accept: Accept<S>)
where
    S: Serve<B>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let Accept { listener, service, settings, tls, statistics, mut draining } = accept;
    if let Err(error) = SockRef::from(&listener).listen(BACKLOG) {
        tracing::debug!(%error, "the backlog stays as it is");
    }
    let keeper = Doorkeeper::new(&settings, statistics.clone());
    let http = connection::http(&settings);
    let common = Common { settings, http, tls, statistics: statistics.clone(), draining: draining.clone() };
    let common = Arc::new(common);
    // Dropping the set aborts all connections; it is dropped together with this future.
    let mut connections = JoinSet::new();
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            _ = draining.wait_for(|draining| *draining) => break,
            Some(ended) = connections.join_next() => {
                tell_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                trouble.wait = Duration::ZERO;
                let Ok(admitted) = keeper.admit(address) else { continue };
                prepare(&socket, address);
                connections.spawn(connection::run(common.clone(), service.clone(), socket, address, admitted));
            }
            Err(error) if concerns_one_connection(&error) => tracing::debug!(%error, "a connection was not accepted"),
            Err(error) => {
                statistics.add_refused(ConnectionRefusal::Descriptors);
                let wait = trouble.handle(&error, connections.len());
                tokio::select! {
                    _ = draining.wait_for(|draining| *draining) => break,
                    // The file descriptor of the ended connection is free.
                    Some(ended) = connections.join_next() => tell_panic(ended),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
    // The system refuses new connections from now on.
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        tell_panic(ended);
    }
}

fn prepare(socket: &TcpStream, address: SocketAddr) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%address, %error, "small frames may wait on this connection");
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        tracing::debug!(%address, %error, "the system may keep more for this connection than it should");
    }
}

/// Returns whether the error concerns only one connection, which closed before it was accepted; the next one may
/// succeed.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

fn tell_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection panicked");
    }
}

impl Trouble {
    /// Logs the error if a log line is due, and returns how long to wait before the next attempt. The wait doubles with
    /// each consecutive error, from [`WAIT_MIN`] to [`WAIT_MAX`].
    fn handle(&mut self, error: &io::Error, connections: usize) -> Duration {
        self.wait = (self.wait * 2).clamp(WAIT_MIN, WAIT_MAX);
        self.untold += 1;
        if self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            self.told = Some(Instant::now());
            let tries = std::mem::take(&mut self.untold);
            tracing::error!(
                %error,
                connections,
                tries,
                "no connection can be accepted; raise the limit of open files (ulimit -n) or lower connections_max"
            );
        }
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_lasts_is_tried_ever_more_seldom_and_told_now_and_then() {
        let mut trouble = Trouble::default();
        let error = io::Error::other("too many open files");
        let waits: Vec<u128> = (0..9).map(|_| trouble.handle(&error, 3).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        assert_eq!(trouble.untold, 8, "the first was told");
        tokio::time::advance(TELL_INTERVAL).await;
        trouble.handle(&error, 3);
        assert_eq!(trouble.untold, 0, "and after a while all that came since");
    }
}
