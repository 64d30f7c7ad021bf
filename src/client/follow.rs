//! Inventories followed over any number of connections: replicas that are checked with every frame, resumed after a
//! loss, and healed by a full frame when they do not agree with the service.

use super::Rpc;
use super::stream::{Connection, Stream};
use crate::grpc::codec::MESSAGE_PREFIX_BYTES;
use crate::grpc::convert::frame;
use crate::grpc::v1;
use crate::sync::{Cursor, FrameBody, Replica};
use prost::Message;
use tokio::sync::watch;
use tonic::Status;

pub struct Follow {
    stream: Stream,
    replicas: Vec<Option<Replica>>,
    absent: Vec<bool>,
    counts: FollowCounts,
}

/// What has come in since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowCounts {
    /// Frames with changes, initial ones included.
    pub syncs: u64,
    /// All messages as sent, each with its 5-byte prefix.
    pub bytes: u64,
    pub fulls: u64,
    pub deltas: u64,
    pub heartbeats: u64,
    pub desyncs: u64,
    /// Streams that ended and were opened again.
    pub reconnects: u64,
}

/// One message, applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Positions of the inventories that changed, in the order they are followed.
    pub changed: Vec<usize>,
    /// Positions of those that are absent from now on: they do not exist, or may not be read. Told again by each new stream.
    pub absent: Vec<usize>,
    /// The replicas now hold all that was there when the stream was opened.
    pub caught_up: bool,
    pub heartbeat: bool,
    /// As sent, the 5-byte prefix included.
    pub bytes: usize,
}

impl Follow {
    pub(super) fn new(rpc: Rpc, ids: Vec<String>) -> Self {
        let (replicas, absent) = (vec![None; ids.len()], vec![false; ids.len()]);
        Self { stream: Stream::new(rpc, ids, String::new(), false), replicas, absent, counts: FollowCounts::default() }
    }

    /// As the session that names itself on mutations too: what it changed itself is an echo, which can wait.
    #[must_use]
    pub fn of_session(mut self, session: &str) -> Self {
        self.stream.set_session(session);
        self
    }

    pub fn ids(&self) -> &[String] {
        self.stream.ids()
    }

    /// Whether the service has told that there is no such inventory, or none that may be read. It is followed all the same,
    /// and is there as soon as that changes.
    pub fn is_absent(&self, position: usize) -> bool {
        self.absent.get(position).is_some_and(|absent| *absent)
    }

    /// The newest state known; none before the first frame and while the inventory is absent.
    pub fn replica(&self, position: usize) -> Option<&Replica> {
        self.replicas.get(position)?.as_ref()
    }

    pub fn counts(&self) -> FollowCounts {
        FollowCounts { reconnects: self.stream.reopened(), ..self.counts }
    }

    /// Tells of the connection while [`Self::next`] waits.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.stream.connection()
    }

    /// Drops the connection; the next call to [`Self::next`] opens another and resumes.
    pub fn disconnect(&mut self) {
        self.stream.close();
    }

    /// Waits for the next message and applies it. Reconnects by itself for as long as it takes; an error is one that no
    /// retry can heal (not allowed, malformed, too many slots together).
    pub async fn next(&mut self) -> Result<Update, Status> {
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

    /// None when the message did not fit: then the replicas that disagree start anew.
    fn apply(&mut self, message: &v1::SubscribeInventoryResponse) -> Option<Update> {
        let bytes = message.encoded_len() + MESSAGE_PREFIX_BYTES;
        let heartbeat = message.changes.is_empty() && !message.caught_up;
        let mut update = Update { bytes, heartbeat, caught_up: message.caught_up, ..Update::default() };
        self.counts.bytes += bytes as u64;
        self.counts.heartbeats += u64::from(heartbeat);
        self.counts.syncs += u64::from(!message.changes.is_empty());
        // All changes of a message belong together: none is shown until all are applied.
        let mut after = self.replicas.clone();
        for change in &message.changes {
            let position = change.watch as usize;
            let Some(replica) = after.get_mut(position) else { continue };
            if change.absent {
                *replica = None;
                update.absent.push(position);
                continue;
            }
            match self.changed(replica.as_ref(), change) {
                Some(changed) => *replica = Some(changed),
                None => return self.handle_desync(position),
            }
            update.changed.push(position);
        }
        if heartbeat && let Some(position) = after.iter().enumerate().position(|held| !agrees(held, &message.marks)) {
            return self.handle_desync(position);
        }
        self.replicas = after;
        update.changed.iter().for_each(|position| self.absent[*position] = false);
        update.absent.iter().for_each(|position| self.absent[*position] = true);
        Some(update)
    }

    fn changed(&mut self, before: Option<&Replica>, change: &v1::InventoryChange) -> Option<Replica> {
        let base = before.map(|replica| replica.contents.revision());
        let frame = frame::inventory_frame(change, base)?;
        match frame.body {
            FrameBody::Full { .. } => self.counts.fulls += 1,
            FrameBody::Delta { .. } => self.counts.deltas += 1,
        }
        let applied = Replica::apply(before, &frame);
        applied.inspect_err(|desync| tracing::warn!(%desync, "a replica disagrees with the service")).ok()
    }

    fn handle_desync(&mut self, position: usize) -> Option<Update> {
        self.counts.desyncs += 1;
        self.replicas[position] = None;
        // Healed by a new stream, but not in a tight loop should that one not fit either.
        self.stream.reopen_later();
        None
    }
}

/// Whether a replica is what a heartbeat says; an inventory that is absent has no mark.
fn agrees((position, replica): (usize, &Option<Replica>), marks: &[v1::Mark]) -> bool {
    let mark = marks.iter().find(|mark| mark.watch as usize == position);
    let (Some(replica), Some(mark)) = (replica, mark) else { return replica.is_none() && mark.is_none() };
    let Cursor { epoch, revision } = replica.cursor();
    let digest = mark.digest.as_ref().map(frame::read_digest);
    epoch.get() == mark.epoch && revision.0 == mark.revision && digest == Some(replica.contents.digest())
}
