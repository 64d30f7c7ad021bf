//! A client that immediately applies its own mutations, as a pure state machine.
//!
//! - `confirmed`: the newest state of each watched inventory that the service is known to have had.
//! - `pending`: the mutations whose outcome is not known yet, with their predicted states.
//! - `view`: what the client shows, which is the confirmed state with all pending mutations applied.
//!
//! The view is recomputed whenever one of the other two changes, so a failed prediction never has to be undone. The
//! service sends nothing for a correct prediction, because the digest proves that the reader has the state; the mirror
//! uses the same proof to confirm a predicted state.

mod confirmed;
mod pending;
mod view;

pub use pending::PENDING_MAX;

use super::frame::{Cursor, FrameBody, FullReason, InventoryFrame};
use super::replica::Replica;
use super::subscription::Frame;
use crate::domain::{
    Catalog, Contents, Digest, Inventory, InventoryId, KeyTag, Mutation, Operation, Rejection, Revision, Version,
};
use confirmed::{ConfirmedInventory, HeartbeatComparison};
use pending::{PendingQueue, PredictedState};
use std::sync::Arc;
use view::View;

/// The state machine of a client that predicts its own mutations.
#[derive(Debug)]
pub struct Mirror {
    catalog: Arc<Catalog>,
    /// The watched inventories, in the order of the subscription.
    confirmed: Vec<ConfirmedInventory>,
    pending: PendingQueue,
    view: View,
}

/// The prediction of a mutation before the service has processed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prediction {
    /// The view includes the mutation from now on. Send these digests with it.
    Made(Vec<(InventoryId, Digest)>),
    /// The mutation touches an inventory that is not watched or whose state is uncertain, or it creates or deletes one.
    /// Nothing is pending. Send the mutation without a session, so that its effect is news and arrives soon.
    Impossible,
}

/// Why a mutation was not predicted. Nothing is pending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PredictError {
    /// The rules reject the mutation in the current view.
    Rejected(Rejection),
    /// [`PENDING_MAX`] mutations are pending, or a mutation with this key is.
    Full,
}

/// The inventories that an input affected, as positions in the subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MirrorUpdate {
    /// Inventories whose view changed.
    pub changed: Vec<usize>,
    /// Inventories whose wrong state was replaced by a full frame.
    pub corrected: Vec<usize>,
    /// Inventories whose confirmed state is wrong. Report each desync to get a full frame.
    pub desyncs: Vec<usize>,
}

impl Mirror {
    /// Creates a mirror of `ids`, in the order of the subscription. Predictions use `catalog`; if it differs from the
    /// service's catalog, some predictions fail and are corrected.
    pub fn new(ids: Vec<InventoryId>, catalog: Arc<Catalog>) -> Self {
        let view = View::new(vec![None; ids.len()]);
        let confirmed = ids.into_iter().map(ConfirmedInventory::new).collect();
        Self { catalog, confirmed, pending: PendingQueue::default(), view }
    }

    pub fn position(&self, id: &InventoryId) -> Option<usize> {
        self.confirmed.iter().position(|confirmed| confirmed.id == *id)
    }

    /// Returns the watched inventories, in the order of the subscription.
    pub fn ids(&self) -> Vec<InventoryId> {
        self.confirmed.iter().map(|confirmed| confirmed.id.clone()).collect()
    }

    /// Returns the confirmed state with all pending mutations applied, or `None` before the first frame and while the
    /// inventory is absent. Its revision counts pending mutations, so it equals the service's revision only while
    /// nothing is pending.
    pub fn view(&self, position: usize) -> Option<&Contents> {
        self.view.contents(position)
    }

    /// Returns the newest state that the service is known to have had.
    pub fn confirmed(&self, position: usize) -> Option<&Inventory> {
        self.confirmed.get(position)?.state.as_deref()
    }

    /// Returns whether the stream has reported the inventory as absent.
    pub fn is_absent(&self, position: usize) -> bool {
        self.confirmed.get(position).is_some_and(|confirmed| confirmed.absent)
    }

    /// Returns the revision that the stream last sent; deltas on the wire are relative to it.
    pub fn last_sent(&self, position: usize) -> Option<Revision> {
        Some(self.confirmed.get(position)?.last_sent)
    }

    /// Returns whether the confirmed state is known to be wrong, and no frame has replaced it yet.
    pub fn is_desynced(&self, position: usize) -> bool {
        self.confirmed.get(position).is_some_and(|confirmed| confirmed.desynced)
    }

    /// Returns the number of mutations that wait for their reply, or for the frame with the version in the reply.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns how often a confirmed state was found to be wrong. A failed prediction is not a desync.
    pub fn desyncs(&self) -> u64 {
        self.confirmed.iter().map(|confirmed| confirmed.desyncs).sum()
    }

    /// Immediately applies a mutation to the view. `key` is the tag of the idempotency key to send with the mutation.
    pub fn predict(&mut self, key: KeyTag, mutation: Mutation) -> Result<Prediction, PredictError> {
        if !self.pending.accepts(key) {
            return Err(PredictError::Full);
        }
        if !self.can_predict(&mutation) {
            return Ok(Prediction::Impossible);
        }
        let predicted = self.view.predict(&mutation, &self.catalog).map_err(PredictError::Rejected)?;
        if predicted.is_empty() {
            return Ok(Prediction::Impossible);
        }
        let digests = predicted.iter().map(|(_, state)| (state.id.clone(), state.contents.digest())).collect();
        self.view.replace(predicted.iter().cloned());
        self.pending.push(key, mutation, predicted);
        Ok(Prediction::Made(digests))
    }

    /// Handles a frame of the stream.
    pub fn handle_frame(&mut self, frame: &Frame) -> MirrorUpdate {
        let (before, len) = (self.view.digests(), self.confirmed.len());
        let mut update = MirrorUpdate::default();
        for position in &frame.absent {
            if let Some(confirmed) = self.confirmed.get_mut(*position) {
                confirmed.handle_absent();
            }
        }
        for (position, part) in frame.changed.iter().filter(|(position, _)| *position < len) {
            if !self.handle_part(*position, part) {
                update.desyncs.extend(self.mark_desynced(*position));
            } else if is_correction(part) {
                update.corrected.push(*position);
            }
        }
        self.handle_included_keys(frame);
        if frame.is_heartbeat() {
            (0..len).for_each(|position| update.desyncs.extend(self.handle_heartbeat(position, frame)));
        }
        self.settle();
        update.changed = self.view.changed_since(&before);
        update
    }

    /// Marks the confirmed state as wrong, because a part of a frame is malformed or the caller found a difference.
    pub fn handle_desync(&mut self, position: usize) -> MirrorUpdate {
        let desyncs =
            if position < self.confirmed.len() { Vec::from_iter(self.mark_desynced(position)) } else { Vec::new() };
        MirrorUpdate { desyncs, ..MirrorUpdate::default() }
    }

    /// Handles the reply to a mutation that was applied, now or (for a replayed reply) by an earlier attempt.
    /// `versions` are the versions in the reply.
    pub fn handle_reply(&mut self, key: KeyTag, versions: &[Version]) -> MirrorUpdate {
        let before = self.view.digests();
        self.pending.handle_reply(key, versions);
        self.settle();
        MirrorUpdate { changed: self.view.changed_since(&before), ..MirrorUpdate::default() }
    }

    /// Handles a mutation that failed or was abandoned, and removes it from the view.
    ///
    /// If the mutation may nevertheless have been applied, subscribe again afterwards: the current stream may build on
    /// a state that the mirror no longer keeps.
    pub fn handle_failure(&mut self, key: KeyTag) -> MirrorUpdate {
        let before = self.view.digests();
        self.pending.handle_failure(key);
        self.recompute_view();
        MirrorUpdate { changed: self.view.changed_since(&before), ..MirrorUpdate::default() }
    }

    /// Prepares for a new stream and returns the cursors to resume from. Do not pass frames of an earlier stream after
    /// this call.
    pub fn handle_connecting(&mut self) -> Vec<Option<Cursor>> {
        // The new stream starts from the confirmed states, so no frame builds on a prediction whose reply named an
        // epoch that the earlier stream had not sent yet.
        let confirmed = &self.confirmed;
        let is_early = |state: &PredictedState| {
            state.replied.as_ref().is_some_and(|version| confirmed[state.position].is_of_another_epoch(version))
        };
        self.pending.retain(|states| !states.iter().any(is_early));
        let cursors = self.confirmed.iter_mut().map(ConfirmedInventory::handle_connecting).collect();
        self.recompute_view();
        cursors
    }

    fn can_predict(&self, mutation: &Mutation) -> bool {
        let creates_or_deletes =
            |operation: &Operation| matches!(operation, Operation::Create { .. } | Operation::Delete { .. });
        let is_desynced = |id: &InventoryId| self.position(id).is_some_and(|position| self.is_desynced(position));
        !mutation.operations.iter().any(creates_or_deletes)
            && mutation.inventories().all(|id| self.view.contains(id) && !is_desynced(id))
    }

    /// Applies the part of a frame to the confirmed state or, if it does not fit, to a predicted state. Returns whether
    /// it fits one of them.
    fn handle_part(&mut self, position: usize, part: &InventoryFrame) -> bool {
        self.confirmed[position].handle_part(part).is_ok() || self.handle_delta_to_prediction(position, part)
    }

    /// Handles a delta that builds on a correctly predicted state whose reply has not arrived yet.
    fn handle_delta_to_prediction(&mut self, position: usize, part: &InventoryFrame) -> bool {
        let FrameBody::Delta { base, .. } = part.body else { return false };
        let Some(epoch) = self.confirmed[position].state.as_ref().map(|state| state.epoch) else { return false };
        let Some((index, replica)) = self.pending.apply_delta(position, epoch, base, part) else { return false };
        self.pending.mark_included(index, position);
        self.confirmed[position].handle_verified(replica);
        true
    }

    /// Marks the pending mutations that the confirmed state includes after this frame.
    fn handle_included_keys(&mut self, frame: &Frame) {
        let is_changed = |position| frame.changed.iter().any(|(changed, _)| *changed == position);
        self.pending.handle_included_keys(&frame.included_keys, is_changed);
        if !frame.caught_up {
            return;
        }
        // The first frame of a resumed stream has no keys; the resulting digest shows which mutations it includes.
        for (position, _) in &frame.changed {
            let Some(confirmed) = self.confirmed(*position) else { continue };
            if let Some(index) = self.pending.newest_with_digest(*position, confirmed.contents.digest()) {
                self.pending.mark_included(index, *position);
            }
        }
    }

    /// Compares the confirmed state with a heartbeat. Returns the position if this reveals a desync.
    fn handle_heartbeat(&mut self, position: usize, heartbeat: &Frame) -> Option<usize> {
        // A heartbeat has no version of an absent inventory.
        let version = heartbeat.versions.iter().find(|(other, _)| *other == position).map(|(_, version)| version);
        // No frame was on its way when the heartbeat was sent, so other epochs that replies have named are past.
        let epoch = version.map(|version| version.epoch);
        for replied in self.pending.replied_epochs(position).filter(|replied| Some(*replied) != epoch) {
            self.confirmed[position].add_past_epoch(replied);
        }
        let is_wrong = match (self.confirmed[position].compare(version), version) {
            (HeartbeatComparison::Behind, Some(version)) => !self.confirm_heartbeat(position, version),
            (HeartbeatComparison::Consistent, _) | (HeartbeatComparison::Behind, None) => false,
            (HeartbeatComparison::Different, _) => true,
        };
        if is_wrong { self.mark_desynced(position) } else { None }
    }

    /// Confirms the predicted state with the digest of a heartbeat. Returns whether there is one.
    fn confirm_heartbeat(&mut self, position: usize, version: &Version) -> bool {
        let index = self.pending.newest_with_digest(position, version.digest);
        index.inspect(|index| self.confirm(*index, position, version)).is_some()
    }

    /// Makes the state that the pending mutation at `index` predicts the confirmed state, with this version.
    fn confirm(&mut self, index: usize, position: usize, version: &Version) {
        let Some(predicted) = self.pending.predicted(index, position) else { return };
        let contents = predicted.advanced(version.revision, &[]);
        self.confirmed[position].handle_verified(Replica { epoch: version.epoch, contents });
        self.pending.mark_included(index, position);
    }

    /// Confirms the predicted states that replies verify, removes completed mutations and recomputes the view.
    fn settle(&mut self) {
        for index in 0..self.pending.len() {
            for (position, version) in self.pending.verified_versions(index) {
                if self.confirmed[position].is_older_than(&version) {
                    self.confirm(index, position, &version);
                }
            }
        }
        let confirmed = &self.confirmed;
        let is_awaited = |state: &PredictedState| {
            state.replied.as_ref().is_none_or(|version| confirmed[state.position].awaits(version))
        };
        self.pending.retain(|states| states.iter().any(is_awaited));
        self.recompute_view();
    }

    fn recompute_view(&mut self) {
        self.view = View::new(self.confirmed.iter().map(|confirmed| confirmed.state.clone()).collect());
        self.pending.apply_to(&mut self.view, &self.catalog);
    }

    /// Returns the position if the desync was not known before.
    fn mark_desynced(&mut self, position: usize) -> Option<usize> {
        self.confirmed[position].handle_desync().then_some(position)
    }
}

fn is_correction(part: &InventoryFrame) -> bool {
    matches!(part.body, FrameBody::Full { reason: FullReason::Correction, .. })
}
