//! Connections as clients have them: TLS, limits, silence, age, and the end. The numbers are those of the adversarial cases.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

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
