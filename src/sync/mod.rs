//! Ring 1: what a reader is missing, and when to send it. Pure: no I/O, no async, and `now` is an argument.
//!
//! [`published`] is what a stream looks at; [`frame`] computes what a reader at some cursor lacks; [`replica`] is that
//! reader; [`pacer`] decides when a frame is due; [`subscription`] puts them together for a stream of several inventories;
//! [`access`] hides what its reader may not read;
//! [`rollout`] says how, and for whom; [`limit`] is what all streams of one player share;
//! [`mirror`] is a reader that does not wait for the service before it shows its own changes.

pub mod access;
mod followed;
pub mod frame;
pub mod limit;
pub mod mirror;
pub mod pacer;
pub mod published;
pub mod replica;
pub mod rollout;
pub mod subscription;

pub use access::ReadAccess;
pub use frame::{Cursor, FrameBody, FullReason, InventoryFrame, SlotChange, frame_since};
pub use limit::{SyncLimit, Ticket, Turn};
pub use mirror::{Mirror, NotPredicted, Prediction, Shown};
pub use pacer::{Moment, Pacer, Waiting, Windows};
pub use published::{Asked, Cause, Caused, ChangeKind, Note, Published, Superseded, Verdict};
pub use replica::{Desync, Replica};
pub use rollout::{Bucket, Field, OutOfBounds, Percent, Rollout, StreamMode};
pub use subscription::{Frame, State, Subscription, SyncSettings, TooLarge, Wishes};
