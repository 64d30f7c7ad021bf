//! The life cycle of a server: serve, drain, shut down.

use super::health::Health;
use super::wiring::{self, Components};
use super::{ServerError, ServerSettings};
use crate::domain::Catalog;
use crate::engine::CommitLoop;
use crate::store::Store;
use crate::telemetry::listener::ServingState;
use crate::transport::{Runtimes, Transport};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves over a transport that was opened with `settings.transport`, in the current runtime and in further ones on
/// their own threads (`settings.threads`), until `stop` resolves, then drains: calls in progress are answered, streams
/// end with UNAVAILABLE, and calls that are still open after the drain limit are cut off.
///
/// # Errors
///
/// [`ServerError::StoreFailed`] if the store fails; the server has drained. Otherwise, an error means that the server
/// could not start.
pub async fn serve(
    transport: Transport,
    listener: TcpListener,
    store: Arc<dyn Store>,
    catalog: Arc<Catalog>,
    settings: ServerSettings,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health::new(reporter);
    health.set(ServingState::Starting).await;
    let components = wiring::build(store, catalog, &settings, health.readiness(), health_service)?;
    // Dropping `_background` aborts its tasks; it is dropped together with this future.
    let Components { service, engine, mut commit_loop, drain_requested, background: _background } = components;
    // The commit loop runs until every engine is dropped, so this one moves into the closure.
    let attach = move || engine.attach_runtime();
    let runtimes = Runtimes::start(settings.threads.saturating_sub(1), attach).map_err(ServerError::Threads)?;
    let drain = CancellationToken::new();
    let mut server = Box::pin(transport.serve(listener, service, runtimes, drain.clone()));
    let drain_started = async {
        tokio::select! {
            () = stop => {}
            () = drain_requested.cancelled() => {}
        }
        tracing::info!(delay_ms = settings.drain.delay.as_millis() as u64, "drain requested; reporting NOT_SERVING");
        health.set(ServingState::Draining).await;
        tokio::time::sleep(settings.drain.delay).await;
    };
    health.set(ServingState::Serving).await;
    let failure = tokio::select! {
        () = &mut server => return Ok(()),
        () = drain_started => None,
        failure = commit_loop.wait_for_failure() => {
            health.set(ServingState::StoreFailed).await;
            Some(failure)
        }
    };
    tracing::info!(limit_ms = settings.drain.timeout.as_millis() as u64, "draining");
    drain.cancel();
    if tokio::time::timeout(settings.drain.timeout, &mut server).await.is_err() {
        tracing::warn!("drain limit exceeded; closing the remaining connections");
    }
    drop(server);
    // The store may have failed while the server was already draining.
    let failure = failure.or_else(|| commit_loop.failure());
    finish_commits(commit_loop, settings.drain.timeout).await;
    failure.map_or(Ok(()), |failure| Err(ServerError::StoreFailed(failure)))
}

/// Waits until all queued requests are committed and answered, before the store is closed.
async fn finish_commits(commit_loop: CommitLoop, limit: Duration) {
    if tokio::time::timeout(limit, commit_loop.join()).await.is_err() {
        tracing::warn!("calls are still open; their queued mutations are committed, but not answered");
    }
}
