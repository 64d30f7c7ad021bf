//! Replicas of inventories that outlive connections: the client verifies them with every frame, resumes them after a
//! lost connection, and replaces them with a full frame when they differ from the server.

use super::Rpc;
use super::stream::{ConnectionState, ReconnectingStream};
use crate::sync::{Cursor, FrameBody, Replica};
use crate::wire::codec::MESSAGE_PREFIX_BYTES;
use crate::wire::frame;
use crate::wire::v1;
use prost::Message;
use tokio::sync::watch;
use tonic::Status;

/// A subscription that reconnects: the newest known states of inventories, kept across lost connections.
pub struct Follow {
    stream: ReconnectingStream,
    replicas: Vec<Option<Replica>>,
    absent: Vec<bool>,
    counts: FollowCounts,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowCounts {
    /// Number of frames with changes, including the initial frames.
    pub syncs: u64,
    /// Size of all received messages in bytes, including the 5-byte prefix of each.
    pub bytes: u64,
    pub fulls: u64,
    pub deltas: u64,
    pub heartbeats: u64,
    pub desyncs: u64,
    /// Number of times that a stream ended and was opened again.
    pub reconnects: u64,
}

/// The effect of one applied message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionUpdate {
    /// Indexes of the inventories that changed, in the order in which they are followed.
    pub changed: Vec<usize>,
    /// Indexes of the inventories that became absent: they do not exist, were deleted, or may not be read. Each new
    /// stream reports them again.
    pub absent: Vec<usize>,
    /// Set when the replicas contain the state as of the opening of the stream.
    pub caught_up: bool,
    pub heartbeat: bool,
    /// Size of the message in bytes, including its 5-byte prefix.
    pub bytes: usize,
}

impl Follow {
    pub(super) fn new(rpc: Rpc, ids: Vec<String>) -> Self {
        let (replicas, absent) = (vec![None; ids.len()], vec![false; ids.len()]);
        Self {
            stream: ReconnectingStream::new(rpc, ids, String::new(), false),
            replicas,
            absent,
            counts: FollowCounts::default(),
        }
    }

    /// Subscribes as `session`, which must also be named on its mutations. The server then treats changes by this
    /// session as echoes, which it may delay.
    #[must_use]
    pub fn with_session(mut self, session: &str) -> Self {
        self.stream.set_session(session);
        self
    }

    pub fn ids(&self) -> &[String] {
        self.stream.ids()
    }

    /// Returns whether the inventory is absent: it does not exist, was deleted, or may not be read. The client keeps
    /// following an absent inventory and receives its state as soon as it is present.
    pub fn is_absent(&self, index: usize) -> bool {
        self.absent.get(index).is_some_and(|absent| *absent)
    }

    /// Returns the newest known state, or `None` before the first frame and while the inventory is absent.
    pub fn replica(&self, index: usize) -> Option<&Replica> {
        self.replicas.get(index)?.as_ref()
    }

    pub fn counts(&self) -> FollowCounts {
        FollowCounts { reconnects: self.stream.reopen_count(), ..self.counts }
    }

    /// Returns a receiver that observes the state of the connection while [`Self::next`] waits.
    pub fn connection(&self) -> watch::Receiver<ConnectionState> {
        self.stream.connection()
    }

    /// Closes the connection; the next call to [`Self::next`] opens a new one and resumes.
    pub fn disconnect(&mut self) {
        self.stream.reopen_now();
    }

    /// Waits for the next message and applies it. Reconnects without a limit on attempts; returns an error only if a
    /// retry cannot succeed (not allowed, malformed, too many slots together).
    pub async fn next(&mut self) -> Result<SubscriptionUpdate, Status> {
        loop {
            let replicas = &self.replicas;
            let resume = || replicas.iter().map(|replica| Some(replica.as_ref()?.cursor())).collect();
            if let Some(message) = self.stream.next(resume).await?
                && let Some(update) = self.apply(&message)
            {
                return Ok(update);
            }
        }
    }

    /// Applies a message. Returns `None` if the message does not fit the replicas; a replica that differs from the
    /// server is then dropped and loaded again.
    fn apply(&mut self, message: &v1::SubscribeInventoryResponse) -> Option<SubscriptionUpdate> {
        let bytes = message.encoded_len() + MESSAGE_PREFIX_BYTES;
        let heartbeat = message.changes.is_empty() && !message.caught_up;
        let mut update =
            SubscriptionUpdate { bytes, heartbeat, caught_up: message.caught_up, ..SubscriptionUpdate::default() };
        self.counts.bytes += bytes as u64;
        self.counts.heartbeats += u64::from(heartbeat);
        self.counts.syncs += u64::from(!message.changes.is_empty());
        // The changes of a message are atomic: no replica changes until all of them are applied.
        let mut after = self.replicas.clone();
        for change in &message.changes {
            let index = change.watch as usize;
            let Some(replica) = after.get_mut(index) else { continue };
            if change.absent {
                *replica = None;
                update.absent.push(index);
                continue;
            }
            match self.apply_change(replica.as_ref(), change) {
                Some(changed) => *replica = Some(changed),
                None => return self.handle_desync(index),
            }
            update.changed.push(index);
        }
        if heartbeat
            && let Some(index) =
                after.iter().enumerate().position(|replica| !matches_heartbeat(replica, &message.marks))
        {
            return self.handle_desync(index);
        }
        self.replicas = after;
        update.changed.iter().for_each(|index| self.absent[*index] = false);
        update.absent.iter().for_each(|index| self.absent[*index] = true);
        Some(update)
    }

    fn apply_change(&mut self, before: Option<&Replica>, change: &v1::InventoryChange) -> Option<Replica> {
        let base = before.map(|replica| replica.contents.revision());
        let frame = frame::decode_inventory_frame(change, base)?;
        match frame.body {
            FrameBody::Full { .. } => self.counts.fulls += 1,
            FrameBody::Delta { .. } => self.counts.deltas += 1,
        }
        let applied = Replica::apply(before, &frame);
        applied
            .inspect_err(|desync| tracing::warn!(%desync, "a replica differs from the server; loading it again"))
            .ok()
    }

    fn handle_desync(&mut self, index: usize) -> Option<SubscriptionUpdate> {
        self.counts.desyncs += 1;
        self.replicas[index] = None;
        // A new stream repairs the replica; the delay prevents a tight loop if the frames of the new stream do not fit
        // either.
        self.stream.reopen_with_backoff();
        None
    }
}

/// Returns whether a replica matches the heartbeat. A heartbeat has no mark for an absent inventory.
fn matches_heartbeat((index, replica): (usize, &Option<Replica>), marks: &[v1::Mark]) -> bool {
    let mark = marks.iter().find(|mark| mark.watch as usize == index);
    let (Some(replica), Some(mark)) = (replica, mark) else { return replica.is_none() && mark.is_none() };
    let Cursor { epoch, revision } = replica.cursor();
    let digest = mark.digest.as_ref().map(frame::decode_digest);
    epoch.get() == mark.epoch && revision.0 == mark.revision && digest == Some(replica.contents.digest())
}
