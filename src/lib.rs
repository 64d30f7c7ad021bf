//! Slotcast: an authoritative inventory service for game backends.
//!
//! Start with [`domain`] (inventories and their rules), then [`sync`] (frames for readers), then `engine` (the only
//! writer). `ARCHITECTURE.md` describes the modules.
//!
//! # Features
//!
//! - `client`: the client library ([`client`]), without the server and its dependencies.
//! - `server`: the server as a library ([`server`]).
//! - `cli` (default): the `slotcast` command, which includes both.

#[cfg(any(feature = "client", feature = "server"))]
pub mod certificate_error;
pub mod domain;
pub mod sync;
pub mod wire;

#[cfg(feature = "client")]
pub mod client;

#[cfg(feature = "server")]
pub mod catalog_file;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod engine;
#[cfg(feature = "server")]
pub mod file_watch;
#[cfg(feature = "server")]
pub mod grpc;
#[cfg(feature = "server")]
pub mod identity;
#[cfg(feature = "server")]
pub mod inventory_file;
#[cfg(feature = "server")]
pub mod live_rollout;
#[cfg(feature = "server")]
pub mod middleware;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod statistics;
#[cfg(feature = "server")]
pub mod status;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod transport;
#[cfg(feature = "server")]
pub mod web;

#[cfg(feature = "cli")]
pub mod cli;
