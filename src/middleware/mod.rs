//! Tower layers around the service, one a file. Their order is one list, in `server.rs`.

pub mod identity;

pub use identity::IdentityLayer;
