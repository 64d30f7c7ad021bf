//! Plays a trace on a running server through its RPCs, with one subscription to all of its inventories.

use super::trace::{Trace, TraceError, World};
use crate::client::{Client, Follow, FollowCounts, SessionError, SessionOptions, new_mutation_context};
use crate::domain::Contents;
use crate::wire::v1;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;

/// How long to wait for the last frame after the last operation.
const LAST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for frames that a wrong prediction would cause. Longer than any sync window.
const QUIET_TIME: Duration = Duration::from_millis(1_200);

#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("call failed: {}", .0.message())]
    Call(#[from] Status),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the stream of {name} did not reach the final state within {} s", LAST_FRAME_TIMEOUT.as_secs())]
    Timeout { name: String },
}

/// Traffic of the stream without the initial frames, and the final state of its reader.
#[derive(Debug)]
pub struct PlayResult {
    pub syncs: u64,
    pub bytes: u64,
    pub desyncs: u64,
    pub replicas: Vec<(String, Contents)>,
}

/// One run of a trace.
pub struct TraceRun<'a> {
    pub client: &'a Client,
    pub trace: &'a Trace,
    pub world: &'a World,
    /// Prefix of the inventory ids.
    pub prefix: &'a str,
    /// Session id on the stream and on the mutations; empty for none.
    pub session: &'a str,
    /// Advances by one step per operation.
    pub progress: &'a ProgressBar,
}

impl TraceRun<'_> {
    /// Creates the inventories, plays the trace in real time, and waits for the final states.
    pub async fn run(&self) -> Result<PlayResult, PlayError> {
        let ids = self.create().await?;
        let mut follow = self.client.follow(ids).with_session(self.session);
        while !follow.next().await?.caught_up {}
        let initial = follow.counts();
        let (done, mut is_done) = oneshot::channel();
        let mutating = async {
            let versions = self.mutate().await;
            // Sending fails only if following the stream has already failed.
            let _ = done.send(());
            versions
        };
        let following = async {
            loop {
                tokio::select! {
                    update = follow.next() => drop(update?),
                    _ = &mut is_done => return Ok::<Follow, PlayError>(follow),
                }
            }
        };
        let (versions, followed) = tokio::join!(mutating, following);
        let (versions, mut follow) = (versions?, followed?);
        let deadline = Instant::now() + LAST_FRAME_TIMEOUT;
        while !has_reached(&follow, &versions) {
            let timeout = |_| PlayError::Timeout { name: self.trace.name.clone() };
            tokio::time::timeout_at(deadline, follow.next()).await.map_err(timeout)??;
        }
        let FollowCounts { syncs, bytes, desyncs, .. } = follow.counts();
        let replicas = follow.ids().iter().enumerate();
        let replicas =
            replicas.filter_map(|(at, id)| Some((id.clone(), follow.replica(at)?.contents.clone()))).collect();
        Ok(PlayResult { syncs: syncs - initial.syncs, bytes: bytes - initial.bytes, desyncs, replicas })
    }

    /// Plays the trace as a client that predicts its own changes and sends the predicted digests.
    pub async fn run_predicted(&self) -> Result<PlayResult, PlayError> {
        let ids = self.create().await?;
        let catalog = self.client.catalog().await?;
        let session = self.client.session(SessionOptions::new(ids.clone()), catalog)?;
        session.caught_up().await?;
        let initial = session.counts();
        let start = Instant::now();
        for step in &self.trace.steps {
            tokio::time::sleep_until(start + Duration::from_millis(step.at_ms)).await;
            session.apply(step.operation(|inventory| self.id(inventory)))?;
            self.progress.inc(1);
        }
        session.settled().await?;
        tokio::time::sleep(QUIET_TIME).await;
        let last = session.counts();
        let confirmed = ids.into_iter().enumerate().filter_map(|(at, id)| Some((id, session.confirmed(at)?)));
        Ok(PlayResult {
            syncs: last.syncs - initial.syncs,
            bytes: last.bytes - initial.bytes,
            desyncs: last.desyncs,
            replicas: confirmed.collect(),
        })
    }

    fn id(&self, inventory: &str) -> String {
        format!("{}{inventory}", self.prefix)
    }

    /// Creates the inventories that the trace starts with, and returns their ids.
    pub async fn create(&self) -> Result<Vec<String>, PlayError> {
        let mut ids = Vec::new();
        for inventory in self.trace.inventories() {
            let id = self.id(inventory);
            self.client.mutate(new_mutation_context(), self.world.create(self.trace, inventory, &id)?).await?;
            ids.push(id);
        }
        Ok(ids)
    }

    /// Sends the trace's mutations in time, and returns the final revisions of all inventories.
    async fn mutate(&self) -> Result<HashMap<String, u64>, PlayError> {
        let start = Instant::now();
        let mut versions = HashMap::new();
        for step in &self.trace.steps {
            tokio::time::sleep_until(start + Duration::from_millis(step.at_ms)).await;
            let context = v1::MutationContext { session: self.session.to_owned(), ..new_mutation_context() };
            let receipt = self.client.mutate(context, step.operation(|inventory| self.id(inventory))).await?;
            versions.extend(receipt.inventories.into_iter().map(|version| (version.inventory_id, version.revision)));
            self.progress.inc(1);
        }
        Ok(versions)
    }
}

/// Creates a progress bar with one step per operation; shown only on a terminal.
pub fn progress_bar(operations: usize, message: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} operations");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(operations as u64).with_style(style).with_message(message.to_owned())
}

fn has_reached(follow: &Follow, versions: &HashMap<String, u64>) -> bool {
    follow.ids().iter().enumerate().all(|(at, id)| {
        let revision = follow.replica(at).map_or(0, |replica| replica.contents.revision().0);
        versions.get(id).is_none_or(|last| revision >= *last)
    })
}
