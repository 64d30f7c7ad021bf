//! The service over real gRPC on loopback. The numbers are those of the numbered cases.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(clippy::needless_update, reason = "messages may get more fields")]

mod absent;
#[path = "../common/mod.rs"]
mod common;
mod input;
mod keys;
mod lists;
mod mutations;
#[path = "../support/protocols.rs"]
mod protocols;
mod raw;
#[path = "../support/raw_codec.rs"]
mod raw_codec;
mod retries;
mod sessions;
mod size;
mod statuses;
mod streams;
mod unary_paths;
mod web;
