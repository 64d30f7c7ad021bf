//! Ring 1: what a reader is missing, and when to send it. Pure: no I/O, no async, and `now` is an argument.
//!
//! [`frame`] computes what a reader at some cursor lacks; [`replica`] is that reader; [`pacer`] decides when a frame is
//! due; [`subscription`] puts them together for a stream of several inventories.

pub mod frame;
pub mod pacer;
pub mod replica;
pub mod subscription;

pub use frame::{Cursor, FrameBody, FullReason, InventoryFrame, SlotChange, frame_since};
pub use pacer::{Moment, Pacer};
pub use replica::{Desync, Replica};
pub use subscription::{Frame, State, Subscription, SyncSettings};
