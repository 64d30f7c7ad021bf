//! Measures and traces every call, streams to their end: the outermost layer, so that it sees what the caller is answered,
//! whoever answers.
//!
//! Whatever callers send, the methods it tells apart are those of our services; all others are one.

use crate::grpc::{FILE_DESCRIPTOR_SET, status};
use crate::statistics::RpcStatistics;
use crate::sync::Cause;
use crate::telemetry::{CallContext, CallSpan, Telemetry};
use crate::transport::Peer;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use prost_reflect::DescriptorPool;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Layer, Service};

/// What comes before each message: a flag, and its length in four bytes.
const PREFIX_BYTES: usize = 5;

/// `package.Service/Method` of all services that there are.
static METHODS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let reflection =
        [tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET];
    let sets = [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET].into_iter().chain(reflection);
    sets.flat_map(methods).collect()
});

fn methods(descriptors: &[u8]) -> Vec<String> {
    let pool = DescriptorPool::decode(descriptors).unwrap_or_default();
    let of_service = |service: prost_reflect::ServiceDescriptor| {
        let methods = service.methods().map(|method| format!("{}/{}", service.full_name(), method.name()));
        methods.collect::<Vec<_>>()
    };
    pool.services().flat_map(of_service).collect()
}

#[derive(Debug, Clone)]
pub struct TelemetryLayer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    telemetry: Telemetry,
    rpc: Arc<RpcStatistics>,
}

impl TelemetryLayer {
    pub fn new(telemetry: Telemetry) -> Self {
        let methods = METHODS.iter().map(String::as_str);
        let rpc = Arc::new(RpcStatistics::new(methods, status::REASONS.iter().copied()));
        Self(Arc::new(Shared { telemetry, rpc }))
    }

    /// What it counts.
    pub fn statistics(&self) -> &Arc<RpcStatistics> {
        &self.0.rpc
    }
}

impl<S> Layer<S> for TelemetryLayer {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Measured { inner, shared: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
pub struct Measured<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<Request<B>> for Measured<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = MeasuredFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let call = Call::begin(self.shared.clone(), &request);
        if let Some(cause) = call.cause() {
            request.extensions_mut().insert(cause);
        }
        let (shared, method) = (self.shared.clone(), call.method);
        let request = request.map(|inner| RequestBody { inner, shared, method, messages: Messages::default() });
        let entered = call.span.as_ref().map(CallSpan::enter);
        let inner = self.inner.call(request);
        drop(entered);
        MeasuredFuture { inner, call: Some(call) }
    }
}

/// One call, from its head to its last byte. One that is dropped before its end was cancelled.
#[derive(Debug)]
struct Call {
    shared: Arc<Shared>,
    method: usize,
    began: Instant,
    span: Option<CallSpan>,
    ended: bool,
}

impl Call {
    fn begin<B>(shared: Arc<Shared>, request: &Request<B>) -> Self {
        let path = request.uri().path();
        let method = shared.rpc.method(path);
        shared.rpc.begin(method);
        let span = shared.telemetry.begin_call(&CallContext {
            method: shared.rpc.name(method),
            path,
            headers: request.headers(),
            client: request.extensions().get::<Peer>().map(|peer| peer.address),
        });
        Self { shared, method, began: Instant::now(), span, ended: false }
    }

    fn cause(&self) -> Option<Cause> {
        self.span.as_ref().map(CallSpan::cause)
    }

    /// `headers`: those that hold the status, or would.
    fn end_with(&mut self, headers: &HeaderMap, otherwise: Code) {
        if headers.get(Status::GRPC_STATUS).is_some_and(|status| status.as_bytes() == b"0") {
            return self.end(Code::Ok);
        }
        let status = Status::from_header_map(headers);
        let code = status.as_ref().map_or(otherwise, Status::code);
        if code != Code::Ok {
            let reason = status.as_ref().and_then(Status::get_details_error_info).map(|info| info.reason);
            self.shared.rpc.add_refusal(reason.as_deref());
        }
        self.end(code);
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let (name, is_fault, took) = (status::code_name(code), is_fault(code), self.began.elapsed());
        let method = self.shared.rpc.name(self.method);
        self.shared.rpc.end(self.method);
        self.shared.telemetry.record_call(method, name, is_fault, took);
        let entered = self.span.as_ref().map(CallSpan::enter);
        tracing::debug!(method, status = name, took_us = took.as_micros() as u64, "a call has ended");
        drop(entered);
        if let Some(span) = self.span.take() {
            span.end(name, is_fault);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

pin_project! {
    pub struct MeasuredFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F, E> Future for MeasuredFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.call.as_ref().and_then(|call| call.span.as_ref()).map(CallSpan::enter);
        let polled = this.inner.poll(context);
        drop(entered);
        let response = ready!(polled);
        let Some(mut call) = this.call.take() else { return Poll::Ready(response) };
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                call.end(Code::Unknown);
                return Poll::Ready(Err(error));
            }
        };
        if response.headers().contains_key(Status::GRPC_STATUS) {
            call.end_with(response.headers(), Code::Unknown);
            return Poll::Ready(Ok(response));
        }
        if response.status() != http::StatusCode::OK {
            call.end_with(response.headers(), code_of_http(response.status()));
            return Poll::Ready(Ok(response));
        }
        let messages = Messages::default();
        Poll::Ready(Ok(response.map(|inner| Body::new(ResponseBody { inner, call, messages }))))
    }
}

pin_project! {
    /// Counts the messages that come in.
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        shared: Arc<Shared>,
        method: usize,
        messages: Messages,
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.project();
        let polled = ready!(this.inner.poll_frame(context));
        if let Some(Ok(frame)) = &polled
            && let Some(bytes) = frame.data_ref()
        {
            this.shared.rpc.add_received(*this.method, this.messages.handle_bytes(bytes));
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Counts the messages that go out, and sees how the call ends.
struct ResponseBody {
    inner: Body,
    call: Call,
    messages: Messages,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let entered = this.call.span.as_ref().map(CallSpan::enter);
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        drop(entered);
        let polled = ready!(polled);
        match &polled {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    let messages = this.messages.handle_bytes(bytes);
                    this.call.shared.rpc.add_sent(this.call.method, messages);
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.call.end_with(trailers, Code::Unknown);
                }
            }
            Some(Err(status)) => this.call.end(status.code()),
            // Without trailers nobody knows how it ended.
            None => this.call.end(Code::Unknown),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Finds where messages end in the bytes of a body, however they are cut into frames.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix that are there.
    filled: usize,
    /// Bytes of the message that are missing, once its prefix is whole.
    missing: usize,
}

impl Messages {
    /// How many messages are whole with these bytes.
    fn handle_bytes(&mut self, mut bytes: &[u8]) -> u64 {
        let mut whole = 0;
        while !bytes.is_empty() {
            if self.filled < PREFIX_BYTES {
                let taken = bytes.len().min(PREFIX_BYTES - self.filled);
                self.prefix[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
                self.filled += taken;
                bytes = &bytes[taken..];
                if self.filled < PREFIX_BYTES {
                    break;
                }
                let [_, length @ ..] = self.prefix;
                self.missing = u32::from_be_bytes(length) as usize;
            }
            let taken = bytes.len().min(self.missing);
            self.missing -= taken;
            bytes = &bytes[taken..];
            if self.missing == 0 {
                whole += 1;
                self.filled = 0;
            }
        }
        whole
    }
}

/// Whether the server is to blame, as the semantic conventions have it.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// What a client makes of an answer that is none of gRPC: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
fn code_of_http(status: http::StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        // To a client these are UNKNOWN, but here they are known to be the caller's fault.
        405 | 415 => Code::InvalidArgument,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(lengths: &[usize]) -> Vec<u8> {
        let message = |length: &usize| {
            let mut bytes = vec![0];
            bytes.extend((*length as u32).to_be_bytes());
            bytes.resize(PREFIX_BYTES + length, 7);
            bytes
        };
        lengths.iter().flat_map(message).collect()
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let bytes = framed(&[0, 1, 300, 0, 0, 70_000, 5]);
        for piece in [1, 2, 3, 4, 5, 6, 7, 100, 16_384, bytes.len()] {
            let mut messages = Messages::default();
            let counted: u64 = bytes.chunks(piece).map(|piece| messages.handle_bytes(piece)).sum();
            assert_eq!(counted, 7, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_message_counts_when_it_is_whole() {
        let bytes = framed(&[10]);
        let mut messages = Messages::default();
        assert_eq!(messages.handle_bytes(&bytes[..bytes.len() - 1]), 0);
        assert_eq!(messages.handle_bytes(&bytes[bytes.len() - 1..]), 1);
    }

    #[test]
    fn all_methods_of_our_services_are_known() {
        assert!(METHODS.iter().any(|method| method == "slotcast.v1.InventoryService/AddItem"), "{METHODS:?}");
        assert!(METHODS.iter().any(|method| method == "slotcast.v1.AdminService/Drain"), "{METHODS:?}");
    }
}
