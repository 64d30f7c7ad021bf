//! A subscription to several inventories, as a pure state machine: a cursor for each inventory, and a pacer.
//!
//! The caller passes a consistent snapshot of all states, so that a commit on several inventories is never split. The
//! subscription reads the states again whenever they may have changed and keeps only cursors.

use super::access::ReadAccess;
use super::frame::{Cursor, FrameBody, FullReason, InventoryFrame, frame_since, full_frame};
use super::pacer::{Moment, Pacer, SyncTrigger, Windows};
use super::published::{ChangeRecord, PredictionOutcome, Published, Superseded, TracedChange};
use crate::domain::{Inventory, KeyTag, Revision, SessionId, Version};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Maximum number of slots of all present inventories of one subscription: a frame with maximum-size
/// [`crate::domain::Attributes`] in each slot still fits gRPC's default message limit of 4 MiB.
pub const SUBSCRIPTION_SLOTS_MAX: usize = 3_072;
/// Maximum number of inventories of one subscription.
pub const SUBSCRIPTION_INVENTORIES_MAX: usize = 64;
/// Maximum number of covered keys and of notices in one frame; the oldest beyond that are left out.
pub const NAMED_MAX: usize = 64;

/// A shared published state of one inventory.
pub type PublishedState = Arc<Published>;

/// How a subscription is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncSettings {
    pub windows: Windows,
    /// Maximum number of changed slots in a delta; more are sent as a full state. 0 sends only full states.
    pub delta_slots_max: usize,
    /// Whether a confirmed prediction needs no frame.
    pub prediction: bool,
    /// The subscription sends a heartbeat after it has sent nothing for this long.
    pub heartbeat: Duration,
}

impl SyncSettings {
    /// Sends every change immediately as a full state, as the old game did.
    pub fn immediate_full() -> Self {
        Self { windows: Windows::NONE, delta_slots_max: 0, prediction: false, ..Self::default() }
    }
}

/// What a reader requests when it subscribes, and what it may read.
#[derive(Debug, Clone, Default)]
pub struct SubscribeOptions {
    /// For each inventory, the cursor from which the reader resumes, if it has one.
    pub resume: Vec<Option<Cursor>>,
    pub session: Option<SessionId>,
    /// Whether to send notices: the kind, caller and reason of each change.
    pub notices: bool,
    /// What the reader may read. The caller must pass only states that [`ReadAccess::visible`] returned.
    pub access: ReadAccess,
}

/// The inventories of a subscription together have more than [`SUBSCRIPTION_SLOTS_MAX`] slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    pub slots: usize,
}

/// One message of a stream. An inventory is identified by its position in the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    pub trigger: SyncTrigger,
    pub changed: Vec<(usize, InventoryFrame)>,
    /// Inventories that became absent for this reader; each is reported once until it is present again.
    pub absent: Vec<usize>,
    /// Set on the first frame: after it, the reader has the state as of its subscription.
    pub caught_up: bool,
    /// The keys of the session's own mutations that were pending before this frame and are part of the state after it.
    pub covered: Vec<KeyTag>,
    pub notices: Vec<(usize, Arc<ChangeRecord>)>,
    pub notices_dropped: u64,
    /// In a heartbeat, the versions that the reader should have.
    pub versions: Vec<(usize, Version)>,
    /// When the oldest change in this frame was published; `None` for the first frame.
    pub stale_since: Option<Instant>,
    /// The newest traced change in this frame.
    pub traced: Option<TracedChange>,
}

/// The state machine of one subscription.
#[derive(Debug)]
pub struct Subscription {
    settings: SyncSettings,
    session: Option<SessionId>,
    wants_notices: bool,
    access: ReadAccess,
    watches: Vec<WatchState>,
    pacer: Pacer,
    caught_up: bool,
    sent_at: Option<Moment>,
    covered: VecDeque<KeyTag>,
    notices: VecDeque<(usize, Arc<ChangeRecord>)>,
    notices_dropped: u64,
}

/// The state of one watch: what the reader has of one inventory.
#[derive(Debug)]
struct WatchState {
    cursor: WatchCursor,
    /// The revision that the stream last sent; deltas on the wire are relative to it.
    last_sent: Revision,
    /// Number of the inventory's change records that were read.
    records_seen: u64,
    /// The reader's state may be wrong.
    needs_correction: bool,
    /// Number of revisions since the last call of [`Subscription::take_passed`].
    passed: u64,
    /// The newest revision that `passed` includes.
    counted_to: Option<Cursor>,
    /// When the newest state that the reader completely has was replaced.
    superseded: Superseded,
}

/// The state that the reader has of one inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchCursor {
    None,
    At(Cursor),
    /// The reader knows that the inventory is absent.
    Absent,
}

impl Subscription {
    pub fn new(settings: SyncSettings, options: SubscribeOptions) -> Self {
        let watches = options.resume.into_iter().map(WatchState::new).collect();
        let mut pacer = Pacer::default();
        pacer.handle_trigger(SyncTrigger::Initial);
        Self {
            settings,
            session: options.session,
            wants_notices: options.notices,
            access: options.access,
            watches,
            pacer,
            caught_up: false,
            sent_at: None,
            covered: VecDeque::new(),
            notices: VecDeque::new(),
            notices_dropped: 0,
        }
    }

    /// Creates a subscription whose reader already has `states`.
    pub fn join(settings: SyncSettings, options: SubscribeOptions, states: &[PublishedState]) -> Self {
        let resume = states.iter().map(|state| state.inventory.as_deref().map(Cursor::of)).collect();
        let mut this = Self::new(settings, SubscribeOptions { resume, ..options });
        for watch in this.watches.iter_mut().filter(|watch| watch.cursor == WatchCursor::None) {
            watch.cursor = WatchCursor::Absent;
        }
        this
    }

    /// Changes the settings from the next frame on.
    pub fn handle_settings(&mut self, settings: SyncSettings) {
        self.settings = settings;
    }

    /// Handles new states: a consistent snapshot of all inventories, in the order of the request.
    pub fn handle_states(&mut self, states: &[PublishedState]) {
        if !self.caught_up {
            return;
        }
        let mut trigger = SyncTrigger::None;
        for (position, state) in states.iter().enumerate() {
            self.read_records(position, state);
            let watch = &mut self.watches[position];
            watch.count_revisions(state);
            let due = watch.trigger(state, self.session.as_ref());
            if due == SyncTrigger::None {
                watch.superseded.clone_from(state.superseded());
            }
            trigger = trigger.max(due);
        }
        self.pacer.handle_trigger(trigger);
    }

    /// Returns the latest time for the next call of [`Self::poll_frame`], if nothing changes until then.
    pub fn poll_timeout(&self, now: Moment) -> Moment {
        self.pacer.poll_timeout(now, &self.settings.windows).unwrap_or_else(|| self.heartbeat_at(now))
    }

    /// Returns the frame that is due now, if any. Calls `states` only if a frame may be due.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] if a frame could exceed the message limit. The error is final: the stream must end.
    pub fn poll_frame(
        &mut self,
        now: Moment,
        mut states: impl FnMut() -> Vec<PublishedState>,
    ) -> Result<Option<Frame>, TooLarge> {
        if self.pacer.is_due(now, &self.settings.windows) {
            let states = states();
            check_size(&states)?;
            self.handle_states(&states);
            if let Some(frame) = self.changes(&states) {
                self.pacer.handle_sent(now);
                self.sent_at = Some(now);
                return Ok(Some(frame));
            }
            self.pacer.handle_trigger(SyncTrigger::None);
        }
        if self.pacer.trigger() > SyncTrigger::None || self.heartbeat_at(now) > now {
            return Ok(None);
        }
        let states = states();
        self.handle_states(&states);
        if self.pacer.trigger() > SyncTrigger::None {
            // The states changed in the meantime; the change is sent when it is due.
            return Ok(None);
        }
        self.sent_at = Some(now);
        Ok(Some(Frame { versions: versions(&states), ..Frame::default() }))
    }

    /// Returns, for each inventory, the number of revisions that the reader has advanced past since the last call, with
    /// or without a frame: the number of immediate full syncs that were avoided or sent.
    pub fn take_passed(&mut self) -> impl Iterator<Item = (usize, u64)> {
        let passed = self.watches.iter_mut().map(|watch| std::mem::take(&mut watch.passed));
        passed.enumerate().filter(|(_, revisions)| *revisions > 0)
    }

    fn heartbeat_at(&self, now: Moment) -> Moment {
        self.sent_at.unwrap_or(now) + self.settings.heartbeat
    }

    fn read_records(&mut self, position: usize, state: &PublishedState) {
        let watch = &mut self.watches[position];
        // Another player may have owned the inventory in an earlier epoch; this reader must not learn of those changes.
        let hidden = if self.access.is_restricted() { state.records_before_epoch() } else { 0 };
        let (lost, records) = state.records_since(watch.records_seen.max(hidden));
        watch.records_seen = state.records_total();
        // The lost records may include a correction.
        watch.needs_correction |= lost > 0 && self.session.is_some();
        self.notices_dropped += if self.wants_notices { lost } else { 0 };
        for record in records {
            if record.session.is_some() && record.session == self.session {
                watch.handle_record(record, self.settings.prediction);
                if record.outcome != PredictionOutcome::Correction && !self.covered.contains(&record.key) {
                    push_bounded(&mut self.covered, record.key);
                }
            }
            if self.wants_notices {
                self.notices_dropped += push_bounded(&mut self.notices, (position, record.clone()));
            }
        }
    }

    fn changes(&mut self, states: &[PublishedState]) -> Option<Frame> {
        let initial = !self.caught_up;
        let mut frame = Frame { trigger: self.pacer.trigger(), caught_up: initial, ..Frame::default() };
        for (position, (watch, state)) in self.watches.iter_mut().zip(states).enumerate() {
            if initial {
                watch.records_seen = state.records_total();
                // This also covers a reader that resumes and misses nothing, which gets no frame.
                watch.counted_to = state.inventory.as_deref().map(Cursor::of);
            }
            match &state.inventory {
                None if watch.cursor == WatchCursor::Absent => {
                    watch.superseded.clone_from(state.superseded());
                    continue;
                }
                None => {
                    frame.absent.push(position);
                    (watch.cursor, watch.last_sent, watch.needs_correction) = (WatchCursor::Absent, Revision(0), false);
                }
                Some(inventory) => {
                    let Some(part) = watch.frame(inventory, &self.settings) else {
                        watch.superseded.clone_from(state.superseded());
                        continue;
                    };
                    frame.changed.push((position, part));
                }
            }
            frame.add_age(watch, state);
        }
        self.caught_up = true;
        if !initial && !frame.is_sync() {
            return None;
        }
        frame.covered = self.covered.drain(..).collect();
        frame.notices = self.notices.drain(..).collect();
        frame.notices_dropped = std::mem::take(&mut self.notices_dropped);
        Some(frame)
    }
}

impl Frame {
    /// Returns whether the frame is a sync: it carries a change, and is paced, limited and counted.
    pub fn is_sync(&self) -> bool {
        !self.changed.is_empty() || !self.absent.is_empty()
    }

    /// Returns whether the frame is a heartbeat: it carries only the versions of present inventories.
    pub fn is_heartbeat(&self) -> bool {
        !self.is_sync() && !self.caught_up
    }

    /// Records the age and trace of the changes that this frame sends to the reader.
    fn add_age(&mut self, watch: &mut WatchState, state: &PublishedState) {
        if let Some(stale_since) = watch.superseded.at() {
            self.stale_since = Some(self.stale_since.map_or(stale_since, |other| other.min(stale_since)));
            let unsent = state.traced().filter(|traced| traced.at >= stale_since);
            self.traced = self.traced.into_iter().chain(unsent).max_by_key(|traced| traced.at);
        }
        watch.superseded.clone_from(state.superseded());
    }
}

impl WatchState {
    fn new(resume: Option<Cursor>) -> Self {
        let cursor = resume.map_or(WatchCursor::None, WatchCursor::At);
        let last_sent = resume.map_or(Revision(0), |cursor| cursor.revision);
        Self {
            cursor,
            last_sent,
            records_seen: 0,
            needs_correction: false,
            passed: 0,
            counted_to: None,
            superseded: Superseded::default(),
        }
    }

    fn handle_record(&mut self, record: &ChangeRecord, prediction: bool) {
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

    fn trigger(&self, state: &PublishedState, session: Option<&SessionId>) -> SyncTrigger {
        match (&state.inventory, self.cursor) {
            (None, WatchCursor::Absent) => SyncTrigger::None,
            (None, WatchCursor::None | WatchCursor::At(_)) | (Some(_), WatchCursor::None | WatchCursor::Absent) => {
                SyncTrigger::News
            }
            (Some(_), WatchCursor::At(_)) if self.needs_correction => SyncTrigger::Correction,
            (Some(inventory), WatchCursor::At(cursor)) if Cursor::of(inventory) == cursor => SyncTrigger::None,
            (Some(inventory), WatchCursor::At(cursor)) => {
                let is_news = state.news_at(session) > cursor.revision || inventory.epoch != cursor.epoch;
                if is_news { SyncTrigger::News } else { SyncTrigger::Echo }
            }
        }
    }

    /// Returns the changes that bring the reader up to date, or `None` if it is.
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
        self.counted_to.get_or_insert(now);
        Some(part)
    }

    fn count_revisions(&mut self, state: &PublishedState) {
        let Some(now) = state.inventory.as_deref().map(Cursor::of) else { return };
        let before = self.counted_to.replace(now);
        self.passed += match before {
            Some(before) if before.epoch == now.epoch => now.revision.0.saturating_sub(before.revision.0),
            Some(_) | None => 0,
        };
    }
}

/// Appends to a bounded queue; returns how many old entries were dropped (0 or 1).
fn push_bounded<T>(queue: &mut VecDeque<T>, one: T) -> u64 {
    let full = queue.len() == NAMED_MAX;
    if full {
        queue.pop_front();
    }
    queue.push_back(one);
    u64::from(full)
}

/// Checks that a frame with all slots of these states fits in one message.
pub fn check_size(states: &[PublishedState]) -> Result<(), TooLarge> {
    let present = states.iter().filter_map(|state| state.inventory.as_deref());
    let slots = present.map(|inventory| inventory.contents.slots().len()).sum();
    if slots > SUBSCRIPTION_SLOTS_MAX { Err(TooLarge { slots }) } else { Ok(()) }
}

fn versions(states: &[PublishedState]) -> Vec<(usize, Version)> {
    let version = |(position, state): (usize, &PublishedState)| Some((position, state.inventory.as_ref()?.version()));
    states.iter().enumerate().filter_map(version).collect()
}
