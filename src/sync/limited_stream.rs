//! Extensions of a stream's response that tell the layer which enforces the sync limit whose syncs the stream sends.

use crate::domain::PlayerId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The player whose sync limit applies to this response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitedPlayer(pub PlayerId);

/// Age of the oldest change in the newest frame. The layer caps the recorded wait with it, because a stream may wait
/// for a permit while it has nothing to send.
#[derive(Debug, Clone, Default)]
pub struct FrameAge(Arc<AtomicU64>);

impl FrameAge {
    pub fn set(&self, age: Duration) {
        self.0.store(u64::try_from(age.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns the age and resets it to zero.
    pub fn take(&self) -> Duration {
        Duration::from_micros(self.0.swap(0, Ordering::Relaxed))
    }
}
