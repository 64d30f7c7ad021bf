//! Converts errors to statuses; no other module does. The mapping is exhaustive: a new kind of error does not compile
//! until it is mapped.
//!
//! The text of an inner error never reaches a caller; a status contains only information that the caller can act on.

use super::convert::{Invalid, request};
pub use super::names::{DOMAIN, REASONS, code_name};
use super::streams::TooManyStreams;
use crate::domain::{InventoryId, Rejection, RejectionCause, UnknownName};
use crate::engine::EngineError;
use crate::identity::{Lapsed, Unverified};
use crate::store::StoreError;
use crate::sync::SubscriptionTooLarge;
use crate::sync::subscription::SUBSCRIPTION_SLOTS_MAX;
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub fn invalid(invalid: &Invalid) -> Status {
    let mut details = details(invalid.reason, []);
    details.add_bad_request_violation(&invalid.field, &invalid.description);
    Status::with_error_details(Code::InvalidArgument, invalid.to_string(), details)
}

/// The request cannot be decoded; `problem` describes where.
pub fn malformed(problem: &str) -> Status {
    Status::with_error_details(Code::InvalidArgument, problem, details("MALFORMED", []))
}

/// Several fields are malformed, at least one. The first one determines the reason.
pub fn all_invalid(invalid: &[Invalid]) -> Status {
    let mut details = details(invalid.first().map_or("INVALID", |first| first.reason), []);
    for one in invalid {
        details.add_bad_request_violation(&one.field, &one.description);
    }
    let text: Vec<String> = invalid.iter().map(ToString::to_string).collect();
    Status::with_error_details(Code::InvalidArgument, text.join("; "), details)
}

pub fn inventory_not_found(id: &InventoryId) -> Status {
    rejection(&Rejection { operation: 0, cause: RejectionCause::InventoryNotFound { id: id.clone() }, item_id: None })
}

pub fn unknown_caller() -> Status {
    let text = "name the caller in the metadata slotcast-caller: 1 to 128 bytes, no control characters";
    Status::with_error_details(Code::Unauthenticated, text, details("UNKNOWN_CALLER", []))
}

pub fn unknown_player() -> Status {
    let text =
        "name the player in the metadata slotcast-player: 1 to 128 bytes, no control characters; or leave it out";
    Status::with_error_details(Code::Unauthenticated, text, details("UNKNOWN_PLAYER", []))
}

/// Authentication failed. All problems of an invalid token have the same reason and text, because details would only
/// help an attacker.
pub fn unverified(unverified: Unverified) -> Status {
    let (reason, text) = match unverified {
        Unverified::Missing => (
            "TOKEN_MISSING",
            "send a token, as `authorization: Bearer TOKEN`, or a client certificate that is known here",
        ),
        Unverified::Invalid { .. } => {
            ("TOKEN_INVALID", "this token is not accepted; get another from your login service")
        }
        Unverified::Expired => ("TOKEN_EXPIRED", "this token or certificate has expired; get another"),
        Unverified::TooManyWrong { retry_after } => {
            let text = "too many wrong tokens came from this address; send a right one later";
            return quota("RATE_LIMITED", "address", text, retry_after);
        }
    };
    Status::with_error_details(Code::Unauthenticated, text, details(reason, []))
}

/// The token with which a stream was opened is no longer valid.
pub fn lapsed(lapsed: Lapsed) -> Status {
    match lapsed {
        Lapsed::Expired => unverified(Unverified::Expired),
        Lapsed::Revoked => unverified(Unverified::Invalid { why: "its key is not accepted any more" }),
    }
}

/// The player may not read the inventory. The same status if the inventory belongs to another player, has no owner, or
/// does not exist.
pub fn not_yours() -> Status {
    let text = "you own no such inventory";
    Status::with_error_details(Code::PermissionDenied, text, details("NOT_YOURS", []))
}

pub fn role_too_low() -> Status {
    permission_denied("your role may not call this")
}

pub fn lists_of_others() -> Status {
    permission_denied("list your own inventories: set owner to yourself")
}

pub fn speaks_for_another() -> Status {
    permission_denied("a player speaks for itself only; leave slotcast-player out")
}

fn permission_denied(text: &str) -> Status {
    Status::with_error_details(Code::PermissionDenied, text, details("PERMISSION_DENIED", []))
}

pub fn unknown_method() -> Status {
    let text = "there is no such method; ask for them by reflection";
    Status::with_error_details(Code::Unimplemented, text, details("UNKNOWN_METHOD", []))
}

/// The caller exceeds its request rate; the next request is accepted after `retry_after`.
pub fn rate_limited(retry_after: Duration) -> Status {
    quota("RATE_LIMITED", "caller", "too many requests from this caller; send them more slowly", retry_after)
}

pub fn too_many_streams(refused: &TooManyStreams) -> Status {
    let streams_max = refused.streams_max;
    let text = format!("at most {streams_max} streams may be open at once; close one, or follow more on each");
    quota("TOO_MANY_STREAMS", &refused.opener, &text, Duration::from_secs(1))
}

/// The inventories of one stream together have too many slots. Opening the same stream again does not help.
pub fn subscription_too_large(SubscriptionTooLarge { slots }: SubscriptionTooLarge) -> Status {
    let text = format!(
        "the inventories of this stream have {slots} slots together, at most {SUBSCRIPTION_SLOTS_MAX} are possible; \
         use several streams"
    );
    let metadata = [("slots", slots.to_string()), ("slots_max", SUBSCRIPTION_SLOTS_MAX.to_string())];
    let mut details = details("SUBSCRIPTION_TOO_LARGE", metadata);
    details.add_quota_failure_violation("inventories", &text);
    Status::with_error_details(Code::ResourceExhausted, text, details)
}

/// The service drains, or this connection has reached its maximum age. The client can continue at another replica, or
/// at the same one after its restart.
pub fn draining() -> Status {
    retry(Code::Unavailable, "DRAINING", "this connection is being closed; connect again", Duration::from_millis(500))
}

/// The deadline of the call has expired.
pub fn deadline_exceeded() -> Status {
    let text = "the time given with the call is over; the same call with the same key tells whether it was done";
    Status::with_error_details(Code::DeadlineExceeded, text, details("DEADLINE_EXCEEDED", []))
}

/// A name is not in the catalog. `paths` are the paths of the request's names, from [`request::name_paths`].
pub fn unknown_name(paths: &[&str], single: bool, unknown: &UnknownName) -> Status {
    let Invalid { field, reason, description } = request::unknown_name(paths, single, unknown);
    let mut details = details(reason, [("operation", unknown.operation.to_string())]);
    details.add_bad_request_violation(&field, &description);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}

pub fn refusal(refusal: &EngineError) -> Status {
    match refusal {
        EngineError::Rejected(cause) => rejection(cause),
        EngineError::UnknownName(unknown) => unknown_name(&[], true, unknown),
        EngineError::KeyReused => key_precondition(
            "IDEMPOTENCY_KEY_REUSED",
            "this idempotency key was used with another payload; use a new key for a new mutation",
        ),
        EngineError::KeyExpired => key_precondition(
            "IDEMPOTENCY_KEY_EXPIRED",
            "this idempotency key is older than what is remembered; read the inventories, then decide with a new key",
        ),
        EngineError::KeyFromTheFuture { ahead_ms } => invalid(&Invalid::new(
            "context.idempotency_key",
            "IDEMPOTENCY_KEY_FROM_THE_FUTURE",
            format!(
                "its time is {ahead_ms} ms ahead of the service's clock; set your clock, or try again after that time"
            ),
        )),
        EngineError::QueueFull { retry_after } => {
            retry(Code::ResourceExhausted, "QUEUE_FULL", "too many mutations are waiting; try later", *retry_after)
        }
        EngineError::Store(error) => store(error),
        EngineError::CommitUnknown => retry(
            Code::Unavailable,
            "COMMIT_UNKNOWN",
            "whether this was done is not known; the same call with the same key tells",
            Duration::from_secs(1),
        ),
        EngineError::Stopped => draining(),
    }
}

fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Full { .. } => {
            let text = "the service has no room to store this; reads go on, mutations again once there is room";
            quota("STORE_FULL", "store", text, Duration::from_secs(1))
        }
        StoreError::Unavailable { .. } => {
            retry(Code::Unavailable, "STORE_UNAVAILABLE", "the store is away; try again", Duration::from_secs(1))
        }
        StoreError::Corrupt { .. } => Status::with_error_details(
            Code::DataLoss,
            "what is stored is damaged; an operator has to look at the service's log",
            details("STORE_CORRUPT", []),
        ),
    }
}

fn rejection(rejection: &Rejection) -> Status {
    use RejectionCause as Cause;
    let text = rejection.to_string();
    let (code, reason, subject) = match &rejection.cause {
        Cause::InventoryNotFound { id } => (Code::NotFound, "INVENTORY_NOT_FOUND", Subject::Inventory(id)),
        Cause::InventoryExists { id } => (Code::AlreadyExists, "INVENTORY_EXISTS", Subject::Inventory(id)),
        Cause::UnknownLayout { .. } => (Code::InvalidArgument, "UNKNOWN_LAYOUT", Subject::Field("layout")),
        Cause::SlotOutOfRange { .. } => (Code::InvalidArgument, "SLOT_OUT_OF_RANGE", Subject::Field("slot")),
        Cause::DuplicateSlot { .. } => (Code::InvalidArgument, "DUPLICATE_SLOT", Subject::Field("stacks")),
        Cause::StackTooLarge { .. } => (Code::InvalidArgument, "STACK_TOO_LARGE", Subject::Field("count")),
        Cause::UnknownItemCode { .. } => (Code::InvalidArgument, "UNKNOWN_ITEM", Subject::Field("item_code")),
        Cause::TransferToItself { .. } => {
            (Code::InvalidArgument, "TRANSFER_TO_ITSELF", Subject::Field("to_inventory_id"))
        }
        Cause::NotEnough { id, .. } => (Code::FailedPrecondition, "NOT_ENOUGH", Subject::Rule(id)),
        Cause::NoRoom { id, .. } => (Code::FailedPrecondition, "NO_ROOM", Subject::Rule(id)),
        Cause::SlotEmpty { id, .. } => (Code::FailedPrecondition, "SLOT_EMPTY", Subject::Rule(id)),
        Cause::SlotOccupied { id, .. } => (Code::FailedPrecondition, "SLOT_OCCUPIED", Subject::Rule(id)),
        Cause::NotARearrangement { id } => (Code::FailedPrecondition, "NOT_A_REARRANGEMENT", Subject::Rule(id)),
        Cause::StaleRevision { expected, .. } => (Code::Aborted, "STALE_REVISION", Subject::Inventory(&expected.id)),
    };
    let mut details = details(reason, metadata(rejection));
    match subject {
        Subject::Inventory(id) => {
            details.set_resource_info("slotcast.v1.Inventory", id.as_str(), "", &text);
        }
        Subject::Field(field) => {
            details.add_bad_request_violation(field, &text);
        }
        Subject::Rule(id) => {
            details.add_precondition_failure_violation(reason, id.as_str(), &text);
        }
    }
    Status::with_error_details(code, text, details)
}

/// The standard detail message to add to a status.
enum Subject<'a> {
    Inventory(&'a InventoryId),
    Field(&'static str),
    Rule(&'a InventoryId),
}

/// Returns the values that a program needs to handle a rejection without parsing the text.
fn metadata(rejection: &Rejection) -> Vec<(&'static str, String)> {
    use RejectionCause as Cause;
    let mut pairs = match &rejection.cause {
        Cause::StaleRevision { expected, epoch, revision } => vec![
            ("inventory_id", expected.id.to_string()),
            ("current_revision", revision.0.to_string()),
            ("epoch", epoch.get().to_string()),
        ],
        Cause::NotEnough { id, item, needed, held } => vec![
            ("inventory_id", id.to_string()),
            ("item_code", item.get().to_string()),
            ("needed", needed.to_string()),
            ("held", held.to_string()),
        ],
        Cause::NoRoom { id, item, needed, room } => vec![
            ("inventory_id", id.to_string()),
            ("item_code", item.get().to_string()),
            ("needed", needed.to_string()),
            ("room", room.to_string()),
        ],
        Cause::SlotEmpty { id, slot } | Cause::SlotOccupied { id, slot } => {
            vec![("inventory_id", id.to_string()), ("slot", slot.0.to_string())]
        }
        Cause::InventoryNotFound { id }
        | Cause::InventoryExists { id }
        | Cause::SlotOutOfRange { id, .. }
        | Cause::TransferToItself { id }
        | Cause::NotARearrangement { id } => vec![("inventory_id", id.to_string())],
        Cause::UnknownLayout { .. }
        | Cause::DuplicateSlot { .. }
        | Cause::StackTooLarge { .. }
        | Cause::UnknownItemCode { .. } => Vec::new(),
    };
    pairs.push(("operation", rejection.operation.to_string()));
    pairs
}

fn key_precondition(reason: &'static str, text: &str) -> Status {
    let mut details = details(reason, []);
    details.add_precondition_failure_violation(reason, "context.idempotency_key", text);
    Status::with_error_details(Code::FailedPrecondition, text, details)
}

fn retry(code: Code, reason: &'static str, text: &str, after: Duration) -> Status {
    let mut details = details(reason, []);
    details.set_retry_info(Some(after));
    Status::with_error_details(code, text, details)
}

fn quota(reason: &'static str, subject: &str, text: &str, retry_after: Duration) -> Status {
    let mut details = details(reason, []);
    details.add_quota_failure_violation(subject, text).set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, text, details)
}

fn details(reason: &'static str, metadata: impl IntoIterator<Item = (&'static str, String)>) -> ErrorDetails {
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}
