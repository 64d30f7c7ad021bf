//! Properties of frames and subscriptions: for every history and cursor, the frames lead a reader to the current state.

use crate::support::random::{History, NAMES, config, history};
use crate::support::{World, id};
use proptest::prelude::*;
use slotcast::domain::{Contents, Epoch, Inventory, InventoryLookup, Mutation, Revision, Slot, Stack};
use slotcast::sync::{
    Cursor, Frame, FrameBody, FullReason, InventoryFrame, Moment, PublishedState, Replica, SlotChange,
    SubscribeOptions, Subscription, SyncSettings, Windows, frame_since,
};
use std::sync::Arc;
use std::time::Duration;

/// Returns the states of each epoch of each inventory, in order.
fn epochs_of(History { mut world, mutations }: History) -> Vec<Vec<Arc<Inventory>>> {
    let mut lives: Vec<Vec<Arc<Inventory>>> = world.inventories.values().map(|first| vec![first.clone()]).collect();
    for mutation in mutations {
        for state in world.mutate(&mutation).into_iter().flat_map(|effect| effect.touched).filter_map(|t| t.state) {
            match lives.iter_mut().find(|life| life[0].epoch == state.epoch) {
                Some(life) => life.push(state),
                None => lives.push(vec![state]),
            }
        }
    }
    lives.iter_mut().for_each(|life| life.dedup());
    lives
}

fn replica_of(inventory: &Inventory) -> Replica {
    Replica { epoch: inventory.epoch, contents: inventory.contents.clone() }
}

fn stacks(contents: &Contents) -> Vec<Option<Stack>> {
    contents.slots().iter().map(|state| state.stack.clone()).collect()
}

fn check_equal(replica: &Replica, inventory: &Inventory) -> Result<(), TestCaseError> {
    prop_assert_eq!(replica.cursor(), Cursor::of(inventory));
    prop_assert_eq!(replica.contents.digest(), inventory.contents.digest());
    prop_assert_eq!(stacks(&replica.contents), stacks(&inventory.contents));
    Ok(())
}

/// Returns the item and attributes of the stack in a slot.
fn kind(inventory: &Inventory, slot: Slot) -> Option<(u32, &[u8])> {
    inventory.contents.stack(slot).map(|stack| (stack.item.get(), stack.attributes.as_bytes()))
}

proptest! {
    #![proptest_config(config(192))]

    #[test]
    fn a_frame_since_any_cursor_yields_the_current_state(history in history(), delta_slots_max in delta_slots_max()) {
        for life in epochs_of(history) {
            for (position, now) in life.iter().enumerate() {
                for then in &life[..=position] {
                    let replica = replica_of(then);
                    match frame_since(now, Some(replica.cursor()), delta_slots_max) {
                        None => check_equal(&replica, now)?,
                        Some(frame) => {
                            prop_assert!(replica.cursor() != Cursor::of(now));
                            check_equal(&Replica::apply(Some(&replica), &frame).unwrap(), now)?;
                        }
                    }
                }
                let full = frame_since(now, None, delta_slots_max).expect("a reader with nothing lacks everything");
                check_equal(&Replica::apply(None, &full).unwrap(), now)?;
            }
        }
    }

    #[test]
    fn a_reader_that_polls_at_any_time_converges(
        history in history(),
        delta_slots_max in delta_slots_max(),
        looks in prop::collection::vec(any::<bool>(), 64),
    ) {
        for life in epochs_of(history) {
            let mut replica: Option<Replica> = None;
            for (now, _) in life.iter().zip(looks.iter().cycle()).filter(|(_, look)| **look) {
                let cursor = replica.as_ref().map(Replica::cursor);
                if let Some(frame) = frame_since(now, cursor, delta_slots_max) {
                    replica = Some(Replica::apply(replica.as_ref(), &frame).unwrap());
                }
                check_equal(replica.as_ref().unwrap(), now)?;
            }
        }
    }

    #[test]
    fn a_delta_contains_only_changed_slots_and_omits_unchanged_items(history in history()) {
        for life in epochs_of(history) {
            let now = life.last().unwrap();
            for (position, then) in life.iter().enumerate() {
                let Some(frame) = frame_since(now, Some(Cursor::of(then)), usize::MAX) else { continue };
                let base = then.contents.revision();
                prop_assert_eq!(frame.body, FrameBody::Delta { last_sent: base, base, revision: now.contents.revision() });
                let since = &life[position..];
                let mut changes = frame.changes.iter().peekable();
                for slot in (0..now.contents.slots().len() as u16).map(Slot) {
                    let changed = since.windows(2).any(|two| two[0].contents.stack(slot) != two[1].contents.stack(slot));
                    let other_kind = since.windows(2).any(|two| kind(&two[0], slot) != kind(&two[1], slot));
                    let expected = match now.contents.stack(slot) {
                        _ if !changed => None,
                        None => Some(SlotChange::Emptied { slot }),
                        Some(stack) if other_kind => Some(SlotChange::Filled { slot, stack: stack.clone() }),
                        Some(stack) => Some(SlotChange::Count { slot, count: stack.count.get() }),
                    };
                    prop_assert_eq!(changes.next_if(|change| Some(*change) == expected.as_ref()), expected.as_ref());
                }
                prop_assert_eq!(changes.next(), None);
            }
        }
    }

    #[test]
    fn a_frame_is_full_only_for_a_reason(
        history in history(),
        delta_slots_max in delta_slots_max(),
        ahead in 1_u64..1_000_000,
    ) {
        for life in epochs_of(history) {
            let now = life.last().unwrap();
            let other = Cursor { epoch: Epoch::new(7).unwrap(), ..Cursor::of(now) };
            let ahead = Revision(now.contents.revision().0.saturating_add(ahead));
            let future = Cursor { revision: ahead, ..Cursor::of(now) };
            for (cursor, reason) in [
                (None, FullReason::Initial),
                (Some(other), FullReason::EpochChanged),
                (Some(future), FullReason::FromTheFuture),
            ] {
                let frame = frame_since(now, cursor, delta_slots_max).unwrap();
                prop_assert_eq!(frame.body, full_body(now, reason));
                check_equal(&Replica::apply(None, &frame).unwrap(), now)?;
            }
            for then in &life[..life.len() - 1] {
                let frame = frame_since(now, Some(Cursor::of(then)), delta_slots_max).unwrap();
                let delta = frame_since(now, Some(Cursor::of(then)), usize::MAX).unwrap();
                if delta_slots_max == 0 {
                    prop_assert_eq!(frame.body, full_body(now, FullReason::DeltaOff));
                } else if delta.changes.len() > delta_slots_max {
                    prop_assert_eq!(frame.body, full_body(now, FullReason::ManyChanges));
                } else {
                    prop_assert_eq!(frame, delta);
                }
            }
        }
    }

    #[test]
    fn a_replica_rejects_a_frame_for_another_state(history in history(), flip in 1_u32..) {
        for life in epochs_of(history).iter().filter(|life| life.len() > 2) {
            let [first, second, .., last] = life.as_slice() else { continue };
            let delta = frame_since(last, Some(Cursor::of(second)), usize::MAX).unwrap();
            prop_assert!(Replica::apply(Some(&replica_of(first)), &delta).is_err());
            prop_assert!(Replica::apply(None, &delta).is_err());
            let damaged = InventoryFrame { check: delta.check ^ flip, ..delta };
            prop_assert!(Replica::apply(Some(&replica_of(second)), &damaged).is_err());
        }
    }

    #[test]
    fn a_delta_applies_to_every_replica_between_its_base_and_its_revision(history in history()) {
        for life in epochs_of(history) {
            let (first, last) = (&life[0], life.last().unwrap());
            let Some(delta) = frame_since(last, Some(Cursor::of(first)), usize::MAX) else { continue };
            for between in &life {
                check_equal(&Replica::apply(Some(&replica_of(between)), &delta).unwrap(), last)?;
            }
        }
    }

    #[test]
    fn a_subscription_keeps_its_guarantees_in_every_history(
        history in history(),
        settings in settings(),
        starts in prop::collection::vec(start(), NAMES.len()),
        pauses in prop::collection::vec(pause(), 1..16),
    ) {
        let mut stream = Stream::new(history.world, settings, &starts);
        stream.poll_until(Moment::ZERO)?;
        for (mutation, pause) in history.mutations.iter().zip(pauses.iter().cycle()) {
            match pause {
                Pause::Watching(pause) => stream.poll_until(stream.now + *pause)?,
                // The transport does not poll for a frame while the state changes.
                Pause::Stalled(pause) => stream.now += *pause,
            }
            stream.mutate(mutation);
        }
        stream.poll_until(stream.now + settings.windows.news)?;
        prop_assert!(stream.is_up_to_date(), "after quiet the reader has everything");
        let sent = stream.syncs;
        stream.poll_until(stream.now + settings.heartbeat * 3 + settings.windows.news)?;
        prop_assert_eq!(stream.syncs, sent, "nothing is sent when nothing changes");
        prop_assert!(stream.heartbeats >= 2, "but a sign of life");
    }
}

fn full_body(inventory: &Inventory, reason: FullReason) -> FrameBody {
    let Inventory { epoch, contents, .. } = inventory;
    FrameBody::Full { epoch: *epoch, revision: contents.revision(), slots: contents.slots().len(), reason }
}

fn delta_slots_max() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1_usize..4, Just(10), Just(usize::MAX)]
}

fn settings() -> impl Strategy<Value = SyncSettings> {
    let window = prop_oneof![Just(0), Just(100), Just(1_000), Just(30_000)].prop_map(Duration::from_millis);
    (window, delta_slots_max()).prop_map(|(window, delta_slots_max)| SyncSettings {
        windows: Windows { news: window, echo: window, tick: Duration::ZERO },
        delta_slots_max,
        ..SyncSettings::default()
    })
}

/// The cursor with which a reader subscribes.
#[derive(Debug, Clone)]
enum Start {
    WithNothing,
    AtTheState,
    /// With a cursor of an unknown epoch or revision.
    Elsewhere {
        other_epoch: bool,
        ahead: u64,
    },
}

fn start() -> impl Strategy<Value = Start> {
    let elsewhere = (any::<bool>(), 1_u64..9).prop_map(|(other_epoch, ahead)| Start::Elsewhere { other_epoch, ahead });
    prop_oneof![Just(Start::WithNothing), Just(Start::AtTheState), elsewhere]
}

#[derive(Debug, Clone)]
enum Pause {
    Watching(Duration),
    Stalled(Duration),
}

fn pause() -> impl Strategy<Value = Pause> {
    let ms = prop_oneof![6 => 0_u64..250, 2 => 250_u64..3_000, 1 => 10_000_u64..40_000];
    (ms.prop_map(Duration::from_millis), any::<bool>())
        .prop_map(|(pause, stalled)| if stalled { Pause::Stalled(pause) } else { Pause::Watching(pause) })
}

/// A subscription to all inventories in virtual time, and its reader, which checks each frame.
struct Stream {
    world: World,
    settings: SyncSettings,
    subscription: Subscription,
    replicas: Vec<Option<Replica>>,
    reported_absent: Vec<bool>,
    now: Moment,
    sync_at: Option<Moment>,
    frame_at: Option<Moment>,
    /// Time of the oldest change that no frame has delivered.
    waiting_since: Option<Moment>,
    syncs: u32,
    heartbeats: u32,
}

impl Stream {
    fn new(world: World, settings: SyncSettings, starts: &[Start]) -> Self {
        let states = states(&world);
        let at = |state: &Arc<PublishedState>| state.inventory.as_deref().map(replica_of);
        let replica = |(state, start)| if matches!(start, &Start::AtTheState) { at(state) } else { None };
        let replicas: Vec<_> = states.iter().zip(starts).map(replica).collect();
        let resume = states.iter().zip(starts).map(|(state, start)| resumed(state, start)).collect();
        Self {
            world,
            settings,
            subscription: Subscription::new(settings, SubscribeOptions { resume, ..SubscribeOptions::default() }),
            reported_absent: vec![false; replicas.len()],
            replicas,
            now: Moment::ZERO,
            sync_at: None,
            frame_at: None,
            waiting_since: Some(Moment::ZERO),
            syncs: 0,
            heartbeats: 0,
        }
    }

    fn mutate(&mut self, mutation: &Mutation) {
        let Ok(effect) = self.world.mutate(mutation) else { return };
        if effect.touched.iter().any(|touched| touched.is_changed()) {
            self.subscription.handle_states(&states(&self.world));
            self.waiting_since.get_or_insert(self.now);
        }
    }

    fn is_up_to_date(&self) -> bool {
        states(&self.world).iter().zip(&self.replicas).all(|(state, replica)| match (&state.inventory, replica) {
            (None, None) => true,
            (Some(state), Some(replica)) => check_equal(replica, state).is_ok(),
            (None, Some(_)) | (Some(_), None) => false,
        })
    }

    /// Polls the subscription at every time that it requests.
    fn poll_until(&mut self, end: Moment) -> Result<(), TestCaseError> {
        let started = self.now;
        loop {
            let states = states(&self.world);
            while let Some(frame) = self.subscription.poll_frame(self.now, || states.clone()).unwrap() {
                self.receive(frame, started)?;
            }
            let next = self.subscription.poll_timeout(self.now);
            prop_assert!(next > self.now, "asking again now would be of no use");
            if next > end {
                self.now = end;
                return Ok(());
            }
            self.now = next;
        }
    }

    fn receive(&mut self, frame: Frame, watching_since: Moment) -> Result<(), TestCaseError> {
        prop_assert_eq!(frame.caught_up, self.frame_at.is_none(), "reported once, with the first frame");
        let states = states(&self.world);
        if !frame.is_heartbeat() {
            prop_assert!(frame.versions.is_empty());
            let window_over = self.sync_at.map_or(Moment::ZERO, |at| at + self.settings.windows.news);
            prop_assert!(self.now >= window_over, "never within the window");
            let due = self.waiting_since.expect("something waits").max(window_over);
            prop_assert_eq!(self.now, due.max(watching_since), "and at once when it may");
            self.apply(&frame)?;
            self.sync_at = Some(self.now);
            self.syncs += 1;
        } else {
            prop_assert!(self.now >= self.frame_at.unwrap() + self.settings.heartbeat, "only when idle");
            let versions =
                states.iter().enumerate().filter_map(|(at, state)| Some((at, state.inventory.as_ref()?.version())));
            prop_assert_eq!(frame.versions, versions.collect::<Vec<_>>());
            self.heartbeats += 1;
        }
        prop_assert!(self.is_up_to_date(), "a frame brings all inventories to one and the same moment");
        self.waiting_since = None;
        self.frame_at = Some(self.now);
        Ok(())
    }

    fn apply(&mut self, frame: &Frame) -> Result<(), TestCaseError> {
        for (position, part) in &frame.changed {
            self.reported_absent[*position] = false;
            let replica = &mut self.replicas[*position];
            *replica = Some(Replica::apply(replica.as_ref(), part).unwrap());
        }
        for position in &frame.absent {
            prop_assert!(!std::mem::replace(&mut self.reported_absent[*position], true), "absence is reported once");
            self.replicas[*position] = None;
        }
        Ok(())
    }
}

fn states(world: &World) -> Vec<Arc<PublishedState>> {
    NAMES.iter().map(|name| Arc::new(PublishedState::new(world.inventory(&id(name))))).collect()
}

fn resumed(state: &Arc<PublishedState>, start: &Start) -> Option<Cursor> {
    let at = Cursor::of(state.inventory.as_ref()?);
    match start {
        Start::WithNothing => None,
        Start::AtTheState => Some(at),
        Start::Elsewhere { other_epoch: true, .. } => Some(Cursor { epoch: Epoch::new(7).unwrap(), ..at }),
        Start::Elsewhere { ahead, .. } => Some(Cursor { revision: Revision(at.revision.0 + ahead), ..at }),
    }
}
