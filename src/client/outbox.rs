//! Sends the calls of a session in order and retries each until its outcome is known.
//!
//! One call is in flight at a time unless [`SessionOptions::in_flight_max`] allows more. Calls in flight travel
//! separately, so the service may see them in another order. No further call starts while one is being retried, so only
//! calls that were in flight with a retried call can overtake it. A call that runs without a change that its prediction
//! assumed is rejected or corrected; it is never lost or applied twice.

use super::session::SessionOptions;
use super::shared::Shared;
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
pub(super) struct Call {
    pub request: v1::TransactRequest,
    pub tries: u32,
    /// An earlier attempt may have been applied although no reply arrived.
    pub uncertain: bool,
    began: Option<Instant>,
    backoff: Backoff,
}

impl Call {
    pub fn new(request: v1::TransactRequest) -> Self {
        Self { request, tries: 0, uncertain: false, began: None, backoff: Backoff::default() }
    }

    pub fn key(&self) -> &str {
        self.request.context.as_ref().map(|context| context.idempotency_key.as_str()).unwrap_or_default()
    }
}

/// Sends calls until the session is dropped.
pub(super) async fn run(shared: Arc<Shared>, mut queue: mpsc::Receiver<Call>, options: SessionOptions) {
    let mut under_way = FuturesUnordered::new();
    let mut retrying = 0_usize;
    let attempt = |call, wait| attempt(shared.rpc.clone(), call, wait, options.try_timeout);
    loop {
        tokio::select! {
            call = queue.recv(), if retrying == 0 && under_way.len() < options.in_flight_max.max(1) => match call {
                Some(call) => under_way.push(attempt(call, Duration::ZERO)),
                None => return,
            },
            Some((mut call, result)) = under_way.next() => {
                retrying -= usize::from(call.tries > 1);
                match result {
                    Ok(reply) => shared.handle_reply(&call, reply),
                    Err(status) if !may_be_retried(status.code()) => shared.handle_refusal(&call, status),
                    Err(status) if call.began.is_some_and(|began| began.elapsed() > options.retry_for) => {
                        shared.handle_unknown(&call, status);
                    }
                    Err(status) => {
                        tracing::debug!(%status, key = call.key(), tries = call.tries, "a call is tried again");
                        call.uncertain |= status.code() != Code::ResourceExhausted;
                        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
                        let wait = call.backoff.handle_failure().max(asked.unwrap_or_default());
                        retrying += 1;
                        under_way.push(attempt(call, wait));
                    }
                }
            }
        }
    }
}

async fn attempt(
    mut rpc: Rpc,
    mut call: Call,
    wait: Duration,
    timeout: Duration,
) -> (Call, Result<v1::TransactResponse, Status>) {
    tokio::time::sleep(wait).await;
    call.tries += 1;
    call.began.get_or_insert_with(Instant::now);
    let answer = tokio::time::timeout(timeout, rpc.transact(call.request.clone())).await;
    let late = |_| Err(Status::deadline_exceeded("no answer in time"));
    let result = answer.unwrap_or_else(late).map(tonic::Response::into_inner);
    (call, result)
}

/// Returns whether a call that failed with this code can succeed later, or whether its outcome is unknown.
fn may_be_retried(code: Code) -> bool {
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
