//! A subscription to several inventories, as a pure state machine: a cursor for each inventory, and a pacer.
//!
//! The caller passes a consistent snapshot of all states, so that a commit on several inventories is never split. The
//! subscription reads the states again whenever they may have changed and keeps only cursors.

use super::access::ReadAccess;
use super::frame::{Cursor, InventoryFrame};
use super::pacer::{Moment, Pacer, SyncTrigger, Windows};
use super::published::{ChangeRecord, PublishedState, TracedChange};
use super::watch::{WatchChange, WatchState};
use crate::domain::{KeyTag, PredictionOutcome, SessionId, Version};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Maximum number of slots of all present inventories of one subscription: a frame with maximum-size
/// [`crate::domain::Attributes`] in each slot still fits gRPC's default message limit of 4 MiB.
pub const SUBSCRIPTION_SLOTS_MAX: usize = 3_072;
/// Maximum number of inventories of one subscription.
pub const SUBSCRIPTION_INVENTORIES_MAX: usize = 64;
/// Maximum number of included keys, and of notices, in one frame; the oldest beyond that are left out.
const FRAME_ENTRIES_MAX: usize = 64;

/// Sync settings of one subscription: windows, delta size, prediction and heartbeat.
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
    /// Sends every change immediately as a full state.
    pub fn immediate_full() -> Self {
        Self { windows: Windows::NONE, delta_slots_max: 0, prediction: false, ..Self::default() }
    }
}

/// What a reader requests when it subscribes, and what it may read.
#[derive(Debug, Clone, Default)]
pub struct SubscribeOptions {
    /// For each inventory, the cursor from which the reader resumes, if it has one.
    pub resume: Vec<Option<Cursor>>,
    /// The session whose mutations are echoes to this reader, if it has one.
    pub session: Option<SessionId>,
    /// Whether to send notices: the kind, caller and reason of each change.
    pub notices: bool,
    /// What the reader may read. The caller must pass only states that [`ReadAccess::visible`] returned.
    pub access: ReadAccess,
}

/// The inventories of a subscription together have more than [`SUBSCRIPTION_SLOTS_MAX`] slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionTooLarge {
    pub slots: usize,
}

/// One message of a stream. An inventory is identified by its position in the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// What made the frame due; [`SyncTrigger::None`] in a heartbeat.
    pub trigger: SyncTrigger,
    pub changed: Vec<(usize, InventoryFrame)>,
    /// Inventories that became absent for this reader; each is reported once until it is present again.
    pub absent: Vec<usize>,
    /// Set on the first frame: after it, the reader has the state as of its subscription.
    pub caught_up: bool,
    /// The keys of the session's own mutations that were pending before this frame and are part of the state after it.
    pub included_keys: Vec<KeyTag>,
    /// The changes to report, if the reader requested notices.
    pub notices: Vec<(usize, Arc<ChangeRecord>)>,
    /// Number of notices that were left out since the last frame.
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
    /// Shared by all subscriptions with the same settings.
    settings: Arc<SyncSettings>,
    session: Option<SessionId>,
    sends_notices: bool,
    access: ReadAccess,
    watches: Box<[WatchState]>,
    pacer: Pacer,
    caught_up: bool,
    /// Whether the last sync was an echo that had waited for its window. The session is then likely to make more changes,
    /// which are due when the next window ends, so they need not be handled before.
    expects_echo: bool,
    sent_at: Option<Moment>,
    /// What the next frame reports beside the changes; `None` if that is nothing.
    pending: Option<Box<PendingReport>>,
}

/// What the next frame reports beside the changes.
#[derive(Debug, Default)]
struct PendingReport {
    included_keys: VecDeque<KeyTag>,
    notices: VecDeque<(usize, Arc<ChangeRecord>)>,
    notices_dropped: u64,
}

impl Subscription {
    pub fn new(settings: impl Into<Arc<SyncSettings>>, options: SubscribeOptions) -> Self {
        let watches = options.resume.iter().copied().map(WatchState::new).collect();
        Self::with_watches(settings.into(), options, watches)
    }

    /// Creates a subscription whose reader already has `states`, whatever the options say about the cursors.
    pub fn with_states(
        settings: impl Into<Arc<SyncSettings>>,
        options: SubscribeOptions,
        states: &[Arc<PublishedState>],
    ) -> Self {
        let watches = states.iter().map(|state| WatchState::with_state(state)).collect();
        Self::with_watches(settings.into(), options, watches)
    }

    fn with_watches(settings: Arc<SyncSettings>, options: SubscribeOptions, watches: Box<[WatchState]>) -> Self {
        let mut pacer = Pacer::default();
        pacer.handle_trigger(SyncTrigger::Initial);
        Self {
            settings,
            session: options.session,
            sends_notices: options.notices,
            access: options.access,
            watches,
            pacer,
            caught_up: false,
            expects_echo: false,
            sent_at: None,
            pending: None,
        }
    }

    /// Returns the options of the subscription, without the cursors from which the reader resumed.
    pub fn options(&self) -> SubscribeOptions {
        let (session, access) = (self.session.clone(), self.access.clone());
        SubscribeOptions { resume: Vec::new(), session, notices: self.sends_notices, access }
    }

    /// Returns what the reader may read.
    pub fn access(&self) -> &ReadAccess {
        &self.access
    }

    /// Changes the settings from the next frame on.
    pub fn handle_settings(&mut self, settings: impl Into<Arc<SyncSettings>>) {
        self.settings = settings.into();
    }

    /// Handles new states: a consistent snapshot of all inventories, in the order of the request.
    pub fn handle_states(&mut self, states: &[Arc<PublishedState>]) {
        if !self.caught_up {
            return;
        }
        let mut trigger = SyncTrigger::None;
        for (position, state) in states.iter().enumerate() {
            self.read_records(position, state);
            trigger = trigger.max(self.watches[position].handle_state(state, self.session.as_ref()));
        }
        self.pacer.handle_trigger(trigger);
    }

    /// Returns the latest time for the next call of [`Self::poll_frame`], if nothing changes until then.
    pub fn poll_timeout(&self, now: Moment) -> Moment {
        let idle_until =
            || self.expected_echo(now).map_or(self.heartbeat_at(now), |end| end.min(self.heartbeat_at(now)));
        self.pacer.poll_timeout(now, &self.settings.windows).unwrap_or_else(idle_until)
    }

    /// Returns the frame that is due now, if any. Calls `states` only if a frame may be due.
    ///
    /// # Errors
    ///
    /// [`SubscriptionTooLarge`] if a frame could exceed the message limit. The error is final: the stream must end.
    pub fn poll_frame<S: AsRef<[Arc<PublishedState>]>>(
        &mut self,
        now: Moment,
        mut states: impl FnMut() -> S,
    ) -> Result<Option<Frame>, SubscriptionTooLarge> {
        if self.pacer.is_due(now, &self.settings.windows) {
            let states = states();
            let states = states.as_ref();
            check_size(states)?;
            self.handle_states(states);
            if let Some(frame) = self.changes(states) {
                self.expects_echo = frame.trigger == SyncTrigger::Echo && self.has_waited(now);
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
        let states = states.as_ref();
        self.handle_states(states);
        if self.pacer.trigger() > SyncTrigger::None {
            // The states changed in the meantime; the change is sent when it is due.
            return Ok(None);
        }
        self.sent_at = Some(now);
        Ok(Some(Frame { versions: versions(states), ..Frame::default() }))
    }

    /// Returns, for each inventory, the number of revisions that the reader has advanced past since the last call, with
    /// or without a frame: the number of immediate full syncs that were avoided or sent.
    pub fn take_revisions_passed(&mut self) -> impl Iterator<Item = (usize, u64)> {
        let passed = self.watches.iter_mut().map(WatchState::take_revisions_passed);
        passed.enumerate().filter(|(_, revisions)| *revisions > 0)
    }

    /// Returns the least urgent trigger that can make a frame due before [`Self::poll_timeout`]. Changes that are less
    /// urgent can wait until then to be handled.
    pub fn waits_for(&self, now: Moment) -> SyncTrigger {
        match self.pacer.trigger() {
            SyncTrigger::None if self.expected_echo(now).is_some() => SyncTrigger::News,
            SyncTrigger::None => SyncTrigger::None,
            SyncTrigger::Echo if self.settings.windows.news < self.settings.windows.echo => SyncTrigger::News,
            SyncTrigger::Echo | SyncTrigger::News | SyncTrigger::Correction | SyncTrigger::Initial => {
                SyncTrigger::Correction
            }
        }
    }

    /// Returns until when no echo can be due, if the session is likely to make changes.
    fn expected_echo(&self, now: Moment) -> Option<Moment> {
        let end = self.pacer.echo_end(&self.settings.windows).filter(|_| self.expects_echo);
        end.filter(|end| *end > now)
    }

    /// Returns whether the frame that is due at `now` has waited for the end of its window.
    fn has_waited(&self, now: Moment) -> bool {
        let end = self.pacer.echo_end(&self.settings.windows);
        end.is_some_and(|end| now.saturating_sub(end) <= self.settings.windows.tick)
    }

    fn heartbeat_at(&self, now: Moment) -> Moment {
        self.sent_at.unwrap_or(now) + self.settings.heartbeat
    }

    fn read_records(&mut self, position: usize, state: &Arc<PublishedState>) {
        let watch = &mut self.watches[position];
        // Another player may have owned the inventory in an earlier epoch; this reader must not learn of those changes.
        let hidden = if self.access.is_restricted() { state.records_before_epoch() } else { 0 };
        let (lost, records) = watch.read_records(state, hidden);
        if lost > 0 && self.session.is_some() {
            watch.handle_lost_records();
        }
        if self.sends_notices && lost > 0 {
            self.pending.get_or_insert_default().notices_dropped += lost;
        }
        for record in records {
            if record.session.is_some() && record.session == self.session {
                watch.handle_record(record, self.settings.prediction);
                if record.outcome != PredictionOutcome::Correction {
                    self.pending.get_or_insert_default().add_key(record.key);
                }
            }
            if self.sends_notices {
                self.pending.get_or_insert_default().add_notice(position, record);
            }
        }
    }

    /// Returns a frame that brings the reader up to date, or `None` if it is.
    fn changes(&mut self, states: &[Arc<PublishedState>]) -> Option<Frame> {
        let initial = !self.caught_up;
        let mut frame = Frame { trigger: self.pacer.trigger(), caught_up: initial, ..Frame::default() };
        for (position, (watch, state)) in self.watches.iter_mut().zip(states).enumerate() {
            if initial {
                watch.handle_initial(state);
            }
            let change = watch.poll_change(state, &self.settings);
            let stale_since = watch.take_stale_since(state);
            match change {
                None => continue,
                Some(WatchChange::Absent) => frame.absent.push(position),
                Some(WatchChange::Changed(part)) => frame.changed.push((position, part)),
            }
            frame.add_age(stale_since, state);
        }
        self.caught_up = true;
        if !initial && !frame.is_sync() {
            return None;
        }
        if let Some(pending) = self.pending.take() {
            frame.included_keys = pending.included_keys.into();
            frame.notices = pending.notices.into();
            frame.notices_dropped = pending.notices_dropped;
        }
        Some(frame)
    }
}

impl PendingReport {
    fn add_key(&mut self, key: KeyTag) {
        if !self.included_keys.contains(&key) {
            push_bounded(&mut self.included_keys, key);
        }
    }

    fn add_notice(&mut self, position: usize, record: &Arc<ChangeRecord>) {
        self.notices_dropped += push_bounded(&mut self.notices, (position, record.clone()));
    }
}

impl Frame {
    /// Returns whether the frame is a sync: it carries a change, and is paced, limited and counted.
    pub fn is_sync(&self) -> bool {
        !self.changed.is_empty() || !self.absent.is_empty()
    }

    /// Returns whether the frame carries changes of present inventories and nothing else.
    pub fn is_only_changes(&self) -> bool {
        let reports = self.included_keys.len() + self.notices.len() + self.absent.len() + self.versions.len();
        !self.caught_up && self.notices_dropped == 0 && reports == 0
    }

    /// Returns whether the frame is a heartbeat: it carries only the versions of present inventories.
    pub fn is_heartbeat(&self) -> bool {
        !self.is_sync() && !self.caught_up
    }

    /// Adds the age and the trace of the changes to one inventory, of which the reader had a stale state since
    /// `stale_since`.
    fn add_age(&mut self, stale_since: Option<Instant>, state: &PublishedState) {
        let Some(stale_since) = stale_since else { return };
        self.stale_since = Some(self.stale_since.map_or(stale_since, |other| other.min(stale_since)));
        let unsent = state.traced().filter(|traced| traced.at >= stale_since);
        self.traced = self.traced.into_iter().chain(unsent).max_by_key(|traced| traced.at);
    }
}

/// Appends to a bounded queue; returns how many old entries were dropped (0 or 1).
fn push_bounded<T>(queue: &mut VecDeque<T>, entry: T) -> u64 {
    let is_full = queue.len() == FRAME_ENTRIES_MAX;
    if is_full {
        queue.pop_front();
    }
    queue.push_back(entry);
    u64::from(is_full)
}

/// Checks that a frame with all slots of these states fits in one message.
pub fn check_size(states: &[Arc<PublishedState>]) -> Result<(), SubscriptionTooLarge> {
    let present = states.iter().filter_map(|state| state.inventory.as_deref());
    let slots = present.map(|inventory| inventory.contents.slots().len()).sum();
    if slots > SUBSCRIPTION_SLOTS_MAX { Err(SubscriptionTooLarge { slots }) } else { Ok(()) }
}

fn versions(states: &[Arc<PublishedState>]) -> Vec<(usize, Version)> {
    let version =
        |(position, state): (usize, &Arc<PublishedState>)| Some((position, state.inventory.as_ref()?.version()));
    states.iter().enumerate().filter_map(version).collect()
}
