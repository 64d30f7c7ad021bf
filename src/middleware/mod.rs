//! The tower layers around the services, one per file. `server/wiring.rs` lists them in order.

pub mod access_log;
pub mod admission;
pub mod content_type;
pub mod deadline;
pub mod drain;
pub mod identity;
mod messages;
pub mod origin;
pub mod telemetry;

pub use admission::{Admission, AdmissionLayer, AdmissionSettings};
pub use content_type::ContentTypeLayer;
pub use deadline::DeadlineLayer;
pub use drain::DrainService;
pub use identity::IdentityLayer;
pub use origin::OriginLayer;
pub use telemetry::TelemetryLayer;
