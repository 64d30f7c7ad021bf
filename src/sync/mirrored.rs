//! What a [`super::mirror::Mirror`] knows of one inventory, and what a reply adds to that.

use super::replica::Replica;
use crate::domain::{Epoch, Inventory, InventoryId, LayoutId, Revision, Version};
use std::collections::VecDeque;
use std::sync::Arc;

/// Epochs remembered of each inventory, to tell a reply that is late from one that is early.
const PAST_EPOCHS_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct MirroredInventory {
    pub id: InventoryId,
    pub confirmed: Option<Arc<Inventory>>,
    /// The stream has told that there is no such inventory for this reader.
    pub absent: bool,
    /// `confirmed` was found to be wrong. It is shown until a full frame, or a proven snapshot, replaces it.
    pub doubted: bool,
    /// What the stream itself has brought this reader to: deltas on the wire are counted from it.
    pub last_sent: Revision,
    /// Epochs that were left behind.
    past: VecDeque<Epoch>,
    pub view: Option<Arc<Inventory>>,
}

impl MirroredInventory {
    pub fn new(id: InventoryId) -> Self {
        Self {
            id,
            confirmed: None,
            absent: false,
            doubted: false,
            last_sent: Revision(0),
            past: VecDeque::new(),
            view: None,
        }
    }

    pub fn inventory(&self, replica: Replica) -> Arc<Inventory> {
        let Replica { epoch, contents } = replica;
        // No rule looks at the owner or the layout, and the stream does not tell them.
        let layout = LayoutId::new("followed").expect("a valid name");
        Arc::new(Inventory { id: self.id.clone(), owner: None, layout, epoch, contents })
    }

    pub fn replace(&mut self, confirmed: Option<Arc<Inventory>>) {
        let before = std::mem::replace(&mut self.confirmed, confirmed).map(|before| before.epoch);
        let now = self.confirmed.as_ref().map(|now| now.epoch);
        if before != now {
            before.into_iter().for_each(|before| self.leave(before));
        }
        (self.doubted, self.absent) = (false, false);
    }

    pub fn handle_absent(&mut self) {
        self.replace(None);
        (self.absent, self.last_sent) = (true, Revision(0));
    }

    pub fn leave(&mut self, epoch: Epoch) {
        if self.past.len() == PAST_EPOCHS_MAX {
            self.past.pop_front();
        }
        self.past.push_back(epoch);
    }

    pub fn is_past(&self, epoch: Epoch, revision: Revision) -> bool {
        let has_passed =
            |confirmed: &Arc<Inventory>| confirmed.epoch == epoch && confirmed.contents.revision() > revision;
        !self.doubted && self.confirmed.as_ref().is_some_and(has_passed)
    }

    pub fn is_of_another_epoch(&self, version: Option<&Version>) -> bool {
        let epoch = self.confirmed.as_ref().map(|confirmed| confirmed.epoch);
        version.is_some_and(|version| Some(version.epoch) != epoch)
    }

    /// Whether a state of this version, if it can be proven, is newer than what is confirmed.
    pub fn has_use_for(&self, version: &Version) -> bool {
        !self.is_of_another_epoch(Some(version)) && self.is_ahead(version.revision)
    }

    /// Whether the stream has yet to bring what a reply spoke of; also if there was no reply.
    pub fn waits_for(&self, replied: Option<&Version>) -> bool {
        let Some(version) = replied else { return true };
        let another = self.is_of_another_epoch(replied);
        if another { !self.past.contains(&version.epoch) } else { self.is_ahead(version.revision) }
    }

    fn is_ahead(&self, revision: Revision) -> bool {
        match &self.confirmed {
            Some(_) if self.doubted => revision >= self.last_sent,
            Some(confirmed) => revision > confirmed.contents.revision(),
            None => true,
        }
    }
}

pub(super) fn replica(inventory: &Inventory) -> Replica {
    Replica { epoch: inventory.epoch, contents: inventory.contents.clone() }
}
