//! Enforces the deadline of a call (`grpc-timeout`). When the deadline expires, the layer drops the handler and replies
//! DEADLINE_EXCEEDED. A mutation that is already queued may still be applied; repeating the call with the same
//! idempotency key returns its outcome.
//!
//! The deadline applies until the response starts. An open stream continues until its reader ends it.

use crate::status;
use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::body::Body;
use tower::{Layer, Service};

const TIMEOUT_METADATA: &str = "grpc-timeout";
const DIGITS_MAX: usize = 8;

#[derive(Debug, Clone, Copy, Default)]
pub struct DeadlineLayer;

#[derive(Debug, Clone)]
pub struct DeadlineService<S> {
    inner: S,
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService { inner }
    }
}

impl<S, B> Service<Request<B>> for DeadlineService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let deadline = timeout(request.headers()).map(|timeout| Box::pin(tokio::time::sleep(timeout)));
        DeadlineFuture { inner: self.inner.call(request), deadline }
    }
}

pin_project! {
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: F,
        // Boxed, because most calls have no deadline and a `Sleep` is large.
        deadline: Option<Pin<Box<Sleep>>>,
    }
}

impl<F, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(response) = this.inner.poll(context) {
            return Poll::Ready(response);
        }
        let Some(deadline) = this.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Ok(status::deadline_exceeded().into_http()))
    }
}

/// Returns the timeout of a call, or `None` if the metadata is missing or malformed. A malformed timeout is ignored.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT_METADATA)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3_600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::convert::Infallible;
    use tonic::{Code, Status};
    use tower::ServiceExt;

    #[test]
    fn timeouts_are_parsed_as_the_grpc_specification_defines_them() {
        let read = |text: &'static str| {
            timeout(&HeaderMap::from_iter([(
                TIMEOUT_METADATA.parse().expect("a name"),
                HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(read("1M"), Some(Duration::from_secs(60)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("3m"), Some(Duration::from_millis(3)));
        assert_eq!(read("4u"), Some(Duration::from_micros(4)));
        assert_eq!(read("5n"), Some(Duration::from_nanos(5)));
        for malformed in ["", "1", "S", "1X", "-1S", "+1S", "123456789S", "1.5S"] {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_reply_before_its_deadline_gets_deadline_exceeded() {
        let slow = tower::service_fn(async |_: Request<()>| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        for (given, code) in [("49m", Some(Code::DeadlineExceeded)), ("51m", None)] {
            let request = Request::builder().header(TIMEOUT_METADATA, given).body(()).expect("a request");
            let response = DeadlineLayer.layer(slow).oneshot(request).await.expect("no error");
            assert_eq!(Status::from_header_map(response.headers()).map(|status| status.code()), code, "{given}");
        }
    }
}
