//! Slots that remember their revision: the idea that carries everything else.
//!
//! A slot knows the revision that last changed it and the one that last changed *what it is*. So what a reader at any
//! revision is missing is a scan, and there is nothing to record, clear or compact.

use super::digest::Digest;
use super::ids::{Epoch, InventoryId, LayoutId, PlayerId, Revision, Slot};
use super::stack::Stack;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    pub stack: Option<Stack>,
    /// The revision that last changed this slot in any way.
    pub changed_at: Revision,
    /// The revision that last changed what it is: its item or attributes, or whether it holds anything.
    pub identity_at: Revision,
}

/// One slot's new content.
pub type Edit = (Slot, Option<Stack>);

/// The slots of an inventory at one revision, with their stamps and digest. A server's inventory and a reader's replica
/// are both this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    revision: Revision,
    digest: Digest,
    slots: Vec<SlotState>,
}

impl Contents {
    /// All slots empty but those edited, all stamped with `revision`. Edits beyond the last slot are left out.
    pub fn new(slots: usize, revision: Revision, edits: &[Edit]) -> Self {
        let empty = SlotState { stack: None, changed_at: revision, identity_at: revision };
        let mut contents = Self { revision, digest: Digest::EMPTY, slots: vec![empty; slots] };
        contents.set(revision, edits);
        contents
    }

    /// From what a store kept; the digest is computed from scratch, so that it can be compared with the stored one.
    pub fn restored(revision: Revision, slots: Vec<SlotState>) -> Self {
        let mut digest = Digest::EMPTY;
        for (index, state) in slots.iter().enumerate() {
            digest = digest.plus(Slot(index as u16), state.stack.as_ref());
        }
        Self { revision, digest, slots }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn slots(&self) -> &[SlotState] {
        &self.slots
    }

    pub fn stack(&self, slot: Slot) -> Option<&Stack> {
        self.slots.get(slot.index())?.stack.as_ref()
    }

    /// The filled slots, lowest first.
    pub fn stacks(&self) -> impl Iterator<Item = (Slot, &Stack)> {
        self.slots.iter().enumerate().filter_map(|(index, state)| Some((Slot(index as u16), state.stack.as_ref()?)))
    }

    /// A copy at `revision` with the edited slots stamped by it; the digest follows.
    #[must_use]
    pub fn advanced(&self, revision: Revision, edits: &[Edit]) -> Self {
        let mut next = self.clone();
        next.set(revision, edits);
        next
    }

    fn set(&mut self, revision: Revision, edits: &[Edit]) {
        self.revision = revision;
        for (slot, stack) in edits {
            let Some(state) = self.slots.get_mut(slot.index()) else { continue };
            self.digest = self.digest.minus(*slot, state.stack.as_ref()).plus(*slot, stack.as_ref());
            state.changed_at = revision;
            if !same_identity(state.stack.as_ref(), stack.as_ref()) {
                state.identity_at = revision;
            }
            state.stack.clone_from(stack);
        }
    }
}

fn same_identity(one: Option<&Stack>, other: Option<&Stack>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => one.is_same_kind(other.item, &other.attributes),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// Slots of one layout, under an id, with an owner (none for a chest). Immutable: a change makes a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    pub id: InventoryId,
    pub owner: Option<PlayerId>,
    pub layout: LayoutId,
    pub epoch: Epoch,
    pub contents: Contents,
}

impl Inventory {
    pub fn version(&self) -> Version {
        Version {
            id: self.id.clone(),
            epoch: self.epoch,
            revision: self.contents.revision,
            digest: self.contents.digest,
        }
    }

    /// The same inventory after the next revision's edits.
    #[must_use]
    pub fn advanced(&self, edits: &[Edit]) -> Self {
        Self {
            id: self.id.clone(),
            owner: self.owner.clone(),
            layout: self.layout.clone(),
            epoch: self.epoch,
            contents: self.contents.advanced(self.contents.revision.next(), edits),
        }
    }
}

impl Inventory {
    /// [`Self::advanced`] in place, for whoever holds it alone: a store that replays many revisions.
    pub fn advance(&mut self, edits: &[Edit]) {
        self.contents.set(self.contents.revision.next(), edits);
    }
}

/// Which state of an inventory is meant, and how to check that one has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub id: InventoryId,
    pub epoch: Epoch,
    pub revision: Revision,
    pub digest: Digest,
}

/// What one committed mutation did to one inventory: what a journal has to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Created(Arc<Inventory>),
    Updated { id: InventoryId, epoch: Epoch, revision: Revision, edits: Vec<Edit> },
    Deleted { id: InventoryId, epoch: Epoch, revision: Revision },
}

impl Change {
    pub fn id(&self) -> &InventoryId {
        match self {
            Self::Created(inventory) => &inventory.id,
            Self::Updated { id, .. } | Self::Deleted { id, .. } => id,
        }
    }
}

/// An inventory that a mutation is working on: the base and the slots touched so far.
#[derive(Debug, Clone)]
pub struct Draft {
    base: Arc<Inventory>,
    edits: BTreeMap<Slot, Option<Stack>>,
}

impl Draft {
    pub fn new(base: Arc<Inventory>) -> Self {
        Self { base, edits: BTreeMap::new() }
    }

    pub fn base(&self) -> &Arc<Inventory> {
        &self.base
    }

    pub fn slots(&self) -> impl ExactSizeIterator<Item = Slot> + use<> {
        (0..self.base.contents.slots.len() as u16).map(Slot)
    }

    pub fn stack(&self, slot: Slot) -> Option<&Stack> {
        match self.edits.get(&slot) {
            Some(edited) => edited.as_ref(),
            None => self.base.contents.stack(slot),
        }
    }

    pub fn set(&mut self, slot: Slot, stack: Option<Stack>) {
        self.edits.insert(slot, stack);
    }

    /// The slots that differ from the base in the end; empty when the mutation changed nothing.
    pub fn into_edits(self) -> Vec<Edit> {
        let base = self.base;
        self.edits.into_iter().filter(|(slot, stack)| base.contents.stack(*slot) != stack.as_ref()).collect()
    }
}
