//! Wraps third-party services whose streams do not end on their own (health watches, reflection), so that their streams
//! also end when the transport signals it ([`DrainSignal`]). Slotcast's own services handle the signal themselves.
//!
//! Like tonic, third-party services reply INTERNAL to a request that cannot be decoded. That is an error of the
//! caller and not of the server, so the wrapper replaces it by INVALID_ARGUMENT, as in Slotcast's own services.

use crate::status;
use crate::transport::{Connection, DrainSignal};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

#[derive(Debug, Clone)]
pub struct DrainService<S> {
    inner: S,
}

impl<S> DrainService<S> {
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: NamedService> NamedService for DrainService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for DrainService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = DrainFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let drain_signal = request.extensions().get().map(Connection::drain_signal);
        DrainFuture { inner: self.inner.call(request), drain_signal }
    }
}

pin_project! {
    pub struct DrainFuture<F> {
        #[pin]
        inner: F,
        drain_signal: Option<DrainSignal>,
    }
}

impl<F, E> Future for DrainFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(context))?;
        replace_decode_error(response.headers_mut());
        let Some(drain_signal) = this.drain_signal.take() else { return Poll::Ready(Ok(response)) };
        let drain_signal = Box::pin(async move { drain_signal.wait().await });
        Poll::Ready(Ok(response.map(|inner| Body::new(DrainBody { inner, drain_signal: Some(drain_signal) }))))
    }
}

/// The start of tonic's error message for a request that cannot be decoded.
const NOT_DECODED: &str = "failed to decode";

/// Replaces the status INTERNAL of a request that cannot be decoded by INVALID_ARGUMENT with the reason MALFORMED, in
/// headers or trailers.
fn replace_decode_error(headers: &mut HeaderMap) {
    let status = headers.contains_key(Status::GRPC_STATUS).then(|| Status::from_header_map(headers)).flatten();
    let Some(status) = status.filter(|status| status.code() == Code::Internal) else { return };
    if status.message().starts_with(NOT_DECODED) {
        for name in [Status::GRPC_STATUS, Status::GRPC_MESSAGE, Status::GRPC_STATUS_DETAILS] {
            headers.remove(name);
        }
        // The message was read from a header, so it can be written to one.
        let _ = status::malformed(status.message()).add_header(headers);
    }
}

struct DrainBody {
    inner: Body,
    /// `None` once the body has ended.
    drain_signal: Option<BoxFuture<'static, ()>>,
}

impl http_body::Body for DrainBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(drain_signal) = &mut this.drain_signal else { return Poll::Ready(None) };
        // Pending messages are sent first: a health watch reports that the services are NOT_SERVING.
        if let Poll::Ready(mut frame) = Pin::new(&mut this.inner).poll_frame(context) {
            if let Some(Ok(frame)) = &mut frame
                && let Some(trailers) = frame.trailers_mut()
            {
                replace_decode_error(trailers);
            }
            return Poll::Ready(frame);
        }
        ready!(drain_signal.as_mut().poll(context));
        this.drain_signal = None;
        let mut trailers = HeaderMap::new();
        let status = status::draining();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.drain_signal.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    #[test]
    fn only_a_decode_error_of_a_request_becomes_an_invalid_argument() {
        let after = |status: Status| {
            let mut headers = HeaderMap::new();
            status.add_header(&mut headers).expect("it can be written");
            replace_decode_error(&mut headers);
            Status::from_header_map(&headers).expect("a status")
        };
        let malformed = after(Status::internal("failed to decode Protobuf message: buffer underflow"));
        assert_eq!(malformed.code(), Code::InvalidArgument);
        assert_eq!(malformed.get_details_error_info().expect("details").reason, "MALFORMED");
        for other in [Status::internal("the disk"), Status::not_found("failed to decode"), Status::ok("")] {
            assert_eq!(after(other.clone()).code(), other.code());
        }
    }
}
