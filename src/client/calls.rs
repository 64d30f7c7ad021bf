//! Sends an operation through the RPC of its kind.

use super::Client;
use crate::wire::v1;
use crate::wire::v1::operation::Operation;
use tonic::Status;

impl Client {
    /// Sends one operation through its own RPC. The call is idempotent: a retry with the same context applies the
    /// operation once.
    pub async fn mutate(
        &self,
        context: v1::MutationContext,
        operation: Operation,
    ) -> Result<v1::MutationReceipt, Status> {
        let mut rpc = self.rpc();
        let context = Some(context);
        let receipt = match operation {
            Operation::Create(create) => {
                let request = v1::CreateInventoryRequest { context, create: Some(create) };
                rpc.create_inventory(request).await?.into_inner().receipt
            }
            Operation::Delete(delete) => {
                let request = v1::DeleteInventoryRequest { context, delete: Some(delete) };
                rpc.delete_inventory(request).await?.into_inner().receipt
            }
            Operation::Add(add) => {
                rpc.add_item(v1::AddItemRequest { context, add: Some(add) }).await?.into_inner().receipt
            }
            Operation::Remove(remove) => {
                let request = v1::RemoveItemRequest { context, remove: Some(remove) };
                rpc.remove_item(request).await?.into_inner().receipt
            }
            Operation::Move(move_item) => {
                let request = v1::MoveItemRequest { context, r#move: Some(move_item) };
                rpc.move_item(request).await?.into_inner().receipt
            }
            Operation::Drop(drop) => {
                rpc.drop_item(v1::DropItemRequest { context, drop: Some(drop) }).await?.into_inner().receipt
            }
            Operation::Craft(craft) => {
                rpc.craft_item(v1::CraftItemRequest { context, craft: Some(craft) }).await?.into_inner().receipt
            }
            Operation::Transfer(transfer) => {
                let request = v1::TransferItemRequest { context, transfer: Some(transfer) };
                rpc.transfer_item(request).await?.into_inner().receipt
            }
            Operation::Set(set) => {
                rpc.set_slot(v1::SetSlotRequest { context, set: Some(set) }).await?.into_inner().receipt
            }
            Operation::Rearrange(rearrange) => {
                let request = v1::RearrangeInventoryRequest { context, rearrange: Some(rearrange) };
                rpc.rearrange_inventory(request).await?.into_inner().receipt
            }
        };
        Ok(receipt.unwrap_or_default())
    }
}
