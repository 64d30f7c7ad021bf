//! Accepts only requests whose content type is gRPC. A browser sends some other content types to any site without a
//! CORS preflight request, and with them the client certificate of its user.
//!
//! A request of another protocol gets an HTTP error status and a sentence that explains it.

use super::access_log::NotServed;
use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

const GRPC: &str = "application/grpc";
/// The reason in the log and the metrics. A gRPC client never gets it.
pub(super) const UNSUPPORTED_PROTOCOL: &str = "UNSUPPORTED_PROTOCOL";

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Http1,
    Method,
    ContentType,
}

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
        match refusal(request.version(), request.method(), request.headers()) {
            None => Either::Left(self.inner.call(request)),
            Some(refusal) => Either::Right(ready(Ok(refusal.response()))),
        }
    }
}

impl<S: NamedService> NamedService for GrpcOnly<S> {
    const NAME: &'static str = S::NAME;
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::Http1 => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Http1 => "gRPC over HTTP/2 is served here, not HTTP/1.1: use a gRPC client\n",
            Self::Method => "gRPC is served here, and each of its requests is a POST: use a gRPC client\n",
            Self::ContentType => {
                "gRPC is served here (content-type application/grpc), not gRPC-Web or Connect: use a gRPC client\n"
            }
        }
    }

    fn response(self) -> Response<Body> {
        let mut response = Response::new(Body::new(Full::from(self.text())));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self == Self::Method {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response.extensions_mut().insert(NotServed { reason: UNSUPPORTED_PROTOCOL, text: self.text().trim_end() });
        response
    }
}

/// Returns why a request is not served, or `None` if it is gRPC. As the gRPC specification requires, a request must use
/// HTTP/2 and POST, and another content type gets the status 415.
fn refusal(version: Version, method: &Method, headers: &HeaderMap) -> Option<Refusal> {
    if version < Version::HTTP_2 {
        return Some(Refusal::Http1);
    }
    if method != Method::POST {
        return Some(Refusal::Method);
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_grpc = content_type.strip_prefix(GRPC).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']));
    (!is_grpc).then_some(Refusal::ContentType)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn refused(method: Method, content_type: Option<&'static str>) -> Option<u16> {
        let content_type = content_type.map(|value| (header::CONTENT_TYPE, HeaderValue::from_static(value)));
        let refusal = refusal(Version::HTTP_2, &method, &HeaderMap::from_iter(content_type));
        refusal.map(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn whoever_is_refused_is_told_in_a_sentence_what_is_spoken_here() {
        for refusal in [Refusal::Http1, Refusal::Method, Refusal::ContentType] {
            let response = refusal.response();
            assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
            assert_eq!(response.headers().contains_key(header::ALLOW), refusal == Refusal::Method);
            let bytes = http_body::Body::size_hint(response.body()).exact().expect("a text");
            assert_eq!(bytes, refusal.text().len() as u64);
            assert!(response.extensions().get::<NotServed>().is_some_and(|told| told.text.contains("gRPC")));
            assert!(response.headers().get("access-control-allow-origin").is_none());
        }
        let http1 = refusal(Version::HTTP_11, &Method::POST, &HeaderMap::new());
        assert_eq!(http1, Some(Refusal::Http1));
    }

    #[test]
    fn what_says_that_it_is_grpc_passes_and_nothing_else() {
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert_eq!(refused(Method::POST, Some(grpc)), None, "{grpc}");
        }
        for other in ["text/html", "application/grpc-web", "application/grpcx", "text/plain", "application/json", ""] {
            assert_eq!(refused(Method::POST, Some(other)), Some(415), "{other}");
        }
        assert_eq!(refused(Method::OPTIONS, None), Some(405), "CORS asks so before it sends");
        assert_eq!(refused(Method::POST, None), Some(415));
        assert_eq!(refused(Method::GET, Some("application/grpc")), Some(405));
    }
}
