//! Mutations: parses operations, calls the engine and writes the receipt.
//!
//! The RPC of a single operation is equivalent to a `Transact` of that operation: same path, same payload fingerprint.

use super::service::{Service, caller, trace_context};
use crate::domain::{Caller, Fingerprint, OperationOutcome, SessionId};
use crate::engine::{EngineError, MutationReply, MutationRequest, PredictedDigests};
use crate::status;
use crate::store::ScopedKey;
use crate::sync::TraceContext;
use crate::wire::v1::operation::Operation;
use crate::wire::{FieldViolation, reply, request, v1};
use prost::Message;
use tonic::{Request, Status};

/// The caller of a mutation and the trace context of the call.
pub(super) struct CallOrigin {
    caller: Caller,
    trace: Option<TraceContext>,
}

impl CallOrigin {
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Ok(Self { caller: caller(request)?, trace: trace_context(request) })
    }
}

/// The receipt of a mutation, and the outcome of each operation.
pub(super) struct AppliedMutation {
    pub receipt: Option<v1::MutationReceipt>,
    pub outcomes: Vec<OperationOutcome>,
}

impl Service {
    /// Applies the operation of an RPC for a single operation, and returns its outcome. `field` is the field of the
    /// request that contains the operation.
    pub(super) async fn mutate_single(
        &self,
        origin: CallOrigin,
        context: Option<v1::MutationContext>,
        field: &'static str,
        operation: Option<Operation>,
    ) -> Result<(Option<v1::MutationReceipt>, OperationOutcome), Status> {
        let missing = || status::invalid_field(&FieldViolation::new(field, "required"));
        let operation = v1::Operation { operation: Some(operation.ok_or_else(missing)?) };
        let applied = self.mutate(origin, context, vec![operation], true).await?;
        Ok((applied.receipt, applied.outcomes.into_iter().next().unwrap_or_default()))
    }

    /// Applies operations as one mutation. If `single`, the operation comes from its own RPC, which determines the
    /// paths of invalid fields.
    pub(super) async fn mutate(
        &self,
        CallOrigin { caller, trace }: CallOrigin,
        context: Option<v1::MutationContext>,
        operations: Vec<v1::Operation>,
        single: bool,
    ) -> Result<AppliedMutation, Status> {
        let context = context.unwrap_or_default();
        let (session, predicted) = prediction(&context).map_err(|violation| status::invalid_field(&violation))?;
        let name_paths = request::name_paths(&operations);
        let request = match mutation_request(caller.clone(), context, operations, single) {
            Ok(request) => MutationRequest { session, predicted, trace, ..request },
            Err(violation) => {
                self.correct_predictions(session, &caller, predicted).await;
                return Err(status::invalid_field(&violation));
            }
        };
        let reply = self.engine.mutate(request).await.map_err(|error| {
            if let EngineError::UnresolvedReference(unknown) = &error {
                return status::unknown_name(&name_paths, single, unknown);
            }
            status::engine_error(&error)
        })?;
        Ok(AppliedMutation { receipt: Some(receipt(&reply)), outcomes: reply.reply.outcomes })
    }

    /// Corrects a session's predictions of a malformed mutation, which will not be applied.
    async fn correct_predictions(&self, session: Option<SessionId>, caller: &Caller, predicted: PredictedDigests) {
        let Some(session) = session else { return };
        for (id, _) in predicted {
            if let Err(error) = self.engine.correct(session.clone(), caller.clone(), id).await {
                tracing::debug!(problem = status::engine_error(&error).message(), "cannot correct a prediction");
            }
        }
    }
}

fn prediction(context: &v1::MutationContext) -> Result<(Option<SessionId>, PredictedDigests), FieldViolation> {
    Ok((request::session("context.session", &context.session)?, request::predicted(context)?))
}

/// Parses a mutation, without its session, prediction and trace context.
fn mutation_request(
    caller: Caller,
    context: v1::MutationContext,
    operations: Vec<v1::Operation>,
    single: bool,
) -> Result<MutationRequest, FieldViolation> {
    request::mutation_reason(&context)?;
    let key = ScopedKey { caller, key: request::idempotency_key(&context)? };
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

fn receipt(reply: &MutationReply) -> v1::MutationReceipt {
    let inventories = reply.reply.versions.iter().map(reply::version).collect();
    let MutationReply { replayed, prediction_confirmed, .. } = *reply;
    v1::MutationReceipt { inventories, replayed, prediction_confirmed }
}
