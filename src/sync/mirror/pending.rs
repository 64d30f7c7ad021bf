//! The queue of pending mutations: predictions that were sent and are not confirmed yet, in the order in which the
//! client applied them.
//!
//! The queue keeps the predicted state of each pending mutation until its reply arrives. The service sends nothing for
//! a correct prediction, so a frame that builds on the predicted state may arrive before that reply.

use super::view::{PositionedState, View};
use crate::domain::{Catalog, Contents, Digest, Epoch, Inventory, KeyTag, Mutation, Revision, Version};
use crate::sync::frame::InventoryFrame;
use crate::sync::replica::Replica;
use std::collections::VecDeque;
use std::sync::Arc;

/// Maximum number of pending mutations; each keeps a snapshot of the inventories that it touches.
pub const PENDING_MAX: usize = 256;

/// The pending mutations, oldest first.
#[derive(Debug, Default)]
pub(super) struct PendingQueue {
    mutations: VecDeque<PendingMutation>,
}

/// A mutation that is applied to the view and whose reply, or the frame with the version in the reply, is outstanding.
#[derive(Debug)]
struct PendingMutation {
    key: KeyTag,
    mutation: Mutation,
    states: Vec<PredictedState>,
}

/// The predicted state of an inventory that a pending mutation touches.
#[derive(Debug)]
pub(super) struct PredictedState {
    /// The position of the inventory in the subscription.
    pub position: usize,
    /// The version in the reply, once it has arrived.
    pub replied: Option<Version>,
    inventory: Arc<Inventory>,
    /// Whether the confirmed state already includes the effect, so that the view must not apply it again. Only a hint:
    /// it affects the view until the reply arrives.
    included: bool,
}

impl PendingQueue {
    pub fn len(&self) -> usize {
        self.mutations.len()
    }

    /// Returns whether the queue has room for a mutation with this key: it is not full, and the key is not pending.
    pub fn accepts(&self, key: KeyTag) -> bool {
        self.mutations.len() < PENDING_MAX && self.mutations.iter().all(|pending| pending.key != key)
    }

    /// Appends a mutation with the states that the client predicts.
    pub fn push(&mut self, key: KeyTag, mutation: Mutation, predicted: Vec<PositionedState>) {
        let state = |(position, inventory)| PredictedState { position, replied: None, inventory, included: false };
        let states = predicted.into_iter().map(state).collect();
        self.mutations.push_back(PendingMutation { key, mutation, states });
    }

    /// Records the versions in the reply to a mutation. Inventories that the reply does not name are no longer pending.
    pub fn handle_reply(&mut self, key: KeyTag, versions: &[Version]) {
        if let Some(pending) = self.mutations.iter_mut().find(|pending| pending.key == key) {
            pending.states.retain_mut(|state| {
                state.replied = versions.iter().find(|version| version.id == state.inventory.id).cloned();
                state.replied.is_some()
            });
        }
    }

    /// Removes a mutation that failed or was abandoned.
    pub fn handle_failure(&mut self, key: KeyTag) {
        self.mutations.retain(|pending| pending.key != key);
    }

    /// Handles a frame with the keys of mutations that the states after it include. `is_changed` tells whether the
    /// frame changed the inventory at a position.
    pub fn handle_included_keys(&mut self, keys: &[KeyTag], is_changed: impl Fn(usize) -> bool) {
        for pending in self.mutations.iter_mut().filter(|pending| keys.contains(&pending.key)) {
            for state in pending.states.iter_mut().filter(|state| is_changed(state.position)) {
                state.included = true;
            }
        }
    }

    /// Marks the pending mutation at `index` and all before it as included in the confirmed state of an inventory.
    pub fn mark_included(&mut self, index: usize, position: usize) {
        let states = self.mutations.iter_mut().take(index + 1).flat_map(|pending| &mut pending.states);
        states.filter(|state| state.position == position).for_each(|state| state.included = true);
    }

    /// Keeps the mutations for which `is_pending` returns true.
    pub fn retain(&mut self, is_pending: impl Fn(&[PredictedState]) -> bool) {
        self.mutations.retain(|pending| is_pending(&pending.states));
    }

    /// Returns the index of the newest pending mutation that predicts this digest of an inventory.
    pub fn newest_with_digest(&self, position: usize, digest: Digest) -> Option<usize> {
        let predicts =
            |pending: &PendingMutation| pending.state(position).is_some_and(|state| state.digest() == digest);
        self.mutations.iter().rposition(predicts)
    }

    /// Returns the contents that the pending mutation at `index` predicts for an inventory.
    pub fn predicted(&self, index: usize, position: usize) -> Option<&Contents> {
        self.mutations.get(index)?.state(position).map(|state| &state.inventory.contents)
    }

    /// Returns the versions in the reply to the mutation at `index` whose digests match the prediction, with the
    /// positions of their inventories.
    pub fn verified_versions(&self, index: usize) -> Vec<(usize, Version)> {
        let verified = |state: &PredictedState| {
            let version = state.replied.as_ref().filter(|version| version.digest == state.digest())?;
            Some((state.position, version.clone()))
        };
        self.mutations.get(index).into_iter().flat_map(|pending| &pending.states).filter_map(verified).collect()
    }

    /// Returns the epochs that replies have named for an inventory.
    pub fn replied_epochs(&self, position: usize) -> impl Iterator<Item = Epoch> {
        let states = self.mutations.iter().flat_map(|pending| &pending.states);
        states.filter(move |state| state.position == position).filter_map(|state| Some(state.replied.as_ref()?.epoch))
    }

    /// Applies a delta from revision `base` to the newest predicted state that it fits. Returns the index of that
    /// state's mutation and the state after the delta, which the digest in the delta verifies.
    pub fn apply_delta(
        &self,
        position: usize,
        epoch: Epoch,
        base: Revision,
        delta: &InventoryFrame,
    ) -> Option<(usize, Replica)> {
        let after_delta = |(index, pending): (usize, &PendingMutation)| {
            let contents = pending.state(position)?.inventory.contents.advanced(base, &[]);
            Some((index, Replica::apply(Some(&Replica { epoch, contents }), delta).ok()?))
        };
        self.mutations.iter().enumerate().rev().find_map(after_delta)
    }

    /// Applies all pending mutations, in order, to a view that shows the confirmed state. Skips a mutation that the
    /// rules reject; it may apply again later.
    pub fn apply_to(&self, view: &mut View, catalog: &Catalog) {
        for pending in &self.mutations {
            let states = if pending.states.iter().any(|state| state.included) {
                // The confirmed state includes the mutation in some of its inventories. The others were predicted
                // correctly, or the frame would have included them too.
                let others = pending.states.iter().filter(|state| !state.included);
                others.map(|state| (state.position, state.inventory.clone())).collect()
            } else {
                view.predict(&pending.mutation, catalog).unwrap_or_default()
            };
            view.replace(states);
        }
    }
}

impl PendingMutation {
    fn state(&self, position: usize) -> Option<&PredictedState> {
        self.states.iter().find(|state| state.position == position)
    }
}

impl PredictedState {
    fn digest(&self) -> Digest {
        self.inventory.contents.digest()
    }
}
