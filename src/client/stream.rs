//! The stream of one reader, over any number of connections: opened when it is first read, and again after each loss.

use super::{Backoff, Rpc};
use crate::grpc::v1;
use crate::sync::Cursor;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

pub(super) struct Stream {
    rpc: Rpc,
    ids: Vec<String>,
    /// Empty: none.
    session: String,
    notices: bool,
    open: Option<Streaming<v1::SubscribeInventoryResponse>>,
    backoff: Backoff,
    /// To wait before it is opened again.
    wait: Duration,
    /// How often it was opened.
    opened: u64,
    connection: watch::Sender<Connection>,
}

/// Whether messages can arrive now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// The stream is being opened, for the first time or again.
    Connecting,
    Open,
    /// The stream was lost; another is opened after a short wait.
    Lost,
}

impl Stream {
    pub fn new(rpc: Rpc, ids: Vec<String>, session: String, notices: bool) -> Self {
        let connection = watch::Sender::new(Connection::Connecting);
        let (backoff, wait) = (Backoff::default(), Duration::ZERO);
        Self { rpc, ids, session, notices, open: None, backoff, wait, opened: 0, connection }
    }

    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    pub fn set_session(&mut self, session: &str) {
        self.session = session.to_owned();
    }

    /// How often it was lost and opened again.
    pub fn reopened(&self) -> u64 {
        self.opened.saturating_sub(1)
    }

    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    /// The next read opens another one, after a while.
    pub fn reopen_later(&mut self) {
        (self.open, self.wait) = (None, self.backoff.handle_failure());
        self.connection.send_replace(Connection::Lost);
    }

    /// The next read opens another one, at once.
    pub fn close(&mut self) {
        (self.open, self.wait) = (None, Duration::ZERO);
    }

    /// The next message; none when the stream was lost, so that the next call opens another after a while. `resume` is asked
    /// for the cursors whenever one is opened. An error is one that no retry can heal.
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
            // A token that has expired may have a successor by now; if not, opening says so.
            Err(status) if status.code() == Code::Unauthenticated && self.open.is_some() => {
                tracing::debug!(%status, "the stream is opened again with a newer token");
            }
            Err(status) if is_final(&status) => return Err(status),
            Err(status) => tracing::debug!(%status, "the stream was lost"),
        }
        self.reopen_later();
        Ok(None)
    }

    async fn message(
        &mut self,
        resume: impl FnOnce() -> Vec<Option<Cursor>>,
    ) -> Result<Option<v1::SubscribeInventoryResponse>, Status> {
        if let Some(stream) = &mut self.open {
            return stream.message().await;
        }
        tokio::time::sleep(self.wait).await;
        self.connection.send_replace(Connection::Connecting);
        let cursor = |Cursor { epoch, revision }| v1::Cursor { epoch: epoch.get(), revision: revision.0 };
        let watch =
            |(id, at): (&String, Option<Cursor>)| v1::Watch { inventory_id: id.clone(), resume: at.map(cursor) };
        let inventories = self.ids.iter().zip(resume()).map(watch).collect();
        let (session, notices) = (self.session.clone(), self.notices);
        let request = v1::SubscribeInventoryRequest { inventories, session, notices };
        let opened = self.rpc.subscribe_inventory(request).await?;
        self.opened += 1;
        self.connection.send_replace(Connection::Open);
        self.open.insert(opened.into_inner()).message().await
    }
}

/// Whether trying again cannot help.
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
        // A limit of the caller's passes, the size of a subscription does not.
        Code::ResourceExhausted => {
            status.get_details_error_info().is_some_and(|info| info.reason == "SUBSCRIPTION_TOO_LARGE")
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
