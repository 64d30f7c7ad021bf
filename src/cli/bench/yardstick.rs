//! The yardstick: what bare tonic costs for messages of the same size, without any of Slotcast's code. The benchmark
//! runs it as a process of its own, so that its CPU time is measured in the same way as the server's.

use super::super::CommandResult;
use super::super::output::print;
use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use prost::Message;
use std::convert::Infallible;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_prost::ProstCodec;
use tower::Service;

pub const ECHO_PATH: &str = "/bench.Yardstick/Echo";
pub const STREAM_PATH: &str = "/bench.Yardstick/Stream";
/// Size of a message of a bare stream, in bytes.
const STREAM_MESSAGE_BYTES: usize = 20;
const CONCURRENT_STREAMS_MAX: u32 = 100_000;

/// The request and the reply of all methods of the yardstick.
#[derive(Clone, PartialEq, Message)]
pub struct EchoMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub payload: Bytes,
    /// In a request of `Stream`: the number of the new stream, from 1. In a request of `Echo`: the stream that gets a
    /// message, or 0.
    #[prost(uint32, tag = "2")]
    pub stream: u32,
}

impl EchoMessage {
    /// Size of the payload of a message of some size.
    pub fn payload_bytes(message_bytes: usize) -> usize {
        let payload = message_bytes.saturating_sub(2);
        if payload < 128 { payload } else { payload - 1 }
    }
}

/// Serve the yardstick of `slotcast bench` until standard input ends.
#[derive(Debug, clap::Args)]
pub struct Yardstick {
    /// Size of the replies, in bytes.
    #[arg(long)]
    reply_bytes: usize,
}

impl Yardstick {
    pub async fn run(self) -> CommandResult {
        let reply = vec![7; EchoMessage::payload_bytes(self.reply_bytes)].into();
        let (ended, served) = tokio::sync::oneshot::channel();
        let run = move || ended.send(serve(reply).map_err(|error| error.to_string()));
        std::thread::Builder::new().name("runtime".into()).spawn(run)?;
        // The parent has the other end, so the process never outlives it.
        let input_ends = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        tokio::select! {
            served = served => Ok(served??),
            _ = input_ends => Ok(()),
        }
    }
}

/// Serves on a runtime of one thread, which is the fastest way to serve on one core.
fn serve(reply: Bytes) -> CommandResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        print(format_args!("listening on http://{}", listener.local_addr()?))?;
        let service = EchoService { reply, streams: Arc::default() };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().max_concurrent_streams(CONCURRENT_STREAMS_MAX).add_service(service);
        Ok(server.serve_with_incoming(incoming).await?)
    })
}

/// The open streams, by number.
type Streams = Mutex<Vec<Option<Arc<PendingMessages>>>>;

#[derive(Debug, Clone)]
struct EchoService {
    reply: Bytes,
    streams: Arc<Streams>,
}

#[derive(Debug, Default)]
struct PendingMessages {
    count: AtomicU32,
    waker: AtomicWaker,
}

impl EchoService {
    fn send_to(&self, stream: u32) {
        let pending = self.streams.lock().get(stream as usize).cloned().flatten();
        if let Some(pending) = pending {
            pending.count.fetch_add(1, Ordering::Release);
            pending.waker.wake();
        }
    }

    fn open(&self, stream: u32) -> StreamBody {
        let pending = Arc::<PendingMessages>::default();
        // As a subscription, a stream begins with a message.
        pending.count.store(1, Ordering::Release);
        let mut streams = self.streams.lock();
        let length = streams.len().max(stream as usize + 1);
        streams.resize(length, None);
        streams[stream as usize] = Some(pending.clone());
        let mut message = vec![0, 0, 0, 0, STREAM_MESSAGE_BYTES as u8];
        message.resize(message.len() + STREAM_MESSAGE_BYTES, 7);
        StreamBody { pending, message: message.into() }
    }
}

impl NamedService for EchoService {
    const NAME: &'static str = "bench.Yardstick";
}

type ServiceFuture = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for EchoService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = ServiceFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> ServiceFuture {
        let service = self.clone();
        match request.uri().path() {
            ECHO_PATH => Box::pin(async move {
                let codec = ProstCodec::<EchoMessage, EchoMessage>::default();
                Ok(Grpc::new(codec).unary(Echo(service), request).await)
            }),
            STREAM_PATH => Box::pin(async move { Ok(stream(&service, request.into_body()).await) }),
            _ => Box::pin(async { Ok(tonic::Status::unimplemented("unknown method").into_http()) }),
        }
    }
}

struct Echo(EchoService);

impl UnaryService<EchoMessage> for Echo {
    type Response = EchoMessage;
    type Future = std::future::Ready<Result<tonic::Response<EchoMessage>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<EchoMessage>) -> Self::Future {
        let stream = request.get_ref().stream;
        if stream > 0 {
            self.0.send_to(stream);
        }
        std::future::ready(Ok(tonic::Response::new(EchoMessage { payload: self.0.reply.clone(), stream: 0 })))
    }
}

/// Answers a request of `Stream` with a body of our own, without tonic's encoder.
async fn stream(service: &EchoService, body: Body) -> http::Response<Body> {
    let Ok(collected) = body.collect().await else {
        return tonic::Status::cancelled("the request ended early").into_http();
    };
    let mut message = collected.to_bytes();
    message.advance(message.len().min(5));
    match EchoMessage::decode(message) {
        Ok(request) => {
            let mut response = http::Response::new(Body::new(service.open(request.stream)));
            let grpc = http::HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
            response
        }
        Err(error) => tonic::Status::invalid_argument(error.to_string()).into_http(),
    }
}

struct StreamBody {
    pending: Arc<PendingMessages>,
    message: Bytes,
}

impl http_body::Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        self.pending.waker.register(context.waker());
        let count = &self.pending.count;
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |pending| pending.checked_sub(1));
        match taken {
            Ok(_) => Poll::Ready(Some(Ok(http_body::Frame::data(self.message.clone())))),
            Err(_) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_fills_a_message_of_the_size() {
        for bytes in [2, 40, 129, 131, 200] {
            let payload = vec![7; EchoMessage::payload_bytes(bytes)].into();
            let message = EchoMessage { payload, stream: 0 };
            assert_eq!(message.encoded_len(), if bytes == 2 { 0 } else { bytes });
        }
    }
}
