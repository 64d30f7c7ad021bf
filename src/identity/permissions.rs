//! The role that each method requires. The table lists all methods; any other method is denied.
//!
//! `grpc::read_authorization` restricts a player to its own inventories, because only there the inventory is known.

use super::Role;

/// The callers that may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MethodAccess {
    /// Callers need not be authenticated.
    Public,
    /// The caller needs this role or a higher one.
    MinRole(Role),
}

/// Returns who may call the method with a path such as `/slotcast.v1.InventoryService/AddItem`, or `None` if there is no
/// such method.
pub fn method_access(path: &str) -> Option<MethodAccess> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    match (service, method) {
        // A player may only access its own inventories.
        (
            "slotcast.v1.InventoryService",
            "GetInventory" | "ListInventories" | "SubscribeInventory" | "ReportDesync" | "GetCatalog",
        ) => Some(MethodAccess::MinRole(Role::Player)),
        (
            "slotcast.v1.InventoryService",
            "CreateInventory" | "DeleteInventory" | "AddItem" | "RemoveItem" | "MoveItem" | "DropItem" | "CraftItem"
            | "TransferItem" | "SetSlot" | "RearrangeInventory" | "Transact",
        ) => Some(MethodAccess::MinRole(Role::Service)),
        ("slotcast.v1.AdminService", "GetRollout" | "UpdateRollout" | "GetStatistics" | "Drain") => {
            Some(MethodAccess::MinRole(Role::Admin))
        }
        ("grpc.health.v1.Health", "Check" | "Watch" | "List") => Some(MethodAccess::Public),
        (
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
        ) => Some(MethodAccess::MinRole(Role::Player)),
        _ => None,
    }
}
