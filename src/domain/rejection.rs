//! Why a mutation was refused. A rejection is an expected outcome: nothing has changed, and it says what to do next.

use super::ids::{Epoch, InventoryId, ItemCode, LayoutId, Revision, Slot};
use super::mutation::Guard;
use std::fmt;

/// The operation of the mutation that was refused, counted from 0, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub operation: usize,
    pub cause: RejectionCause,
}

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
    /// A guard does not hold; epoch and revision are the current ones.
    StaleRevision {
        expected: Guard,
        epoch: Epoch,
        revision: Revision,
    },
}

impl fmt::Display for RejectionCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InventoryNotFound { id } => write!(f, "no inventory {id:?}; create it first"),
            Self::InventoryExists { id } => write!(f, "inventory {id:?} exists already"),
            Self::UnknownLayout { layout } => write!(f, "the catalog has no layout {layout:?}"),
            Self::SlotOutOfRange { id, slot, slots } => {
                write!(f, "inventory {id:?} has slots 0 to {}, there is no slot {}", slots.saturating_sub(1), slot.0)
            }
            Self::DuplicateSlot { slot } => write!(f, "slot {} is named twice", slot.0),
            Self::StackTooLarge { item, count, max_stack } => {
                write!(f, "{count} of item code {} do not fit one stack of at most {max_stack}", item.get())
            }
            Self::UnknownItemCode { item } => write!(f, "the catalog has no item with code {}", item.get()),
            Self::TransferToItself { id } => write!(f, "{id:?} is both source and target; use MoveItem"),
            Self::NotEnough { id, item, wanted, held } => {
                write!(f, "inventory {id:?} holds {held} of item code {}, {wanted} are needed", item.get())
            }
            Self::NoRoom { id, item, wanted, room } => {
                write!(f, "inventory {id:?} has room for {room} of item code {}, not for {wanted}", item.get())
            }
            Self::SlotEmpty { id, slot } => write!(f, "slot {} of {id:?} is empty", slot.0),
            Self::SlotOccupied { id, slot } => write!(f, "slot {} of {id:?} holds something else", slot.0),
            Self::NotARearrangement { id } => {
                write!(f, "the wanted slots do not hold exactly the items of {id:?}; read it again")
            }
            Self::StaleRevision { expected: Guard { id, epoch: wanted, revision: at }, epoch, revision } => {
                let (epoch, revision, wanted, at) = (epoch.get(), revision.0, wanted.get(), at.0);
                write!(f, "inventory {id:?} is at revision {revision} of epoch {epoch}, ")?;
                write!(f, "expected revision {at} of epoch {wanted}; read it again")
            }
        }
    }
}
