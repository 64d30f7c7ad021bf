//! The rules of inventories: numbered cases, each operation by example, laws over random histories, and the digest.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod cases;
mod digest_vectors;
mod laws;
mod mutations;
mod operations;
mod setup;
mod stack_limits;
#[path = "../support/mod.rs"]
mod support;
