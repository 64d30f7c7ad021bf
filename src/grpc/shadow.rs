//! Shadow mode: computes and verifies the frames that a stream would send with all features enabled. A shadow has its
//! own subscription and a copy of the states that its reader would have.
//!
//! A shadow runs only when its stream is polled, so that a stalled reader causes no work here either.

use crate::domain::Inventory;
use crate::sync::{
    Cursor, Moment, PublishedState, Replica, SubscribeOptions, Subscription, SubscriptionTooLarge, SyncSettings,
};
use crate::wire::{frame, v1};
use std::cell::RefCell;

pub struct Shadow {
    subscription: Subscription,
    /// The state that the reader would have of each inventory.
    copies: Vec<Held>,
    predicts: bool,
}

#[derive(Debug)]
enum Held {
    Nothing,
    Known(Replica),
    /// Only the reader knows its state, because it resumed.
    Unknown,
}

/// The message that would be sent now, and the result of its verification.
#[derive(Debug)]
pub struct Computed {
    pub message: v1::SubscribeInventoryResponse,
    pub checked: Checked,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Number of inventories of which the reader would have a wrong state.
    pub mismatches: u64,
    /// Number of inventories that cannot be verified.
    pub unverified: u64,
}

impl Shadow {
    /// Creates the shadow of a new stream.
    pub fn new(settings: SyncSettings, options: SubscribeOptions) -> Self {
        let held = |resume: &Option<Cursor>| if resume.is_some() { Held::Unknown } else { Held::Nothing };
        let copies = options.resume.iter().map(held).collect();
        let predicts = options.session.is_some();
        Self { subscription: Subscription::new(settings, options), copies, predicts }
    }

    /// Creates the shadow of an open stream, as if its reader had the current states.
    pub fn join(settings: SyncSettings, options: SubscribeOptions, states: &[PublishedState]) -> Self {
        let copies = states.iter().map(|state| state.inventory.as_deref().into()).collect();
        let predicts = options.session.is_some();
        Self { subscription: Subscription::with_states(settings, options, states), copies, predicts }
    }

    pub fn handle_settings(&mut self, settings: SyncSettings) {
        self.subscription.handle_settings(settings);
    }

    pub fn handle_states(&mut self, states: &[PublishedState]) {
        self.subscription.handle_states(states);
    }

    pub fn poll_timeout(&self, now: Moment) -> Moment {
        self.subscription.poll_timeout(now)
    }

    /// Computes the message that would be sent now, if any, and applies it to the copies.
    pub fn poll_message(
        &mut self,
        now: Moment,
        states: impl Fn() -> Vec<PublishedState>,
    ) -> Result<Option<Computed>, SubscriptionTooLarge> {
        // Compare with the states from which the frame is computed.
        let truth = RefCell::new(Vec::new());
        let frame = self.subscription.poll_frame(now, || {
            let states = states();
            truth.borrow_mut().clone_from(&states);
            states
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let message = frame::message(&frame);
        let checked = self.apply(&message, &truth.into_inner());
        Ok(Some(Computed { message, checked }))
    }

    /// Applies a message in its wire format, as a reader does, and verifies the result. Then replaces the copies by the
    /// published states, so that a mistake is counted only once.
    fn apply(&mut self, message: &v1::SubscribeInventoryResponse, truth: &[PublishedState]) -> Checked {
        let mut checked = Checked::default();
        for change in &message.changes {
            let position = change.watch as usize;
            let inventory = truth.get(position).and_then(|state| state.inventory.as_deref());
            let Some(held) = self.copies.get_mut(position) else {
                checked.mismatches += 1;
                continue;
            };
            checked.count(held.change(change, inventory, self.predicts));
            *held = inventory.into();
        }
        for mark in &message.marks {
            let position = mark.watch as usize;
            let inventory = truth.get(position).and_then(|state| state.inventory.as_deref());
            let Some(held) = self.copies.get_mut(position) else {
                checked.mismatches += 1;
                continue;
            };
            checked.count(held.compare(mark, self.predicts));
            *held = inventory.into();
        }
        checked
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    Same,
    Different,
    CannotTell,
}

impl Checked {
    fn count(&mut self, finding: Finding) {
        match finding {
            Finding::Same => {}
            Finding::Different => self.mismatches += 1,
            Finding::CannotTell => self.unverified += 1,
        }
    }
}

impl Held {
    /// Applies a change and compares the result with the published state.
    fn change(&self, change: &v1::InventoryChange, truth: Option<&Inventory>, predicts: bool) -> Finding {
        if change.absent {
            return if truth.is_none() { Finding::Same } else { Finding::Different };
        }
        let is_delta = change.full.is_none();
        let before = match self {
            Self::Unknown if is_delta => return Finding::CannotTell,
            Self::Known(_) if is_delta && predicts && change.skipped > 0 => return Finding::CannotTell,
            Self::Known(replica) => Some(replica),
            Self::Unknown | Self::Nothing => None,
        };
        let last_sent = before.map(|replica| replica.contents.revision());
        let frame = frame::inventory_frame(change, last_sent);
        let after = frame.and_then(|frame| Replica::apply(before, &frame).ok());
        let is_true = |(after, truth): (&Replica, &Inventory)| {
            after.cursor() == Cursor::of(truth) && after.contents.digest() == truth.contents.digest()
        };
        if after.as_ref().zip(truth).is_some_and(is_true) { Finding::Same } else { Finding::Different }
    }

    /// Compares the reader's state with a heartbeat.
    fn compare(&self, mark: &v1::Mark, predicts: bool) -> Finding {
        let replica = match self {
            Self::Unknown => return Finding::CannotTell,
            Self::Nothing => return Finding::Different,
            Self::Known(replica) => replica,
        };
        let digest = mark.digest.as_ref().map(frame::read_digest);
        let Cursor { epoch, revision } = replica.cursor();
        let same_epoch = epoch.get() == mark.epoch;
        if same_epoch && revision.0 == mark.revision && digest == Some(replica.contents.digest()) {
            return Finding::Same;
        }
        // The copy may be behind, because correct predictions are not sent.
        if predicts && same_epoch && revision.0 < mark.revision { Finding::CannotTell } else { Finding::Different }
    }
}

impl From<Option<&Inventory>> for Held {
    fn from(truth: Option<&Inventory>) -> Self {
        truth.map_or(Self::Nothing, |truth| {
            Self::Known(Replica { epoch: truth.epoch, contents: truth.contents.clone() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Attributes, Contents, Count, Epoch, InventoryId, ItemCode, LayoutId, Revision, Slot, Stack};
    use crate::sync::Published;
    use std::sync::Arc;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn stack(count: u32) -> Stack {
        Stack { item: ItemCode::new(1).unwrap(), count: Count::new(count).unwrap(), attributes: Attributes::NONE }
    }

    /// Returns states at `revision`; each revision has one item fewer in slot 0.
    fn states(revision: u32) -> Vec<PublishedState> {
        let edit = |revision| [(Slot(0), Some(stack(64 - revision)))];
        let first = Contents::new(27, Revision(1), &edit(1));
        let contents = (2..=revision).fold(first, |before, at| before.advanced(Revision(at.into()), &edit(at)));
        let inventory = Inventory {
            id: InventoryId::new("steve").unwrap(),
            owner: None,
            layout: LayoutId::new("chest").unwrap(),
            epoch: Epoch::new(7).unwrap(),
            contents,
        };
        vec![Arc::new(Published::new(Some(Arc::new(inventory))))]
    }

    fn shadow() -> Shadow {
        Shadow::new(SyncSettings::default(), SubscribeOptions { resume: vec![None], ..SubscribeOptions::default() })
    }

    /// Computes the frame at `now`, changes its message with `broken`, and applies the changed message.
    fn checked_with(
        shadow: &mut Shadow,
        now: Duration,
        states: &[PublishedState],
        broken: impl Fn(&mut v1::SubscribeInventoryResponse),
    ) -> Checked {
        shadow.handle_states(states);
        let frame = shadow.subscription.poll_frame(now, || states.to_vec()).expect("they fit").expect("one is due");
        let mut message = frame::message(&frame);
        broken(&mut message);
        shadow.apply(&message, states)
    }

    #[test]
    fn a_right_frame_is_found_right_and_a_broken_one_is_found_once() {
        let mut shadow = shadow();
        let (one, two, three) = (states(1), states(2), states(3));
        assert_eq!(checked_with(&mut shadow, SECOND, &one, |_| {}), Checked::default());
        let mismatch = Checked { mismatches: 1, unverified: 0 };
        let broken = checked_with(&mut shadow, 2 * SECOND, &two, |message| message.changes[0].counts[0] += 1);
        assert_eq!(broken, mismatch);
        assert_eq!(checked_with(&mut shadow, 3 * SECOND, &three, |_| {}), Checked::default(), "it was put right");
    }

    #[test]
    fn whatever_is_wrong_with_a_frame_is_a_mismatch() {
        type Breaking = fn(&mut v1::SubscribeInventoryResponse);
        let breakings: [Breaking; 6] = [
            |message| message.changes[0].check ^= 1,
            |message| message.changes[0].advance += 1,
            |message| message.changes[0].slots[0] = 9,
            |message| message.changes[0].counts.clear(),
            |message| message.changes[0].watch = 1,
            |message| message.changes[0].absent = true,
        ];
        for (index, breaking) in breakings.into_iter().enumerate() {
            let mut shadow = shadow();
            checked_with(&mut shadow, SECOND, &states(1), |_| {});
            let checked = checked_with(&mut shadow, 2 * SECOND, &states(2), breaking);
            assert_eq!(checked, Checked { mismatches: 1, unverified: 0 }, "breaking {index}");
        }
    }

    #[test]
    fn a_heartbeat_finds_a_reader_that_missed_a_frame() {
        let mut shadow = shadow();
        checked_with(&mut shadow, SECOND, &states(1), |_| {});
        let lost = checked_with(&mut shadow, 2 * SECOND, &states(2), |message| message.changes.clear());
        assert_eq!(lost, Checked::default(), "nothing came, so that nothing is compared");
        let beat = checked_with(&mut shadow, 60 * SECOND, &states(2), |_| {});
        assert_eq!(beat, Checked { mismatches: 1, unverified: 0 });
        let beat = checked_with(&mut shadow, 120 * SECOND, &states(2), |_| {});
        assert_eq!(beat, Checked::default());
    }

    #[test]
    fn what_only_a_resumed_reader_knows_is_not_judged_once() {
        let before = Cursor { epoch: Epoch::new(7).unwrap(), revision: Revision(1) };
        let options = SubscribeOptions { resume: vec![Some(before)], ..SubscribeOptions::default() };
        let mut shadow = Shadow::new(SyncSettings::default(), options);
        let resumed = checked_with(&mut shadow, SECOND, &states(2), |_| {});
        assert_eq!(resumed, Checked { mismatches: 0, unverified: 1 });
        assert_eq!(checked_with(&mut shadow, 2 * SECOND, &states(3), |_| {}), Checked::default());
    }

    #[test]
    fn what_becomes_absent_and_comes_back_is_found_right_also_by_a_shadow_that_joins_while_it_is_absent() {
        let absent = vec![PublishedState::default()];
        let mut shadow = shadow();
        let mut joined = Shadow::join(SyncSettings::default(), SubscribeOptions::default(), &absent);
        let first = joined.poll_message(SECOND, || absent.clone()).expect("they fit").expect("it has caught up");
        assert!(first.message.changes.is_empty(), "its reader knows");
        checked_with(&mut shadow, SECOND, &states(1), |_| {});
        assert_eq!(checked_with(&mut shadow, 2 * SECOND, &absent, |_| {}), Checked::default());
        for shadow in [&mut shadow, &mut joined] {
            assert_eq!(checked_with(shadow, 3 * SECOND, &states(2), |_| {}), Checked::default());
        }
        let untold = checked_with(&mut shadow, 4 * SECOND, &absent, |message| message.changes[0].absent = false);
        assert_eq!(untold, Checked { mismatches: 1, unverified: 0 });
    }

    #[test]
    fn a_shadow_that_joins_later_computes_nothing_until_something_changes() {
        let now = states(4);
        let mut shadow = Shadow::join(SyncSettings::default(), SubscribeOptions::default(), &now);
        let first = shadow.poll_message(SECOND, || now.clone()).expect("they fit").expect("it has caught up");
        assert!(first.message.changes.is_empty() && first.checked == Checked::default());
        let next = states(5);
        shadow.handle_states(&next);
        let next = shadow.poll_message(3 * SECOND, || next.clone()).expect("they fit").expect("it is due");
        assert_eq!((next.message.changes.len(), next.checked), (1, Checked::default()));
    }
}
