//! Formats a failed call: the status with all of its details, or why the server could not be reached.

use crate::wire::reason::code_name;
use std::error::Error;
use std::fmt;
use tonic::{Code, ConnectError, Status};
use tonic_types::{ErrorDetails, StatusExt};

#[derive(Debug)]
pub struct Failure {
    status: Box<Status>,
    server: String,
    key: Option<String>,
}

impl Failure {
    pub fn new(status: Status, server: &str) -> Self {
        Self { status: Box::new(status), server: server.to_owned(), key: None }
    }

    /// Adds the idempotency key of the failed call.
    pub fn with_key(self, key: Option<String>) -> Self {
        Self { key, ..self }
    }
}

impl Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (status, server) = (&self.status, &self.server);
        // A status from the server has no source; the source of a local status has the cause.
        if let Some(error) = status.source() {
            let (cause, hint) = cause(innermost(error));
            if is_connect_error(error) {
                write!(f, "cannot connect to {server}: {cause}")?;
            } else {
                write!(f, "{}: the connection to {server} failed: {cause}", code_name(status.code()))?;
            }
            hint.map_or(Ok(()), |hint| write!(f, " ({hint})"))?;
        } else {
            write!(f, "{}: {}", code_name(status.code()), status.message())?;
            for (name, text) in details(&status.get_error_details()) {
                write!(f, "\n  {name:9} {text}")?;
            }
        }
        match &self.key {
            Some(key) if may_have_been_applied(status.code()) => {
                write!(f, "\n  the mutation may have been applied; retry it with --key {key} to apply it exactly once")
            }
            _ => Ok(()),
        }
    }
}

type Cause<'a> = &'a (dyn Error + 'static);

fn innermost(mut error: Cause<'_>) -> Cause<'_> {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

fn is_connect_error(error: Cause<'_>) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Describes the cause of a transport failure, and what the user can do about it.
fn cause(error: Cause<'_>) -> (String, Option<&'static str>) {
    if error.downcast_ref::<h2::Error>().is_some_and(|error| error.reason() == Some(h2::Reason::FRAME_SIZE_ERROR)) {
        let cause = "the server does not speak HTTP/2 without TLS".to_owned();
        return (cause, Some("use an address that starts with https://"));
    }
    let Some(error) = error.downcast_ref::<std::io::Error>() else { return (error.to_string(), None) };
    if error.raw_os_error().is_none() {
        return (error.to_string(), None);
    }
    // The text of the kind is in lower case and has no error number.
    let hint = (error.kind() == std::io::ErrorKind::ConnectionRefused)
        .then_some("start a server with `slotcast serve`, or choose another with --server");
    (error.kind().to_string(), hint)
}

fn details(details: &ErrorDetails) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(info) = details.error_info() {
        lines.push(("reason", format!("{} ({})", info.reason, info.domain)));
        let mut metadata: Vec<_> = info.metadata.iter().collect();
        metadata.sort();
        lines.extend(metadata.into_iter().map(|(name, value)| ("metadata", format!("{name} = {value}"))));
    }
    for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
        lines.push(("field", format!("{}: {}", violation.field, violation.description)));
    }
    for violation in details.precondition_failure().into_iter().flat_map(|failure| &failure.violations) {
        lines.push((
            "precondition",
            format!("{} of {}: {}", violation.r#type, violation.subject, violation.description),
        ));
    }
    for violation in details.quota_failure().into_iter().flat_map(|failure| &failure.violations) {
        lines.push(("quota", format!("{}: {}", violation.subject, violation.description)));
    }
    if let Some(resource) = details.resource_info() {
        lines.push(("resource", format!("{} {:?}", resource.resource_type, resource.resource_name)));
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        lines.push(("retry in", format!("{} ms", delay.as_millis())));
    }
    lines
}

/// Returns whether a call that failed with this code may have been applied.
fn may_have_been_applied(code: Code) -> bool {
    matches!(code, Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::Unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{InventoryId, ItemCode, Rejection, RejectionCause};
    use crate::engine::EngineError;
    use crate::status;
    use crate::wire::FieldViolation;

    fn text(status: Status) -> String {
        Failure::new(status, "http://localhost:1").with_key(Some("k1".into())).to_string()
    }

    #[test]
    fn a_rejection_has_its_reason_and_metadata() {
        let (id, item) = (InventoryId::new("steve").unwrap(), ItemCode::new(24).unwrap());
        let cause = RejectionCause::NotEnough { id, item, needed: 5, held: 2 };
        let text = text(status::engine_error(&EngineError::Rejected(Rejection {
            operation: 1,
            cause,
            item_id: Some("apple".into()),
        })));
        let expected = "FAILED_PRECONDITION: inventory \"steve\" has 2 apple, needs 5\n  \
                        reason    NOT_ENOUGH (slotcast)\n  \
                        metadata  held = 2\n  \
                        metadata  inventory_id = steve\n  \
                        metadata  item_code = 24\n  \
                        metadata  operation = 1\n  \
                        metadata  wanted = 5\n  \
                        precondition NOT_ENOUGH of steve: inventory \"steve\" has 2 apple, needs 5";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_invalid_request_has_the_name_of_the_field() {
        let text = text(status::invalid_field(&FieldViolation::new("add.stack.count", "must be at least 1")));
        let expected = "INVALID_ARGUMENT: add.stack.count: must be at least 1\n  \
                        reason    INVALID_ARGUMENT (slotcast)\n  \
                        field     add.stack.count: must be at least 1";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_failed_connection_is_not_reported_as_a_refused_call() {
        let cannot_connect = |error: std::io::Error| {
            let text = text(Status::from_error(Box::new(ConnectError(Box::new(error)))));
            text.lines().next().unwrap().to_owned()
        };
        for (error, expected) in [
            (
                std::io::Error::from_raw_os_error(111),
                "connection refused (start a server with `slotcast serve`, or choose another with --server)",
            ),
            (std::io::Error::from_raw_os_error(113), "host unreachable"),
            (std::io::Error::other("no such name"), "no such name"),
        ] {
            assert_eq!(cannot_connect(error), format!("cannot connect to http://localhost:1: {expected}"));
        }
        let text = text(Status::from_error(Box::new(std::io::Error::other("broken pipe"))));
        assert!(text.contains(": the connection to http://localhost:1 failed: broken pipe\n"), "{text}");
    }

    #[test]
    fn a_mutation_with_an_unknown_outcome_can_be_retried_with_its_key() {
        let text = text(status::engine_error(&EngineError::CommitUnknown));
        assert!(text.contains("\n  retry in  1000 ms\n"), "{text}");
        assert!(text.ends_with("may have been applied; retry it with --key k1 to apply it exactly once"), "{text}");
    }
}
