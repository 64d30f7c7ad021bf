//! Replies: gRPC's messages and trailers as Connect writes them.

use super::super::json;
use super::compression::{GZIP, compress};
use super::error::{ConnectError, http_status};
use super::{COMPRESSED, ConnectCall, Format, STREAM_ENCODING, with_prefix};
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use pin_project_lite::pin_project;
use prost_reflect::MessageDescriptor;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::{Code, Status};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/proto");
const STREAM_JSON: HeaderValue = HeaderValue::from_static("application/connect+json");
const STREAM_PROTOBUF: HeaderValue = HeaderValue::from_static("application/connect+proto");
/// The flag of the last message of a stream, which has the status.
const END_OF_STREAM: u8 = 2;
/// gRPC headers that a Connect reply represents differently.
const GRPC_HEADERS: [&str; 7] = [
    "content-type",
    "content-length",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "grpc-encoding",
    "grpc-accept-encoding",
];

/// Converts the reply of a unary call. The server wrote it, so its size is limited.
pub async fn unary<R>(call: &ConnectCall, reply: Response<R>) -> Response<Body>
where
    R: http_body::Body<Data = Bytes, Error: Display + Send> + Send + 'static,
{
    let (parts, body) = reply.into_parts();
    let (trailers, body) = match body.collect().await {
        Ok(collected) => (collected.trailers().cloned().unwrap_or_default(), collected.to_bytes()),
        Err(error) => return unary_error(&Status::internal(error.to_string()), &HeaderMap::new(), &HeaderMap::new()),
    };
    let message = match status(&parts.headers, Some(&trailers), parts.status) {
        status if status.code() == Code::Ok => message(call, &body),
        status => Err(status),
    };
    let message = match message {
        Ok(message) => message,
        Err(status) => return unary_error(&status, &parts.headers, &trailers),
    };
    let compressed = compress(&message, call.accepts_gzip);
    let mut response = Response::new(Body::empty());
    add_metadata(response.headers_mut(), &parts.headers, &trailers);
    let content_type = if call.format == Format::Json { JSON } else { PROTOBUF };
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    if compressed.is_some() {
        response.headers_mut().insert(header::CONTENT_ENCODING, GZIP);
    }
    response.map(|_| Body::new(Full::new(compressed.unwrap_or(message))))
}

/// Returns the message of a successful unary reply, in the format of the call.
fn message(call: &ConnectCall, body: &Bytes) -> Result<Bytes, Status> {
    let missing = || Status::internal("the reply has no message");
    let message = body.get(MESSAGE_PREFIX_BYTES..).ok_or_else(missing)?;
    in_format(call.output().as_ref(), body.slice_ref(message))
}

fn in_format(json: Option<&MessageDescriptor>, message: Bytes) -> Result<Bytes, Status> {
    match json {
        Some(descriptor) => json::print(descriptor.clone(), message).map(Bytes::from),
        None => Ok(message),
    }
}

fn unary_error(status: &Status, headers: &HeaderMap, trailers: &HeaderMap) -> Response<Body> {
    let json = serde_json::to_vec(&ConnectError::from(status)).unwrap_or_default();
    let mut response = Response::new(Body::new(Full::new(Bytes::from(json))));
    *response.status_mut() = http_status(status.code());
    add_metadata(response.headers_mut(), headers, trailers);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Adds the metadata of a gRPC reply to the headers of a unary reply: trailers with the prefix `trailer-`.
fn add_metadata(headers: &mut HeaderMap, leading: &HeaderMap, trailing: &HeaderMap) {
    for (name, value) in metadata(leading) {
        headers.append(name.clone(), value.clone());
    }
    for (name, value) in metadata(trailing) {
        if let Ok(name) = HeaderName::try_from(format!("trailer-{name}")) {
            headers.append(name, value.clone());
        }
    }
}

/// Returns the headers that are not part of gRPC itself.
fn metadata(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    headers.iter().filter(|(name, _)| !GRPC_HEADERS.contains(&name.as_str()))
}

/// Returns the status of a reply: from its trailers, or from its headers if it has no body.
fn status(headers: &HeaderMap, trailers: Option<&HeaderMap>, http: StatusCode) -> Status {
    let status = trailers.and_then(Status::from_header_map).or_else(|| Status::from_header_map(headers));
    status.unwrap_or_else(|| Status::unknown(format!("the reply has no status; HTTP status {http}")))
}

/// Converts the reply of a server stream. The HTTP status is always 200: the status of the call is in the last message.
pub fn stream<R>(call: &ConnectCall, reply: Response<R>) -> Response<Body>
where
    R: http_body::Body<Data = Bytes, Error: Display + Send> + Send + 'static,
{
    let (parts, body) = reply.into_parts();
    let mut response = Response::new(Body::empty());
    add_metadata(response.headers_mut(), &parts.headers, &HeaderMap::new());
    let content_type = if call.format == Format::Json { STREAM_JSON } else { STREAM_PROTOBUF };
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    if call.accepts_gzip {
        response.headers_mut().insert(STREAM_ENCODING, GZIP);
    }
    // A reply without a body has the status in its headers.
    let end = Status::from_header_map(&parts.headers).map(|status| end_of_stream(&status, &HeaderMap::new()));
    let body = StreamBody {
        body,
        received: BytesMut::new(),
        json: call.output(),
        accepts_gzip: call.accepts_gzip,
        end,
        has_ended: false,
    };
    response.map(|_| Body::new(body))
}

pin_project! {
    /// The messages of a stream, each of which is one frame of the body.
    struct StreamBody<R> {
        #[pin]
        body: R,
        // The beginning of a message of which a part is missing.
        received: BytesMut,
        // The type of the messages if they are JSON.
        json: Option<MessageDescriptor>,
        accepts_gzip: bool,
        // The last message, once it is known.
        end: Option<Bytes>,
        has_ended: bool,
    }
}

impl<R> http_body::Body for StreamBody<R>
where
    R: http_body::Body<Data = Bytes, Error: Display>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        if *this.has_ended {
            return Poll::Ready(None);
        }
        loop {
            if let Some(message) = take_message(this.received) {
                match in_format(this.json.as_ref(), message) {
                    Ok(message) => {
                        let compressed = compress(&message, *this.accepts_gzip);
                        let flags = if compressed.is_some() { COMPRESSED } else { 0 };
                        let bytes = with_prefix(flags, &compressed.unwrap_or(message));
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                    Err(status) => *this.end = Some(end_of_stream(&status, &HeaderMap::new())),
                }
            }
            if let Some(end) = this.end.take() {
                *this.has_ended = true;
                return Poll::Ready(Some(Ok(Frame::data(end))));
            }
            *this.end = match ready!(this.body.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.received.extend_from_slice(&data);
                        None
                    }
                    Err(frame) => frame.trailers_ref().map(|trailers| {
                        end_of_stream(&status(&HeaderMap::new(), Some(trailers), StatusCode::OK), trailers)
                    }),
                },
                Some(Err(error)) => Some(end_of_stream(&Status::internal(error.to_string()), &HeaderMap::new())),
                None => Some(end_of_stream(&Status::unknown("the stream ended without a status"), &HeaderMap::new())),
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

/// Takes a whole message, without its prefix, from the front of the buffer.
fn take_message(received: &mut BytesMut) -> Option<Bytes> {
    let (prefix, rest) = received.split_first_chunk::<MESSAGE_PREFIX_BYTES>()?;
    let [_, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if rest.len() < length {
        return None;
    }
    received.advance(MESSAGE_PREFIX_BYTES);
    let message = received.split_to(length).freeze();
    if received.is_empty() {
        // A stream is idle most of the time; it keeps no buffer then.
        *received = BytesMut::new();
    }
    Some(message)
}

/// Returns the last message of a stream: its status, and the metadata of the trailers.
fn end_of_stream(status: &Status, trailers: &HeaderMap) -> Bytes {
    let mut end = serde_json::Map::new();
    if status.code() != Code::Ok {
        end.insert("error".into(), serde_json::to_value(ConnectError::from(status)).unwrap_or_default());
    }
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in metadata(trailers) {
        values.entry(name.as_str()).or_default().extend(value.to_str());
    }
    if !values.is_empty() {
        end.insert("metadata".into(), serde_json::to_value(values).unwrap_or_default());
    }
    with_prefix(END_OF_STREAM, &serde_json::to_vec(&end).unwrap_or_default())
}
