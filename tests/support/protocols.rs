//! Calls over each protocol that the server speaks, written out by hand: a gRPC message goes out in the form of the protocol,
//! and its reply comes back as a gRPC message or status.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use slotcast::wire::FILE_DESCRIPTOR_SET;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tonic::{Code, Status};

const PREFIX_BYTES: usize = 5;
const END_OF_STREAM: u8 = 2;
const WEB_TRAILERS: u8 = 0x80;

/// A protocol other than gRPC, with the version of HTTP over which it is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebProtocol {
    /// Over HTTP/1.1.
    ConnectJson,
    /// Over HTTP/2.
    ConnectProtobuf,
    /// Over HTTP/1.1.
    GrpcWeb,
    /// Over HTTP/2.
    GrpcWebText,
}

impl WebProtocol {
    pub const ALL: [Self; 4] = [Self::ConnectJson, Self::ConnectProtobuf, Self::GrpcWeb, Self::GrpcWebText];

    /// Returns whether the protocol has the kind of the method: the server has no streams of requests over Connect.
    pub fn can_call(self, path: &str) -> bool {
        let is_grpc_web = matches!(self, Self::GrpcWeb | Self::GrpcWebText);
        !path.ends_with("/Watch") && (is_grpc_web || !path.contains("ServerReflection"))
    }

    fn is_http1(self) -> bool {
        matches!(self, Self::ConnectJson | Self::GrpcWeb)
    }

    /// Returns the first message of the reply.
    pub async fn call(
        self,
        address: SocketAddr,
        headers: &[(&'static str, String)],
        path: &str,
        message: &[u8],
    ) -> Result<Vec<u8>, Status> {
        assert!(self.can_call(path));
        let method = method(path);
        let is_stream = method.as_ref().is_some_and(MethodDescriptor::is_server_streaming);
        let content_type = self.content_type(is_stream);
        let request = Request::post(path).header("content-type", content_type).header("accept", content_type);
        let request = request.header("host", "slotcast");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let body = self.request_body(method.as_ref(), is_stream, message);
        let response = send(address, self.is_http1(), request.body(Full::new(body)).expect("a request")).await;
        match self {
            Self::GrpcWeb | Self::GrpcWebText => self.read_grpc_web(response).await,
            Self::ConnectJson | Self::ConnectProtobuf if is_stream => self.read_stream(method.as_ref(), response).await,
            Self::ConnectJson | Self::ConnectProtobuf => self.read_unary(method.as_ref(), response).await,
        }
    }

    fn content_type(self, is_stream: bool) -> &'static str {
        match (self, is_stream) {
            (Self::ConnectJson, false) => "application/json",
            (Self::ConnectJson, true) => "application/connect+json",
            (Self::ConnectProtobuf, false) => "application/proto",
            (Self::ConnectProtobuf, true) => "application/connect+proto",
            (Self::GrpcWeb, _) => "application/grpc-web+proto",
            (Self::GrpcWebText, _) => "application/grpc-web-text",
        }
    }

    fn request_body(self, method: Option<&MethodDescriptor>, is_stream: bool, message: &[u8]) -> Bytes {
        match self {
            Self::ConnectJson => {
                let json = method.map_or_else(|| "{}".into(), |method| to_json(method.input(), message));
                if is_stream { prefixed(json.as_bytes()) } else { Bytes::from(json) }
            }
            Self::ConnectProtobuf if !is_stream => Bytes::copy_from_slice(message),
            Self::ConnectProtobuf | Self::GrpcWeb => prefixed(message),
            Self::GrpcWebText => Bytes::from(STANDARD.encode(prefixed(message))),
        }
    }

    async fn read_unary(
        self,
        method: Option<&MethodDescriptor>,
        response: Response<Incoming>,
    ) -> Result<Vec<u8>, Status> {
        let is_ok = response.status() == 200;
        let is_json = response.headers()["content-type"] == "application/json";
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        if !is_ok {
            assert!(is_json, "an error is JSON");
            return Err(connect_status(&serde_json::from_slice(&body).expect("JSON")));
        }
        assert_eq!(is_json, self == Self::ConnectJson);
        Ok(self.message(method, &body))
    }

    async fn read_stream(
        self,
        method: Option<&MethodDescriptor>,
        response: Response<Incoming>,
    ) -> Result<Vec<u8>, Status> {
        assert_eq!(response.status(), 200, "the status of a stream is in its last message");
        let (flags, message) = first_message(response.into_body(), false).await;
        if flags & END_OF_STREAM == 0 {
            return Ok(self.message(method, &message));
        }
        let end: serde_json::Value = serde_json::from_slice(&message).expect("JSON");
        Err(connect_status(&end["error"]))
    }

    async fn read_grpc_web(self, response: Response<Incoming>) -> Result<Vec<u8>, Status> {
        assert_eq!(response.status(), 200, "the status of gRPC-Web is in its trailers");
        if let Some(status) = Status::from_header_map(response.headers()) {
            return Err(status);
        }
        let (flags, message) = first_message(response.into_body(), self == Self::GrpcWebText).await;
        if flags & WEB_TRAILERS == 0 {
            return Ok(message.to_vec());
        }
        let lines = std::str::from_utf8(&message).expect("text");
        let trailers = lines.lines().filter_map(|line| line.split_once(':'));
        let trailers =
            trailers.map(|(name, value)| (name.parse().expect("a name"), value.trim().parse().expect("a value")));
        Err(Status::from_header_map(&HeaderMap::from_iter(trailers)).expect("a status"))
    }

    fn message(self, method: Option<&MethodDescriptor>, body: &[u8]) -> Vec<u8> {
        match (self, method) {
            (Self::ConnectJson, Some(method)) => {
                let mut deserializer = serde_json::Deserializer::from_slice(body);
                let message = DynamicMessage::deserialize(method.output(), &mut deserializer).expect("a message");
                message.encode_to_vec()
            }
            _ => body.to_vec(),
        }
    }
}

/// Sends a request on a new connection.
pub async fn send(address: SocketAddr, is_http1: bool, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let socket = TokioIo::new(TcpStream::connect(address).await.expect("a server"));
    if is_http1 {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(socket).await.expect("a connection");
        tokio::spawn(connection);
        return sender.send_request(request).await.expect("a reply");
    }
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await.expect("a connection");
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    parts.headers.remove("host");
    parts.uri = format!("http://slotcast{}", parts.uri.path()).parse().expect("a URI");
    sender.send_request(Request::from_parts(parts, body)).await.expect("a reply")
}

/// Reads a body until its first message is complete, and returns the message with its flags.
async fn first_message(mut body: Incoming, is_base64: bool) -> (u8, Bytes) {
    let mut received = BytesMut::new();
    loop {
        let bytes = match is_base64 {
            // Each frame of the body is encoded by itself, so padding is not only at the end.
            true => received.chunks_exact(4).flat_map(|group| STANDARD.decode(group).expect("base64")).collect(),
            false => received.to_vec(),
        };
        if let Some((prefix, message)) = bytes.split_first_chunk::<PREFIX_BYTES>() {
            let [flags, length @ ..] = *prefix;
            let length = u32::from_be_bytes(length) as usize;
            if message.len() >= length {
                return (flags, Bytes::copy_from_slice(&message[..length]));
            }
        }
        let frame = body.frame().await.expect("the body ends with a message").expect("the body is not broken");
        received.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
}

/// Returns the method of a path, if it is one of Slotcast's services or of the health service.
fn method(path: &str) -> Option<MethodDescriptor> {
    let mut pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
    pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET).expect("descriptors");
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    pool.get_service_by_name(service)?.methods().find(|known| known.name() == method)
}

fn to_json(descriptor: prost_reflect::MessageDescriptor, message: &[u8]) -> String {
    let message = DynamicMessage::decode(descriptor, message).expect("a message");
    serde_json::to_string(&message).expect("JSON")
}

/// Returns a message with the prefix of gRPC and of Connect's streams.
pub fn prefixed(message: &[u8]) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    bytes.into()
}

/// Returns the status that a Connect error describes.
pub fn connect_status(error: &serde_json::Value) -> Status {
    let code = (1..=16).map(Code::from_i32).find(|code| connect_name(*code) == error["code"]).expect("a known code");
    let message = error["message"].as_str().unwrap_or_default();
    let details = error["details"].as_array().cloned().unwrap_or_default();
    let mut status = tonic_types::pb::Status { code: code as i32, message: message.into(), ..Default::default() };
    for (index, detail) in details.iter().enumerate() {
        status.details.push(Default::default());
        status.details[index].type_url = format!("type.googleapis.com/{}", detail["type"].as_str().expect("a type"));
        let value = detail["value"].as_str().expect("a value");
        status.details[index].value = STANDARD_NO_PAD.decode(value).expect("base64");
    }
    Status::with_details(code, message, status.encode_to_vec().into())
}

/// Returns the name of a code in Connect, which is gRPC's in lower case, except for one spelling.
fn connect_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").replace("Cancelled", "Canceled").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}
