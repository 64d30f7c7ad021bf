//! Formats a status for people: code, message, and all details.

use crate::grpc::status;
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
    pub fn of_call(self, key: Option<String>) -> Self {
        Self { key, ..self }
    }
}

impl Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = &self.status;
        // A status from the service has no source; the source of a local status has the cause.
        if let Some(cause) = innermost(status.source()) {
            if is_connect_error(status.source()) {
                write!(f, "cannot connect to {}: {cause}", self.server)?;
            } else {
                write!(f, "{}: the connection to {} failed: {cause}", status::code_name(status.code()), self.server)?;
            }
            write!(f, "\n  start one with `slotcast serve`, or give the address of another with --server")?;
        } else {
            write!(f, "{}: {}", status::code_name(status.code()), status.message())?;
            for (name, text) in details(&status.get_error_details()) {
                write!(f, "\n  {name:9} {text}")?;
            }
        }
        match &self.key {
            Some(key) if is_open(status.code()) => {
                write!(f, "\n  the same call again with --key {key} applies once, whether this one did or not")
            }
            _ => Ok(()),
        }
    }
}

fn innermost<'a>(mut error: Option<&'a (dyn Error + 'static)>) -> Option<&'a (dyn Error + 'static)> {
    while let Some(source) = error.and_then(Error::source) {
        error = Some(source);
    }
    error
}

fn is_connect_error(error: Option<&(dyn Error + 'static)>) -> bool {
    let mut next = error;
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
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
        lines.push(("rule", format!("{} of {}: {}", violation.r#type, violation.subject, violation.description)));
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
fn is_open(code: Code) -> bool {
    matches!(code, Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::Unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{InventoryId, ItemCode, Rejection, RejectionCause};
    use crate::engine::EngineError;
    use crate::grpc::convert::Invalid;
    use crate::grpc::status;

    fn told(status: Status) -> String {
        Failure::new(status, "http://localhost:1").of_call(Some("k1".into())).to_string()
    }

    #[test]
    fn a_refusal_is_told_with_its_reason_and_figures() {
        let (id, item) = (InventoryId::new("steve").unwrap(), ItemCode::new(24).unwrap());
        let cause = RejectionCause::NotEnough { id, item, needed: 5, held: 2 };
        let text = told(status::refusal(&EngineError::Rejected(Rejection {
            operation: 1,
            cause,
            item_id: Some("apple".into()),
        })));
        let expected = "FAILED_PRECONDITION: inventory \"steve\" has 2 apple, needs 5\n  \
                        reason    NOT_ENOUGH (slotcast)\n  \
                        metadata  held = 2\n  \
                        metadata  inventory_id = steve\n  \
                        metadata  item_code = 24\n  \
                        metadata  needed = 5\n  \
                        metadata  operation = 1\n  \
                        rule      NOT_ENOUGH of steve: inventory \"steve\" has 2 apple, needs 5";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_malformed_request_is_told_with_its_field() {
        let text = told(status::invalid(&Invalid::new("add.stack.count", "INVALID_COUNT", "must be at least 1")));
        let expected = "INVALID_ARGUMENT: add.stack.count: must be at least 1\n  \
                        reason    INVALID_COUNT (slotcast)\n  \
                        field     add.stack.count: must be at least 1";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_server_that_cannot_be_reached_is_not_called_a_refusal() {
        let refused = std::io::Error::other("connection refused");
        let text = told(Status::from_error(Box::new(ConnectError(Box::new(refused)))));
        assert!(text.starts_with("cannot connect to http://localhost:1: connection refused\n"), "{text}");
        let text = told(Status::from_error(Box::new(std::io::Error::other("broken pipe"))));
        assert!(text.contains(": the connection to http://localhost:1 failed: broken pipe\n"), "{text}");
    }

    #[test]
    fn when_the_end_is_unknown_the_key_is_given_back() {
        let text = told(status::refusal(&EngineError::CommitUnknown));
        assert!(text.contains("\n  retry in  1000 ms\n"), "{text}");
        assert!(text.ends_with("with --key k1 applies once, whether this one did or not"), "{text}");
    }
}
