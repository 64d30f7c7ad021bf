//! The code and the details of every error reason: callers rely on them.

use slotcast::domain::{
    Epoch, Guard, InventoryId, ItemCode, LayoutId, MissingEntry, Rejection, RejectionCause, Revision, Slot,
    UnresolvedReference,
};
use slotcast::engine::EngineError;
use slotcast::identity::AuthError;
use slotcast::status;
use slotcast::store::StoreError;
use slotcast::sync::SubscriptionTooLarge;
use slotcast::wire::{ErrorReason, FieldViolation};
use std::collections::HashMap;
use std::time::Duration;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

fn causes() -> Vec<RejectionCause> {
    use RejectionCause as Cause;
    let id = || InventoryId::new("steve").unwrap();
    let item = ItemCode::new(24).unwrap();
    let slot = Slot(7);
    vec![
        Cause::InventoryNotFound { id: id() },
        Cause::InventoryExists { id: id() },
        Cause::UnknownLayout { layout: LayoutId::new("barrel").unwrap() },
        Cause::SlotOutOfRange { id: id(), slot, slots: 5 },
        Cause::DuplicateSlot { slot },
        Cause::StackTooLarge { item, count: 65, max_stack: 64 },
        Cause::UnknownItemCode { item },
        Cause::SameInventory { id: id() },
        Cause::NotEnough { id: id(), item, needed: 3, held: 2 },
        Cause::NoRoom { id: id(), item, needed: 3, room: 2 },
        Cause::SlotEmpty { id: id(), slot },
        Cause::SlotOccupied { id: id(), slot },
        Cause::NotARearrangement { id: id() },
        Cause::StaleRevision {
            expected: Guard { id: id(), epoch: Epoch::new(8).unwrap(), revision: Revision(1) },
            epoch: Epoch::new(9).unwrap(),
            revision: Revision(2),
        },
    ]
}

fn engine_errors() -> Vec<EngineError> {
    let secret = || "/var/lib/secret.db".to_owned();
    let rejected =
        causes().into_iter().map(|cause| EngineError::Rejected(Rejection { operation: 2, cause, item_id: None }));
    let unknown = [
        MissingEntry::Item { id: "zinc".into() },
        MissingEntry::Recipe { id: "zinc_ingot".into() },
        MissingEntry::Layout { id: LayoutId::new("barrel").unwrap() },
    ];
    let unknown =
        unknown.map(|entry| EngineError::UnresolvedReference(UnresolvedReference { operation: 2, stack: None, entry }));
    let others = [
        EngineError::KeyReused,
        EngineError::KeyExpired,
        EngineError::KeyFromTheFuture { ahead_ms: 90_000 },
        EngineError::QueueFull { retry_after: Duration::from_millis(250) },
        EngineError::Store(StoreError::Full { detail: secret() }),
        EngineError::Store(StoreError::Unavailable { detail: secret() }),
        EngineError::Store(StoreError::Corrupt { detail: secret() }),
        EngineError::CommitUnknown,
        EngineError::Stopped,
    ];
    rejected.chain(unknown).chain(others).collect()
}

/// A status of every kind that the service returns.
fn statuses() -> Vec<Status> {
    let invalid = FieldViolation::new("add.stack.count", "must be at least 1, got 0");
    let after = Duration::from_secs(2);
    let others = [
        status::invalid_field(&invalid),
        status::malformed("a field is truncated"),
        status::invalid_caller(),
        status::invalid_player(),
        status::unauthenticated(AuthError::CredentialsMissing),
        status::unauthenticated(AuthError::KeyRevoked),
        status::unauthenticated(AuthError::Expired),
        status::unauthenticated(AuthError::TooManyInvalidTokens { retry_after: after }),
        status::no_access(),
        status::role_too_low(),
        status::origin_not_allowed(),
        status::unsupported_encoding("br"),
        status::cannot_list_others(),
        status::cannot_act_for_another_player(),
        status::unknown_method(),
        status::rate_limited(after),
        status::too_many_streams("player:steve", 16),
        status::subscription_too_large(SubscriptionTooLarge { slots: 4_096 }),
        status::draining(),
        status::deadline_exceeded(),
        status::request_body_timeout(Duration::from_secs(30)),
    ];
    others.into_iter().chain(engine_errors().iter().map(status::engine_error)).collect()
}

/// Returns reason, code, the names of the metadata, and the kinds of details other than `ErrorInfo`.
fn row(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(info.domain, "slotcast");
    let mut names: Vec<&str> = info.metadata.keys().map(String::as_str).collect();
    names.sort_unstable();
    let code = format!("{:?}", status.code());
    format!("{:32} {code:18} {:22} {}", info.reason, kinds(&details).join("+"), names.join(" ")).trim_end().to_owned()
}

fn kinds(details: &ErrorDetails) -> Vec<String> {
    let retry = details.retry_info().and_then(|retry| retry.retry_delay);
    let kinds = [
        details.bad_request().map(|_| "BadRequest".to_owned()),
        details.precondition_failure().map(|_| "PreconditionFailure".to_owned()),
        details.quota_failure().map(|_| "QuotaFailure".to_owned()),
        details.resource_info().map(|_| "ResourceInfo".to_owned()),
        retry.map(|delay| format!("RetryInfo({} ms)", delay.as_millis())),
    ];
    kinds.into_iter().flatten().collect()
}

#[test]
fn every_reason_has_its_code_and_details() {
    let table: Vec<String> = statuses().iter().map(row).collect();
    insta::assert_snapshot!(table.join("\n"));
}

#[test]
fn every_status_has_the_code_and_the_details_of_its_reason_and_every_reason_has_a_status() {
    let mut unused: HashMap<&str, ErrorReason> = ErrorReason::all().map(|reason| (reason.name(), reason)).collect();
    let reasons = unused.clone();
    for status in statuses() {
        let details = status.get_error_details();
        let name = details.error_info().unwrap().reason.clone();
        let reason = reasons[name.as_str()];
        assert_eq!(status.code(), reason.code(), "{name}");
        let kinds: Vec<_> = kinds(&details).iter().map(|kind| kind.split('(').next().unwrap().to_owned()).collect();
        let expected: Vec<_> = reason.details().iter().map(|detail| format!("{detail:?}")).collect();
        assert_eq!(kinds, expected, "{name}");
        unused.remove(name.as_str());
    }
    assert!(unused.is_empty(), "no status has these reasons: {unused:?}");
}

#[test]
fn no_text_of_an_inner_error_reaches_a_caller() {
    for status in statuses() {
        assert!(!format!("{status:?}").contains("secret"), "{status:?}");
        assert!(!status.message().is_empty() && status.message().len() < 200, "{status:?}");
    }
}
