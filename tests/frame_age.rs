//! The age of the oldest change in a frame, and the trace of its newest traced change.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use slotcast::domain::{Contents, Epoch, Inventory, InventoryId, LayoutId, Revision};
use slotcast::sync::{Frame, PublishedState, SubscribeOptions, Subscription, SyncSettings, TraceContext, TracedChange};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

/// A published inventory that changes at times of the test's choice.
struct PublishedInventory {
    start: Instant,
    state: Arc<PublishedState>,
    revision: u64,
}

fn inventory(revision: u64) -> Arc<Inventory> {
    Arc::new(Inventory {
        id: InventoryId::new("chest").unwrap(),
        owner: None,
        layout: LayoutId::new("chest").unwrap(),
        epoch: Epoch::new(1).unwrap(),
        contents: Contents::new(3, Revision(revision), &[]),
    })
}

fn trace(n: u8) -> TraceContext {
    TraceContext { trace_id: [n; 16], span_id: [n; 8] }
}

impl PublishedInventory {
    fn new() -> Self {
        Self { start: Instant::now(), state: Arc::new(PublishedState::new(Some(inventory(1)))), revision: 1 }
    }

    fn change(&mut self, at_ms: u32, trace: Option<TraceContext>) {
        self.revision += 1;
        let next = self.state.followed_by(Some(inventory(self.revision)), []);
        self.state = Arc::new(next.superseding(&self.state, self.at(at_ms), trace));
    }

    /// Publishes the inventory again without a change, as for a correction.
    fn republish(&mut self, at_ms: u32) {
        let next = self.state.followed_by(Some(inventory(self.revision)), []);
        self.state = Arc::new(next.superseding(&self.state, self.at(at_ms), None));
    }

    fn at(&self, at_ms: u32) -> Instant {
        self.start + at_ms * MS
    }

    fn frame(&self, reader: &mut Subscription, at_ms: u32) -> Option<Frame> {
        let states = vec![self.state.clone()];
        reader.handle_states(&states);
        reader.poll_frame(at_ms * MS, || states.clone()).unwrap()
    }

    /// Returns a reader that has the current state.
    fn caught_up(&self) -> Subscription {
        let options = SubscribeOptions { resume: vec![None], ..SubscribeOptions::default() };
        let mut reader = Subscription::new(SyncSettings::immediate_full(), options);
        let first = self.frame(&mut reader, 0).unwrap();
        assert_eq!((first.stale_since, first.traced), (None, None), "the first frame has no age");
        reader
    }
}

#[test]
fn the_age_of_a_frame_is_that_of_the_oldest_change_that_its_reader_is_missing() {
    let mut inventory = PublishedInventory::new();
    inventory.change(1, Some(trace(1)));
    let (mut prompt, mut stalled) = (inventory.caught_up(), inventory.caught_up());
    for at_ms in 10..1_000 {
        inventory.change(at_ms, (at_ms == 500).then(|| trace(2)));
        let frame = inventory.frame(&mut prompt, at_ms).unwrap();
        assert_eq!(frame.stale_since, Some(inventory.at(at_ms)));
        let traced = TracedChange { at: inventory.at(500), trace: trace(2) };
        assert_eq!(
            frame.traced,
            (at_ms == 500).then_some(traced),
            "the trace is that of a change that is new to the reader"
        );
    }
    let frame = inventory.frame(&mut stalled, 1_000).unwrap();
    assert_eq!(frame.stale_since, Some(inventory.at(10)), "the oldest missing change");
    assert_eq!(frame.traced.unwrap().trace, trace(2), "the newest traced change");
    assert!(inventory.frame(&mut stalled, 1_001).is_none());
    inventory.change(1_100, Some(trace(3)));
    let frame = inventory.frame(&mut stalled, 1_100).unwrap();
    assert_eq!((frame.stale_since, frame.traced.unwrap().trace), (Some(inventory.at(1_100)), trace(3)));
}

#[test]
fn publishing_without_a_change_does_not_age_a_reader() {
    let mut inventory = PublishedInventory::new();
    let mut reader = inventory.caught_up();
    inventory.republish(100);
    assert!(inventory.frame(&mut reader, 200).is_none());
    inventory.change(300, None);
    let frame = inventory.frame(&mut reader, 300).unwrap();
    assert_eq!((frame.stale_since, frame.traced), (Some(inventory.at(300)), None));
}

#[test]
fn the_age_of_a_reader_that_resumes_without_missing_changes_starts_at_the_next_change() {
    let mut inventory = PublishedInventory::new();
    let cursor = slotcast::sync::Cursor { epoch: Epoch::new(1).unwrap(), revision: Revision(1) };
    let options = SubscribeOptions { resume: vec![Some(cursor)], ..SubscribeOptions::default() };
    let mut reader = Subscription::new(SyncSettings::immediate_full(), options);
    assert!(inventory.frame(&mut reader, 0).unwrap().changed.is_empty());
    inventory.change(10, None);
    inventory.change(20, None);
    assert_eq!(inventory.frame(&mut reader, 30).unwrap().stale_since, Some(inventory.at(10)));
}
