//! One stream over several inventories, as a pure state machine: a cursor for each, and a pacer.
//!
//! The states handed in must be of one moment, so that a commit on several of them is never split. They are looked at
//! anew whenever something may have changed; nothing is kept of them but cursors.

use super::access::ReadAccess;
use super::frame::{Cursor, FrameBody, FullReason, InventoryFrame, frame_since, full_frame};
use super::pacer::{Moment, Pacer, SyncTrigger, Windows};
use super::published::{ChangeRecord, PredictionOutcome, Published, Superseded, TracedChange};
use crate::domain::{Inventory, KeyTag, Revision, SessionId, Version};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most slots of all inventories that are present on one stream together: a frame with a full
/// [`crate::domain::Attributes`] in each still fits gRPC's default limit of 4 MiB a message.
pub const SUBSCRIPTION_SLOTS_MAX: usize = 3_072;
/// The most inventories on one stream.
pub const SUBSCRIPTION_INVENTORIES_MAX: usize = 64;
/// The most keys, and the most notices, that one frame names; beyond, the oldest are left out.
pub const NAMED_MAX: usize = 64;

/// An inventory as published.
pub type PublishedState = Arc<Published>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncSettings {
    pub windows: Windows,
    /// A frame with more changed slots is sent full; 0 sends every frame full.
    pub delta_slots_max: usize,
    /// A confirmed prediction needs no frame.
    pub prediction: bool,
    /// A stream on which nothing was sent for this long tells its revisions and digests.
    pub heartbeat: Duration,
}

impl Default for SyncSettings {
    fn default() -> Self {
        let heartbeat = Duration::from_secs(15);
        Self { windows: Windows::default(), delta_slots_max: 10, prediction: true, heartbeat }
    }
}

impl SyncSettings {
    /// As the old game did it: every change at once, all slots.
    pub fn immediate_full() -> Self {
        Self { windows: Windows::NONE, delta_slots_max: 0, prediction: false, ..Self::default() }
    }
}

/// What a reader asks for when it opens a stream, and what it may read.
#[derive(Debug, Clone, Default)]
pub struct SubscribeOptions {
    /// For each inventory the cursor from which the reader resumes, if it has one.
    pub resume: Vec<Option<Cursor>>,
    pub session: Option<SessionId>,
    /// Whether it wants to be told what kind of changes there were, by whom and why.
    pub notices: bool,
    /// The states that are handed in are those that [`ReadAccess::visible`] gives.
    pub access: ReadAccess,
}

/// The inventories of a subscription have more slots together than [`SUBSCRIPTION_SLOTS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    pub slots: usize,
}

/// One message of a stream. The position of an inventory is the one it had in the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    pub trigger: SyncTrigger,
    pub changed: Vec<(usize, InventoryFrame)>,
    /// Inventories that do not exist for this reader, told once until they do.
    pub absent: Vec<usize>,
    /// The reader now has all that was there when it subscribed.
    pub caught_up: bool,
    /// The keys of the session's own mutations that this frame takes its reader past.
    pub covered: Vec<KeyTag>,
    pub notices: Vec<(usize, Arc<ChangeRecord>)>,
    pub notices_dropped: u64,
    /// A heartbeat: the versions that the reader has.
    pub versions: Vec<(usize, Version)>,
    /// When the oldest change was published that the reader had not been sent; none of the first frame.
    pub stale_since: Option<Instant>,
    /// The newest traced change among those that it had not been sent.
    pub traced: Option<TracedChange>,
}

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

/// What the reader has of one inventory.
#[derive(Debug)]
struct WatchState {
    cursor: WatchCursor,
    /// The revision that the stream itself has brought it to: what deltas on the wire are counted from.
    last_sent: Revision,
    /// How many of the inventory's notes were looked at.
    records_seen: u64,
    /// What it has may be wrong.
    needs_correction: bool,
    /// Revisions since they were last asked for.
    passed: u64,
    /// The newest revision that is in `passed`.
    counted_to: Option<Cursor>,
    /// Of the newest state that it was seen to have wholly.
    superseded: Superseded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchCursor {
    None,
    At(Cursor),
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

    /// Of a reader that has all that there is now.
    pub fn join(settings: SyncSettings, options: SubscribeOptions, states: &[PublishedState]) -> Self {
        let resume = states.iter().map(|state| state.inventory.as_deref().map(Cursor::of)).collect();
        let mut this = Self::new(settings, SubscribeOptions { resume, ..options });
        for watch in this.watches.iter_mut().filter(|watch| watch.cursor == WatchCursor::None) {
            watch.cursor = WatchCursor::Absent;
        }
        this
    }

    /// Holds from the next frame on.
    pub fn handle_settings(&mut self, settings: SyncSettings) {
        self.settings = settings;
    }

    /// The inventories may have new states; `states` are in the order of the request and of one moment.
    pub fn handle_states(&mut self, states: &[PublishedState]) {
        if !self.caught_up {
            return;
        }
        let mut trigger = SyncTrigger::None;
        for (position, state) in states.iter().enumerate() {
            self.read_records(position, state);
            let watch = &mut self.watches[position];
            watch.count(state);
            let due = watch.trigger(state, self.session.as_ref());
            if due == SyncTrigger::None {
                watch.superseded.clone_from(state.superseded());
            }
            trigger = trigger.max(due);
        }
        self.pacer.handle_trigger(trigger);
    }

    /// When to call [`Self::poll_frame`] at the latest, if nothing changes until then.
    pub fn poll_timeout(&self, now: Moment) -> Moment {
        self.pacer.poll_timeout(now, &self.settings.windows).unwrap_or_else(|| self.heartbeat_at(now))
    }

    /// The frame that is due now, if one is. `states` is asked only then. An error is final: the stream has to end, since a
    /// frame might be larger than a message may be.
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
            // Something has changed after all, and will be sent when it is due.
            return Ok(None);
        }
        self.sent_at = Some(now);
        Ok(Some(Frame { versions: versions(&states), ..Frame::default() }))
    }

    /// For each inventory the revisions that the reader was taken past since the last call, with or without a frame:
    /// what immediate full syncs would have sent.
    pub fn take_passed(&mut self) -> impl Iterator<Item = (usize, u64)> {
        let passed = self.watches.iter_mut().map(|watch| std::mem::take(&mut watch.passed));
        passed.enumerate().filter(|(_, revisions)| *revisions > 0)
    }

    fn heartbeat_at(&self, now: Moment) -> Moment {
        self.sent_at.unwrap_or(now) + self.settings.heartbeat
    }

    fn read_records(&mut self, position: usize, state: &PublishedState) {
        let watch = &mut self.watches[position];
        // Between two looks the inventory may have been another's, which this reader must not learn.
        let hidden = if self.access.is_restricted() { state.records_before_epoch() } else { 0 };
        let (lost, records) = state.records_since(watch.records_seen.max(hidden));
        watch.records_seen = state.records_total();
        // Among those lost there may be a correction.
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
                // Also for one that resumes and misses nothing, which gets no frame.
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
            frame.date(watch, state);
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
    /// Whether it carries a change: what is paced, limited and counted.
    pub fn is_sync(&self) -> bool {
        !self.changed.is_empty() || !self.absent.is_empty()
    }

    /// Whether it carries only the versions of all inventories that are present.
    pub fn is_heartbeat(&self) -> bool {
        !self.is_sync() && !self.caught_up
    }

    /// Notes what of the state is new to the reader, who has it from now on.
    fn date(&mut self, watch: &mut WatchState, state: &PublishedState) {
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
                // It has the whole state of that revision, whatever it had before.
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
                let of_others = state.news_at(session) > cursor.revision || inventory.epoch != cursor.epoch;
                if of_others { SyncTrigger::News } else { SyncTrigger::Echo }
            }
        }
    }

    /// What brings the reader up to date; none if it is.
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

    fn count(&mut self, state: &PublishedState) {
        let Some(now) = state.inventory.as_deref().map(Cursor::of) else { return };
        let before = self.counted_to.replace(now);
        self.passed += match before {
            Some(before) if before.epoch == now.epoch => now.revision.0.saturating_sub(before.revision.0),
            Some(_) | None => 0,
        };
    }
}

/// Gives back how many were pushed out.
fn push_bounded<T>(queue: &mut VecDeque<T>, one: T) -> u64 {
    let full = queue.len() == NAMED_MAX;
    if full {
        queue.pop_front();
    }
    queue.push_back(one);
    u64::from(full)
}

/// Whether a frame with all slots of these states fits one message.
pub fn check_size(states: &[PublishedState]) -> Result<(), TooLarge> {
    let present = states.iter().filter_map(|state| state.inventory.as_deref());
    let slots = present.map(|inventory| inventory.contents.slots().len()).sum();
    if slots > SUBSCRIPTION_SLOTS_MAX { Err(TooLarge { slots }) } else { Ok(()) }
}

fn versions(states: &[PublishedState]) -> Vec<(usize, Version)> {
    let version = |(position, state): (usize, &PublishedState)| Some((position, state.inventory.as_ref()?.version()));
    states.iter().enumerate().filter_map(version).collect()
}
