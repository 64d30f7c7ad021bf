//! What is published of an inventory: its newest durable state, and who changed it lately.
//!
//! Whose changes a reader is missing is told by two stamps, exactly and for any session: who made the newest revision, and
//! the newest revision that somebody else made. The notes beside them are a short memory for streams that are open: they
//! may be lost without harm, and their loss is noticed.

use super::frame::Cursor;
use crate::domain::{
    Caller, Digest, Effect, Epoch, Inventory, InventoryId, KeyTag, Mutation, Operation, Revision, SessionId, Touched,
};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Notes kept of one inventory. A stream that has missed some gets a full frame where that could matter.
pub const RECORDS_MAX: usize = 64;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// None: there is no such inventory (any more).
    pub inventory: Option<Arc<Inventory>>,
    /// The session that made the newest revision; none if it gave none, or if that is not known.
    author: Option<SessionId>,
    /// The newest revision that was made by another than `author`.
    others_at: u64,
    records: VecDeque<Arc<ChangeRecord>>,
    /// How many notes there ever were.
    records_total: u64,
    /// How many of them are of earlier epochs than the newest.
    records_before_epoch: u64,
    superseded: Superseded,
    traced: Option<TracedChange>,
}

/// When a state was followed by another one. A reader that keeps this of the state that it has can tell since when it is
/// behind, however long it did not look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Superseded(Arc<OnceLock<Instant>>);

impl Superseded {
    /// None: it is the newest.
    pub fn at(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

/// The step of a trace that something is the consequence of: W3C trace context, as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
}

/// A change that is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedChange {
    /// When it was published.
    pub at: Instant,
    pub trace: TraceContext,
}

/// What one mutation meant for one inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRecord {
    pub session: Option<SessionId>,
    pub epoch: Epoch,
    /// Afterwards.
    pub revision: Revision,
    pub outcome: PredictionOutcome,
    pub key: KeyTag,
    pub caller: Caller,
    pub kind: ChangeKind,
    pub reason: Arc<str>,
}

/// How a mutation ended, as seen by the session that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionOutcome {
    /// Committed; the session had predicted nothing.
    Unpredicted,
    /// Committed, and the session has the whole state already.
    Confirmed,
    /// Committed, but the session expected something else.
    Mispredicted,
    /// Refused although the session counted on it, or the session reported a desync: it has to be corrected.
    Correction,
}

/// What kind of change it was.
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
    /// No change: a reader is wrong and will be told so.
    Correction,
}

impl ChangeKind {
    pub fn of<I, R>(mutation: &Mutation<I, R>) -> Self {
        match mutation.operations.as_slice() {
            [Operation::Create { .. }] => Self::Create,
            [Operation::Delete { .. }] => Self::Delete,
            [Operation::Add { .. }] => Self::Add,
            [Operation::Remove { .. }] => Self::Remove,
            [Operation::Move { .. }] => Self::Move,
            [Operation::Drop { .. }] => Self::Drop,
            [Operation::Craft { .. }] => Self::Craft,
            [Operation::Transfer { .. }] => Self::Transfer,
            [Operation::Set { .. }] => Self::Set,
            [Operation::Rearrange { .. }] => Self::Rearrange,
            [] | [_, ..] => Self::Transact,
        }
    }
}

/// A mutation as streams see it: who asked for it, and what that session expects of it.
#[derive(Debug, Clone, Copy)]
pub struct MutationContext<'a> {
    pub session: Option<&'a SessionId>,
    /// What digests are to be afterwards; empty: nothing was predicted.
    pub predicted: &'a [(InventoryId, Digest)],
    pub key: KeyTag,
    pub caller: &'a Caller,
    pub kind: ChangeKind,
    pub reason: &'a Arc<str>,
}

impl MutationContext<'_> {
    /// Whether digests were predicted and all are right. `current` tells those of inventories that were not touched.
    pub fn is_confirmed(&self, effect: &Effect, current: impl Fn(&InventoryId) -> Option<Digest>) -> bool {
        let is_right = |(id, digest): &(InventoryId, Digest)| {
            let touched = effect.touched.iter().find(|touched| touched.version.id == *id);
            touched.map(|touched| touched.version.digest).or_else(|| current(id)) == Some(*digest)
        };
        !self.predicted.is_empty() && self.predicted.iter().all(is_right)
    }

    /// Inventories of which digests were predicted although the mutation did not touch them, so that no note tells of them.
    pub fn untouched<'a>(&'a self, touched: &'a [Touched]) -> impl Iterator<Item = &'a InventoryId> {
        let ids = self.predicted.iter().map(|(id, _)| id);
        ids.filter(move |id| touched.iter().all(|touched| touched.version.id != **id))
    }

    /// What is records_total of one inventory that the mutation touched; none if no stream has to look at it.
    pub fn record(&self, touched: &Touched, confirmed: bool) -> Option<ChangeRecord> {
        let predicted = self.predicted.iter().any(|(id, _)| *id == touched.version.id);
        let outcome = match (predicted, confirmed) {
            (false, _) => PredictionOutcome::Unpredicted,
            (true, true) => PredictionOutcome::Confirmed,
            (true, false) => PredictionOutcome::Mispredicted,
        };
        let is_relevant = !touched.is_transient() && (predicted || !touched.changes.is_empty());
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
    /// What the session believes of an inventory is not so.
    pub fn correction(session: SessionId, caller: Caller, inventory: &Inventory) -> Self {
        Self {
            session: Some(session),
            epoch: inventory.epoch,
            revision: inventory.contents.revision(),
            outcome: PredictionOutcome::Correction,
            // It covers no mutation.
            key: KeyTag(0),
            caller,
            kind: ChangeKind::Correction,
            reason: "".into(),
        }
    }
}

impl Published {
    /// Of a state of which nothing else is known: to every session it is news.
    pub fn new(inventory: Option<Arc<Inventory>>) -> Self {
        Self { inventory, ..Self::default() }
    }

    /// What is published next: the state after the mutations that the notes tell of, in order.
    #[must_use]
    pub fn followed_by(
        &self,
        inventory: Option<Arc<Inventory>>,
        records: impl IntoIterator<Item = ChangeRecord>,
    ) -> Self {
        let mut next = Self { inventory, ..self.clone() };
        let mut newest = self.cursor();
        if next.cursor() != newest {
            next.superseded = Superseded::default();
        }
        for record in records {
            // What changed nothing made no revision, and has no part in whose revision it is.
            let at = Cursor { epoch: record.epoch, revision: record.revision };
            let made = record.outcome != PredictionOutcome::Correction && newest.replace(at) != Some(at);
            next.record(record, made);
        }
        next
    }

    /// The same, as published at a moment: whoever has the state before can tell now since when it is behind. `cause` is
    /// what the change is traced by, if it is.
    #[must_use]
    pub fn published(mut self, before: &Self, at: Instant, trace: Option<TraceContext>) -> Self {
        if self.cursor() != before.cursor() {
            // It is set once: a state is followed by one other.
            let _ = before.superseded.0.set(at);
            self.traced = trace.map(|trace| TracedChange { at, trace }).or(self.traced);
        }
        self
    }

    pub fn superseded(&self) -> &Superseded {
        &self.superseded
    }

    /// The newest change that is traced.
    pub fn traced(&self) -> Option<TracedChange> {
        self.traced
    }

    fn cursor(&self) -> Option<Cursor> {
        self.inventory.as_deref().map(Cursor::of)
    }

    fn record(&mut self, record: ChangeRecord, made: bool) {
        if made && (record.session.is_none() || record.session != self.author) {
            self.others_at = record.revision.0.saturating_sub(1);
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

    /// The newest revision that the session did not make itself.
    pub fn news_at(&self, session: Option<&SessionId>) -> Revision {
        match (&self.inventory, &self.author, session) {
            (Some(_), Some(author), Some(session)) if author == session => Revision(self.others_at),
            (Some(inventory), _, _) => inventory.contents.revision(),
            (None, _, _) => Revision(0),
        }
    }

    /// How many notes there ever were; a reader that has seen them all is at this number.
    pub fn records_total(&self) -> u64 {
        self.records_total
    }

    /// How many of the notes were made before the newest note's epoch began.
    pub fn records_before_epoch(&self) -> u64 {
        self.records_before_epoch
    }

    /// The notes after the first `seen`, and how many of them are lost.
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
    fn a_mutation_that_changed_nothing_does_not_take_over_the_revision_of_another() {
        let [ann, bob] = ["ann", "bob"].map(|name| SessionId::new(name).unwrap());
        let of_ann = Published::new(Some(inventory(5))).followed_by(Some(inventory(6)), [record(&ann, 6)]);
        let then = of_ann.followed_by(Some(inventory(6)), [record(&bob, 6)]);
        assert_eq!(then.news_at(Some(&bob)), Revision(6), "to bob it is news");
        assert_eq!(then.news_at(Some(&ann)), Revision(5), "to ann it is an echo");
    }
}
