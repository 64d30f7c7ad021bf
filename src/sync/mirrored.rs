//! The state that a [`super::mirror::Mirror`] keeps of one inventory.

use super::replica::Replica;
use crate::domain::{Epoch, Inventory, InventoryId, LayoutId, Revision, Version};
use std::collections::VecDeque;
use std::sync::Arc;

/// Maximum number of past epochs remembered for each inventory, to distinguish a late reply from an early one.
const PAST_EPOCHS_MAX: usize = 8;

/// A watched inventory of a mirror.
#[derive(Debug)]
pub(super) struct MirroredInventory {
    pub id: InventoryId,
    /// The newest state that the service is known to have had.
    pub confirmed: Option<Arc<Inventory>>,
    /// The stream has reported the inventory as absent.
    pub absent: bool,
    /// `confirmed` is known to be wrong. It stays visible until a full frame or a verified snapshot replaces it.
    pub desynced: bool,
    /// The revision that the stream last sent. Deltas on the wire are relative to it.
    pub last_sent: Revision,
    /// Earlier epochs, oldest first.
    past_epochs: VecDeque<Epoch>,
    /// The confirmed state with all pending mutations applied.
    pub view: Option<Arc<Inventory>>,
}

impl MirroredInventory {
    pub fn new(id: InventoryId) -> Self {
        Self {
            id,
            confirmed: None,
            absent: false,
            desynced: false,
            last_sent: Revision(0),
            past_epochs: VecDeque::new(),
            view: None,
        }
    }

    pub fn inventory(&self, replica: Replica) -> Arc<Inventory> {
        let Replica { epoch, contents } = replica;
        // The stream does not send the owner and the layout, and no rule reads them.
        let layout = LayoutId::new("followed").expect("a valid name");
        Arc::new(Inventory { id: self.id.clone(), owner: None, layout, epoch, contents })
    }

    pub fn replace(&mut self, confirmed: Option<Arc<Inventory>>) {
        let before = std::mem::replace(&mut self.confirmed, confirmed).map(|before| before.epoch);
        let now = self.confirmed.as_ref().map(|now| now.epoch);
        if before != now {
            before.into_iter().for_each(|before| self.add_past_epoch(before));
        }
        (self.desynced, self.absent) = (false, false);
    }

    pub fn handle_absent(&mut self) {
        self.replace(None);
        (self.absent, self.last_sent) = (true, Revision(0));
    }

    pub fn add_past_epoch(&mut self, epoch: Epoch) {
        if self.past_epochs.len() == PAST_EPOCHS_MAX {
            self.past_epochs.pop_front();
        }
        self.past_epochs.push_back(epoch);
    }

    pub fn has_passed(&self, epoch: Epoch, revision: Revision) -> bool {
        let is_newer =
            |confirmed: &Arc<Inventory>| confirmed.epoch == epoch && confirmed.contents.revision() > revision;
        !self.desynced && self.confirmed.as_ref().is_some_and(is_newer)
    }

    pub fn is_of_another_epoch(&self, version: Option<&Version>) -> bool {
        let epoch = self.confirmed.as_ref().map(|confirmed| confirmed.epoch);
        version.is_some_and(|version| Some(version.epoch) != epoch)
    }

    /// Returns whether a state of this version, if verified, is newer than the confirmed state.
    pub fn is_older_than(&self, version: &Version) -> bool {
        !self.is_of_another_epoch(Some(version)) && self.is_ahead(version.revision)
    }

    /// Returns whether the stream has not yet sent the version in a reply; also true if there is no reply yet.
    pub fn waits_for(&self, replied: Option<&Version>) -> bool {
        let Some(version) = replied else { return true };
        let another = self.is_of_another_epoch(replied);
        if another { !self.past_epochs.contains(&version.epoch) } else { self.is_ahead(version.revision) }
    }

    fn is_ahead(&self, revision: Revision) -> bool {
        match &self.confirmed {
            Some(_) if self.desynced => revision >= self.last_sent,
            Some(confirmed) => revision > confirmed.contents.revision(),
            None => true,
        }
    }
}

pub(super) fn replica(inventory: &Inventory) -> Replica {
    Replica { epoch: inventory.epoch, contents: inventory.contents.clone() }
}
