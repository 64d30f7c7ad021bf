//! Measures and traces every call, and streams until they end. This is the outermost layer, so it sees the replies of
//! all layers.
//!
//! The layer distinguishes only the methods of the registered services; all unknown methods count as one, whatever
//! callers send.

use super::access_log::{AccessLog, AccessRecord, CallOutcome};
use super::content_type::UNSUPPORTED_PROTOCOL;
use super::messages::MessageCounter;
use crate::statistics::{Method, OTHER_METHOD, RpcStatistics};
use crate::sync::TraceContext;
use crate::telemetry::{CallContext, CallDurations, CallSpan, Telemetry};
use crate::transport::Connection;
use crate::wire::reason::code_name;
use crate::wire::{ErrorReason, FILE_DESCRIPTOR_SET};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use prost_reflect::DescriptorPool;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// All methods of all services, as `package.Service/Method`, and whether the reply of each is a stream.
static METHODS: LazyLock<Vec<(String, bool)>> = LazyLock::new(|| {
    let reflection =
        [tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET];
    let sets = [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET].into_iter().chain(reflection);
    sets.flat_map(methods).collect()
});

fn methods(descriptors: &[u8]) -> Vec<(String, bool)> {
    let pool = DescriptorPool::decode(descriptors).unwrap_or_default();
    let service_methods = |service: prost_reflect::ServiceDescriptor| {
        let methods = service
            .methods()
            .map(|method| (format!("{}/{}", service.full_name(), method.name()), method.is_server_streaming()));
        methods.collect::<Vec<_>>()
    };
    pool.services().flat_map(service_methods).collect()
}

/// Returns the reasons of all errors; they are the values of the label `reason`.
fn reasons() -> impl Iterator<Item = &'static str> {
    ErrorReason::all().map(ErrorReason::name).chain([UNSUPPORTED_PROTOCOL])
}

#[derive(Debug, Clone)]
pub struct TelemetryLayer(Arc<TelemetryState>);

#[derive(Debug)]
struct TelemetryState {
    telemetry: Telemetry,
    rpc: Arc<RpcStatistics>,
    durations: CallDurations,
    access: AccessLog,
}

impl TelemetryLayer {
    pub fn new(telemetry: Telemetry) -> Self {
        let methods = METHODS.iter().map(|(name, is_stream)| Method { name, is_stream: *is_stream });
        let rpc = Arc::new(RpcStatistics::new(methods, reasons()));
        let access = AccessLog::new(telemetry.access_log(), reasons());
        let durations = telemetry.call_durations(rpc.names());
        Self(Arc::new(TelemetryState { telemetry, rpc, durations, access }))
    }

    /// Returns the counts of calls.
    pub fn statistics(&self) -> &Arc<RpcStatistics> {
        &self.0.rpc
    }
}

impl<S> Layer<S> for TelemetryLayer {
    type Service = TelemetryService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TelemetryService { inner, shared: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
pub struct TelemetryService<S> {
    inner: S,
    shared: Arc<TelemetryState>,
}

impl<S, B> Service<Request<B>> for TelemetryService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<Body>>,
{
    type Response = Response<ResponseBody>;
    type Error = S::Error;
    type Future = TelemetryFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // Boxed, because the call moves from the future to the body.
        let call = Box::new(ActiveCall::begin(self.shared.clone(), &request));
        if let Some(trace) = call.trace_context() {
            request.extensions_mut().insert(trace);
        }
        request.extensions_mut().insert(call.record.caller_record());
        let (shared, method) = (self.shared.clone(), call.method);
        let request = request.map(|inner| RequestBody { inner, shared, method, messages: MessageCounter::default() });
        let entered = call.span.as_deref().map(CallSpan::enter);
        let inner = self.inner.call(request);
        drop(entered);
        TelemetryFuture { inner, call: Some(call) }
    }
}

/// A call, from its headers to the last byte of its response. A call that is dropped before it has ended counts as
/// cancelled.
#[derive(Debug)]
struct ActiveCall {
    shared: Arc<TelemetryState>,
    method: usize,
    start: Instant,
    record: AccessRecord,
    /// Boxed, because an open stream keeps it, and most calls have none.
    span: Option<Box<CallSpan>>,
    /// Whether the call is a stream that was opened successfully.
    is_open: bool,
    ended: bool,
}

impl ActiveCall {
    fn begin<B>(shared: Arc<TelemetryState>, request: &Request<B>) -> Self {
        let path = request.uri().path();
        let method = shared.rpc.method(path);
        shared.rpc.start_call(method);
        let name = shared.rpc.name(method);
        let connection: Option<&Connection> = request.extensions().get();
        let client = connection.map(|connection| connection.peer().address);
        let unknown_path = Some(path).filter(|_| name == OTHER_METHOD);
        let record = AccessRecord::new(request.headers(), unknown_path, connection.cloned());
        let context = CallContext { method: name, path, headers: request.headers(), client };
        let span = shared.telemetry.start_call(&context).map(Box::new);
        Self { shared, method, start: Instant::now(), record, span, is_open: false, ended: false }
    }

    fn trace_context(&self) -> Option<TraceContext> {
        self.span.as_deref().map(CallSpan::trace_context)
    }

    fn end(&mut self, outcome: &CallOutcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let code = outcome.code();
        if outcome.is_error() {
            self.shared.rpc.add_failure(outcome.reason.as_deref());
        }
        let (status, is_fault, duration) = (code_name(code), is_server_fault(code), self.start.elapsed());
        let method = self.shared.rpc.name(self.method);
        self.shared.rpc.end_call(self.method);
        if self.is_open {
            self.shared.telemetry.record_stream(method, status, duration);
        } else {
            self.shared.durations.record(self.method, code as usize, status, is_fault, duration);
        }
        let entered = self.span.as_deref().map(CallSpan::enter);
        self.shared.access.log(&self.record, method, status, outcome, duration);
        drop(entered);
        if let Some(span) = self.span.take() {
            span.end(status, is_fault);
        }
    }
}

impl Drop for ActiveCall {
    fn drop(&mut self) {
        self.end(&CallOutcome::of(Code::Cancelled));
    }
}

pin_project! {
    pub struct TelemetryFuture<F> {
        #[pin]
        inner: F,
        call: Option<Box<ActiveCall>>,
    }
}

impl<F, E> Future for TelemetryFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<ResponseBody>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.call.as_ref().and_then(|call| call.span.as_deref()).map(CallSpan::enter);
        let polled = this.inner.poll(context);
        drop(entered);
        let response = ready!(polled);
        let mut call = this.call.take();
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                if let Some(call) = &mut call {
                    call.end(&CallOutcome::of(Code::Unknown));
                }
                return Poll::Ready(Err(error));
            }
        };
        Poll::Ready(Ok(measure(call, response)))
    }
}

/// Ends the call if the response consists of headers only; otherwise, the body ends the call.
fn measure(mut call: Option<Box<ActiveCall>>, response: Response<Body>) -> Response<ResponseBody> {
    if let Some(started) = &mut call {
        let is_ok = response.status() == http::StatusCode::OK;
        if !is_ok || response.headers().contains_key(Status::GRPC_STATUS) {
            let code = if is_ok { Code::Unknown } else { code_of_http(response.status()) };
            started.end(&match response.extensions().get() {
                Some(not_grpc) => CallOutcome::of_not_grpc(*not_grpc, code),
                None => CallOutcome::of_headers(response.headers(), code),
            });
            call = None;
        } else {
            started.is_open = started.shared.rpc.is_stream(started.method);
        }
    }
    response.map(|inner| ResponseBody { inner, call, messages: MessageCounter::default() })
}

pin_project! {
    /// Counts the received messages.
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        shared: Arc<TelemetryState>,
        method: usize,
        messages: MessageCounter,
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

/// Counts the sent messages, and determines the outcome of the call.
#[derive(Debug)]
pub struct ResponseBody {
    inner: Body,
    /// `None` if the call ended with the headers.
    call: Option<Box<ActiveCall>>,
    messages: MessageCounter,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(call) = &mut this.call else { return Pin::new(&mut this.inner).poll_frame(context) };
        let entered = call.span.as_deref().map(CallSpan::enter);
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        drop(entered);
        let polled = ready!(polled);
        match &polled {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    let messages = this.messages.handle_bytes(bytes);
                    call.shared.rpc.add_sent(call.method, messages);
                } else if let Some(trailers) = frame.trailers_ref() {
                    call.end(&CallOutcome::of_headers(trailers, Code::Unknown));
                }
            }
            Some(Err(status)) => call.end(&CallOutcome::of(status.code())),
            // Without trailers, the outcome is unknown.
            None => call.end(&CallOutcome::of(Code::Unknown)),
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

/// Returns whether a code means a fault of the server, according to OpenTelemetry's semantic conventions.
fn is_server_fault(code: Code) -> bool {
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

/// Returns the code that a gRPC client derives from a reply that is not gRPC:
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
fn code_of_http(status: http::StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        // A client reports these as UNKNOWN, but the service knows that they are the caller's mistake.
        405 | 415 | 505 => Code::InvalidArgument,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_methods_of_the_slotcast_services_are_known() {
        assert!(METHODS.iter().any(|(method, _)| method == "slotcast.v1.InventoryService/AddItem"), "{METHODS:?}");
        assert!(METHODS.iter().any(|(method, _)| method == "slotcast.v1.AdminService/Drain"), "{METHODS:?}");
    }
}
