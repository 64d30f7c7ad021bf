//! Implements `InventoryService`: parses requests, calls the engine and writes replies.
//!
//! This file lists all RPCs. What they have in common is in [`super::mutations`], [`super::reads`] and
//! [`super::subscribe`].

use super::frame_body::SubscriptionBody;
use super::mutations::{AppliedMutation, CallOrigin};
use super::stream::StreamContext;
use super::stream_limit::StreamLimiter;
use crate::domain::{Caller, OperationOutcome};
use crate::engine::Engine;
use crate::identity::{AuthError, Identity};
use crate::status;
use crate::sync::TraceContext;
use crate::wire::v1::operation::Operation;
use crate::wire::{reply, v1};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub struct Service {
    pub engine: Engine,
    pub catalog_version: String,
    pub stream_limiter: StreamLimiter,
    pub streams: Arc<StreamContext>,
}

/// Returns the caller's identity, which the identity layer added to the request.
pub(super) fn identity<T>(request: &Request<T>) -> Result<&Identity, Status> {
    // The identity layer adds it to every request, so this denies by default.
    request.extensions().get().ok_or_else(|| status::unauthenticated(AuthError::CredentialsMissing))
}

/// Returns the trace context, which the telemetry layer added to the request if the call is traced.
pub(super) fn trace_context<T>(request: &Request<T>) -> Option<TraceContext> {
    request.extensions().get().copied()
}

pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    identity(request).map(|identity| identity.caller.clone())
}

impl Service {
    fn stack(&self, outcome: &OperationOutcome) -> Option<v1::Stack> {
        outcome.stack.as_ref().map(|stack| reply::stack(self.engine.catalog(), stack))
    }
}

#[tonic::async_trait]
impl v1::inventory_service_server::InventoryService for Service {
    async fn create_inventory(
        &self,
        request: Request<v1::CreateInventoryRequest>,
    ) -> Result<Response<v1::CreateInventoryResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::CreateInventoryRequest { context, create } = request.into_inner();
        let (receipt, _) = self.mutate_single(origin, context, "create", create.map(Operation::Create)).await?;
        Ok(Response::new(v1::CreateInventoryResponse { receipt }))
    }

    async fn get_inventory(
        &self,
        request: Request<v1::GetInventoryRequest>,
    ) -> Result<Response<v1::GetInventoryResponse>, Status> {
        self.read(&request).await.map(Response::new)
    }

    async fn list_inventories(
        &self,
        request: Request<v1::ListInventoriesRequest>,
    ) -> Result<Response<v1::ListInventoriesResponse>, Status> {
        self.list(&request).await.map(Response::new)
    }

    async fn delete_inventory(
        &self,
        request: Request<v1::DeleteInventoryRequest>,
    ) -> Result<Response<v1::DeleteInventoryResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::DeleteInventoryRequest { context, delete } = request.into_inner();
        let (receipt, _) = self.mutate_single(origin, context, "delete", delete.map(Operation::Delete)).await?;
        Ok(Response::new(v1::DeleteInventoryResponse { receipt }))
    }

    async fn add_item(&self, request: Request<v1::AddItemRequest>) -> Result<Response<v1::AddItemResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::AddItemRequest { context, add } = request.into_inner();
        let (receipt, outcome) = self.mutate_single(origin, context, "add", add.map(Operation::Add)).await?;
        let OperationOutcome { count: added, remainder, .. } = outcome;
        Ok(Response::new(v1::AddItemResponse { receipt, added, remainder }))
    }

    async fn remove_item(
        &self,
        request: Request<v1::RemoveItemRequest>,
    ) -> Result<Response<v1::RemoveItemResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::RemoveItemRequest { context, remove } = request.into_inner();
        let (receipt, _) = self.mutate_single(origin, context, "remove", remove.map(Operation::Remove)).await?;
        Ok(Response::new(v1::RemoveItemResponse { receipt }))
    }

    async fn move_item(&self, request: Request<v1::MoveItemRequest>) -> Result<Response<v1::MoveItemResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::MoveItemRequest { context, r#move: move_item } = request.into_inner();
        let (receipt, outcome) = self.mutate_single(origin, context, "move", move_item.map(Operation::Move)).await?;
        Ok(Response::new(v1::MoveItemResponse { receipt, moved: outcome.count }))
    }

    async fn drop_item(&self, request: Request<v1::DropItemRequest>) -> Result<Response<v1::DropItemResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::DropItemRequest { context, drop } = request.into_inner();
        let (receipt, outcome) = self.mutate_single(origin, context, "drop", drop.map(Operation::Drop)).await?;
        Ok(Response::new(v1::DropItemResponse { receipt, dropped: self.stack(&outcome) }))
    }

    async fn craft_item(
        &self,
        request: Request<v1::CraftItemRequest>,
    ) -> Result<Response<v1::CraftItemResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::CraftItemRequest { context, craft } = request.into_inner();
        let (receipt, _) = self.mutate_single(origin, context, "craft", craft.map(Operation::Craft)).await?;
        Ok(Response::new(v1::CraftItemResponse { receipt }))
    }

    async fn transfer_item(
        &self,
        request: Request<v1::TransferItemRequest>,
    ) -> Result<Response<v1::TransferItemResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::TransferItemRequest { context, transfer } = request.into_inner();
        let (receipt, outcome) =
            self.mutate_single(origin, context, "transfer", transfer.map(Operation::Transfer)).await?;
        let OperationOutcome { count: moved, remainder, .. } = outcome;
        Ok(Response::new(v1::TransferItemResponse { receipt, moved, remainder }))
    }

    async fn set_slot(&self, request: Request<v1::SetSlotRequest>) -> Result<Response<v1::SetSlotResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::SetSlotRequest { context, set } = request.into_inner();
        let (receipt, outcome) = self.mutate_single(origin, context, "set", set.map(Operation::Set)).await?;
        Ok(Response::new(v1::SetSlotResponse { receipt, replaced: self.stack(&outcome) }))
    }

    async fn rearrange_inventory(
        &self,
        request: Request<v1::RearrangeInventoryRequest>,
    ) -> Result<Response<v1::RearrangeInventoryResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::RearrangeInventoryRequest { context, rearrange } = request.into_inner();
        let (receipt, _) =
            self.mutate_single(origin, context, "rearrange", rearrange.map(Operation::Rearrange)).await?;
        Ok(Response::new(v1::RearrangeInventoryResponse { receipt }))
    }

    async fn transact(&self, request: Request<v1::TransactRequest>) -> Result<Response<v1::TransactResponse>, Status> {
        let origin = CallOrigin::of(&request)?;
        let v1::TransactRequest { context, operations } = request.into_inner();
        let AppliedMutation { receipt, outcomes } = self.mutate(origin, context, operations, false).await?;
        let outcomes = outcomes.iter().map(|outcome| reply::outcome(self.engine.catalog(), outcome)).collect();
        Ok(Response::new(v1::TransactResponse { receipt, outcomes }))
    }

    type SubscribeInventoryStream = SubscriptionBody;

    async fn subscribe_inventory(
        &self,
        request: Request<v1::SubscribeInventoryRequest>,
    ) -> Result<Response<Self::SubscribeInventoryStream>, Status> {
        self.subscribe(&request).await.map(Response::new)
    }

    async fn report_desync(
        &self,
        request: Request<v1::ReportDesyncRequest>,
    ) -> Result<Response<v1::ReportDesyncResponse>, Status> {
        self.handle_desync_report(request).await.map(Response::new)
    }

    async fn get_catalog(&self, _: Request<v1::GetCatalogRequest>) -> Result<Response<v1::GetCatalogResponse>, Status> {
        Ok(Response::new(reply::catalog(self.engine.catalog(), &self.catalog_version)))
    }
}
