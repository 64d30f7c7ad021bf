//! Shadow mode: computes and verifies the frames that a stream would send with all features enabled. A shadow has its
//! own subscription and a copy of the states that its reader would have.
//!
//! A shadow runs only when its stream is polled, so that a stalled reader causes no work here either.

use crate::domain::Inventory;
use crate::sync::{
    Cursor, Moment, PublishedState, Replica, SubscribeOptions, Subscription, SubscriptionTooLarge, SyncSettings,
};
use crate::wire::{frame, v1};
use std::sync::Arc;

pub struct Shadow {
    subscription: Subscription,
    /// The state that the reader would have of each inventory.
    copies: Vec<ReaderState>,
    predicts: bool,
}

#[derive(Debug)]
enum ReaderState {
    Empty,
    Known(Replica),
    /// Only the reader knows its state, because it resumed.
    Unknown,
}

/// The message that would be sent now, and the result of its verification.
#[derive(Debug)]
pub struct ShadowFrame {
    pub message: v1::SubscribeInventoryResponse,
    pub verification: Verification,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Verification {
    /// Number of inventories of which the reader would have a wrong state.
    pub mismatches: u64,
    /// Number of inventories that cannot be verified.
    pub unverified: u64,
}

impl Shadow {
    /// Creates the shadow of a new stream.
    pub fn new(settings: SyncSettings, options: SubscribeOptions) -> Self {
        let copy = |resume: &Option<Cursor>| if resume.is_some() { ReaderState::Unknown } else { ReaderState::Empty };
        let copies = options.resume.iter().map(copy).collect();
        let predicts = options.session.is_some();
        Self { subscription: Subscription::new(settings, options), copies, predicts }
    }

    /// Creates the shadow of an open stream, as if its reader had the current states.
    pub fn join(settings: SyncSettings, options: SubscribeOptions, states: &[Arc<PublishedState>]) -> Self {
        let copies = states.iter().map(|state| state.inventory.as_deref().into()).collect();
        let predicts = options.session.is_some();
        Self { subscription: Subscription::with_states(settings, options, states), copies, predicts }
    }

    pub fn handle_settings(&mut self, settings: SyncSettings) {
        self.subscription.handle_settings(settings);
    }

    pub fn handle_states(&mut self, states: &[Arc<PublishedState>]) {
        self.subscription.handle_states(states);
    }

    pub fn poll_timeout(&self, now: Moment) -> Moment {
        self.subscription.poll_timeout(now)
    }

    /// Computes the message that would be sent now, if any, and applies it to the copies. `states` are the newest
    /// states, with which the copies are compared.
    pub fn poll_message(
        &mut self,
        now: Moment,
        states: &[Arc<PublishedState>],
    ) -> Result<Option<ShadowFrame>, SubscriptionTooLarge> {
        let Some(frame) = self.subscription.poll_frame(now, || states)? else { return Ok(None) };
        let message = frame::encode_frame(&frame);
        let verification = self.apply(&message, states);
        Ok(Some(ShadowFrame { message, verification }))
    }

    /// Applies a message in its wire format, as a reader does, and verifies the result. Then replaces the copies by the
    /// published states, so that a mistake is counted only once.
    fn apply(&mut self, message: &v1::SubscribeInventoryResponse, published: &[Arc<PublishedState>]) -> Verification {
        let mut verification = Verification::default();
        for change in &message.changes {
            let position = change.watch as usize;
            let inventory = published.get(position).and_then(|state| state.inventory.as_deref());
            let Some(copy) = self.copies.get_mut(position) else {
                verification.mismatches += 1;
                continue;
            };
            verification.count(copy.apply(change, inventory, self.predicts));
            *copy = inventory.into();
        }
        for mark in &message.marks {
            let position = mark.watch as usize;
            let inventory = published.get(position).and_then(|state| state.inventory.as_deref());
            let Some(copy) = self.copies.get_mut(position) else {
                verification.mismatches += 1;
                continue;
            };
            verification.count(copy.compare(mark, self.predicts));
            *copy = inventory.into();
        }
        verification
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Different,
    Unverifiable,
}

impl Verification {
    fn count(&mut self, comparison: Comparison) {
        match comparison {
            Comparison::Equal => {}
            Comparison::Different => self.mismatches += 1,
            Comparison::Unverifiable => self.unverified += 1,
        }
    }
}

impl ReaderState {
    /// Applies a change and compares the result with the published state.
    fn apply(&self, change: &v1::InventoryChange, published: Option<&Inventory>, predicts: bool) -> Comparison {
        if change.absent {
            return if published.is_none() { Comparison::Equal } else { Comparison::Different };
        }
        let is_delta = change.full.is_none();
        let before = match self {
            Self::Unknown if is_delta => return Comparison::Unverifiable,
            Self::Known(_) if is_delta && predicts && change.skipped > 0 => return Comparison::Unverifiable,
            Self::Known(replica) => Some(replica),
            Self::Unknown | Self::Empty => None,
        };
        let last_sent = before.map(|replica| replica.contents.revision());
        let frame = frame::decode_inventory_frame(change, last_sent);
        let after = frame.and_then(|frame| Replica::apply(before, &frame).ok());
        let is_equal = |(after, published): (&Replica, &Inventory)| {
            after.cursor() == Cursor::of(published) && after.contents.digest() == published.contents.digest()
        };
        if after.as_ref().zip(published).is_some_and(is_equal) { Comparison::Equal } else { Comparison::Different }
    }

    /// Compares the reader's state with a heartbeat.
    fn compare(&self, mark: &v1::Mark, predicts: bool) -> Comparison {
        let replica = match self {
            Self::Unknown => return Comparison::Unverifiable,
            Self::Empty => return Comparison::Different,
            Self::Known(replica) => replica,
        };
        let digest = mark.digest.as_ref().map(frame::decode_digest);
        let Cursor { epoch, revision } = replica.cursor();
        let same_epoch = epoch.get() == mark.epoch;
        if same_epoch && revision.0 == mark.revision && digest == Some(replica.contents.digest()) {
            return Comparison::Equal;
        }
        // The copy may be behind, because correct predictions are not sent.
        if predicts && same_epoch && revision.0 < mark.revision {
            Comparison::Unverifiable
        } else {
            Comparison::Different
        }
    }
}

impl From<Option<&Inventory>> for ReaderState {
    fn from(published: Option<&Inventory>) -> Self {
        published.map_or(Self::Empty, |published| {
            Self::Known(Replica { epoch: published.epoch, contents: published.contents.clone() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Attributes, Contents, Count, Epoch, InventoryId, ItemCode, LayoutId, Revision, Slot, Stack};
    use std::sync::Arc;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn stack(count: u32) -> Stack {
        Stack { item: ItemCode::new(1).unwrap(), count: Count::new(count).unwrap(), attributes: Attributes::NONE }
    }

    /// Returns states at `revision`; each revision has one item fewer in slot 0.
    fn states(revision: u32) -> Vec<Arc<PublishedState>> {
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
        vec![Arc::new(PublishedState::new(Some(Arc::new(inventory))))]
    }

    fn shadow() -> Shadow {
        Shadow::new(SyncSettings::default(), SubscribeOptions { resume: vec![None], ..SubscribeOptions::default() })
    }

    /// Computes the frame at `now`, changes its message with `corrupt`, and applies the changed message.
    fn verify_with(
        shadow: &mut Shadow,
        now: Duration,
        states: &[Arc<PublishedState>],
        corrupt: impl Fn(&mut v1::SubscribeInventoryResponse),
    ) -> Verification {
        shadow.handle_states(states);
        let frame = shadow
            .subscription
            .poll_frame(now, || states.to_vec())
            .expect("within the slot limit")
            .expect("one is due");
        let mut message = frame::encode_frame(&frame);
        corrupt(&mut message);
        shadow.apply(&message, states)
    }

    #[test]
    fn a_correct_frame_passes_and_a_wrong_frame_counts_once() {
        let mut shadow = shadow();
        let (one, two, three) = (states(1), states(2), states(3));
        assert_eq!(verify_with(&mut shadow, SECOND, &one, |_| {}), Verification::default());
        let mismatch = Verification { mismatches: 1, unverified: 0 };
        let corrupted = verify_with(&mut shadow, 2 * SECOND, &two, |message| message.changes[0].counts[0] += 1);
        assert_eq!(corrupted, mismatch);
        assert_eq!(
            verify_with(&mut shadow, 3 * SECOND, &three, |_| {}),
            Verification::default(),
            "the copy was corrected"
        );
    }

    #[test]
    fn any_error_in_a_frame_is_a_mismatch() {
        type Corruption = fn(&mut v1::SubscribeInventoryResponse);
        let corruptions: [Corruption; 6] = [
            |message| message.changes[0].check ^= 1,
            |message| message.changes[0].advance += 1,
            |message| message.changes[0].slots[0] = 9,
            |message| message.changes[0].counts.clear(),
            |message| message.changes[0].watch = 1,
            |message| message.changes[0].absent = true,
        ];
        for (index, corruption) in corruptions.into_iter().enumerate() {
            let mut shadow = shadow();
            verify_with(&mut shadow, SECOND, &states(1), |_| {});
            let verification = verify_with(&mut shadow, 2 * SECOND, &states(2), corruption);
            assert_eq!(verification, Verification { mismatches: 1, unverified: 0 }, "corruption {index}");
        }
    }

    #[test]
    fn a_heartbeat_detects_that_the_reader_missed_a_frame() {
        let mut shadow = shadow();
        verify_with(&mut shadow, SECOND, &states(1), |_| {});
        let lost = verify_with(&mut shadow, 2 * SECOND, &states(2), |message| message.changes.clear());
        assert_eq!(lost, Verification::default(), "no frame arrived, so there is nothing to compare");
        let heartbeat = verify_with(&mut shadow, 60 * SECOND, &states(2), |_| {});
        assert_eq!(heartbeat, Verification { mismatches: 1, unverified: 0 });
        let heartbeat = verify_with(&mut shadow, 120 * SECOND, &states(2), |_| {});
        assert_eq!(heartbeat, Verification::default());
    }

    #[test]
    fn the_first_delta_of_a_resumed_reader_is_unverifiable() {
        let before = Cursor { epoch: Epoch::new(7).unwrap(), revision: Revision(1) };
        let options = SubscribeOptions { resume: vec![Some(before)], ..SubscribeOptions::default() };
        let mut shadow = Shadow::new(SyncSettings::default(), options);
        let resumed = verify_with(&mut shadow, SECOND, &states(2), |_| {});
        assert_eq!(resumed, Verification { mismatches: 0, unverified: 1 });
        assert_eq!(verify_with(&mut shadow, 2 * SECOND, &states(3), |_| {}), Verification::default());
    }

    #[test]
    fn an_inventory_that_is_deleted_and_created_again_passes_also_in_a_shadow_that_joins_in_between() {
        let absent = vec![Arc::default()];
        let mut shadow = shadow();
        let mut joined = Shadow::join(SyncSettings::default(), SubscribeOptions::default(), &absent);
        let first = joined.poll_message(SECOND, &absent).expect("within the slot limit").expect("it has caught up");
        assert!(first.message.changes.is_empty(), "the reader already knows that the inventory is absent");
        verify_with(&mut shadow, SECOND, &states(1), |_| {});
        assert_eq!(verify_with(&mut shadow, 2 * SECOND, &absent, |_| {}), Verification::default());
        for shadow in [&mut shadow, &mut joined] {
            assert_eq!(verify_with(shadow, 3 * SECOND, &states(2), |_| {}), Verification::default());
        }
        let missing = verify_with(&mut shadow, 4 * SECOND, &absent, |message| message.changes[0].absent = false);
        assert_eq!(missing, Verification { mismatches: 1, unverified: 0 });
    }

    #[test]
    fn a_shadow_that_joins_later_computes_no_changes_until_an_inventory_changes() {
        let now = states(4);
        let mut shadow = Shadow::join(SyncSettings::default(), SubscribeOptions::default(), &now);
        let first = shadow.poll_message(SECOND, &now).expect("within the slot limit").expect("it has caught up");
        assert!(first.message.changes.is_empty() && first.verification == Verification::default());
        let next = states(5);
        shadow.handle_states(&next);
        let next = shadow.poll_message(3 * SECOND, &next).expect("within the slot limit").expect("it is due");
        assert_eq!((next.message.changes.len(), next.verification), (1, Verification::default()));
    }
}
