//! Calls that never left are made again. A connection that the service closes in good order (it has become old, or the
//! service drains) may take with it calls that were about to be sent on it; they fail here although another connection
//! would take them.
//!
//! It is known that a call has not left if its body was not even asked for the message: without it there is nothing to
//! carry out. All other failures are for those who know what they called.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::{Service, ServiceExt};

const TRIES_MAX: u32 = 4;

/// A connection that is made anew whenever needed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Resending {
    channel: Channel,
}

impl Resending {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }
}

impl Service<Request<Body>> for Resending {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Response<Body>, Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone is not ready; the one that is has to make the call.
        let later = self.channel.clone();
        let mut channel = std::mem::replace(&mut self.channel, later);
        let (head, body) = request.into_parts();
        let kept = Kept(Arc::new(Mutex::new(Outgoing { body, asked: false })));
        let again = kept.clone();
        let mut answer = channel.call(Request::from_parts(head.clone(), Body::new(kept)));
        Box::pin(async move {
            for _ in 1..TRIES_MAX {
                match answer.await {
                    Err(error) if !again.was_asked() && was_connected(&error) => {
                        tracing::debug!(%error, "a call that has not left is made on another connection");
                    }
                    ended => return ended,
                }
                let request = Request::from_parts(head.clone(), Body::new(again.clone()));
                answer = channel.ready().await?.call(request);
            }
            answer.await
        })
    }
}

/// Whether it came to speaking HTTP/2 at all. If not, trying again at once would not help.
fn was_connected(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<hyper::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}

struct Outgoing {
    body: Body,
    asked: bool,
}

/// A body that outlives the request that it was sent with.
#[derive(Clone)]
struct Kept(Arc<Mutex<Outgoing>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_asked(&self) -> bool {
        self.lock().asked
    }
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut outgoing = self.lock();
        outgoing.asked = true;
        Pin::new(&mut outgoing.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}
