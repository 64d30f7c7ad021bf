//! A client that immediately applies its own mutations, as a pure state machine: the confirmed state of each watched
//! inventory, and the pending mutations whose outcome is not known yet.
//!
//! Confirmed and predicted states are separate. The view is the confirmed state with all pending mutations applied, and
//! is recomputed whenever either changes, so a failed prediction never has to be undone. The service sends nothing for
//! a correct prediction, because the digest proves that the reader has the state; the mirror uses the same proof. It
//! keeps the predicted state of each pending mutation until its reply, because a frame that builds on it may arrive
//! before the reply.

use super::frame::{Cursor, FrameBody, FullReason, InventoryFrame};
use super::mirrored::{MirroredInventory, replica};
use super::replica::{Desync, Replica};
use super::subscription::Frame;
use crate::domain::{
    self, Catalog, Contents, Digest, Effect, Epoch, Inventory, InventoryId, KeyTag, Mutation, Operation, Rejection,
    Revision, Version,
};
use std::collections::VecDeque;
use std::sync::Arc;

/// Maximum number of pending mutations; each keeps a snapshot of the inventories that it touches.
pub const PENDING_MAX: usize = 256;

/// The state machine of a client that predicts its own mutations.
#[derive(Debug)]
pub struct Mirror {
    catalog: Arc<Catalog>,
    inventories: Vec<MirroredInventory>,
    pending: VecDeque<Pending>,
    desyncs: u64,
}

/// A mutation that is applied to the view and whose reply, or the frame with its version, is outstanding.
#[derive(Debug)]
struct Pending {
    key: KeyTag,
    mutation: Mutation,
    states: Vec<PredictedState>,
}

/// The predicted state of an inventory that a pending mutation touches.
#[derive(Debug)]
struct PredictedState {
    position: usize,
    inventory: Arc<Inventory>,
    /// The version in the reply, once it has arrived.
    replied: Option<Version>,
    /// The confirmed state already includes the effect, so the view must not apply it again. Only a hint: it affects
    /// the view until the reply arrives.
    included: bool,
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
        let inventories = ids.into_iter().map(MirroredInventory::new).collect();
        Self { catalog, inventories, pending: VecDeque::new(), desyncs: 0 }
    }

    pub fn position(&self, id: &InventoryId) -> Option<usize> {
        self.inventories.iter().position(|inventory| inventory.id == *id)
    }

    /// Returns the watched inventories, in the order of the subscription.
    pub fn ids(&self) -> Vec<InventoryId> {
        self.inventories.iter().map(|inventory| inventory.id.clone()).collect()
    }

    /// Returns the confirmed state with all pending mutations applied, or `None` before the first frame and while the
    /// inventory is absent. Its revision counts pending mutations, so it equals the service's revision only while
    /// nothing is pending.
    pub fn view(&self, position: usize) -> Option<&Contents> {
        self.inventories.get(position)?.view.as_ref().map(|inventory| &inventory.contents)
    }

    /// Returns the newest state that the service is known to have had.
    pub fn confirmed(&self, position: usize) -> Option<&Inventory> {
        self.inventories.get(position)?.confirmed.as_deref()
    }

    /// Returns whether the stream has reported the inventory as absent.
    pub fn is_absent(&self, position: usize) -> bool {
        self.inventories.get(position).is_some_and(|inventory| inventory.absent)
    }

    /// Returns the revision that the stream last sent; deltas on the wire are relative to it.
    pub fn last_sent(&self, position: usize) -> Option<Revision> {
        Some(self.inventories.get(position)?.last_sent)
    }

    pub fn is_desynced(&self, position: usize) -> bool {
        self.inventories.get(position).is_some_and(|inventory| inventory.desynced)
    }

    /// Returns the number of mutations that wait for their reply, or for the frame with the version in the reply.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Returns how often a confirmed state was found to be wrong. A failed prediction is not a desync.
    pub fn desyncs(&self) -> u64 {
        self.desyncs
    }

    /// Immediately applies a mutation to the view. `key` is the tag of the idempotency key to send with the mutation.
    pub fn predict(&mut self, key: KeyTag, mutation: Mutation) -> Result<Prediction, PredictError> {
        if self.pending.len() >= PENDING_MAX || self.pending.iter().any(|pending| pending.key == key) {
            return Err(PredictError::Full);
        }
        if !self.can_predict(&mutation) {
            return Ok(Prediction::Impossible);
        }
        let effect = self.apply(&mutation).map_err(PredictError::Rejected)?;
        let mut states = Vec::with_capacity(effect.touched.len());
        for touched in effect.touched {
            let (Some(position), Some(predicted)) = (self.position(&touched.version.id), touched.state) else {
                continue;
            };
            self.inventories[position].view = Some(predicted.clone());
            states.push(PredictedState { position, inventory: predicted, replied: None, included: false });
        }
        if states.is_empty() {
            return Ok(Prediction::Impossible);
        }
        let digest = |state: &PredictedState| (state.inventory.id.clone(), state.inventory.contents.digest());
        let digests = states.iter().map(digest).collect();
        self.pending.push_back(Pending { key, mutation, states });
        Ok(Prediction::Made(digests))
    }

    /// Handles a frame of the stream.
    pub fn handle_frame(&mut self, frame: &Frame) -> MirrorUpdate {
        let (before, len) = (self.digests(), self.inventories.len());
        let mut update = MirrorUpdate::default();
        for position in &frame.absent {
            if let Some(mirrored) = self.inventories.get_mut(*position) {
                mirrored.handle_absent();
            }
        }
        for (position, part) in frame.changed.iter().filter(|(position, _)| *position < len) {
            match self.handle_part(*position, part) {
                Ok(()) if is_correction(part) => update.corrected.push(*position),
                Ok(()) => {}
                Err(_) => update.desyncs.extend(self.mark_desynced(*position)),
            }
        }
        self.include_covered(frame);
        if frame.is_heartbeat() {
            (0..len).for_each(|position| update.desyncs.extend(self.compare_heartbeat(position, frame)));
        }
        self.settle();
        update.changed = self.changed_since(&before);
        update
    }

    /// Marks the confirmed state as wrong, because a part of a frame is malformed or the caller found a difference.
    pub fn handle_desync(&mut self, position: usize) -> MirrorUpdate {
        let desyncs =
            if position < self.inventories.len() { Vec::from_iter(self.mark_desynced(position)) } else { Vec::new() };
        MirrorUpdate { desyncs, ..MirrorUpdate::default() }
    }

    /// Handles the reply to a mutation that was applied, now or (for a replayed reply) by an earlier attempt.
    /// `versions` are the versions in the reply.
    pub fn handle_reply(&mut self, key: KeyTag, versions: &[Version]) -> MirrorUpdate {
        let before = self.digests();
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.key == key) {
            pending.states.retain_mut(|state| {
                state.replied = versions.iter().find(|version| version.id == state.inventory.id).cloned();
                state.replied.is_some()
            });
        }
        self.settle();
        MirrorUpdate { changed: self.changed_since(&before), ..MirrorUpdate::default() }
    }

    /// Handles a mutation that failed or was abandoned, and removes it from the view.
    ///
    /// If the mutation may nevertheless have been applied, subscribe again afterwards: the current stream may build on
    /// a state that the mirror no longer keeps.
    pub fn handle_failure(&mut self, key: KeyTag) -> MirrorUpdate {
        let before = self.digests();
        self.pending.retain(|pending| pending.key != key);
        self.rebase();
        MirrorUpdate { changed: self.changed_since(&before), ..MirrorUpdate::default() }
    }

    /// Prepares for a new stream and returns the cursors to resume from. Do not pass frames of an earlier stream after
    /// this call.
    pub fn handle_connecting(&mut self) -> Vec<Option<Cursor>> {
        // The new stream does not build on earlier predictions, so their states need not be kept.
        let inventories = &self.inventories;
        let is_early = |state: &PredictedState| inventories[state.position].is_of_another_epoch(state.replied.as_ref());
        self.pending.retain(|pending| !pending.states.iter().any(is_early));
        let cursor = |mirrored: &mut MirroredInventory| {
            let cursor = mirrored.confirmed.as_deref().filter(|_| !mirrored.desynced).map(Cursor::of);
            mirrored.last_sent = cursor.map_or(Revision(0), |cursor| cursor.revision);
            cursor
        };
        let cursors = self.inventories.iter_mut().map(cursor).collect();
        self.rebase();
        cursors
    }

    fn can_predict(&self, mutation: &Mutation) -> bool {
        let creates_or_deletes =
            |operation: &Operation| matches!(operation, Operation::Create { .. } | Operation::Delete { .. });
        let is_known = |id: &InventoryId| {
            let mirrored = self.position(id).map(|position| &self.inventories[position]);
            mirrored.is_some_and(|mirrored| mirrored.view.is_some() && !mirrored.desynced)
        };
        !mutation.operations.iter().any(creates_or_deletes) && mutation.inventories().all(is_known)
    }

    fn apply(&self, mutation: &Mutation) -> Result<Effect, Rejection> {
        // Predictions never create an inventory, so the epoch is not used.
        domain::apply(mutation, &self.catalog, self, &mut || Epoch::new(1).expect("1 is not 0"))
    }

    fn handle_part(&mut self, position: usize, part: &InventoryFrame) -> Result<(), Desync> {
        let mirrored = &mut self.inventories[position];
        match part.body {
            FrameBody::Full { epoch, revision, reason, .. } => {
                mirrored.last_sent = revision;
                // A reply overtook the frame. But a client that is ahead of the service must return to the service's
                // state.
                if reason != FullReason::FromTheFuture && mirrored.has_passed(epoch, revision) {
                    return Ok(());
                }
                let inventory = mirrored.inventory(Replica::apply(None, part)?);
                mirrored.replace(Some(inventory));
                Ok(())
            }
            FrameBody::Delta { base, revision, .. } => {
                mirrored.last_sent = revision;
                let Some(confirmed) = mirrored.confirmed.clone() else { return Err(Desync::NoBase) };
                let of_confirmed = if mirrored.desynced {
                    Err(Desync::NoBase)
                } else {
                    Replica::apply(Some(&replica(&confirmed)), part)
                };
                let applied =
                    of_confirmed.or_else(|desync| self.apply_to_prediction(position, base, part).ok_or(desync))?;
                let mirrored = &mut self.inventories[position];
                let inventory = mirrored.inventory(applied);
                mirrored.replace(Some(inventory));
                Ok(())
            }
        }
    }

    /// Applies a delta that builds on a correctly predicted state whose reply has not arrived yet.
    fn apply_to_prediction(&mut self, position: usize, base: Revision, part: &InventoryFrame) -> Option<Replica> {
        let epoch = self.inventories[position].confirmed.as_ref()?.epoch;
        let fits = |pending: &Pending| {
            let state = pending.states.iter().find(|state| state.position == position)?;
            let contents = state.inventory.contents.advanced(base, &[]);
            Replica::apply(Some(&Replica { epoch, contents }), part).ok()
        };
        let mut newest_first = self.pending.iter().enumerate().rev();
        let (at, applied) = newest_first.find_map(|(at, pending)| Some((at, fits(pending)?)))?;
        self.include_until(at, position);
        Some(applied)
    }

    /// Marks the pending mutations that the confirmed state includes after this frame.
    fn include_covered(&mut self, frame: &Frame) {
        let changed = |position| frame.changed.iter().any(|(changed, _)| *changed == position);
        for pending in self.pending.iter_mut().filter(|pending| frame.covered.contains(&pending.key)) {
            for state in pending.states.iter_mut().filter(|state| changed(state.position)) {
                state.included = true;
            }
        }
        // The first frame of a resumed stream has no keys; the resulting digest shows which mutations it includes.
        let len = self.inventories.len();
        for (position, _) in frame.changed.iter().filter(|(position, _)| frame.caught_up && *position < len) {
            let digest = self.inventories[*position].confirmed.as_ref().map(|confirmed| confirmed.contents.digest());
            let leads_there = |pending: &Pending| {
                let mut states = pending.states.iter().filter(|state| state.position == *position);
                states.any(|state| Some(state.inventory.contents.digest()) == digest)
            };
            if let Some(at) = self.pending.iter().rposition(leads_there) {
                self.include_until(at, *position);
            }
        }
    }

    /// Marks the pending mutation at index `at` and all before it as included in the confirmed state of an inventory.
    fn include_until(&mut self, at: usize, position: usize) {
        let before = self.pending.iter_mut().take(at + 1).flat_map(|pending| &mut pending.states);
        before.filter(|state| state.position == position).for_each(|state| state.included = true);
    }

    /// Compares the confirmed state with a heartbeat, which has no version of an absent inventory. Returns the position
    /// if this reveals a desync.
    fn compare_heartbeat(&mut self, position: usize, heartbeat: &Frame) -> Option<usize> {
        let version = heartbeat.versions.iter().find(|(of, _)| *of == position).map(|(_, version)| version);
        self.forget_epochs(position, version.map(|version| version.epoch));
        let agrees = match version {
            Some(version) => self.agrees(position, version),
            None => self.inventories[position].confirmed.is_none(),
        };
        if agrees { None } else { self.mark_desynced(position) }
    }

    /// Marks epochs that only replies have named as past: when a heartbeat was sent, no frame was pending. `epoch` is
    /// `None` if the inventory is absent.
    fn forget_epochs(&mut self, position: usize, epoch: Option<Epoch>) {
        let of_this =
            self.pending.iter().flat_map(|pending| &pending.states).filter(|state| state.position == position);
        let others = of_this.filter_map(|state| state.replied.as_ref()).map(|version| version.epoch);
        let others: Vec<Epoch> = others.filter(|other| Some(*other) != epoch).collect();
        others.into_iter().for_each(|other| self.inventories[position].add_past_epoch(other));
    }

    /// Returns whether the confirmed state matches a heartbeat's mark, is newer than it, or can be advanced to it.
    fn agrees(&mut self, position: usize, mark: &Version) -> bool {
        let mirrored = &self.inventories[position];
        if mirrored.desynced {
            return true;
        }
        let Some(confirmed) = &mirrored.confirmed else { return false };
        if confirmed.epoch != mark.epoch {
            return false;
        }
        let have = confirmed.contents.revision();
        if have >= mark.revision {
            return have > mark.revision || confirmed.contents.digest() == mark.digest;
        }
        let matches_mark =
            |state: &PredictedState| state.position == position && state.inventory.contents.digest() == mark.digest;
        match self.pending.iter().rposition(|pending| pending.states.iter().any(matches_mark)) {
            Some(at) => self.confirm(at, mark),
            None => false,
        }
    }

    /// Confirms that the predicted state of the pending mutation at index `at` is the service's state `version`.
    fn confirm(&mut self, at: usize, version: &Version) -> bool {
        let Some(state) = self.pending[at].states.iter().find(|state| state.inventory.id == version.id) else {
            return false;
        };
        let (position, epoch) = (state.position, version.epoch);
        let contents = state.inventory.contents.advanced(version.revision, &[]);
        let mirrored = &mut self.inventories[position];
        let inventory = mirrored.inventory(Replica { epoch, contents });
        mirrored.replace(Some(inventory));
        self.include_until(at, position);
        true
    }

    /// Confirms the predicted states that replies prove, and removes completed mutations.
    fn settle(&mut self) {
        for at in 0..self.pending.len() {
            let proven = |state: &PredictedState| {
                let version = state.replied.as_ref()?;
                let is_news = self.inventories[state.position].is_older_than(version);
                (is_news && version.digest == state.inventory.contents.digest()).then(|| version.clone())
            };
            let versions: Vec<Version> = self.pending[at].states.iter().filter_map(proven).collect();
            for version in versions {
                self.confirm(at, &version);
            }
        }
        let inventories = &self.inventories;
        let waits = |state: &PredictedState| inventories[state.position].waits_for(state.replied.as_ref());
        self.pending.retain(|pending| pending.states.iter().any(waits));
        self.rebase();
    }

    /// Recomputes the view: applies the pending mutations in order to the confirmed state. Skips a mutation that the
    /// rules reject; it may apply again later.
    fn rebase(&mut self) {
        for mirrored in &mut self.inventories {
            mirrored.view.clone_from(&mirrored.confirmed);
        }
        for at in 0..self.pending.len() {
            let pending = &self.pending[at];
            let states: Vec<(usize, Arc<Inventory>)> = if pending.states.iter().any(|state| state.included) {
                // Some inventories of the mutation are confirmed. The others were predicted correctly, or the frame
                // would have included them too.
                let missing = pending.states.iter().filter(|state| !state.included);
                missing.map(|state| (state.position, state.inventory.clone())).collect()
            } else {
                let touched = self.apply(&pending.mutation).map(|effect| effect.touched).unwrap_or_default();
                let state = |touched: domain::Touched| Some((self.position(&touched.version.id)?, touched.state?));
                touched.into_iter().filter_map(state).collect()
            };
            for (position, state) in states {
                self.inventories[position].view = Some(state);
            }
        }
    }

    fn mark_desynced(&mut self, position: usize) -> Option<usize> {
        let known = std::mem::replace(&mut self.inventories[position].desynced, true);
        self.desyncs += u64::from(!known);
        (!known).then_some(position)
    }

    fn digests(&self) -> Vec<Option<Digest>> {
        self.inventories.iter().map(|mirrored| Some(mirrored.view.as_ref()?.contents.digest())).collect()
    }

    fn changed_since(&self, before: &[Option<Digest>]) -> Vec<usize> {
        let now = self.digests();
        (0..now.len()).filter(|position| now[*position] != before[*position]).collect()
    }
}

impl domain::InventoryLookup for Mirror {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        self.inventories.iter().find(|inventory| inventory.id == *id)?.view.clone()
    }
}

fn is_correction(part: &InventoryFrame) -> bool {
    matches!(part.body, FrameBody::Full { reason: FullReason::Correction, .. })
}
