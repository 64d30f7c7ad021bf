//! One watch of a subscription: tracks which state of one inventory the reader has.

use super::frame::{Cursor, FrameBody, FullReason, InventoryFrame, frame_since, full_frame};
use super::pacer::SyncTrigger;
use super::published::{ChangeRecord, PublishedState, SupersededAt};
use super::subscription::SyncSettings;
use crate::domain::{Inventory, PredictionOutcome, Revision, SessionId};
use std::sync::Arc;
use std::time::Instant;

/// Tracks which state of one inventory the reader has.
#[derive(Debug)]
pub(super) struct WatchState {
    cursor: WatchCursor,
    /// The revision that the stream last sent; deltas on the wire are relative to it.
    last_sent: Revision,
    /// Number of the inventory's change records that were read.
    records_read: u64,
    /// Whether the reader's state may be wrong.
    needs_correction: bool,
    /// Number of revisions since the last call of [`Self::take_revisions_passed`].
    revisions_passed: u64,
    /// The newest revision that `revisions_passed` includes.
    revisions_counted_through: Option<Cursor>,
    /// When the newest state that the reader completely has was replaced.
    superseded_at: SupersededAt,
}

/// The state that the reader has of one inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchCursor {
    /// The reader has no state, and no frame has reported that the inventory is absent.
    None,
    At(Cursor),
    /// The reader knows that the inventory is absent.
    Absent,
}

/// The change of one inventory to send in a frame.
#[derive(Debug)]
pub(super) enum WatchChange {
    Absent,
    Changed(InventoryFrame),
}

impl WatchState {
    pub fn new(resume: Option<Cursor>) -> Self {
        let cursor = resume.map_or(WatchCursor::None, WatchCursor::At);
        Self::at(cursor, resume.map_or(Revision(0), |cursor| cursor.revision))
    }

    /// Creates the watch of a reader that already has `state`, or knows that the inventory is absent.
    pub fn with_state(state: &PublishedState) -> Self {
        match state.inventory.as_deref() {
            Some(inventory) => Self::new(Some(Cursor::of(inventory))),
            None => Self::at(WatchCursor::Absent, Revision(0)),
        }
    }

    fn at(cursor: WatchCursor, last_sent: Revision) -> Self {
        Self {
            cursor,
            last_sent,
            records_read: 0,
            needs_correction: false,
            revisions_passed: 0,
            revisions_counted_through: None,
            superseded_at: SupersededAt::default(),
        }
    }

    /// Handles the state of the first frame. Earlier change records do not concern the reader.
    pub fn handle_initial(&mut self, state: &PublishedState) {
        self.records_read = state.records_total();
        // This also covers a reader that resumes and misses nothing, which gets no frame.
        self.revisions_counted_through = state.inventory.as_deref().map(Cursor::of);
    }

    /// Handles a newer state and returns what it makes due.
    pub fn handle_state(&mut self, state: &PublishedState, session: Option<&SessionId>) -> SyncTrigger {
        self.count_revisions(state);
        let trigger = self.trigger(state, session);
        if trigger == SyncTrigger::None {
            self.superseded_at.clone_from(state.superseded_at());
        }
        trigger
    }

    /// Returns the change records that were not read yet, without the first `hidden` of all records, and how many of
    /// them are lost.
    pub fn read_records<'a>(
        &mut self,
        state: &'a PublishedState,
        hidden: u64,
    ) -> (u64, impl Iterator<Item = &'a Arc<ChangeRecord>> + use<'a>) {
        let read = std::mem::replace(&mut self.records_read, state.records_total());
        state.records_since(read.max(hidden))
    }

    /// Handles the loss of change records, which may include a correction for the reader.
    pub fn handle_lost_records(&mut self) {
        self.needs_correction = true;
    }

    /// Handles the record of a mutation by the reader's own session. `prediction` tells whether a confirmed prediction
    /// needs no frame.
    pub fn handle_record(&mut self, record: &ChangeRecord, prediction: bool) {
        match (record.outcome, self.cursor) {
            (PredictionOutcome::Mispredicted | PredictionOutcome::Correction, _) => self.needs_correction = true,
            (PredictionOutcome::Confirmed, WatchCursor::At(cursor)) if prediction && cursor.epoch == record.epoch => {
                // The reader has the complete state of that revision, whatever it had before.
                self.needs_correction = false;
                self.cursor = WatchCursor::At(Cursor { revision: record.revision.max(cursor.revision), ..cursor });
            }
            (PredictionOutcome::Confirmed | PredictionOutcome::Unpredicted, _) => {}
        }
    }

    /// Returns what brings the reader up to date, or `None` if it is. The reader has it from now on.
    pub fn poll_change(&mut self, state: &PublishedState, settings: &SyncSettings) -> Option<WatchChange> {
        match &state.inventory {
            None if self.cursor == WatchCursor::Absent => None,
            None => {
                (self.cursor, self.last_sent, self.needs_correction) = (WatchCursor::Absent, Revision(0), false);
                Some(WatchChange::Absent)
            }
            Some(inventory) => self.frame(inventory, settings).map(WatchChange::Changed),
        }
    }

    /// Returns since when the reader's state was stale, and records that it now has `state`.
    pub fn take_stale_since(&mut self, state: &PublishedState) -> Option<Instant> {
        let stale_since = self.superseded_at.get();
        self.superseded_at.clone_from(state.superseded_at());
        stale_since
    }

    /// Returns the number of revisions that the reader has advanced past since the last call.
    pub fn take_revisions_passed(&mut self) -> u64 {
        std::mem::take(&mut self.revisions_passed)
    }

    fn trigger(&self, state: &PublishedState, session: Option<&SessionId>) -> SyncTrigger {
        match (&state.inventory, self.cursor) {
            (None, WatchCursor::Absent) => SyncTrigger::None,
            (None, WatchCursor::None | WatchCursor::At(_)) | (Some(_), WatchCursor::None | WatchCursor::Absent) => {
                SyncTrigger::News
            }
            (Some(_), WatchCursor::At(_)) if self.needs_correction => SyncTrigger::Correction,
            (Some(inventory), WatchCursor::At(cursor)) if Cursor::of(inventory) == cursor => SyncTrigger::None,
            (Some(inventory), WatchCursor::At(cursor)) => {
                let is_news = state.news_revision(session) > cursor.revision || inventory.epoch != cursor.epoch;
                if is_news { SyncTrigger::News } else { SyncTrigger::Echo }
            }
        }
    }

    fn frame(&mut self, inventory: &Inventory, settings: &SyncSettings) -> Option<InventoryFrame> {
        let cursor = match self.cursor {
            WatchCursor::At(cursor) => Some(cursor),
            WatchCursor::None | WatchCursor::Absent => None,
        };
        let mut part = if self.needs_correction && cursor.is_some() {
            full_frame(inventory.epoch, &inventory.contents, FullReason::Correction)
        } else {
            frame_since(inventory, cursor, settings.delta_slots_max)?
        };
        if let FrameBody::Delta { last_sent, .. } = &mut part.body {
            *last_sent = self.last_sent;
        }
        let now = Cursor::of(inventory);
        (self.cursor, self.last_sent, self.needs_correction) = (WatchCursor::At(now), now.revision, false);
        self.revisions_counted_through.get_or_insert(now);
        Some(part)
    }

    fn count_revisions(&mut self, state: &PublishedState) {
        let Some(now) = state.inventory.as_deref().map(Cursor::of) else { return };
        let before = self.revisions_counted_through.replace(now);
        self.revisions_passed += match before {
            Some(before) if before.epoch == now.epoch => now.revision.0.saturating_sub(before.revision.0),
            Some(_) | None => 0,
        };
    }
}
