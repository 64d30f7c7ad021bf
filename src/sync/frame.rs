//! What a reader at a cursor is missing: one scan over the stamps.

use crate::domain::{Contents, Epoch, Inventory, Revision, Slot, Stack};

/// The state that a reader is known to have of one inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: Epoch,
    pub revision: Revision,
}

impl Cursor {
    pub fn of(inventory: &Inventory) -> Self {
        Self { epoch: inventory.epoch, revision: inventory.contents.revision() }
    }
}

/// Why all slots are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullReason {
    /// The reader has nothing yet.
    Initial,
    /// More slots changed than a delta may hold.
    ManyChanges,
    /// The reader's state is of another epoch: the inventory was deleted and recreated, or restored.
    EpochChanged,
    /// The reader claims a revision that has not happened yet.
    FromTheFuture,
    /// Deltas are switched off.
    DeltaOff,
    /// The reader believes something that is not so: a prediction failed or was refused, or it reported a desync.
    Correction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotChange {
    /// The same item and attributes, another count.
    Count {
        slot: Slot,
        count: u32,
    },
    Emptied {
        slot: Slot,
    },
    Filled {
        slot: Slot,
        stack: Stack,
    },
}

/// One inventory's part of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryFrame {
    pub body: FrameBody,
    pub changes: Vec<SlotChange>,
    /// The digest afterwards, folded to 32 bits.
    pub check: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameBody {
    /// Replaces everything; slots without a change are empty.
    Full { epoch: Epoch, revision: Revision, slots: usize, reason: FullReason },
    /// From `base` to `revision`. Values are absolute, so it fits a reader anywhere from its base to its end.
    Delta {
        /// What the stream brought its reader to before; `base` is past it where predictions were confirmed since.
        last_sent: Revision,
        base: Revision,
        revision: Revision,
    },
}

/// What brings a reader at `cursor` to the state of `inventory`; none if it is there. A delta never holds more than
/// `delta_slots_max` slots; with 0, every frame is full.
pub fn frame_since(inventory: &Inventory, cursor: Option<Cursor>, delta_slots_max: usize) -> Option<InventoryFrame> {
    let contents = &inventory.contents;
    let full = |reason| Some(full_frame(inventory.epoch, contents, reason));
    let Some(cursor) = cursor else { return full(FullReason::Initial) };
    if cursor.epoch != inventory.epoch {
        return full(FullReason::EpochChanged);
    }
    if cursor.revision > contents.revision() {
        return full(FullReason::FromTheFuture);
    }
    if cursor.revision == contents.revision() {
        return None;
    }
    if delta_slots_max == 0 {
        return full(FullReason::DeltaOff);
    }
    let base = cursor.revision;
    let changes: Vec<SlotChange> = changes_since(contents, base).take(delta_slots_max.saturating_add(1)).collect();
    if changes.len() > delta_slots_max {
        return full(FullReason::ManyChanges);
    }
    let body = FrameBody::Delta { last_sent: base, base, revision: contents.revision() };
    Some(InventoryFrame { body, changes, check: contents.digest().folded() })
}

/// All slots of an inventory, for a reader that has none or the wrong ones.
pub fn full_frame(epoch: Epoch, contents: &Contents, reason: FullReason) -> InventoryFrame {
    let slots = contents.slots().len();
    let body = FrameBody::Full { epoch, revision: contents.revision(), slots, reason };
    let changes = contents.stacks().map(|(slot, stack)| SlotChange::Filled { slot, stack: stack.clone() }).collect();
    InventoryFrame { body, changes, check: contents.digest().folded() }
}

fn changes_since(contents: &Contents, base: Revision) -> impl Iterator<Item = SlotChange> {
    contents.slots().iter().enumerate().filter(move |(_, state)| state.changed_at > base).map(move |(index, state)| {
        let slot = Slot(index as u16);
        match &state.stack {
            None => SlotChange::Emptied { slot },
            Some(stack) if state.identity_at <= base => SlotChange::Count { slot, count: stack.count.get() },
            Some(stack) => SlotChange::Filled { slot, stack: stack.clone() },
        }
    })
}
