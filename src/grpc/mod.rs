//! Ring 3: the gRPC services, a thin layer. Only [`convert`] knows both the wire format and the domain, and only
//! [`status`] converts errors to statuses.

pub mod admin;
pub mod codec;
pub mod convert;
mod names;
pub mod permit;
pub mod service;
pub mod shadow;
pub mod status;
pub mod stream;
pub mod streams;

/// Generated from `proto/slotcast/v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod v1 {
    tonic::include_proto!("slotcast.v1");

    /// The descriptors of all messages, for reflection and for building messages by name.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/slotcast.bin"));
}

pub use v1::FILE_DESCRIPTOR_SET;
pub use v1::admin_service_server::AdminServiceServer;
pub use v1::inventory_service_server::InventoryServiceServer;
