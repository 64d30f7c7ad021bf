//! Slotcast: an authoritative inventory service for game backends.
//!
//! Start with [`domain`] (inventories and their rules), then [`sync`] (frames for readers), then [`engine`] (the only
//! writer). `ARCHITECTURE.md` describes the modules.

pub mod catalog_file;
pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
pub mod engine;
pub mod file_watch;
pub mod grpc;
pub mod identity;
pub mod inventory_file;
pub mod live_rollout;
pub mod middleware;
pub mod server;
pub mod statistics;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod transport;
