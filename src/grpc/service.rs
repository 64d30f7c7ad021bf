//! Implements `InventoryService`: parses requests, calls the engine and writes replies.
//!
//! The RPC of a single operation is equivalent to a `Transact` of that operation: same path, same payload fingerprint.

use super::page_token;
use super::read_authorization::{self, ReadAuthorization};
use super::stream::{FrameStream, Opening};
use super::streams::{Counted, OpenStreams};
use crate::domain::{Caller, Fingerprint, Inventory, InventoryId, OperationOutcome, SessionId};
use crate::engine::{Engine, EngineError, MutationReply, MutationRequest, PredictedDigests};
use crate::identity::Identity;
use crate::live_rollout::LiveRollout;
use crate::statistics::StreamStatistics;
use crate::status;
use crate::store::{Key, ListQuery};
use crate::sync::subscription::check_size;
use crate::sync::{Bucket, FrameAge, LimitedPlayer, SubscribeOptions, TraceContext};
use crate::telemetry::Telemetry;
use crate::transport::DrainSignal;
use crate::wire::v1::operation::Operation as Wire;
use crate::wire::{FieldViolation, frame, reply, request, v1};
use prost::Message;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

const PAGE_SIZE_DEFAULT: u32 = 100;
pub const PAGE_SIZE_MAX: u32 = 1_000;

pub struct Service {
    pub engine: Engine,
    pub catalog_version: String,
    pub rollout: LiveRollout,
    pub statistics: Arc<StreamStatistics>,
    pub telemetry: Telemetry,
    pub streams: OpenStreams,
    /// The origin of the times of all streams.
    pub start: Instant,
}

/// An applied mutation: its receipt and the outcome of each operation.
struct Done {
    receipt: Option<v1::MutationReceipt>,
    outcomes: Vec<OperationOutcome>,
}

impl Done {
    /// Returns the outcome of a mutation of one operation.
    fn outcome(self) -> OperationOutcome {
        self.outcomes.into_iter().next().unwrap_or_default()
    }
}

/// Returns the caller's identity, which the identity layer added to the request.
fn identity<T>(request: &Request<T>) -> Result<&Identity, Status> {
    request.extensions().get().ok_or_else(status::invalid_caller)
}

/// Returns the trace context, which the telemetry layer added to the request if the call is traced.
fn cause<T>(request: &Request<T>) -> Option<TraceContext> {
    request.extensions().get().copied()
}

/// The caller of a mutation and the trace context of the call.
struct Asking {
    caller: Caller,
    cause: Option<TraceContext>,
}

fn asking<T>(request: &Request<T>) -> Result<Asking, Status> {
    Ok(Asking { caller: caller(request)?, cause: cause(request) })
}

pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    identity(request).map(|identity| identity.caller.clone())
}

impl Service {
    async fn single(
        &self,
        asking: Asking,
        context: Option<v1::MutationContext>,
        field: &'static str,
        wire: Option<Wire>,
    ) -> Result<Done, Status> {
        let missing = || status::invalid(&FieldViolation::new(field, "required"));
        let operation = v1::Operation { operation: Some(wire.ok_or_else(missing)?) };
        self.mutate(asking, context, vec![operation], true).await
    }

    async fn mutate(
        &self,
        Asking { caller, cause }: Asking,
        context: Option<v1::MutationContext>,
        operations: Vec<v1::Operation>,
        single: bool,
    ) -> Result<Done, Status> {
        let context = context.unwrap_or_default();
        let (session, predicted) = prediction(&context).map_err(|invalid| status::invalid(&invalid))?;
        let name_paths = request::name_paths(&operations);
        let call = match call(caller.clone(), context, operations, single) {
            Ok(call) => MutationRequest { session, predicted, trace: cause, ..call },
            Err(invalid) => {
                self.correct(session, &caller, predicted).await;
                return Err(status::invalid(&invalid));
            }
        };
        let answer = self.engine.mutate(call).await.map_err(|error| {
            if let EngineError::UnknownName(unknown) = &error {
                return status::unknown_name(&name_paths, single, unknown);
            }
            status::engine_error(&error)
        })?;
        let receipt = Some(receipt(&answer));
        Ok(Done { receipt, outcomes: answer.reply.outcomes })
    }

    /// Corrects a session's predictions of a malformed mutation, which will not be applied.
    async fn correct(&self, session: Option<SessionId>, caller: &Caller, predicted: PredictedDigests) {
        let Some(session) = session else { return };
        for (id, _) in predicted {
            if let Err(error) = self.engine.correct(session.clone(), caller.clone(), id).await {
                tracing::debug!(problem = status::engine_error(&error).message(), "a correction was refused");
            }
        }
    }

    fn stack(&self, outcome: &OperationOutcome) -> Option<v1::Stack> {
        outcome.stack.as_ref().map(|stack| reply::stack(self.engine.catalog(), stack))
    }
}

fn prediction(context: &v1::MutationContext) -> Result<(Option<SessionId>, PredictedDigests), FieldViolation> {
    Ok((request::session("context.session", &context.session)?, request::predicted(context)?))
}

fn call(
    caller: Caller,
    context: v1::MutationContext,
    operations: Vec<v1::Operation>,
    single: bool,
) -> Result<MutationRequest, FieldViolation> {
    let key = Key { caller, key: request::idempotency_key(&context)? };
    let mutation = request::mutation(&context, &operations, single)?;
    let (payload, reason) = (payload(context.expected, operations), context.reason.into());
    Ok(MutationRequest { key, payload, mutation, session: None, predicted: Vec::new(), reason, trace: None })
}

/// Returns the fingerprint that must be equal for all calls with one idempotency key: of the operations and their
/// guards, as sent. A retry may differ in the rest of the context: reason, session and prediction.
fn payload(expected: Vec<v1::ExpectedRevision>, operations: Vec<v1::Operation>) -> Fingerprint {
    let context = v1::MutationContext { expected, ..v1::MutationContext::default() };
    let canonical = v1::TransactRequest { context: Some(context), operations };
    Fingerprint::of(&canonical.encode_to_vec())
}

#[tonic::async_trait]
impl v1::inventory_service_server::InventoryService for Service {
    async fn create_inventory(
        &self,
        request: Request<v1::CreateInventoryRequest>,
    ) -> Result<Response<v1::CreateInventoryResponse>, Status> {
        let asking = asking(&request)?;
        let v1::CreateInventoryRequest { context, create } = request.into_inner();
        let done = self.single(asking, context, "create", create.map(Wire::Create)).await?;
        Ok(Response::new(v1::CreateInventoryResponse { receipt: done.receipt }))
    }

    async fn get_inventory(
        &self,
        request: Request<v1::GetInventoryRequest>,
    ) -> Result<Response<v1::GetInventoryResponse>, Status> {
        let id = request::inventory_id("inventory_id", &request.get_ref().inventory_id)
            .map_err(|invalid| status::invalid(&invalid))?;
        let identity = identity(&request)?;
        let found = self.engine.read(&id).await.map_err(|error| status::engine_error(&error))?;
        let found = read_authorization::readable(identity, &id, found.as_deref())?;
        let inventory = Some(reply::inventory(self.engine.catalog(), found));
        Ok(Response::new(v1::GetInventoryResponse { inventory }))
    }

    async fn list_inventories(
        &self,
        request: Request<v1::ListInventoriesRequest>,
    ) -> Result<Response<v1::ListInventoriesResponse>, Status> {
        let query = list_query(request.get_ref()).map_err(|invalid| status::invalid(&invalid))?;
        read_authorization::may_list(identity(&request)?, query.owner.as_ref())?;
        let limit = query.limit;
        // One inventory more than requested shows whether there is another page.
        let query = ListQuery { limit: limit + 1, ..query };
        let mut found = self.engine.list(query.clone()).await.map_err(|error| status::engine_error(&error))?;
        let more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().filter(|_| more);
        let token = |last: &Arc<Inventory>| page_token::write(query.owner.as_ref(), &query.prefix, &last.id);
        let next_page_token = last.map(token).unwrap_or_default();
        let inventories = found.iter().map(|inventory| reply::summary(inventory)).collect();
        Ok(Response::new(v1::ListInventoriesResponse { inventories, next_page_token }))
    }

    async fn delete_inventory(
        &self,
        request: Request<v1::DeleteInventoryRequest>,
    ) -> Result<Response<v1::DeleteInventoryResponse>, Status> {
        let asking = asking(&request)?;
        let v1::DeleteInventoryRequest { context, delete } = request.into_inner();
        let done = self.single(asking, context, "delete", delete.map(Wire::Delete)).await?;
        Ok(Response::new(v1::DeleteInventoryResponse { receipt: done.receipt }))
    }

    async fn add_item(&self, request: Request<v1::AddItemRequest>) -> Result<Response<v1::AddItemResponse>, Status> {
        let asking = asking(&request)?;
        let v1::AddItemRequest { context, add } = request.into_inner();
        let mut done = self.single(asking, context, "add", add.map(Wire::Add)).await?;
        let receipt = done.receipt.take();
        let OperationOutcome { count: added, remainder, .. } = done.outcome();
        Ok(Response::new(v1::AddItemResponse { receipt, added, remainder }))
    }

    async fn remove_item(
        &self,
        request: Request<v1::RemoveItemRequest>,
    ) -> Result<Response<v1::RemoveItemResponse>, Status> {
        let asking = asking(&request)?;
        let v1::RemoveItemRequest { context, remove } = request.into_inner();
        let done = self.single(asking, context, "remove", remove.map(Wire::Remove)).await?;
        Ok(Response::new(v1::RemoveItemResponse { receipt: done.receipt }))
    }

    async fn move_item(&self, request: Request<v1::MoveItemRequest>) -> Result<Response<v1::MoveItemResponse>, Status> {
        let asking = asking(&request)?;
        let v1::MoveItemRequest { context, r#move: wanted } = request.into_inner();
        let mut done = self.single(asking, context, "move", wanted.map(Wire::Move)).await?;
        let receipt = done.receipt.take();
        Ok(Response::new(v1::MoveItemResponse { receipt, moved: done.outcome().count }))
    }

    async fn drop_item(&self, request: Request<v1::DropItemRequest>) -> Result<Response<v1::DropItemResponse>, Status> {
        let asking = asking(&request)?;
        let v1::DropItemRequest { context, drop } = request.into_inner();
        let mut done = self.single(asking, context, "drop", drop.map(Wire::Drop)).await?;
        let receipt = done.receipt.take();
        Ok(Response::new(v1::DropItemResponse { receipt, dropped: self.stack(&done.outcome()) }))
    }

    async fn craft_item(
        &self,
        request: Request<v1::CraftItemRequest>,
    ) -> Result<Response<v1::CraftItemResponse>, Status> {
        let asking = asking(&request)?;
        let v1::CraftItemRequest { context, craft } = request.into_inner();
        let done = self.single(asking, context, "craft", craft.map(Wire::Craft)).await?;
        Ok(Response::new(v1::CraftItemResponse { receipt: done.receipt }))
    }

    async fn transfer_item(
        &self,
        request: Request<v1::TransferItemRequest>,
    ) -> Result<Response<v1::TransferItemResponse>, Status> {
        let asking = asking(&request)?;
        let v1::TransferItemRequest { context, transfer } = request.into_inner();
        let mut done = self.single(asking, context, "transfer", transfer.map(Wire::Transfer)).await?;
        let receipt = done.receipt.take();
        let OperationOutcome { count: moved, remainder, .. } = done.outcome();
        Ok(Response::new(v1::TransferItemResponse { receipt, moved, remainder }))
    }

    async fn set_slot(&self, request: Request<v1::SetSlotRequest>) -> Result<Response<v1::SetSlotResponse>, Status> {
        let asking = asking(&request)?;
        let v1::SetSlotRequest { context, set } = request.into_inner();
        let mut done = self.single(asking, context, "set", set.map(Wire::Set)).await?;
        let receipt = done.receipt.take();
        Ok(Response::new(v1::SetSlotResponse { receipt, replaced: self.stack(&done.outcome()) }))
    }

    async fn rearrange_inventory(
        &self,
        request: Request<v1::RearrangeInventoryRequest>,
    ) -> Result<Response<v1::RearrangeInventoryResponse>, Status> {
        let asking = asking(&request)?;
        let v1::RearrangeInventoryRequest { context, rearrange } = request.into_inner();
        let done = self.single(asking, context, "rearrange", rearrange.map(Wire::Rearrange)).await?;
        Ok(Response::new(v1::RearrangeInventoryResponse { receipt: done.receipt }))
    }

    async fn transact(&self, request: Request<v1::TransactRequest>) -> Result<Response<v1::TransactResponse>, Status> {
        let asking = asking(&request)?;
        let v1::TransactRequest { context, operations } = request.into_inner();
        let done = self.mutate(asking, context, operations, false).await?;
        let outcomes = done.outcomes.iter().map(|outcome| reply::outcome(self.engine.catalog(), outcome)).collect();
        Ok(Response::new(v1::TransactResponse { receipt: done.receipt, outcomes }))
    }

    type SubscribeInventoryStream = Counted<Result<v1::SubscribeInventoryResponse, Status>>;

    async fn subscribe_inventory(
        &self,
        request: Request<v1::SubscribeInventoryRequest>,
    ) -> Result<Response<Self::SubscribeInventoryStream>, Status> {
        let identity = identity(&request)?;
        let open = self
            .streams
            .open(identity)
            .map_err(|refused| status::too_many_streams(&refused.opener, refused.streams_max))?;
        let (ids, options) =
            frame::subscribe_options(request.get_ref()).map_err(|invalid| status::invalid(&invalid))?;
        let options = SubscribeOptions { access: read_authorization::access(identity)?, ..options };
        let watched = self.engine.watch(ids).await.map_err(|error| status::engine_error(&error))?;
        let visible = options.access.visible(watched.states());
        check_size(&visible).map_err(status::subscription_too_large)?;
        let owner = visible.iter().find_map(|state| state.inventory.as_deref()?.owner.as_ref());
        let player = identity.player.as_ref().or(owner);
        let age = FrameAge::default();
        let opening = Opening {
            watched,
            bucket: Bucket::of_stream(player, options.session.as_ref(), &identity.caller),
            options,
            authorization: ReadAuthorization::of(identity),
            rollout: self.rollout.subscribe(),
            statistics: self.statistics.clone(),
            closing: request.extensions().get().cloned().unwrap_or_else(DrainSignal::never),
            telemetry: self.telemetry.frames(cause(&request)),
            age: age.clone(),
            start: self.start,
        };
        let stream = FrameStream::open(opening).into_stream();
        let mut response = Response::new(open.count(Box::pin(stream)));
        if let Some(player) = &identity.player {
            response.extensions_mut().insert(LimitedPlayer(player.clone()));
            response.extensions_mut().insert(age);
        }
        Ok(response)
    }

    async fn report_desync(
        &self,
        request: Request<v1::ReportDesyncRequest>,
    ) -> Result<Response<v1::ReportDesyncResponse>, Status> {
        let identity = identity(&request)?.clone();
        let v1::ReportDesyncRequest { session, have } = request.into_inner();
        let v1::InventoryVersion { inventory_id, epoch, revision, digest } = have.unwrap_or_default();
        let parse = || {
            let missing = || FieldViolation::new("session", "required; set it to the session of the subscription");
            let session = request::session("session", &session)?.ok_or_else(missing)?;
            Ok((request::inventory_id("have.inventory_id", &inventory_id)?, session))
        };
        let (id, session) = parse().map_err(|invalid| status::invalid(&invalid))?;
        let found = self.engine.read(&id).await.map_err(|error| status::engine_error(&error))?;
        read_authorization::readable(&identity, &id, found.as_deref())?;
        let current = self.engine.correct(session.clone(), identity.caller, id.clone()).await;
        let current = current.map_err(|error| status::engine_error(&error))?;
        let current = current.ok_or_else(|| status::inventory_not_found(&id))?;
        self.statistics.add_desync_reported();
        let hexadecimal = |a: u32, b: u32| format!("{a:08x}{b:08x}");
        tracing::warn!(
            %id,
            %session,
            epoch,
            revision,
            digest = digest.map(|digest| hexadecimal(digest.a, digest.b)),
            current_epoch = current.epoch.get(),
            current_revision = current.revision.0,
            current_digest = hexadecimal(current.digest.a, current.digest.b),
            "a reader reports a desync"
        );
        Ok(Response::new(v1::ReportDesyncResponse { current: Some(reply::version(&current)) }))
    }

    async fn get_catalog(&self, _: Request<v1::GetCatalogRequest>) -> Result<Response<v1::GetCatalogResponse>, Status> {
        Ok(Response::new(reply::catalog(self.engine.catalog(), &self.catalog_version)))
    }
}

fn receipt(answer: &MutationReply) -> v1::MutationReceipt {
    let inventories = answer.reply.versions.iter().map(reply::version).collect();
    let MutationReply { replayed, prediction_confirmed, .. } = *answer;
    v1::MutationReceipt { inventories, replayed, prediction_confirmed }
}

fn list_query(request: &v1::ListInventoriesRequest) -> Result<ListQuery, FieldViolation> {
    let limit = match request.page_size {
        0 => PAGE_SIZE_DEFAULT,
        1..=PAGE_SIZE_MAX => request.page_size,
        _ => {
            let text = format!("must be at most {PAGE_SIZE_MAX}, got {}", request.page_size);
            return Err(FieldViolation::new("page_size", text));
        }
    };
    if request.prefix.len() > InventoryId::BYTES_MAX {
        let text = format!("must have at most {} bytes, got {}", InventoryId::BYTES_MAX, request.prefix.len());
        return Err(FieldViolation::new("prefix", text));
    }
    let owner = request::owner("owner", &request.owner)?;
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(page_token::read(owner.as_ref(), &request.prefix, token).ok_or_else(|| {
            let text =
                "not a page token of this query; use next_page_token of the previous page with the same owner and prefix";
            FieldViolation::new("page_token", text)
        })?),
    };
    Ok(ListQuery { owner, prefix: request.prefix.clone(), after, limit: limit as usize })
}
