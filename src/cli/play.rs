//! Plays a trace on a running service through its RPCs, followed by one subscription on all of its inventories.

use super::trace::{Trace, TraceError, World};
use crate::client::{Client, Follow, FollowCounts, fresh_context};
use crate::sync::Replica;
use indicatif::ProgressBar;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;

/// How long the last frame may take to arrive after the last operation.
const LAST_FRAME_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("the service refused: {}", .0.message())]
    Refused(#[from] Status),
    #[error("the stream of {name} did not reach the last state within {} s", LAST_FRAME_WAIT.as_secs())]
    Late { name: String },
}

/// What came over the stream, initial frames apart, and what its reader has in the end.
#[derive(Debug)]
pub struct Played {
    pub syncs: u64,
    pub bytes: u64,
    pub desyncs: u64,
    pub replicas: Vec<(String, Replica)>,
}

/// Creates the inventories of the trace with ids that begin with `prefix`, plays it in real time, and follows it to the
/// end. One step of progress for each operation.
pub async fn play(
    client: &Client,
    trace: &Trace,
    world: &World,
    prefix: &str,
    progress: &ProgressBar,
) -> Result<Played, PlayError> {
    let id = |inventory: &str| format!("{prefix}{inventory}");
    let mut ids = Vec::new();
    for inventory in trace.inventories() {
        client.mutate(fresh_context(), world.create(trace, inventory, &id(inventory))?).await?;
        ids.push(id(inventory));
    }
    let mut follow = client.follow(ids);
    while !follow.next().await?.caught_up {}
    let initial = follow.counts();
    let (done, mut last_versions) = oneshot::channel();
    let mutating = async {
        let versions = mutate(client, trace, id, progress).await;
        // The receiver waits for this very message.
        let _ = done.send(());
        versions
    };
    let following = async {
        loop {
            tokio::select! {
                update = follow.next() => drop(update?),
                _ = &mut last_versions => return Ok::<Follow, PlayError>(follow),
            }
        }
    };
    let (versions, followed) = tokio::join!(mutating, following);
    let (versions, mut follow) = (versions?, followed?);
    let deadline = Instant::now() + LAST_FRAME_WAIT;
    while !has_reached(&follow, &versions) {
        let late = |_| PlayError::Late { name: trace.name.clone() };
        tokio::time::timeout_at(deadline, follow.next()).await.map_err(late)??;
    }
    let FollowCounts { syncs, bytes, desyncs, .. } = follow.counts();
    let replicas = follow.ids().iter().enumerate();
    let replicas = replicas.filter_map(|(at, id)| Some((id.clone(), follow.replica(at)?.clone()))).collect();
    Ok(Played { syncs: syncs - initial.syncs, bytes: bytes - initial.bytes, desyncs, replicas })
}

/// The revisions of all inventories in the end.
async fn mutate(
    client: &Client,
    trace: &Trace,
    id: impl Fn(&str) -> String,
    progress: &ProgressBar,
) -> Result<HashMap<String, u64>, PlayError> {
    let start = Instant::now();
    let mut versions = HashMap::new();
    for step in &trace.steps {
        tokio::time::sleep_until(start + Duration::from_millis(step.at_ms)).await;
        let receipt = client.mutate(fresh_context(), step.operation(&id)).await?;
        versions.extend(receipt.inventories.into_iter().map(|version| (version.inventory_id, version.revision)));
        progress.inc(1);
    }
    Ok(versions)
}

fn has_reached(follow: &Follow, versions: &HashMap<String, u64>) -> bool {
    follow.ids().iter().enumerate().all(|(at, id)| {
        let have = follow.replica(at).map_or(0, |replica| replica.contents.revision().0);
        versions.get(id).is_none_or(|wanted| have >= *wanted)
    })
}
