//! Sends calls again that the server has not processed. When a server closes a connection gracefully (because of the
//! connection's age or a drain), it may abort calls that were about to be sent on it; another connection would accept
//! them.
//!
//! Two signs show that the server has not processed a call: the transport never read the message from the request
//! body, or the server reported it (a GOAWAY with the last processed stream, or REFUSED_STREAM). The caller handles
//! all other failures, because only the caller knows whether the call is safe to repeat.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::{Service, ServiceExt};

const ATTEMPTS_MAX: u32 = 4;
/// Maximum size of a message that is kept to be sent again, in bytes.
const REPLAY_BYTES_MAX: usize = 256 * 1024;

/// A channel that reconnects when needed and sends unprocessed calls again. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RetryChannel {
    channel: Channel,
}

impl RetryChannel {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }
}

impl Service<Request<Body>> for RetryChannel {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response<Body>, Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone is not ready; the call must use the ready channel.
        let spare = self.channel.clone();
        let mut channel = std::mem::replace(&mut self.channel, spare);
        let (head, body) = request.into_parts();
        let kept = ReplayableBody::new(body);
        let mut response = channel.call(Request::from_parts(head.clone(), Body::new(kept.clone())));
        Box::pin(async move {
            for _ in 1..ATTEMPTS_MAX {
                match response.await {
                    Err(error) if kept.is_unprocessed(&error) => {
                        tracing::debug!(%error, "the server did not process the call; repeating it on another connection");
                    }
                    result => return result,
                }
                let request = Request::from_parts(head.clone(), Body::new(kept.clone()));
                response = channel.ready().await?.call(request);
            }
            response.await
        })
    }
}

/// Returns whether the server reported that it has not processed the call.
fn is_reported_unprocessed(error: &h2::Error) -> bool {
    let is_graceful = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    let is_refused_stream = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (is_graceful || is_refused_stream)
}

fn find_source<E: std::error::Error + 'static>(error: &Error) -> Option<&E> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// A request body that can be sent again after its request has failed.
struct ReplayableBody {
    sent_frames: Arc<Mutex<SentFrames>>,
    /// Number of kept frames that this request has already sent.
    sent: usize,
}

struct SentFrames {
    body: Body,
    /// The frames read from `body` so far.
    frames: Vec<Bytes>,
    /// The frames exceeded [`REPLAY_BYTES_MAX`] or included trailers, so they are not kept.
    is_not_replayable: bool,
    has_ended: bool,
}

impl ReplayableBody {
    fn new(body: Body) -> Self {
        let sent_frames = SentFrames { body, frames: Vec::new(), is_not_replayable: false, has_ended: false };
        Self { sent_frames: Arc::new(Mutex::new(sent_frames)), sent: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, SentFrames> {
        self.sent_frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unprocessed(&self, error: &Error) -> bool {
        let sent_frames = self.lock();
        if sent_frames.is_not_replayable {
            return false;
        }
        // Without a working HTTP/2 connection, an immediate retry would not help.
        sent_frames.frames.is_empty() && find_source::<hyper::Error>(error).is_some()
            || find_source(error).is_some_and(is_reported_unprocessed)
    }
}

/// The clone sends the body from its beginning.
impl Clone for ReplayableBody {
    fn clone(&self) -> Self {
        Self { sent_frames: self.sent_frames.clone(), sent: 0 }
    }
}

impl SentFrames {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        self.frames.extend(frame.data_ref().cloned());
        self.is_not_replayable |=
            frame.is_trailers() || self.frames.iter().map(Bytes::len).sum::<usize>() > REPLAY_BYTES_MAX;
        if self.is_not_replayable {
            self.frames.clear();
        }
    }
}

impl http_body::Body for ReplayableBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut sent_frames = this.sent_frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(again) = sent_frames.frames.get(this.sent) {
            this.sent += 1;
            return Poll::Ready(Some(Ok(Frame::data(again.clone()))));
        }
        if sent_frames.has_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut sent_frames.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            sent_frames.keep(frame);
            this.sent += 1;
        }
        sent_frames.has_ended = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let sent_frames = self.lock();
        self.sent >= sent_frames.frames.len() && (sent_frames.has_ended || sent_frames.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn read(body: ReplayableBody) -> Vec<u8> {
        body.collect().await.expect("it has no errors").to_bytes().to_vec()
    }

    fn body(parts: &'static [&'static [u8]]) -> ReplayableBody {
        let frames = parts.iter().map(|part| Ok::<_, Status>(Frame::data(Bytes::from_static(part))));
        ReplayableBody::new(Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames))))
    }

    #[tokio::test]
    async fn a_body_can_be_read_again_from_its_beginning_wherever_the_first_reader_stopped() {
        let whole = body(&[b"one ", b"two ", b"three"]);
        let mut first = whole.clone();
        first.frame().await.expect("a frame").expect("no error");
        let mut second = whole.clone();
        second.frame().await.expect("a frame").expect("no error");
        second.frame().await.expect("a frame").expect("no error");
        drop((first, second));
        for _ in 0..2 {
            assert_eq!(read(whole.clone()).await, b"one two three");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_not_kept() {
        static LARGE: [u8; REPLAY_BYTES_MAX] = [7; REPLAY_BYTES_MAX];
        static PARTS: [&[u8]; 2] = [&LARGE, b"more"];
        let whole = body(&PARTS);
        assert_eq!(read(whole.clone()).await.len(), REPLAY_BYTES_MAX + 4);
        assert!(whole.lock().is_not_replayable && whole.lock().frames.is_empty());
    }
}
