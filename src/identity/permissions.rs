//! Which role a method takes. All methods that there are stand here; any other is denied.
//!
//! That a player reads only what it owns is decided where the inventory is known, in `grpc::permit`.

use super::Role;

/// What a method asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: callers need not even say who they are.
    Anybody,
    /// This role or one above it.
    From(Role),
}

/// Of a path like `/slotcast.v1.InventoryService/AddItem`; none if there is no such method.
pub fn access(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match (service, method) {
        // A player: of what it owns.
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
