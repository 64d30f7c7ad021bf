//! Accepts only requests whose content type is gRPC: the layer outside has converted those of gRPC-Web and Connect. A
//! browser sends some other content types to any site without a CORS preflight request, and with them the client
//! certificate of its user.
//!
//! A request of another protocol gets an HTTP error status and a sentence that explains it.

use super::access_log::NotGrpc;
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

/// Why a request is not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnsupportedRequest {
    Http1,
    Method,
    ContentType,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct ContentTypeLayer;

#[derive(Debug, Clone)]
pub struct ContentTypeService<S> {
    inner: S,
}

impl<S> Layer<S> for ContentTypeLayer {
    type Service = ContentTypeService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ContentTypeService { inner }
    }
}

impl<S, B> Service<Request<B>> for ContentTypeService<S>
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
        match check_protocol(request.version(), request.method(), request.headers()) {
            None => Either::Left(self.inner.call(request)),
            Some(unsupported) => Either::Right(ready(Ok(unsupported.response()))),
        }
    }
}

impl<S: NamedService> NamedService for ContentTypeService<S> {
    const NAME: &'static str = S::NAME;
}

impl UnsupportedRequest {
    fn status(self) -> StatusCode {
        match self {
            Self::Http1 => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Http1 => "gRPC requires HTTP/2; over HTTP/1.1, use Connect or gRPC-Web\n",
            Self::Method => "method not allowed: use POST\n",
            Self::ContentType => {
                "unsupported content-type for this method: use application/json or application/proto, for a stream \
                 application/connect+json or application/connect+proto, or gRPC or gRPC-Web; Health.Watch needs gRPC\n"
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
        response.extensions_mut().insert(NotGrpc { reason: UNSUPPORTED_PROTOCOL, text: self.text().trim_end() });
        response
    }
}

/// Returns why a request is not supported, or `None` if it is gRPC. As the gRPC specification requires, a request must
/// use HTTP/2 and POST, and another content type gets the status 415.
fn check_protocol(version: Version, method: &Method, headers: &HeaderMap) -> Option<UnsupportedRequest> {
    if method != Method::POST {
        return Some(UnsupportedRequest::Method);
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_grpc = content_type.strip_prefix(GRPC).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']));
    match (is_grpc, version < Version::HTTP_2) {
        (false, _) => Some(UnsupportedRequest::ContentType),
        (true, true) => Some(UnsupportedRequest::Http1),
        (true, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn http_status(method: Method, content_type: Option<&'static str>) -> Option<u16> {
        let content_type = content_type.map(|value| (header::CONTENT_TYPE, HeaderValue::from_static(value)));
        let unsupported = check_protocol(Version::HTTP_2, &method, &HeaderMap::from_iter(content_type));
        unsupported.map(|unsupported| unsupported.status().as_u16())
    }

    #[test]
    fn an_unsupported_request_gets_an_http_error_with_an_explanation() {
        for unsupported in [UnsupportedRequest::Http1, UnsupportedRequest::Method, UnsupportedRequest::ContentType] {
            let response = unsupported.response();
            assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
            assert_eq!(response.headers().contains_key(header::ALLOW), unsupported == UnsupportedRequest::Method);
            let bytes = http_body::Body::size_hint(response.body()).exact().expect("a text");
            assert_eq!(bytes, unsupported.text().len() as u64);
            assert!(response.extensions().get::<NotGrpc>().is_some());
            assert!(response.headers().get("access-control-allow-origin").is_none());
        }
        let grpc = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(GRPC))]);
        let http1 = |headers| check_protocol(Version::HTTP_11, &Method::POST, headers);
        assert_eq!(http1(&grpc), Some(UnsupportedRequest::Http1));
        assert_eq!(http1(&HeaderMap::new()), Some(UnsupportedRequest::ContentType));
    }

    #[test]
    fn only_a_post_with_a_grpc_content_type_is_accepted() {
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert_eq!(http_status(Method::POST, Some(grpc)), None, "{grpc}");
        }
        for other in ["text/html", "application/grpc-web", "application/grpcx", "text/plain", "application/json", ""] {
            assert_eq!(http_status(Method::POST, Some(other)), Some(415), "{other}");
        }
        assert_eq!(http_status(Method::OPTIONS, None), Some(405), "a CORS preflight request");
        assert_eq!(http_status(Method::POST, None), Some(415));
        assert_eq!(http_status(Method::GET, Some("application/grpc")), Some(405));
    }
}
