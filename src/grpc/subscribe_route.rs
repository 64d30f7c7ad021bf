//! Serves `SubscribeInventory` with its own response body, and all other methods with the generated server.
//!
//! The generated server encodes each message into a buffer that grows with the first full state and stays with the
//! stream. Requests that it would refuse or decompress also go to the generated server.

use super::InventoryServiceServer;
use super::service::Service;
use crate::wire::codec::SmallBufferCodec;
use crate::wire::v1;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codec::{Codec, Streaming};
use tonic::server::NamedService;
use tonic::{Request, Status};

const PATH: &str = "/slotcast.v1.InventoryService/SubscribeInventory";
const ENCODING: &str = "grpc-encoding";

/// The inventory service over the generated server.
#[derive(Clone)]
pub struct InventoryRoutes {
    service: Arc<Service>,
    generated: InventoryServiceServer<Service>,
    message_bytes_max: usize,
}

impl InventoryRoutes {
    /// Creates the routes. Larger requests than `message_bytes_max` are refused.
    pub fn new(service: Service, message_bytes_max: usize) -> Self {
        let service = Arc::new(service);
        let generated = InventoryServiceServer::from_arc(service.clone()).max_decoding_message_size(message_bytes_max);
        Self { service, generated, message_bytes_max }
    }
}

impl NamedService for InventoryRoutes {
    const NAME: &'static str = <InventoryServiceServer<Service> as NamedService>::NAME;
}

impl<B> tower::Service<http::Request<B>> for InventoryRoutes
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != PATH || is_compressed(request.headers()) {
            return tower::Service::call(&mut self.generated, request);
        }
        let (service, message_bytes_max) = (self.service.clone(), self.message_bytes_max);
        Box::pin(
            async move { Ok(subscribe(&service, request, message_bytes_max).await.unwrap_or_else(Status::into_http)) },
        )
    }
}

fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get(ENCODING).is_some_and(|encoding| encoding != "identity")
}

async fn subscribe<B>(
    service: &Service,
    request: http::Request<B>,
    message_bytes_max: usize,
) -> Result<http::Response<Body>, Status>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let message = Box::pin(read_message(body, message_bytes_max)).await?;
    let body = service.subscribe(&Request::from_http(http::Request::from_parts(parts, message))).await?;
    let mut response = http::Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Reads the only message of a request, and the end of the request.
async fn read_message<B>(body: B, message_bytes_max: usize) -> Result<v1::SubscribeInventoryRequest, Status>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send + 'static,
{
    let mut codec = SmallBufferCodec::<v1::SubscribeInventoryResponse, v1::SubscribeInventoryRequest>::default();
    let mut messages = Streaming::new_request(codec.decoder(), body, None, Some(message_bytes_max));
    let message = messages.try_next().await?.ok_or_else(|| Status::internal("Missing request message."))?;
    messages.trailers().await?;
    Ok(message)
}
