//! A valid message for each method, with its path.

use crate::common::{add, craft, delete, drop, move_item, quantity, remove, set, slot_stack, stack, transfer};
use prost::Message;
use slotcast::client::new_mutation_context;
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;

pub type Call = (String, Vec<u8>);

pub const READS: [&str; 5] = ["GetInventory", "ListInventories", "SubscribeInventory", "ReportDesync", "GetCatalog"];

fn inventory_call(method: &str, message: &impl Message) -> Call {
    (format!("/slotcast.v1.InventoryService/{method}"), message.encode_to_vec())
}

pub fn get(id: &str) -> Call {
    inventory_call("GetInventory", &v1::GetInventoryRequest { inventory_id: id.into() })
}

pub fn list(owner: &str) -> Call {
    inventory_call("ListInventories", &v1::ListInventoriesRequest { owner: owner.into(), ..Default::default() })
}

pub fn subscribe(ids: &[&str]) -> Call {
    let watch = |id: &&str| v1::Watch { inventory_id: (*id).into(), ..Default::default() };
    let inventories = ids.iter().map(watch).collect();
    inventory_call("SubscribeInventory", &v1::SubscribeInventoryRequest { inventories, ..Default::default() })
}

pub fn report(id: &str) -> Call {
    let request = v1::ReportDesyncRequest {
        session: "s".into(),
        have: Some(v1::InventoryVersion { inventory_id: id.into(), ..Default::default() }),
    };
    inventory_call("ReportDesync", &request)
}

pub fn catalog() -> Call {
    inventory_call("GetCatalog", &v1::GetCatalogRequest {})
}

pub fn create(id: &str, owner: &str, stacks: &[(u32, &str, u32)]) -> Operation {
    Operation::Create(v1::CreateInventory {
        inventory_id: id.into(),
        owner: owner.into(),
        layout: "player".into(),
        stacks: stacks.iter().map(|(slot, item, count)| slot_stack(*slot, item, *count)).collect(),
    })
}

/// Returns the call of the operation's own RPC.
pub fn mutation(operation: Operation) -> Call {
    let context = Some(new_mutation_context());
    match operation {
        Operation::Create(create) => {
            inventory_call("CreateInventory", &v1::CreateInventoryRequest { context, create: Some(create) })
        }
        Operation::Delete(delete) => {
            inventory_call("DeleteInventory", &v1::DeleteInventoryRequest { context, delete: Some(delete) })
        }
        Operation::Add(add) => inventory_call("AddItem", &v1::AddItemRequest { context, add: Some(add) }),
        Operation::Remove(remove) => {
            inventory_call("RemoveItem", &v1::RemoveItemRequest { context, remove: Some(remove) })
        }
        Operation::Move(shifted) => inventory_call("MoveItem", &v1::MoveItemRequest { context, r#move: Some(shifted) }),
        Operation::Drop(drop) => inventory_call("DropItem", &v1::DropItemRequest { context, drop: Some(drop) }),
        Operation::Craft(craft) => inventory_call("CraftItem", &v1::CraftItemRequest { context, craft: Some(craft) }),
        Operation::Transfer(transfer) => {
            inventory_call("TransferItem", &v1::TransferItemRequest { context, transfer: Some(transfer) })
        }
        Operation::Set(set) => inventory_call("SetSlot", &v1::SetSlotRequest { context, set: Some(set) }),
        Operation::Rearrange(rearrange) => {
            inventory_call("RearrangeInventory", &v1::RearrangeInventoryRequest { context, rearrange: Some(rearrange) })
        }
    }
}

pub fn transact(operations: Vec<Operation>) -> Call {
    let operations = operations.into_iter().map(|operation| v1::Operation { operation: Some(operation) }).collect();
    inventory_call("Transact", &v1::TransactRequest { context: Some(new_mutation_context()), operations })
}

/// Returns every RPC that changes something, in an order in which each succeeds. `from` has 8 oak logs in slot 0 and 3
/// apples in slot 1; `box` is created and deleted.
pub fn mutations(from: &str, to: &str) -> Vec<Call> {
    let stacks = vec![slot_stack(4, "apple", 2)];
    let apples = Some(v1::transfer_item::What::Item(quantity("apple", 1)));
    let into_a_slot = v1::TransferItem {
        from_inventory_id: from.into(),
        to_inventory_id: to.into(),
        what: apples,
        to: Some(v1::SlotRef { slot: 30 }),
        ..Default::default()
    };
    vec![
        mutation(create("box", "", &[(0, "apple", 2)])),
        mutation(Operation::Rearrange(v1::RearrangeInventory { inventory_id: "box".into(), stacks })),
        mutation(delete("box")),
        mutation(add(from, "dirt", 4)),
        mutation(remove(from, "dirt", 1)),
        mutation(move_item(from, 0, 8, Some(2))),
        mutation(drop(from, 8, Some(1))),
        mutation(craft(from, "oak_planks", 1)),
        mutation(transfer(from, to, "apple", 1)),
        mutation(Operation::Transfer(into_a_slot)),
        mutation(set(from, 20, Some(stack("apple", 1)))),
        transact(vec![add(from, "dirt", 1), add(to, "dirt", 1)]),
    ]
}

fn admin_call(method: &str, message: &impl Message) -> Call {
    (format!("/slotcast.v1.AdminService/{method}"), message.encode_to_vec())
}

pub fn rollout() -> Call {
    admin_call("GetRollout", &v1::GetRolloutRequest {})
}

/// Returns every RPC of AdminService; the last one stops the server.
pub fn admin() -> Vec<Call> {
    let reason = String::from("a test");
    let update = v1::UpdateRolloutRequest { reason: reason.clone(), delta_percent: Some(7), ..Default::default() };
    vec![
        rollout(),
        admin_call("UpdateRollout", &update),
        admin_call("GetStatistics", &v1::GetStatisticsRequest {}),
        admin_call("Drain", &v1::DrainRequest { reason, ..Default::default() }),
    ]
}

pub fn health() -> Call {
    ("/grpc.health.v1.Health/Check".into(), tonic_health::pb::HealthCheckRequest::default().encode_to_vec())
}

pub fn reflection() -> Call {
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request::MessageRequest};
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let message = ServerReflectionRequest { message_request, ..Default::default() };
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".into(), message.encode_to_vec())
}
