//! An invalid field of a request.

use super::ErrorReason;
use std::fmt;

/// An invalid field of a request, as in `google.rpc.BadRequest`. The status of the call is INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The path of the field, as in `operations[2].add.stack.count`.
    pub field: String,
    pub reason: ErrorReason,
    /// What the field must be, without the field's name.
    pub description: String,
}

impl FieldViolation {
    /// Creates a violation with the reason INVALID_ARGUMENT.
    pub fn new(field: &str, description: impl fmt::Display) -> Self {
        Self::with_reason(field, ErrorReason::InvalidArgument, description)
    }

    pub fn with_reason(field: &str, reason: ErrorReason, description: impl fmt::Display) -> Self {
        Self { field: field.to_owned(), reason, description: description.to_string() }
    }

    /// Returns the same violation with the path of the enclosing message `outer` before the field's path.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

impl fmt::Display for FieldViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}
