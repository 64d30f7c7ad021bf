//! The short path of the calls of `InventoryService`: between hyper and the generated trait, without a router and without
//! tonic's general codec, which also serves streams of requests and compressed messages.
//!
//! Tonic handles everything else: other services and unknown methods, requests with a
//! `grpc-encoding`, and in [`read_message`] each body that is not one whole message. So every status is tonic's own.

use super::service::Service;
use crate::wire::codec::{MESSAGE_PREFIX_BYTES, SmallBufferCodec};
use crate::wire::entries::UNCHECKED_BYTES_MAX;
use crate::wire::reply;
use crate::wire::v1::inventory_service_server::InventoryService;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::Frame;
use http_body_util::BodyExt;
use prost::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codec::{Codec, Streaming};
use tonic::{Request, Status};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");

/// Serves the calls of `InventoryService`, and passes all other requests to `fallback`, which also serves these
/// methods if their requests are unusual.
#[derive(Clone)]
pub struct ShortPath<F> {
    service: Arc<Service>,
    /// Maximum size of a request message, in bytes.
    message_bytes_max: usize,
    fallback: F,
}

impl<F> ShortPath<F> {
    pub fn new(service: Arc<Service>, message_bytes_max: usize, fallback: F) -> Self {
        Self { service, message_bytes_max, fallback }
    }
}

/// Selects the trait method of a path. Evaluates to `$fallback` for all other paths.
macro_rules! call_method {
    ($self:ident, $request:ident, [$($path:literal => $method:ident),+ $(,)?], $fallback:expr) => {
        match $request.uri().path() {
            "/slotcast.v1.InventoryService/GetInventory" => {
                let (service, bytes_max) = ($self.service.clone(), $self.message_bytes_max);
                Box::pin(async move { Ok(get_inventory(&service, bytes_max, $request).await) })
            }
            "/slotcast.v1.InventoryService/SubscribeInventory" => {
                let (service, bytes_max) = ($self.service.clone(), $self.message_bytes_max);
                Box::pin(async move { Ok(subscribe_inventory(&service, bytes_max, $request).await) })
            }
            $(concat!("/slotcast.v1.InventoryService/", $path) => {
                let (service, bytes_max) = ($self.service.clone(), $self.message_bytes_max);
                Box::pin(async move {
                    let reply = match read_request($request, bytes_max).await {
                        Ok(request) => service.$method(request).await,
                        Err(status) => Err(status),
                    };
                    Ok(match reply {
                        Ok(reply) => {
                            let (metadata, message, extensions) = reply.into_parts();
                            response(metadata.into_headers(), extensions, encode(&message))
                        }
                        Err(status) => status.into_http(),
                    })
                })
            })+
            _ => $fallback,
        }
    };
}

impl<F, B> tower::Service<http::Request<B>> for ShortPath<F>
where
    F: tower::Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.fallback.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.headers().contains_key(ENCODING) {
            return Box::pin(self.fallback.call(request));
        }
        call_method!(
            self,
            request,
            [
                "CreateInventory" => create_inventory,
                "ListInventories" => list_inventories,
                "DeleteInventory" => delete_inventory,
                "AddItem" => add_item,
                "RemoveItem" => remove_item,
                "MoveItem" => move_item,
                "DropItem" => drop_item,
                "CraftItem" => craft_item,
                "TransferItem" => transfer_item,
                "SetSlot" => set_slot,
                "RearrangeInventory" => rearrange_inventory,
                "Transact" => transact,
                "ReportDesync" => report_desync,
                "GetCatalog" => get_catalog,
            ],
            Box::pin(self.fallback.call(request))
        )
    }
}

/// Same as the trait method, but encodes the inventory directly from its slots.
async fn get_inventory<B>(service: &Service, bytes_max: usize, request: http::Request<B>) -> http::Response<Body>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    let found = match read_request(request, bytes_max).await {
        Ok(request) => service.find(&request).await,
        Err(status) => Err(status),
    };
    match found {
        Ok(found) => {
            let message = reply::inventory_message(service.engine.catalog(), &found);
            response(HeaderMap::new(), http::Extensions::new(), message)
        }
        Err(status) => status.into_http(),
    }
}

/// Same as the trait method, but the body of the reply is the subscription's own, without tonic's encoder: its buffer would
/// grow with the first full state and stay with the stream.
async fn subscribe_inventory<B>(service: &Service, bytes_max: usize, request: http::Request<B>) -> http::Response<Body>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    let opened = match read_request(request, bytes_max).await {
        Ok(request) => service.subscribe(&request).await,
        Err(status) => Err(status),
    };
    match opened {
        Ok(body) => reply_with(HeaderMap::new(), http::Extensions::new(), Body::new(body)),
        Err(status) => status.into_http(),
    }
}

/// Reads a unary request. Trailers of a request are ignored, because no method uses metadata of its own.
async fn read_request<T, B>(request: http::Request<B>, bytes_max: usize) -> Result<Request<T>, Status>
where
    T: Message + Default + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let message = read_message(body, bytes_max).await?;
    Ok(Request::from_http(http::Request::from_parts(parts, message)))
}

/// Reads the message of a unary request, or of the request of a server stream, that is not compressed.
///
/// # Errors
///
/// The status that tonic gives a body that is not exactly one valid message of at most `bytes_max` bytes.
pub async fn read_message<T, B>(mut body: B, bytes_max: usize) -> Result<T, Status>
where
    T: Message + Default + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    let first = body.frame().await;
    let data = first.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
    let message = data.and_then(|data| whole_message(data, bytes_max)).and_then(|bytes| T::decode(bytes).ok());
    let Some(message) = message else { return read_unusual(first, None, body, bytes_max).await };
    loop {
        if body.is_end_stream() {
            return Ok(message);
        }
        match body.frame().await {
            None => return Ok(message),
            // Some clients end a stream with an empty frame.
            Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            next => return read_unusual(first, next, body, bytes_max).await,
        }
    }
}

/// Returns the bytes of a message if `data` is exactly one message that is not compressed, with its prefix.
fn whole_message(data: &Bytes, bytes_max: usize) -> Option<Bytes> {
    let (prefix, _) = data.split_first_chunk::<MESSAGE_PREFIX_BYTES>()?;
    let [0, length @ ..] = *prefix else { return None };
    let length = u32::from_be_bytes(length) as usize;
    // A larger one is checked by the decoder.
    let is_whole = length <= bytes_max.min(UNCHECKED_BYTES_MAX) && data.len() == MESSAGE_PREFIX_BYTES + length;
    is_whole.then(|| data.slice(MESSAGE_PREFIX_BYTES..))
}

/// A frame of a body, or `None` at its end.
type NextFrame<B> = Option<Result<Frame<Bytes>, <B as http_body::Body>::Error>>;

/// Reads the message with tonic's decoder, from the frames that were already read and from the rest of the body.
#[cold]
fn read_unusual<T, B>(
    first: NextFrame<B>,
    second: NextFrame<B>,
    rest: B,
    bytes_max: usize,
) -> BoxFuture<'static, Result<T, Status>>
where
    T: Message + Default + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Unpin + Send + 'static,
{
    let decoder = SmallBufferCodec::<(), T>::default().decoder();
    let body = ReplayedBody { first, second, rest };
    let mut messages = Streaming::new_request(decoder, body, None, Some(bytes_max));
    Box::pin(async move {
        let message = messages.message().await?;
        let message = message.ok_or_else(|| Status::internal("Missing request message."))?;
        // Reads the rest of the body, which may be malformed.
        messages.trailers().await?;
        Ok(message)
    })
}

/// A body whose first frames have already been read.
struct ReplayedBody<B: http_body::Body> {
    first: NextFrame<B>,
    second: NextFrame<B>,
    rest: B,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> Unpin for ReplayedBody<B> {}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for ReplayedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<NextFrame<B>> {
        match self.first.take().or_else(|| self.second.take()) {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.second.is_none() && self.rest.is_end_stream()
    }
}

/// Encodes a message with its prefix.
fn encode<T: Message>(message: &T) -> Bytes {
    let length = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(MESSAGE_PREFIX_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(length as u32);
    message.encode_raw(&mut buffer);
    buffer.freeze()
}

/// Returns the response of a call that succeeded. `message` includes the prefix.
fn response(headers: HeaderMap, extensions: http::Extensions, message: Bytes) -> http::Response<Body> {
    reply_with(headers, extensions, Body::new(ReplyBody::Message(message)))
}

fn reply_with(headers: HeaderMap, extensions: http::Extensions, body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    *response.headers_mut() = headers;
    *response.extensions_mut() = extensions;
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    response
}

/// The body of the reply to a call that succeeded: one message, and the status in the trailers.
enum ReplyBody {
    Message(Bytes),
    Trailers,
    Ended,
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(match std::mem::replace(&mut *self, Self::Ended) {
            Self::Message(message) => {
                *self = Self::Trailers;
                Some(Ok(Frame::data(message)))
            }
            Self::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(STATUS, OK);
                Some(Ok(Frame::trailers(trailers)))
            }
            Self::Ended => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Ended)
    }
}
