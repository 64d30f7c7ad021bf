//! Ring 3: gRPC, kept thin. [`convert`] is the only file that knows both the wire and the domain, [`status`] the only one
//! that turns an error into a status.

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

    /// For reflection, and for whoever wants to build messages by name.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/slotcast.bin"));
}

pub use v1::FILE_DESCRIPTOR_SET;
pub use v1::admin_service_server::AdminServiceServer;
pub use v1::inventory_service_server::InventoryServiceServer;
