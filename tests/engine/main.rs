//! The commit loop over the real store: races, retries, cancellation, failed commits, back-pressure, guards.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod bounds;
mod epochs;
mod faults;
#[path = "../common/faulty_store.rs"]
#[allow(dead_code, reason = "each test target uses its own part")]
mod faulty_store;
mod races;
mod reads;
mod runtimes;
mod setup;
