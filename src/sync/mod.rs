//! Ring 1: what a reader is missing, and when to send it. Pure: no I/O, no async, and `now` is an argument.
//!
//! [`published`] is what a stream looks at; [`frame`] computes what a reader at some cursor lacks; [`replica`] is that
//! reader; [`pacer`] decides when a frame is due; [`subscription`] puts them together for a stream of several inventories;
//! [`access`] hides what its reader may not read;
//! [`rollout`] says how, and for whom; [`limit`] is what all streams of one player share;
//! [`mirror`] is a reader that does not wait for the service before it shows its own changes.

pub mod access;
pub mod frame;
pub mod limit;
pub mod mirror;
mod mirrored;
pub mod pacer;
pub mod published;
pub mod replica;
pub mod rollout;
pub mod subscription;

pub use access::ReadAccess;
pub use frame::{Cursor, FrameBody, FullReason, InventoryFrame, SlotChange, frame_since};
pub use limit::{SyncLimit, Ticket, Turn};
pub use mirror::{Mirror, MirrorUpdate, PredictError, Prediction};
pub use pacer::{Moment, Pacer, SyncTrigger, Windows};
pub use published::{
    ChangeKind, ChangeRecord, MutationContext, PredictionOutcome, Published, Superseded, TraceContext, TracedChange,
};
pub use replica::{Desync, Replica};
pub use rollout::{Bucket, OutOfBounds, Percent, Rollout, RolloutField, StreamMode};
pub use subscription::{Frame, PublishedState, SubscribeOptions, Subscription, SyncSettings, TooLarge};
