//! The only place that knows both the wire and the domain.
//!
//! [`request`] parses what comes in, [`reply`] writes what goes out, [`frame`] does both for the stream, since the client
//! library reads with it what the service wrote; with [`catalog`] it reads the rules that it predicts by. [`admin`] has the
//! messages of operators.

pub mod admin;
pub mod catalog;
pub mod frame;
pub mod page_token;
pub mod reply;
pub mod request;

use std::fmt;

/// A request that is malformed: INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The path of the field, as in `operations[2].add.stack.count`.
    pub field: String,
    /// Stable, for machines.
    pub reason: &'static str,
    pub description: String,
}

impl Invalid {
    pub fn new(field: &str, reason: &'static str, description: impl fmt::Display) -> Self {
        Self { field: field.to_owned(), reason, description: description.to_string() }
    }

    /// The same, seen from the message around it.
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
