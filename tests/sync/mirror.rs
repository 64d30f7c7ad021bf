//! The mirror of a predicting client, step by step: the order of replies and frames, and the state shown meanwhile.

use crate::support::service::{Call, Service};
use crate::support::{World, count, filled, id, item, layout_id, stack};
use slotcast::catalog_file::default_catalog;
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, IdempotencyKey, InventoryId, KeyTag, Mutation, Operation, RejectionCause, SessionId, Slot, Version,
};
use slotcast::sync::mirror::PENDING_MAX;
use slotcast::sync::{
    Frame, FrameBody, FullReason, Mirror, MirrorUpdate, Moment, PredictError, Prediction, Replica, SubscribeOptions,
    Subscription, SyncSettings, SyncTrigger,
};
use std::sync::Arc;
use std::time::Duration;

const PLANKS: u32 = 1;

/// A service, a session and its stream, which the test drives.
struct Table {
    service: Service,
    mirror: Mirror,
    stream: Subscription,
    ids: Vec<InventoryId>,
    now: Moment,
    calls: u32,
}

/// Returns a player with ten planks in each of slots 0 and 1, and an empty chest, after the first frame.
fn table() -> Table {
    let mut world = World::new(default_catalog());
    world.put("anna", "player", 5, &[filled(0, stack(PLANKS, 10)), filled(1, stack(PLANKS, 10))]);
    world.put("chest", "chest", 3, &[]);
    let ids = vec![id("anna"), id("chest")];
    let mirror = Mirror::new(ids.clone(), Arc::new(default_catalog()));
    let (service, stream) = (Service::new(world), subscription(vec![None, None]));
    let mut table = Table { service, mirror, stream, ids, now: Moment::ZERO, calls: 0 };
    table.deliver();
    table
}

fn session() -> SessionId {
    SessionId::new("session").unwrap()
}

fn subscription(resume: Vec<Option<slotcast::sync::Cursor>>) -> Subscription {
    Subscription::new(
        SyncSettings::default(),
        SubscribeOptions { resume, session: Some(session()), ..SubscribeOptions::default() },
    )
}

fn drop_one(slot: u16) -> Operation {
    Operation::Drop { id: id("anna"), slot: Slot(slot), count: Some(count(1)) }
}

fn store(slot: u16) -> Operation {
    let what = TransferSource::Slot { slot: Slot(slot), count: None };
    Operation::Transfer { from: id("anna"), what, to: id("chest"), to_slot: None, allow_partial: false }
}

fn add(to: &str, number: u32) -> Operation {
    let attributes = Attributes::NONE;
    Operation::Add { id: id(to), item: item(PLANKS), attributes, count: count(number), allow_partial: false }
}

fn mutation_of(operation: Operation) -> Mutation {
    Mutation { operations: vec![operation], expected: vec![] }
}

impl Table {
    fn key(&mut self) -> IdempotencyKey {
        self.calls += 1;
        IdempotencyKey::new(&format!("key-{}", self.calls)).unwrap()
    }

    /// MirrorUpdate at once; the call is still to be made.
    fn predict(&mut self, operation: Operation) -> Call {
        let (key, mutation) = (self.key(), mutation_of(operation));
        let Ok(Prediction::Made(predicted)) = self.mirror.predict(KeyTag::of(&key), mutation.clone()) else { panic!() };
        Call { key, mutation, session: Some(session()), predicted }
    }

    fn mutate_as_another(&mut self, operation: Operation) {
        let key = self.key();
        self.service.mutate(&Call { key, mutation: mutation_of(operation), session: None, predicted: vec![] }).unwrap();
    }

    fn reply(&mut self, call: &Call, versions: &[Version]) {
        self.mirror.handle_reply(KeyTag::of(&call.key), versions);
    }

    /// Returns the next frame that is due before the next heartbeat.
    fn frame(&mut self) -> Option<Frame> {
        let states = self.service.states(&self.ids);
        self.stream.handle_states(&states);
        let due = self.stream.poll_timeout(self.now).max(self.now);
        if due > self.now + Duration::from_secs(5) {
            return None;
        }
        self.now = due;
        self.stream.poll_frame(self.now, || states.clone()).unwrap()
    }

    fn deliver(&mut self) -> MirrorUpdate {
        let frame = self.frame().expect("something to send");
        self.mirror.handle_frame(&frame)
    }

    fn shown(&self, position: usize, slot: u16) -> u32 {
        self.mirror.view(position).unwrap().stack(Slot(slot)).map_or(0, |stack| stack.count.get())
    }

    fn assert_converged(&self) {
        assert_eq!((self.mirror.pending(), self.mirror.desyncs()), (0, 0));
        for (position, id) in self.ids.iter().enumerate() {
            let (view, truth) = (self.mirror.view(position).unwrap(), self.service.world.get(id.as_str()).version());
            assert_eq!((view.revision(), view.digest()), (truth.revision, truth.digest), "{id}");
        }
    }
}

#[test]
fn a_correct_prediction_needs_no_frame_and_the_next_delta_is_based_on_it() {
    let mut table = table();
    for _ in 0..8 {
        let call = table.predict(drop_one(0));
        let versions = table.service.mutate(&call).unwrap();
        table.reply(&call, &versions);
    }
    assert_eq!(table.frame(), None);
    table.assert_converged();
    table.mutate_as_another(add("chest", 3));
    table.mutate_as_another(add("anna", 1));
    let frame = table.frame().unwrap();
    let FrameBody::Delta { last_sent, base, revision } = frame.changed[0].1.body else { panic!("{frame:?}") };
    assert_eq!((last_sent.0, base.0, revision.0), (5, 13, 14), "what was predicted is skipped");
    table.mirror.handle_frame(&frame);
    table.assert_converged();
}

#[test]
fn a_frame_before_the_reply_is_based_on_the_prediction() {
    let mut table = table();
    let calls = [table.predict(drop_one(0)), table.predict(store(1))];
    let replies = calls.each_ref().map(|call| table.service.mutate(call).unwrap());
    table.mutate_as_another(add("anna", 1));
    assert_eq!(table.deliver(), MirrorUpdate { changed: vec![0], ..MirrorUpdate::default() });
    assert_eq!((table.shown(0, 0), table.shown(0, 1), table.shown(1, 0)), (10, 0, 10), "nothing is shown twice");
    // The replies arrive in reverse order.
    table.reply(&calls[1], &replies[1]);
    table.reply(&calls[0], &replies[0]);
    table.assert_converged();
}

#[test]
fn a_prediction_that_conflicts_with_another_caller_is_corrected_and_the_next_one_is_confirmed() {
    let mut table = table();
    table.mutate_as_another(add("anna", 5));
    let first = table.predict(drop_one(0));
    let second = table.predict(drop_one(0));
    assert_eq!(table.shown(0, 0), 8);
    let replies = [&first, &second].map(|call| table.service.mutate(call).unwrap());
    table.reply(&first, &replies[0]);
    assert_eq!(table.shown(0, 0), 8, "it is shown until the frame comes that its reply speaks of");
    let frame = table.frame().unwrap();
    assert_eq!((frame.trigger, frame.included_keys.len()), (SyncTrigger::Correction, 2));
    assert_eq!(table.mirror.handle_frame(&frame).corrected, [0]);
    assert_eq!(table.shown(0, 0), 13);
    table.reply(&second, &replies[1]);
    table.assert_converged();
    let third = table.predict(drop_one(0));
    let versions = table.service.mutate(&third).unwrap();
    table.reply(&third, &versions);
    assert_eq!(table.frame(), None);
    table.assert_converged();
}

#[test]
fn a_rejected_prediction_is_rolled_back_with_its_dependents() {
    let mut table = table();
    table.mutate_as_another(Operation::Set { id: id("anna"), slot: Slot(0), stack: None });
    let (refused, next) = (table.predict(drop_one(0)), table.predict(store(1)));
    assert_eq!((table.shown(0, 0), table.shown(1, 0)), (9, 10));
    assert_eq!(table.service.mutate(&refused), Err(()));
    let versions = table.service.mutate(&next).unwrap();
    table.mirror.handle_failure(KeyTag::of(&refused.key));
    assert_eq!((table.shown(0, 0), table.shown(0, 1)), (10, 0), "the other one stays");
    assert_eq!(table.deliver().corrected, [0, 1]);
    table.reply(&next, &versions);
    assert_eq!((table.shown(0, 0), table.shown(0, 1), table.shown(1, 0)), (0, 0, 10));
    table.assert_converged();
}

#[test]
fn case_43_changes_that_cancel_out_in_one_window_still_correct_a_wrong_prediction() {
    let mut table = table();
    let first = table.frame();
    assert_eq!(first, None);
    let before = table.service.world.get("anna").clone();
    // A reader that predicts a drop that the service rejects.
    let believed = before.contents.advanced(before.contents.revision(), &[filled(1, stack(PLANKS, 9))]);
    let naive = Replica { epoch: before.epoch, contents: believed };
    let (key, nothing) = (table.key(), Operation::Move { id: id("anna"), from: Slot(1), to: Slot(1), count: None });
    let predicted = vec![(id("anna"), naive.contents.digest())];
    let wrong = Call { key, mutation: mutation_of(nothing), session: Some(session()), predicted };
    table.service.mutate(&wrong).unwrap();
    table.mutate_as_another(add("anna", 1));
    table.mutate_as_another(Operation::Drop { id: id("anna"), slot: Slot(0), count: Some(count(1)) });
    let after = table.service.world.get("anna");
    assert_eq!(after.contents.digest(), before.contents.digest(), "the changes cancel out");
    let now = table.now;
    let frame = table.frame().unwrap();
    assert_eq!((table.now, frame.trigger), (now, SyncTrigger::Correction), "at once");
    let (_, part) = &frame.changed[0];
    assert!(matches!(part.body, FrameBody::Full { reason: FullReason::Correction, .. }), "{part:?}");
    let corrected = Replica::apply(Some(&naive), part).unwrap();
    assert_eq!(corrected.contents.digest(), before.contents.digest());
    table.mirror.handle_frame(&frame);
    table.assert_converged();
}

#[test]
fn a_retry_after_a_lost_reply_confirms_the_first_attempt_also_on_a_new_stream() {
    let mut table = table();
    let (first, second) = (table.predict(drop_one(0)), table.predict(drop_one(0)));
    let lost = table.service.mutate(&first).unwrap();
    let versions = table.service.mutate(&second).unwrap();
    let cursors = table.mirror.handle_connecting();
    table.stream = subscription(cursors);
    let frame = table.frame().unwrap();
    assert!(frame.caught_up && frame.included_keys.is_empty());
    table.mirror.handle_frame(&frame);
    assert_eq!(table.shown(0, 0), 8, "what the state has in it is not applied again");
    let replayed = table.service.mutate(&first).unwrap();
    assert_eq!(replayed, lost);
    table.reply(&first, &replayed);
    table.reply(&second, &versions);
    table.assert_converged();
}

#[test]
fn a_full_frame_older_than_a_reply_does_not_roll_the_replica_back() {
    let mut table = table();
    table.mutate_as_another(Operation::Rearrange { id: id("anna"), stacks: vec![(Slot(7), stack(PLANKS, 20))] });
    table.stream.handle_settings(SyncSettings { delta_slots_max: 0, ..SyncSettings::default() });
    let late = table.frame().unwrap();
    table.mirror.handle_frame(&late);
    table.mutate_as_another(add("anna", 1));
    let late = table.frame().unwrap();
    // The prediction is correct without the frame, because the other caller has reverted its change.
    let call = table.predict(drop_one(7));
    table.mutate_as_another(Operation::Drop { id: id("anna"), slot: Slot(7), count: Some(count(1)) });
    let versions = table.service.mutate(&call).unwrap();
    table.reply(&call, &versions);
    table.mirror.handle_frame(&late);
    table.assert_converged();
    table.mutate_as_another(add("anna", 2));
    table.deliver();
    table.assert_converged();
}

#[test]
fn a_reply_from_a_future_epoch_waits_for_that_epoch() {
    let mut table = table();
    let call = table.predict(add("chest", 4));
    let layout = layout_id("chest");
    table.mutate_as_another(Operation::Delete { id: id("chest") });
    table.mutate_as_another(Operation::Create { id: id("chest"), owner: None, layout, stacks: vec![] });
    let recreated = table.frame().unwrap();
    let versions = table.service.mutate(&call).unwrap();
    table.reply(&call, &versions);
    assert_eq!(table.mirror.pending(), 1);
    table.mirror.handle_frame(&recreated);
    table.assert_converged();
    table.mutate_as_another(add("chest", 1));
    table.deliver();
    table.assert_converged();
}

#[test]
fn an_absent_inventory_drops_its_pending_predictions() {
    let mut table = table();
    let (to_chest, own) = (table.predict(store(0)), table.predict(drop_one(1)));
    assert_eq!((table.shown(0, 0), table.shown(1, 0)), (0, 10));
    table.mutate_as_another(Operation::Delete { id: id("chest") });
    assert_eq!(table.deliver().changed, [0, 1]);
    assert!(table.mirror.is_absent(1) && table.mirror.view(1).is_none());
    assert_eq!((table.shown(0, 0), table.shown(0, 1)), (10, 9), "the other prediction stays");
    assert_eq!(table.service.mutate(&to_chest), Err(()));
    table.mirror.handle_failure(KeyTag::of(&to_chest.key));
    let versions = table.service.mutate(&own).unwrap();
    table.reply(&own, &versions);
    // The prediction was based on the rejected one.
    assert_eq!(table.deliver().corrected, [0]);
    assert_eq!((table.shown(0, 0), table.shown(0, 1)), (10, 9));
    assert_eq!((table.mirror.pending(), table.mirror.desyncs()), (0, 0));
    assert_eq!(table.mirror.predict(KeyTag(1), mutation_of(store(1))), Ok(Prediction::Impossible), "upon what?");
    let layout = layout_id("chest");
    table.mutate_as_another(Operation::Create { id: id("chest"), owner: None, layout, stacks: vec![] });
    table.deliver();
    assert!(!table.mirror.is_absent(1));
    table.assert_converged();
}

#[test]
fn a_reply_of_an_epoch_missed_between_two_frames_is_dropped_at_the_next_heartbeat() {
    let mut table = table();
    let call = table.predict(add("chest", 4));
    let layout = layout_id("chest");
    table.mutate_as_another(Operation::Delete { id: id("chest") });
    table.mutate_as_another(Operation::Create { id: id("chest"), owner: None, layout, stacks: vec![] });
    let versions = table.service.mutate(&call).unwrap();
    table.mutate_as_another(Operation::Delete { id: id("chest") });
    table.deliver();
    table.reply(&call, &versions);
    assert_eq!((table.mirror.is_absent(1), table.mirror.pending()), (true, 1), "it might be created anew");
    let states = table.service.states(&table.ids);
    table.now += SyncSettings::default().heartbeat;
    let heartbeat = table.stream.poll_frame(table.now, || states.clone()).unwrap().unwrap();
    assert!(heartbeat.is_heartbeat() && heartbeat.versions.len() == 1, "{heartbeat:?}");
    assert_eq!(table.mirror.handle_frame(&heartbeat), MirrorUpdate::default());
    assert_eq!((table.mirror.pending(), table.mirror.desyncs()), (0, 0));
}

#[test]
fn a_heartbeat_detects_a_replica_of_an_absent_inventory() {
    let mut table = table();
    table.mutate_as_another(Operation::Delete { id: id("chest") });
    let lost = table.frame().unwrap();
    assert_eq!(lost.absent, [1]);
    let states = table.service.states(&table.ids);
    table.now += SyncSettings::default().heartbeat;
    let heartbeat = table.stream.poll_frame(table.now, || states.clone()).unwrap().unwrap();
    assert_eq!(table.mirror.handle_frame(&heartbeat).desyncs, [1]);
}

#[test]
fn one_side_of_a_transfer_is_not_shown_without_the_other() {
    let mut table = table();
    let call = table.predict(store(0));
    let versions = table.service.mutate(&call).unwrap();
    table.mutate_as_another(add("chest", 5));
    table.deliver();
    assert_eq!((table.shown(0, 0), table.shown(1, 0)), (0, 15));
    table.reply(&call, &versions);
    table.assert_converged();
}

#[test]
fn unpredictable_and_locally_rejected_mutations_leave_nothing_pending() {
    let mut table = table();
    let key = KeyTag(1);
    let what = TransferSource::Slot { slot: Slot(0), count: None };
    let to_unknown =
        Operation::Transfer { from: id("anna"), what, to: id("barrel"), to_slot: None, allow_partial: false };
    assert_eq!(table.mirror.predict(key, mutation_of(to_unknown)), Ok(Prediction::Impossible));
    assert_eq!(
        table.mirror.predict(key, mutation_of(Operation::Delete { id: id("chest") })),
        Ok(Prediction::Impossible)
    );
    let refused = table.mirror.predict(key, mutation_of(drop_one(20)));
    let Err(PredictError::Rejected(rejection)) = refused else { panic!("{refused:?}") };
    assert!(matches!(rejection.cause, RejectionCause::SlotEmpty { .. }));
    table.assert_converged();
}

#[test]
fn the_number_of_pending_predictions_is_limited() {
    let mut table = table();
    for n in 0..PENDING_MAX as u32 {
        table.mirror.predict(KeyTag(n), mutation_of(add("chest", 1))).unwrap();
    }
    assert_eq!(table.mirror.predict(KeyTag(0xFFFF), mutation_of(add("chest", 1))), Err(PredictError::Full));
    assert_eq!(table.mirror.pending(), PENDING_MAX);
}

#[test]
fn a_desync_is_counted_once_and_repaired_by_the_requested_full_frame() {
    let mut table = table();
    table.mutate_as_another(add("anna", 1));
    let mut damaged = table.frame().unwrap();
    damaged.changed[0].1.check ^= 1;
    assert_eq!(table.mirror.handle_frame(&damaged).desyncs, [0]);
    table.mutate_as_another(add("anna", 1));
    assert_eq!(table.deliver().desyncs, [] as [usize; 0], "it is known");
    assert_eq!(table.mirror.predict(KeyTag(1), mutation_of(drop_one(0))), Ok(Prediction::Impossible), "upon what?");
    table.service.correct(&session(), &id("anna"));
    assert_eq!(table.deliver().corrected, [0]);
    assert_eq!((table.mirror.desyncs(), table.shown(0, 0)), (1, 12));
    table.mutate_as_another(add("anna", 1));
    table.deliver();
    assert_eq!((table.mirror.desyncs(), table.shown(0, 0)), (1, 13));
}

// Faults of simpler designs that the mirror avoids.

#[test]
fn a_partial_add_reports_its_remainder_or_adds_nothing() {
    let mut world = World::new(default_catalog());
    let planks: Vec<_> = (0..27).map(|slot| filled(slot, stack(PLANKS, 60))).collect();
    world.put("chest", "chest", 1, &planks);
    let before = world.totals();
    world.run(add("chest", 27 * 4 + 1)).unwrap_err();
    assert_eq!(world.totals(), before);
    let attributes = Attributes::NONE;
    let (item, count) = (item(PLANKS), count(27 * 4 + 1));
    let effect = world.run(Operation::Add { id: id("chest"), item, attributes, count, allow_partial: true }).unwrap();
    assert_eq!((effect.outcomes[0].count, effect.outcomes[0].remainder), (27 * 4, 1));
}

#[test]
fn a_cursor_does_not_lose_changes_made_during_a_send() {
    let mut table = table();
    table.mutate_as_another(add("anna", 1));
    let under_way = table.frame().unwrap();
    // The same slot changes again between the creation of the frame and its delivery.
    table.mutate_as_another(add("anna", 1));
    table.mirror.handle_frame(&under_way);
    assert_eq!(table.shown(0, 0), 11);
    table.deliver();
    assert_eq!(table.shown(0, 0), 12);
    table.assert_converged();
}

#[test]
fn a_lost_sync_is_detected_by_the_next_sync_and_repaired() {
    let mut table = table();
    table.mutate_as_another(add("anna", 1));
    table.frame().expect("a frame that nobody gets");
    table.mutate_as_another(Operation::Set { id: id("anna"), slot: Slot(5), stack: Some(stack(PLANKS, 2)) });
    assert_eq!(table.deliver().desyncs, [0]);
    table.service.correct(&session(), &id("anna"));
    table.deliver();
    assert_eq!((table.shown(0, 0), table.shown(0, 5)), (11, 2));
}
