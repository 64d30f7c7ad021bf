//! The commit loop over the real store: races, retries, cancellation, failed commits, back-pressure, guards.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod bounds;
mod epochs;
mod faults;
mod races;
mod setup;
