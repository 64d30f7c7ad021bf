//! Mutations: parses operations, calls the engine and writes the receipt.
//!
//! The RPC of a single operation is equivalent to a `Transact` of that operation: same path, same payload fingerprint.

use super::service::{Service, caller, trace_context};
use crate::domain::{
    Caller, Fingerprint, IdempotencyKey, InventoryId, OperationOutcome, SessionId, UnresolvedMutation,
};
use crate::engine::{EngineError, MutationReply, MutationRequest};
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
    ///
    /// Parses before it creates the future, as [`Self::mutate`] does.
    pub(super) fn mutate_single(
        &self,
        origin: CallOrigin,
        context: Option<v1::MutationContext>,
        field: &'static str,
        operation: Option<Operation>,
    ) -> impl Future<Output = Result<(Option<v1::MutationReceipt>, OperationOutcome), Status>> + Send + use<'_> {
        let operation = operation.map(|operation| v1::Operation { operation: Some(operation) });
        let applied = operation.map(|operation| self.mutate(origin, context, vec![operation], true));
        async move {
            let missing = || status::invalid_field(&FieldViolation::new(field, "required"));
            let applied = applied.ok_or_else(missing)?.await?;
            Ok((applied.receipt, applied.outcomes.into_iter().next().unwrap_or_default()))
        }
    }

    /// Applies operations as one mutation. If `single`, the operation comes from its own RPC, which determines the
    /// paths of invalid fields.
    ///
    /// Parses before it creates the future, so that the future of a waiting call does not contain the protobuf request.
    pub(super) fn mutate(
        &self,
        CallOrigin { caller, trace }: CallOrigin,
        context: Option<v1::MutationContext>,
        operations: Vec<v1::Operation>,
        single: bool,
    ) -> impl Future<Output = Result<AppliedMutation, Status>> + Send + use<'_> {
        let name_paths = request::name_paths(&operations);
        let sent = match mutation_request(caller, context.unwrap_or_default(), operations, single) {
            Ok(request) => Ok(self.engine.mutate(MutationRequest { trace, ..request })),
            // Boxed, because it is rare and would make the future larger.
            Err(malformed) => Err(Box::new(malformed)),
        };
        async move {
            let reply = match sent {
                Ok(reply) => reply.await,
                Err(malformed) => return Err(Box::pin(self.correct_predictions(*malformed)).await),
            };
            let reply = reply.map_err(|error| {
                if let EngineError::UnresolvedReference(unknown) = &error {
                    return status::unknown_name(&name_paths, single, unknown);
                }
                status::engine_error(&error)
            })?;
            Ok(AppliedMutation { receipt: Some(receipt(&reply)), outcomes: reply.reply.outcomes })
        }
    }

    /// Makes the session's streams correct the predictions of a malformed mutation, which will not be applied. Returns the
    /// status of the call.
    async fn correct_predictions(
        &self,
        MalformedMutation { violation, caller, predictions }: MalformedMutation,
    ) -> Status {
        for (session, id) in predictions {
            if let Err(error) = self.engine.correct(session, caller.clone(), id).await {
                tracing::debug!(problem = status::engine_error(&error).message(), "cannot correct a prediction");
            }
        }
        status::invalid_field(&violation)
    }
}

/// A mutation that cannot be parsed.
struct MalformedMutation {
    violation: FieldViolation,
    caller: Caller,
    /// The inventories for which the session predicted digests, if that part can be parsed.
    predictions: Vec<(SessionId, InventoryId)>,
}

/// Parses a mutation, without its trace context.
fn mutation_request(
    caller: Caller,
    context: v1::MutationContext,
    operations: Vec<v1::Operation>,
    single: bool,
) -> Result<MutationRequest, MalformedMutation> {
    let prediction = request::session("context.session", &context.session)
        .and_then(|session| Ok((session, request::predicted(&context)?)));
    let (session, predicted) = match prediction {
        Ok(prediction) => prediction,
        Err(violation) => return Err(MalformedMutation { violation, caller, predictions: Vec::new() }),
    };
    match parse_mutation(&context, &operations, single) {
        Ok((key, mutation)) => Ok(MutationRequest {
            key: ScopedKey { caller, key },
            payload: payload(context.expected, operations),
            mutation,
            session,
            predicted,
            reason: context.reason.into(),
            trace: None,
        }),
        Err(violation) => {
            let with_session =
                |session: SessionId| predicted.into_iter().map(|(id, _)| (session.clone(), id)).collect();
            let predictions = session.map(with_session).unwrap_or_default();
            Err(MalformedMutation { violation, caller, predictions })
        }
    }
}

fn parse_mutation(
    context: &v1::MutationContext,
    operations: &[v1::Operation],
    single: bool,
) -> Result<(IdempotencyKey, UnresolvedMutation), FieldViolation> {
    request::mutation_reason(context)?;
    Ok((request::idempotency_key(context)?, request::mutation(context, operations, single)?))
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
