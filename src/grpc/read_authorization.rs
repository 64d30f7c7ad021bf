//! Read authorization: decides what a caller may read, once for each call, and on a stream for each frame.

use crate::domain::{Inventory, InventoryId, PlayerId};
use crate::identity::{AuthError, CredentialStatus, Identity, Role};
use crate::status;
use crate::sync::ReadAccess;
use tokio::time::Instant;
use tonic::Status;

/// Returns the inventory if the caller may read it. A player gets the same error for an inventory of another owner and
/// for one that does not exist.
pub fn authorize_read<'a>(
    identity: &Identity,
    id: &InventoryId,
    found: Option<&'a Inventory>,
) -> Result<&'a Inventory, Status> {
    match required_owner(identity)? {
        Some(player) => {
            found.filter(|inventory| inventory.owner.as_ref() == Some(player)).ok_or_else(status::no_access)
        }
        None => found.ok_or_else(|| status::inventory_not_found(id)),
    }
}

/// Checks that the caller may list the inventories of the owner `requested`, or of all owners if it is `None`.
pub fn authorize_list(identity: &Identity, requested: Option<&PlayerId>) -> Result<(), Status> {
    match required_owner(identity)? {
        Some(player) if requested != Some(player) => Err(status::cannot_list_others()),
        Some(_) | None => Ok(()),
    }
}

/// Returns what the caller may read on a stream, as long as the stream is open.
pub fn read_access(identity: &Identity) -> Result<ReadAccess, Status> {
    Ok(required_owner(identity)?.cloned().map_or(ReadAccess::All, ReadAccess::OwnedBy))
}

/// Returns the player that must own the inventories that the caller reads, or `None` if the caller may read all
/// inventories.
fn required_owner(identity: &Identity) -> Result<Option<&PlayerId>, Status> {
    match identity.role {
        Role::Player => identity.player.as_ref().map(Some).ok_or_else(status::no_access),
        Role::Service | Role::Admin => Ok(None),
    }
}

/// Authorization of an open stream. It ends when the reader's token expires or the key that signed the token is
/// revoked.
#[derive(Debug)]
pub struct ReadAuthorization {
    // Boxed, because a stream keeps it, and without authentication there is none.
    credential_status: Option<Box<CredentialStatus>>,
}

impl ReadAuthorization {
    pub fn new(identity: &Identity) -> Self {
        Self { credential_status: identity.credential_status.clone().map(Box::new) }
    }

    /// Checks that the reader's token is still valid.
    pub fn check(&self) -> Result<(), AuthError> {
        self.credential_status.as_deref().map_or(Ok(()), CredentialStatus::check)
    }

    /// Returns when the token expires, if it does.
    pub fn deadline(&self) -> Option<Instant> {
        self.credential_status.as_deref().map(CredentialStatus::deadline)
    }
}
