//! A client that applies its own mutations at once, as a pure state machine: several inventories that it follows, what is
//! confirmed of each, and the mutations whose end is not known yet.
//!
//! What is confirmed is kept apart from what is predicted. The view is the one with the other applied on top, computed
//! anew whenever either changes, so a prediction that fails needs no undoing. The service holds that its reader has every
//! state that it predicted rightly and sends nothing for it; here the proof is the same: the digest. A snapshot of what
//! each pending mutation was predicted to lead to is kept until its reply, because a frame that builds upon it may come
//! before that reply does.

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

/// The most mutations that may be pending; each keeps a snapshot of the inventories that it touches.
pub const PENDING_MAX: usize = 256;
#[derive(Debug)]
pub struct Mirror {
    catalog: Arc<Catalog>,
    followed: Vec<MirroredInventory>,
    pending: VecDeque<Pending>,
    desyncs: u64,
}

#[derive(Debug)]
struct Pending {
    key: KeyTag,
    mutation: Mutation,
    after: Vec<After>,
}

/// A followed inventory that a pending mutation touches.
#[derive(Debug)]
struct After {
    position: usize,
    predicted: Arc<Inventory>,
    /// From the reply.
    replied: Option<Version>,
    /// What is confirmed has the effect in it, so the view must not apply it again. A hint: it decides only what is shown
    /// until the reply comes.
    included: bool,
}

/// What can be told of a mutation before the service has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prediction {
    /// The view shows it from now on. Send these digests with it.
    Made(Vec<(InventoryId, Digest)>),
    /// It touches an inventory that is not followed or not known for sure, or creates or deletes one. Nothing is pending.
    /// Send it without a session: then its effect is news, and comes soon.
    Impossible,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PredictError {
    /// The rules refuse it, given the view. Nothing is pending.
    Rejected(Rejection),
    /// [`PENDING_MAX`] mutations are pending, or this key is.
    Full,
}

/// What a call changed, as positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MirrorUpdate {
    /// The view has changed.
    pub changed: Vec<usize>,
    /// A full frame replaced what was believed wrongly.
    pub corrected: Vec<usize>,
    /// What is confirmed was found to be wrong; report it, and a full frame comes.
    pub desyncs: Vec<usize>,
}

impl Mirror {
    /// Follows `ids`, in the order of the stream. `catalog` is what predictions go by; if it differs from the service's,
    /// some of them fail and are corrected.
    pub fn new(ids: Vec<InventoryId>, catalog: Arc<Catalog>) -> Self {
        let followed = ids.into_iter().map(MirroredInventory::new).collect();
        Self { catalog, followed, pending: VecDeque::new(), desyncs: 0 }
    }

    pub fn position(&self, id: &InventoryId) -> Option<usize> {
        self.followed.iter().position(|followed| followed.id == *id)
    }

    /// The inventories that are followed, in the order of the stream.
    pub fn ids(&self) -> Vec<InventoryId> {
        self.followed.iter().map(|followed| followed.id.clone()).collect()
    }

    /// What is confirmed with all that is pending on top; none before the first frame and while it is absent. Its revision
    /// counts what is pending, so it is the service's only while nothing is.
    pub fn view(&self, position: usize) -> Option<&Contents> {
        self.followed.get(position)?.view.as_ref().map(|inventory| &inventory.contents)
    }

    /// The newest state that the service is known to have had.
    pub fn confirmed(&self, position: usize) -> Option<&Inventory> {
        self.followed.get(position)?.confirmed.as_deref()
    }

    /// Whether the stream has told that there is no such inventory, or none that this reader may read.
    pub fn is_absent(&self, position: usize) -> bool {
        self.followed.get(position).is_some_and(|followed| followed.absent)
    }

    /// What deltas of the stream are counted from.
    pub fn last_sent(&self, position: usize) -> Option<Revision> {
        Some(self.followed.get(position)?.last_sent)
    }

    pub fn is_doubted(&self, position: usize) -> bool {
        self.followed.get(position).is_some_and(|followed| followed.doubted)
    }

    /// How many mutations wait for their reply, or for the frame that their reply speaks of.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// How often what was confirmed turned out to be wrong. A prediction that failed is no desync.
    pub fn desyncs(&self) -> u64 {
        self.desyncs
    }

    /// Applies a mutation to the view at once. `key` is the tag of the idempotency key that it will be sent with.
    pub fn predict(&mut self, key: KeyTag, mutation: Mutation) -> Result<Prediction, PredictError> {
        if self.pending.len() >= PENDING_MAX || self.pending.iter().any(|pending| pending.key == key) {
            return Err(PredictError::Full);
        }
        if !self.can_predict(&mutation) {
            return Ok(Prediction::Impossible);
        }
        let effect = self.apply(&mutation).map_err(PredictError::Rejected)?;
        let mut after = Vec::with_capacity(effect.touched.len());
        for touched in effect.touched {
            let (Some(position), Some(predicted)) = (self.position(&touched.version.id), touched.state) else {
                continue;
            };
            self.followed[position].view = Some(predicted.clone());
            after.push(After { position, predicted, replied: None, included: false });
        }
        if after.is_empty() {
            return Ok(Prediction::Impossible);
        }
        let digest = |after: &After| (after.predicted.id.clone(), after.predicted.contents.digest());
        let digests = after.iter().map(digest).collect();
        self.pending.push_back(Pending { key, mutation, after });
        Ok(Prediction::Made(digests))
    }

    /// A message of the stream.
    pub fn handle_frame(&mut self, frame: &Frame) -> MirrorUpdate {
        let (before, len) = (self.digests(), self.followed.len());
        let mut shown = MirrorUpdate::default();
        for position in &frame.absent {
            if let Some(followed) = self.followed.get_mut(*position) {
                followed.handle_absent();
            }
        }
        for (position, part) in frame.changed.iter().filter(|(position, _)| *position < len) {
            match self.handle_part(*position, part) {
                Ok(()) if is_correction(part) => shown.corrected.push(*position),
                Ok(()) => {}
                Err(_) => shown.desyncs.extend(self.doubt(*position)),
            }
        }
        self.include_covered(frame);
        if frame.is_heartbeat() {
            (0..len).for_each(|position| shown.desyncs.extend(self.compare(position, frame)));
        }
        self.settle();
        shown.changed = self.changed_since(&before);
        shown
    }

    /// What is confirmed cannot be trusted: a part of a frame makes no sense, or the caller knows better.
    pub fn handle_doubt(&mut self, position: usize) -> MirrorUpdate {
        let desyncs = if position < self.followed.len() { Vec::from_iter(self.doubt(position)) } else { Vec::new() };
        MirrorUpdate { desyncs, ..MirrorUpdate::default() }
    }

    /// The mutation was applied, now or, if the reply is a replayed one, by an earlier try. `versions` are the reply's.
    pub fn handle_reply(&mut self, key: KeyTag, versions: &[Version]) -> MirrorUpdate {
        let before = self.digests();
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.key == key) {
            pending.after.retain_mut(|after| {
                after.replied = versions.iter().find(|version| version.id == after.predicted.id).cloned();
                after.replied.is_some()
            });
        }
        self.settle();
        MirrorUpdate { changed: self.changed_since(&before), ..MirrorUpdate::default() }
    }

    /// The mutation was refused, or given up. The view falls back by itself.
    ///
    /// If it may have been applied all the same, open a new stream afterwards: the present one may count on a state that
    /// is not known here any more.
    pub fn handle_refusal(&mut self, key: KeyTag) -> MirrorUpdate {
        let before = self.digests();
        self.pending.retain(|pending| pending.key != key);
        self.rebase();
        MirrorUpdate { changed: self.changed_since(&before), ..MirrorUpdate::default() }
    }

    /// A new stream is being opened: the cursors to ask for. Frames of an older one must not be handed in any more.
    pub fn handle_connecting(&mut self) -> Vec<Option<Cursor>> {
        // The new stream knows nothing of what was predicted before it, so nothing has to be kept for it.
        let followed = &self.followed;
        let early = |after: &After| followed[after.position].is_of_another_epoch(after.replied.as_ref());
        self.pending.retain(|pending| !pending.after.iter().any(early));
        let cursor = |followed: &mut MirroredInventory| {
            let cursor = followed.confirmed.as_deref().filter(|_| !followed.doubted).map(Cursor::of);
            followed.last_sent = cursor.map_or(Revision(0), |cursor| cursor.revision);
            cursor
        };
        let cursors = self.followed.iter_mut().map(cursor).collect();
        self.rebase();
        cursors
    }

    fn can_predict(&self, mutation: &Mutation) -> bool {
        let lives = |operation: &Operation| matches!(operation, Operation::Create { .. } | Operation::Delete { .. });
        let is_known = |id: &InventoryId| {
            let followed = self.position(id).map(|position| &self.followed[position]);
            followed.is_some_and(|followed| followed.view.is_some() && !followed.doubted)
        };
        !mutation.operations.iter().any(lives) && mutation.inventories().all(is_known)
    }

    fn apply(&self, mutation: &Mutation) -> Result<Effect, Rejection> {
        // Nothing is created here, so the epoch is never used.
        domain::apply(mutation, &self.catalog, self, &mut || Epoch::new(1).expect("1 is not 0"))
    }

    fn handle_part(&mut self, position: usize, part: &InventoryFrame) -> Result<(), Desync> {
        let followed = &mut self.followed[position];
        match part.body {
            FrameBody::Full { epoch, revision, reason, .. } => {
                followed.last_sent = revision;
                // A reply has overtaken the frame. But who is ahead of the service has to come back.
                if reason != FullReason::FromTheFuture && followed.is_past(epoch, revision) {
                    return Ok(());
                }
                let inventory = followed.inventory(Replica::apply(None, part)?);
                followed.replace(Some(inventory));
                Ok(())
            }
            FrameBody::Delta { base, revision, .. } => {
                followed.last_sent = revision;
                let Some(confirmed) = followed.confirmed.clone() else { return Err(Desync::NoBase) };
                let of_confirmed = if followed.doubted {
                    Err(Desync::NoBase)
                } else {
                    Replica::apply(Some(&replica(&confirmed)), part)
                };
                let applied = of_confirmed.or_else(|desync| self.on_a_snapshot(position, base, part).ok_or(desync))?;
                let followed = &mut self.followed[position];
                let inventory = followed.inventory(applied);
                followed.replace(Some(inventory));
                Ok(())
            }
        }
    }

    /// A delta that builds upon a state which was predicted rightly, and whose reply has not come yet.
    fn on_a_snapshot(&mut self, position: usize, base: Revision, part: &InventoryFrame) -> Option<Replica> {
        let epoch = self.followed[position].confirmed.as_ref()?.epoch;
        let fits = |pending: &Pending| {
            let after = pending.after.iter().find(|after| after.position == position)?;
            let contents = after.predicted.contents.advanced(base, &[]);
            Replica::apply(Some(&Replica { epoch, contents }), part).ok()
        };
        let mut newest_first = self.pending.iter().enumerate().rev();
        let (at, applied) = newest_first.find_map(|(at, pending)| Some((at, fits(pending)?)))?;
        self.include_until(at, position);
        Some(applied)
    }

    /// What the frame takes its reader past is in what is confirmed now.
    fn include_covered(&mut self, frame: &Frame) {
        let changed = |position| frame.changed.iter().any(|(changed, _)| *changed == position);
        for pending in self.pending.iter_mut().filter(|pending| frame.covered.contains(&pending.key)) {
            for after in pending.after.iter_mut().filter(|after| changed(after.position)) {
                after.included = true;
            }
        }
        // The first frame of a resumed stream names no keys: what it leads to tells what is in it.
        let len = self.followed.len();
        for (position, _) in frame.changed.iter().filter(|(position, _)| frame.caught_up && *position < len) {
            let digest = self.followed[*position].confirmed.as_ref().map(|confirmed| confirmed.contents.digest());
            let leads_there = |pending: &Pending| {
                let mut after = pending.after.iter().filter(|after| after.position == *position);
                after.any(|after| Some(after.predicted.contents.digest()) == digest)
            };
            if let Some(at) = self.pending.iter().rposition(leads_there) {
                self.include_until(at, *position);
            }
        }
    }

    /// What is confirmed is the snapshot of the pending mutation at `at`, which has all before it in it.
    fn include_until(&mut self, at: usize, position: usize) {
        let before = self.pending.iter_mut().take(at + 1).flat_map(|pending| &mut pending.after);
        before.filter(|after| after.position == position).for_each(|after| after.included = true);
    }

    /// Whether a heartbeat shows that what is confirmed is wrong. It has no version of an inventory that is absent.
    fn compare(&mut self, position: usize, heartbeat: &Frame) -> Option<usize> {
        let version = heartbeat.versions.iter().find(|(of, _)| *of == position).map(|(_, version)| version);
        self.forget_epochs(position, version.map(|version| version.epoch));
        let agrees = match version {
            Some(version) => self.agrees(position, version),
            None => self.followed[position].confirmed.is_none(),
        };
        if agrees { None } else { self.doubt(position) }
    }

    /// Nothing was on its way when a heartbeat was sent: an epoch that only a reply spoke of is over. Without an epoch, the
    /// inventory is absent.
    fn forget_epochs(&mut self, position: usize, epoch: Option<Epoch>) {
        let of_this = self.pending.iter().flat_map(|pending| &pending.after).filter(|after| after.position == position);
        let others = of_this.filter_map(|after| after.replied.as_ref()).map(|version| version.epoch);
        let others: Vec<Epoch> = others.filter(|other| Some(*other) != epoch).collect();
        others.into_iter().for_each(|other| self.followed[position].leave(other));
    }

    /// Whether a heartbeat's mark is what is confirmed, or is now, or lies behind it.
    fn agrees(&mut self, position: usize, mark: &Version) -> bool {
        let followed = &self.followed[position];
        if followed.doubted {
            return true;
        }
        let Some(confirmed) = &followed.confirmed else { return false };
        if confirmed.epoch != mark.epoch {
            return false;
        }
        let have = confirmed.contents.revision();
        if have >= mark.revision {
            return have > mark.revision || confirmed.contents.digest() == mark.digest;
        }
        let is_it = |after: &After| after.position == position && after.predicted.contents.digest() == mark.digest;
        match self.pending.iter().rposition(|pending| pending.after.iter().any(is_it)) {
            Some(at) => self.confirm(at, mark),
            None => false,
        }
    }

    /// The snapshot of the pending mutation at `at` is the state that the service calls `version`.
    fn confirm(&mut self, at: usize, version: &Version) -> bool {
        let Some(after) = self.pending[at].after.iter().find(|after| after.predicted.id == version.id) else {
            return false;
        };
        let (position, epoch) = (after.position, version.epoch);
        let contents = after.predicted.contents.advanced(version.revision, &[]);
        let followed = &mut self.followed[position];
        let inventory = followed.inventory(Replica { epoch, contents });
        followed.replace(Some(inventory));
        self.include_until(at, position);
        true
    }

    /// Takes from the replies what they prove, and lets go of what has its end.
    fn settle(&mut self) {
        for at in 0..self.pending.len() {
            let proven = |after: &After| {
                let version = after.replied.as_ref()?;
                let is_news = self.followed[after.position].has_use_for(version);
                (is_news && version.digest == after.predicted.contents.digest()).then(|| version.clone())
            };
            let versions: Vec<Version> = self.pending[at].after.iter().filter_map(proven).collect();
            for version in versions {
                self.confirm(at, &version);
            }
        }
        let followed = &self.followed;
        let waits = |after: &After| followed[after.position].waits_for(after.replied.as_ref());
        self.pending.retain(|pending| pending.after.iter().any(waits));
        self.rebase();
    }

    /// The view anew: pending mutations in order upon what is confirmed. One that does not apply is left out, and may
    /// apply again later.
    fn rebase(&mut self) {
        for followed in &mut self.followed {
            followed.view.clone_from(&followed.confirmed);
        }
        for at in 0..self.pending.len() {
            let pending = &self.pending[at];
            let states: Vec<(usize, Arc<Inventory>)> = if pending.after.iter().any(|after| after.included) {
                // Half of it is there. The other half was right, or the frame would have brought it too.
                let missing = pending.after.iter().filter(|after| !after.included);
                missing.map(|after| (after.position, after.predicted.clone())).collect()
            } else {
                let touched = self.apply(&pending.mutation).map(|effect| effect.touched).unwrap_or_default();
                let state = |touched: domain::Touched| Some((self.position(&touched.version.id)?, touched.state?));
                touched.into_iter().filter_map(state).collect()
            };
            for (position, state) in states {
                self.followed[position].view = Some(state);
            }
        }
    }

    fn doubt(&mut self, position: usize) -> Option<usize> {
        let known = std::mem::replace(&mut self.followed[position].doubted, true);
        self.desyncs += u64::from(!known);
        (!known).then_some(position)
    }

    fn digests(&self) -> Vec<Option<Digest>> {
        self.followed.iter().map(|followed| Some(followed.view.as_ref()?.contents.digest())).collect()
    }

    fn changed_since(&self, before: &[Option<Digest>]) -> Vec<usize> {
        let now = self.digests();
        (0..now.len()).filter(|position| now[*position] != before[*position]).collect()
    }
}

impl domain::InventoryLookup for Mirror {
    fn inventory(&self, id: &InventoryId) -> Option<Arc<Inventory>> {
        self.followed.iter().find(|followed| followed.id == *id)?.view.clone()
    }
}

fn is_correction(part: &InventoryFrame) -> bool {
    matches!(part.body, FrameBody::Full { reason: FullReason::Correction, .. })
}
