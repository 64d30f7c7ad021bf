//! Sends the calls of a session in order and retries each until its outcome is known.
//!
//! One call is in flight at a time unless [`SessionOptions::in_flight_max`] allows more. Calls in flight travel
//! separately, so the server may see them in another order. No further call starts while one is being retried, so only
//! calls that were in flight with a retried call can overtake it. A call that runs without a change that its prediction
//! assumed is rejected or corrected; it is never lost or applied twice.

use super::session::SessionOptions;
use super::session_state::SharedSession;
use super::{Backoff, Rpc};
use crate::wire::v1;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

#[derive(Debug)]
pub(super) struct QueuedMutation {
    pub request: v1::TransactRequest,
    pub attempts: u32,
    /// An earlier attempt may have been applied although no reply arrived.
    pub uncertain: bool,
    first_attempt: Option<Instant>,
    backoff: Backoff,
}

impl QueuedMutation {
    pub fn new(request: v1::TransactRequest) -> Self {
        Self { request, attempts: 0, uncertain: false, first_attempt: None, backoff: Backoff::default() }
    }

    pub fn key(&self) -> &str {
        self.request.context.as_ref().map(|context| context.idempotency_key.as_str()).unwrap_or_default()
    }
}

/// Sends calls until the session is dropped.
pub(super) async fn run(
    shared: Arc<SharedSession>,
    mut queue: mpsc::Receiver<QueuedMutation>,
    options: SessionOptions,
) {
    let mut in_flight = FuturesUnordered::new();
    let mut retries = 0_usize;
    let attempt = |call, delay| attempt(shared.rpc.clone(), call, delay, options.attempt_timeout);
    loop {
        tokio::select! {
            call = queue.recv(), if retries == 0 && in_flight.len() < options.in_flight_max.max(1) => match call {
                Some(call) => in_flight.push(attempt(call, Duration::ZERO)),
                None => return,
            },
            Some((mut call, result)) = in_flight.next() => {
                retries -= usize::from(call.attempts > 1);
                match result {
                    Ok(reply) => shared.handle_reply(&call, reply),
                    Err(status) if !is_retryable(status.code()) => shared.handle_error(&call, status),
                    Err(status) if call.first_attempt.is_some_and(|first_attempt| first_attempt.elapsed() > options.retry_timeout) => {
                        shared.handle_unknown(&call, status);
                    }
                    Err(status) => {
                        tracing::debug!(%status, key = call.key(), attempts = call.attempts, "retrying a call");
                        call.uncertain |= status.code() != Code::ResourceExhausted;
                        let requested = status.get_details_retry_info().and_then(|info| info.retry_delay);
                        let delay = call.backoff.handle_failure().max(requested.unwrap_or_default());
                        retries += 1;
                        in_flight.push(attempt(call, delay));
                    }
                }
            }
        }
    }
}

async fn attempt(
    mut rpc: Rpc,
    mut call: QueuedMutation,
    delay: Duration,
    timeout: Duration,
) -> (QueuedMutation, Result<v1::TransactResponse, Status>) {
    tokio::time::sleep(delay).await;
    call.attempts += 1;
    call.first_attempt.get_or_insert_with(Instant::now);
    let reply = tokio::time::timeout(timeout, rpc.transact(call.request.clone())).await;
    let timed_out = |_| Err(Status::deadline_exceeded("no reply within the timeout of an attempt"));
    let result = reply.unwrap_or_else(timed_out).map(tonic::Response::into_inner);
    (call, result)
}

/// Returns whether a call that failed with this code can succeed later, or whether its outcome is unknown.
fn is_retryable(code: Code) -> bool {
    match code {
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Internal
        | Code::Unavailable => true,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => false,
    }
}
