//! Converts between the wire format and the domain; no other module knows both.
//!
//! - [`request`]: parses requests.
//! - [`reply`]: writes replies.
//! - [`frame`]: writes and reads the messages of streams; the client library uses it for reading.
//! - [`catalog`]: reads the catalog, with which the client library predicts.
//! - [`page_token`]: writes and reads the page tokens of lists.
//! - [`admin`]: converts the messages of `AdminService`.

pub mod admin;
pub mod catalog;
pub mod frame;
pub mod page_token;
pub mod reply;
pub mod request;

use std::fmt;

/// A malformed field of a request; its status is INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The path of the field, as in `operations[2].add.stack.count`.
    pub field: String,
    /// A stable identifier for programs.
    pub reason: &'static str,
    pub description: String,
}

impl Invalid {
    pub fn new(field: &str, reason: &'static str, description: impl fmt::Display) -> Self {
        Self { field: field.to_owned(), reason, description: description.to_string() }
    }

    /// Returns the same problem, with the field's path seen from the enclosing message, where the path begins with
    /// `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}
