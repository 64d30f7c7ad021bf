//! Disk errors, injected into the system calls of a real server: it recovers automatically, or reports NOT_SERVING and
//! exits with an error in its log. It never reports healthy while it refuses calls, and loses nothing acknowledged.
//!
//! `SLOTCAST_IO_FAULTS=N` makes each of the first N calls of every kind fail, in turn (`just io-faults`); without it a
//! sample of them.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]
#![allow(clippy::needless_update, reason = "messages may get more fields")]

mod campaign;
mod case;
mod disk;
mod load;
mod opening;
#[path = "../process/mod.rs"]
mod process;
mod shim;
