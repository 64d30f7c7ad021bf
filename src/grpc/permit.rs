//! What a caller may read: decided when a call is made, and on a stream for each of its frames.

use super::status;
use crate::domain::{Inventory, InventoryId, PlayerId};
use crate::identity::{ExpiryWatch, Lapsed, Role};
use crate::middleware::Identity;
use crate::sync::ReadAccess;
use std::future::pending;
use tokio::time::Instant;
use tonic::Status;

/// The inventory, if the caller may read it. To a player, what is another's and what is not there are the same.
pub fn readable<'a>(
    identity: &Identity,
    id: &InventoryId,
    found: Option<&'a Inventory>,
) -> Result<&'a Inventory, Status> {
    match owner(identity)? {
        Some(player) => {
            found.filter(|inventory| inventory.owner.as_ref() == Some(player)).ok_or_else(status::not_yours)
        }
        None => found.ok_or_else(|| status::inventory_not_found(id)),
    }
}

/// Whether the caller may see the inventories of this owner, or of all.
pub fn may_list(identity: &Identity, wanted: Option<&PlayerId>) -> Result<(), Status> {
    match owner(identity)? {
        Some(player) if wanted != Some(player) => Err(status::lists_of_others()),
        Some(_) | None => Ok(()),
    }
}

/// What the caller may read on a stream, for as long as the stream is open.
pub fn access(identity: &Identity) -> Result<ReadAccess, Status> {
    Ok(owner(identity)?.cloned().map_or(ReadAccess::All, ReadAccess::OwnedBy))
}

/// Who has to own what the caller reads; none: it may read everything.
fn owner(identity: &Identity) -> Result<Option<&PlayerId>, Status> {
    match identity.role {
        Role::Player => identity.player.as_ref().map(Some).ok_or_else(status::not_yours),
        Role::Service | Role::Admin => Ok(None),
    }
}

/// A stream's leave to go on: it ends with its reader's token, or with the key that signed it.
#[derive(Debug)]
pub struct Permit {
    expiry: Option<ExpiryWatch>,
}

impl Permit {
    pub fn of(identity: &Identity) -> Self {
        Self { expiry: identity.expires.as_ref().map(|expiry| expiry.watch()) }
    }

    /// Whether its reader still is who it was.
    pub fn check(&self) -> Result<(), Lapsed> {
        self.expiry.as_ref().map_or(Ok(()), |expiry| expiry.check())
    }

    /// When to ask again at the latest.
    pub fn look_by(&self, due: Instant) -> Instant {
        self.expiry.as_ref().map_or(due, |expiry| due.min(expiry.deadline()))
    }

    /// Returns when it may have been withdrawn before. Safe to drop and call again.
    pub async fn changed(&mut self) {
        match &mut self.expiry {
            Some(expiry) => expiry.changed().await,
            None => pending().await,
        }
    }
}
