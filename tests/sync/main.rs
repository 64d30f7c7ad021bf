//! What readers receive and predict, in virtual time: laws over random histories, the mirror of a predicting client, and a
//! simulation of both ends.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod frame_bytes;
mod laws;
mod limit_laws;
mod mirror;
mod mirror_sim;
#[path = "../support/mod.rs"]
mod support;
