//! Nobody gets in who may not: verified callers over real gRPC. The numbers are those of the adversarial cases.
//!
//! `cargo test --test security -- --nocapture table` prints what each kind of caller is told.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(clippy::needless_update, reason = "messages may get more fields")]

#[path = "../common/mod.rs"]
mod common;
mod flood;
mod layer;
mod messages;
mod permissions;
#[path = "../support/raw_codec.rs"]
mod raw_codec;
mod rotation;
mod secured;
mod streams;
mod table;
mod time;
#[path = "../support/tokens.rs"]
mod tokens;
