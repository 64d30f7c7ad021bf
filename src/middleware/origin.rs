//! Refuses requests from web pages whose origin is not allowed. A browser sends requests of some kinds to any server and
//! only then decides whether the web page may read the reply, so without this layer a web page could change inventories.

use super::access_log::NotGrpc;
use crate::status;
use crate::web::Origins;
use crate::wire::ErrorReason;
use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::{Layer, Service};

#[derive(Debug, Clone, Default)]
pub struct OriginLayer(Origins);

#[derive(Debug, Clone)]
pub struct OriginService<S> {
    inner: S,
    origins: Origins,
}

impl OriginLayer {
    pub fn new(origins: Origins) -> Self {
        Self(origins)
    }
}

impl<S> Layer<S> for OriginLayer {
    type Service = OriginService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OriginService { inner, origins: self.0.clone() }
    }
}

impl<S, B> Service<Request<B>> for OriginService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        if origins.all(|origin| self.origins.allows(origin)) {
            return Either::Left(self.inner.call(request));
        }
        Either::Right(ready(Ok(refusal(request.headers()))))
    }
}

/// Returns the reply to a gRPC request, or to another one, such as a preflight request, for which no status exists.
fn refusal(headers: &HeaderMap) -> Response<Body> {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"application/grpc") {
        return status::origin_not_allowed().into_http();
    }
    let text = status::ORIGIN_NOT_ALLOWED;
    let mut response = Response::new(Body::new(Full::from(text)));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.extensions_mut().insert(NotGrpc { reason: ErrorReason::OriginNotAllowed.name(), text });
    response
}
