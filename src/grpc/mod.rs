//! Ring 3: the gRPC services, a thin layer between the wire format ([`crate::wire`]) and the engine.

pub mod admin;
pub mod frame_body;
mod mutations;
mod page_token;
pub mod read_authorization;
pub mod reads;
pub mod service;
pub mod shadow;
pub mod short_path;
mod statistics;
pub mod stream;
pub mod stream_limit;
pub mod stream_schedule;
mod subscribe;
pub mod sync_limiter;

pub use crate::wire::v1::admin_service_server::AdminServiceServer;
pub use crate::wire::v1::inventory_service_server::InventoryServiceServer;
