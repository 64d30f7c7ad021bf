//! The wire format: the generated messages, and their conversion from and to the types of [`crate::domain`] and
//! [`crate::sync`]. The server and the client library both use it; no other module converts.
//!
//! - [`v1`]: the messages, clients and service traits generated from `proto/slotcast/v1`.
//! - [`request`]: parses requests.
//! - [`reply`]: writes replies.
//! - [`frame`]: writes and reads the messages of streams.
//! - [`frame_bytes`]: writes them straight into bytes, as the server sends them.
//! - [`catalog`]: reads the catalog, with which the client library predicts.
//! - [`rollout`]: writes and reads the rollout settings of `AdminService`.
//! - [`reason`]: the table of error reasons.
//! - [`codec`]: encodes and decodes messages with small buffers.

pub mod catalog;
pub mod codec;
#[cfg(feature = "server")]
pub mod entries;
pub mod frame;
pub mod frame_bytes;
pub mod reason;
pub mod reply;
pub mod request;
pub mod rollout;
mod violation;

pub use v1::ErrorReason;
pub use violation::FieldViolation;

/// The request metadata that names the caller if authentication is disabled: 1 to 128 bytes.
pub const CALLER_METADATA: &str = "slotcast-caller";
/// The request metadata that names the player of the call, sent by a trusted service or by the player's own client: 1
/// to 128 bytes. Without it, the caller acts for itself.
pub const PLAYER_METADATA: &str = "slotcast-player";

/// The descriptors of all messages, for reflection and for building messages by name.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/slotcast.bin"));

/// Generated from `proto/slotcast/v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod v1 {
    tonic::include_proto!("slotcast.v1");
}
