//! The transport: connections, TLS, limits, and how they end. It serves HTTP/2, and understands as much of HTTP/1.1 as it takes
//! to answer that it does not.
//!
//! [`Transport::serve`] accepts connections and gives their requests to a tower service. With each request go, in its
//! extensions, who is on the other side ([`Peer`]) and when its streams have to end ([`Closing`]).

mod accept;
mod admitted;
mod closing;
mod connection;
mod io;
mod plaintext;
mod reload;
mod service;
mod settings;
mod tls;

pub use closing::Closing;
pub use service::{Peer, PeerCertificate};
pub use settings::{TlsSettings, TransportSettings};
pub use tls::TlsError;

pub use crate::statistics::{ConnectionRefusal, TransportStatistics};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use reload::Certificates;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// What serves the requests of all connections.
pub trait Serve<B>:
    tower::Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<BoxError> + Send>
    + Clone
    + Send
    + 'static
{
}

impl<S, B> Serve<B> for S where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Into<BoxError> + Send>
        + Clone
        + Send
        + 'static
{
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Ready to serve: its settings and certificates have been checked.
#[derive(Debug)]
pub struct Transport {
    settings: TransportSettings,
    certificates: Option<Certificates>,
    statistics: Arc<TransportStatistics>,
}

impl Transport {
    /// Reads the certificates, if there are to be any.
    pub fn open(settings: TransportSettings, statistics: Arc<TransportStatistics>) -> Result<Self, TlsError> {
        let open = |tls: &TlsSettings| Certificates::open(tls.clone(), statistics.clone());
        let certificates = settings.tls.as_ref().map(open).transpose()?;
        Ok(Self { settings, certificates, statistics })
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.certificates.is_some() { "https" } else { "http" }
    }

    pub fn statistics(&self) -> Arc<TransportStatistics> {
        self.statistics.clone()
    }

    /// Serves until `draining` becomes true, then stops to listen and lets what is open end: calls are answered, streams
    /// told to end, and a connection on which nothing happens any more is closed. Returns when no connection is left;
    /// dropping it cuts off those that are.
    pub async fn serve<S, B>(self, listener: TcpListener, service: S, draining: watch::Receiver<bool>)
    where
        S: Serve<B>,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let Self { settings, certificates, statistics } = self;
        let tls = certificates.as_ref().map(Certificates::current);
        let connections = accept::run(accept::Accept { listener, service, settings, tls, statistics, draining });
        match certificates {
            Some(certificates) => {
                tokio::select! {
                    () = connections => {}
                    never = certificates.follow() => match never {},
                }
            }
            None => connections.await,
        }
    }
}
