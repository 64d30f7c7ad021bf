//! Passes the requests of one connection to the server that all connections share.

use super::connection::ConnectionActivity;
use super::connection_limiter::network;
use super::drain::{ConnectionDrain, DrainSignal};
use http::{Request, Response};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The connection of a request. The transport adds it to the extensions of each request; clones share it.
#[derive(Debug, Clone)]
pub struct Connection(Arc<ConnectionState>);

#[derive(Debug)]
struct ConnectionState {
    peer: Peer,
    /// Tells the streams of the connection when to end.
    drain: Arc<ConnectionDrain>,
    activity: ConnectionActivity,
}

impl Connection {
    /// Creates a connection that never has to end, for requests that this transport does not serve.
    pub fn detached(peer: Peer) -> Self {
        Self::new(peer, Arc::default())
    }

    pub(super) fn new(peer: Peer, drain: Arc<ConnectionDrain>) -> Self {
        Self(Arc::new(ConnectionState { peer, drain, activity: ConnectionActivity::default() }))
    }

    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Returns the signal for one stream to end. Each signal has its own random time in the grace period of the
    /// connection.
    pub fn drain_signal(&self) -> DrainSignal {
        DrainSignal::new(self.0.drain.clone())
    }

    pub(super) fn activity(&self) -> &ConnectionActivity {
        &self.0.activity
    }
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// The client's certificate, verified against the roots of `client_ca`. `None` if the client sent no certificate or
    /// none was requested.
    pub certificate: Option<PeerCertificate>,
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
    pub connection: Connection,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone,
{
    type Response = Response<B>;
    type Error = S::Error;
    // Boxed, because hyper moves the future several times before it is polled.
    type Future = Pin<Box<ResponseFuture<S::Future>>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.connection.clone());
        let inner = self.inner.clone().call(request);
        Box::pin(ResponseFuture { inner, _call: ActiveCall::start(self.connection.clone()) })
    }
}

/// A call whose response has not started. The call counts as in progress until this value is dropped.
#[derive(Debug)]
struct ActiveCall(Connection);

impl ActiveCall {
    fn start(connection: Connection) -> Self {
        connection.activity().start_call();
        Self(connection)
    }
}

impl Drop for ActiveCall {
    fn drop(&mut self) {
        self.0.activity().end_call();
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
