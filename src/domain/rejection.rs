//! Rejections: why the rules refuse a mutation. A rejection is an expected outcome: nothing has changed, and its
//! message says what to do next.

use super::ids::{Epoch, InventoryId, ItemCode, LayoutId, Revision, Slot};
use super::mutation::Guard;
use std::fmt;

/// Why the rules refused a mutation, and at which operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The index of the operation in the mutation, from 0.
    pub operation: usize,
    pub cause: RejectionCause,
}

/// The rule that a mutation violates, with the values that a client needs to react.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RejectionCause {
    InventoryNotFound {
        id: InventoryId,
    },
    InventoryExists {
        id: InventoryId,
    },
    UnknownLayout {
        layout: LayoutId,
    },
    SlotOutOfRange {
        id: InventoryId,
        slot: Slot,
        slots: usize,
    },
    DuplicateSlot {
        slot: Slot,
    },
    StackTooLarge {
        item: ItemCode,
        count: u32,
        max_stack: u32,
    },
    UnknownItemCode {
        item: ItemCode,
    },
    TransferToItself {
        id: InventoryId,
    },
    NotEnough {
        id: InventoryId,
        item: ItemCode,
        wanted: u64,
        held: u64,
    },
    NoRoom {
        id: InventoryId,
        item: ItemCode,
        wanted: u64,
        room: u64,
    },
    SlotEmpty {
        id: InventoryId,
        slot: Slot,
    },
    SlotOccupied {
        id: InventoryId,
        slot: Slot,
    },
    NotARearrangement {
        id: InventoryId,
    },
    /// A guard failed. `epoch` and `revision` are the current values of the inventory.
    StaleRevision {
        expected: Guard,
        epoch: Epoch,
        revision: Revision,
    },
}

impl fmt::Display for RejectionCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InventoryNotFound { id } => write!(f, "inventory {id:?} does not exist (create it first)"),
            Self::InventoryExists { id } => write!(f, "inventory {id:?} already exists"),
            Self::UnknownLayout { layout } => write!(f, "layout {layout:?} is not in the catalog"),
            Self::SlotOutOfRange { id, slot, slots } => {
                let last = slots.saturating_sub(1);
                write!(f, "slot {} is out of range: inventory {id:?} has slots 0 to {last}", slot.0)
            }
            Self::DuplicateSlot { slot } => write!(f, "slot {} is named more than once", slot.0),
            Self::StackTooLarge { item, count, max_stack } => {
                write!(f, "a stack of {count} of item code {} exceeds its max_stack of {max_stack}", item.get())
            }
            Self::UnknownItemCode { item } => write!(f, "item code {} is not in the catalog", item.get()),
            Self::TransferToItself { id } => write!(f, "inventory {id:?} is both source and target (use MoveItem)"),
            Self::NotEnough { id, item, wanted, held } => {
                write!(f, "inventory {id:?} has {held} of item code {}, needs {wanted}", item.get())
            }
            Self::NoRoom { id, item, wanted, room } => {
                write!(f, "inventory {id:?} has room for {room} of item code {}, needs room for {wanted}", item.get())
            }
            Self::SlotEmpty { id, slot } => write!(f, "slot {} of inventory {id:?} is empty", slot.0),
            Self::SlotOccupied { id, slot } => {
                write!(f, "slot {} of inventory {id:?} holds another kind of item", slot.0)
            }
            Self::NotARearrangement { id } => {
                write!(f, "the new slots do not contain exactly the items of inventory {id:?} (read it again)")
            }
            Self::StaleRevision { expected: Guard { id, epoch: wanted, revision: at }, epoch, revision } => {
                let (epoch, revision, wanted, at) = (epoch.get(), revision.0, wanted.get(), at.0);
                write!(f, "inventory {id:?} is at revision {revision} of epoch {epoch}, ")?;
                write!(f, "expected revision {at} of epoch {wanted} (read it again)")
            }
        }
    }
}
