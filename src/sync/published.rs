//! The published state of an inventory: its newest durable state and its recent changes.
//!
//! Two values tell exactly, for any session, whether a reader is missing changes by others: the session that made the
//! newest revision, and the newest revision that another session made. The change records beside them are a bounded
//! history for open streams. Losing records is safe, and streams detect the loss.

use super::derived::DerivedValues;
use super::frame::{Cursor, FrameBody};
use crate::domain::{
    Caller, Digest, Effect, Epoch, Inventory, InventoryId, KeyTag, Mutation, Operation, PredictionOutcome, Revision,
    SessionId, TouchedInventory,
};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Maximum number of change records kept for one inventory. A stream that misses records that could matter gets a full
/// frame.
const RECORDS_MAX: usize = 64;

/// The newest durable state of an inventory, with its recent change records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishedState {
    /// `None` if the inventory does not exist or was deleted.
    pub inventory: Option<Arc<Inventory>>,
    /// The session that made the newest revision; `None` if the mutation had no session or the session is unknown.
    author: Option<SessionId>,
    /// The newest revision that another session than `author` made; 0 if there is none.
    others_revision: u64,
    records: VecDeque<Arc<ChangeRecord>>,
    /// Number of records ever added.
    records_total: u64,
    /// Number of records that were added before the newest record's epoch.
    records_before_epoch: u64,
    superseded_at: SupersededAt,
    /// Boxed, because few changes are traced.
    traced: Option<Box<TracedChange>>,
    derived: DerivedValues,
}

/// The time at which a state was replaced by a newer one. A reader that keeps this value of its state knows since when
/// it is stale, no matter when it reads again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SupersededAt(Arc<OnceLock<Instant>>);

impl SupersededAt {
    /// Returns when the state was replaced; `None` if it is still the newest.
    pub fn get(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

/// The parent span of a change: W3C trace context, as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
}

/// A change that is part of a sampled trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedChange {
    /// When the change was published.
    pub at: Instant,
    pub trace: TraceContext,
}

/// The effect of one mutation on one inventory, as recorded for open streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRecord {
    pub session: Option<SessionId>,
    pub epoch: Epoch,
    /// The revision after the mutation.
    pub revision: Revision,
    pub outcome: PredictionOutcome,
    pub key: KeyTag,
    pub caller: Caller,
    pub kind: ChangeKind,
    pub reason: Arc<str>,
}

/// The kind of change that a mutation makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Create,
    Delete,
    Add,
    Remove,
    Move,
    Drop,
    Craft,
    Transfer,
    Set,
    Rearrange,
    /// Several operations in one mutation.
    Transact,
    /// No change: a reader's state is wrong and will be corrected.
    Correction,
}

impl ChangeKind {
    pub fn of<I, R>(mutation: &Mutation<I, R>) -> Self {
        // One `match` per operation, so that a new operation does not compile without its kind.
        let [operation] = mutation.operations.as_slice() else { return Self::Transact };
        match operation {
            Operation::Create { .. } => Self::Create,
            Operation::Delete { .. } => Self::Delete,
            Operation::Add { .. } => Self::Add,
            Operation::Remove { .. } => Self::Remove,
            Operation::Move { .. } => Self::Move,
            Operation::Drop { .. } => Self::Drop,
            Operation::Craft { .. } => Self::Craft,
            Operation::Transfer { .. } => Self::Transfer,
            Operation::Set { .. } => Self::Set,
            Operation::Rearrange { .. } => Self::Rearrange,
        }
    }
}

/// The context of a mutation that streams need: its session, caller, predicted digests and reason.
#[derive(Debug, Clone, Copy)]
pub struct MutationContext<'a> {
    pub session: Option<&'a SessionId>,
    /// The digests that the session expects after the mutation; empty if it predicted nothing.
    pub predicted: &'a [(InventoryId, Digest)],
    pub key: KeyTag,
    pub caller: &'a Caller,
    pub kind: ChangeKind,
    pub reason: &'a Arc<str>,
}

impl MutationContext<'_> {
    /// Returns whether the session predicted digests and all of them match. `current` returns the digests of
    /// inventories that the mutation did not touch.
    pub fn is_confirmed(&self, effect: &Effect, current: impl Fn(&InventoryId) -> Option<Digest>) -> bool {
        let is_right = |(id, digest): &(InventoryId, Digest)| {
            let touched = effect.touched.iter().find(|touched| touched.version.id == *id);
            touched.map(|touched| touched.version.digest).or_else(|| current(id)) == Some(*digest)
        };
        !self.predicted.is_empty() && self.predicted.iter().all(is_right)
    }

    /// Returns the inventories that the session predicted but the mutation did not touch; they get no change record.
    pub fn untouched_predictions<'a>(
        &'a self,
        touched: &'a [TouchedInventory],
    ) -> impl Iterator<Item = &'a InventoryId> {
        let ids = self.predicted.iter().map(|(id, _)| id);
        ids.filter(move |id| touched.iter().all(|touched| touched.version.id != **id))
    }

    /// Returns the change record of an inventory that the mutation touched, or `None` if it is irrelevant to all
    /// streams.
    pub fn record(&self, touched: &TouchedInventory, confirmed: bool) -> Option<ChangeRecord> {
        let predicted = self.predicted.iter().any(|(id, _)| *id == touched.version.id);
        let outcome = match (predicted, confirmed) {
            (false, _) => PredictionOutcome::Unpredicted,
            (true, true) => PredictionOutcome::Confirmed,
            (true, false) => PredictionOutcome::Mispredicted,
        };
        let is_relevant = !touched.is_transient() && (predicted || touched.is_changed());
        is_relevant.then(|| ChangeRecord {
            session: self.session.cloned(),
            epoch: touched.version.epoch,
            revision: touched.version.revision,
            outcome,
            key: self.key,
            caller: self.caller.clone(),
            kind: self.kind,
            reason: self.reason.clone(),
        })
    }
}

impl ChangeRecord {
    /// Returns a record that makes the session's streams send a full state.
    pub fn correction(session: SessionId, caller: Caller, inventory: &Inventory) -> Self {
        Self {
            session: Some(session),
            epoch: inventory.epoch,
            revision: inventory.contents.revision(),
            outcome: PredictionOutcome::Correction,
            // A correction belongs to no mutation.
            key: KeyTag(0),
            caller,
            kind: ChangeKind::Correction,
            reason: "".into(),
        }
    }
}

impl PublishedState {
    /// Publishes a state without history; for every session it is news.
    pub fn new(inventory: Option<Arc<Inventory>>) -> Self {
        Self { inventory, ..Self::default() }
    }

    /// Returns the next published state, after the mutations of `records`, in order.
    #[must_use]
    pub fn followed_by(
        &self,
        inventory: Option<Arc<Inventory>>,
        records: impl IntoIterator<Item = ChangeRecord>,
    ) -> Self {
        let mut next = Self { inventory, ..self.clone() };
        let mut newest = self.cursor();
        if next.cursor() != newest {
            next.superseded_at = SupersededAt::default();
        }
        for record in records {
            // A mutation that changed nothing made no revision, so it does not affect who made the newest one.
            let at = Cursor { epoch: record.epoch, revision: record.revision };
            let made_revision = record.outcome != PredictionOutcome::Correction && newest.replace(at) != Some(at);
            next.push_record(record, made_revision);
        }
        next
    }

    /// Marks `before` as replaced at `at`, so that readers with the earlier state know since when they are stale.
    /// `trace` is the trace context of the change, if it is traced.
    #[must_use]
    pub fn superseding(mut self, before: &Self, at: Instant, trace: Option<TraceContext>) -> Self {
        if self.cursor() != before.cursor() {
            // A state is replaced only once, so the cell is empty here.
            let _ = before.superseded_at.0.set(at);
            self.traced = trace.map(|trace| Box::new(TracedChange { at, trace })).or(self.traced);
        }
        self
    }

    pub fn superseded_at(&self) -> &SupersededAt {
        &self.superseded_at
    }

    /// Returns the newest traced change.
    pub fn traced(&self) -> Option<TracedChange> {
        self.traced.as_deref().copied()
    }

    /// Returns the size of the full state, or `None` if the inventory does not exist. `compute` is called at most once
    /// for each state.
    pub fn full_bytes(&self, compute: impl FnOnce(&Inventory) -> usize) -> Option<usize> {
        let inventory = self.inventory.as_deref()?;
        Some(self.derived.full_bytes(|| compute(inventory)))
    }

    /// Returns the encoding of the frame of this state with this body, if it is shared. A frame is encoded once for all
    /// streams that need it, beginning with the second one; `None` means that the stream encodes the frame itself.
    pub fn shared_encoding(&self, body: FrameBody, encode: impl FnOnce() -> Arc<[u8]>) -> Option<Arc<[u8]>> {
        self.derived.encoded(body, encode)
    }

    fn cursor(&self) -> Option<Cursor> {
        self.inventory.as_deref().map(Cursor::of)
    }

    fn push_record(&mut self, record: ChangeRecord, made_revision: bool) {
        if made_revision && (record.session.is_none() || record.session != self.author) {
            self.others_revision = record.revision.0.saturating_sub(1);
            self.author.clone_from(&record.session);
        }
        if self.records.back().is_some_and(|newest| newest.epoch != record.epoch) {
            self.records_before_epoch = self.records_total;
        }
        if self.records.len() == RECORDS_MAX {
            self.records.pop_front();
        }
        self.records.push_back(Arc::new(record));
        self.records_total += 1;
    }

    /// Returns the newest revision that the session did not make.
    pub fn news_revision(&self, session: Option<&SessionId>) -> Revision {
        match (&self.inventory, &self.author, session) {
            (Some(_), Some(author), Some(session)) if author == session => Revision(self.others_revision),
            (Some(inventory), _, _) => inventory.contents.revision(),
            (None, _, _) => Revision(0),
        }
    }

    /// Returns the number of records ever added; a reader that has read all records is at this number.
    pub fn records_total(&self) -> u64 {
        self.records_total
    }

    /// Returns the number of records that were added before the newest record's epoch.
    pub fn records_before_epoch(&self) -> u64 {
        self.records_before_epoch
    }

    /// Returns the records after the first `seen`, and how many of those are no longer kept.
    pub fn records_since(&self, seen: u64) -> (u64, impl Iterator<Item = &Arc<ChangeRecord>>) {
        let first = self.records_total - self.records.len() as u64;
        let skip = seen.saturating_sub(first) as usize;
        (first.saturating_sub(seen), self.records.iter().skip(skip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Contents, LayoutId};

    fn inventory(revision: u64) -> Arc<Inventory> {
        Arc::new(Inventory {
            id: InventoryId::new("chest").unwrap(),
            owner: None,
            layout: LayoutId::new("chest").unwrap(),
            epoch: Epoch::new(1).unwrap(),
            contents: Contents::new(3, Revision(revision), &[]),
        })
    }

    fn record(session: &SessionId, revision: u64) -> ChangeRecord {
        let caller = Caller::new("test").unwrap();
        let record = ChangeRecord::correction(session.clone(), caller, &inventory(revision));
        ChangeRecord { outcome: PredictionOutcome::Confirmed, ..record }
    }

    #[test]
    fn a_mutation_without_changes_does_not_take_over_the_revision_of_another_session() {
        let [ann, bob] = ["ann", "bob"].map(|name| SessionId::new(name).unwrap());
        let of_ann = PublishedState::new(Some(inventory(5))).followed_by(Some(inventory(6)), [record(&ann, 6)]);
        let then = of_ann.followed_by(Some(inventory(6)), [record(&bob, 6)]);
        assert_eq!(then.news_revision(Some(&bob)), Revision(6), "news for bob");
        assert_eq!(then.news_revision(Some(&ann)), Revision(5), "an echo for ann");
    }
}
