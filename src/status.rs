//! Converts errors to statuses; no other module does. The mapping is exhaustive: a new kind of error does not compile
//! until it is mapped. The status code follows from the reason ([`crate::wire::reason`]).
//!
//! The text of an inner error never reaches a caller; a status contains only information that the caller can act on.

use crate::domain::{InventoryId, Rejection, RejectionCause, UnresolvedReference};
use crate::engine::EngineError;
use crate::identity::AuthError;
use crate::store::StoreError;
use crate::sync::SubscriptionTooLarge;
use crate::sync::subscription::SUBSCRIPTION_SLOTS_MAX;
use crate::wire::reason::error_details;
pub use crate::wire::reason::malformed;
use crate::wire::{CALLER_METADATA, ErrorReason, FieldViolation, PLAYER_METADATA, request};
use std::borrow::Cow;
use std::time::Duration;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// Maximum length of a text that contains parts of the request, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// Returns a text without what exceeds [`TEXT_BYTES_MAX`].
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_BYTES_MAX {
        return text.into();
    }
    format!("{}...", &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]).into()
}

/// Returns the status for an invalid field.
pub fn invalid_field(violation: &FieldViolation) -> Status {
    invalid_fields(std::slice::from_ref(violation))
}

/// Returns the status for several invalid fields, at least one. The first one determines the reason.
pub fn invalid_fields(violations: &[FieldViolation]) -> Status {
    invalid_with(violations, [])
}

fn invalid_with(violations: &[FieldViolation], metadata: impl IntoIterator<Item = (&'static str, String)>) -> Status {
    let reason = violations.first().map_or(ErrorReason::InvalidArgument, |first| first.reason);
    let mut details = error_details(reason, metadata);
    for violation in violations {
        details.add_bad_request_violation(&violation.field, shortened(&violation.description));
    }
    let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
    status(reason, shortened(&text.join("; ")), details)
}

pub fn inventory_not_found(id: &InventoryId) -> Status {
    rejection(&Rejection { operation: 0, cause: RejectionCause::InventoryNotFound { id: id.clone() }, item_id: None })
}

/// Returns the status for a malformed name of the caller.
pub fn invalid_caller() -> Status {
    invalid_name(CALLER_METADATA)
}

/// Returns the status for a malformed name of the player.
pub fn invalid_player() -> Status {
    invalid_name(PLAYER_METADATA)
}

fn invalid_name(metadata: &str) -> Status {
    let text = "must be 1 to 128 bytes of UTF-8 without control characters, sent once";
    invalid_field(&FieldViolation::new(metadata, text))
}

/// Returns the status for failed authentication, also if the credentials with which a stream was opened are no longer
/// valid. All problems of an invalid token have the same reason and text, because details would only help an attacker.
pub fn unauthenticated(error: AuthError) -> Status {
    let (reason, text) = match error {
        AuthError::CredentialsMissing => (
            ErrorReason::TokenMissing,
            "authentication required: send `authorization: Bearer TOKEN` or a client certificate that the server accepts",
        ),
        AuthError::InvalidToken { .. } | AuthError::KeyRevoked => (
            ErrorReason::TokenInvalid,
            "invalid token: send `authorization: Bearer TOKEN` with a new token from your login service",
        ),
        AuthError::Expired => (ErrorReason::TokenExpired, "the token or client certificate has expired; get a new one"),
        AuthError::TooManyInvalidTokens { retry_after } => {
            let text = "too many invalid tokens from this address; retry later with a valid token";
            return quota(ErrorReason::RateLimited, "address", text, retry_after);
        }
    };
    without_details(reason, text)
}

/// Returns the status for an inventory that the player may not read. The status is the same if the inventory belongs to
/// another player, has no owner, or does not exist.
pub fn no_access() -> Status {
    without_details(ErrorReason::NoAccess, "the inventory does not exist or does not belong to this player")
}

pub fn role_too_low() -> Status {
    without_details(ErrorReason::RoleTooLow, "the role of this caller does not permit this method")
}

/// Why a request from a web page is refused.
pub const ORIGIN_NOT_ALLOWED: &str =
    "pages of this origin may not call this server; the operator can add it to the setting web.origins";

/// Returns the status for a request from a web page whose origin is not allowed.
pub fn origin_not_allowed() -> Status {
    without_details(ErrorReason::OriginNotAllowed, ORIGIN_NOT_ALLOWED)
}

pub fn cannot_list_others() -> Status {
    without_details(ErrorReason::RoleTooLow, "a player can only list its own inventories; set owner to the player's id")
}

pub fn cannot_act_for_another_player() -> Status {
    without_details(
        ErrorReason::RoleTooLow,
        "a player cannot act for another player; remove the metadata slotcast-player",
    )
}

pub fn unknown_method() -> Status {
    without_details(
        ErrorReason::UnknownMethod,
        "unknown method; `slotcast call --list` and server reflection list all methods",
    )
}

/// Returns the status for a caller that exceeds its request rate; its next request is accepted after `retry_after`.
pub fn rate_limited(retry_after: Duration) -> Status {
    quota(ErrorReason::RateLimited, "caller", "too many requests from this caller; reduce the rate", retry_after)
}

/// Returns the status for a stream beyond the maximum of open streams of `quota_subject`, a player or a caller.
pub fn too_many_streams(quota_subject: &str, streams_max: u32) -> Status {
    let text = format!(
        "at most {streams_max} streams may be open at the same time; close one, or follow more inventories on each"
    );
    quota(ErrorReason::TooManyStreams, quota_subject, &text, Duration::from_secs(1))
}

/// Returns the status for a stream whose inventories together have too many slots. Opening the same stream again does
/// not help.
pub fn subscription_too_large(SubscriptionTooLarge { slots }: SubscriptionTooLarge) -> Status {
    let text = format!(
        "the inventories of one stream can have at most {SUBSCRIPTION_SLOTS_MAX} slots together, got {slots}; \
         use several streams"
    );
    let metadata = [("slots", slots.to_string()), ("slots_max", SUBSCRIPTION_SLOTS_MAX.to_string())];
    let mut details = error_details(ErrorReason::SubscriptionTooLarge, metadata);
    details.add_quota_failure_violation("inventories", &text);
    status(ErrorReason::SubscriptionTooLarge, text, details)
}

/// Returns the status for streams and calls when the server drains or their connection has reached its maximum age. The
/// client can continue at another replica, or at the same one after its restart.
pub fn draining() -> Status {
    with_retry(ErrorReason::Draining, "the connection is closing; connect again", Duration::from_millis(500))
}

/// Returns the status for a call whose deadline has expired.
pub fn deadline_exceeded() -> Status {
    let text = "deadline exceeded; repeat a mutation with the same key to learn its outcome";
    without_details(ErrorReason::DeadlineExceeded, text)
}

/// Returns the status for a request whose body did not arrive within `timeout`.
pub fn request_body_timeout(timeout: Duration) -> Status {
    let text = format!("the request body did not arrive within {} s; send it again", timeout.as_secs());
    without_details(ErrorReason::DeadlineExceeded, &text)
}

/// Returns the status for a message that is compressed with `encoding`.
pub fn unsupported_encoding(encoding: &str) -> Status {
    let text = format!("the encoding {encoding:?} is not supported; use gzip or identity");
    without_details(ErrorReason::UnsupportedEncoding, &text)
}

/// Returns the status for a name that is not in the catalog. `paths` are the paths of the request's names, from
/// [`request::name_paths`].
pub fn unknown_name(paths: &[&str], single: bool, unknown: &UnresolvedReference) -> Status {
    let violation = request::unknown_name(paths, single, unknown);
    invalid_with(&[violation], [("operation", unknown.operation.to_string())])
}

pub fn engine_error(error: &EngineError) -> Status {
    match error {
        EngineError::Rejected(cause) => rejection(cause),
        EngineError::UnresolvedReference(unknown) => unknown_name(&[], true, unknown),
        EngineError::KeyReused => key_precondition(
            ErrorReason::IdempotencyKeyReused,
            "this idempotency key was used with another payload; use a new key for a new mutation",
        ),
        EngineError::KeyExpired => key_precondition(
            ErrorReason::IdempotencyKeyExpired,
            "this idempotency key is older than the keys that the server remembers; read the inventories, then decide \
             whether to send a new mutation with a new key",
        ),
        EngineError::KeyFromTheFuture { ahead_ms } => invalid_field(&FieldViolation::with_reason(
            "context.idempotency_key",
            ErrorReason::IdempotencyKeyFromTheFuture,
            format!("its time is {ahead_ms} ms ahead of the server's clock; set your clock, or retry after that time"),
        )),
        EngineError::QueueFull { retry_after } => with_retry(
            ErrorReason::QueueFull,
            "too many requests wait for the store, or a read took too long; retry later",
            *retry_after,
        ),
        EngineError::Store(error) => store_error(error),
        EngineError::CommitUnknown => with_retry(
            ErrorReason::CommitUnknown,
            "it is unknown whether the mutation was applied; repeat it with the same key to learn its outcome",
            Duration::from_secs(1),
        ),
        EngineError::Stopped => draining(),
    }
}

fn store_error(error: &StoreError) -> Status {
    let after = Duration::from_secs(1);
    match error {
        StoreError::Full { .. } => {
            let text = "the store is full; mutations fail until it has room again, reads still work";
            quota(ErrorReason::StoreFull, "store", text, after)
        }
        StoreError::Unavailable { .. } => {
            with_retry(ErrorReason::StoreUnavailable, "the store is temporarily unavailable; retry later", after)
        }
        StoreError::Corrupt { .. } => without_details(
            ErrorReason::StoreCorrupt,
            "stored data is damaged; ask the operator to read the server's log",
        ),
    }
}

fn rejection(rejection: &Rejection) -> Status {
    use RejectionCause as Cause;
    let text = rejection.to_string();
    let (reason, subject) = match &rejection.cause {
        Cause::InventoryNotFound { id } => (ErrorReason::InventoryNotFound, Subject::Inventory(id)),
        Cause::InventoryExists { id } => (ErrorReason::InventoryExists, Subject::Inventory(id)),
        Cause::UnknownLayout { .. } => (ErrorReason::UnknownLayout, Subject::Field("layout")),
        Cause::SlotOutOfRange { .. } => (ErrorReason::SlotOutOfRange, Subject::Field("slot")),
        Cause::DuplicateSlot { .. } => (ErrorReason::DuplicateSlot, Subject::Field("stacks")),
        Cause::StackTooLarge { .. } => (ErrorReason::StackTooLarge, Subject::Field("count")),
        Cause::UnknownItemCode { .. } => (ErrorReason::UnknownItem, Subject::Field("item_code")),
        Cause::SameInventory { .. } => (ErrorReason::SameInventory, Subject::Field("to_inventory_id")),
        Cause::NotEnough { id, .. } => (ErrorReason::NotEnough, Subject::Precondition(id)),
        Cause::NoRoom { id, .. } => (ErrorReason::NoRoom, Subject::Precondition(id)),
        Cause::SlotEmpty { id, .. } => (ErrorReason::SlotEmpty, Subject::Precondition(id)),
        Cause::SlotOccupied { id, .. } => (ErrorReason::SlotOccupied, Subject::Precondition(id)),
        Cause::NotARearrangement { id } => (ErrorReason::NotARearrangement, Subject::Precondition(id)),
        Cause::StaleRevision { expected, .. } => (ErrorReason::StaleRevision, Subject::Inventory(&expected.id)),
    };
    let mut details = error_details(reason, metadata(rejection));
    match subject {
        Subject::Inventory(id) => {
            details.set_resource_info("slotcast.v1.Inventory", id.as_str(), "", &text);
        }
        Subject::Field(field) => {
            details.add_bad_request_violation(field, &text);
        }
        Subject::Precondition(id) => {
            details.add_precondition_failure_violation(reason.name(), id.as_str(), &text);
        }
    }
    status(reason, text, details)
}

/// What a rejection refers to, which determines the standard detail of its status.
enum Subject<'a> {
    Inventory(&'a InventoryId),
    Field(&'static str),
    Precondition(&'a InventoryId),
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
            ("wanted", needed.to_string()),
            ("held", held.to_string()),
        ],
        Cause::NoRoom { id, item, needed, room } => vec![
            ("inventory_id", id.to_string()),
            ("item_code", item.get().to_string()),
            ("wanted", needed.to_string()),
            ("room", room.to_string()),
        ],
        Cause::SlotEmpty { id, slot } | Cause::SlotOccupied { id, slot } => {
            vec![("inventory_id", id.to_string()), ("slot", slot.0.to_string())]
        }
        Cause::InventoryNotFound { id }
        | Cause::InventoryExists { id }
        | Cause::SlotOutOfRange { id, .. }
        | Cause::SameInventory { id }
        | Cause::NotARearrangement { id } => vec![("inventory_id", id.to_string())],
        Cause::UnknownLayout { .. }
        | Cause::DuplicateSlot { .. }
        | Cause::StackTooLarge { .. }
        | Cause::UnknownItemCode { .. } => Vec::new(),
    };
    pairs.push(("operation", rejection.operation.to_string()));
    pairs
}

fn key_precondition(reason: ErrorReason, text: &str) -> Status {
    let mut details = error_details(reason, []);
    details.add_precondition_failure_violation(reason.name(), "context.idempotency_key", text);
    status(reason, text, details)
}

fn with_retry(reason: ErrorReason, text: &str, after: Duration) -> Status {
    let mut details = error_details(reason, []);
    details.set_retry_info(Some(after));
    status(reason, text, details)
}

fn quota(reason: ErrorReason, subject: &str, text: &str, retry_after: Duration) -> Status {
    let mut details = error_details(reason, []);
    details.add_quota_failure_violation(subject, text).set_retry_info(Some(retry_after));
    status(reason, text, details)
}

/// Returns a status without details other than `ErrorInfo`.
fn without_details(reason: ErrorReason, text: &str) -> Status {
    status(reason, text, error_details(reason, []))
}

/// Returns a status whose code follows from the reason.
fn status(reason: ErrorReason, text: impl Into<String>, details: ErrorDetails) -> Status {
    Status::with_error_details(reason.code(), text, details)
}
