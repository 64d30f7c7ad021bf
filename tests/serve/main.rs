//! The server as a process: signals, settings, logs, and what it answers to others than its clients.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "../common/mod.rs"]
mod common;

mod dev_credentials;
mod logs;
mod process;
mod quickstart_tls;
mod settings;
mod signals;
