//! The limits of syncs, streams and requests: the layer in virtual time, and a server over real connections.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod layer;
mod server;
