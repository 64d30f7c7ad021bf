//! Ring 1 (see ARCHITECTURE.md): computes what a reader is missing and when to send it. Pure: no I/O, no async; `now`
//! is an argument.
//!
//! - [`published`]: the state of one inventory as streams see it.
//! - `derived`: what streams derive from a published state and share.
//! - [`frame`]: computes the changes since a reader's cursor.
//! - [`replica`]: a reader's copy of an inventory, which applies frames.
//! - [`pacer`]: decides when a frame is due.
//! - `watch`: tracks which state of one inventory the reader has.
//! - [`subscription`]: combines these for a subscription to several inventories.
//! - [`access`]: hides inventories that the reader may not read.
//! - [`rollout`]: sync settings, and the percentage of players that each feature applies to.
//! - [`limit`]: the sync limit that all streams of a player share.
//! - [`mirror`]: a client that applies its own changes before the service confirms them.

pub mod access;
mod derived;
pub mod frame;
pub mod limit;
pub mod mirror;
pub mod pacer;
pub mod published;
pub mod replica;
pub mod rollout;
pub mod subscription;
mod watch;

pub use access::ReadAccess;
pub use frame::{Cursor, FrameBody, FullReason, InventoryFrame, SlotChange, frame_since};
pub use limit::{SyncLimit, Ticket, Turn};
pub use mirror::{Mirror, MirrorUpdate, PredictError, Prediction};
pub use pacer::{Moment, Pacer, SyncTrigger, Windows};
pub use published::{
    ChangeKind, ChangeRecord, MutationContext, PublishedState, SupersededAt, TraceContext, TracedChange,
};
pub use replica::{Desync, Replica};
pub use rollout::{Bucket, OutOfBounds, Percent, Rollout, RolloutField, StreamMode};
pub use subscription::{Frame, SubscribeOptions, Subscription, SubscriptionTooLarge, SyncSettings};
