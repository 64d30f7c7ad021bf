//! Bodies of requests and replies.

use super::BoxError;
use crate::status;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

/// Maximum time until the whole body of a request has arrived. HTTP/2 notices a peer that is gone by its pings; HTTP/1.1
/// has none.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time for reading the rest of a request that was refused.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

pin_project! {
    /// The body of a gRPC request or reply that passes unchanged, or a body that was converted.
    #[project = WebBodyProjection]
    #[derive(Debug)]
    pub enum WebBody<B> {
        Grpc { #[pin] body: B },
        Converted { body: Body },
    }
}

impl<B> WebBody<B> {
    pub(super) fn grpc(body: B) -> Self {
        Self::Grpc { body }
    }

    pub(super) fn converted(body: Body) -> Self {
        Self::Converted { body }
    }
}

/// An empty body, as CORS needs it for the replies to preflight requests.
impl<B> Default for WebBody<B> {
    fn default() -> Self {
        Self::converted(Body::empty())
    }
}

impl<B> http_body::Body for WebBody<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project() {
            WebBodyProjection::Grpc { body } => body.poll_frame(context).map_err(Into::into),
            WebBodyProjection::Converted { body } => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Grpc { body } => body.is_end_stream(),
            Self::Converted { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Grpc { body } => body.size_hint(),
            Self::Converted { body } => body.size_hint(),
        }
    }
}

/// The body of a request that must arrive within [`BODY_TIMEOUT`], counted from the first poll that has to wait. Clones are
/// the same body: the service reads one, and what it leaves is read from another.
pub struct TimedBody<B>(Arc<Mutex<TimedBodyState<B>>>);

struct TimedBodyState<B> {
    body: B,
    timeout: Option<Pin<Box<Sleep>>>,
    has_failed: bool,
}

impl<B> Clone for TimedBody<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> TimedBody<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    pub fn new(body: B) -> Self {
        Self(Arc::new(Mutex::new(TimedBodyState { body, timeout: None, has_failed: false })))
    }

    /// Reads and discards the rest of the body, at most `bytes_max` bytes and for [`DISCARD_TIMEOUT`]. If a server replies
    /// before it has read the request and then closes the connection or resets the stream, many clients fail to send and
    /// never read the reply.
    pub async fn discard(mut self, mut bytes_max: usize) {
        if Arc::strong_count(&self.0) > 1 {
            // The service replied first and still reads its request.
            return;
        }
        let discard = async {
            while let Some(Ok(frame)) = self.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match bytes_max.checked_sub(bytes) {
                    Some(rest) => bytes_max = rest,
                    None => break,
                }
            }
        };
        // The reply is sent in any case.
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, discard).await;
    }
}

impl<B> http_body::Body for TimedBody<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = self.0.lock();
        if state.has_failed {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut state.body).poll_frame(context);
        let frame = match polled {
            Poll::Ready(frame) => frame.map(|frame| {
                frame.map_err(|error| status::malformed(&format!("the request body cannot be read: {}", error.into())))
            }),
            Poll::Pending => {
                let timeout = state.timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
                ready!(timeout.as_mut().poll(context));
                Some(Err(status::request_body_timeout(BODY_TIMEOUT)))
            }
        };
        state.has_failed = matches!(frame, Some(Err(_)));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}
