//! The confirmed state of one inventory: the newest state that the service is known to have had.

use crate::domain::{Epoch, Inventory, InventoryId, LayoutId, Revision, Version};
use crate::sync::frame::{Cursor, FrameBody, FullReason, InventoryFrame};
use crate::sync::replica::{Desync, Replica};
use std::collections::VecDeque;
use std::sync::Arc;

/// Maximum number of past epochs remembered for each inventory, to distinguish a late reply from an early one.
const PAST_EPOCHS_MAX: usize = 8;

/// The confirmed state of one inventory.
#[derive(Debug)]
pub(super) struct ConfirmedInventory {
    pub id: InventoryId,
    /// The newest state that the service is known to have had; `None` before the first frame and while the inventory is
    /// absent.
    pub state: Option<Arc<Inventory>>,
    /// Whether the stream has reported the inventory as absent.
    pub absent: bool,
    /// Whether `state` is known to be wrong. It stays visible until a full frame or a verified state replaces it.
    pub desynced: bool,
    /// How often `state` was found to be wrong.
    pub desyncs: u64,
    /// The revision that the stream last sent. Deltas on the wire are relative to it.
    pub last_sent: Revision,
    /// Earlier epochs, oldest first.
    past_epochs: VecDeque<Epoch>,
}

/// How a confirmed state compares with a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeartbeatComparison {
    /// The states are equal, the confirmed state is newer, or it is already known to be wrong.
    Consistent,
    /// The heartbeat has a newer revision of the same epoch.
    Behind,
    /// The states differ. No frame was on its way when the heartbeat was sent, so the confirmed state is wrong.
    Different,
}

impl ConfirmedInventory {
    pub fn new(id: InventoryId) -> Self {
        Self {
            id,
            state: None,
            absent: false,
            desynced: false,
            desyncs: 0,
            last_sent: Revision(0),
            past_epochs: VecDeque::new(),
        }
    }

    /// Handles the inventory's part of a frame.
    ///
    /// # Errors
    ///
    /// A [`Desync`] if the part does not apply to the confirmed state, which then stays as it is. A delta may still
    /// apply to a predicted state.
    pub fn handle_part(&mut self, part: &InventoryFrame) -> Result<(), Desync> {
        match part.body {
            FrameBody::Full { epoch, revision, reason, .. } => {
                self.last_sent = revision;
                // A reply with a newer state may have overtaken the frame. But a client that is ahead of the service
                // must return to the service's state.
                if reason != FullReason::FromTheFuture && self.is_newer_than(epoch, revision) {
                    return Ok(());
                }
                self.handle_verified(Replica::apply(None, part)?);
            }
            FrameBody::Delta { revision, .. } => {
                self.last_sent = revision;
                let replica = self.replica().filter(|_| !self.desynced);
                self.handle_verified(Replica::apply(replica.as_ref(), part)?);
            }
        }
        Ok(())
    }

    /// Replaces the confirmed state by one whose digest matches the service's digest.
    pub fn handle_verified(&mut self, replica: Replica) {
        let Replica { epoch, contents } = replica;
        // The stream does not send the owner and the layout, and no rule reads them.
        let layout = LayoutId::new("unknown").expect("a valid name");
        self.replace(Some(Arc::new(Inventory { id: self.id.clone(), owner: None, layout, epoch, contents })));
    }

    /// Handles a frame that reports the inventory as absent.
    pub fn handle_absent(&mut self) {
        self.replace(None);
        (self.absent, self.last_sent) = (true, Revision(0));
    }

    /// Marks the confirmed state as wrong. Returns whether that was not known before.
    pub fn handle_desync(&mut self) -> bool {
        let is_new = !std::mem::replace(&mut self.desynced, true);
        self.desyncs += u64::from(is_new);
        is_new
    }

    /// Prepares for a new stream and returns the cursor to resume from; `None` requests a full state.
    pub fn handle_connecting(&mut self) -> Option<Cursor> {
        let cursor = self.state.as_deref().filter(|_| !self.desynced).map(Cursor::of);
        self.last_sent = cursor.map_or(Revision(0), |cursor| cursor.revision);
        cursor
    }

    /// Remembers that frames of this epoch no longer arrive.
    pub fn add_past_epoch(&mut self, epoch: Epoch) {
        if self.past_epochs.len() == PAST_EPOCHS_MAX {
            self.past_epochs.pop_front();
        }
        self.past_epochs.push_back(epoch);
    }

    /// Compares the confirmed state with the inventory's version in a heartbeat, which is `None` if the inventory is
    /// absent.
    pub fn compare(&self, heartbeat: Option<&Version>) -> HeartbeatComparison {
        let (confirmed, version) = match (&self.state, heartbeat) {
            (None, None) => return HeartbeatComparison::Consistent,
            (_, Some(_)) if self.desynced => return HeartbeatComparison::Consistent,
            (Some(confirmed), Some(version)) if confirmed.epoch == version.epoch => (&confirmed.contents, version),
            (Some(_) | None, Some(_)) | (Some(_), None) => return HeartbeatComparison::Different,
        };
        if confirmed.revision() < version.revision {
            HeartbeatComparison::Behind
        } else if confirmed.revision() > version.revision || confirmed.digest() == version.digest {
            HeartbeatComparison::Consistent
        } else {
            HeartbeatComparison::Different
        }
    }

    pub fn replica(&self) -> Option<Replica> {
        let confirmed = self.state.as_deref()?;
        Some(Replica { epoch: confirmed.epoch, contents: confirmed.contents.clone() })
    }

    /// Returns whether the version is of another epoch than the confirmed state.
    pub fn is_of_another_epoch(&self, version: &Version) -> bool {
        self.state.as_ref().is_none_or(|confirmed| confirmed.epoch != version.epoch)
    }

    /// Returns whether a state of this version, if it is verified, is newer than the confirmed state.
    pub fn is_older_than(&self, version: &Version) -> bool {
        !self.is_of_another_epoch(version) && self.is_before(version.revision)
    }

    /// Returns whether the stream has yet to send the version in a reply, or a newer one.
    pub fn awaits(&self, replied: &Version) -> bool {
        if self.is_of_another_epoch(replied) {
            !self.past_epochs.contains(&replied.epoch)
        } else {
            self.is_before(replied.revision)
        }
    }

    fn is_newer_than(&self, epoch: Epoch, revision: Revision) -> bool {
        let is_newer = |confirmed: &Inventory| confirmed.epoch == epoch && confirmed.contents.revision() > revision;
        !self.desynced && self.state.as_deref().is_some_and(is_newer)
    }

    fn is_before(&self, revision: Revision) -> bool {
        match &self.state {
            Some(_) if self.desynced => revision >= self.last_sent,
            Some(confirmed) => revision > confirmed.contents.revision(),
            None => true,
        }
    }

    fn replace(&mut self, state: Option<Arc<Inventory>>) {
        let before = std::mem::replace(&mut self.state, state).map(|before| before.epoch);
        let now = self.state.as_ref().map(|now| now.epoch);
        if before != now {
            before.into_iter().for_each(|before| self.add_past_epoch(before));
        }
        (self.desynced, self.absent) = (false, false);
    }
}
