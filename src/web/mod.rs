//! The protocols of clients without gRPC: Connect and gRPC-Web, over HTTP/1.1 and HTTP/2, and CORS for browsers.
//!
//! [`WebLayer`] wraps all other layers. It turns each request into the gRPC request with the same meaning, and the
//! gRPC reply into a reply of the request's protocol. So every layer sees only gRPC, and authentication, limits,
//! deadlines, measurement and draining are the same for all protocols. A gRPC request passes unchanged.

mod body;
mod connect;
mod json;
mod origins;

pub use body::WebBody;
pub use origins::{Origin, Origins};

use body::TimedBody;
use bytes::Bytes;
use connect::ConnectCall;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, Version, header};
use pin_project_lite::pin_project;
use std::fmt::Display;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::{Layer, Service};
use tower_http::cors::Cors;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// This stream may be silent for ever, and HTTP/1.1 has no pings, so the server would not notice that the client is gone.
const GRPC_ONLY: &str = "/grpc.health.v1.Health/Watch";
const GRPC: &[u8] = b"application/grpc";
const GRPC_WEB: &[u8] = b"application/grpc-web";
const GRPC_WEB_TYPES: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// Accepts Connect and gRPC-Web beside gRPC.
#[derive(Debug, Clone)]
pub struct WebLayer {
    /// The origins whose web pages may read replies.
    pub origins: Origins,
    /// Maximum size of the body of a Connect request, also after decompression, in bytes.
    pub message_bytes_max: usize,
}

impl<S: Clone> Layer<S> for WebLayer {
    type Service = WebService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let protocols = Protocols { inner, message_bytes_max: self.message_bytes_max };
        let cors = self.origins.cors_layer().layer(protocols.clone());
        WebService { protocols, cors, origins: self.origins.clone() }
    }
}

/// Adds the CORS headers to the replies to web pages of the allowed origins, and answers their preflight requests.
#[derive(Debug, Clone)]
pub struct WebService<S> {
    protocols: Protocols<S>,
    cors: Cors<Protocols<S>>,
    origins: Origins,
}

impl<S, B, R, E> Service<Request<B>> for WebService<S>
where
    S: Service<Request<WebBody<B>>, Response = Response<R>, Error = E, Future: Send + 'static> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Display + Send> + Unpin + Send + 'static,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError> + Display + Send> + Send + 'static,
    E: Send + 'static,
{
    type Response = Response<WebBody<R>>;
    type Error = E;
    type Future = WebFuture<S::Future, R, E>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        // All services inside are always ready, also those that `call` selects or clones.
        self.protocols.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Usually only browsers send an origin.
        match request.headers().get(header::ORIGIN) {
            Some(origin) if self.origins.allows(origin) => {
                WebFuture::Converted { reply: Box::pin(self.cors.call(request)) }
            }
            _ => self.protocols.call(request),
        }
    }
}

/// Passes each request to the service inside as gRPC.
#[derive(Debug, Clone)]
struct Protocols<S> {
    inner: S,
    message_bytes_max: usize,
}

impl<S, B, R, E> Service<Request<B>> for Protocols<S>
where
    S: Service<Request<WebBody<B>>, Response = Response<R>, Error = E, Future: Send + 'static> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Display + Send> + Unpin + Send + 'static,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError> + Display + Send> + Send + 'static,
    E: Send + 'static,
{
    type Response = Response<WebBody<R>>;
    type Error = E;
    type Future = WebFuture<S::Future, R, E>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if is_grpc(&request) {
            return WebFuture::Grpc { reply: self.inner.call(request.map(WebBody::grpc)) };
        }
        let request = request.map(TimedBody::new);
        let (body, bytes_max) = (request.body().clone(), self.message_bytes_max);
        // Such a client sends the body only once the server reads it.
        let has_expect = request.headers().contains_key(header::EXPECT);
        let reply: BoxFuture<'static, _> = if is_grpc_web(&request) {
            let mut service = GrpcWebLayer::new().layer(FromGrpcWeb { inner: self.inner.clone(), body: PhantomData });
            Box::pin(service.call(request))
        } else if let Some(call) = ConnectCall::from_request(&request) {
            let reply = self.inner.call(call.grpc_request(request, bytes_max).map(WebBody::converted));
            Box::pin(async move { Ok(call.reply(reply.await?).await) })
        } else {
            // The layers refuse it.
            let reply = self.inner.call(request.map(|body| WebBody::converted(Body::new(body))));
            Box::pin(async move { Ok(reply.await?.map(Body::new)) })
        };
        let reply = async move {
            let reply = reply.await?;
            if !has_expect {
                body.discard(bytes_max).await;
            }
            Ok(reply.map(WebBody::converted))
        };
        WebFuture::Converted { reply: Box::pin(reply) }
    }
}

/// Returns whether a request is gRPC, which needs HTTP/2.
fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    request.version() == Version::HTTP_2 && content_type.starts_with(GRPC) && !content_type.starts_with(GRPC_WEB)
}

fn is_grpc_web<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    request.method() == Method::POST
        && request.uri().path() != GRPC_ONLY
        && content_type.is_some_and(|value| GRPC_WEB_TYPES.iter().any(|known| value == known))
}

/// The service inside, for tonic's conversion of gRPC-Web.
struct FromGrpcWeb<S, B> {
    inner: S,
    body: PhantomData<B>,
}

impl<S, B> Service<Request<Body>> for FromGrpcWeb<S, B>
where
    S: Service<Request<WebBody<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        *request.version_mut() = Version::HTTP_2;
        self.inner.call(request.map(WebBody::converted))
    }
}

pin_project! {
    /// The future of a reply.
    #[project = WebFutureProjection]
    pub enum WebFuture<F, R, E> {
        Grpc { #[pin] reply: F },
        Converted { reply: BoxFuture<'static, Result<Response<WebBody<R>>, E>> },
    }
}

impl<F, R, E> Future for WebFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<WebBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            WebFutureProjection::Grpc { reply } => {
                let reply = ready!(reply.poll(context))?;
                Poll::Ready(Ok(reply.map(WebBody::grpc)))
            }
            WebFutureProjection::Converted { reply } => reply.as_mut().poll(context),
        }
    }
}
