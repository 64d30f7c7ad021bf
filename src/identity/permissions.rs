//! The role that each method requires. The table lists all methods; any other method is denied.
//!
//! `grpc::read_authorization` restricts a player to its own inventories, because only there the inventory is known.

use super::Role;

/// The requirement of a method for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No requirement: callers need not be authenticated.
    Anybody,
    /// The caller needs this role or a higher one.
    From(Role),
}

/// Returns the requirement of a path such as `/slotcast.v1.InventoryService/AddItem`; `None` if there is no such
/// method.
pub fn access(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match (service, method) {
        // A player may only access its own inventories.
        (
            "slotcast.v1.InventoryService",
            "GetInventory" | "ListInventories" | "SubscribeInventory" | "ReportDesync" | "GetCatalog",
        ) => Some(Access::From(Role::Player)),
        (
            "slotcast.v1.InventoryService",
            "CreateInventory" | "DeleteInventory" | "AddItem" | "RemoveItem" | "MoveItem" | "DropItem" | "CraftItem"
            | "TransferItem" | "SetSlot" | "RearrangeInventory" | "Transact",
        ) => Some(Access::From(Role::Service)),
        ("slotcast.v1.AdminService", "GetRollout" | "UpdateRollout" | "GetStatistics" | "Drain") => {
            Some(Access::From(Role::Admin))
        }
        ("grpc.health.v1.Health", "Check" | "Watch" | "List") => Some(Access::Anybody),
        (
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
        ) => Some(Access::From(Role::Player)),
        _ => None,
    }
}
