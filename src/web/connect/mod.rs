//! The Connect protocol (<https://connectrpc.com/docs/protocol>): unary calls and server streams, as JSON or Protobuf.

mod compression;
mod error;
mod reply;
mod request;

use super::{GRPC_ONLY, json};
use crate::status;
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use bytes::{BufMut, Bytes, BytesMut};
use compression::Compression;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header};
use prost_reflect::{MessageDescriptor, MethodDescriptor};
use request::RequestBody;
use std::fmt::Display;
use tonic::Status;
use tonic::body::Body;

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const STREAM_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");
const STREAM_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("connect-accept-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Maximum number of digits of a timeout in milliseconds.
const TIMEOUT_DIGITS_MAX: usize = 10;
/// A longer timeout is passed in seconds, because `grpc-timeout` has at most 8 digits.
const TIMEOUT_MS_MAX: u64 = 99_999_999;
/// Headers that the conversion removes: they describe the HTTP body or connection, or belong to Connect or gRPC.
const REPLACED_HEADERS: [HeaderName; 12] = [
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::ACCEPT_ENCODING,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    PROTOCOL_VERSION,
    TIMEOUT,
    STREAM_ENCODING,
    STREAM_ACCEPT_ENCODING,
    GRPC_TIMEOUT,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
];

/// The flag of a compressed message of a stream.
const COMPRESSED: u8 = 1;

/// How the messages of a call are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Protobuf,
}

/// What a request says about its reply.
#[derive(Debug)]
pub struct ConnectCall {
    /// `None` if the method does not exist.
    method: Option<MethodDescriptor>,
    format: Format,
    is_stream: bool,
    /// Whether the client accepts compressed messages.
    accepts_gzip: bool,
}

impl ConnectCall {
    /// Returns the call of a Connect request, or `None` if the request is of another protocol, or of a kind that its
    /// method does not have.
    pub fn from_request<B>(request: &Request<B>) -> Option<Self> {
        let content_type = request.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
        let (format, is_stream) = parse_content_type(content_type)?;
        let method = json::method(request.uri().path());
        let has_kind =
            |method: &MethodDescriptor| method.is_server_streaming() == is_stream && !method.is_client_streaming();
        let is_grpc_only = request.uri().path() == GRPC_ONLY;
        if is_grpc_only || request.method() != Method::POST || !method.as_ref().is_none_or(has_kind) {
            return None;
        }
        let accepted = if is_stream { STREAM_ACCEPT_ENCODING } else { header::ACCEPT_ENCODING };
        let accepts_gzip = compression::accepts_gzip(request.headers().get(accepted));
        Some(Self { method, format, is_stream, accepts_gzip })
    }

    /// Converts the request to gRPC. The body is read and converted when the service reads it, so a request that is
    /// refused because of its headers is not read.
    pub fn grpc_request<B>(&self, request: Request<B>, bytes_max: usize) -> Request<Body>
    where
        B: http_body::Body<Data = Bytes, Error = Status> + Send + 'static,
    {
        let (mut parts, body) = request.into_parts();
        let (timeout, compression) = (grpc_timeout(&parts.headers), self.request_compression(&parts.headers));
        let compression = check_version(&parts.headers).and(compression);
        for name in &REPLACED_HEADERS {
            parts.headers.remove(name);
        }
        parts.headers.insert(header::CONTENT_TYPE, GRPC);
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        parts.version = Version::HTTP_2;
        let compression = timeout.and_then(|timeout| {
            parts.headers.extend(timeout.map(|timeout| (GRPC_TIMEOUT, timeout)));
            compression
        });
        let message = RequestBody::new(body, self.input(), self.is_stream, compression, bytes_max);
        Request::from_parts(parts, Body::new(message))
    }

    /// Converts the reply of the service.
    pub async fn reply<R>(self, reply: Response<R>) -> Response<Body>
    where
        R: http_body::Body<Data = Bytes, Error: Display + Send> + Send + 'static,
    {
        if self.is_stream { reply::stream(&self, reply) } else { reply::unary(&self, reply).await }
    }

    /// Returns the type of the request if it is JSON.
    fn input(&self) -> Option<MessageDescriptor> {
        self.method.as_ref().filter(|_| self.format == Format::Json).map(MethodDescriptor::input)
    }

    /// Returns the type of the reply if it is JSON.
    fn output(&self) -> Option<MessageDescriptor> {
        self.method.as_ref().filter(|_| self.format == Format::Json).map(MethodDescriptor::output)
    }

    fn request_compression(&self, headers: &HeaderMap) -> Result<Compression, Status> {
        let name = if self.is_stream { STREAM_ENCODING } else { header::CONTENT_ENCODING };
        compression::of_request(headers.get(name))
    }
}

/// Returns the format, and whether it is that of a stream.
fn parse_content_type(content_type: &str) -> Option<(Format, bool)> {
    let (name, parameter) = content_type.split_once(';').unwrap_or((content_type, ""));
    let is_utf8 = matches!(parameter.trim().to_ascii_lowercase().as_str(), "" | "charset=utf-8" | "charset=\"utf-8\"");
    match name.trim().to_ascii_lowercase().as_str() {
        "application/json" if is_utf8 => Some((Format::Json, false)),
        "application/connect+json" if is_utf8 => Some((Format::Json, true)),
        "application/proto" => Some((Format::Protobuf, false)),
        "application/connect+proto" => Some((Format::Protobuf, true)),
        _ => None,
    }
}

/// Returns a message with the prefix that gRPC and the streams of Connect have: flags and the length.
fn with_prefix(flags: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(MESSAGE_PREFIX_BYTES + message.len());
    bytes.put_u8(flags);
    bytes.put_u32(message.len() as u32);
    bytes.put_slice(message);
    bytes.freeze()
}

fn check_version(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get(PROTOCOL_VERSION).map(HeaderValue::as_bytes) {
        None | Some(b"1") => Ok(()),
        Some(_) => Err(status::malformed("connect-protocol-version: must be 1")),
    }
}

/// Returns the timeout of the call as gRPC writes it.
fn grpc_timeout(headers: &HeaderMap) -> Result<Option<HeaderValue>, Status> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.len() <= TIMEOUT_DIGITS_MAX);
    let digits = digits.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(milliseconds) = digits.and_then(|text| text.parse::<u64>().ok()) else {
        return Err(status::malformed("connect-timeout-ms: must be a number of at most 10 digits"));
    };
    let text =
        if milliseconds <= TIMEOUT_MS_MAX { format!("{milliseconds}m") } else { format!("{}S", milliseconds / 1_000) };
    Ok(HeaderValue::from_str(&text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, path: &str, content_type: &str) -> Request<()> {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, content_type);
        request.body(()).expect("a request")
    }

    #[test]
    fn the_content_type_must_fit_the_kind_of_the_method() {
        const UNARY: &str = "/slotcast.v1.InventoryService/AddItem";
        const STREAM: &str = "/slotcast.v1.InventoryService/SubscribeInventory";
        const BIDIRECTIONAL: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let is_connect =
            |method, path, content_type| ConnectCall::from_request(&request(method, path, content_type)).is_some();
        for (json, protobuf, path, other) in [
            ("application/json", "application/proto", UNARY, STREAM),
            ("application/connect+json", "application/connect+proto", STREAM, UNARY),
        ] {
            for content_type in [json, protobuf] {
                assert!(is_connect(Method::POST, path, content_type), "{content_type}");
                assert!(!is_connect(Method::POST, other, content_type), "{content_type}");
                assert!(!is_connect(Method::GET, path, content_type), "{content_type}");
                assert!(is_connect(Method::POST, "/unknown.Service/Method", content_type), "the service refuses it");
            }
        }
        assert!(is_connect(Method::POST, UNARY, "Application/JSON; charset=UTF-8"));
        assert!(!is_connect(Method::POST, BIDIRECTIONAL, "application/connect+json"), "it has a stream of requests");
        assert!(!is_connect(Method::POST, GRPC_ONLY, "application/connect+json"));
        for other in ["text/plain", "application/jsonx", "application/json; charset=latin1", "application/grpc", ""] {
            assert!(!is_connect(Method::POST, UNARY, other), "{other}");
        }
    }

    #[test]
    fn a_timeout_has_at_most_ten_digits() {
        let timeout = |text: &'static str| {
            let headers = HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(text))]);
            grpc_timeout(&headers).map(|timeout| timeout.expect("a timeout")).map_err(|status| status.code())
        };
        for (text, grpc) in [("0", "0m"), ("1500", "1500m"), ("99999999", "99999999m"), ("9999999999", "9999999S")] {
            assert_eq!(timeout(text).as_ref().map(HeaderValue::as_bytes), Ok(grpc.as_bytes()));
        }
        for bad in ["", "-1", "1.5", "12345678901", "1s", " 1"] {
            assert_eq!(timeout(bad), Err(tonic::Code::InvalidArgument), "{bad}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()).map_err(|status| status.code()), Ok(None));
    }
}
