//! What a caller may read: decided when a call is made, and for a stream again before each of its frames.

use super::status;
use crate::domain::{Epoch, Inventory, InventoryId, PlayerId};
use crate::identity::{ExpiryWatch, Lapsed, Role};
use crate::middleware::Identity;
use crate::sync::{Frame, State};
use std::future::pending;
use tokio::time::Instant;
use tonic::Status;

/// Why a stream's reader may read no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    Lapsed(Lapsed),
    /// An inventory belongs to another now.
    NotYours,
}

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

/// Who has to own what the caller reads; none: it may read everything.
fn owner(identity: &Identity) -> Result<Option<&PlayerId>, Status> {
    match identity.role {
        Role::Player => identity.player.as_ref().map(Some).ok_or_else(status::not_yours),
        Role::Service | Role::Admin => Ok(None),
    }
}

/// A stream's leave to go on: asked before each frame, and woken by when it may be withdrawn.
#[derive(Debug)]
pub struct Permit {
    expiry: Option<ExpiryWatch>,
    /// Of a player's own stream: who has to own all that it brings.
    owner: Option<PlayerId>,
    /// In which epoch each inventory was last seen to be the owner's.
    epochs: Vec<Option<Epoch>>,
}

impl Permit {
    pub fn of(identity: &Identity) -> Self {
        let owner = identity.player.clone().filter(|_| identity.role == Role::Player);
        Self { expiry: identity.expires.as_ref().map(|expiry| expiry.watch()), owner, epochs: Vec::new() }
    }

    /// Whether its reader still is who it was.
    pub fn check(&self) -> Result<(), Denied> {
        self.expiry.as_ref().map_or(Ok(()), |expiry| expiry.check().map_err(Denied::Lapsed))
    }

    /// Whether its reader may see these states. They have to be seen here before anything is sent of them.
    pub fn see(&mut self, states: &[State]) -> Result<(), Denied> {
        let Some(owner) = &self.owner else { return Ok(()) };
        self.epochs.resize(states.len(), None);
        for (epoch, state) in self.epochs.iter_mut().zip(states) {
            // What is gone tells nothing.
            let Some(inventory) = &state.inventory else { continue };
            if inventory.owner.as_ref() != Some(owner) {
                return Err(Denied::NotYours);
            }
            *epoch = Some(inventory.epoch);
        }
        Ok(())
    }

    /// Leaves out who changed an inventory, and why, while it may have been another's: between two looks it may have been
    /// deleted and made anew more than once.
    pub fn keep_own(&self, frame: &mut Frame) {
        if self.owner.is_none() {
            return;
        }
        let before = frame.notices.len();
        frame.notices.retain(|(at, note)| self.epochs.get(*at) == Some(&Some(note.epoch)));
        frame.notices_dropped += (before - frame.notices.len()) as u64;
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
