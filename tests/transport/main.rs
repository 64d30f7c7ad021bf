//! Connections as clients see them: TLS, limits, silence, maximum age and shutdown. Test names with numbers refer to the
//! adversarial cases.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../process/mod.rs"]
mod process;

mod age;
mod callers;
mod drain;
mod limits;
mod silence;
mod stalled;
mod stalling;
mod support;
mod tls;
#[path = "../support/tokens.rs"]
mod tokens;
