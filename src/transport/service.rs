//! Passes the requests of one connection to the server that all connections share.

use super::connection::ConnectionActivity;
use super::connection_limiter::network;
use super::drain::{ConnectionDrain, DrainSignal, GracePeriod};
use http::{Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::util::Oneshot;

/// The other end of the connection. The transport adds it to the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// The client's certificate, verified against the roots of `client_ca`. `None` if the client sent no certificate or
    /// none was requested.
    pub certificate: Option<Arc<PeerCertificate>>,
}

impl Peer {
    /// Returns the IPv4 address, or the /64 prefix of an IPv6 address, by which limits are counted.
    pub fn network(&self) -> IpAddr {
        network(self.address.ip())
    }
}

/// A client's X.509 certificate, encoded as DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate(pub Vec<u8>);

#[derive(Debug, Clone)]
pub(super) struct ConnectionService<S> {
    pub inner: S,
    pub peer: Peer,
    /// Tells the streams of the connection when to end.
    pub drain: Arc<ConnectionDrain>,
    /// When the streams end because of the age of the connection; `None` if connections have no maximum age.
    pub grace: Option<GracePeriod>,
    pub activity: Arc<ConnectionActivity>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = ResponseFuture<Oneshot<S, Request<Incoming>>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let extensions = request.extensions_mut();
        extensions.insert(self.peer.clone());
        extensions.insert(DrainSignal::new(self.drain.clone(), self.grace));
        let inner = Oneshot::new(self.inner.clone(), request);
        ResponseFuture { inner, _call: self.activity.start_call() }
    }
}

/// A call whose response has not started. The call counts as in progress until this value is dropped.
#[derive(Debug)]
pub(super) struct ActiveCall(pub(super) Arc<ConnectionActivity>);

impl Drop for ActiveCall {
    fn drop(&mut self) {
        self.0.end_call();
    }
}

pin_project! {
    /// The future of a response. The call counts as in progress until the response starts.
    pub(super) struct ResponseFuture<F> {
        #[pin]
        inner: F,
        _call: ActiveCall,
    }
}

impl<F: Future> Future for ResponseFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(context)
    }
}
