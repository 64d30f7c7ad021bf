//! Rejections: why the rules refuse a mutation. A rejection is an expected outcome: nothing has changed, and its
//! message says what to do next.

use super::catalog::Catalog;
use super::ids::{Epoch, InventoryId, ItemCode, LayoutId, Revision, Slot};
use super::mutation::Guard;
use std::fmt;
use std::sync::Arc;

/// Why the rules refused a mutation, and at which operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The index of the operation in the mutation, from 0. A failed guard has index 0.
    pub operation: usize,
    pub cause: RejectionCause,
    /// The id of the item in `cause`; `None` if the cause names no item or the item is not in the catalog.
    pub item_id: Option<Arc<str>>,
}

impl Rejection {
    /// Creates the rejection of an operation. Looks up the item of `cause` in the catalog.
    pub fn new(operation: usize, cause: RejectionCause, catalog: &Catalog) -> Self {
        let item = cause.item().and_then(|code| catalog.item_by_code(code));
        Self { operation, item_id: item.map(|item| item.id.clone()), cause }
    }
}

/// The rule that a mutation violates, with the values that a client needs to react.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RejectionCause {
    /// The inventory does not exist or was deleted.
    InventoryNotFound { id: InventoryId },
    /// A create names an inventory that exists.
    InventoryExists { id: InventoryId },
    /// A create names a layout that is not in the catalog.
    UnknownLayout { layout: LayoutId },
    /// The inventory has only `slots` slots.
    SlotOutOfRange { id: InventoryId, slot: Slot, slots: usize },
    /// A list of stacks contains the slot more than once.
    DuplicateSlot { slot: Slot },
    /// A stack would exceed the maximum of its item; 0 if the item is not in the catalog.
    StackTooLarge { item: ItemCode, count: u32, max_stack: u32 },
    /// No item in the catalog has this code.
    UnknownItemCode { item: ItemCode },
    /// A transfer has the same inventory as source and target.
    SameInventory { id: InventoryId },
    /// The inventory has `held` items, fewer than needed.
    NotEnough { id: InventoryId, item: ItemCode, needed: u64, held: u64 },
    /// The inventory, or the target slot, has room for `room` items, fewer than needed.
    NoRoom { id: InventoryId, item: ItemCode, needed: u64, room: u64 },
    /// An operation takes items from an empty slot.
    SlotEmpty { id: InventoryId, slot: Slot },
    /// The target slot holds a stack that cannot be merged: another item or other attributes.
    SlotOccupied { id: InventoryId, slot: Slot },
    /// The new stacks of a rearrangement do not contain exactly the items of the inventory.
    NotARearrangement { id: InventoryId },
    /// A guard failed. `epoch` and `revision` are the current values of the inventory.
    StaleRevision { expected: Guard, epoch: Epoch, revision: Revision },
}

impl RejectionCause {
    /// Returns the item of which there is too much or not enough, or which does not exist.
    fn item(&self) -> Option<ItemCode> {
        match self {
            Self::StackTooLarge { item, .. }
            | Self::UnknownItemCode { item }
            | Self::NotEnough { item, .. }
            | Self::NoRoom { item, .. } => Some(*item),
            Self::InventoryNotFound { .. }
            | Self::InventoryExists { .. }
            | Self::UnknownLayout { .. }
            | Self::SlotOutOfRange { .. }
            | Self::DuplicateSlot { .. }
            | Self::SameInventory { .. }
            | Self::SlotEmpty { .. }
            | Self::SlotOccupied { .. }
            | Self::NotARearrangement { .. }
            | Self::StaleRevision { .. } => None,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use RejectionCause as Cause;
        let quantity = |count: u64, item: &ItemCode| match &self.item_id {
            Some(id) => format!("{count} {id}"),
            None => format!("{count} of item code {}", item.get()),
        };
        match &self.cause {
            Cause::InventoryNotFound { id } => write!(f, "inventory {id:?} does not exist (create it first)"),
            Cause::InventoryExists { id } => write!(f, "inventory {id:?} already exists (choose another id)"),
            Cause::UnknownLayout { layout } => write!(f, "layout {layout:?} is not in the catalog"),
            Cause::SlotOutOfRange { id, slot, slots } => {
                let last = slots.saturating_sub(1);
                write!(f, "slot {} is out of range: inventory {id:?} has slots 0 to {last}", slot.0)
            }
            Cause::DuplicateSlot { slot } => write!(f, "slot {} is listed more than once", slot.0),
            Cause::StackTooLarge { item, count, max_stack } => {
                let stack = quantity(u64::from(*count), item);
                write!(f, "a stack of {stack} exceeds its max_stack of {max_stack}")
            }
            Cause::UnknownItemCode { item } => write!(f, "item code {} is not in the catalog", item.get()),
            Cause::SameInventory { id } => {
                write!(f, "inventory {id:?} is both source and target of the transfer (use MoveItem)")
            }
            Cause::NotEnough { id, item, needed, held } => {
                write!(f, "inventory {id:?} has {}, needs {needed}", quantity(*held, item))
            }
            Cause::NoRoom { id, item, needed, room } => {
                write!(f, "inventory {id:?} has room for {}, needs room for {needed}", quantity(*room, item))
            }
            Cause::SlotEmpty { id, slot } => write!(f, "slot {} of inventory {id:?} is empty", slot.0),
            Cause::SlotOccupied { id, slot } => {
                write!(f, "slot {} of inventory {id:?} holds another item or other attributes", slot.0)
            }
            Cause::NotARearrangement { id } => {
                write!(f, "the listed stacks are not exactly the items of inventory {id:?} (read it again)")
            }
            Cause::StaleRevision {
                expected: Guard { id, epoch: expected_epoch, revision: expected },
                epoch,
                revision,
            } => {
                let (epoch, expected_epoch) = (epoch.get(), expected_epoch.get());
                write!(f, "inventory {id:?} is at revision {} of epoch {epoch}, ", revision.0)?;
                write!(f, "expected revision {} of epoch {expected_epoch} (read it again)", expected.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::catalog::CatalogSource;

    #[test]
    fn a_rejection_names_the_item_by_its_id_or_without_one_by_its_code() {
        let source = CatalogSource { items: vec![("apple".into(), 24, 64)], ..CatalogSource::default() };
        let catalog = Catalog::new(source).unwrap();
        let text = |code, cause: fn(InventoryId, ItemCode) -> RejectionCause| {
            let (id, item) = (InventoryId::new("steve").unwrap(), ItemCode::new(code).unwrap());
            Rejection::new(0, cause(id, item), &catalog).to_string()
        };
        let not_enough = |id, item| RejectionCause::NotEnough { id, item, needed: 1_000, held: 0 };
        assert_eq!(text(24, not_enough), "inventory \"steve\" has 0 apple, needs 1000");
        assert_eq!(text(25, not_enough), "inventory \"steve\" has 0 of item code 25, needs 1000");
        let no_room = |id, item| RejectionCause::NoRoom { id, item, needed: 10, room: 3 };
        assert_eq!(text(24, no_room), "inventory \"steve\" has room for 3 apple, needs room for 10");
        let too_large = |_, item| RejectionCause::StackTooLarge { item, count: 65, max_stack: 64 };
        assert_eq!(text(24, too_large), "a stack of 65 apple exceeds its max_stack of 64");
    }
}
