//! The limits of syncs, streams and requests: the sync limiter in virtual time, and a server over real connections.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod limiter;
mod server;
