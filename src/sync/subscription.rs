//! One stream over several inventories, as a pure state machine: a cursor for each, and a pacer.
//!
//! The states handed in must be of one moment, so that a commit on several of them is never split.

use super::frame::{Cursor, InventoryFrame, frame_since};
use super::pacer::{Moment, Pacer};
use crate::domain::{Inventory, Version};
use std::sync::Arc;
use std::time::Duration;

/// The most slots of all inventories on one stream together: a frame with a full [`crate::domain::Attributes`] in each
/// still fits gRPC's default limit of 4 MiB a message.
pub const SUBSCRIPTION_SLOTS_MAX: usize = 3_072;
/// The most inventories on one stream.
pub const SUBSCRIPTION_INVENTORIES_MAX: usize = 64;

/// An inventory's state as published; none once it is deleted.
pub type State = Option<Arc<Inventory>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncSettings {
    /// Changes within this time after a frame go out together.
    pub window: Duration,
    /// A frame with more changed slots is sent full; 0 sends every frame full.
    pub delta_slots_max: usize,
    /// A stream on which nothing was sent for this long tells its revisions and digests.
    pub heartbeat: Duration,
}

impl Default for SyncSettings {
    fn default() -> Self {
        Self { window: Duration::from_millis(100), delta_slots_max: 10, heartbeat: Duration::from_secs(15) }
    }
}

impl SyncSettings {
    /// As the old game did it: every change at once, all slots.
    pub fn immediate_full() -> Self {
        Self { window: Duration::ZERO, delta_slots_max: 0, ..Self::default() }
    }
}

/// One message of a stream. The position of an inventory is the one it had in the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    pub changed: Vec<(usize, InventoryFrame)>,
    pub deleted: Vec<usize>,
    /// The reader now has all that was there when it subscribed.
    pub caught_up: bool,
    /// A heartbeat: the versions that the reader has.
    pub versions: Vec<(usize, Version)>,
}

#[derive(Debug)]
pub struct Subscription {
    settings: SyncSettings,
    cursors: Vec<Reader>,
    pacer: Pacer,
    caught_up: bool,
    sent_at: Option<Moment>,
}

/// What the reader has of one inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Nothing,
    At(Cursor),
    KnowsItIsDeleted,
}

impl Subscription {
    /// For each inventory the cursor from which the reader resumes, if it has one.
    pub fn new(settings: SyncSettings, resume: Vec<Option<Cursor>>) -> Self {
        let cursors = resume.into_iter().map(|cursor| cursor.map_or(Reader::Nothing, Reader::At)).collect();
        let mut pacer = Pacer::new(settings.window);
        pacer.handle_change();
        Self { settings, cursors, pacer, caught_up: false, sent_at: None }
    }

    /// One of the inventories may have a new state.
    pub fn handle_change(&mut self) {
        self.pacer.handle_change();
    }

    /// When to call [`Self::poll_frame`] at the latest, if nothing changes until then.
    pub fn poll_timeout(&self, now: Moment) -> Moment {
        // While a change waits no heartbeat is due, even if the window is the longer of the two.
        self.pacer.poll_timeout(now).unwrap_or_else(|| self.sent_at.unwrap_or(now) + self.settings.heartbeat)
    }

    /// The frame that is due now, if one is. `states`, asked only then, are in the order of the request and of one moment.
    pub fn poll_frame(&mut self, now: Moment, states: impl Fn() -> Vec<State>) -> Option<Frame> {
        if self.pacer.is_due(now) {
            if let Some(frame) = self.changes(&states()) {
                self.pacer.handle_sent(now);
                self.sent_at = Some(now);
                return Some(frame);
            }
            self.pacer.handle_nothing_to_send();
        }
        if self.pacer.poll_timeout(now).is_none() && self.sent_at? + self.settings.heartbeat <= now {
            self.sent_at = Some(now);
            return Some(Frame { versions: versions(&states()), ..Frame::default() });
        }
        None
    }

    fn changes(&mut self, states: &[State]) -> Option<Frame> {
        let mut frame = Frame { caught_up: !self.caught_up, ..Frame::default() };
        for (position, (reader, state)) in self.cursors.iter_mut().zip(states).enumerate() {
            match (state, *reader) {
                (None, Reader::KnowsItIsDeleted) => {}
                (None, Reader::Nothing | Reader::At(_)) => {
                    frame.deleted.push(position);
                    *reader = Reader::KnowsItIsDeleted;
                }
                (Some(inventory), before) => {
                    let cursor = before.cursor();
                    if let Some(part) = frame_since(inventory, cursor, self.settings.delta_slots_max) {
                        frame.changed.push((position, part));
                    }
                    *reader = Reader::At(Cursor::of(inventory));
                }
            }
        }
        let worth_sending = frame.caught_up || !frame.changed.is_empty() || !frame.deleted.is_empty();
        self.caught_up = true;
        worth_sending.then_some(frame)
    }
}

impl Reader {
    fn cursor(self) -> Option<Cursor> {
        match self {
            Self::At(cursor) => Some(cursor),
            Self::Nothing | Self::KnowsItIsDeleted => None,
        }
    }
}

fn versions(states: &[State]) -> Vec<(usize, Version)> {
    let version = |(position, state): (usize, &State)| Some((position, state.as_ref()?.version()));
    states.iter().enumerate().filter_map(version).collect()
}
