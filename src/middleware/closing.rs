//! For services of others that stream for as long as they are asked to (health watches, reflection): their streams end, too,
//! when the transport says so ([`Closing`]). Ours see to it themselves.

use crate::grpc::status;
use crate::transport::Closing;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

#[derive(Debug, Clone)]
pub struct EndsOnClosing<S> {
    inner: S,
}

impl<S> EndsOnClosing<S> {
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: NamedService> NamedService for EndsOnClosing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for EndsOnClosing<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = EndsFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let closing = request.extensions().get().cloned();
        EndsFuture { inner: self.inner.call(request), closing }
    }
}

pin_project! {
    pub struct EndsFuture<F> {
        #[pin]
        inner: F,
        closing: Option<Closing>,
    }
}

impl<F, E> Future for EndsFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(context))?;
        let Some(closing) = this.closing.take() else { return Poll::Ready(Ok(response)) };
        let closed = Box::pin(async move { closing.wait().await });
        Poll::Ready(Ok(response.map(|inner| Body::new(EndingBody { inner, closed: Some(closed) }))))
    }
}

struct EndingBody {
    inner: Body,
    /// None: it has ended.
    closed: Option<BoxFuture<'static, ()>>,
}

impl http_body::Body for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(closed) = &mut this.closed else { return Poll::Ready(None) };
        // What it has to say is said first: a health watch tells that nothing is served any more.
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(closed.as_mut().poll(context));
        this.closed = None;
        let mut trailers = HeaderMap::new();
        let status = status::draining();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.closed.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
