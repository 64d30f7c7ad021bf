//! The server as a process: signals, settings, logs, and replies to requests that are not gRPC.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod dev_credentials;
mod logs;
mod process;
mod quickstart_tls;
mod settings;
mod signals;
