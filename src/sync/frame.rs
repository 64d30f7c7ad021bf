//! Computes the changes since a reader's cursor with one scan over the slots' stamps.

use crate::domain::{Contents, Epoch, Inventory, Revision, Slot, Stack};

/// The state that a reader has of one inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: Epoch,
    pub revision: Revision,
}

impl Cursor {
    /// Returns the cursor of a reader that has this state.
    pub fn of(inventory: &Inventory) -> Self {
        Self { epoch: inventory.epoch, revision: inventory.contents.revision() }
    }
}

/// Why a full state is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullReason {
    /// The reader has no state yet.
    Initial,
    /// More slots changed than a delta may contain.
    ManyChanges,
    /// The reader's state has another epoch: the inventory was recreated or restored.
    EpochChanged,
    /// The reader's cursor has a revision that the service has not reached.
    FromTheFuture,
    /// Deltas are disabled.
    DeltaOff,
    /// The reader's state is wrong: a prediction was wrong, a predicted mutation failed, or the reader reported a
    /// desync.
    Correction,
}

/// The change of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotChange {
    /// The slot has the same item and attributes and another count.
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
    /// The two lanes of the digest after the changes, combined by XOR.
    pub check: u32,
}

/// Whether one inventory's part of a frame is a full state or a delta, and of which versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameBody {
    /// Replaces the whole state; slots without a change are empty.
    Full { epoch: Epoch, revision: Revision, slots: usize, reason: FullReason },
    /// Advances a reader to `revision`. The values are absolute, so a reader at any revision from `base` to `revision`
    /// can apply it.
    Delta {
        /// The revision that the stream last sent. `base` is higher if predictions were confirmed since then.
        last_sent: Revision,
        base: Revision,
        revision: Revision,
    },
}

/// Returns the changes that bring a reader at `cursor` to the state of `inventory`, or `None` if the reader is up to
/// date. A delta contains at most `delta_slots_max` slots; with 0, every frame is full.
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
    Some(InventoryFrame { body, changes, check: contents.digest().to_u32() })
}

/// Returns all slots of an inventory, for a reader that has no state or a wrong one.
pub fn full_frame(epoch: Epoch, contents: &Contents, reason: FullReason) -> InventoryFrame {
    let slots = contents.slots().len();
    let body = FrameBody::Full { epoch, revision: contents.revision(), slots, reason };
    let changes = contents.stacks().map(|(slot, stack)| SlotChange::Filled { slot, stack: stack.clone() }).collect();
    InventoryFrame { body, changes, check: contents.digest().to_u32() }
}

/// Returns the slots that changed after revision `base`, in ascending order.
fn changes_since(contents: &Contents, base: Revision) -> impl Iterator<Item = SlotChange> {
    contents.slots().iter().enumerate().filter(move |(_, state)| state.changed_at > base).map(move |(index, state)| {
        let slot = Slot(index as u16);
        match &state.stack {
            None => SlotChange::Emptied { slot },
            Some(stack) if state.identity_changed_at <= base => SlotChange::Count { slot, count: stack.count.get() },
            Some(stack) => SlotChange::Filled { slot, stack: stack.clone() },
        }
    })
}
