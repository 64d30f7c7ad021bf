//! Slotcast: the authoritative inventory service for game backends.
pub mod domain;
pub mod store;
pub mod sync;
