//! Authentication and authorization over real gRPC. The numbers are those of the numbered cases.
//!
//! `cargo test --test security -- --nocapture table` prints the status that each kind of caller gets.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(clippy::needless_update, reason = "messages may get more fields")]

#[path = "../common/mod.rs"]
mod common;
mod flood;
mod layer;
mod messages;
mod permissions;
#[path = "../support/protocols.rs"]
mod protocols;
#[path = "../support/raw_codec.rs"]
mod raw_codec;
mod rotation;
mod secured;
mod streams;
mod table;
mod time;
#[path = "../support/tokens.rs"]
mod tokens;
