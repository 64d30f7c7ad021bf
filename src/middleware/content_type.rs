//! Only what says that it is gRPC is taken for it. A browser can send another content type to any site without being asked
//! whether it may, and with it the client certificate of whoever sits before it.

use futures_util::future::Either;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::{Layer, Service};

const GRPC: &str = "application/grpc";

#[derive(Debug, Clone, Copy, Default)]
pub struct ContentTypeLayer;

#[derive(Debug, Clone)]
pub struct GrpcOnly<S> {
    inner: S,
}

impl<S> Layer<S> for ContentTypeLayer {
    type Service = GrpcOnly<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GrpcOnly { inner }
    }
}

impl<S, B> Service<Request<B>> for GrpcOnly<S>
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
        match refusal(request.method(), request.headers()) {
            None => Either::Left(self.inner.call(request)),
            Some(status) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = status;
                Either::Right(ready(Ok(response)))
            }
        }
    }
}

/// As the gRPC specification wants it: POST, and 415 for another content type.
fn refusal(method: &Method, headers: &HeaderMap) -> Option<StatusCode> {
    if method != Method::POST {
        return Some(StatusCode::METHOD_NOT_ALLOWED);
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_grpc = content_type.strip_prefix(GRPC).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']));
    (!is_grpc).then_some(StatusCode::UNSUPPORTED_MEDIA_TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn refused(method: Method, content_type: Option<&'static str>) -> Option<u16> {
        let content_type = content_type.map(|value| (header::CONTENT_TYPE, HeaderValue::from_static(value)));
        refusal(&method, &HeaderMap::from_iter(content_type)).map(|status| status.as_u16())
    }

    #[test]
    fn what_says_that_it_is_grpc_passes_and_nothing_else() {
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert_eq!(refused(Method::POST, Some(grpc)), None, "{grpc}");
        }
        for other in ["text/html", "application/grpc-web", "application/grpcx", "text/plain", "application/json", ""] {
            assert_eq!(refused(Method::POST, Some(other)), Some(415), "{other}");
        }
        assert_eq!(refused(Method::POST, None), Some(415));
        assert_eq!(refused(Method::GET, Some("application/grpc")), Some(405));
    }
}
