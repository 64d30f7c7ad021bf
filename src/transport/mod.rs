//! The transport: accepts connections, terminates TLS, enforces limits and closes connections gracefully. It serves
//! HTTP/2 and HTTP/1.1.
//!
//! [`Transport::serve`] accepts connections and passes their requests to a tower service. The extensions of each
//! request contain its [`Connection`]: the other end ([`Peer`]), and the signal when a stream must end ([`DrainSignal`]).

mod accept;
mod certificate_reloader;
mod connection;
mod connection_limiter;
mod drain;
mod io;
mod plaintext;
mod runtimes;
mod service;
mod settings;
mod tls;

pub use drain::{DrainSignal, DrainWaiter};
pub use runtimes::Runtimes;
pub use service::{Connection, Peer, PeerCertificate};
pub use settings::{DrainSettings, TlsSettings, TransportSettings};
pub use tls::TlsError;

pub use crate::statistics::{ConnectionRefusal, TransportStatistics};

use accept::AcceptLoop;
use bytes::Bytes;
use certificate_reloader::CertificateReloader;
use http::{Request, Response};
use hyper::body::Incoming;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A tower service that handles the requests of all connections. It must always be ready: the transport does not call
/// `poll_ready`. A service that limits its load does so with its replies.
pub trait HttpService<B>:
    tower::Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<BoxError> + Send>
    + Clone
    + Send
    + 'static
{
}

impl<S, B> HttpService<B> for S where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<BoxError> + Send>
        + Clone
        + Send
        + 'static
{
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A transport that is ready to serve, with valid settings and certificates.
#[derive(Debug)]
pub struct Transport {
    settings: TransportSettings,
    certificates: Option<CertificateReloader>,
    statistics: Arc<TransportStatistics>,
}

impl Transport {
    /// Creates a transport. Reads the certificates if TLS is enabled.
    ///
    /// # Errors
    ///
    /// A [`TlsError`] if the certificates or keys cannot be read or used.
    pub fn open(settings: TransportSettings, statistics: Arc<TransportStatistics>) -> Result<Self, TlsError> {
        let open = |tls: &TlsSettings| CertificateReloader::open(tls.clone(), statistics.clone());
        let certificates = settings.tls.as_ref().map(open).transpose()?;
        Ok(Self { settings, certificates, statistics })
    }

    /// Returns `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.certificates.is_some() { "https" } else { "http" }
    }

    pub fn statistics(&self) -> Arc<TransportStatistics> {
        self.statistics.clone()
    }

    /// Serves in the current runtime and in `runtimes` until `drain` is cancelled. Then closes the listener and shuts
    /// connections down gracefully: calls are answered, streams get the signal to end, and idle connections are closed.
    /// Returns when no connection is left. Dropping the future cuts off all open connections.
    pub async fn serve<S, B>(self, listener: TcpListener, service: S, runtimes: Runtimes, drain: CancellationToken)
    where
        S: HttpService<B>,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let Self { settings, certificates, statistics } = self;
        let tls = certificates.as_ref().map(CertificateReloader::current);
        let connections = accept::run(AcceptLoop { listener, service, runtimes, settings, tls, statistics, drain });
        match certificates {
            Some(certificates) => {
                tokio::select! {
                    () = connections => {}
                    never = certificates.watch_for_changes() => match never {},
                }
            }
            None => connections.await,
        }
    }
}
