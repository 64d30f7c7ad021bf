//! Who calls. The one place that decides it: from here on a request carries a [`Caller`] in its extensions, or it goes no
//! further.
//!
//! Today the caller names itself in the metadata `slotcast-caller` (default `anonymous`), which is why a server without
//! verified identities listens on loopback only, unless it is told otherwise.

use crate::domain::Caller;
use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tonic::body::Body;
use tower::{Layer, Service};

/// The metadata in which a caller names itself: 1 to 128 bytes.
pub const CALLER_METADATA: &str = "slotcast-caller";
const ANONYMOUS: &str = "anonymous";

#[derive(Debug, Clone, Copy, Default)]
pub struct IdentityLayer;

#[derive(Debug, Clone)]
pub struct Identity<S> {
    inner: S,
}

impl<S> Layer<S> for IdentityLayer {
    type Service = Identity<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Identity { inner }
    }
}

impl<S, B> Service<Request<B>> for Identity<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match caller(request.headers()) {
            Some(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            None => Either::Right(ready(Ok(crate::grpc::status::unknown_caller().into_http()))),
        }
    }
}

fn caller(headers: &HeaderMap) -> Option<Caller> {
    let named = match headers.get(CALLER_METADATA) {
        Some(value) => std::str::from_utf8(value.as_bytes()).ok()?,
        None => ANONYMOUS,
    };
    Caller::new(named).ok()
}
