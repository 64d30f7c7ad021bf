//! The stream of one reader across connections: opened at the first read and again after each loss.

use super::{Backoff, Rpc};
use crate::sync::Cursor;
use crate::wire::{ErrorReason, v1};
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

pub(super) struct ReconnectingStream {
    rpc: Rpc,
    ids: Vec<String>,
    /// Empty if the stream has no session.
    session: String,
    notices: bool,
    open: Option<Streaming<v1::SubscribeInventoryResponse>>,
    backoff: Backoff,
    /// Delay before the stream is opened again.
    delay: Duration,
    /// Number of times that the stream was opened.
    opened: u64,
    connection: watch::Sender<ConnectionState>,
}

/// State of a stream's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// The stream is being opened, for the first time or again.
    Connecting,
    Open,
    /// The stream was lost; the client opens a new one after a short delay.
    Lost,
}

impl ReconnectingStream {
    pub fn new(rpc: Rpc, ids: Vec<String>, session: String, notices: bool) -> Self {
        let connection = watch::Sender::new(ConnectionState::Connecting);
        let (backoff, delay) = (Backoff::default(), Duration::ZERO);
        Self { rpc, ids, session, notices, open: None, backoff, delay, opened: 0, connection }
    }

    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    pub fn set_session(&mut self, session: &str) {
        self.session = session.to_owned();
    }

    /// Returns how often the stream was lost and opened again.
    pub fn reopen_count(&self) -> u64 {
        self.opened.saturating_sub(1)
    }

    pub fn connection(&self) -> watch::Receiver<ConnectionState> {
        self.connection.subscribe()
    }

    /// Closes the stream; the next read opens a new one after a delay.
    pub fn reopen_with_backoff(&mut self) {
        (self.open, self.delay) = (None, self.backoff.handle_failure());
        self.connection.send_replace(ConnectionState::Lost);
    }

    /// Closes the stream; the next read opens a new one immediately.
    pub fn reopen_now(&mut self) {
        (self.open, self.delay) = (None, Duration::ZERO);
    }

    /// Returns the next message, or `None` if the stream was lost; the next call then opens a new one after a delay.
    /// Each time a stream is opened, `resume` provides the cursors. Returns an error only if a retry cannot succeed.
    pub async fn next(
        &mut self,
        resume: impl FnOnce() -> Vec<Option<Cursor>>,
    ) -> Result<Option<v1::SubscribeInventoryResponse>, Status> {
        match self.message(resume).await {
            Ok(Some(message)) => {
                self.backoff.handle_success();
                return Ok(Some(message));
            }
            Ok(None) => {}
            // An expired token may have been replaced; if not, opening the new stream fails with the same code.
            Err(status) if status.code() == Code::Unauthenticated && self.open.is_some() => {
                tracing::debug!(%status, "the token has expired; opening the stream again");
            }
            Err(status) if is_final(&status) => return Err(status),
            Err(status) => tracing::debug!(%status, "the stream was lost"),
        }
        self.reopen_with_backoff();
        Ok(None)
    }

    async fn message(
        &mut self,
        resume: impl FnOnce() -> Vec<Option<Cursor>>,
    ) -> Result<Option<v1::SubscribeInventoryResponse>, Status> {
        if let Some(stream) = &mut self.open {
            return stream.message().await;
        }
        tokio::time::sleep(self.delay).await;
        self.connection.send_replace(ConnectionState::Connecting);
        let cursor = |Cursor { epoch, revision }| v1::Cursor { epoch: epoch.get(), revision: revision.0 };
        let watch =
            |(id, at): (&String, Option<Cursor>)| v1::Watch { inventory_id: id.clone(), resume: at.map(cursor) };
        let inventories = self.ids.iter().zip(resume()).map(watch).collect();
        let (session, notices) = (self.session.clone(), self.notices);
        let request = v1::SubscribeInventoryRequest { inventories, session, notices };
        let opened = self.rpc.subscribe_inventory(request).await?;
        self.opened += 1;
        self.connection.send_replace(ConnectionState::Open);
        self.open.insert(opened.into_inner()).message().await
    }
}

/// Returns whether a retry cannot succeed.
fn is_final(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => true,
        // The limits of a caller are temporary; the size of a subscription does not change.
        Code::ResourceExhausted => {
            status.get_details_error_info().is_some_and(|info| info.reason == ErrorReason::SubscriptionTooLarge.name())
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => false,
    }
}
